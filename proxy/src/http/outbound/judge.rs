//! Judges a request by the policies of this host: when it comes, and again while it is under way.

use hostmesh_proxy_core::authorize::{self, Caller, Decision, Verdict};
use hostmesh_proxy_core::http1::RequestHead;

use super::Calling;
use crate::http::call::Call;
use crate::http::conn::Conn;
use crate::http::hop::{Hop, Parties};
use crate::http::observe::{Account, Entry};
use crate::http::session::{Next, asked, reply};
use crate::rejudge::{self, Denial};
use crate::worker::About;

impl Calling {
    /// Who is concerned; judges by the called unit's own policy, where it is a unit of this host. `Err`: refused, and the
    /// client knows.
    pub(super) async fn parties(&mut self, down: &mut Conn, call: &Call<'_>, hop: &Hop) -> Result<Parties, Next> {
        let Some((unit, port)) = &hop.local else {
            let peer = hop
                .endpoint
                .as_ref()
                .map_or_else(|| "".into(), |endpoint| endpoint.spiffe_id.clone());
            return Ok(Parties {
                caller: self.account(peer, "outbound"),
                callee: None,
            });
        };
        let (request, id) = (call.request, self.route.connector.unit.spiffe_id.clone());
        let caller = self.account(unit.spiffe_id.clone(), "outbound");
        let decision = authorize::request(unit, &Caller::Identity(&id), port.port, &asked(request));
        self.audited.begins(decision.verdict);
        let about = About {
            unit: unit.clone(),
            direction: "local",
            peer: id,
            port: port.port,
            ..caller.about.clone()
        };
        let callee = self.account_like(about);
        if decision.verdict != Verdict::Allow {
            callee.denied(&self.worker, &call.entry(0, ""), &decision);
        }
        let Some(fault) = decision.verdict.fault() else {
            return Ok(Parties {
                caller,
                callee: Some((callee, decision.rule)),
            });
        };
        let flag = fault.word();
        caller.ended(
            &self.worker,
            &Entry {
                flag,
                ..call.entry(fault.status(), "")
            },
        );
        Err(reply(down, request, fault, &fault.to_string(), call.last).await)
    }

    /// Waits until the unit may not call the service any more, or its request is denied by the unit of this host that is
    /// called. `audited`: audit would deny it from now on.
    pub(super) async fn turned(
        &self,
        request: &RequestHead,
        callee: Option<&Account>,
        audited: impl Fn(&Account, &Decision),
    ) -> Denial {
        let connector = &self.route.connector;
        rejudge::turned(&self.worker, connector.config.policies, |config| {
            let about = self.about("".into());
            let decision = rejudge::by_unit(config, &about, |unit| self.route.to.judge(unit, self.called.ip()));
            if !decision.verdict.passes() {
                return Some(Denial::new(about, decision));
            }
            let about = &callee?.about;
            let caller = Caller::Identity(&about.peer);
            let decision = rejudge::by_unit(config, about, |unit| {
                authorize::request(unit, &caller, about.port, &asked(request))
            });
            if self.audited.begins(decision.verdict) {
                callee.inspect(|callee| audited(callee, &decision));
            }
            (!decision.verdict.passes()).then(|| Denial::new(about.clone(), decision))
        })
        .await
    }
}

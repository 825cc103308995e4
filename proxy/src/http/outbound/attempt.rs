//! One try: a connection, the request by it and the response back, and what comes of that.

use std::borrow::Cow;
use std::pin::pin;

use hostmesh_proxy_core::authorize::Decision;
use hostmesh_proxy_core::error::{Blame, Fault};
use hostmesh_proxy_core::fields::{Changes, FieldEdits};
use hostmesh_proxy_core::http1::RequestEdits;
use hostmesh_proxy_core::retry::{Failure, is_idempotent};
use tokio::time::Instant;

use super::Calling;
use crate::connect::ConnectError;
use crate::http::call::{Call, Tried, failed_connect, failure_of, stood_still, timed_out, until};
use crate::http::down::{Answer, Downstream, Ended, Manner, Stretch, Up};
use crate::http::ext_authz::Permit;
use crate::http::hop::{Hop, Parties};
use crate::http::observe::{Account, broken, count_slow};
use crate::http::session::Next;
use crate::in_flight::InFlight;
use crate::tcp::stands_still;
use crate::traces::connection::Opening;

/// A try whose connection is there.
pub(super) struct Trial<'a> {
    pub hop: &'a Hop,
    pub parties: &'a Parties,
    pub in_flight: &'a InFlight,
    /// The connection has served other requests.
    pub is_used: bool,
    /// When there must be a response's head.
    pub deadline: Option<Instant>,
    pub stretch: Stretch,
}

impl Calling {
    /// One try, to its end.
    pub(super) async fn attempt(
        &self,
        down: &mut impl Downstream,
        call: &Call<'_>,
        hop: &Hop,
        parties: &Parties,
        in_flight: &InFlight,
        fresh: bool,
    ) -> Tried {
        let deadline = call.try_deadline();
        let opening = Opening::default();
        let service = call.service.as_ref();
        let connected = tokio::select! {
            biased;
            connected = self.connect_with_room(&call.route, service, hop, fresh, &opening) => {
                connected.map_err(|error| not_connected(in_flight, &error))
            }
            () = until(deadline) => {
                in_flight.failed();
                Err(timed_out())
            }
        };
        if let Some(steps) = opening.dialed.get() {
            call.part().dialed(&self.worker, &call.route.connector.unit, steps);
        }
        let (up, is_used, room) = match connected {
            Ok(connected) => connected,
            Err(tried) => return tried,
        };
        call.room.replace(room);
        let trial = Trial {
            hop,
            parties,
            in_flight,
            is_used,
            deadline,
            stretch: Stretch::Whole,
        };
        let again = |failure: Option<Failure>| failure.filter(|failure| call.may_retry(&self.worker, *failure));
        let exchanged = self.exchange(down, call, &trial, up, again).await;
        // The whole of it has been made.
        exchanged.unwrap_or(Tried::Over(Next::Abort))
    }

    /// Makes a stretch of a try by `up`. `again`: is a response with this failure, or none, to be tried again? An error: the
    /// request has gone out, and the connection waits for the response.
    pub(super) async fn exchange(
        &self,
        down: &mut impl Downstream,
        call: &Call<'_>,
        trial: &Trial<'_>,
        mut up: Up,
        again: impl Fn(Option<Failure>) -> Option<Failure>,
    ) -> Result<Tried, Up> {
        let (is_local, in_flight) = (trial.hop.local.is_some(), trial.in_flight);
        let connector = &call.route.connector;
        let changes = call.taken.as_ref().and_then(|taken| taken.changes());
        let permit = trial.parties.permit();
        let (request, response) = (permit.and_then(Permit::request), permit.and_then(Permit::response));
        let by_route = call.taken.as_ref().and_then(|taken| taken.response());
        let fields = then(changes.as_ref().map(|changes| changes.fields), request);
        let changes = match (&changes, fields.as_deref()) {
            (Some(changes), Some(fields)) => Some(Changes { fields, ..*changes }),
            (None, Some(fields)) => Some(Changes::of_fields(fields)),
            (_, None) => None,
        };
        let response = then(by_route, response);
        let manner = Manner {
            edits: RequestEdits {
                changes: changes.as_ref(),
                ..trial.parties.edits(call.outgoing(is_local), &connector.unit)
            },
            response: response.as_deref(),
            deadline: trial.deadline,
            from_application: is_local,
            timeouts: connector.config.timeouts,
            stretch: trial.stretch,
        };
        let again = |answer: &dyn Answer| {
            in_flight.answered(answer);
            again(failure_of(answer, is_local))
        };
        let tell = |callee: &Account, decision: &Decision| {
            callee.judged(&self.worker, &call.entry(0, "").of_callee(&decision.rule), decision);
        };
        let denied = pin!(self.turned(
            &call.route,
            call.taken.as_deref(),
            call.arrived.asked,
            call.callee.as_deref().into_iter(),
            call.audited,
            tell,
        ));
        let (idle, progress) = (call.idle_timeout(), call.arrived.progress);
        let ended = {
            let mut exchanged = pin!(down.exchange(&mut up, &manner, again, denied));
            tokio::select! {
                biased;
                ended = &mut exchanged => ended,
                () = stands_still(idle, || progress.sent.get() + progress.received.get()) => {
                    stood_still(in_flight.status())
                }
            }
        };
        match ended {
            Ended::Waiting => Err(up),
            ended => Ok(self.over(down, call, trial, up, ended).await),
        }
    }

    /// What comes of a try that has ended.
    async fn over(
        &self,
        down: &mut impl Downstream,
        call: &Call<'_>,
        trial: &Trial<'_>,
        up: Up,
        ended: Ended,
    ) -> Tried {
        let parties = trial.parties;
        let entry = |status: u16, error| {
            parties.ended(&self.worker, &call.entry(status, error));
        };
        let is_replayable = call.arrived.progress.is_replayable.get();
        match ended {
            Ended::Answered {
                status,
                upstream_clean,
                downstream_clean,
            } => {
                entry(status, "");
                trial.in_flight.completed(call.arrived.progress.grpc_status.get());
                if upstream_clean {
                    self.keep(&call.route, trial.hop, up);
                }
                Tried::Over(if downstream_clean { Next::Keep } else { Next::Close })
            }
            Ended::Upgraded => {
                entry(101, "");
                Tried::Over(up.into_tunnel())
            }
            Ended::Unseen if trial.is_used && is_replayable => Tried::Stale,
            Ended::Unseen => Tried::Failed {
                fault: Fault::Connect,
                failure: Failure::Connect,
                message: "the service took no request on its connection".to_owned(),
            },
            Ended::Refused(failure) => {
                up.abort();
                Tried::Again(failure)
            }
            Ended::Denied { status, denial } => {
                up.deny();
                parties.denied(&self.worker, &call.entry(status, ""), &denial);
                Tried::Over(down.refuse(&denial.decision, status).await)
            }
            Ended::Broken { status, by } => {
                entry(status, broken(&self.worker, by, "the service broke off its response"));
                up.abort();
                Tried::Over(Next::Abort)
            }
            Ended::Failed(fault) => {
                up.abort();
                if fault.blame() == Blame::Upstream {
                    trial.in_flight.failed();
                }
                count_slow(&self.worker, fault);
                let may_repeat = is_replayable && is_idempotent(call.arrived.asked.method);
                if fault == Fault::Reset && trial.is_used && may_repeat {
                    return Tried::Stale;
                }
                match fault.failure() {
                    Some(failure) => Tried::Failed {
                        fault,
                        failure,
                        message: fault.to_string(),
                    },
                    None => Tried::Over(self.give_up(down, call, Some(parties), fault, &fault.to_string()).await),
                }
            }
            // The whole of it was made.
            Ended::Waiting => Tried::Over(Next::Abort),
        }
    }
}

/// What a route does to fields, and then a gatekeeper.
fn then<'a>(route: Option<&'a FieldEdits>, gatekeeper: Option<&'a FieldEdits>) -> Option<Cow<'a, FieldEdits>> {
    match (route, gatekeeper) {
        (Some(first), Some(more)) => Some(Cow::Owned(first.then(more))),
        (one, None) | (None, one) => one.map(Cow::Borrowed),
    }
}

/// There is no connection.
pub(super) fn not_connected(in_flight: &InFlight, error: &ConnectError) -> Tried {
    if matches!(error, ConnectError::Unreachable(_)) {
        in_flight.failed();
    }
    failed_connect(error)
}

//! Whom the requests of a unit's connection are counted and recorded for: the caller, and the unit of this host that is
//! called.

use std::rc::Rc;
use std::sync::Arc;

use hostmesh_proxy_core::config::Unit;

use super::Calling;
use crate::http::hop::Hop;
use crate::http::observe::Account;
use crate::http::route::Route;
use crate::worker::About;

impl Calling {
    /// The caller's account with a peer.
    pub(super) fn account(&self, route: &Route, peer: &Arc<str>) -> Rc<Account> {
        let unit = &route.connector.unit;
        let of = (unit, "outbound", peer, route.to.service_name());
        self.account_of(of, || self.about(route, peer.clone()))
    }

    /// The same, where nobody was called.
    pub(super) fn account_of_nobody(&self, route: &Route) -> Rc<Account> {
        self.account(route, &"".into())
    }

    /// The caller's account with whom a try calls.
    pub(super) fn caller(&self, route: &Route, hop: &Hop) -> Rc<Account> {
        match (&hop.local, &hop.endpoint) {
            (Some((unit, _)), _) => self.account(route, &unit.spiffe_id),
            (None, Some(endpoint)) => self.account(route, &endpoint.spiffe_id),
            (None, None) => self.account_of_nobody(route),
        }
    }

    /// The account of a unit of this host that is called, with its caller, whose account `with_it` is.
    pub(super) fn account_of_callee(
        &self,
        unit: &Arc<Unit>,
        port: u16,
        with_it: &Account,
        caller: &Arc<str>,
    ) -> Rc<Account> {
        self.account_of((unit, "local", caller, &with_it.about.service), || About {
            unit: unit.clone(),
            direction: "local",
            peer: caller.clone(),
            port,
            ..with_it.about.clone()
        })
    }

    /// What its records are about, towards this peer.
    pub(super) fn about(&self, route: &Route, peer: Arc<str>) -> About {
        About {
            unit: route.connector.unit.clone(),
            direction: "outbound",
            peer,
            service: route.to.service_name().clone(),
            port: route.to.port(),
            protocol: route.to.protocol().as_str(),
            client: self.client,
            sni: None,
            route: None,
        }
    }

    /// The account of unit, direction, peer and service; one for each. `about`: asked where there is none yet.
    fn account_of(
        &self,
        (unit, direction, peer, service): (&Arc<Unit>, &str, &Arc<str>, &Arc<str>),
        about: impl FnOnce() -> About,
    ) -> Rc<Account> {
        let is_same = |known: &&Rc<Account>| {
            let known = &known.about;
            Arc::ptr_eq(&known.unit, unit)
                && known.peer == *peer
                && known.direction == direction
                && known.service == *service
        };
        let mut accounts = self.accounts.borrow_mut();
        if let Some(known) = accounts.iter().find(is_same) {
            return known.clone();
        }
        let account = Rc::new(Account::new(&self.worker, about()));
        accounts.push(account.clone());
        account
    }
}

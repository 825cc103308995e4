//! Whom the requests of a unit's connection are counted and recorded for: the caller, and the unit of this host that is
//! called.

use std::rc::Rc;
use std::sync::Arc;

use super::Calling;
use crate::http::observe::Account;
use crate::http::route::Route;
use crate::worker::About;

impl Calling {
    /// The caller's account with a peer.
    pub(super) fn account(&self, route: &Route, peer: Arc<str>, direction: &'static str) -> Rc<Account> {
        self.account_like(About {
            direction,
            ..self.about(route, peer)
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
            sni: "".into(),
            route: "".into(),
        }
    }

    /// The account about this; one for each pair of unit and peer.
    pub(super) fn account_like(&self, about: About) -> Rc<Account> {
        let is_same = |known: &&Rc<Account>| {
            let known = &known.about;
            Arc::ptr_eq(&known.unit, &about.unit)
                && known.peer == about.peer
                && known.direction == about.direction
                && known.service == about.service
        };
        let mut accounts = self.accounts.borrow_mut();
        if let Some(known) = accounts.iter().find(is_same) {
            return known.clone();
        }
        let account = Rc::new(Account::new(&self.worker, about));
        accounts.push(account.clone());
        account
    }
}

//! Chooses what a request to a service meets: the first of the service's routes that fits, and what it does.
//!
//! Law: the same request, source and random numbers give the same choice; so `hostmesh explain` tells what the data plane
//! does. Twin of `hostmesh/policy/route_choice.py`; both are held to `tests/vectors/routes.json`. Numbers are drawn in one
//! order, and only where something is left to chance: delay, abort, share, mirror.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::authorize::{Headers, Request};
use crate::balance::hash;
use crate::config::{HashOn, Hedge, Retries};
use crate::fields::FieldEdits;
use crate::path::{self, Ambiguous};
use crate::template::{Captured, Template};

/// What some requests to a service meet.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Route {
    pub name: Arc<str>,
    pub rule: Arc<str>,
    pub fits: Match,
    /// None: the service that was called.
    pub to: Vec<Share>,
    /// What chooses among the shares; a request without it is left to chance.
    pub sticky: Option<HashOn>,
    pub mirror: Option<Mirror>,
    pub action: Action,
    pub fault: Option<Inject>,
    pub response: FieldEdits,
    /// In place of the service's.
    pub timeout: Option<Duration>,
    /// In place of the service's.
    pub retries: Option<Retries>,
    /// In place of the service's.
    pub hedge: Option<Hedge>,
}

/// What of a request must fit.
#[derive(Debug, Default)]
#[allow(missing_docs)]
pub struct Match {
    pub path: Option<Template>,
    pub methods: Vec<Box<str>>,
    /// Name in lower case; no value: it is there.
    pub headers: Vec<(Box<str>, Option<Box<str>>)>,
    pub query: Vec<(Box<str>, Option<Box<str>>)>,
    /// It is for connections of TLS, and for no request.
    pub sni: Option<ServerName>,
}

/// A service and its weight.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Share {
    pub service: Arc<str>,
    pub weight: u32,
}

/// A share of something, in millionths.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Millionths(pub u32);

/// Where copies go.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Mirror {
    pub to: Arc<str>,
    pub share: Millionths,
    /// Copies under way at once, in all workers.
    pub max_pending: u32,
}

/// Trouble on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Inject {
    pub delay: Option<(Duration, Millionths)>,
    pub abort: Option<(u16, Millionths)>,
}

/// What becomes of a request that nothing has stopped.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// It goes on, changed by this if there is anything.
    Forward(Option<Box<Rewrite>>),
    /// It is answered with another place to ask: what stands before the path, and the path.
    Redirect {
        /// 301, 302, 303, 307 or 308.
        status: u16,
        /// `https://shop.example.org`, or nothing.
        origin: Box<str>,
        /// Filled from the request's.
        path: Template,
    },
    /// It is answered.
    Respond(Respond),
}

/// How a request is changed on its way.
#[derive(Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Rewrite {
    pub path: Option<Template>,
    pub host: Option<Box<str>>,
    pub fields: FieldEdits,
}

/// An answer of the proxy's own.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Respond {
    pub status: u16,
    pub body: Arc<str>,
    pub headers: Vec<(Box<str>, Box<str>)>,
}

/// What is looked at.
#[derive(Clone, Copy)]
#[allow(missing_docs)]
pub struct View<'a> {
    pub request: Request<'a>,
    /// Behind the question mark; empty: none.
    pub query: &'a str,
    pub source: IpAddr,
}

/// What was chosen.
#[derive(Debug)]
pub enum Choice<'a> {
    /// No route fits: as if there were none.
    Service,
    /// This route asks about the path, and the path has no one meaning.
    BadPath(&'a Arc<Route>),
    /// This route.
    Route(Taken<'a>),
}

/// What a route does to a request.
#[derive(Debug)]
#[allow(missing_docs)]
pub struct Taken<'a> {
    pub route: &'a Arc<Route>,
    /// Held back for so long first.
    pub delay: Option<Duration>,
    pub then: Then<'a>,
}

/// What follows.
#[derive(Debug, PartialEq, Eq)]
pub enum Then<'a> {
    /// Answered with this status, on purpose.
    Abort(u16),
    /// Answered with another place to ask.
    Redirect {
        /// The status.
        status: u16,
        /// `Location`.
        location: String,
    },
    /// Answered.
    Respond(&'a Respond),
    /// Goes on.
    Forward {
        /// To this one; `None`: to the service that was called.
        service: Option<&'a Arc<str>>,
        /// Asked for as this; `None`: as it came.
        target: Option<String>,
        /// A copy goes to the mirror.
        mirrored: bool,
    },
}

enum Fit<'p> {
    No,
    Yes(Captured<'p>),
    BadPath,
}

/// Chooses among a service's routes. `random`: uniform, asked for as often as something is left to chance.
pub fn choose<'a>(routes: &'a [Arc<Route>], view: &View<'_>, mut random: impl FnMut() -> u64) -> Choice<'a> {
    let normal = OnceCell::new();
    for route in routes {
        match route.fits.fit(view, &normal) {
            Fit::No => {}
            Fit::BadPath => return Choice::BadPath(route),
            Fit::Yes(captured) => {
                let (delay, then) = route.act(view, &captured, &mut random);
                return Choice::Route(Taken { route, delay, then });
            }
        }
    }
    Choice::Service
}

impl Match {
    /// The path is judged last: only where all else fits.
    fn fit<'p>(&self, view: &View<'p>, normal: &'p OnceCell<Result<Cow<'p, str>, Ambiguous>>) -> Fit<'p> {
        let methods = &self.methods;
        if self.sni.is_some() {
            return Fit::No;
        }
        let method = methods.is_empty() || methods.iter().any(|method| **method == *view.request.method);
        if !method
            || !self
                .headers
                .iter()
                .all(|wanted| has_header(view.request.headers, wanted))
            || !self.query.iter().all(|wanted| has_parameter(view.query, wanted))
        {
            return Fit::No;
        }
        let Some(template) = &self.path else {
            return Fit::Yes(Captured::default());
        };
        match normal.get_or_init(|| path::normal(view.request.path)) {
            Err(_) => Fit::BadPath,
            Ok(path) => template.matches(path).map_or(Fit::No, Fit::Yes),
        }
    }
}

/// One line of this name with this value, no more; or, where no value is asked for, any.
fn has_header(headers: &dyn Headers, (name, wanted): &(Box<str>, Option<Box<str>>)) -> bool {
    let (mut lines, mut same) = (0, false);
    headers.each(name, &mut |line| {
        lines += 1;
        same = wanted.as_ref().is_some_and(|wanted| line == wanted.as_bytes());
    });
    lines > 0 && (wanted.is_none() || (lines == 1 && same))
}

/// The same of a query's parameters (WHATWG, application/x-www-form-urlencoded).
fn has_parameter(query: &str, (name, wanted): &(Box<str>, Option<Box<str>>)) -> bool {
    let pairs = form_urlencoded::parse(query.as_bytes());
    let mut values = pairs.filter(|(key, _)| **key == **name).map(|(_, value)| value);
    match (values.next(), wanted) {
        (None, _) => false,
        (Some(_), None) => true,
        (Some(value), Some(wanted)) => *value == **wanted && values.next().is_none(),
    }
}

impl Route {
    fn act(
        &self,
        view: &View<'_>,
        captured: &Captured<'_>,
        random: &mut impl FnMut() -> u64,
    ) -> (Option<Duration>, Then<'_>) {
        let inject = self.fault;
        let delay = inject
            .and_then(|inject| inject.delay)
            .filter(|(_, share)| share.hits(random));
        let delay = delay.map(|(delay, _)| delay);
        let abort = inject
            .and_then(|inject| inject.abort)
            .filter(|(_, share)| share.hits(random));
        if let Some((status, _)) = abort {
            return (delay, Then::Abort(status));
        }
        let fitted = self.fits.path.as_ref();
        let with_query = |mut path: String| {
            if !view.query.is_empty() {
                path.push('?');
                path.push_str(view.query);
            }
            path
        };
        let then = match &self.action {
            Action::Redirect { status, origin, path } => Then::Redirect {
                status: *status,
                location: with_query(format!("{origin}{}", path.fill(fitted, captured))),
            },
            Action::Respond(respond) => Then::Respond(respond),
            Action::Forward(rewrite) => {
                let path = rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref());
                Then::Forward {
                    service: self.share(|on| hash::key(on, view.request.headers, view.source), random),
                    target: path.map(|path| with_query(path.fill(fitted, captured))),
                    mirrored: self.mirror.as_ref().is_some_and(|mirror| mirror.share.hits(random)),
                }
            }
        };
        (delay, then)
    }

    /// `key`: the value of what is to be sticky.
    fn share(&self, key: impl FnOnce(&HashOn) -> Option<u64>, random: &mut impl FnMut() -> u64) -> Option<&Arc<str>> {
        if self.to.len() < 2 {
            return self.to.first().map(|share| &share.service);
        }
        let total: u64 = self.to.iter().map(|share| u64::from(share.weight)).sum();
        let sticky = self.sticky.as_ref().and_then(key).map(hash::mix);
        // By the place within the whole: weights that change a little move few.
        let at = (u128::from(sticky.unwrap_or_else(random)) * u128::from(total)) >> 64;
        let mut end = 0;
        let chosen = self.to.iter().find(|share| {
            end += u128::from(share.weight);
            at < end
        });
        chosen.map(|share| &share.service)
    }
}

impl Millionths {
    /// Draws only where it is a question.
    fn hits(self, random: &mut impl FnMut() -> u64) -> bool {
        match self.0 {
            0 => false,
            1_000_000.. => true,
            share => (u128::from(random()) * 1_000_000) >> 64 < u128::from(share),
        }
    }
}

#[path = "route_names.rs"]
mod names;

pub use names::{ServerName, choose_by_name};

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;

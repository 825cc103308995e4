//! Reads the token of a request, and remembers those that are believed: the next request with it costs a hash.
//!
//! A token by a key that is not known may be by a new one: the agent is told, and the request waits a moment for the keys
//! that it finds. Who asks without end makes nobody else wait, and the agent decides how often it looks.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::digest::{SHA256, digest};
use hostmesh_proxy_core::authorize::{Headers, Token};
use hostmesh_proxy_core::config::Unit;
use hostmesh_proxy_core::token::{Believed, Doubt, Found, Issuer, Issuers};
use tokio::time::{Instant, timeout_at};

use crate::worker::{About, Worker};

/// A request waits so long for keys that are not there yet.
const HELD: Duration = Duration::from_secs(1);
/// The agent is told of one issuer's unknown keys so often, by each worker.
const PACE: Duration = Duration::from_millis(250);
/// Tokens of the present that are remembered; of those before them as many again.
const REMEMBERED: usize = 1024;

/// What a request brought.
#[derive(Clone, Default)]
pub enum Brought {
    /// No token, or none that its unit looks for.
    #[default]
    Nothing,
    /// One that is not believed.
    Bad(Doubt),
    /// One that is.
    Good(Rc<Believed>),
}

impl Brought {
    /// As policy is asked about it.
    pub fn token(&self) -> Token<'_> {
        match self {
            Self::Nothing => Token::None,
            Self::Bad(doubt) => Token::Bad(*doubt),
            Self::Good(believed) => Token::Good(&believed.claims),
        }
    }

    /// What the application gets of it.
    pub fn headers(&self) -> &[(Box<str>, Box<str>)] {
        match self {
            Self::Good(believed) => &believed.headers,
            _ => &[],
        }
    }
}

/// By the hash of the token and the number of the issuers that it was checked by.
type Memory = HashMap<([u8; 32], u64), Rc<Believed>>;

/// The tokens of one worker.
#[derive(Default)]
pub struct Tokens {
    /// By unit: its issuers, numbered anew when they or their keys become others.
    issuers: HashMap<Arc<str>, (Arc<Issuers>, u64)>,
    numbers: u64,
    recent: Memory,
    before: Memory,
    /// When the agent was told last, by the rule that names the issuer.
    told: HashMap<Box<str>, Instant>,
}

impl Tokens {
    /// Under which number the unit's issuers are remembered.
    fn number(&mut self, unit: &Unit, issuers: &Arc<Issuers>) -> u64 {
        if let Some((known, number)) = self.issuers.get_mut(&unit.unit)
            && (Arc::ptr_eq(known, issuers) || known == issuers)
        {
            known.clone_from(issuers);
            return *number;
        }
        self.numbers += 1;
        self.issuers.insert(unit.unit.clone(), (issuers.clone(), self.numbers));
        self.numbers
    }

    fn recall(&mut self, key: &([u8; 32], u64), now: u64) -> Option<Rc<Believed>> {
        let known = match self.recent.get(key) {
            Some(known) => known.clone(),
            None => {
                let known = self.before.remove(key)?;
                self.remember(*key, known.clone());
                known
            }
        };
        (known.until > now as f64).then_some(known)
    }

    fn remember(&mut self, key: ([u8; 32], u64), believed: Rc<Believed>) {
        if self.recent.len() >= REMEMBERED {
            self.before = std::mem::take(&mut self.recent);
        }
        self.recent.insert(key, believed);
    }

    /// Is it time to tell the agent again?
    fn may_tell(&mut self, issuer: &Issuer) -> bool {
        let now = Instant::now();
        let is_due = self.told.get(&issuer.rule).is_none_or(|told| now >= *told + PACE);
        if is_due {
            self.told.insert(issuer.rule.clone(), now);
        }
        is_due
    }
}

/// A token in a request to `unit`, not yet checked; one that has no meaning is malformed.
pub type Bare = Option<Result<Found, Doubt>>;

/// The token of a request with these headers to `unit`, if the unit looks for one.
pub fn find(unit: &Unit, headers: &dyn Headers) -> Bare {
    unit.tokens.as_ref()?.find(headers)
}

/// Checks the token of a request to `about.unit`. `wants`: would a good one in place of this change what becomes of it?
pub async fn read(worker: &Worker, about: &About, found: Bare, wants: impl Fn(Token<'_>) -> bool) -> Brought {
    match (&about.unit.tokens, found) {
        (Some(issuers), Some(Ok(found))) => {
            // Boxed: few requests bring one.
            Box::pin(check(worker, about, issuers, found, wants)).await
        }
        (_, Some(Err(doubt))) => Brought::Bad(doubt),
        _ => Brought::Nothing,
    }
}

/// The same, by the keys that are there now.
pub fn read_now(worker: &Worker, about: &About, found: Bare) -> Brought {
    match (&about.unit.tokens, found) {
        (Some(issuers), Some(Ok(found))) => {
            judge(worker, about, issuers, &found).map_or_else(Brought::Bad, Brought::Good)
        }
        (_, Some(Err(doubt))) => Brought::Bad(doubt),
        _ => Brought::Nothing,
    }
}

async fn check(
    worker: &Worker,
    about: &About,
    issuers: &Arc<Issuers>,
    found: Found,
    wants: impl Fn(Token<'_>) -> bool,
) -> Brought {
    let given_up = Instant::now() + HELD;
    let mut issuers = issuers.clone();
    loop {
        let changed = worker.policies_changed.notified();
        let doubt = match judge(worker, about, &issuers, &found) {
            Ok(believed) => return Brought::Good(believed),
            Err(doubt) => doubt,
        };
        if doubt != Doubt::UnknownKey || !wants(Token::Bad(doubt)) {
            return Brought::Bad(doubt);
        }
        let newer = worker.shared.config().and_then(|config| {
            let unit = config.unit_by_name(&about.unit.unit)?;
            unit.tokens.clone().filter(|newer| !Arc::ptr_eq(newer, &issuers))
        });
        match newer {
            Some(newer) => issuers = newer,
            None if timeout_at(given_up, changed).await.is_err() => return Brought::Bad(doubt),
            None => {}
        }
    }
}

fn judge(worker: &Worker, about: &About, issuers: &Arc<Issuers>, found: &Found) -> Result<Rc<Believed>, Doubt> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs();
    let mut tokens = worker.tokens.borrow_mut();
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, found.token.as_bytes()).as_ref());
    let key = (hash, tokens.number(&about.unit, issuers));
    if let Some(known) = tokens.recall(&key, now) {
        return Ok(known);
    }
    match issuers.check(found, now) {
        Ok(believed) => {
            for header in &believed.unwritten {
                let message = format!("what a token says for {header} cannot be written in a header: left out");
                worker.shared.events.emit(about.event("error", "allow", "", message));
            }
            let believed = Rc::new(believed);
            tokens.remember(key, believed.clone());
            Ok(believed)
        }
        Err(refused) => {
            if let Some(issuer) = refused.issuer
                && refused.doubt == Doubt::UnknownKey
                && tokens.may_tell(issuer)
            {
                let message = format!(
                    "a token of {} is by a key that is not known: asked for anew",
                    issuer.name
                );
                worker
                    .shared
                    .events
                    .emit(about.event("token", "deny", &issuer.rule, message));
            }
            Err(refused.doubt)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn believed(until: f64) -> Rc<Believed> {
        Rc::new(Believed {
            claims: Default::default(),
            headers: Vec::new(),
            unwritten: Vec::new(),
            until,
        })
    }

    #[test]
    fn memory_is_bounded_and_keeps_what_is_used() {
        let mut tokens = Tokens::default();
        let key = |number: usize| {
            let mut hash = [0; 32];
            hash[..8].copy_from_slice(&number.to_be_bytes());
            (hash, 1)
        };
        tokens.remember(key(0), believed(100.0));
        for number in 1..10 * REMEMBERED {
            tokens.remember(key(number), believed(100.0));
            assert!(
                tokens.recall(&key(0), 50).is_some(),
                "used all the time: still there after {number}"
            );
        }
        assert!(tokens.recent.len() + tokens.before.len() <= 2 * REMEMBERED);
        assert!(tokens.recall(&key(1), 50).is_none(), "never used again");
        assert!(tokens.recall(&key(0), 100).is_none(), "its time is over");
        assert!(
            tokens.recall(&(key(0).0, 2), 50).is_none(),
            "other issuers, or other keys of theirs"
        );
    }
}

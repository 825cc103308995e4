//! Decides whether a JSON Web Token (RFC 7519), in its compact form (RFC 7515, section 7.1), is believed.
//!
//! Law (RFC 8725): a token says who issued it and names a key; how it is checked, the key says: its algorithms stand in the
//! configuration, and `jwk`, `jku`, `x5u` and the like in a token's header are not even read. Nothing of a token that is not
//! believed reaches an application.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::signature::{self, ParsedPublicKey, VerificationAlgorithm};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde::Deserialize;
use serde_json::Value;

use crate::authorize::Headers;
use crate::claims::{Claims, claim};
use crate::config::{ConfigError, bad};
use crate::snapshot;

/// Longer ones are not read.
pub const MAX_TOKEN: usize = 16 * 1024;

/// What an application gets of one claim at most.
const MAX_HEADER: usize = 4096;

/// Why a token is not believed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Doubt {
    Malformed,
    Algorithm,
    Issuer,
    UnknownKey,
    Signature,
    Expired,
    NotYetValid,
    Audience,
}

impl Doubt {
    /// The word by which callers and operators are told.
    pub fn word(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Algorithm => "algorithm",
            Self::Issuer => "issuer",
            Self::UnknownKey => "unknown-key",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::Audience => "audience",
        }
    }
}

impl fmt::Display for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Algorithms by their names.
type Algorithms = [(&'static str, &'static dyn VerificationAlgorithm); 9];

/// RFC 7518, section 3.1, and RFC 8037: those by public keys. Neither `none` nor any with a shared secret is known.
fn algorithms() -> Algorithms {
    [
        ("RS256", &signature::RSA_PKCS1_2048_8192_SHA256),
        ("RS384", &signature::RSA_PKCS1_2048_8192_SHA384),
        ("RS512", &signature::RSA_PKCS1_2048_8192_SHA512),
        ("PS256", &signature::RSA_PSS_2048_8192_SHA256),
        ("PS384", &signature::RSA_PSS_2048_8192_SHA384),
        ("PS512", &signature::RSA_PSS_2048_8192_SHA512),
        ("ES256", &signature::ECDSA_P256_SHA256_FIXED),
        ("ES384", &signature::ECDSA_P384_SHA384_FIXED),
        ("EdDSA", &signature::ED25519),
    ]
}

/// A public key, ready to check by each of its algorithms.
pub struct Key {
    kid: Option<Box<str>>,
    der: Vec<u8>,
    checks: Vec<(&'static str, ParsedPublicKey)>,
}

impl Key {
    fn compile(at: &str, key: snapshot::TokenKey) -> Result<Self, ConfigError> {
        let Ok(der) = STANDARD.decode(&key.key) else {
            return Err(bad(at, key.key, "base64"));
        };
        let mut checks = Vec::new();
        for word in key.algorithms {
            let Some((name, algorithm)) = algorithms().into_iter().find(|(name, _)| *name == word) else {
                return Err(bad(at, word, "an algorithm of RFC 7518 by a public key"));
            };
            // One that is not for this algorithm checks nothing by it: the rest of the configuration must not wait for it.
            checks.extend(ParsedPublicKey::new(algorithm, &der).map(|parsed| (name, parsed)));
        }
        Ok(Self {
            kid: (!key.kid.is_empty()).then(|| key.kid.into()),
            der,
            checks,
        })
    }

    fn by(&self, algorithm: &str) -> Option<&ParsedPublicKey> {
        let found = self.checks.iter().find(|(name, _)| *name == algorithm);
        found.map(|(_, parsed)| parsed)
    }
}

impl PartialEq for Key {
    fn eq(&self, other: &Self) -> bool {
        let names = |key: &Self| key.checks.iter().map(|(name, _)| *name).collect::<Vec<_>>();
        self.kid == other.kid && self.der == other.der && names(self) == names(other)
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).finish_non_exhaustive()
    }
}

/// Where a token stands in a request.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    /// `Authorization: Bearer` (RFC 6750, section 2.1).
    Bearer,
    /// All of another header.
    Header(Box<str>),
    Cookie(Box<str>),
}

impl Place {
    fn compile(at: &str, text: &str) -> Result<Self, ConfigError> {
        match text.split_once(':') {
            Some(("header", "authorization")) => Ok(Self::Bearer),
            Some(("header", name)) if !name.is_empty() => Ok(Self::Header(name.to_ascii_lowercase().into())),
            Some(("cookie", name)) if !name.is_empty() => Ok(Self::Cookie(name.into())),
            _ => Err(bad(at, text, "header:NAME or cookie:NAME")),
        }
    }

    fn header(&self) -> &str {
        match self {
            Self::Bearer => "authorization",
            Self::Header(name) => name,
            Self::Cookie(_) => "cookie",
        }
    }

    /// The token; two would have two meanings.
    fn find(&self, headers: &dyn Headers) -> Option<Result<Box<str>, Doubt>> {
        let mut found = None;
        let mut see = |token: &[u8]| {
            let token = std::str::from_utf8(token).map(Into::into).map_err(|_| Doubt::Malformed);
            found = Some(if found.is_some() { Err(Doubt::Malformed) } else { token });
        };
        headers.each(self.header(), &mut |line| match self {
            Self::Bearer => {
                if let Some((scheme, token)) = line.split_at_checked(7)
                    && scheme.eq_ignore_ascii_case(b"bearer ")
                {
                    see(token.trim_ascii());
                }
            }
            Self::Header(_) => see(line),
            Self::Cookie(name) => {
                for pair in line.split(|byte| *byte == b';').map(<[u8]>::trim_ascii) {
                    if let Some(value) = pair
                        .strip_prefix(name.as_bytes())
                        .and_then(|rest| rest.strip_prefix(b"="))
                    {
                        see(value);
                    }
                }
            }
        });
        found
    }
}

/// Whose tokens are believed: compiled `TokenIssuer`.
#[derive(Debug, PartialEq)]
pub struct Issuer {
    /// `file:line` that says so.
    pub rule: Box<str>,
    /// Its name, exactly as tokens have it in `iss`.
    pub name: Box<str>,
    audience: Vec<Box<str>>,
    keys: Vec<Key>,
    place: Place,
    leeway: Duration,
    headers: Vec<(Box<str>, Box<str>)>,
}

/// All issuers that a unit believes.
#[derive(Debug, PartialEq)]
pub struct Issuers {
    issuers: Vec<Issuer>,
    places: Vec<Place>,
    /// Header fields of a client that no application of the unit gets.
    pub withheld: Vec<Box<str>>,
}

/// A token that is believed.
#[derive(Debug)]
pub struct Believed {
    /// What it says.
    pub claims: Claims,
    /// What the application gets of it.
    pub headers: Vec<(Box<str>, Box<str>)>,
    /// Header fields whose claim cannot be written in one.
    pub unwritten: Vec<Box<str>>,
    /// Seconds since the epoch: from then on it is believed no more.
    pub until: f64,
}

/// A token that is not.
#[derive(Debug)]
pub struct Refused<'a> {
    /// Why.
    pub doubt: Doubt,
    /// By whom it says to be, if that is one of the issuers.
    pub issuer: Option<&'a Issuer>,
}

/// A token, and where it stood.
pub struct Found {
    place: Place,
    /// As it came.
    pub token: Box<str>,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

/// Compiles a unit's issuers; `None` if it has none.
pub fn compile(at: &str, said: Vec<snapshot::TokenIssuer>) -> Result<Option<Arc<Issuers>>, ConfigError> {
    if said.is_empty() {
        return Ok(None);
    }
    let mut all = Issuers {
        issuers: Vec::with_capacity(said.len()),
        places: Vec::new(),
        withheld: Vec::new(),
    };
    for issuer in said {
        let place = Place::compile(at, &issuer.token)?;
        if !issuer.forward {
            all.withheld.push(place.header().into());
        }
        if !all.places.contains(&place) {
            all.places.push(place.clone());
        }
        let headers: Vec<(Box<str>, Box<str>)> = issuer
            .headers
            .into_iter()
            .map(|(name, claim)| (name.to_ascii_lowercase().into(), claim.into()))
            .collect();
        all.withheld.extend(headers.iter().map(|(name, _)| name.clone()));
        let keys = issuer.keys.into_iter().map(|key| Key::compile(at, key));
        all.issuers.push(Issuer {
            keys: keys.collect::<Result<_, _>>()?,
            rule: issuer.rule.into(),
            name: issuer.issuer.into(),
            audience: issuer.audience.into_iter().map(Into::into).collect(),
            place,
            leeway: Duration::from_millis(issuer.leeway_ms),
            headers,
        });
    }
    Ok(Some(Arc::new(all)))
}

impl Issuers {
    /// The token of a request; one that has no meaning is malformed.
    pub fn find(&self, headers: &dyn Headers) -> Option<Result<Found, Doubt>> {
        self.places.iter().find_map(|place| {
            let found = place.find(headers)?;
            let place = place.clone();
            Some(found.map(|token| Found { place, token }))
        })
    }

    /// Checks a token. `now`: seconds since the epoch.
    pub fn check(&self, found: &Found, now: u64) -> Result<Believed, Refused<'_>> {
        let nobody = |doubt| Refused { doubt, issuer: None };
        let (signed, signature, header, claims) = read(&found.token).ok_or(nobody(Doubt::Malformed))?;
        let name = claims.get("iss").and_then(Value::as_str);
        let issuer = self
            .issuers
            .iter()
            .find(|issuer| Some(&*issuer.name) == name && issuer.place == found.place)
            .ok_or(nobody(Doubt::Issuer))?;
        let until = issuer
            .verify(&header, signed, &signature)
            .and_then(|()| issuer.judge(&claims, now as f64))
            .map_err(|doubt| Refused {
                doubt,
                issuer: Some(issuer),
            })?;
        let mut believed = Believed {
            headers: Vec::new(),
            unwritten: Vec::new(),
            claims,
            until,
        };
        for (header, name) in &issuer.headers {
            match claim(&believed.claims, name) {
                None | Some(Value::Null) => {}
                Some(value) => match written(value) {
                    Some(value) => believed.headers.push((header.clone(), value)),
                    None => believed.unwritten.push(header.clone()),
                },
            }
        }
        Ok(believed)
    }
}

impl Issuer {
    /// By the key that the token names; one that names none is tried by all that are for its algorithm.
    fn verify(&self, header: &Header, signed: &[u8], signature: &[u8]) -> Result<(), Doubt> {
        if !algorithms().iter().any(|(name, _)| *name == header.alg) {
            return Err(Doubt::Algorithm);
        }
        let named = |key: &&Key| header.kid.is_none() || key.kid.as_deref() == header.kid.as_deref();
        let mut doubt = Doubt::UnknownKey;
        for key in self.keys.iter().filter(named) {
            match key.by(&header.alg) {
                Some(check) if check.verify_sig(signed, signature).is_ok() => return Ok(()),
                Some(_) => doubt = Doubt::Signature,
                None if doubt == Doubt::UnknownKey => doubt = Doubt::Algorithm,
                None => {}
            }
        }
        Err(doubt)
    }

    /// Times and audience (RFC 7519, section 4.1); how long it is good. A token without an end would be good for ever.
    fn judge(&self, claims: &Claims, now: f64) -> Result<f64, Doubt> {
        let moment = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(Doubt::Malformed),
        };
        let leeway = self.leeway.as_secs_f64();
        let until = moment("exp")?.ok_or(Doubt::Malformed)? + leeway;
        if now >= until {
            return Err(Doubt::Expired);
        }
        if moment("nbf")?.is_some_and(|begins| now + leeway < begins) {
            return Err(Doubt::NotYetValid);
        }
        let is_ours = |value: &Value| {
            let text = value.as_str();
            self.audience.iter().any(|wanted| text == Some(wanted))
        };
        match claims.get("aud") {
            Some(Value::Array(several)) if several.iter().any(is_ours) => Ok(until),
            Some(one) if is_ours(one) => Ok(until),
            _ => Err(Doubt::Audience),
        }
    }
}

/// What is signed, the signature, and both parts of what the token says; `None` if it is no token.
fn read(token: &str) -> Option<(&[u8], Vec<u8>, Header, Claims)> {
    if token.len() > MAX_TOKEN {
        return None;
    }
    let (signed, signature) = token.rsplit_once('.')?;
    let (header, claims) = signed.split_once('.')?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
    let header: Header = serde_json::from_slice(&decode(header)?).ok()?;
    // RFC 7515, section 4.1.11: extensions that must be understood, and are not.
    if header.crit.is_some() {
        return None;
    }
    let claims = serde_json::from_slice(&decode(claims)?).ok()?;
    Some((signed.as_bytes(), decode(signature)?, header, claims))
}

/// A claim as a header's value: visible ASCII with single meaning; of a list all, with commas between.
fn written(value: &Value) -> Option<Box<str>> {
    let one = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        _ => None,
    };
    let text = match value {
        Value::Array(all) => {
            let texts: Vec<String> = all.iter().map(one).collect::<Option<_>>()?;
            (!texts.iter().any(|text| text.contains(','))).then(|| texts.join(","))?
        }
        value => one(value)?,
    };
    let is_safe = text.len() <= MAX_HEADER
        && !text.is_empty()
        && text.trim_ascii() == text
        && text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic());
    is_safe.then(|| text.into())
}

#[cfg(test)]
#[path = "token_tests.rs"]
mod tests;

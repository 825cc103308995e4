//! Whether a token says what a rule asks: the twin of `hostmesh/policy/claims.py`, which is the specification.
//!
//! Claims are those of a token that was checked ([`crate::token`]). Both are held to `tests/vectors/authorize.json`.

use serde_json::Value;

use crate::snapshot::{self, ClaimValue};

/// What a token says, by name.
pub type Claims = serde_json::Map<String, Value>;

/// What a rule asks of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenMatch {
    /// `None`: any that the unit believes.
    pub issuer: Option<Box<str>>,
    /// One of these, if there are any.
    pub audience: Vec<ClaimValue>,
    /// A claim, and the values of which one will do.
    pub claims: Vec<(Box<str>, Vec<ClaimValue>)>,
}

impl From<snapshot::TokenMatch> for TokenMatch {
    fn from(said: snapshot::TokenMatch) -> Self {
        Self {
            issuer: (!said.issuer.is_empty()).then(|| said.issuer.into()),
            audience: said.audience.into_iter().map(ClaimValue::Text).collect(),
            claims: said
                .claims
                .into_iter()
                .map(|(name, values)| (name.into(), values))
                .collect(),
        }
    }
}

impl TokenMatch {
    /// Does the token say all of it?
    pub fn fits(&self, claims: &Claims) -> bool {
        let is_issuer = |wanted: &str| claims.get("iss").and_then(Value::as_str) == Some(wanted);
        self.issuer.as_deref().is_none_or(is_issuer)
            && (self.audience.is_empty() || says(claims.get("aud"), &self.audience))
            && self.claims.iter().all(|(name, values)| match claim(claims, name) {
                // RFC 8693, section 4.2.
                Some(Value::String(words)) if &**name == "scope" => words.split(' ').any(|word| {
                    values
                        .iter()
                        .any(|value| matches!(value, ClaimValue::Text(text) if text == word))
                }),
                found => says(found, values),
            })
    }
}

/// The claim of this name; else, `realm.role` being no name of a claim, `role` of the object `realm`.
pub fn claim<'a>(claims: &'a Claims, name: &str) -> Option<&'a Value> {
    if let Some(found) = claims.get(name) {
        return Some(found);
    }
    let (first, rest) = name.split_once('.')?;
    rest.split('.')
        .try_fold(claims.get(first)?, |found, part| found.as_object()?.get(part))
}

/// Is it one of the values, or, as a list, has it one of them?
fn says(found: Option<&Value>, values: &[ClaimValue]) -> bool {
    let any = |one: &Value| values.iter().any(|value| is_same(one, value));
    match found {
        Some(Value::Array(have)) => have.iter().any(any),
        Some(one) => any(one),
        None => false,
    }
}

/// Numbers are equal by value, 3.0 is 3; nothing else is equal to another kind of thing.
fn is_same(found: &Value, value: &ClaimValue) -> bool {
    match (found, value) {
        (Value::Bool(found), ClaimValue::Bool(value)) => found == value,
        (Value::String(found), ClaimValue::Text(value)) => found == value,
        // Policy takes no number beyond 2^53: each of them is a number of this type, and no other number becomes it.
        (Value::Number(found), ClaimValue::Number(value)) => found.as_f64() == Some(*value as f64),
        _ => false,
    }
}

//! What a policy does to the fields of a head, and which fields it may touch.

use crate::http1::{is_mesh_field, is_same_variable};

/// Fields that are taken out, put in place of all of their name, and put behind what is there. Names in lower case.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct FieldEdits {
    pub set: Vec<(Box<str>, Box<str>)>,
    pub add: Vec<(Box<str>, Box<str>)>,
    pub remove: Vec<Box<str>>,
}

impl FieldEdits {
    /// Is there nothing to be done?
    pub fn is_empty(&self) -> bool {
        self.set.is_empty() && self.add.is_empty() && self.remove.is_empty()
    }

    /// Is a field of this name, in any case, taken out?
    pub fn drops(&self, name: &[u8]) -> bool {
        let is_it = |other: &str| is_same_variable(name, other.as_bytes());
        self.remove.iter().any(|other| is_it(other)) || self.set.iter().any(|(other, _)| is_it(other))
    }

    /// What is put behind the rest.
    pub fn puts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.set
            .iter()
            .chain(&self.add)
            .map(|(name, value)| (&**name, &**value))
    }
}

/// May a policy set or remove it? Not what only the mesh says, what frames or routes a message, or what is for one hop.
pub fn is_editable(name: &str) -> bool {
    const TAKEN: [&str; 14] = [
        "connection",
        "content-length",
        "expect",
        "host",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "traceparent",
        "tracestate",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "via",
    ];
    let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
    !name.is_empty()
        && name.bytes().all(is_token)
        && !is_mesh_field(name.as_bytes())
        && !TAKEN
            .iter()
            .any(|taken| is_same_variable(taken.as_bytes(), name.as_bytes()))
}

/// May it be a field's value? RFC 9110, section 5.5, without what is beyond ASCII.
pub fn is_value(value: &str) -> bool {
    value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && value.trim_ascii() == value && !value.is_empty()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_policy_may_not_touch() {
        for name in [
            "host",
            "Content-Length",
            "content_length",
            "transfer-encoding",
            "connection",
            "te",
            "upgrade",
            "expect",
            "x-hostmesh-peer",
            "X_Hostmesh_Peer",
            "x-forwarded-client-cert",
            "traceparent",
            "",
            "a b",
            ":path",
            "a:b",
        ] {
            assert!(!is_editable(name), "{name}");
        }
        for name in ["x-a", "cookie", "authorization", "server", "x-hostmeshed"] {
            assert!(is_editable(name), "{name}");
        }
    }

    #[test]
    fn values_end_no_line() {
        assert!(is_value("a b") && is_value("1"));
        for value in ["", " a", "a ", "a\r\nb: c", "a\nb", "\0", "ä"] {
            assert!(!is_value(value), "{value:?}");
        }
    }
}

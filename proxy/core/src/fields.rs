//! What a policy does to the fields of a head, and which fields it may touch.

use crate::authorize::{Headers, Request};
use crate::http1::{is_mesh_field, is_same_variable};
use crate::path;

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

    /// These, and then those.
    pub fn then(&self, more: &Self) -> Self {
        let left = |puts: &[(Box<str>, Box<str>)]| -> Vec<_> {
            let stays = puts.iter().filter(|(name, _)| !more.drops(name.as_bytes()));
            stays.cloned().collect()
        };
        Self {
            set: [left(&self.set), more.set.clone()].concat(),
            add: [left(&self.add), more.add.clone()].concat(),
            remove: self.remove.iter().chain(&more.remove).cloned().collect(),
        }
    }

    /// What is put behind the rest.
    pub fn puts<'a>(&'a self) -> impl Iterator<Item = (&'a str, &'a str)> + use<'a> {
        self.set
            .iter()
            .chain(&self.add)
            .map(|(name, value)| (&**name, &**value))
    }
}

/// What a route makes of a request: asked for as something else, of another host, with other fields.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Changes<'a> {
    pub target: Option<&'a str>,
    pub host: Option<&'a str>,
    pub fields: &'a FieldEdits,
}

impl<'a> Changes<'a> {
    /// Other fields, and nothing else.
    pub fn of_fields(fields: &'a FieldEdits) -> Self {
        let (target, host) = (None, None);
        Self { target, host, fields }
    }

    /// Is a field of this name, in any case, taken out?
    pub fn drops(&self, name: &[u8]) -> bool {
        (self.host.is_some() && is_same_variable(name, b"host")) || self.fields.drops(name)
    }

    /// What is put behind the rest.
    pub fn puts(&self) -> impl Iterator<Item = (&'a str, &'a str)> {
        let host = self.host.map(|host| ("host", host));
        host.into_iter().chain(self.fields.puts())
    }
}

/// The headers of a request as they are once it is changed: what is judged is what is sent.
struct Changed<'a> {
    headers: &'a dyn Headers,
    changes: &'a Changes<'a>,
}

/// Asks about a request as it is once it is changed, if it is.
pub fn as_sent<T>(asked: Request<'_>, changes: Option<&Changes<'_>>, ask: impl FnOnce(&Request<'_>) -> T) -> T {
    match changes {
        None => ask(&asked),
        Some(changes) => {
            let changed = Changed {
                headers: asked.headers,
                changes,
            };
            let path = changes.target.map_or(asked.path, path::of_target);
            ask(&Request {
                path,
                headers: &changed,
                ..asked
            })
        }
    }
}

impl Headers for Changed<'_> {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        if !self.changes.drops(name.as_bytes()) {
            self.headers.each(name, see);
        }
        let puts = self.changes.puts();
        let fits = |(put, _): &(&str, &str)| is_same_variable(put.as_bytes(), name.as_bytes());
        puts.filter(fits).for_each(|(_, value)| see(value.as_bytes()));
    }

    fn all(&self, see: &mut dyn FnMut(&[u8], &[u8])) {
        self.headers.all(&mut |name, value| {
            if !self.changes.drops(name) {
                see(name, value);
            }
        });
        let puts = self.changes.puts();
        puts.for_each(|(name, value)| see(name.as_bytes(), value.as_bytes()));
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
    !name.is_empty()
        && name.bytes().all(is_token)
        && !is_mesh_field(name.as_bytes())
        && !TAKEN
            .iter()
            .any(|taken| is_same_variable(taken.as_bytes(), name.as_bytes()))
}

/// May it stand in a token? RFC 9110, section 5.6.2.
pub(crate) fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// May it be a field's value? RFC 9110, section 5.5, without what is beyond ASCII.
pub fn is_value(value: &str) -> bool {
    value.bytes().all(|byte| (b' '..=b'~').contains(&byte)) && value.trim_ascii() == value && !value.is_empty()
}

#[cfg(test)]
mod tests {
    use bytes::BytesMut;

    use super::*;
    use crate::http1::{RequestEdits, RequestHead};

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

    /// What is judged, and what is read of what is sent.
    #[test]
    fn judged_as_sent() {
        let pair = |name: &str, value: &str| (Box::from(name), Box::from(value));
        let fields = FieldEdits {
            set: vec![pair("x-a", "new"), pair("x-n", "1")],
            add: vec![pair("x-b", "2"), pair("x-c", "4")],
            remove: vec!["x-d".into()],
        };
        let changes = Changes {
            target: Some("/v2/7?q=1"),
            host: Some("other"),
            fields: &fields,
        };
        let text =
            "GET http://h/p/7?q=1 HTTP/1.1\r\nHost: h\r\nX-A: old\r\nX_A: older\r\nx-b: 1\r\nX_D: 9\r\nx-e: 5\r\n\r\n";
        let head = RequestHead::parse(text.into()).expect("a head");
        let mut out = BytesMut::new();
        let edits = RequestEdits {
            changes: Some(&changes),
            ..RequestEdits::default()
        };
        head.write(&edits, &mut out);
        let sent = RequestHead::parse(out.freeze()).expect("what is sent can be read");
        assert_eq!((sent.target(), sent.host()), ("/v2/7?q=1", Some("other")));
        let asked = Request {
            method: head.method(),
            path: head.path(),
            headers: head.headers(),
            token: crate::authorize::Token::None,
        };
        let same = |judged: &Request<'_>| assert_eq!((judged.method, judged.path), (sent.method(), sent.path()));
        as_sent(asked, Some(&changes), same);
        let lines = |headers: &dyn Headers, name: &str| {
            let mut lines = Vec::new();
            headers.each(name, &mut |line| lines.push(String::from_utf8_lossy(line).into_owned()));
            lines
        };
        for (name, expect) in [
            ("x-a", &["new"][..]),
            ("x-b", &["1", "2"]),
            ("x-c", &["4"]),
            ("x-d", &[]),
            ("x-e", &["5"]),
            ("x-n", &["1"]),
            ("host", &["other"]),
        ] {
            let judged = as_sent(asked, Some(&changes), |judged| lines(judged.headers, name));
            assert_eq!(judged, expect, "{name}");
            assert_eq!(lines(sent.headers(), name), expect, "{name}");
        }
    }

    #[test]
    fn these_and_then_those() {
        let pair = |name: &str, value: &str| (Box::from(name), Box::from(value));
        let first = FieldEdits {
            set: vec![pair("x-a", "1"), pair("x-b", "1"), pair("x-c", "1")],
            add: vec![pair("x-d", "1"), pair("x-e", "1")],
            remove: vec!["x-f".into()],
        };
        let second = FieldEdits {
            set: vec![pair("x-a", "2"), pair("x-d", "2")],
            add: vec![pair("x-b", "2"), pair("x-f", "2")],
            remove: vec!["x-c".into()],
        };
        let expected = FieldEdits {
            set: vec![pair("x-b", "1"), pair("x-a", "2"), pair("x-d", "2")],
            add: vec![pair("x-e", "1"), pair("x-b", "2"), pair("x-f", "2")],
            remove: vec!["x-f".into(), "x-c".into()],
        };
        assert_eq!(first.then(&second), expected);
    }

    #[test]
    fn values_end_no_line() {
        assert!(is_value("a b") && is_value("1"));
        for value in ["", " a", "a ", "a\r\nb: c", "a\nb", "\0", "ä"] {
            assert!(!is_value(value), "{value:?}");
        }
    }
}

//! Writes heads for the next hop: what concerns one connection only is dropped, what the mesh says is set.

use bytes::{BufMut, Bytes, BytesMut};

use super::head::{Fields, is_same_variable};
use super::{RequestHead, ResponseHead};
use crate::error::Fault;
use crate::fields::{Changes, FieldEdits};
use crate::trace::Outgoing;

/// What is set on a request on its way.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestEdits<'a> {
    /// Where it stands in its trace now; `None` leaves the caller's word.
    pub trace: Option<Outgoing>,
    /// `x-hostmesh-peer`: the SPIFFE ID of the caller, for the application.
    pub peer: Option<&'a str>,
    /// Fields of the client's that are dropped, and those that an application would take for them.
    pub withheld: &'a [Box<str>],
    /// Fields that are set, by names that are withheld.
    pub stated: &'a [(Box<str>, Box<str>)],
    /// What its route makes of it.
    pub changes: Option<&'a Changes<'a>>,
    /// It is a copy that goes out whole, on a connection that ends after it.
    pub alone: bool,
}

impl RequestEdits<'_> {
    /// Is a field of this name dropped?
    pub(crate) fn withholds(&self, name: &[u8]) -> bool {
        let withheld = &mut self.withheld.iter();
        withheld.any(|withheld| is_same_variable(name, withheld.as_bytes()))
    }
}

/// What is set on a response on its way.
#[derive(Debug, Clone, Copy, Default)]
pub struct ResponseEdits<'a> {
    /// The connection ends after this response.
    pub close: bool,
    /// Drop the fields that only proxies may set: the response comes from an application.
    pub from_application: bool,
    /// What the request's route does to it.
    pub fields: Option<&'a FieldEdits>,
}

/// Is this a field that only the mesh may set, or one that an application would take for it?
pub(crate) fn is_mesh_field(name: &[u8]) -> bool {
    let mesh = b"x-hostmesh-";
    name.get(..mesh.len())
        .is_some_and(|start| is_same_variable(start, mesh))
        || is_same_variable(name, b"x-forwarded-client-cert")
}

/// RFC 9110, section 7.6.1. `transfer-encoding` stays: the body passes as it is.
pub(crate) fn is_hop_field(name: &[u8]) -> bool {
    const HOP: [&str; 6] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "te",
        "upgrade",
        "http2-settings",
    ];
    HOP.iter().any(|hop| hop.as_bytes().eq_ignore_ascii_case(name))
}

impl Fields {
    /// Does `Connection` name this field?
    fn names_hop(&self, name: &[u8]) -> bool {
        let is_connection = |field: &&super::Field| self.name(field).eq_ignore_ascii_case(b"connection");
        self.fields.iter().filter(is_connection).any(|field| {
            let mut tokens = self.value(field).split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
            tokens.any(|token| token.eq_ignore_ascii_case(name))
        })
    }
}

impl Fields {
    /// `mesh`: without the fields that only the mesh may set.
    pub(super) fn end_to_end(&self, names_hops: bool, mesh: bool) -> impl Iterator<Item = (&[u8], &[u8])> {
        let goes_on = move |(name, _): &(&[u8], &[u8])| {
            let frames = name.eq_ignore_ascii_case(b"transfer-encoding");
            !(frames || is_hop_field(name) || (mesh && is_mesh_field(name)) || (names_hops && self.names_hop(name)))
        };
        let field = |field| (self.name(field), self.value(field));
        self.fields.iter().map(field).filter(goes_on)
    }
}

fn put_field(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    out.put_slice(name);
    out.put_slice(b": ");
    out.put_slice(value);
    out.put_slice(b"\r\n");
}

impl RequestHead {
    /// The head for the next hop, and the body's bytes in these parts.
    pub fn with_body(&self, edits: &RequestEdits<'_>, parts: &[&[u8]]) -> Bytes {
        let mut out = BytesMut::with_capacity(parts.iter().map(|part| part.len()).sum::<usize>() + 512);
        self.write(edits, &mut out);
        parts.iter().for_each(|part| out.extend_from_slice(part));
        out.freeze()
    }

    /// Writes the head for the next hop. The body's bytes follow as they came.
    pub fn write(&self, edits: &RequestEdits<'_>, out: &mut BytesMut) {
        out.reserve(self.fields.bytes.len() + 192);
        out.put_slice(self.method().as_bytes());
        out.put_u8(b' ');
        let changes = edits.changes;
        let target = changes.and_then(|changes| changes.target);
        out.put_slice(target.unwrap_or(self.target()).as_bytes());
        // An HTTP/1.0 client could not read the chunks that an application sends to 1.1.
        out.put_slice(if self.is_http11 {
            b" HTTP/1.1\r\n"
        } else {
            b" HTTP/1.0\r\n"
        });
        for field in &self.fields.fields {
            let name = self.fields.name(field);
            let replaced = edits.trace.is_some_and(|trace| trace.replaces(name));
            let upgrade = self.upgrade && name.eq_ignore_ascii_case(b"upgrade");
            let dropped = is_hop_field(name) && !upgrade;
            if replaced
                || dropped
                || is_mesh_field(name)
                || edits.withholds(name)
                || (self.names_hops && !upgrade && self.fields.names_hop(name))
                || changes.is_some_and(|changes| changes.drops(name))
                || (edits.alone && name.eq_ignore_ascii_case(b"expect"))
            {
                continue;
            }
            put_field(out, name, self.fields.value(field));
        }
        for (name, value) in changes.into_iter().flat_map(Changes::puts) {
            if !edits.withholds(name.as_bytes()) {
                put_field(out, name.as_bytes(), value.as_bytes());
            }
        }
        if edits.alone {
            out.put_slice(b"connection: close\r\n");
        } else if self.upgrade {
            out.put_slice(b"connection: upgrade\r\n");
        }
        if let Some(trace) = edits.trace {
            trace.fields(|name, value| put_field(out, name.as_bytes(), value));
        }
        if let Some(peer) = edits.peer {
            put_field(out, b"x-hostmesh-peer", peer.as_bytes());
        }
        for (name, value) in edits.stated {
            put_field(out, name.as_bytes(), value.as_bytes());
        }
        out.put_slice(b"\r\n");
    }
}

impl ResponseHead {
    /// Bytes that it takes when it is written; no more, where its route sets nothing.
    pub fn room(&self) -> usize {
        self.fields.bytes.len() + 32
    }

    /// Writes the head for the next hop. The body's bytes follow as they came.
    pub fn write(&self, edits: &ResponseEdits<'_>, out: &mut BytesMut) {
        out.reserve(self.room());
        out.put_slice(b"HTTP/1.1 ");
        out.put_slice(&[100, 10, 1].map(|place| b'0' + (self.status / place % 10) as u8));
        out.put_u8(b' ');
        out.put_slice(&self.fields.bytes[self.reason.0 as usize..self.reason.1 as usize]);
        out.put_slice(b"\r\n");
        let upgraded = self.status == 101;
        let bodiless = self.status < 200 || self.status == 204;
        for field in &self.fields.fields {
            let name = self.fields.name(field);
            let upgrade = upgraded && name.eq_ignore_ascii_case(b"upgrade");
            let dropped = (is_hop_field(name) && !upgrade)
                || (edits.from_application && is_mesh_field(name))
                || (bodiless
                    && (name.eq_ignore_ascii_case(b"transfer-encoding")
                        || name.eq_ignore_ascii_case(b"content-length")))
                || (self.names_hops && !upgrade && self.fields.names_hop(name))
                || edits.fields.is_some_and(|fields| fields.drops(name));
            if !dropped {
                put_field(out, name, self.fields.value(field));
            }
        }
        for (name, value) in edits.fields.into_iter().flat_map(FieldEdits::puts) {
            put_field(out, name.as_bytes(), value.as_bytes());
        }
        if upgraded {
            out.put_slice(b"connection: upgrade\r\n");
        } else if edits.close {
            out.put_slice(b"connection: close\r\n");
        }
        out.put_slice(b"\r\n");
    }
}

/// The interim answer that lets a client send its body (RFC 9110, section 15.2.1).
pub fn continues() -> Bytes {
    Bytes::from_static(b"HTTP/1.1 100 Continue\r\n\r\n")
}

/// An answer of the proxy's own: `x-hostmesh-error` names the reason, the body says it to a person. `bodiless` for HEAD.
pub fn local_reply(fault: Fault, message: &str, close: bool, bodiless: bool) -> Bytes {
    let (challenge, retry_after) = (
        fault.challenge(),
        fault.retry_after().map(|seconds| seconds.to_string()),
    );
    let fields = [
        ("content-type", "text/plain; charset=utf-8"),
        ("x-hostmesh-error", fault.word()),
    ];
    let fields = fields
        .into_iter()
        .chain(challenge.as_deref().map(|says| ("www-authenticate", says)))
        .chain(retry_after.as_deref().map(|says| ("retry-after", says)));
    answer(
        fault.status(),
        fields,
        &format!("hostmesh: {message}\n"),
        close,
        bodiless,
    )
}

/// Any answer of the proxy's own. `bodiless`: to a HEAD.
pub fn answer<'f>(
    status: u16,
    fields: impl IntoIterator<Item = (&'f str, &'f str)>,
    body: &str,
    close: bool,
    bodiless: bool,
) -> Bytes {
    let mut out = BytesMut::with_capacity(256 + body.len());
    out.put_slice(format!("HTTP/1.1 {status} {}\r\n", phrase(status)).as_bytes());
    // RFC 9110, sections 15.3.5 and 15.4.5.
    let has_body = !matches!(status, 204 | 304);
    for (name, value) in fields {
        put_field(&mut out, name.as_bytes(), value.as_bytes());
    }
    if has_body {
        put_field(&mut out, b"content-length", body.len().to_string().as_bytes());
    }
    if close {
        out.put_slice(b"connection: close\r\n");
    }
    out.put_slice(b"\r\n");
    if has_body && !bodiless {
        out.put_slice(body.as_bytes());
    }
    out.freeze()
}

/// RFC 9110, section 15; it may be empty (RFC 9112, section 4).
fn phrase(status: u16) -> &'static str {
    match status {
        200 => "OK",
        204 => "No Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        408 => "Request Timeout",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

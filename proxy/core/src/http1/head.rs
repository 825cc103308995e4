//! Finds, reads and checks the head of a message.

use std::mem::MaybeUninit;

use bytes::Bytes;
use memchr::memchr_iter;

use super::{Framing, MAX_FIELDS, MAX_HEAD, Refused};
use crate::authorize::Headers;

/// Finds the end of a head as bytes arrive: each byte is looked at once, however they are cut.
#[derive(Debug, Default)]
pub struct HeadScanner {
    scanned: usize,
    line: usize,
    started: bool,
}

impl HeadScanner {
    /// `buffer`: everything of this message so far. Gives the length of the head, its empty line included. Empty lines
    /// before a request are part of the head (RFC 9112, section 2.2).
    pub fn find(&mut self, buffer: &[u8]) -> Result<Option<usize>, Refused> {
        for at in memchr_iter(b'\n', &buffer[self.scanned..]) {
            let at = self.scanned + at;
            if at >= MAX_HEAD {
                return Err(Refused::TooLarge);
            }
            if at == self.line || buffer[at - 1] != b'\r' {
                return Err(Refused::LineEnd);
            }
            let is_empty = at == self.line + 1;
            if is_empty && self.started {
                return Ok(Some(at + 1));
            }
            self.started |= !is_empty;
            self.line = at + 1;
        }
        self.scanned = buffer.len();
        if buffer.len() >= MAX_HEAD {
            return Err(Refused::TooLarge);
        }
        Ok(None)
    }
}

/// A header field's place in the head's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Field {
    pub name: (u32, u32),
    pub value: (u32, u32),
}

/// What both kinds of head have: the bytes as they came, and where the fields are.
#[derive(Debug, Clone)]
pub(super) struct Fields {
    pub(super) bytes: Bytes,
    pub(super) fields: Vec<Field>,
}

/// What `Connection`, the lengths and `Upgrade` say, gathered in one pass.
#[derive(Debug, Default)]
struct Hops {
    close: bool,
    keep_alive: bool,
    upgrade: bool,
    length: Option<u64>,
    chunked: bool,
    named: bool,
    /// `Upgrade` names something, and nothing of HTTP.
    upgrade_to: Option<bool>,
}

impl Fields {
    pub(super) fn name(&self, field: &Field) -> &[u8] {
        &self.bytes[field.name.0 as usize..field.name.1 as usize]
    }

    pub(super) fn value(&self, field: &Field) -> &[u8] {
        &self.bytes[field.value.0 as usize..field.value.1 as usize]
    }

    fn text(&self, (from, to): (u32, u32)) -> &str {
        std::str::from_utf8(&self.bytes[from as usize..to as usize]).unwrap_or_default()
    }

    fn range(&self, part: &[u8]) -> (u32, u32) {
        // httparse gives slices of the buffer that it was given; the head is shorter than 4 GiB.
        let from = part.as_ptr() as usize - self.bytes.as_ptr() as usize;
        (from as u32, (from + part.len()) as u32)
    }

    fn all<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a [u8]> {
        let fits = move |field: &&Field| self.name(field).eq_ignore_ascii_case(name.as_bytes());
        self.fields.iter().filter(fits).map(|field| self.value(field))
    }

    fn hops(&self) -> Result<Hops, Refused> {
        let mut hops = Hops::default();
        for field in &self.fields {
            let value = self.value(field);
            match self.name(field) {
                name if name.eq_ignore_ascii_case(b"connection") => connection(value, &mut hops)?,
                name if name.eq_ignore_ascii_case(b"content-length") => {
                    let earlier = hops.length.replace(length(value)?);
                    if earlier.is_some() {
                        return Err(Refused::ContentLength);
                    }
                }
                name if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                    if hops.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                        return Err(Refused::TransferEncoding);
                    }
                    hops.chunked = true;
                }
                name if name.eq_ignore_ascii_case(b"upgrade") => {
                    hops.upgrade_to = Some(hops.upgrade_to.unwrap_or(true) && !is_http_upgrade(value));
                }
                _ => {}
            }
        }
        if hops.chunked && hops.length.is_some() {
            return Err(Refused::BothLengths);
        }
        Ok(hops)
    }
}

impl Headers for Fields {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        let fits = |field: &&Field| is_same_variable(self.name(field), name.as_bytes());
        self.fields.iter().filter(fits).for_each(|field| see(self.value(field)));
    }

    fn all(&self, see: &mut dyn FnMut(&[u8], &[u8])) {
        self.fields
            .iter()
            .for_each(|field| see(self.name(field), self.value(field)));
    }
}

/// Would applications take these for the same field? Many get fields as variables in which `-` and `_` are one (CGI, RFC
/// 3875, section 4.1.18; WSGI).
pub(crate) fn is_same_variable(name: &[u8], other: &[u8]) -> bool {
    let plain = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.len() == other.len() && name.iter().map(plain).eq(other.iter().map(plain))
}

/// RFC 9110, section 7.6.1. A hop must not be told to drop what frames or routes the message.
fn connection(value: &[u8], hops: &mut Hops) -> Result<(), Refused> {
    for token in value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii) {
        match token {
            b"" => {}
            token if token.eq_ignore_ascii_case(b"close") => hops.close = true,
            token if token.eq_ignore_ascii_case(b"keep-alive") => hops.keep_alive = true,
            token if token.eq_ignore_ascii_case(b"upgrade") => hops.upgrade = true,
            token => {
                let framing: [&[u8]; 3] = [b"host", b"content-length", b"transfer-encoding"];
                if framing.iter().any(|name| token.eq_ignore_ascii_case(name)) {
                    return Err(Refused::Connection);
                }
                hops.named = true;
            }
        }
    }
    Ok(())
}

/// Digits only: no sign, no list, no white space within (RFC 9110, section 8.6).
fn length(value: &[u8]) -> Result<u64, Refused> {
    if value.is_empty() || value.len() > 19 || !value.iter().all(u8::is_ascii_digit) {
        return Err(Refused::ContentLength);
    }
    let digit = |sum: u64, byte: &u8| sum * 10 + u64::from(byte - b'0');
    Ok(value.iter().fold(0, digit))
}

/// Protocols that would carry further requests of HTTP past the policy.
fn is_http_upgrade(value: &[u8]) -> bool {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii).any(|token| {
        let token = token.to_ascii_lowercase();
        token.starts_with(b"h2") || token.starts_with(b"http") || token.starts_with(b"tls")
    })
}

fn syntax(error: httparse::Error) -> Refused {
    match error {
        httparse::Error::TooManyHeaders => Refused::TooManyFields,
        httparse::Error::Version => Refused::Version,
        _ => Refused::Syntax,
    }
}

/// A request's head, checked.
#[derive(Debug, Clone)]
pub struct RequestHead {
    pub(super) fields: Fields,
    method: (u32, u32),
    target: (u32, u32),
    host: Option<usize>,
    /// HTTP/1.1, else HTTP/1.0.
    pub is_http11: bool,
    /// How long its body is.
    pub framing: Framing,
    /// May the connection serve another request after this one? Never in HTTP/1.0.
    pub keep_alive: bool,
    /// Asks for another protocol, one that may be let through as a tunnel.
    pub upgrade: bool,
    pub(super) names_hops: bool,
}

impl RequestHead {
    /// `bytes`: a head of the length that `HeadScanner` found.
    pub fn parse(bytes: Bytes) -> Result<Self, Refused> {
        let mut slots = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut []);
        let status = request.parse_with_uninit_headers(&bytes, &mut slots).map_err(syntax)?;
        if status != httparse::Status::Complete(bytes.len()) {
            return Err(Refused::Syntax);
        }
        let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
            return Err(Refused::Syntax);
        };
        let mut fields = Fields {
            bytes: bytes.clone(),
            fields: Vec::new(),
        };
        let (method, target) = (fields.range(method.as_bytes()), fields.range(target.as_bytes()));
        fields.fields = collect(&fields, request.headers);
        let hops = fields.hops()?;
        let is_http11 = version == 1;
        if hops.chunked && !is_http11 {
            return Err(Refused::TransferEncoding);
        }
        let head = Self {
            method,
            target,
            host: fields
                .fields
                .iter()
                .position(|field| fields.name(field).eq_ignore_ascii_case(b"host")),
            is_http11,
            framing: match hops.length {
                _ if hops.chunked => Framing::Chunked,
                Some(length) if length > 0 => Framing::Length(length),
                _ => Framing::Empty,
            },
            keep_alive: is_http11 && !hops.close,
            upgrade: is_http11 && hops.upgrade && hops.upgrade_to == Some(true),
            names_hops: hops.named,
            fields,
        };
        head.check_routing()?;
        Ok(head)
    }

    /// The method, as it came.
    pub fn method(&self) -> &str {
        self.fields.text(self.method)
    }

    /// The target in origin form, or `*` (RFC 9112, section 3.2).
    pub fn target(&self) -> &str {
        let target = self.fields.text(self.target);
        if target.starts_with('/') {
            return target;
        }
        match absolute(target) {
            Some((_, "")) => "/",
            Some((_, path)) => path,
            None => target,
        }
    }

    /// The target's path, as it came, without the query.
    pub fn path(&self) -> &str {
        crate::path::of_target(self.target())
    }

    /// What stands behind the question mark; empty: nothing.
    pub fn query(&self) -> &str {
        self.target().split_once('?').map_or("", |(_, query)| query)
    }

    /// The value of `Host`.
    pub fn host(&self) -> Option<&str> {
        let index = self.host?;
        std::str::from_utf8(self.fields.value(&self.fields.fields[index])).ok()
    }

    /// The only value of a field; `None` if it is missing or there are two.
    pub fn single(&self, name: &str) -> Option<&[u8]> {
        let mut all = self.fields.all(name);
        all.next().filter(|_| all.next().is_none())
    }

    /// The fields that go beyond this connection, in their order: those are left out that concern it alone (RFC 9110,
    /// section 7.6.1), that say how long the message is, or that only the mesh may set.
    pub fn end_to_end(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.end_to_end(self.names_hops, true)
    }

    /// The header fields, for rules.
    pub fn headers(&self) -> &dyn Headers {
        &self.fields
    }

    /// The client waits for 100 before it sends the body (RFC 9110, section 10.1.1).
    pub fn expects_continue(&self) -> bool {
        self.fields
            .all("expect")
            .any(|value| value.eq_ignore_ascii_case(b"100-continue"))
    }

    /// RFC 9112, section 3.2: one Host, and a target that means the same host.
    fn check_routing(&self) -> Result<(), Refused> {
        let mut hosts = self.fields.all("host");
        match (hosts.next(), hosts.next()) {
            (None, None) if !self.is_http11 => {}
            (Some(host), None) if host.iter().all(|byte| is_authority(*byte)) => {}
            _ => return Err(Refused::Host),
        }
        let target = self.fields.text(self.target);
        match self.method() {
            "CONNECT" => Err(Refused::Connect),
            "OPTIONS" if target == "*" => Ok(()),
            _ if target.contains('#') => Err(Refused::Target),
            _ if target.starts_with('/') => Ok(()),
            _ => match absolute(target) {
                Some((authority, _)) if self.host().is_some_and(|host| host.eq_ignore_ascii_case(authority)) => Ok(()),
                _ => Err(Refused::Target),
            },
        }
    }
}

/// Authority, and path with query, of an absolute `http` URI.
fn absolute(target: &str) -> Option<(&str, &str)> {
    let rest = target
        .get(..7)
        .filter(|scheme| scheme.eq_ignore_ascii_case("http://"))
        .map(|_| &target[7..])?;
    let end = rest.find(['/', '?']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    // `http://host?query` has no path to pass on, and is seen nowhere.
    (!authority.is_empty() && !path.starts_with('?')).then_some((authority, path))
}

/// RFC 3986, section 3.2: host and port, no user information.
pub(crate) fn is_authority(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~:[]%!$&'()*+;=".contains(&byte)
}

fn collect(fields: &Fields, headers: &[httparse::Header<'_>]) -> Vec<Field> {
    let field = |header: &httparse::Header<'_>| Field {
        name: fields.range(header.name.as_bytes()),
        value: fields.range(header.value),
    };
    headers.iter().map(field).collect()
}

/// A response's head, checked.
#[derive(Debug, Clone)]
pub struct ResponseHead {
    pub(super) fields: Fields,
    pub(super) reason: (u32, u32),
    /// 100..=999.
    pub status: u16,
    /// How long its body is.
    pub framing: Framing,
    /// May the connection serve another request after this one?
    pub keep_alive: bool,
    pub(super) names_hops: bool,
}

impl ResponseHead {
    /// `bytes`: a head of the length that `HeadScanner` found; `request`: what it answers.
    pub fn parse(bytes: Bytes, request: &RequestHead) -> Result<Self, Refused> {
        let mut slots = [const { MaybeUninit::uninit() }; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut []);
        let parsed = httparse::ParserConfig::default()
            .parse_response_with_uninit_headers(&mut response, &bytes, &mut slots)
            .map_err(syntax)?;
        if parsed != httparse::Status::Complete(bytes.len()) {
            return Err(Refused::Syntax);
        }
        let (Some(version), Some(status)) = (response.version, response.code) else {
            return Err(Refused::Syntax);
        };
        let mut fields = Fields {
            bytes: bytes.clone(),
            fields: Vec::new(),
        };
        let reason = response.reason.filter(|reason| !reason.is_empty());
        let reason = reason.map_or((0, 0), |reason| fields.range(reason.as_bytes()));
        fields.fields = collect(&fields, response.headers);
        let hops = fields.hops()?;
        if hops.chunked && (version == 0 || !request.is_http11) {
            return Err(Refused::TransferEncoding);
        }
        if status < 100 || (status == 101 && !(request.upgrade && hops.upgrade && hops.upgrade_to == Some(true))) {
            return Err(Refused::Upgrade);
        }
        let framing = match (status, hops.length) {
            (100..=199 | 204 | 304, _) => Framing::Empty,
            _ if request.method() == "HEAD" => Framing::Empty,
            _ if hops.chunked => Framing::Chunked,
            (_, Some(0)) => Framing::Empty,
            (_, Some(length)) => Framing::Length(length),
            (_, None) => Framing::UntilClose,
        };
        let persistent = if version == 1 {
            !hops.close
        } else {
            hops.keep_alive && !hops.close
        };
        Ok(Self {
            reason,
            status,
            framing,
            keep_alive: persistent && framing != Framing::UntilClose,
            names_hops: hops.named,
            fields,
        })
    }

    /// The only value of a field; `None` if it is missing or there are two.
    pub fn single(&self, name: &str) -> Option<&[u8]> {
        let mut all = self.fields.all(name);
        all.next().filter(|_| all.next().is_none())
    }

    /// The fields that go beyond this connection, in their order ([`RequestHead::end_to_end`]).
    pub fn end_to_end(&self, from_application: bool) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.fields.end_to_end(self.names_hops, from_application)
    }

    /// An interim response other than 101: another head follows (RFC 9110, section 15.2).
    pub fn is_interim(&self) -> bool {
        (100..200).contains(&self.status) && self.status != 101
    }
}

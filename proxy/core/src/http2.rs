//! Says requests and responses in the other version of HTTP, and checks of HTTP/2's what its framing leaves open (RFC 9113,
//! section 8).
//!
//! Law: what is written for HTTP/1.1 is read again by [`crate::http1`] before it leaves, so that no field of HTTP/2 can be
//! more, or something else, than what was judged. Fields that say where a message ends are never taken from one version
//! into the other.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_LENGTH, COOKIE, EXPECT, HOST, TE, TRANSFER_ENCODING};
use http::uri::{PathAndQuery, Scheme};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, request, response};

use crate::authorize::Headers;
use crate::fields::FieldEdits;
use crate::http1::{
    BodyError, Framing, MAX_FIELDS, Refused, RequestEdits, RequestHead, ResponseHead, is_authority, is_hop_field,
    is_mesh_field, is_never_trailer, is_same_variable,
};

/// What every connection of HTTP/2 begins with (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A request's head, checked.
#[derive(Debug)]
pub struct Head {
    parts: request::Parts,
}

impl Head {
    /// Refuses what HTTP/1.1 could not say in one way only, or what routes by two authorities.
    pub fn check(parts: request::Parts) -> Result<Self, Refused> {
        if parts.method == Method::CONNECT {
            return Err(Refused::Connect);
        }
        let fields = &parts.headers;
        if fields.len() > MAX_FIELDS {
            return Err(Refused::TooManyFields);
        }
        if fields.get_all(CONTENT_LENGTH).iter().count() > 1 {
            return Err(Refused::ContentLength);
        }
        if fields.contains_key(TRANSFER_ENCODING) {
            return Err(Refused::TransferEncoding);
        }
        let target = parts.uri.path();
        if !(target.starts_with('/') || (target == "*" && parts.method == Method::OPTIONS)) {
            return Err(Refused::Target);
        }
        let head = Self { parts };
        head.check_authority()?;
        Ok(head)
    }

    /// RFC 9113, section 8.3.1: `:authority` and `host` must not tell of two.
    fn check_authority(&self) -> Result<(), Refused> {
        let mut hosts = self.parts.headers.get_all(HOST).iter().map(HeaderValue::as_bytes);
        let (host, more) = (hosts.next(), hosts.next());
        let said = self.parts.uri.authority().map(|said| said.as_str().as_bytes());
        let is_one = match (said, host) {
            (Some(said), Some(host)) => said.eq_ignore_ascii_case(host),
            (None, None) => false,
            _ => true,
        };
        let is_sound = said
            .or(host)
            .is_some_and(|said| said.iter().all(|byte| is_authority(*byte)));
        if is_one && is_sound && more.is_none() {
            Ok(())
        } else {
            Err(Refused::Host)
        }
    }

    /// The method.
    pub fn method(&self) -> &str {
        self.parts.method.as_str()
    }

    /// The target's path, as it came, without the query.
    pub fn path(&self) -> &str {
        self.parts.uri.path()
    }

    /// The target's query, as it came, without its question mark.
    pub fn query(&self) -> &str {
        self.parts.uri.query().unwrap_or_default()
    }

    /// The header fields, for rules.
    pub fn headers(&self) -> &dyn Headers {
        self
    }

    /// Is it a call of gRPC?
    pub fn is_grpc(&self) -> bool {
        let kind = self.parts.headers.get(http::header::CONTENT_TYPE);
        kind.is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"))
    }

    /// Does the client wait for 100 before it sends the body?
    pub fn expects_continue(&self) -> bool {
        let waits = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"100-continue");
        self.parts.headers.get_all(EXPECT).iter().any(waits)
    }

    /// The request for the next hop, if that speaks HTTP/2.
    pub fn to_http2(&self, edits: &RequestEdits<'_>) -> Result<Request<()>, Refused> {
        let mut request = Request::new(());
        *request.method_mut() = self.parts.method.clone();
        *request.uri_mut() = self.uri();
        *request.headers_mut() = self.parts.headers.clone();
        strip(request.headers_mut(), is_mesh_field);
        edit(&mut request, edits)?;
        Ok(request)
    }

    /// The same for HTTP/1.1. `is_empty`: there is no body.
    pub fn to_http1(&self, is_empty: bool) -> Result<RequestHead, Refused> {
        let mut out = BytesMut::with_capacity(512);
        let uri = self.uri();
        let target = uri.path_and_query().map_or("/", PathAndQuery::as_str);
        for part in [self.method(), " ", target, " HTTP/1.1\r\n"] {
            out.put_slice(part.as_bytes());
        }
        put(
            &mut out,
            b"host",
            uri.authority().map_or("", |said| said.as_str()).as_bytes(),
        );
        let fields = &self.parts.headers;
        for (name, value) in fields {
            if ![HOST, CONTENT_LENGTH, COOKIE, TE].contains(name) && !is_hop_field(name.as_str().as_bytes()) {
                put(&mut out, name.as_str().as_bytes(), value.as_bytes());
            }
        }
        let crumbs: Vec<&[u8]> = fields.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
        if !crumbs.is_empty() {
            put(&mut out, b"cookie", &crumbs.join(&b"; "[..])); // RFC 9113, section 8.2.3
        }
        match fields.get(CONTENT_LENGTH) {
            Some(length) => put(&mut out, b"content-length", length.as_bytes()),
            None if !is_empty => put(&mut out, b"transfer-encoding", b"chunked"),
            None if is_expected_body(&self.parts.method) => put(&mut out, b"content-length", b"0"),
            None => {}
        }
        out.put_slice(b"\r\n");
        RequestHead::parse(out.freeze())
    }

    /// With the authority, wherever it stood. Without user information, by [`is_authority`].
    fn uri(&self) -> Uri {
        let host = self.parts.headers.get(HOST).and_then(|host| host.to_str().ok());
        let mut parts = self.parts.uri.clone().into_parts();
        parts.authority = parts.authority.or_else(|| host?.parse().ok());
        parts.scheme = Some(Scheme::HTTP);
        parts.path_and_query = parts.path_and_query.or_else(|| Some(PathAndQuery::from_static("/")));
        Uri::from_parts(parts).unwrap_or_else(|_| self.parts.uri.clone())
    }
}

impl Headers for Head {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        for (known, value) in &self.parts.headers {
            if is_same_variable(known.as_str().as_bytes(), name.as_bytes()) {
                see(value.as_bytes());
            }
        }
        if name == "host"
            && !self.parts.headers.contains_key(HOST)
            && let Some(said) = self.parts.uri.authority()
        {
            see(said.as_str().as_bytes());
        }
    }

    fn all(&self, see: &mut dyn FnMut(&[u8], &[u8])) {
        let fields = self.parts.headers.iter();
        fields.for_each(|(name, value)| see(name.as_str().as_bytes(), value.as_bytes()));
    }
}

/// A request of HTTP/1.1 for a next hop that speaks HTTP/2.
pub fn request_of(head: &RequestHead, edits: &RequestEdits<'_>) -> Result<Request<()>, Refused> {
    let host = head.host().ok_or(Refused::Host)?;
    let uri = Uri::builder()
        .scheme(Scheme::HTTP)
        .authority(host)
        .path_and_query(head.target());
    let mut request = Request::new(());
    *request.method_mut() = Method::from_bytes(head.method().as_bytes()).map_err(|_| Refused::Syntax)?;
    *request.uri_mut() = uri.build().map_err(|_| Refused::Target)?;
    let mut fields = fields_of(head.end_to_end())?;
    if head.framing == Framing::Chunked {
        fields.remove(CONTENT_LENGTH);
    }
    fields.insert(TE, HeaderValue::from_static("trailers"));
    *request.headers_mut() = fields;
    edit(&mut request, edits)?;
    Ok(request)
}

/// A response of HTTP/1.1 for a client that speaks HTTP/2. `from_application`: drop what only the mesh may set.
pub fn response_of(head: &ResponseHead, from_application: bool) -> Result<Response<()>, Refused> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::from_u16(head.status).map_err(|_| Refused::Syntax)?;
    let mut fields = fields_of(head.end_to_end(from_application))?;
    if head.framing == Framing::Chunked || head.status < 200 || head.status == 204 {
        fields.remove(CONTENT_LENGTH);
    }
    *response.headers_mut() = fields;
    Ok(response)
}

/// A response of HTTP/2 for the client that sent `request` in HTTP/1.1. `is_empty`: there is no body.
pub fn response_to_http1(
    parts: &response::Parts,
    request: &RequestHead,
    is_empty: bool,
) -> Result<ResponseHead, Refused> {
    let status = parts.status.as_u16();
    let mut out = BytesMut::with_capacity(512);
    out.put_slice(format!("HTTP/1.1 {status} \r\n").as_bytes());
    for (name, value) in &parts.headers {
        if name != CONTENT_LENGTH && name != TRANSFER_ENCODING && !is_hop_field(name.as_str().as_bytes()) {
            put(&mut out, name.as_str().as_bytes(), value.as_bytes());
        }
    }
    let has_none = status < 200 || status == 204;
    match parts.headers.get(CONTENT_LENGTH) {
        _ if has_none => {}
        Some(length) => put(&mut out, b"content-length", length.as_bytes()),
        None if status == 304 || request.method() == "HEAD" => {}
        None if is_empty => put(&mut out, b"content-length", b"0"),
        None if request.is_http11 => put(&mut out, b"transfer-encoding", b"chunked"),
        None => {}
    }
    out.put_slice(b"\r\n");
    ResponseHead::parse(out.freeze(), request)
}

/// Drops from a response of HTTP/2 what only the mesh may set: it comes from an application.
pub fn strip_mesh(fields: &mut HeaderMap) {
    strip(fields, is_mesh_field);
}

/// Trailer fields of HTTP/1.1, as they came.
pub fn trailers_of(bytes: &[u8]) -> Result<HeaderMap, BodyError> {
    let mut slots = [httparse::EMPTY_HEADER; MAX_FIELDS];
    let Ok(httparse::Status::Complete((_, fields))) = httparse::parse_headers(bytes, &mut slots) else {
        return Err(BodyError::Trailer);
    };
    let fields = fields.iter().map(|field| (field.name.as_bytes(), field.value));
    fields_of(fields).map_err(|_| BodyError::Trailer)
}

/// Drops trailer fields that must not come after a body (RFC 9110, section 6.5.1).
pub fn strip_trailers(fields: &mut HeaderMap) {
    strip(fields, |name| std::str::from_utf8(name).is_ok_and(is_never_trailer));
}

/// The end of a chunked body, with these trailer fields.
pub fn last_chunk(trailers: &HeaderMap) -> Bytes {
    let mut out = BytesMut::from(&b"0\r\n"[..]);
    for (name, value) in trailers {
        put(&mut out, name.as_str().as_bytes(), value.as_bytes());
    }
    out.put_slice(b"\r\n");
    out.freeze()
}

/// Methods whose requests have a body, as servers expect: one without says so (RFC 9110, section 8.6).
fn is_expected_body(method: &Method) -> bool {
    [Method::POST, Method::PUT, Method::PATCH].contains(method)
}

fn put(out: &mut BytesMut, name: &[u8], value: &[u8]) {
    for part in [name, b": ", value, b"\r\n"] {
        out.put_slice(part);
    }
}

fn fields_of<'a>(fields: impl Iterator<Item = (&'a [u8], &'a [u8])>) -> Result<HeaderMap, Refused> {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name).map_err(|_| Refused::Syntax)?;
        let value = HeaderValue::from_bytes(value).map_err(|_| Refused::Syntax)?;
        map.append(name, value);
    }
    Ok(map)
}

fn strip(fields: &mut HeaderMap, is_dropped: impl Fn(&[u8]) -> bool) {
    let dropped: Vec<HeaderName> = fields
        .keys()
        .filter(|name| is_dropped(name.as_str().as_bytes()))
        .cloned()
        .collect();
    for name in dropped {
        fields.remove(name);
    }
}

/// Sets what the mesh says, and does what the request's route wants. The authority stands where HTTP/2 has it.
fn edit(request: &mut Request<()>, edits: &RequestEdits<'_>) -> Result<(), Refused> {
    if let Some(changes) = edits.changes {
        let mut parts = request.uri().clone().into_parts();
        if let Some(target) = changes.target {
            parts.path_and_query = Some(target.parse().map_err(|_| Refused::Target)?);
        }
        if let Some(host) = changes.host {
            parts.authority = Some(host.parse().map_err(|_| Refused::Host)?);
        }
        *request.uri_mut() = Uri::from_parts(parts).map_err(|_| Refused::Target)?;
        edit_fields(request.headers_mut(), |name| changes.drops(name), changes.fields.puts())?;
    }
    let fields = request.headers_mut();
    if !edits.withheld.is_empty() {
        let stated = edits.stated.iter().map(|(name, value)| (&**name, &**value));
        edit_fields(fields, |name| edits.withholds(name), stated)?;
    }
    fields.remove(HOST);
    if let Some(trace) = edits.trace {
        strip(fields, |name| trace.replaces(name));
        trace.fields(|name, value| {
            // Digits and dashes are a value.
            if let Ok(value) = HeaderValue::from_bytes(value) {
                fields.insert(HeaderName::from_static(name), value);
            }
        });
    }
    if let Some(peer) = edits.peer {
        let peer = HeaderValue::from_str(peer).map_err(|_| Refused::Syntax)?;
        fields.insert(HeaderName::from_static("x-hostmesh-peer"), peer);
    }
    Ok(())
}

/// What the request's route does to the response.
pub fn edit_response(fields: &mut HeaderMap, edits: &FieldEdits) -> Result<(), Refused> {
    edit_fields(fields, |name| edits.drops(name), edits.puts())
}

fn edit_fields<'a>(
    fields: &mut HeaderMap,
    is_dropped: impl Fn(&[u8]) -> bool,
    puts: impl Iterator<Item = (&'a str, &'a str)>,
) -> Result<(), Refused> {
    strip(fields, is_dropped);
    for (name, value) in puts {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| Refused::Syntax)?;
        fields.append(name, HeaderValue::from_str(value).map_err(|_| Refused::Syntax)?);
    }
    Ok(())
}

#[cfg(test)]
#[path = "http2_tests.rs"]
mod tests;

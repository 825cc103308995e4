//! External authorization as the field knows it: what a gatekeeper is asked about a request, and what its answer means.
//!
//! The messages are those of `envoy.service.auth.v3.Authorization`, so that gatekeepers which were written for others
//! serve here unchanged. An answer that asks for what is not done here is none: nothing of it is left out in silence.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use prost::Message;
use thiserror::Error;

use crate::authorize::{Caller, Request};
use crate::config::Unit;
use crate::fields::{FieldEdits, is_editable, is_value};
use crate::http1::{is_hop_field, is_mesh_field, is_same_variable};

mod messages;

use messages::{
    Address, AttributeContext, CheckRequest, CheckResponse, DeniedHttpResponse, HeaderValueOption, HttpRequest,
    HttpResponse, OkHttpResponse, Peer, SocketAddress, Timestamp,
};

/// The method of gRPC that is called.
pub const CHECK: &str = "/envoy.service.auth.v3.Authorization/Check";

/// A request about which a gatekeeper is asked: as the application would get it.
pub struct Asking<'a> {
    /// Method, path and header fields.
    pub request: Request<'a>,
    /// Behind the question mark.
    pub query: &'a str,
    /// Who calls, and from where.
    pub caller: Caller<'a>,
    /// The caller's address.
    pub client: IpAddr,
    /// Who is called.
    pub unit: &'a Unit,
    /// On which port.
    pub port: u16,
    /// Header fields that are set by its token.
    pub stated: &'a [(Box<str>, Box<str>)],
    /// When it came.
    pub time: SystemTime,
}

/// What a gatekeeper answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// It may go on, with other header fields.
    Pass(Edits),
    /// It may not.
    Refuse(Refusal),
}

/// What is done to the header fields of a request that may go on, and to those of its response.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Edits {
    pub request: FieldEdits,
    pub response: FieldEdits,
}

/// What the client of a request is answered that may not go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// 200..=599.
    pub status: u16,
    /// Header fields.
    pub fields: Vec<(Box<str>, Box<str>)>,
    /// Its body.
    pub body: String,
    /// For the journal.
    pub why: String,
}

/// Why an answer is none.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NoAnswer {
    /// It cannot be read.
    #[error("its answer is no CheckResponse: {0}")]
    Unreadable(String),
    /// It names a header field that frames or routes a message, or that only the mesh may say.
    #[error("it wants to change the header {0:?}, which it may not")]
    Field(String),
    /// It gives a header field a value that it cannot have.
    #[error("its value for the header {0:?} cannot be written")]
    Value(String),
    /// It wants the query to be changed.
    #[error("it wants to change the query, which is not done here")]
    Query,
    /// It refuses with a status that nobody knows.
    #[error("it refuses with the status {0}, which is none")]
    Status(i32),
    /// It wants a header to be changed only where there is one, or none.
    #[error("it wants to change the header {0:?} under a condition, which is not done here")]
    Condition(String),
    /// It lets pass, and says what to refuse with.
    #[error("it says both yes and no")]
    Both,
}

/// The encoded `CheckRequest`.
pub fn check_request(asking: &Asking<'_>) -> Vec<u8> {
    let Request { method, path, .. } = asking.request;
    let target = match asking.query {
        "" => path.to_owned(),
        query => format!("{path}?{query}"),
    };
    let headers = headers(asking, &target);
    let said = |name: &str| headers.get(name).cloned().unwrap_or_default();
    let http = HttpRequest {
        id: said("x-request-id"),
        method: method.to_owned(),
        host: said(":authority"),
        scheme: said(":scheme"),
        size: said("content-length").parse().unwrap_or(-1),
        path: target,
        headers,
    };
    let principal = match asking.caller {
        Caller::Identity(id) => id.to_owned(),
        Caller::Plaintext { .. } => String::new(),
    };
    let of = |address: String, port: u16| {
        let port = u32::from(port);
        let socket_address = Some(SocketAddress { address, port });
        Some(Address { socket_address })
    };
    let attributes = AttributeContext {
        source: Some(Peer {
            address: of(asking.client.to_string(), 0),
            service: String::new(),
            principal,
        }),
        destination: Some(Peer {
            address: of(String::new(), asking.port),
            service: asking.unit.service.to_string(),
            principal: asking.unit.spiffe_id.to_string(),
        }),
        request: Some(messages::Request {
            time: Some(timestamp(asking.time)),
            http: Some(http),
        }),
    };
    let attributes = Some(attributes);
    CheckRequest { attributes }.encode_to_vec()
}

/// Names in lower case, the lines of one name as one, and HTTP/2's names for what stands in the first line.
fn headers(asking: &Asking<'_>, target: &str) -> HashMap<String, String> {
    let mut headers: HashMap<String, String> = HashMap::new();
    let mut host = String::new();
    let withheld = asking.unit.withheld();
    let mut hops = Vec::new();
    asking.request.headers.each("connection", &mut |value| {
        let names = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
        hops.extend(names.map(<[u8]>::to_ascii_lowercase));
    });
    // What a client says of its own connection ends here; what it wants to change to goes on.
    let ends_here = |name: &[u8]| {
        let is_named = hops.iter().any(|hop| name.eq_ignore_ascii_case(hop));
        (is_hop_field(name) || is_named) && !name.eq_ignore_ascii_case(b"upgrade")
    };
    let mut see = |name: &[u8], value: &[u8]| {
        let name = String::from_utf8_lossy(name).to_ascii_lowercase();
        let value = String::from_utf8_lossy(value);
        match headers.get_mut(&name) {
            // RFC 9110, section 5.3; RFC 9113, section 8.2.3.
            Some(known) => {
                known.push_str(if name == "cookie" { "; " } else { "," });
                known.push_str(&value);
            }
            None => _ = headers.insert(name, value.into_owned()),
        }
    };
    asking.request.headers.all(&mut |name, value| {
        let is_withheld = withheld
            .iter()
            .any(|withheld| is_same_variable(name, withheld.as_bytes()));
        if !(is_withheld || is_mesh_field(name) || ends_here(name)) {
            see(name, value);
        }
    });
    for (name, value) in asking.stated {
        see(name.as_bytes(), value.as_bytes());
    }
    let first = &mut |value: &[u8]| host = String::from_utf8_lossy(value).into_owned();
    asking.request.headers.each("host", first);
    let pseudo = [
        (":method", asking.request.method),
        (":path", target),
        (":authority", &host),
        (":scheme", "http"),
    ];
    headers.extend(pseudo.map(|(name, value)| (name.to_owned(), value.to_owned())));
    headers
}

fn timestamp(time: SystemTime) -> Timestamp {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    Timestamp {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(since.subsec_nanos()).unwrap_or_default(),
    }
}

/// What an encoded `CheckResponse` means.
pub fn answer(message: &[u8]) -> Result<Answer, NoAnswer> {
    let response = CheckResponse::decode(message).map_err(|error| NoAnswer::Unreadable(error.to_string()))?;
    let status = response.status.unwrap_or_default();
    match (status.code, response.http_response) {
        (0, None) => Ok(Answer::Pass(Edits::default())),
        (0, Some(HttpResponse::Ok(ok))) => edits(ok).map(Answer::Pass),
        (0, Some(HttpResponse::Denied(_))) => Err(NoAnswer::Both),
        (_, None | Some(HttpResponse::Ok(_))) => {
            refusal(DeniedHttpResponse::default(), status.message).map(Answer::Refuse)
        }
        (_, Some(HttpResponse::Denied(denied))) => refusal(denied, status.message).map(Answer::Refuse),
    }
}

fn edits(ok: OkHttpResponse) -> Result<Edits, NoAnswer> {
    if !(ok.query_parameters_to_set.is_empty() && ok.query_parameters_to_remove.is_empty()) {
        return Err(NoAnswer::Query);
    }
    let mut request = FieldEdits::default();
    for option in ok.headers {
        edit(&mut request, option)?;
    }
    for name in ok.headers_to_remove {
        // The convention leaves these alone.
        if !(name.starts_with(':') || name.eq_ignore_ascii_case("host")) {
            request.remove.push(editable(name)?);
        }
    }
    let mut response = FieldEdits::default();
    for option in ok.response_headers_to_add {
        edit(&mut response, option)?;
    }
    Ok(Edits { request, response })
}

fn edit(edits: &mut FieldEdits, option: HeaderValueOption) -> Result<(), NoAnswer> {
    let (appends, action) = (option.append == Some(true), option.append_action);
    let (name, value) = pair(option)?;
    // Append, which is also what is not said, and overwrite: told apart by `append`, as everybody does.
    if !matches!(action, 0 | 2) {
        return Err(NoAnswer::Condition(name.into()));
    }
    match value {
        // Nobody's word is not to be the client's.
        None if !appends => edits.remove.push(name),
        None => {}
        Some(value) if appends => edits.add.push((name, value)),
        Some(value) => edits.set.push((name, value)),
    }
    Ok(())
}

/// A header field; without a value where that is empty.
fn pair(option: HeaderValueOption) -> Result<(Box<str>, Option<Box<str>>), NoAnswer> {
    let header = option.header.unwrap_or_default();
    let name = editable(header.key)?;
    let value = match header.value.is_empty() {
        true => String::from_utf8(header.raw_value).map_err(|_| NoAnswer::Value(name.to_string()))?,
        false => header.value,
    };
    if value.is_empty() {
        return Ok((name, None));
    }
    if !is_value(&value) {
        return Err(NoAnswer::Value(name.to_string()));
    }
    Ok((name, Some(value.into())))
}

fn editable(name: String) -> Result<Box<str>, NoAnswer> {
    match is_editable(&name) {
        true => Ok(name.to_ascii_lowercase().into()),
        false => Err(NoAnswer::Field(name)),
    }
}

fn refusal(denied: DeniedHttpResponse, why: String) -> Result<Refusal, NoAnswer> {
    let code = denied.status.map_or(0, |status| status.code);
    let status = match code {
        0 => 403,
        200..=599 => u16::try_from(code).map_err(|_| NoAnswer::Status(code))?,
        _ => return Err(NoAnswer::Status(code)),
    };
    let mut fields = Vec::new();
    for option in denied.headers {
        let (name, value) = pair(option)?;
        fields.extend(value.map(|value| (name, value)));
    }
    Ok(Refusal {
        status,
        fields,
        body: denied.body,
        why,
    })
}

#[cfg(test)]
#[path = "ext_authz_tests.rs"]
mod tests;

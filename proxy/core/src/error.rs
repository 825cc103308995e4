//! Names what went wrong with a request or connection: whose fault it was, what the caller is told, may it be repeated.

use thiserror::Error;

use crate::flag::Flag;
use crate::http1::{BodyError, Refused};
use crate::retry::Failure;
use crate::token::Doubt;

/// Who is to blame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Blame {
    /// The caller.
    Downstream,
    /// Whoever was called.
    Upstream,
    /// Nobody: a person said no.
    Policy,
    /// The mesh itself.
    Internal,
}

/// Everything that can end a request without the application's answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Fault {
    /// The request cannot be read in one way only.
    #[error("bad request: {0}")]
    BadRequest(Refused),
    /// The request's body cannot be read, or ended early.
    #[error("bad request body: {0}")]
    BadRequestBody(BodyError),
    /// The request's head, or more of its body, did not come in time.
    #[error("the request did not come in time")]
    SlowRequest,
    /// A path rule applies and the path has no single meaning.
    #[error("the path is ambiguous and a path rule applies")]
    BadPath,
    /// A rule refused, or none allowed.
    #[error("denied by policy")]
    Denied,
    /// It came too often, or too much of it is under way. After so many seconds there may be room.
    #[error("over its limit: try again in {0} s")]
    Limited(u32),
    /// A token would have opened.
    #[error("there is no token")]
    NoToken,
    /// The token is not believed.
    #[error("the token is not believed: {0}")]
    BadToken(Doubt),
    /// The unit's gatekeeper refused.
    #[error("refused by the service's gatekeeper")]
    Refused,
    /// The unit's gatekeeper could not be asked, or gave no answer that is one.
    #[error("the service's gatekeeper gave no verdict")]
    NoVerdict,
    /// The service has no endpoint.
    #[error("the service has no endpoint")]
    NoEndpoint,
    /// All endpoints that there are answered with errors only, and are left alone for a time.
    #[error("every endpoint of the service is ejected")]
    Ejected,
    /// The route leads to a service or port that is not there.
    #[error("the route leads to no service that is there")]
    NoRoute,
    /// As much of the service is in use as its policy lets be.
    #[error("the service's breaker is open")]
    BreakerOpen,
    /// Nothing reached the application.
    #[error("no connection to the service")]
    Connect,
    /// The connection broke before the response.
    #[error("the connection broke before the response")]
    Reset,
    /// The response cannot be read.
    #[error("bad response: {0}")]
    BadResponse(Refused),
    /// The response's body cannot be read, or ended early.
    #[error("bad response body: {0}")]
    BadResponseBody(BodyError),
    /// The caller's time is over, or that of the last try.
    #[error("no response in time")]
    Timeout,
    /// The caller went away.
    #[error("the caller went away")]
    Gone,
    /// The proxy has too much to do.
    #[error("the proxy is overloaded")]
    Shed,
    /// The proxy cannot do its part, e.g. it has no SVID yet.
    #[error("the mesh is not ready for this call")]
    Internal,
}

impl Fault {
    /// Whose fault it is.
    pub fn blame(self) -> Blame {
        match self {
            Self::BadRequest(_) | Self::BadRequestBody(_) | Self::SlowRequest | Self::Gone => Blame::Downstream,
            Self::BadPath | Self::Denied | Self::Refused | Self::Limited(_) | Self::NoToken | Self::BadToken(_) => {
                Blame::Policy
            }
            Self::Shed | Self::Internal => Blame::Internal,
            _ => Blame::Upstream,
        }
    }

    /// The status that the caller is told.
    pub fn status(self) -> u16 {
        match self {
            Self::BadRequest(refused) => refused.status(),
            Self::BadRequestBody(_) | Self::BadPath | Self::Gone => 400,
            Self::NoToken | Self::BadToken(_) => 401,
            Self::Denied | Self::Refused => 403,
            Self::SlowRequest => 408,
            Self::Limited(_) => 429,
            Self::Reset | Self::BadResponse(_) | Self::BadResponseBody(_) => 502,
            Self::NoEndpoint | Self::NoRoute | Self::Ejected | Self::BreakerOpen | Self::Connect => 503,
            Self::NoVerdict | Self::Shed | Self::Internal => 503,
            Self::Timeout => 504,
        }
    }

    /// What a caller of gRPC is told (grpc/doc/statuscodes.md).
    pub fn grpc_status(self) -> u16 {
        match self {
            Self::Gone => 1,
            Self::Timeout => 4,
            Self::Denied | Self::Refused => 7,
            Self::Limited(_) => 8,
            Self::NoToken | Self::BadToken(_) => 16,
            Self::NoEndpoint | Self::Ejected | Self::BreakerOpen | Self::Connect | Self::Reset => 14,
            Self::NoRoute | Self::NoVerdict | Self::Shed | Self::Internal => 14,
            _ => 13,
        }
    }

    /// As it is told and counted.
    pub fn flag(self) -> Flag {
        match self {
            Self::BadRequest(_) | Self::BadRequestBody(_) => Flag::BadRequest,
            Self::SlowRequest => Flag::SlowRequest,
            Self::BadPath => Flag::BadPath,
            Self::Denied => Flag::Denied,
            Self::Limited(_) => Flag::Limited,
            Self::NoToken => Flag::NoToken,
            Self::BadToken(_) => Flag::BadToken,
            Self::Refused => Flag::Refused,
            Self::NoVerdict => Flag::NoVerdict,
            Self::NoEndpoint => Flag::NoEndpoint,
            Self::Ejected => Flag::Ejected,
            Self::NoRoute => Flag::NoRoute,
            Self::BreakerOpen => Flag::BreakerOpen,
            Self::Connect => Flag::ConnectFailure,
            Self::Reset => Flag::Reset,
            Self::BadResponse(_) | Self::BadResponseBody(_) => Flag::BadResponse,
            Self::Timeout => Flag::Timeout,
            Self::Gone => Flag::Gone,
            Self::Shed => Flag::Shed,
            Self::Internal => Flag::NotReady,
        }
    }

    /// The word in `x-hostmesh-error`.
    pub fn word(self) -> &'static str {
        self.flag().word()
    }

    /// What the caller may bring to be let in: the value of `WWW-Authenticate` (RFC 6750, section 3).
    pub fn challenge(self) -> Option<String> {
        match self {
            Self::NoToken => Some("Bearer".to_owned()),
            Self::BadToken(doubt) => Some(format!("Bearer error=\"invalid_token\", error_description=\"{doubt}\"")),
            _ => None,
        }
    }

    /// After how many seconds the caller may come again: the value of `Retry-After` (RFC 9110, section 10.2.3).
    pub fn retry_after(self) -> Option<u32> {
        match self {
            Self::Limited(seconds) => Some(seconds),
            Self::Shed => Some(1),
            _ => None,
        }
    }

    /// As a failed try, if it is one that could be repeated.
    pub fn failure(self) -> Option<Failure> {
        match self {
            Self::Connect => Some(Failure::Connect),
            Self::Reset => Some(Failure::Reset),
            Self::Timeout => Some(Failure::TryTimeout),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blame_agrees_with_the_status() {
        for fault in [
            Fault::BadRequest(Refused::Syntax),
            Fault::SlowRequest,
            Fault::BadPath,
            Fault::Denied,
            Fault::Limited(1),
            Fault::NoToken,
            Fault::BadToken(Doubt::Expired),
            Fault::Refused,
            Fault::NoVerdict,
            Fault::NoEndpoint,
            Fault::Ejected,
            Fault::NoRoute,
            Fault::BreakerOpen,
            Fault::Connect,
            Fault::Reset,
            Fault::BadResponse(Refused::Syntax),
            Fault::Timeout,
            Fault::Shed,
            Fault::Internal,
        ] {
            let by_caller = matches!(fault.blame(), Blame::Downstream | Blame::Policy);
            assert_eq!(by_caller, fault.status() < 500, "{fault}");
            assert!(!(by_caller && fault.failure().is_some()), "{fault}");
            assert!(
                fault.status() != 503 || fault.grpc_status() == 14,
                "{fault}: not to be had now, in both"
            );
        }
    }
}

//! The way of a response to its client.

use std::future::{pending, poll_fn};
use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::server::SendResponse;
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::http1::{Framing, RequestHead, ResponseEdits, ResponseHead};
use hostmesh_proxy_core::http2;
use http::Response;

use super::body::Sink;
use crate::http::conn;
use crate::http::down::BrokenBy;
use crate::stream::broken;

/// Where the response goes.
pub enum Client<'a> {
    Http2 {
        respond: &'a mut SendResponse<Bytes>,
        stall: Duration,
    },
    Http1 {
        sink: conn::Sink<'a>,
        request: &'a RequestHead,
        /// Its connection ends after this response, whatever it wants.
        last: bool,
    },
}

/// A response's way to the client, begun.
pub struct Begun<'a> {
    pub sink: Sink<'a>,
    /// The client's connection ends with it.
    pub close: bool,
}

impl<'a> Client<'a> {
    /// An interim response (RFC 9110, section 15.2).
    pub async fn interim(&mut self, response: Response<()>) -> io::Result<()> {
        match self {
            Self::Http2 { respond, .. } => respond.send_informational(response).map_err(broken),
            Self::Http1 { sink, request, .. } if request.is_http11 => {
                let head = http2::response_to_http1(&response.into_parts().0, request, true);
                sink.send(written(&head.map_err(io::Error::other)?, false)).await
            }
            Self::Http1 { .. } => Ok(()),
        }
    }

    /// Waits until a client of HTTP/2 wants no answer any more.
    pub async fn gone(&mut self) {
        match self {
            // However it ended.
            Self::Http2 { respond, .. } => drop(poll_fn(|cx| respond.poll_reset(cx)).await),
            Self::Http1 { .. } => pending().await,
        }
    }

    /// Begins the final response. `is_empty`: it has no body.
    pub async fn begin(self, response: Response<()>, is_empty: bool) -> Result<Begun<'a>, Cut> {
        match self {
            Self::Http2 { respond, stall } => {
                let send = respond.send_response(response, is_empty);
                let send = send.map_err(|_| Cut::Broken(BrokenBy::Client))?;
                let (stall, ended) = (Some(stall), is_empty);
                let sink = Sink::Http2 { send, stall, ended };
                Ok(Begun { sink, close: false })
            }
            Self::Http1 {
                mut sink,
                request,
                last,
            } => {
                let head = http2::response_to_http1(&response.into_parts().0, request, is_empty);
                let head = head.map_err(|refused| Cut::Failed(Fault::BadResponse(refused)))?;
                let close = last || !request.keep_alive || head.framing == Framing::UntilClose;
                let sent = sink.send(written(&head, close)).await;
                sent.map_err(|error| Cut::Broken(BrokenBy::of_client(&error)))?;
                let (chunked, ended) = (head.framing == Framing::Chunked, head.framing == Framing::Empty);
                let sink = Sink::Http1 { sink, chunked, ended };
                Ok(Begun { sink, close })
            }
        }
    }
}

fn written(head: &ResponseHead, close: bool) -> Bytes {
    let mut out = BytesMut::new();
    let edits = ResponseEdits {
        close,
        from_application: false,
        fields: None,
    };
    head.write(&edits, &mut out);
    out.freeze()
}

/// Why a response did not begin.
pub enum Cut {
    Broken(BrokenBy),
    Failed(Fault),
}

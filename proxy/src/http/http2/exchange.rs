//! One try where HTTP/2 is spoken on one side or on both: a request to an upstream and its response back.

use std::cell::Cell;
use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::RecvStream;
use h2::client::ResponseFuture;
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::http1::{Body, Framing, RequestHead, ResponseHead};
use hostmesh_proxy_core::http2::{self, Head};
use hostmesh_proxy_core::retry::Failure;
use http::{HeaderMap, Response};
use tokio::time::Instant;

use super::body::{Frame, Sink, Source};
use super::respond::{Begun, Client, Cut};
use super::upload::{Stopped, Upload};
use crate::http::HALF_CLOSED;
use crate::http::call::until;
use crate::http::conn::{self, NoHead};
use crate::http::down::{Answer, BrokenBy, Ended, Manner, Progress, Stretch, Up, add};
use crate::rejudge::Denial;
use crate::wire::client::unprocessed;

/// What is asked, as the client said it.
#[derive(Clone, Copy)]
pub enum Asked<'a> {
    Http2(&'a Head),
    Http1(&'a RequestHead),
}

/// A response on a stream of HTTP/2 whose request has gone out.
pub struct Awaited {
    response: ResponseFuture,
    /// What came of it while nobody passed it on.
    found: Option<Result<Response<RecvStream>, h2::Error>>,
}

impl Awaited {
    /// Waits until its head has come, or its end.
    pub async fn heard(&mut self) {
        if self.found.is_none() {
            self.found = Some((&mut self.response).await);
        }
    }

    async fn next(&mut self) -> Result<Found, h2::Error> {
        let whole = |response: Response<RecvStream>| {
            let (parts, receive) = response.into_parts();
            Found::Final {
                response: Response::from_parts(parts, ()),
                body: Some(Source::http2(receive)),
                framing: Framing::Empty,
                keep_alive: true,
            }
        };
        if let Some(found) = self.found.take() {
            return found.map(whole);
        }
        let found = poll_fn(|cx| match self.response.poll_informational(cx) {
            Poll::Ready(Some(interim)) => Poll::Ready(interim.map(Found::Interim)),
            _ => pin!(&mut self.response).poll(cx).map_ok(whole),
        });
        found.await
    }
}

/// A request that is at the upstream, or on its way there.
struct Opened<'u> {
    answering: Answering<'u>,
    /// What is still to be sent: to HTTP/1.1 its head as well.
    outgoing: Option<(Sink<'u>, Bytes)>,
}

/// Where the response comes from.
enum Answering<'u> {
    Http2(Awaited),
    Http1 {
        source: conn::Source<'u>,
        request: Box<RequestHead>,
        limit: Duration,
    },
}

/// A response's head.
enum Found {
    Interim(Response<()>),
    /// `body`: where its body comes from, with HTTP/2. `keep_alive`: the upstream may serve another request.
    Final {
        response: Response<()>,
        body: Option<Source<'static>>,
        framing: Framing,
        keep_alive: bool,
    },
}

/// Why there is none.
enum Lacking {
    Fault(Fault),
    /// The upstream says that it has not seen the request.
    Unseen,
}

impl Answering<'_> {
    async fn next(&mut self, from_application: bool) -> Result<Found, Lacking> {
        match self {
            Self::Http2(awaited) => {
                let mut found = awaited.next().await.map_err(|error| match unprocessed(&error) {
                    true => Lacking::Unseen,
                    false => Lacking::Fault(Fault::Reset),
                })?;
                if from_application && let Found::Final { response, .. } | Found::Interim(response) = &mut found {
                    http2::strip_mesh(response.headers_mut());
                }
                Ok(found)
            }
            Self::Http1 { source, request, limit } => {
                let bad = |refused| Lacking::Fault(Fault::BadResponse(refused));
                let bytes = source.head(*limit).await.map_err(|no| match no {
                    NoHead::Refused(refused) => bad(refused),
                    _ => Lacking::Fault(Fault::Reset),
                })?;
                let head = ResponseHead::parse(bytes, request).map_err(bad)?;
                let response = http2::response_of(&head, from_application).map_err(bad)?;
                if head.is_interim() {
                    return Ok(Found::Interim(response));
                }
                Ok(Found::Final {
                    response,
                    body: None,
                    framing: head.framing,
                    keep_alive: head.keep_alive,
                })
            }
        }
    }
}

impl Answer for Response<()> {
    fn status(&self) -> u16 {
        Self::status(self).as_u16()
    }

    fn single(&self, name: &str) -> Option<&[u8]> {
        let mut all = self.headers().get_all(name).iter();
        all.next()
            .filter(|_| all.next().is_none())
            .map(|value| value.as_bytes())
    }

    fn grpc_status(&self) -> Option<u32> {
        self.headers().get("grpc-status")?.to_str().ok()?.parse().ok()
    }
}

/// The client is there no more, and has no response.
const GONE: Ended = Ended::Broken {
    status: 0,
    by: BrokenBy::Client,
};

/// One try.
pub struct Try<'a> {
    pub asked: Asked<'a>,
    pub manner: &'a Manner<'a>,
    pub progress: &'a Progress,
}

impl Try<'_> {
    /// Carries the request to `up` and the response to the client, until it is `denied`. `again`: is a response of this
    /// head to be tried again?
    pub async fn run(
        &self,
        client: Client<'_>,
        up: &mut Up,
        upload: Upload<'_, '_>,
        again: impl Fn(&dyn Answer) -> Option<Failure>,
        denied: Pin<&mut impl Future<Output = Denial>>,
    ) -> Ended {
        let mut left = None;
        let ended = self.run_until(client, up, upload, again, denied, &mut left).await;
        if let (Some(awaited), Up::Http2(link)) = (left, &*up) {
            *up = Up::Asked(Box::new((link.clone(), awaited)));
        }
        ended
    }

    /// The same; what is waited for is `left`, where it is not waited for to its end.
    async fn run_until(
        &self,
        mut client: Client<'_>,
        up: &mut Up,
        mut upload: Upload<'_, '_>,
        again: impl Fn(&dyn Answer) -> Option<Failure>,
        mut denied: Pin<&mut impl Future<Output = Denial>>,
        left: &mut Option<Awaited>,
    ) -> Ended {
        let mut late = pin!(until(self.manner.deadline));
        let opened = tokio::select! {
            biased;
            denial = &mut denied => return Ended::Denied { status: 0, denial },
            opened = self.open(up, upload.is_empty()) => opened,
            () = &mut late => return Ended::Failed(Fault::Timeout),
            () = client.gone() => return GONE,
        };
        let Opened {
            mut answering,
            mut outgoing,
        } = match opened {
            Ok(opened) => opened,
            Err(Lacking::Unseen) => return Ended::Unseen,
            Err(Lacking::Fault(fault)) => return Ended::Failed(fault),
        };
        let (uploaded, coming, mut half_closed) = (Cell::new(None), Cell::new(false), false);
        let mut pump = pin!(upload.run_and_watch(outgoing.as_mut(), &uploaded));
        let mut patience = pin!(until(None));
        let is_out = || uploaded.get() == Some(true) && !coming.get() && self.progress.is_replayable.get();
        let mut over = pin!(self.manner.stretch.over(is_out));
        let found = loop {
            let found = {
                let mut next = pin!(async {
                    if let (Stretch::Request(_), Answering::Http1 { source, .. }) =
                        (self.manner.stretch, &mut answering)
                    {
                        source.wait().await;
                        coming.set(true);
                    }
                    answering.next(self.manner.from_application).await
                });
                let mut gone = pin!(client.gone());
                loop {
                    tokio::select! {
                        biased;
                        denial = &mut denied => return Ended::Denied { status: 0, denial },
                        stopped = &mut pump, if !half_closed => match stopped {
                            Stopped::Failed(fault) => return Ended::Failed(fault),
                            Stopped::Downstream(by) => return Ended::Broken { status: 0, by },
                            Stopped::HalfClosed => {
                                half_closed = true;
                                patience.set(until(Some(Instant::now() + HALF_CLOSED)));
                            }
                            Stopped::Upstream => return GONE,
                        },
                        found = &mut next => break Some(found),
                        () = &mut over => break None,
                        () = &mut late => return Ended::Failed(Fault::Timeout),
                        () = &mut gone => return GONE,
                        () = &mut patience => return GONE,
                    }
                }
            };
            match found {
                None => {
                    if let Answering::Http2(awaited) = answering {
                        *left = Some(awaited);
                    }
                    return Ended::Waiting;
                }
                Some(Ok(Found::Interim(response))) => {
                    coming.set(true);
                    if client.interim(response).await.is_err() {
                        return GONE;
                    }
                }
                Some(found) => break found,
            }
        };
        let (mut response, body, framing, keep_alive) = match found {
            Ok(Found::Final {
                response,
                body,
                framing,
                keep_alive,
            }) => (response, body, framing, keep_alive),
            Ok(Found::Interim(_)) | Err(Lacking::Unseen) => return Ended::Unseen,
            Err(Lacking::Fault(fault)) => return Ended::Failed(fault),
        };
        if let Some(failure) = again(&response) {
            return Ended::Refused(failure);
        }
        let mut come = Body::new(framing);
        let mut body = match (body, answering) {
            (Some(body), _) => body,
            (None, Answering::Http1 { source, .. }) => Source::Http1 {
                source,
                body: &mut come,
            },
            (None, Answering::Http2(_)) => return Ended::Failed(Fault::Reset),
        };
        let status = response.status().as_u16();
        if let Some(edits) = self.manner.response
            && let Err(refused) = http2::edit_response(response.headers_mut(), edits)
        {
            return Ended::Failed(Fault::BadResponse(refused));
        }
        self.progress.see_grpc(response.headers());
        add(&self.progress.received, size(response.headers()));
        let Begun { mut sink, close } = match client.begin(response, body.is_over()).await {
            Ok(begun) => begun,
            Err(Cut::Broken(by)) => return Ended::Broken { status, by },
            Err(Cut::Failed(fault)) => return Ended::Failed(fault),
        };
        let mut pass = pin!(self.pass(&mut body, &mut sink));
        let passed = loop {
            tokio::select! {
                biased;
                denial = &mut denied => return Ended::Denied { status, denial },
                stopped = &mut pump, if !half_closed => match stopped {
                    Stopped::HalfClosed => half_closed = true,
                    Stopped::Failed(Fault::SlowRequest) => break Err(BrokenBy::SlowClient),
                    Stopped::Downstream(by) => break Err(by),
                    _ => break Err(BrokenBy::Client),
                },
                passed = &mut pass => break passed,
            }
        };
        match passed {
            Err(by) => Ended::Broken { status, by },
            Ok(()) => Ended::Answered {
                status,
                upstream_clean: keep_alive && uploaded.get() == Some(true),
                downstream_clean: !close && uploaded.get() == Some(true),
            },
        }
    }

    /// Begins the request at the upstream; to HTTP/1.1 its head is still to be sent.
    async fn open<'u>(&self, up: &'u mut Up, is_empty: bool) -> Result<Opened<'u>, Lacking> {
        let bad = |refused| Lacking::Fault(Fault::BadRequest(refused));
        if let Up::Asked(asked) = up {
            let link = asked.0.clone();
            let Up::Asked(asked) = std::mem::replace(up, Up::Http2(link)) else {
                return Err(Lacking::Unseen);
            };
            return Ok(Opened {
                answering: Answering::Http2(asked.1),
                outgoing: None,
            });
        }
        match up {
            Up::Asked(_) => Err(Lacking::Unseen),
            Up::Http2(link) => {
                let request = match self.asked {
                    Asked::Http2(head) => head.to_http2(&self.manner.edits),
                    Asked::Http1(head) => http2::request_of(head, &self.manner.edits),
                };
                let request = request.map_err(bad)?;
                add(&self.progress.sent, size(request.headers()));
                let (response, sink) = link.send(request, is_empty).await.map_err(|_| Lacking::Unseen)?;
                let found = None;
                Ok(Opened {
                    answering: Answering::Http2(Awaited { response, found }),
                    outgoing: Some((sink, Bytes::new())),
                })
            }
            Up::Http1(conn) => {
                let request = match self.asked {
                    Asked::Http2(head) => head.to_http1(is_empty).map_err(bad)?,
                    Asked::Http1(head) => head.clone(),
                };
                let (source, sink) = conn.split();
                let outgoing = (self.manner.stretch != Stretch::Response).then(|| {
                    let mut out = BytesMut::new();
                    request.write(&self.manner.edits, &mut out);
                    add(&self.progress.sent, out.len());
                    let sink = Sink::Http1 {
                        sink,
                        chunked: request.framing == Framing::Chunked,
                        ended: false,
                    };
                    (sink, out.freeze())
                });
                let (limit, request) = (self.manner.timeouts.head, Box::new(request));
                Ok(Opened {
                    answering: Answering::Http1 { source, request, limit },
                    outgoing,
                })
            }
        }
    }

    /// Passes the body of the response on.
    async fn pass(&self, body: &mut Source<'_>, sink: &mut Sink<'_>) -> Result<(), BrokenBy> {
        loop {
            let frame = tokio::select! {
                frame = body.frame() => frame.map_err(|lost| BrokenBy::of_upstream(&lost.into_io()))?,
                error = sink.refused() => return Err(BrokenBy::of_client(&error)),
            };
            let sent = match frame {
                None => return sink.finish().await.map_err(|error| BrokenBy::of_client(&error)),
                Some(frame) => {
                    match &frame {
                        Frame::Data { bytes, .. } => add(&self.progress.received, bytes.len()),
                        Frame::Trailers(fields) => self.progress.see_grpc(fields),
                    }
                    sink.send(frame).await
                }
            };
            sent.map_err(|error| BrokenBy::of_client(&error))?;
        }
    }
}

/// Bytes of a head, about.
pub(super) fn size(fields: &HeaderMap) -> usize {
    fields
        .iter()
        .map(|(name, value)| name.as_str().len() + value.len() + 4)
        .sum()
}

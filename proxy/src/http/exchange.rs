//! One try: a request to an upstream and its response back, both bodies under way at the same time.

use std::cell::Cell;
use std::future::{Future, pending};
use std::pin::{Pin, pin};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::http1::{Body, BodyError, Framing, RequestHead, ResponseEdits, ResponseHead};
use hostmesh_proxy_core::retry::Failure;
use tokio::time::{Instant, timeout};

use super::call::until;
use super::conn::{Conn, NoHead, Sink, Source};
use super::down::{Answer, BrokenBy, Ended, Manner, Progress, Stretch, add};
use super::{COALESCE, HALF_CLOSED, REPLAY};
use crate::rejudge::Denial;

/// A request's body on its way, with what went out already as long as that is little.
pub struct Upload<'a> {
    body: Body,
    /// A copy: parts of what was received would keep whole blocks alive, a single byte each.
    sent: BytesMut,
    length: usize,
    progress: &'a Progress,
    /// More of it must come within this.
    stall: Duration,
}

enum Stopped {
    /// The client broke off, or policy ended it on that side.
    Downstream(BrokenBy),
    /// The client has ended its side after its request: it may have gone, or wait for the answer.
    HalfClosed,
    BadBody(BodyError),
    /// More of the body did not come in time.
    Slow,
    /// The upstream takes no more; what it answered may be there all the same.
    Upstream,
}

impl<'a> Upload<'a> {
    pub fn new(request: &RequestHead, progress: &'a Progress, stall: Duration) -> Self {
        Self {
            body: Body::new(request.framing),
            sent: BytesMut::new(),
            length: 0,
            progress,
            stall,
        }
    }

    /// Has the client sent all of it?
    pub fn is_done(&self) -> bool {
        self.body.is_done()
    }

    /// What has come of the body and is still here, as it came.
    pub fn sent(&self) -> &[u8] {
        &self.sent
    }

    fn is_untouched(&self) -> bool {
        self.length == 0
    }

    /// The part of these bytes that belongs to the body; the rest goes back.
    fn take(&mut self, source: &mut Source<'_>, mut bytes: Bytes) -> Result<Bytes, BodyError> {
        let taken = self.body.feed(&bytes)?;
        let body = bytes.split_to(taken);
        if !bytes.is_empty() {
            source.put_back(bytes);
        }
        self.length += body.len();
        add(&self.progress.sent, body.len());
        if self.length > REPLAY {
            self.progress.is_replayable.set(false);
            self.sent = BytesMut::new();
        } else {
            self.sent.extend_from_slice(&body);
        }
        Ok(body)
    }

    /// Sends the head, what an earlier try had sent, then the rest as it comes: a client that was not told to continue
    /// is right to wait.
    async fn run(
        &mut self,
        mut head: BytesMut,
        source: &mut Source<'_>,
        sink: &mut Sink<'_>,
        continued: &Cell<bool>,
    ) -> Result<(), Stopped> {
        let again = Bytes::copy_from_slice(&self.sent);
        let mut more = Bytes::new();
        if !self.is_done() {
            let bytes = source.buffered();
            more = self.take(source, bytes).map_err(Stopped::BadBody)?;
        }
        for body in [again, more] {
            if body.len() <= COALESCE {
                head.extend_from_slice(&body);
            } else {
                sink.send(head.split().freeze()).await.map_err(|_| Stopped::Upstream)?;
                sink.send(body).await.map_err(|_| Stopped::Upstream)?;
            }
        }
        sink.send(head.freeze()).await.map_err(|_| Stopped::Upstream)?;
        while !self.is_done() {
            let was_continued = continued.get();
            let Ok(received) = timeout(self.stall, source.recv()).await else {
                if was_continued {
                    return Err(Stopped::Slow);
                }
                continue;
            };
            let received = received.map_err(|error| Stopped::Downstream(BrokenBy::of_lost_client(&error)))?;
            let Some(bytes) = received else {
                return Err(Stopped::BadBody(BodyError::Truncated));
            };
            let body = self.take(source, bytes).map_err(Stopped::BadBody)?;
            sink.send(body).await.map_err(|_| Stopped::Upstream)?;
        }
        Ok(())
    }

    /// The same, if there is a `head` to send, and then sees whether the client is still there. Ends with a reason to stop,
    /// else never.
    async fn run_and_watch(
        &mut self,
        head: Option<BytesMut>,
        source: &mut Source<'_>,
        sink: &mut Sink<'_>,
        continued: &Cell<bool>,
        uploaded: &Cell<Option<bool>>,
    ) -> Stopped {
        let ran = match head {
            Some(head) => pin!(self.run(head, source, sink, continued)).await,
            None => Ok(()),
        };
        match ran {
            Err(Stopped::Upstream) => uploaded.set(Some(false)),
            Err(stopped) => return stopped,
            Ok(()) => {
                uploaded.set(Some(true));
                match source.recv().await {
                    Err(error) => return Stopped::Downstream(BrokenBy::of_lost_client(&error)),
                    Ok(None) => return Stopped::HalfClosed,
                    // The next request, come early.
                    Ok(Some(bytes)) => source.put_back(bytes),
                }
            }
        }
        pending().await
    }
}

/// The client is there no more, and has no response.
const GONE: Ended = Ended::Broken {
    status: 0,
    by: BrokenBy::Client,
};

/// Where a response is on its way, if not passed on whole.
enum Stop {
    Broken(BrokenBy),
    Denied(Denial),
}

/// One try of a request.
pub struct Exchange<'a> {
    pub request: &'a RequestHead,
    pub manner: &'a Manner<'a>,
    /// The client's connection ends after this response, whatever the client wants.
    pub last: bool,
    pub progress: &'a Progress,
}

impl Exchange<'_> {
    /// Carries the request to `up` and the response to `down`, until it is `denied`. `again`: is a response of this head to
    /// be tried again?
    pub async fn run(
        &self,
        down: &mut Conn,
        up: &mut Conn,
        upload: &mut Upload<'_>,
        again: impl Fn(&dyn Answer) -> Option<Failure>,
        mut denied: Pin<&mut impl Future<Output = Denial>>,
    ) -> Ended {
        let untouched = upload.is_untouched() && !upload.is_done() && self.request.expects_continue();
        let (mut down_source, mut down_sink) = down.split();
        let (mut up_source, mut up_sink) = up.split();
        let head = (self.manner.stretch != Stretch::Response).then(|| self.head());
        let continued = Cell::new(!untouched);
        let (uploaded, coming) = (Cell::new(None), Cell::new(false));
        let mut half_closed = false;
        let status;
        let passed = {
            let watched = upload.run_and_watch(head, &mut down_source, &mut up_sink, &continued, &uploaded);
            let mut pump = pin!(watched);
            let found = {
                let mut answer = pin!(async {
                    if let Stretch::Request(_) = self.manner.stretch {
                        up_source.wait().await;
                        coming.set(true);
                    }
                    self.answer(&mut up_source, &mut down_sink, &continued).await
                });
                let is_out = || uploaded.get() == Some(true) && !coming.get() && self.progress.is_replayable.get();
                let mut over = pin!(self.manner.stretch.over(is_out));
                let mut late = pin!(until(self.manner.deadline));
                let mut gone = pin!(until(None));
                loop {
                    tokio::select! {
                        biased;
                        denial = &mut denied => return Ended::Denied { status: 0, denial },
                        stopped = &mut pump, if !half_closed => match stopped {
                            Stopped::BadBody(error) => return Ended::Failed(Fault::BadRequestBody(error)),
                            Stopped::Slow => return Ended::Failed(Fault::SlowRequest),
                            Stopped::HalfClosed => {
                                half_closed = true;
                                gone.set(until(Some(Instant::now() + HALF_CLOSED)));
                            }
                            Stopped::Downstream(by) => return Ended::Broken { status: 0, by },
                            Stopped::Upstream => return GONE,
                        },
                        found = &mut answer => break found,
                        () = &mut over => return Ended::Waiting,
                        () = &mut late => return Ended::Failed(Fault::Timeout),
                        () = &mut gone => return GONE,
                    }
                }
            };
            let response = match found {
                Ok(response) => response,
                Err(Fault::Gone) => return GONE,
                Err(fault) => return Ended::Failed(fault),
            };
            if let Some(failure) = again(&response) {
                return Ended::Refused(failure);
            }
            status = response.status;
            let close =
                self.last || !self.request.keep_alive || response.framing == Framing::UntilClose || !continued.get();
            let mut pass = pin!(self.pass(&response, close, &mut up_source, &mut down_sink));
            let passed = loop {
                tokio::select! {
                    biased;
                    denial = &mut denied => break Err(Stop::Denied(denial)),
                    stopped = &mut pump, if !half_closed => match stopped {
                        Stopped::HalfClosed => half_closed = true,
                        Stopped::Slow => break Err(Stop::Broken(BrokenBy::SlowClient)),
                        Stopped::Downstream(by) => break Err(Stop::Broken(by)),
                        _ => break Err(Stop::Broken(BrokenBy::Client)),
                    },
                    passed = &mut pass => break passed.map_err(Stop::Broken),
                }
            };
            match passed {
                Ok(()) if status == 101 => return Ended::Upgraded,
                Ok(()) => (response.keep_alive, close),
                Err(Stop::Broken(by)) => return Ended::Broken { status, by },
                Err(Stop::Denied(denial)) => return Ended::Denied { status, denial },
            }
        };
        let (keep_alive, close) = passed;
        Ended::Answered {
            status,
            upstream_clean: keep_alive && uploaded.get() == Some(true) && self.request.is_http11,
            downstream_clean: !close && upload.is_done(),
        }
    }

    /// The request's head, to be sent.
    fn head(&self) -> BytesMut {
        let mut head = BytesMut::new();
        self.request.write(&self.manner.edits, &mut head);
        add(&self.progress.sent, head.len());
        head
    }

    /// The final response's head; interim ones are passed on as they come.
    async fn answer(
        &self,
        source: &mut Source<'_>,
        sink: &mut Sink<'_>,
        continued: &Cell<bool>,
    ) -> Result<ResponseHead, Fault> {
        loop {
            let bytes = match source.head(self.manner.timeouts.head).await {
                Ok(bytes) => bytes,
                Err(NoHead::End | NoHead::Broken | NoHead::Late) => return Err(Fault::Reset),
                Err(NoHead::Refused(refused)) => return Err(Fault::BadResponse(refused)),
            };
            add(&self.progress.received, bytes.len());
            let response = ResponseHead::parse(bytes, self.request).map_err(Fault::BadResponse)?;
            if !response.is_interim() {
                return Ok(response);
            }
            continued.set(continued.get() || response.status == 100);
            if self.request.is_http11 {
                let mut out = BytesMut::new();
                let edits = ResponseEdits {
                    fields: None,
                    ..self.response_edits(false)
                };
                response.write(&edits, &mut out);
                sink.send(out.freeze()).await.map_err(|_| Fault::Gone)?;
            }
        }
    }

    fn response_edits(&self, close: bool) -> ResponseEdits<'_> {
        ResponseEdits {
            close,
            from_application: self.manner.from_application,
            fields: self.manner.response,
        }
    }

    /// Passes the response on, its head and the first of its body in one send.
    async fn pass(
        &self,
        response: &ResponseHead,
        close: bool,
        source: &mut Source<'_>,
        sink: &mut Sink<'_>,
    ) -> Result<(), BrokenBy> {
        let mut body = Body::new(response.framing);
        let (mut first, mut large) = (Bytes::new(), Bytes::new());
        if !body.is_done() {
            let bytes = self.take(&mut body, source.buffered(), source);
            let bytes = bytes.map_err(|_| BrokenBy::Upstream)?;
            let place = if bytes.len() <= COALESCE {
                &mut first
            } else {
                &mut large
            };
            *place = bytes;
        }
        let mut out = BytesMut::with_capacity(response.room() + first.len());
        response.write(&self.response_edits(close), &mut out);
        out.extend_from_slice(&first);
        for bytes in [out.freeze(), large] {
            if !bytes.is_empty() {
                sink.send(bytes).await.map_err(|error| BrokenBy::of_client(&error))?;
            }
        }
        while !body.is_done() {
            match source.recv().await {
                Ok(Some(bytes)) => {
                    let bytes = self.take(&mut body, bytes, source).map_err(|_| BrokenBy::Upstream)?;
                    sink.send(bytes).await.map_err(|error| BrokenBy::of_client(&error))?;
                }
                Ok(None) if body.end().is_ok() => break,
                Ok(None) => return Err(BrokenBy::Upstream),
                Err(error) => return Err(BrokenBy::of_upstream(&error)),
            }
        }
        Ok(())
    }

    fn take(&self, body: &mut Body, mut bytes: Bytes, source: &mut Source<'_>) -> Result<Bytes, BodyError> {
        let taken = body.feed(&bytes)?;
        let part = bytes.split_to(taken);
        if !bytes.is_empty() {
            source.put_back(bytes);
        }
        add(&self.progress.received, part.len());
        Ok(part)
    }
}

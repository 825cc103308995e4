//! The one kind of byte stream that relays see: a socket, or a stream of the wire.
//!
//! Law: no buffer is owned here. What the wire received is lent as it came ([`Stream::poll_chunk`]); reads of a socket go
//! into the reader's own buffer, after [`Stream::readable`].

use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use h2::{Reason, RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::wire::{Lease, Link};

/// How long a peer has to end a stream that was ended on this side.
const CLOSE: Duration = Duration::from_secs(5);

/// Tells the other proxy that policy ended the stream: of HTTP/2's reasons (RFC 9113, section 7) the nearest to that.
pub const DENIED: Reason = Reason::INADEQUATE_SECURITY;

/// The same, for a person of the side to whom it was told.
pub const DENIED_THERE: &str = "refused by the other side's policy";

/// A socket or a stream of the wire.
pub enum Stream {
    /// To or from an application.
    Tcp(TcpStream),
    /// To or from another host's proxy.
    Wire(Box<WireStream>),
}

/// One HTTP/2 CONNECT stream (RFC 9113, section 8.5).
pub struct WireStream {
    sender: WireSender,
    receiver: WireReceiver,
    /// Counts the stream on its TLS connection while it lives.
    lease: Lease,
}

/// The half that sends.
pub struct WireSender {
    send: SendStream<Bytes>,
    finished: bool,
}

/// The half that receives.
pub struct WireReceiver {
    receive: RecvStream,
    /// Received and not yet read.
    pending: Bytes,
    ended: bool,
}

impl WireSender {
    /// How much may be sent now, at least 1 and at most `wanted`.
    fn poll_window(&mut self, cx: &mut Context<'_>, wanted: usize) -> Poll<io::Result<usize>> {
        if self.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        self.send.reserve_capacity(wanted);
        loop {
            let capacity = self.send.capacity();
            if capacity > 0 {
                return Poll::Ready(Ok(capacity.min(wanted)));
            }
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
    }

    /// Sends owned bytes without a copy. Waits for window: the bytes are all that is buffered.
    pub async fn write(&mut self, mut data: Bytes) -> io::Result<()> {
        while !data.is_empty() {
            let room = poll_fn(|cx| self.poll_window(cx, data.len())).await?;
            self.send.send_data(data.split_to(room), false).map_err(broken)?;
        }
        Ok(())
    }

    /// Says the end.
    pub fn finish(&mut self) -> io::Result<()> {
        if self.finished {
            return Ok(());
        }
        self.finished = true;
        self.send.send_data(Bytes::new(), true).map_err(broken)
    }
}

impl WireReceiver {
    /// What was received and not read yet, else the next DATA frame; empty at the end of the stream. Whoever takes it
    /// gives the window back with [`WireReceiver::consumed`].
    fn poll_frame(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Bytes>> {
        if !self.pending.is_empty() {
            return Poll::Ready(Ok(std::mem::take(&mut self.pending)));
        }
        while !self.ended {
            match ready!(self.receive.poll_data(cx)) {
                Some(Ok(data)) if data.is_empty() => {}
                Some(Ok(data)) => return Poll::Ready(Ok(data)),
                Some(Err(error)) => return Poll::Ready(Err(broken(error))),
                None => self.ended = true,
            }
        }
        Poll::Ready(Ok(Bytes::new()))
    }

    /// The next bytes, as they came; `None` at the end. What is done with is to be told by [`WireReceiver::consumed`].
    pub async fn read(&mut self) -> io::Result<Option<Bytes>> {
        let data = poll_fn(|cx| self.poll_frame(cx)).await?;
        Ok((!data.is_empty()).then_some(data))
    }

    /// Lets the peer send as much again.
    pub fn consumed(&mut self, bytes: usize) {
        // An error says that the stream is closed: then nobody waits for window.
        let _closed = self.receive.flow_control().release_capacity(bytes);
    }
}

impl WireStream {
    /// Both directions of an accepted CONNECT.
    pub fn new(send: SendStream<Bytes>, receive: RecvStream, lease: Lease) -> Self {
        let sender = WireSender { send, finished: false };
        Self {
            sender,
            receiver: WireReceiver {
                receive,
                pending: Bytes::new(),
                ended: false,
            },
            lease,
        }
    }

    /// Both halves, to be used at the same time.
    pub fn split(&mut self) -> (&mut WireSender, &mut WireReceiver) {
        (&mut self.sender, &mut self.receiver)
    }

    /// Breaks the stream: the peer sees a reset, not an end.
    pub fn reset(&mut self, reason: Reason) {
        self.sender.finished = true;
        self.sender.send.send_reset(reason);
    }

    /// Does its TLS connection take no new streams? Then this one is not to be used again either.
    pub fn is_retired(&self) -> bool {
        self.lease.is_retired()
    }

    /// The TLS connection under it.
    pub fn link(&self) -> Rc<Link> {
        self.lease.link()
    }

    /// Ends an idle stream in order: our end goes out, the peer's is awaited for a while, then nothing is left to reset.
    pub fn close(mut self) {
        if self.sender.finish().is_ok() {
            tokio::task::spawn_local(async move {
                // Whatever came instead of an end, or nothing: the stream is dropped, and h2 resets it.
                let _end = tokio::time::timeout(CLOSE, self.receiver.read()).await;
            });
        }
    }

    /// True while nothing has arrived and nothing ended: an idle stream may be used again.
    pub fn is_idle(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        if self.sender.finished || !self.receiver.pending.is_empty() || self.sender.send.poll_reset(&mut cx).is_ready()
        {
            return false;
        }
        self.receiver.poll_frame(&mut cx).is_pending()
    }
}

impl Stream {
    /// The next received bytes without a copy: `Some` on the wire, `None` where there is a socket to read. Empty: the end.
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Option<Poll<io::Result<Bytes>>> {
        let Self::Wire(wire) = self else { return None };
        let receiver = &mut wire.receiver;
        Some(receiver.poll_frame(cx).map_ok(|data| {
            receiver.consumed(data.len());
            data
        }))
    }

    /// Waits until a read gives something (or the end), without a buffer.
    pub async fn readable(&mut self) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => tcp.readable().await,
            Self::Wire(wire) => {
                let data = poll_fn(|cx| wire.receiver.poll_frame(cx)).await?;
                wire.receiver.pending = data;
                Ok(())
            }
        }
    }

    /// Sends owned bytes, without a copy on the wire. Waits for window: the bytes are all that is buffered.
    pub async fn write_chunk(&mut self, data: Bytes) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => tokio::io::AsyncWriteExt::write_all(tcp, &data).await,
            Self::Wire(wire) => wire.sender.write(data).await,
        }
    }

    /// Breaks the stream so that the other side sees an error (RST), not an end. Returns when it is on its way.
    pub fn abort(self) {
        match self {
            Self::Tcp(tcp) => crate::sockopt::abort(tcp),
            Self::Wire(mut wire) => wire.reset(Reason::CONNECT_ERROR),
        }
    }

    /// Breaks the stream because policy denies it: the other proxy is told so.
    pub fn deny(self) {
        match self {
            Self::Tcp(tcp) => crate::sockopt::abort(tcp),
            Self::Wire(mut wire) => wire.reset(DENIED),
        }
    }

    /// True while the stream can be used for another request: nothing has arrived, nothing ended, as far as is known
    /// without asking the kernel.
    pub fn is_idle(&mut self) -> bool {
        match self {
            Self::Tcp(tcp) => {
                let mut cx = Context::from_waker(std::task::Waker::noop());
                tcp.poll_read_ready(&mut cx).is_pending()
                    || tcp
                        .try_read(&mut [0; 1])
                        .is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock)
            }
            Self::Wire(wire) => wire.is_idle(),
        }
    }
}

/// h2's errors as relays see them: what the peer reset is a reset.
pub fn broken(error: h2::Error) -> io::Error {
    if error.is_io() {
        return error.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    if error.reason() == Some(DENIED) && error.is_remote() {
        return io::Error::new(io::ErrorKind::PermissionDenied, DENIED_THERE);
    }
    let kind = if error.is_reset() {
        io::ErrorKind::ConnectionReset
    } else {
        io::ErrorKind::ConnectionAborted
    };
    io::Error::new(kind, error)
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Self::Wire(wire) => {
                let receiver = &mut wire.receiver;
                let mut data = ready!(receiver.poll_frame(cx))?;
                let taken = data.len().min(buf.remaining());
                buf.put_slice(&data[..taken]);
                data.advance(taken);
                receiver.pending = data;
                receiver.consumed(taken);
                Poll::Ready(Ok(()))
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_write(cx, buf),
            Self::Wire(_) if buf.is_empty() => Poll::Ready(Ok(0)),
            Self::Wire(wire) => {
                let room = ready!(wire.sender.poll_window(cx, buf.len()))?;
                wire.sender
                    .send
                    .send_data(Bytes::copy_from_slice(&buf[..room]), false)
                    .map_err(broken)?;
                Poll::Ready(Ok(room))
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Self::Wire(wire) => Poll::Ready(wire.sender.finish()),
        }
    }
}

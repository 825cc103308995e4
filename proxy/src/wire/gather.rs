//! Turns many small reads and writes of h2 and rustls into few system calls.
//!
//! Read side: rustls asks for 4 KiB at a time, the kernel is asked for [`READ`]. Write side: h2 flushes after every frame;
//! here frames gather until their driver has nothing more to do, and leave as few records in one write.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// Asked of the kernel at once, bytes.
const READ: usize = 64 * 1024;
/// Gathered before it must leave, bytes.
const GATHER: usize = 64 * 1024;
/// So much at once is not gathered but sent.
const LARGE: usize = 16 * 1024;

thread_local! {
    /// The read buffer of the connection that was read last: connections of a worker are read one after the other.
    static SPARE: Cell<BytesMut> = Cell::new(BytesMut::new());
}

/// A socket that is read in large pieces. Holds no buffer while it waits.
pub struct LargeReads {
    tcp: TcpStream,
    buffer: BytesMut,
}

impl LargeReads {
    /// Reads `tcp` in large pieces.
    pub fn new(tcp: TcpStream) -> Self {
        Self {
            tcp,
            buffer: BytesMut::new(),
        }
    }

    /// Ready when there are bytes, or the end.
    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.buffer.is_empty() {
            return Poll::Ready(Ok(()));
        }
        if self.tcp.poll_read_ready(cx)?.is_ready() {
            if self.buffer.capacity() == 0 {
                self.buffer = SPARE.take();
            }
            self.buffer.reserve(READ);
            // Owns nothing but its borrows: what it read is in the buffer, whether it is polled again or not.
            if let Poll::Ready(read) = pin!(self.tcp.read_buf(&mut self.buffer)).poll(cx) {
                return Poll::Ready(read.map(|_| ()));
            }
        }
        if self.buffer.capacity() > 0 {
            SPARE.set(std::mem::take(&mut self.buffer));
        }
        Poll::Pending
    }
}

impl AsyncRead for LargeReads {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.fill(cx))?;
        let now = this.buffer.len().min(into.remaining());
        into.put_slice(&this.buffer[..now]);
        this.buffer.advance(now);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for LargeReads {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().tcp).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().tcp).poll_shutdown(cx)
    }
}

struct Inner<S> {
    below: S,
    gathered: Vec<u8>,
    /// Of `gathered`, what has left.
    sent: usize,
    received: bool,
    broken: Option<io::Error>,
}

impl<S: AsyncWrite + Unpin> Inner<S> {
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sent < self.gathered.len() {
            match ready!(Pin::new(&mut self.below).poll_write(cx, &self.gathered[self.sent..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => self.sent += written,
            }
        }
        self.sent = 0;
        self.gathered.clear();
        Pin::new(&mut self.below).poll_flush(cx)
    }

    /// Sends what has gathered and as much of `buf` as is taken, without a copy in between.
    fn poll_send_with(&mut self, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let left = &self.gathered[self.sent..];
            let before = left.len();
            let both = [IoSlice::new(left), IoSlice::new(buf)];
            let both = if before == 0 { &both[1..] } else { &both[..] };
            let written = ready!(Pin::new(&mut self.below).poll_write_vectored(cx, both))?;
            if written < before {
                self.sent += written;
            } else {
                self.sent = 0;
                self.gathered.clear();
            }
            if written == 0 || written > before {
                return Poll::Ready(Ok(written.saturating_sub(before)));
            }
        }
    }

    fn is_full(&self) -> bool {
        self.gathered.len() >= GATHER
    }
}

/// Gathers what is written until [`Gathering::poll_send`].
pub struct Gathering<S>(Rc<RefCell<Inner<S>>>);

impl<S> Clone for Gathering<S> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Gathering<S> {
    /// Gathers before `below`.
    pub fn new(below: S) -> Self {
        Self(Rc::new(RefCell::new(Inner {
            below,
            gathered: Vec::new(),
            sent: 0,
            received: false,
            broken: None,
        })))
    }

    /// Sends what has gathered. The driver calls it whenever its connection has nothing more to do.
    pub fn poll_send(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.borrow_mut().poll_drain(cx)
    }

    /// Did anything arrive since the last call?
    pub fn take_received(&self) -> bool {
        std::mem::take(&mut self.0.borrow_mut().received)
    }

    /// With what reading ended, as it was said below: h2 keeps of an error only its words.
    pub fn take_broken(&self) -> Option<io::Error> {
        self.0.borrow_mut().broken.take()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        if let Err(error) = ready!(Pin::new(&mut inner.below).poll_read(cx, into)) {
            let told = io::Error::new(error.kind(), error.to_string());
            inner.broken = Some(error);
            return Poll::Ready(Err(told));
        }
        inner.received = true;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let mut inner = self.0.borrow_mut();
        if buf.len() >= LARGE {
            return inner.poll_send_with(cx, buf);
        }
        if inner.is_full() {
            ready!(inner.poll_drain(cx))?;
        }
        inner.gathered.extend_from_slice(buf);
        Poll::Ready(Ok(buf.len()))
    }

    /// Does not send: that is the driver's, in [`Gathering::poll_send`].
    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        if inner.is_full() {
            inner.poll_drain(cx)
        } else {
            Poll::Ready(Ok(()))
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut inner = self.0.borrow_mut();
        ready!(inner.poll_drain(cx))?;
        Pin::new(&mut inner.below).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn the_spare_block_outlives_a_socket_that_had_nothing() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let mut ends = Vec::new();
        for _ in 0..2 {
            let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
            ends.push((
                client.expect("a client"),
                LargeReads::new(accepted.expect("a server").0),
            ));
        }
        let mut cx = Context::from_waker(std::task::Waker::noop());
        let (writer, reader) = &mut ends[0];
        writer.write_all(b"block").await.expect("sent");
        reader.read_exact(&mut [0; 5]).await.expect("there");
        assert!(reader.fill(&mut cx).is_pending(), "what was read is used up");
        for _ in 0..2 {
            // The first call finds out, the second knows.
            assert!(ends[1].1.fill(&mut cx).is_pending(), "nothing came here");
        }
        assert!(SPARE.take().capacity() > 0);
    }
}

//! A stream with what was read of it and not used yet.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::pin;
use std::task::Poll;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hostmesh_proxy_core::http1::{HeadScanner, Refused};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::LINGER;
use crate::stream::{Stream, WireReceiver, WireSender};
use crate::tcp;

/// One connection.
pub struct Conn {
    stream: Stream,
    buffer: Bytes,
    /// Each piece that is sent must be taken within this. An upstream has all the time.
    stall: Option<Duration>,
}

/// The half that receives; bytes that were put back come first.
pub struct Source<'a> {
    reader: Reader<'a>,
    buffer: &'a mut Bytes,
    /// Received bytes whose window the sender gets back when they have been passed on.
    owed: usize,
}

/// The half that sends.
pub struct Sink<'a> {
    writer: Writer<'a>,
    stall: Option<Duration>,
}

enum Writer<'a> {
    Tcp(&'a TcpStream),
    Wire(&'a mut WireSender),
}

enum Reader<'a> {
    Tcp(&'a TcpStream),
    Wire(&'a mut WireReceiver),
}

/// Why there is no head.
#[derive(Debug)]
pub enum NoHead {
    /// The stream ended before a head's first byte.
    End,
    /// It broke or ended within a head.
    Broken,
    /// The head did not come to its end in time.
    Late,
    /// It cannot be read.
    Refused(Refused),
}

impl Conn {
    /// Of which nothing was read.
    pub fn new(stream: Stream) -> Self {
        Self {
            stream,
            buffer: Bytes::new(),
            stall: None,
        }
    }

    /// As a client's: it is not waited for without end.
    pub fn of_client(self, stall: Duration) -> Self {
        Self {
            stall: Some(stall),
            ..self
        }
    }

    /// Both halves, to be used at the same time.
    pub fn split(&mut self) -> (Source<'_>, Sink<'_>) {
        let (reader, writer) = match &mut self.stream {
            Stream::Tcp(tcp) => (Reader::Tcp(tcp), Writer::Tcp(tcp)),
            Stream::Wire(wire) => {
                let (sender, receiver) = wire.split();
                (Reader::Wire(receiver), Writer::Wire(sender))
            }
        };
        let source = Source {
            reader,
            buffer: &mut self.buffer,
            owed: 0,
        };
        let stall = self.stall;
        (source, Sink { writer, stall })
    }

    /// Is it of the wire, on a connection that is to end?
    pub fn is_retired(&self) -> bool {
        matches!(&self.stream, Stream::Wire(wire) if wire.is_retired())
    }

    /// Itself, if it may serve another request: nothing has arrived that nobody asked for, and nothing ended.
    pub fn if_clean(mut self) -> Option<Self> {
        (self.buffer.is_empty() && self.stream.is_idle()).then_some(self)
    }

    /// Waits for the first bytes of a message. `false`: the end.
    pub async fn wait(&mut self) -> io::Result<bool> {
        let (mut source, _) = self.split();
        let Some(bytes) = source.recv().await? else {
            return Ok(false);
        };
        source.put_back(bytes);
        Ok(true)
    }

    /// The first bytes of what comes, which stay to be read; empty at the end.
    pub async fn spoken(&mut self) -> io::Result<Bytes> {
        let bytes = self.recv().await?.unwrap_or_default();
        self.put_back(bytes.clone());
        Ok(bytes)
    }

    /// The next bytes; `None` at the end.
    pub async fn recv(&mut self) -> io::Result<Option<Bytes>> {
        self.split().0.recv().await
    }

    /// What was received and not used yet.
    pub fn buffered(&mut self) -> Bytes {
        self.split().0.buffered()
    }

    /// Gives back what is to be read again.
    pub fn put_back(&mut self, bytes: Bytes) {
        self.split().0.put_back(bytes);
    }

    /// Sends all of it.
    pub async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        self.split().1.send(bytes).await
    }

    /// The stream, and what was read of it and belongs to whoever takes over.
    pub fn into_parts(self) -> (Stream, Bytes) {
        (self.stream, self.buffer)
    }

    /// Is it a socket, of which nothing was read that is not used yet?
    pub fn is_bare(&self) -> bool {
        self.buffer.is_empty() && matches!(self.stream, Stream::Tcp(_))
    }

    /// Ends the connection so that the other side still reads what was sent last: a socket that is closed with unread
    /// bytes is reset, and the reset overtakes (RFC 9112, section 9.6).
    pub async fn linger(mut self) {
        let (mut source, mut sink) = self.split();
        if sink.finish().is_err() {
            return;
        }
        let drain = async { while let Ok(Some(_)) = source.recv().await {} };
        // Whoever goes on sending is cut off.
        let _late = timeout(LINGER, drain).await;
    }

    /// Breaks the connection because policy denies it.
    pub fn deny(self) {
        self.stream.deny();
    }

    /// Breaks the connection: the other side must not take what it has for all.
    pub fn abort(self) {
        self.stream.abort();
    }
}

impl Source<'_> {
    /// The next bytes; `None` at the end. By asking, the caller says that it is done with those before.
    pub async fn recv(&mut self) -> io::Result<Option<Bytes>> {
        if !self.buffer.is_empty() {
            return Ok(Some(std::mem::take(self.buffer)));
        }
        self.settle();
        match &mut self.reader {
            Reader::Tcp(tcp) => tcp::read(tcp).await,
            Reader::Wire(wire) => {
                let data = wire.read().await?;
                self.owed = data.as_ref().map_or(0, Bytes::len);
                Ok(data)
            }
        }
    }

    /// Waits until something has come, which is there for the next to ask, or the end.
    pub async fn wait(&mut self) {
        if let Ok(Some(bytes)) = self.recv().await {
            self.put_back(bytes);
        }
    }

    /// What is there already.
    pub fn buffered(&mut self) -> Bytes {
        std::mem::take(self.buffer)
    }

    /// Gives back what belongs to the next message.
    pub fn put_back(&mut self, bytes: Bytes) {
        *self.buffer = bytes;
    }

    /// The bytes of the next head; it must come to its end within `limit` of its first byte.
    pub async fn head(&mut self, limit: Duration) -> Result<Bytes, NoHead> {
        let mut scanner = HeadScanner::default();
        let Ok(Some(mut bytes)) = self.recv().await else {
            return Err(NoHead::End);
        };
        if let Some(end) = scanner.find(&bytes).map_err(NoHead::Refused)? {
            let head = bytes.split_to(end);
            self.put_back(bytes);
            return Ok(head);
        }
        let rest = self.rest_of_head(&mut scanner, BytesMut::from(bytes));
        timeout(limit, rest).await.unwrap_or(Err(NoHead::Late))
    }

    async fn rest_of_head(&mut self, scanner: &mut HeadScanner, mut gathered: BytesMut) -> Result<Bytes, NoHead> {
        loop {
            let Ok(Some(bytes)) = self.recv().await else {
                return Err(NoHead::Broken);
            };
            gathered.extend_from_slice(&bytes);
            if let Some(end) = scanner.find(&gathered).map_err(NoHead::Refused)? {
                let head = gathered.split_to(end).freeze();
                self.put_back(gathered.freeze());
                return Ok(head);
            }
        }
    }

    fn settle(&mut self) {
        let owed = std::mem::take(&mut self.owed);
        if owed > 0
            && let Reader::Wire(wire) = &mut self.reader
        {
            wire.consumed(owed);
        }
    }
}

impl Drop for Source<'_> {
    fn drop(&mut self) {
        self.settle();
    }
}

impl Sink<'_> {
    /// Sends all of it; waits while the other side does not take it, a client no longer than it may.
    pub async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        let mut sent = pin!(self.writer.send(bytes));
        // Nearly all is taken at once: only who waits needs a clock.
        if let Poll::Ready(sent) = poll_fn(|cx| Poll::Ready(sent.as_mut().poll(cx))).await {
            return sent;
        }
        match self.stall {
            Some(stall) => timeout(stall, sent)
                .await
                .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())),
            None => sent.await,
        }
    }

    /// Says the end.
    pub fn finish(&mut self) -> io::Result<()> {
        match &mut self.writer {
            Writer::Tcp(tcp) => tcp::shut(tcp),
            Writer::Wire(wire) => wire.finish(),
        }
    }
}

impl Writer<'_> {
    async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        match self {
            Self::Tcp(tcp) => tcp::write(tcp, &bytes).await,
            Self::Wire(wire) => wire.write(bytes).await,
        }
    }
}

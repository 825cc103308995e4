//! The connection under HTTP/2: a stream, with what was read of it to find out what is spoken.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use hostmesh_proxy_core::http2::PREFACE;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::timeout;

use crate::http::conn::Conn;
use crate::stream::Stream;

/// Does the client speak HTTP/2? Its first bytes are there; if they leave it open, more is waited for, so long.
pub async fn speaks(down: &mut Conn, limit: Duration) -> bool {
    let (mut source, _) = down.split();
    let mut seen = source.buffered();
    let more = async {
        while seen.len() < PREFACE.len() && PREFACE.starts_with(&seen) {
            let Ok(Some(bytes)) = source.recv().await else { break };
            let mut all = BytesMut::from(&seen[..]);
            all.extend_from_slice(&bytes);
            seen = all.freeze();
        }
    };
    // Who says no more has said what he has to say.
    let _late = timeout(limit, more).await;
    let speaks = seen.starts_with(PREFACE);
    source.put_back(seen);
    speaks
}

/// A stream of which the first bytes were read.
pub struct Early {
    bytes: Bytes,
    stream: Stream,
}

impl Early {
    /// `bytes` come first.
    pub fn new((stream, bytes): (Stream, Bytes)) -> Self {
        Self { bytes, stream }
    }
}

impl AsyncRead for Early {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.bytes.is_empty() {
            return Pin::new(&mut self.stream).poll_read(cx, buf);
        }
        let taken = self.bytes.len().min(buf.remaining());
        buf.put_slice(&self.bytes[..taken]);
        self.bytes.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Early {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

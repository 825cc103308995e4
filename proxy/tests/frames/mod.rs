//! HTTP/2 by hand (RFC 9113): frames as bytes, sound or not, and what comes back.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::client::TlsStream;

use crate::ends::{WEB_SNI, ours, soon, tls};
use crate::hostile::{ANSWER, Door, House};

/// Kinds of frames by their numbers (section 6).
pub const KINDS: [&str; 10] = [
    "DATA",
    "HEADERS",
    "PRIORITY",
    "RST_STREAM",
    "SETTINGS",
    "PUSH_PROMISE",
    "PING",
    "GOAWAY",
    "WINDOW_UPDATE",
    "CONTINUATION",
];
/// Codes of errors by their numbers (section 7).
pub const CODES: [&str; 14] = [
    "NO_ERROR",
    "PROTOCOL_ERROR",
    "INTERNAL_ERROR",
    "FLOW_CONTROL_ERROR",
    "SETTINGS_TIMEOUT",
    "STREAM_CLOSED",
    "FRAME_SIZE_ERROR",
    "REFUSED_STREAM",
    "CANCEL",
    "COMPRESSION_ERROR",
    "CONNECT_ERROR",
    "ENHANCE_YOUR_CALM",
    "INADEQUATE_SECURITY",
    "HTTP_1_1_REQUIRED",
];
pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;
pub const END_HEADERS: u8 = 4;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Nothing more comes from a peer that is silent so long.
const QUIET: Duration = Duration::from_millis(600);

/// One frame, its length as it is.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("small").to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header block (RFC 7541): literals that enter no table.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let literal = |(name, value): &(&str, &str)| {
        let mut bytes = vec![0];
        for text in [name, value] {
            assert!(text.len() < 127, "longer ones need more than a byte");
            bytes.push(text.len() as u8);
            bytes.extend(text.as_bytes());
        }
        bytes
    };
    fields.iter().flat_map(literal).collect()
}

/// A setting's frame.
pub fn setting(number: u16, value: u32) -> Vec<u8> {
    frame(
        SETTINGS,
        0,
        0,
        &[&number.to_be_bytes()[..], &value.to_be_bytes()].concat(),
    )
}

/// What a peer answers to all this.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Heard {
    /// The code of GOAWAY.
    pub goaway: Option<u32>,
    /// The code of RST_STREAM, by stream.
    pub resets: Vec<(u32, u32)>,
    /// Status 200, by stream.
    pub accepted: Vec<u32>,
    /// Another status, by stream.
    pub refused: Vec<u32>,
    /// The connection has ended.
    pub ended: bool,
}

/// What frames say; `ended`: the connection has.
pub fn heard(bytes: &[u8], ended: bool) -> Heard {
    let mut heard = Heard {
        ended,
        ..Heard::default()
    };
    let mut rest = bytes;
    while let Some((head, more)) = rest.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let Some((payload, more)) = more.split_at_checked(length) else {
            break;
        };
        let number = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().expect("four bytes"));
        match head[3] {
            GOAWAY => heard.goaway = Some(number(4)),
            RST_STREAM => heard.resets.push((stream, number(0))),
            // Status 200 is the 8th of HPACK's static table.
            HEADERS if payload.first() == Some(&0x88) => heard.accepted.push(stream),
            HEADERS => heard.refused.push(stream),
            _ => {}
        }
        rest = more;
    }
    heard
}

/// What a sound CONNECT has.
pub fn connect(house: &House) -> Vec<u8> {
    let authority = format!("{WEB_SNI}:{}", house.mesh.ports[0]);
    block(&[(":method", "CONNECT"), (":authority", &authority)])
}

/// A request of HTTP/1.1, as it is carried on a stream.
pub const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n";

/// Another client is served as if nothing had been.
pub async fn serves(house: &House) {
    house.expect(Door::Wire, &[REQUEST.to_vec()]);
    let mut client = house.client(Door::Wire).await;
    client.send(REQUEST).await;
    assert_eq!(soon(client.recv()).await.as_deref(), Some(ANSWER));
    house.expect(Door::Wire, &[]);
}

/// A peer with a sound SVID that speaks as it likes.
pub struct Speaker(TlsStream<TcpStream>);

impl Speaker {
    /// One that has said nothing yet.
    pub async fn silent(house: &House) -> Self {
        let svid = house.mesh.ca.orders();
        Self(tls(&house.mesh, ours(&house.mesh, &svid), WEB_SNI).await.expect("TLS"))
    }

    /// One that has begun as HTTP/2 begins.
    pub async fn new(house: &House) -> Self {
        let mut speaker = Self::silent(house).await;
        speaker.say(&[PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
        speaker
    }

    /// A peer that has hung up hears no more.
    pub async fn say(&mut self, bytes: &[u8]) -> bool {
        self.0.write_all(bytes).await.is_ok() && self.0.flush().await.is_ok()
    }

    /// All that comes until the peer is silent, or hangs up.
    pub async fn hear(&mut self) -> Heard {
        let (mut bytes, mut ended) = (Vec::new(), false);
        let mut piece = vec![0; 64 * 1024];
        while let Ok(read) = timeout(QUIET, self.0.read(&mut piece)).await {
            let Ok(count @ 1..) = read else {
                ended = true;
                break;
            };
            bytes.extend_from_slice(&piece[..count]);
        }
        heard(&bytes, ended)
    }
}

//! Tells by a client's first bytes what is spoken: HTTP/1.1, HTTP/2, TLS, or something that is not known.
//!
//! Law: more bytes never take back what fewer have told, and only what can still become something known is undecided. It
//! proves nothing about an application, which may read HTTP where this does not: so what is carried unread is judged as
//! bytes that may be anything ([`crate::authorize::opaque`]).

use crate::fields::is_token;
use crate::http1::MAX_HEAD;
use crate::http2::PREFACE;

/// No method in use is longer (IANA's registry of methods: 17).
const LONGEST_METHOD: usize = 32;

/// What the first bytes tell.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Opening {
    /// A request of HTTP/1.1 or 1.0: its first line is there.
    Http1,
    /// The preface of HTTP/2 is there.
    Http2,
    /// A record of TLS that carries a handshake (RFC 8446, section 5.1).
    Tls,
    /// None of these.
    Opaque,
    /// More bytes may tell.
    Undecided,
}

/// Reads a client's bytes, all of them from the first.
pub fn read(bytes: &[u8]) -> Opening {
    match bytes {
        [] | [0x16] => Opening::Undecided,
        [0x16, 0x03, ..] => Opening::Tls,
        _ if bytes.starts_with(PREFACE) => Opening::Http2,
        _ if PREFACE.starts_with(bytes) => Opening::Undecided,
        _ => match request_line(bytes) {
            Some(true) => Opening::Http1,
            None if bytes.len() < MAX_HEAD => Opening::Undecided,
            Some(false) | None => Opening::Opaque,
        },
    }
}

/// Does a server begin as one of HTTP/2: with SETTINGS (RFC 9113, sections 3.4 and 6.5)? It need not wait for the client, who
/// does not wait for it either.
pub fn is_http2_server(bytes: &[u8]) -> bool {
    match bytes {
        [0, high, low, 0x04, 0, 0, 0, 0, 0, ..] => u16::from_be_bytes([*high, *low]) % 6 == 0,
        _ => false,
    }
}

/// Is there a request's first line (RFC 9112, section 3; empty lines before it count for nothing)? `None`: not to its end.
/// Its target may be anything: what is wrong with one the reader of requests tells the client.
fn request_line(bytes: &[u8]) -> Option<bool> {
    let mut rest = &bytes[..bytes.len().min(MAX_HEAD)];
    while let Some(after) = rest.strip_prefix(b"\r\n") {
        rest = after;
    }
    if rest == b"\r" {
        return None;
    }
    let method = rest.iter().position(|byte| !is_token(*byte)).unwrap_or(rest.len());
    if method > LONGEST_METHOD {
        return Some(false);
    }
    let target = match &rest[method..] {
        [] => return None,
        [b' ', after @ ..] if method > 0 => after,
        _ => return Some(false),
    };
    let length = target
        .iter()
        .position(|byte| matches!(byte, 0..=b' ' | 0x7f))
        .unwrap_or(target.len());
    let version = match &target[length..] {
        [] => return None,
        [b' ', after @ ..] if length > 0 => after,
        _ => return Some(false),
    };
    let ends: [&[u8]; 4] = [b"HTTP/1.1\r\n", b"HTTP/1.0\r\n", b"HTTP/1.1\n", b"HTTP/1.0\n"];
    if ends.iter().any(|end| version.starts_with(end)) {
        return Some(true);
    }
    let may_become = ends.iter().any(|end| end.starts_with(version));
    (!may_become).then_some(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How few bytes tell it, and what.
    fn told(bytes: &[u8]) -> (usize, Opening) {
        let all = (0..=bytes.len()).map(|length| (length, read(&bytes[..length])));
        let mut decided = all.skip_while(|(_, told)| *told == Opening::Undecided);
        let first = decided.next().unwrap_or((bytes.len(), Opening::Undecided));
        assert!(decided.all(|(_, later)| later == first.1), "taken back: {bytes:?}");
        first
    }

    #[test]
    fn requests_are_known_by_their_first_line() {
        assert_eq!(told(b"GET / HTTP/1.1\r\nHost: a\r\n"), (16, Opening::Http1));
        assert_eq!(told(b"\r\n\r\nGET / HTTP/1.0\n"), (19, Opening::Http1));
        assert_eq!(told(b"CONNECT a:80 HTTP/1.1\r\n"), (23, Opening::Http1));
        assert_eq!(told(b"M-SEARCH * HTTP/1.1\r\n"), (21, Opening::Http1));
        // What is wrong with these the client is told by who reads them.
        assert_eq!(told(b"get \\..\\x HTTP/1.1\r\n"), (20, Opening::Http1));
        assert_eq!(told(PREFACE), (PREFACE.len(), Opening::Http2));
    }

    #[test]
    fn servers_of_http2_begin_with_settings() {
        assert!(is_http2_server(b"\0\0\x06\x04\0\0\0\0\0\0\x03\0\0\0d"));
        assert!(is_http2_server(b"\0\0\0\x04\0\0\0\0\0"));
        for other in [
            &b"\0\0\x06\x04\0\0\0\0"[..], // too little
            b"\0\0\x07\x04\0\0\0\0\0",    // no settings have this length
            b"\0\0\x06\x04\x01\0\0\0\0",  // an acknowledgement of what nobody said
            b"\x4a\0\0\0\x0a8.0.36\0",    // MySQL
            b"SSH-2.0-OpenSSH",
        ] {
            assert!(!is_http2_server(other), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn a_record_of_tls_is_known_by_two_bytes() {
        assert_eq!(told(&[0x16, 0x03, 0x01, 0x02, 0x00]), (2, Opening::Tls));
        assert_eq!(told(&[0x16, 0x02]), (2, Opening::Opaque));
    }

    #[test]
    fn what_is_not_known_is_known_not_to_be_as_soon_as_can_be() {
        for (bytes, length) in [
            (&b"*1\r\n$4\r\nPING\r\n"[..], 3),        // redis
            (b"PING\r\n", 5),                         // the same by hand
            (b"GET key\r\n", 8),                      // the same, or HTTP/0.9
            (b"SET key value\r\n", 9),                // the same
            (b"get key\r\n", 8),                      // memcached
            (b"SSH-2.0-OpenSSH_9.2p1\r\n", 22),       // method-like until its line ends
            (b"\x00\x00\x00\x08\x04\xd2\x16\x2f", 1), // PostgreSQL asks for TLS
            (b"EHLO a.example\r\n", 15),              // SMTP
            (b"PRI * HTTP/2.0\r\n\r\nXX", 19),        // not the preface
            (b"PRI * HTTP/2.0\n", 15),
            (b"GET  / HTTP/1.1\r\n", 5),
            (b"GET /\tHTTP/1.1\r\n", 6),
            (b" GET / HTTP/1.1\r\n", 1),
            (b"\nGET / HTTP/1.1\r\n", 1),
            (b"GET / HTTP/1.2\r\n", 14),
            (b"GET / HTTP/1.1 \r\n", 15),
        ] {
            assert_eq!(told(bytes), (length, Opening::Opaque), "{}", bytes.escape_ascii());
        }
        assert_eq!(told(&[b'A'; 99]), (LONGEST_METHOD + 1, Opening::Opaque));
    }

    #[test]
    fn what_may_become_something_known_is_undecided_and_not_for_ever() {
        for bytes in [
            &b"GET"[..],
            b"PRI * HTTP/2",
            b"\r\n",
            b"\r\n\r",
            b"\x16",
            b"GET / HTTP/1.1\r",
            b"",
        ] {
            assert_eq!(read(bytes), Opening::Undecided, "{}", bytes.escape_ascii());
        }
        let long = [b"GET /", &[b'a'; MAX_HEAD][..], b" HTTP/1.1\r\n"].concat();
        assert_eq!(told(&long), (MAX_HEAD, Opening::Opaque));
        assert_eq!(told(&b"\r\n".repeat(MAX_HEAD)), (MAX_HEAD, Opening::Opaque));
    }
}

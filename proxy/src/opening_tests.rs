//! Both sides of a connection say something, or wait: what is told by it.

use std::net::Ipv4Addr;

use hostmesh_proxy_core::http2::PREFACE;
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection, RootCertStore};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::*;
use crate::stream::Stream;

/// No test waits so long for what comes.
const LONG: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(50);

async fn pair() -> (TcpStream, Conn) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port");
    let address = listener.local_addr().expect("its address");
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (
        client.expect("a client"),
        Conn::new(Stream::Tcp(accepted.expect("a server").0)),
    )
}

/// A ClientHello for this name.
fn hello(name: &str) -> Vec<u8> {
    let config = ClientConfig::builder()
        .with_root_certificates(RootCertStore::empty())
        .with_no_client_auth();
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    let mut client = ClientConnection::new(Arc::new(config), name).expect("a client");
    let mut bytes = Vec::new();
    client.write_tls(&mut bytes).expect("a hello");
    bytes
}

/// What a client that says this, and goes on as long as it is asked for more, has told.
async fn said(pieces: &[&[u8]], protocol: Protocol) -> (Told, Vec<u8>) {
    let ((mut client, mut from), (_server, mut to)) = (pair().await, pair().await);
    let talk = async {
        for piece in pieces {
            client.write_all(piece).await.expect("written");
            tokio::task::yield_now().await;
        }
        pending::<()>().await;
    };
    let seen = tokio::select! {
        seen = watch(&mut from, Some(&mut to), protocol, LONG) => seen.expect("seen"),
        () = talk => unreachable!(),
        () = tokio::time::sleep(LONG) => panic!("nothing was told"),
    };
    (seen.told, from.buffered().to_vec())
}

#[tokio::test]
async fn clients_tell() {
    let mut name = hello("a.example.org");
    let at = name.windows(13).position(|some| some == b"a.example.org");
    name[at.expect("it is there")] = b'A'; // of rustls no client says it so
    let tls = || Told::Tls("a.example.org".into());
    let request = &b"GET / HTTP/1.1\r\n"[..];
    let auto = Protocol::Auto;
    assert_eq!(
        said(&[request], auto).await,
        (Told::Http(Protocol::Http), request.to_vec())
    );
    assert_eq!(said(&[request], Protocol::Tls).await.0, Told::Opaque);
    assert_eq!(said(&[PREFACE], auto).await.0, Told::Http(Protocol::Http2));
    assert_eq!(said(&[b"*1\r\n"], auto).await, (Told::Opaque, b"*1\r\n".to_vec()));
    for protocol in [auto, Protocol::Tls] {
        assert_eq!(said(&[&name], protocol).await, (tls(), name.clone()));
        let pieces: Vec<_> = name.chunks(7).collect();
        let (told, bytes) = said(&pieces, protocol).await;
        assert_eq!((told, &bytes[..]), (tls(), &name[..bytes.len()]));
        assert_eq!(
            said(&[&name[..1], b"\x03\x01\x00\x05nohello"], protocol).await.0,
            Told::Opaque
        );
    }
    assert_eq!(
        said(&[&hello("192.0.2.1")], auto).await.0,
        Told::Tls("".into()),
        "no name"
    );
}

#[tokio::test]
async fn who_speaks_first_is_heard_and_who_waits_for_an_answer_gets_one() {
    let ((mut client, mut from), (mut server, mut to)) = (pair().await, pair().await);
    server.write_all(b"SSH-2.0").await.expect("written");
    let watching = watch(&mut from, Some(&mut to), Protocol::Auto, LONG);
    let seen = timeout(LONG, watching).await.expect("in time").expect("seen");
    assert_eq!((seen.told, seen.sent), (Told::Opaque, 0));
    assert_eq!(&to.buffered()[..], b"SSH-2.0");
    // What could be the beginning of a request reaches the server, who knows better.
    client.write_all(b"GET").await.expect("written");
    let answer = async {
        let mut got = [0; 3];
        server.read_exact(&mut got).await.expect("read");
        server.write_all(b"got").await.expect("written");
        got
    };
    let watching = watch(&mut from, Some(&mut to), Protocol::Auto, LONG);
    let (seen, got) = timeout(LONG, async { tokio::join!(watching, answer) })
        .await
        .expect("in time");
    let seen = seen.expect("seen");
    assert_eq!((seen.told, seen.sent, &got), (Told::Opaque, 3, b"GET"));
    assert_eq!((&from.buffered()[..], &to.buffered()[..]), (&b"GET"[..], &b"got"[..]));
}

#[tokio::test]
async fn what_has_begun_is_waited_for_no_longer_than_it_may() {
    let hello = hello("a.example.org");
    for (begun, with_server) in [(&hello[..20], true), (&hello[..20], false), (b"GET / HT", false)] {
        let ((mut client, mut from), (_server, mut to)) = (pair().await, pair().await);
        client.write_all(begun).await.expect("written");
        let watching = watch(&mut from, with_server.then_some(&mut to), Protocol::Auto, SHORT);
        let seen = timeout(LONG, watching).await.expect("in time").expect("seen");
        assert_eq!((seen.told, &from.buffered()[..]), (Told::Opaque, begun));
    }
    // Nobody who says nothing is cut off, nor who may yet be answered.
    for begun in [&b""[..], b"GET"] {
        let ((mut client, mut from), (_server, mut to)) = (pair().await, pair().await);
        client.write_all(begun).await.expect("written");
        let watching = watch(&mut from, Some(&mut to), Protocol::Auto, SHORT);
        assert!(timeout(SHORT * 4, watching).await.is_err(), "{begun:?}");
    }
}

#[tokio::test]
async fn a_server_of_http2_may_speak_first() {
    const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";
    let ((mut client, mut from), (mut server, mut to)) = (pair().await, pair().await);
    server.write_all(SETTINGS).await.expect("written");
    let watching = watch(&mut from, Some(&mut to), Protocol::Auto, LONG);
    let speak = async {
        tokio::time::sleep(SHORT).await;
        client.write_all(PREFACE).await.expect("written");
    };
    let (seen, ()) = timeout(LONG, async { tokio::join!(watching, speak) })
        .await
        .expect("in time");
    assert_eq!(seen.expect("seen").told, Told::Http(Protocol::Http2));
    assert_eq!(&to.buffered()[..], SETTINGS);
    // Whoever begins so by chance is not waited with for ever.
    server.write_all(SETTINGS).await.expect("written");
    let (_client, mut from) = pair().await;
    let watching = watch(&mut from, Some(&mut to), Protocol::Auto, SHORT);
    let seen = timeout(LONG, watching).await.expect("in time").expect("seen");
    assert_eq!((seen.told, &to.buffered()[..]), (Told::Opaque, SETTINGS));
}

#[tokio::test]
async fn an_end_is_an_end() {
    let ((client, mut from), (_server, mut to)) = (pair().await, pair().await);
    drop(client);
    let seen = watch(&mut from, Some(&mut to), Protocol::Auto, LONG)
        .await
        .expect("seen");
    assert_eq!((seen.told, seen.sent), (Told::Opaque, 0));
}

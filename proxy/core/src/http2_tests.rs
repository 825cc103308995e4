//! From one version of HTTP to the other: what is refused, what stays what it was.

use http::Request as HttpRequest;

use super::*;

fn parts(method: &str, uri: &str, fields: &[(&str, &str)]) -> request::Parts {
    let mut request = HttpRequest::builder().method(method).uri(uri);
    for (name, value) in fields {
        request = request.header(*name, *value);
    }
    request.body(()).expect("a request").into_parts().0
}

fn check(method: &str, uri: &str, fields: &[(&str, &str)]) -> Result<Head, Refused> {
    Head::check(parts(method, uri, fields))
}

fn written(head: &RequestHead) -> String {
    let mut out = BytesMut::new();
    head.write(&RequestEdits::default(), &mut out);
    String::from_utf8(out.to_vec()).expect("text")
}

#[test]
fn what_tells_of_two_hosts_is_refused() {
    assert!(check("GET", "http://web/", &[]).is_ok());
    assert!(check("GET", "/", &[("host", "web")]).is_ok());
    assert!(check("GET", "http://web/", &[("host", "WEB")]).is_ok());
    let refused = [
        check("GET", "http://web/", &[("host", "other")]),
        check("GET", "http://web/", &[("host", "web"), ("host", "web")]),
        check("GET", "/", &[]),
        check("GET", "http://user@web/", &[]),
        check("GET", "/", &[("host", "web, other")]),
        check("GET", "/", &[("host", "web/x")]),
    ];
    for result in refused {
        assert_eq!(result.map(drop), Err(Refused::Host));
    }
}

#[test]
fn what_http1_could_say_in_two_ways_is_refused() {
    for (fields, refused) in [
        (
            &[("content-length", "1"), ("content-length", "1")][..],
            Refused::ContentLength,
        ),
        (&[("transfer-encoding", "chunked")], Refused::TransferEncoding),
    ] {
        assert_eq!(check("POST", "http://web/", fields).map(drop), Err(refused));
    }
    assert_eq!(check("CONNECT", "web:80", &[]).map(drop), Err(Refused::Connect));
    for length in ["+1", "1, 1", "0x1", "-1", ""] {
        let head = check("POST", "http://web/", &[("content-length", length)]).expect("HTTP/2 takes it");
        assert_eq!(
            head.to_http1(false).map(drop),
            Err(Refused::ContentLength),
            "{length:?}"
        );
    }
}

#[test]
fn a_request_keeps_its_meaning_in_http1() {
    let fields = [
        ("cookie", "a=1"),
        ("x-a", "1"),
        ("te", "trailers"),
        ("cookie", "b=2"),
        ("x-hostmesh-peer", "me"),
    ];
    let head = check("POST", "https://web:81/a%2fb?c=d", &fields).expect("a head");
    let chunked = head.to_http1(false).expect("a head");
    assert_eq!(chunked.framing, Framing::Chunked);
    assert_eq!(
        written(&chunked),
        "POST /a%2fb?c=d HTTP/1.1\r\nhost: web:81\r\nx-a: 1\r\ncookie: a=1; b=2\r\ntransfer-encoding: chunked\r\n\r\n"
    );
    let empty = head.to_http1(true).expect("a head");
    assert!(written(&empty).ends_with("content-length: 0\r\n\r\n"));
    let get = check("GET", "http://web/", &[("host", "web")])
        .expect("a head")
        .to_http1(true)
        .expect("a head");
    assert_eq!(written(&get), "GET / HTTP/1.1\r\nhost: web\r\n\r\n");
}

#[test]
fn fields_of_one_hop_do_not_travel() {
    let text = "POST /a HTTP/1.1\r\nHost: web\r\nConnection: x-drop, keep-alive\r\nX-Drop: 1\r\nKeep-Alive: 5\r\n\
                TE: gzip\r\nX_Hostmesh_Peer: me\r\nTransfer-Encoding: chunked\r\nX-Keep: 2\r\n\r\n";
    let head = RequestHead::parse(Bytes::from(text)).expect("a head");
    let edits = RequestEdits {
        peer: Some("spiffe://mesh.local/unit/orders"),
        ..RequestEdits::default()
    };
    let request = request_of(&head, &edits).expect("a request");
    assert_eq!(request.uri(), "http://web/a");
    let mut names: Vec<_> = request.headers().keys().map(HeaderName::as_str).collect();
    names.sort_unstable();
    assert_eq!(names, ["te", "x-hostmesh-peer", "x-keep"]);
    assert_eq!(request.headers()["x-hostmesh-peer"], "spiffe://mesh.local/unit/orders");
}

#[test]
fn fields_that_only_tokens_say_are_not_the_client_s() {
    let text = "GET /a HTTP/1.1\r\nHost: web\r\nX-User: root\r\nx_user: root\r\nX-Keep: 2\r\n\r\n";
    let head = RequestHead::parse(Bytes::from(text)).expect("a head");
    let edits = RequestEdits {
        withheld: &["x-user".into(), "x-role".into()],
        stated: &[("x-user".into(), "ann".into())],
        ..RequestEdits::default()
    };
    let same = check(
        "GET",
        "http://web/a",
        &[("x_user", "root"), ("x-role", "root"), ("x-keep", "2")],
    )
    .expect("a head");
    for request in [request_of(&head, &edits), same.to_http2(&edits)] {
        let mut fields = request.expect("a request").into_parts().0.headers;
        fields.remove("te");
        assert_eq!(
            (fields.len(), &fields["x-user"], &fields["x-keep"]),
            (2, &HeaderValue::from_static("ann"), &HeaderValue::from_static("2"))
        );
    }
    let mut out = BytesMut::new();
    head.write(&edits, &mut out);
    assert_eq!(out, "GET /a HTTP/1.1\r\nHost: web\r\nX-Keep: 2\r\nx-user: ann\r\n\r\n");
}

#[test]
fn a_response_keeps_its_meaning_in_both_directions() {
    let get = RequestHead::parse(Bytes::from_static(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")).expect("a head");
    let text = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\nX-Hostmesh-Error: forged\r\nX-A: 1\r\n\r\n";
    let head = ResponseHead::parse(Bytes::from(text), &get).expect("a head");
    let response = response_of(&head, true).expect("a response");
    assert_eq!(response.headers().keys().collect::<Vec<_>>(), ["x-a"]);
    let (parts, ()) = response.into_parts();
    for (is_empty, framing) in [(false, Framing::Chunked), (true, Framing::Empty)] {
        assert_eq!(
            response_to_http1(&parts, &get, is_empty).expect("a head").framing,
            framing
        );
    }
    let head = RequestHead::parse(Bytes::from_static(b"HEAD / HTTP/1.1\r\nHost: web\r\n\r\n")).expect("a head");
    assert_eq!(
        response_to_http1(&parts, &head, true).expect("a head").framing,
        Framing::Empty
    );
    let old = RequestHead::parse(Bytes::from_static(b"GET / HTTP/1.0\r\n\r\n")).expect("a head");
    assert_eq!(
        response_to_http1(&parts, &old, false).expect("a head").framing,
        Framing::UntilClose
    );
}

#[test]
fn trailers_that_could_be_taken_for_the_head_stay_behind() {
    let mut fields = HeaderMap::new();
    for name in [
        "grpc-status",
        "authorization",
        "x-hostmesh-peer",
        "content-length",
        "x-end",
    ] {
        fields.insert(name, HeaderValue::from_static("0"));
    }
    strip_trailers(&mut fields);
    assert_eq!(last_chunk(&fields), "0\r\ngrpc-status: 0\r\nx-end: 0\r\n\r\n");
    assert_eq!(trailers_of(b"x-end: 1\r\n\r\n").expect("trailers")["x-end"], "1");
}

mod random {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever HTTP/2 can carry is refused, or read by HTTP/1.1 as the same method, target, host and fields.
        #[test]
        fn nothing_is_more_in_http1(
            method in "[!-~]{1,8}",
            target in "/[!-~]{0,24}",
            fields in prop::collection::vec(("[a-z_-]{1,12}", prop::collection::vec(any::<u8>(), 0..12)), 0..6),
            is_empty in any::<bool>(),
        ) {
            let Ok(uri) = format!("http://web{target}").parse::<Uri>() else { return Ok(()) };
            let Ok(method) = Method::from_bytes(method.as_bytes()) else { return Ok(()) };
            let mut parts = HttpRequest::new(()).into_parts().0;
            (parts.method, parts.uri) = (method.clone(), uri.clone());
            for (name, value) in &fields {
                if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_bytes(value)) {
                    parts.headers.append(name, value);
                }
            }
            let sent = parts.headers.clone();
            let Ok(head) = Head::check(parts) else { return Ok(()) };
            let Ok(read) = head.to_http1(is_empty) else { return Ok(()) };
            prop_assert_eq!(read.method(), method.as_str());
            prop_assert_eq!(read.target(), uri.path_and_query().map_or("/", PathAndQuery::as_str));
            prop_assert_eq!(read.path(), head.path());
            prop_assert_eq!(read.host(), Some("web"));
            if is_empty && !sent.contains_key(CONTENT_LENGTH) {
                prop_assert_eq!(read.framing, Framing::Empty);
            }
            for (name, value) in read.end_to_end() {
                let name = std::str::from_utf8(name).expect("a name");
                let known = ["host", "content-length", "cookie"].contains(&name)
                    || sent.get_all(name).iter().any(|had| had.as_bytes().trim_ascii() == value.trim_ascii());
                prop_assert!(known, "{name} came from nowhere");
            }
        }
    }
}

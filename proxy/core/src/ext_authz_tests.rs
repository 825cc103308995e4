//! What a gatekeeper is asked, and what is made of its answers.

use proptest::prelude::*;

use super::messages::{HeaderValue, HttpStatus, QueryParameter, Status};
use super::*;
use crate::authorize::Token;
use crate::config::Config;
use crate::http1::RequestHead;

fn unit() -> std::sync::Arc<Unit> {
    let text = include_str!("../../../tests/vectors/snapshot/h1.json");
    let mut snapshot: crate::snapshot::Snapshot = serde_json::from_str(text).expect("the vector");
    snapshot.units[0].jwt = vec![crate::snapshot::TokenIssuer {
        rule: "nginx.service.toml:9".into(),
        issuer: "https://id.example.org".into(),
        audience: vec!["nginx".into()],
        keys: Vec::new(),
        token: "header:authorization".into(),
        forward: true,
        leeway_ms: 0,
        headers: vec![("x-user".into(), "sub".into())],
    }];
    Config::build(snapshot).expect("a config").units[0].clone()
}

fn asked(text: &str, query: &str, stated: &[(Box<str>, Box<str>)]) -> (AttributeContext, HttpRequest) {
    let head = RequestHead::parse(text.to_owned().into()).expect("a head");
    let unit = unit();
    let asking = Asking {
        request: Request {
            method: head.method(),
            path: head.path(),
            headers: head.headers(),
            token: Token::None,
        },
        query,
        caller: Caller::Identity("spiffe://mesh.local/unit/orders"),
        client: [198, 18, 0, 2].into(),
        unit: &unit,
        port: 80,
        stated,
        time: UNIX_EPOCH + std::time::Duration::from_millis(1_500),
    };
    let request = CheckRequest::decode(&*check_request(&asking)).expect("what was written");
    let attributes = request.attributes.expect("attributes");
    let http = attributes.request.clone().expect("a request").http.expect("of HTTP");
    (attributes, http)
}

#[test]
fn the_question_is_the_request_as_the_application_would_get_it() {
    let text = "POST /a/b?c=1 HTTP/1.1\r\nHost: shop\r\nX-A: 1\r\nx-a: 2\r\nCookie: a=1\r\ncookie: b=2\r\nX_User: root\r\n\
                x-hostmesh-peer: spiffe://x\r\nX-Forwarded-Client-Cert: By=x\r\nContent-Length: 7\r\nx-request-id: r7\r\n\
                Connection: close, Authorization\r\nAuthorization: Basic bWU6bWU=\r\nTE: trailers\r\n\r\n";
    let (attributes, http) = asked(text, "c=1", &[("x-user".into(), "kim".into())]);
    let headers = [
        (":authority", "shop"),
        (":method", "POST"),
        (":path", "/a/b?c=1"),
        (":scheme", "http"),
        ("host", "shop"),
        ("x-a", "1,2"),
        ("cookie", "a=1; b=2"),
        ("content-length", "7"),
        ("x-request-id", "r7"),
        ("x-user", "kim"),
    ];
    let expected: HashMap<_, _> = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    assert_eq!(
        http.headers, expected,
        "what is withheld from the application is withheld here"
    );
    let told = (
        &*http.method,
        &*http.path,
        &*http.host,
        &*http.scheme,
        http.size,
        &*http.id,
    );
    assert_eq!(told, ("POST", "/a/b?c=1", "shop", "http", 7, "r7"));
    let (source, destination) = (attributes.source.expect("who"), attributes.destination.expect("whom"));
    assert_eq!(source.principal, "spiffe://mesh.local/unit/orders");
    let address = |peer: Peer| peer.address.expect("an address").socket_address.expect("of IP");
    assert_eq!(address(source).address, "198.18.0.2");
    let called = (&*destination.principal, &*destination.service);
    assert_eq!(called, ("spiffe://mesh.local/unit/nginx", "nginx"));
    assert_eq!(address(destination).port, 80);
    let time = attributes.request.expect("a request").time.expect("a time");
    assert_eq!((time.seconds, time.nanos), (1, 500_000_000));
}

#[test]
fn without_a_length_the_size_is_not_known() {
    assert_eq!(asked("GET / HTTP/1.1\r\nHost: a\r\n\r\n", "", &[]).1.size, -1);
}

fn option(name: &str, value: &str, append: Option<bool>) -> HeaderValueOption {
    HeaderValueOption {
        header: Some(HeaderValue {
            key: name.into(),
            value: value.into(),
            raw_value: Vec::new(),
        }),
        append,
        append_action: 0,
    }
}

fn says(code: i32, message: &str, http_response: Option<HttpResponse>) -> Result<Answer, NoAnswer> {
    let status = Some(Status {
        code,
        message: message.into(),
    });
    answer(&CheckResponse { status, http_response }.encode_to_vec())
}

fn ok(change: impl FnOnce(&mut OkHttpResponse)) -> Result<Answer, NoAnswer> {
    let mut ok = OkHttpResponse::default();
    change(&mut ok);
    says(0, "", Some(HttpResponse::Ok(ok)))
}

fn denied(change: impl FnOnce(&mut DeniedHttpResponse)) -> Result<Answer, NoAnswer> {
    let mut denied = DeniedHttpResponse::default();
    change(&mut denied);
    says(7, "no", Some(HttpResponse::Denied(denied)))
}

fn pair_of(name: &str, value: &str) -> (Box<str>, Box<str>) {
    (name.into(), value.into())
}

#[test]
fn a_yes_and_what_it_changes() {
    assert_eq!(
        answer(b""),
        Ok(Answer::Pass(Edits::default())),
        "as the convention has it"
    );
    assert_eq!(says(0, "", None), Ok(Answer::Pass(Edits::default())));
    let raw = HeaderValueOption {
        header: Some(HeaderValue {
            key: "x-raw".into(),
            value: String::new(),
            raw_value: b"bytes".to_vec(),
        }),
        append: None,
        append_action: 2,
    };
    let answered = ok(|ok| {
        ok.headers = vec![option("X-Set", "1", None), option("x-add", "2", Some(true)), raw];
        ok.headers.push(option("x-emptied", "", Some(false)));
        ok.headers_to_remove = vec!["Authorization".into(), "host".into(), ":path".into()];
        ok.response_headers_to_add = vec![option("x-seen", "by it", None)];
    });
    let expected = Edits {
        request: FieldEdits {
            set: vec![pair_of("x-set", "1"), pair_of("x-raw", "bytes")],
            add: vec![pair_of("x-add", "2")],
            remove: vec!["x-emptied".into(), "authorization".into()],
        },
        response: FieldEdits {
            set: vec![pair_of("x-seen", "by it")],
            ..FieldEdits::default()
        },
    };
    assert_eq!(answered, Ok(Answer::Pass(expected)));
}

#[test]
fn a_no_and_what_it_says() {
    let refusal = |status, fields, body: &str| {
        Ok(Answer::Refuse(Refusal {
            status,
            fields,
            body: body.into(),
            why: "no".into(),
        }))
    };
    assert_eq!(says(7, "no", None), refusal(403, Vec::new(), ""));
    let yes_beside_it = Some(HttpResponse::Ok(OkHttpResponse::default()));
    assert_eq!(says(16, "no", yes_beside_it), refusal(403, Vec::new(), ""));
    let answered = denied(|denied| {
        denied.status = Some(HttpStatus { code: 302 });
        denied.headers = vec![option("Location", "https://id.example.org/", None)];
        denied.body = "log in\n".into();
    });
    assert_eq!(
        answered,
        refusal(302, vec![pair_of("location", "https://id.example.org/")], "log in\n")
    );
}

#[test]
fn what_is_not_done_here_is_no_answer() {
    assert!(matches!(answer(b"\xff"), Err(NoAnswer::Unreadable(_))));
    let field = |name: &str| Err(NoAnswer::Field(name.into()));
    for name in [
        "Host",
        "content-length",
        "transfer-encoding",
        "x-hostmesh-peer",
        "traceparent",
        "a b",
        "",
        ":path",
    ] {
        assert_eq!(ok(|ok| ok.headers = vec![option(name, "x", None)]), field(name));
        assert_eq!(
            ok(|ok| ok.response_headers_to_add = vec![option(name, "x", None)]),
            field(name)
        );
        assert_eq!(
            denied(|denied| denied.headers = vec![option(name, "x", None)]),
            field(name)
        );
    }
    assert_eq!(ok(|ok| ok.headers_to_remove = vec!["te".into()]), field("te"));
    for value in ["a\r\nb: c", "a\0", " a", "ä"] {
        let bad = ok(|ok| ok.headers = vec![option("x-a", value, Some(true))]);
        assert_eq!(bad, Err(NoAnswer::Value("x-a".into())), "{value:?}");
    }
    assert_eq!(
        ok(|ok| ok.query_parameters_to_set = vec![QueryParameter {}]),
        Err(NoAnswer::Query)
    );
    assert_eq!(
        ok(|ok| ok.query_parameters_to_remove = vec!["a".into()]),
        Err(NoAnswer::Query)
    );
    for code in [100, 199, 600, -1] {
        let status = Some(HttpStatus { code });
        assert_eq!(denied(|denied| denied.status = status), Err(NoAnswer::Status(code)));
    }
    for append_action in [1, 3, 9] {
        let conditional = HeaderValueOption {
            append_action,
            ..option("x-a", "1", None)
        };
        assert_eq!(
            ok(|ok| ok.headers = vec![conditional]),
            Err(NoAnswer::Condition("x-a".into()))
        );
    }
    let both = Some(HttpResponse::Denied(DeniedHttpResponse::default()));
    assert_eq!(says(0, "", both), Err(NoAnswer::Both));
}

proptest! {
    /// Whatever comes, what is made of it can be written into a head.
    #[test]
    fn no_answer_breaks_a_head(bytes in prop::collection::vec(any::<u8>(), 0..256)) {
        let fields = |fields: &FieldEdits| fields.puts().all(|(name, value)| is_editable(name) && is_value(value));
        match answer(&bytes) {
            Ok(Answer::Pass(edits)) => prop_assert!(fields(&edits.request) && fields(&edits.response)),
            Ok(Answer::Refuse(refusal)) => prop_assert!((200..600).contains(&refusal.status)),
            Err(_) => {}
        }
    }

    /// The same of messages that are well formed.
    #[test]
    fn no_header_breaks_a_head(name in "\\PC{0,12}", value in "(?s).{0,12}", append in any::<Option<bool>>()) {
        if let Ok(Answer::Pass(edits)) = ok(|ok| ok.headers = vec![option(&name, &value, append)]) {
            let written = edits.request.puts().all(|(name, value)| is_editable(name) && is_value(value));
            prop_assert!(written && edits.request.remove.iter().all(|name| is_editable(name)));
        }
    }
}

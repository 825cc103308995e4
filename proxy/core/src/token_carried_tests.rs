//! Where tokens stand in requests, and what applications get of them.

use serde_json::json;

use super::super::*;
use super::{believed, claims, doubt, issuer, issuers, key, token};

struct Lines(Vec<(&'static str, String)>);

impl Headers for Lines {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        let lines = self.0.iter().filter(|(key, _)| *key == name);
        lines.for_each(|(_, value)| see(value.as_bytes()));
    }

    fn all(&self, see: &mut dyn FnMut(&[u8], &[u8])) {
        let lines = self.0.iter();
        lines.for_each(|(key, value)| see(key.as_bytes(), value.as_bytes()));
    }
}

#[test]
fn where_the_token_stands() {
    let at = |place: &str| {
        let mut issuer = issuer(vec![]);
        issuer.token = place.into();
        issuers(vec![issuer])
    };
    let find = |place: &str, lines: &[(&'static str, &str)]| {
        let lines = Lines(lines.iter().map(|(name, value)| (*name, (*value).to_owned())).collect());
        at(place)
            .find(&lines)
            .map(|found| found.map(|found| found.token.to_string()))
    };
    let is = |token: &str| Some(Ok(token.to_owned()));
    let bearer = "header:authorization";
    assert_eq!(find(bearer, &[]), None);
    assert_eq!(find(bearer, &[("authorization", "Bearer t")]), is("t"));
    assert_eq!(find(bearer, &[("authorization", "bEARER  t ")]), is("t"));
    assert_eq!(
        find(bearer, &[("authorization", "Basic dDp0")]),
        None,
        "somebody else's business"
    );
    assert_eq!(find(bearer, &[("authorization", "Bearer")]), None);
    let two = [("authorization", "Bearer t"), ("authorization", "Bearer u")];
    assert_eq!(find(bearer, &two), Some(Err(Doubt::Malformed)));
    assert_eq!(find("header:X-Token", &[("x-token", "t")]), is("t"));
    assert_eq!(find("cookie:sid", &[("cookie", "a=b; sid=t; xsid=u")]), is("t"));
    assert_eq!(find("cookie:sid", &[("cookie", "xsid=u; sid2=t")]), None);
    assert_eq!(
        find("cookie:sid", &[("cookie", "sid=t; sid=u")]),
        Some(Err(Doubt::Malformed))
    );
}

#[test]
fn a_token_counts_where_its_issuer_wants_it_only() {
    let mut other = issuer(vec![key("k", "ES256")]);
    (other.issuer, other.token, other.forward) = ("https://other.example".into(), "header:x-token".into(), false);
    let issuers = issuers(vec![issuer(vec![key("k", "ES256")]), other]);
    assert_eq!(
        issuers.withheld,
        [
            "x-user".into(),
            "x-roles".into(),
            "x-token".into(),
            "x-user".into(),
            "x-roles".into()
        ]
    );
    let header = json!({"alg": "ES256", "kid": "k"});
    assert!(believed(&issuers, &token(&header, &claims(), "ES256")).is_ok());
    let mut elsewhere = claims();
    elsewhere["iss"] = json!("https://other.example");
    assert_eq!(doubt(&issuers, &token(&header, &elsewhere, "ES256")), Doubt::Issuer);
}

#[test]
fn the_application_gets_what_a_header_can_hold() {
    let issuers = issuers(vec![issuer(vec![key("k", "ES256")])]);
    let headers = |sub: Value| {
        let mut claims = claims();
        claims["sub"] = sub;
        claims["realm"] = json!({"roles": ["a", 7, true]});
        let believed = believed(&issuers, &token(&json!({"alg": "ES256", "kid": "k"}), &claims, "ES256"));
        let believed = believed.expect("believed");
        let text = believed.headers.iter().map(|(name, value)| format!("{name}: {value}"));
        (text.collect::<Vec<_>>().join("; "), believed.unwritten.len())
    };
    assert_eq!(headers(json!("ann")), ("x-user: ann; x-roles: a,7,true".into(), 0));
    assert_eq!(headers(json!(7.5)).0, "x-user: 7.5; x-roles: a,7,true");
    assert_eq!(
        headers(Value::Null),
        ("x-roles: a,7,true".into(), 0),
        "said nothing: nothing is missing"
    );
    for unsafe_ in [
        "a\r\nx-admin: 1",
        "a\n",
        "ä",
        "a\u{0}",
        " a",
        "a ",
        "",
        "a\u{7f}",
        "a\tb",
    ] {
        assert_eq!(headers(json!(unsafe_)), ("x-roles: a,7,true".into(), 1), "{unsafe_:?}");
    }
    for unsafe_ in [
        json!({"a": 1}),
        json!(["a,b"]),
        json!([["a"]]),
        json!([]),
        json!("a".repeat(MAX_HEADER + 1)),
    ] {
        assert_eq!(headers(unsafe_).1, 1);
    }
}

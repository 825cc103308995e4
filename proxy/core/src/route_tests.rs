//! Held to the same table as `hostmesh/policy/route_choice.py`: `tests/vectors/routes.json`.

use serde::Deserialize;

use super::*;
use crate::config::Config;
use crate::snapshot;

#[derive(Deserialize)]
struct Vectors {
    routes: std::collections::HashMap<String, Vec<snapshot::Route>>,
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    routes: String,
    method: String,
    target: String,
    #[serde(default)]
    headers: Vec<(String, String)>,
    source: Option<IpAddr>,
    #[serde(default)]
    random: Vec<u64>,
    expect: Expect,
}

/// What is not said is not there.
#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Expect {
    then: String,
    route: String,
    delay_ms: u128,
    status: u16,
    location: String,
    service: String,
    target: String,
    mirrored: bool,
}

struct Listed<'a>(&'a [(String, String)]);

impl Headers for Listed<'_> {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        let fits = |(key, _): &&(String, String)| key == name;
        self.0.iter().filter(fits).for_each(|(_, value)| see(value.as_bytes()));
    }

    fn all(&self, see: &mut dyn FnMut(&[u8], &[u8])) {
        let fields = self.0.iter();
        fields.for_each(|(key, value)| see(key.as_bytes(), value.as_bytes()));
    }
}

fn told(choice: Choice<'_>) -> Expect {
    let taken = match choice {
        Choice::Service => {
            return Expect {
                then: "service".into(),
                ..Expect::default()
            };
        }
        Choice::BadPath(route) => {
            return Expect {
                then: "bad-path".into(),
                route: route.name.to_string(),
                ..Expect::default()
            };
        }
        Choice::Route(taken) => taken,
    };
    let base = Expect {
        route: taken.route.name.to_string(),
        delay_ms: taken.delay.unwrap_or_default().as_millis(),
        ..Expect::default()
    };
    match taken.then {
        Then::Abort(status) => Expect {
            then: "abort".into(),
            status,
            ..base
        },
        Then::Redirect { status, location } => Expect {
            then: "redirect".into(),
            status,
            location,
            ..base
        },
        Then::Respond(respond) => Expect {
            then: "respond".into(),
            status: respond.status,
            ..base
        },
        Then::Forward {
            service,
            target,
            mirrored,
        } => Expect {
            then: "forward".into(),
            service: service.map(|service| service.to_string()).unwrap_or_default(),
            target: target.unwrap_or_default(),
            mirrored,
            ..base
        },
    }
}

#[test]
fn vectors() {
    let text = include_str!("../../../tests/vectors/routes.json");
    let vectors: Vectors = serde_json::from_str(text).expect("the vectors");
    for case in &vectors.cases {
        let routes = Config::routes(&vectors.routes[&case.routes]).expect("sound routes");
        let view = View {
            request: Request {
                method: &case.method,
                path: path::of_target(&case.target),
                headers: &Listed(&case.headers),
                token: crate::authorize::Token::None,
            },
            query: case.target.split_once('?').map_or("", |(_, query)| query),
            source: case.source.unwrap_or([127, 0, 0, 1].into()),
        };
        let mut random = case.random.iter();
        let choice = choose(&routes, &view, || *random.next().expect("no more is left to chance"));
        assert_eq!(told(choice), case.expect, "{}", case.name);
        assert_eq!(random.next(), None, "{}: drawn", case.name);
    }
}

#[test]
fn what_no_policy_could_say_is_refused() {
    let sound = r#"{"name": "r", "rule": "f:1", "match": {"path": "/a/{id}"}, "to": [{"service": "b", "weight": 1}]}"#;
    let build = |text: &str| Config::routes(&[serde_json::from_str(text).expect("a route")]);
    assert!(build(sound).is_ok());
    for (part, by) in [
        (r#""weight": 1"#, r#""weight": 0"#),
        (r#""service": "b""#, r#""service": """#),
        (r#""/a/{id}""#, r#""/a/../b""#),
        (r#""name": "r""#, r#""name": """#),
        (r#""rule": "f:1""#, r#""rule": "f:1", "sticky": "mood:x""#),
        (r#""rule": "f:1""#, r#""rule": "f:1", "rewrite": {"path": "/{other}"}"#),
        (r#""rule": "f:1""#, r#""rule": "f:1", "rewrite": {"host": "a b"}"#),
        (
            r#""rule": "f:1""#,
            r#""rule": "f:1", "redirect": {"to": "https://u@h/x", "status": 302}"#,
        ),
        (
            r#""rule": "f:1""#,
            r#""rule": "f:1", "redirect": {"to": "https://h", "status": 302}"#,
        ),
        (
            r#""rule": "f:1""#,
            r#""rule": "f:1", "redirect": {"to": "/x", "status": 200}"#,
        ),
        (
            r#""rule": "f:1""#,
            r#""rule": "f:1", "redirect": {"to": "gopher://h/x", "status": 302}"#,
        ),
        (r#""rule": "f:1""#, r#""rule": "f:1", "respond": {"status": 100}"#),
        (
            r#""rule": "f:1""#,
            r#""rule": "f:1", "respond": {"status": 200, "headers": [["content-length", "1"]]}"#,
        ),
        (
            r#""rule": "f:1""#,
            r#""rule": "f:1", "fault": {"abort": 200, "abort_percent": 1}"#,
        ),
        (
            r#""rule": "f:1""#,
            r#""rule": "f:1", "fault": {"delay_ms": 1, "delay_percent": 101}"#,
        ),
        (
            r#""rule": "f:1""#,
            r#""rule": "f:1", "request_headers": {"set": [["host", "x"]]}"#,
        ),
        (
            r#""rule": "f:1""#,
            r#""rule": "f:1", "request_headers": {"add": [["x-a", "1\r\nx-b: 2"]]}"#,
        ),
        (
            r#""rule": "f:1""#,
            r#""rule": "f:1", "response_headers": {"remove": ["Transfer_Encoding"]}"#,
        ),
        (
            r#""rule": "f:1""#,
            r#""rule": "f:1", "mirror": {"to": "b", "percent": -1, "max_pending": 1}"#,
        ),
    ] {
        let text = sound.replacen(part, by, 1);
        assert_ne!(text, sound);
        assert!(build(&text).is_err(), "{text}");
    }
}

#[test]
fn shares_come_out_by_weight_and_a_value_keeps_its_choice() {
    let text = r#"{"name": "r", "rule": "f:1", "to": [{"service": "a", "weight": 10}, {"service": "b", "weight": 90}],
        "sticky": "header:x-user"}"#;
    let routes = Config::routes(&[serde_json::from_str(text).expect("a route")]).expect("sound");
    let choice = |user: &str| {
        let headers = [("x-user".to_owned(), user.to_owned())];
        let request = Request {
            method: "GET",
            path: "/",
            headers: &Listed(&headers),
            token: crate::authorize::Token::None,
        };
        let view = View {
            request,
            query: "",
            source: [127, 0, 0, 1].into(),
        };
        told(choose(&routes, &view, || panic!("nothing is left to chance"))).service
    };
    let users: Vec<_> = (0..10_000).map(|user| choice(&format!("user-{user}"))).collect();
    let few = users.iter().filter(|service| **service == "a").count();
    assert!((900..=1100).contains(&few), "{few} of 10,000");
    assert!((0..1000).all(|user| choice(&format!("user-{user}")) == users[user]));
}

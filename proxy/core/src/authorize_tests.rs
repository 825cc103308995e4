//! Held to the same table as the specification in Python: `tests/vectors/authorize.json`.

use serde::Deserialize;

use super::*;
use crate::config::Config;
use crate::snapshot;

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    name: String,
    unit: snapshot::Unit,
    caller: Option<Who>,
    port: Option<u16>,
    method: Option<String>,
    path: Option<String>,
    headers: Option<Vec<(String, String)>>,
    token: Option<Brought>,
    outbound: Option<Called>,
    expect: Expect,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Who {
    Identity { spiffe_id: String },
    Plaintext { plaintext: IpAddr, local: bool },
}

#[derive(Deserialize)]
struct Called {
    port: u16,
    service: Option<String>,
    host: Option<String>,
    address: Option<IpAddr>,
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Brought {
    Claims(Claims),
    Bad(String),
}

#[derive(Deserialize)]
struct Expect {
    verdict: String,
    rule: String,
    audited: Option<String>,
    /// Those that fit.
    limits: Option<Vec<String>>,
}

struct Listed(Vec<(String, String)>);

impl Headers for Listed {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        self.0
            .iter()
            .filter(|(key, _)| key == name)
            .for_each(|(_, value)| see(value.as_bytes()));
    }

    fn all(&self, see: &mut dyn FnMut(&[u8], &[u8])) {
        self.0
            .iter()
            .for_each(|(key, value)| see(key.as_bytes(), value.as_bytes()));
    }
}

fn decide(case: &Case, unit: &Unit) -> Option<Decision> {
    if let Some(called) = &case.outbound {
        let hosts: Vec<Arc<str>> = called.host.as_deref().map(Arc::from).into_iter().collect();
        let target = Target {
            port: called.port,
            service: called.service.as_deref(),
            hosts: &hosts,
            address: called.address,
        };
        return Some(outbound(unit, &target));
    }
    come_in(case, |caller, port, asked| match asked {
        None => connection(unit, caller, port),
        Some(asked) => {
            let decided = request(unit, caller, port, asked);
            if let Some(early) = connection(unit, caller, port) {
                assert_eq!(
                    early, decided,
                    "{}: what the connection decides, no request changes",
                    case.name
                );
            }
            Some(decided)
        }
    })
}

fn fitting(case: &Case, unit: &Unit) -> Vec<String> {
    come_in(case, |caller, port, asked| {
        let limits = unit.limits.iter().filter(|limit| fits(&limit.of, caller, port, asked));
        limits.map(|limit| limit.of.rule.to_string()).collect()
    })
}

fn come_in<T>(case: &Case, judge: impl FnOnce(&Caller<'_>, u16, Option<&Request<'_>>) -> T) -> T {
    let caller = match case.caller.as_ref().expect("a caller") {
        Who::Identity { spiffe_id } => Caller::Identity(spiffe_id),
        Who::Plaintext { plaintext, local } => Caller::Plaintext {
            address: *plaintext,
            local: *local,
        },
    };
    let port = case.port.expect("a port");
    let Some(method) = &case.method else {
        return judge(&caller, port, None);
    };
    let headers = Listed(case.headers.clone().unwrap_or_default());
    let asked = Request {
        method,
        path: case.path.as_deref().expect("a path"),
        headers: &headers,
        token: match &case.token {
            None => Token::None,
            Some(Brought::Claims(claims)) => Token::Good(claims),
            Some(Brought::Bad(why)) => Token::Bad(doubt(why)),
        },
    };
    judge(&caller, port, Some(&asked))
}

fn doubt(why: &str) -> Doubt {
    let known = [Doubt::Expired, Doubt::Signature, Doubt::Audience];
    known.into_iter().find(|doubt| doubt.word() == why).expect("a doubt")
}

#[test]
fn the_vectors() {
    let text = include_str!("../../../tests/vectors/authorize.json");
    let vectors: Vectors = serde_json::from_str(text).expect("vectors");
    assert!(vectors.cases.len() > 100);
    for case in vectors.cases {
        let unit = Config::unit(case.unit.clone()).expect("a unit");
        let (verdict, decided) = match decide(&case, &unit) {
            None => ("asks-request", None),
            Some(decision) => {
                let verdict = match decision.verdict {
                    Verdict::Allow => "allow",
                    Verdict::Deny => "deny",
                    Verdict::AuditDeny => "audit-deny",
                    Verdict::BadPath => "bad-path",
                    Verdict::NoToken => "no-token",
                    Verdict::BadToken(_) => "bad-token",
                    Verdict::Limited(_) => "limited",
                    Verdict::Refused | Verdict::NoVerdict => panic!("no gatekeeper is asked here"),
                };
                (verdict, Some(decision))
            }
        };
        assert_eq!(verdict, case.expect.verdict, "{}", case.name);
        if let Some(decision) = decided {
            assert_eq!(*decision.rule, *case.expect.rule, "{}", case.name);
            assert_eq!(
                decision.audited.as_deref(),
                case.expect.audited.as_deref(),
                "{}",
                case.name
            );
        }
        if let Some(limits) = &case.expect.limits {
            assert_eq!(&fitting(&case, &unit), limits, "{}", case.name);
        }
    }
}

#[test]
fn what_cannot_be_read_is_judged_as_opaque_whatever_its_port_speaks_by_now() {
    let vector = include_str!("../../../tests/vectors/snapshot/h1.json");
    let snapshot: snapshot::Snapshot = serde_json::from_str(vector).expect("the vector");
    let judged = |change: fn(&mut snapshot::Unit)| {
        let mut unit = snapshot.units[0].clone();
        change(&mut unit);
        let (unit, caller) = (Config::unit(unit).expect("a unit"), snapshot.units[1].spiffe_id.clone());
        let caller = Caller::Identity(&caller);
        let port = unit.ports[0].port;
        (
            connection(&unit, &caller, port).map(|it| it.verdict),
            opaque(&unit, &caller, port).verdict,
        )
    };
    let asks = |unit: &mut snapshot::Unit| unit.allow[0].methods = vec!["GET".into()];
    assert_eq!(judged(asks), (None, Verdict::Deny), "nobody can show that it is a GET");
    let silent = |unit: &mut snapshot::Unit| (unit.allow[0].methods, unit.allow[0].paths) = (vec![], vec![]);
    assert_eq!(judged(silent), (Some(Verdict::Allow), Verdict::Allow));
}

//! Certificates that are no SVID of this mesh, shown by a client and by a server: refused on both sides, counted by
//! reason, told with who showed it and why.

#[allow(dead_code)] // each test file uses a part
mod ends;

use std::sync::Arc;

use ends::{Authority, Mesh, ORDERS, WEB, WEB_SNI, WEB_UNIT, run, soon, until, with_chain};
use hostmesh_proxy::shared::Svid;
use hostmesh_proxy::traces::connection::Opening;
use hostmesh_proxy::wire::client::OpenError;
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P384_SHA384, SanType, SubjectPublicKeyInfo, date_time_ymd,
};

const ORDERS_SNI: &str = "orders.unit.mesh.example";
/// Of 1,024 bits. Nobody has its private half.
const SMALL_RSA: &str = "-----BEGIN PUBLIC KEY-----
MIGfMA0GCSqGSIb3DQEBAQUAA4GNADCBiQKBgQCpM6+xD65SSEaFcfjWT0gYZb4p
Gyig0a9+qfkZHUnL3vb5a46H/xopfCB0BwwjGh5z8qhJRIUFnXPNJjq4JP5Qihjw
GhDcDbsaXba8RHgS9FjLgnE4L+oQpap2AHQeUPuC5yw2cbtTEXVgD5nMPp2cn3j/
3qo3PtfM8TQfBhSRTwIDAQAB
-----END PUBLIC KEY-----";

/// Who shows the certificate.
#[derive(Clone, Copy)]
struct Who {
    unit: &'static str,
    sni: &'static str,
    id: &'static str,
    host: &'static str,
}

const CLIENT: Who = Who {
    unit: "orders.service",
    sni: ORDERS_SNI,
    id: ORDERS,
    host: "h1",
};
const SERVER: Who = Who {
    unit: WEB_UNIT,
    sni: WEB_SNI,
    id: WEB,
    host: "h2",
};

type Make = dyn Fn(&Authority, Who) -> Arc<Svid>;

/// A certificate that is wrong in one way, the word for it, and a part of what is told.
struct Bad {
    make: Box<Make>,
    reason: &'static str,
    told: &'static str,
}

fn bad(reason: &'static str, told: &'static str, make: impl Fn(&Authority, Who) -> Arc<Svid> + 'static) -> Bad {
    Bad {
        make: Box::new(make),
        reason,
        told,
    }
}

/// Signed by the mesh's own authority, changed before.
fn shaped(reason: &'static str, told: &'static str, shape: impl Fn(&mut CertificateParams) + 'static) -> Bad {
    bad(reason, told, move |ca, who| {
        ca.shaped(who.unit, who.sni, &[who.id], who.host, |params| shape(params))
    })
}

fn table() -> Vec<Bad> {
    vec![
        shaped("expired", "expired", |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2020, 1, 1), date_time_ymd(2020, 1, 2));
        }),
        shaped("not-yet-valid", "not valid yet", |params| {
            (params.not_before, params.not_after) = (date_time_ymd(2090, 1, 1), date_time_ymd(2090, 1, 2));
        }),
        bad("unknown-issuer", "UnknownIssuer", |_, who| {
            Authority::new("foreign").with_ids(who.unit, who.sni, &[who.id], who.host)
        }),
        bad("wrong-trust-domain", "not of trust domain mesh.example", |ca, who| {
            let id = who.id.replace("mesh.example", "mesh.example.org");
            ca.with_ids(who.unit, who.sni, &[&id], who.host)
        }),
        bad("wrong-trust-domain", "not of trust domain mesh.example", |ca, who| {
            let id = format!("spiffe://mesh.example.org/{}", "a".repeat(8000));
            ca.with_ids(who.unit, who.sni, &[&id], who.host)
        }),
        bad("wrong-identity", "2 URI names", |ca, who| {
            ca.with_ids(
                who.unit,
                who.sni,
                &[who.id, "spiffe://mesh.example/unit/third"],
                who.host,
            )
        }),
        shaped("wrong-identity", "0 URI names", |params| {
            params.subject_alt_names.retain(|name| !matches!(name, SanType::URI(_)));
        }),
        bad("wrong-usage", "extended key usage", |ca, who| {
            let other_side = if who.host == CLIENT.host {
                ExtendedKeyUsagePurpose::ServerAuth
            } else {
                ExtendedKeyUsagePurpose::ClientAuth
            };
            ca.shaped(who.unit, who.sni, &[who.id], who.host, |params| {
                params.extended_key_usages = vec![other_side];
            })
        }),
        shaped("wrong-usage", "is an authority's", |params| {
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        }),
        shaped("wrong-usage", "may sign certificates", |params| {
            params.key_usages.push(KeyUsagePurpose::KeyCertSign);
        }),
        shaped("wrong-usage", "not for digital signatures", |params| {
            params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
        }),
        shaped(
            "unknown-extension",
            "nobody here knows: 1.3.6.1.4.1.99999.1",
            |params| {
                let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
                unknown.set_criticality(true);
                params.custom_extensions.push(unknown);
            },
        ),
        shaped("unknown-extension", "nobody here knows: 1.3.6.1", |params| {
            let oid: Vec<u64> = [1, 3, 6, 1].into_iter().chain([99999; 2000]).collect();
            let mut unknown = CustomExtension::from_oid_content(&oid, vec![5, 0]);
            unknown.set_criticality(true);
            params.custom_extensions.push(unknown);
        }),
        bad("weak-key", "not ECDSA P-256", |ca, who| {
            let small = SubjectPublicKeyInfo::from_pem(SMALL_RSA).expect("a public key");
            let leaf = ca.leaf(&[who.id], who.host, &small, |_| {});
            let other = KeyPair::generate().expect("a key"); // what it signs is not looked at any more
            with_chain(who.unit, who.sni, who.id, &other, vec![leaf])
        }),
        bad("weak-key", "not ECDSA P-256", |ca, who| {
            let key = KeyPair::generate_for(&PKCS_ECDSA_P384_SHA384).expect("a key");
            let leaf = ca.leaf(&[who.id], who.host, &key, |_| {});
            with_chain(who.unit, who.sni, who.id, &key, vec![leaf])
        }),
        bad("bad-signature", "ignature", |ca, who| {
            let key = KeyPair::generate().expect("a key");
            let mut der = ca.leaf(&[who.id], who.host, &key, |_| {}).to_vec();
            *der.last_mut().expect("bytes") ^= 1;
            with_chain(who.unit, who.sni, who.id, &key, vec![der.into()])
        }),
        bad("too-long", "a chain of 4 certificates", |ca, who| {
            let (one, key) = (ca.below("one"), KeyPair::generate().expect("a key"));
            let two = one.below("two");
            let three = two.below("three");
            let leaf = three.leaf(&[who.id], who.host, &key, |_| {});
            with_chain(who.unit, who.sni, who.id, &key, vec![leaf, three.der, two.der, one.der])
        }),
    ]
}

/// In our own words, and no more of a stranger's than a line of the journal bears.
fn assert_readable(message: &str) {
    assert!(!message.contains("WrongPeer"), "{message}");
    assert!(message.len() < 1000, "{} bytes: {message}", message.len());
}

async fn refused(mesh: &Mesh) -> String {
    let pool = &mesh.h1.worker.pool;
    let opened = soon(pool.open(
        &"orders.service".into(),
        &mesh.endpoint(),
        mesh.ports[0],
        &Opening::default(),
    ))
    .await;
    match opened {
        Err(OpenError::Unreachable(error)) => error.to_string(),
        Err(error) => panic!("another failure: {error}"),
        Ok(_) => panic!("let in"),
    }
}

#[test]
fn of_a_client() {
    for Bad { make, reason, told } in table() {
        run(async move {
            let ca = Authority::new("mesh");
            let (orders, web) = (make(&ca, CLIENT), ca.web());
            let mut mesh = Mesh::with(ca, orders, web).await;
            let error = refused(&mesh).await;
            assert!(error.contains("refuses our certificate"), "{reason}: {error}");
            assert_eq!(
                mesh.h1.tls_failures("client", "refused-by-peer"),
                1,
                "{reason}: {error}"
            );
            let event = mesh.h2.event().await;
            assert_eq!(
                (event.kind, event.verdict, &*event.rule, &*event.unit, &*event.client),
                ("wire", "deny", &*format!("builtin:{reason}"), WEB_UNIT, "127.0.0.1"),
                "{}",
                event.message
            );
            assert!(event.message.contains(told), "{reason}: {}", event.message);
            assert_readable(&event.message);
            assert_eq!(mesh.h2.tls_failures("server", reason), 1, "{reason}");
            assert_eq!(mesh.h2.gauge("tls_handshakes"), 0, "{reason}");
            let event = mesh.h1.event().await;
            assert_eq!((event.kind, &*event.rule), ("wire", "builtin:refused-by-peer"));
            assert!(event.message.contains("refuses our certificate"), "{}", event.message);
        });
    }
}

#[test]
fn of_a_server() {
    for Bad { make, reason, told } in table() {
        run(async move {
            let ca = Authority::new("mesh");
            let (orders, web) = (ca.orders(), make(&ca, SERVER));
            let mut mesh = Mesh::with(ca, orders, web).await;
            let error = refused(&mesh).await;
            assert!(error.contains(told), "{reason}: {error}");
            assert_eq!(mesh.h1.tls_failures("client", reason), 1, "{reason}: {error}");
            let event = mesh.h1.event().await;
            assert_eq!(
                (event.kind, event.verdict, &*event.rule, &*event.unit, &*event.peer),
                ("wire", "deny", &*format!("builtin:{reason}"), "orders.service", WEB)
            );
            assert!(event.message.contains(told), "{reason}: {}", event.message);
            assert_readable(&event.message);
            assert_readable(&error);
            until(|| mesh.h2.tls_failures("server", "refused-by-peer") == 1).await;
        });
    }
}

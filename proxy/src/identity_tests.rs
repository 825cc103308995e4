//! Chains are put in force only when everything about them is right; sealed keys come back through systemd's hands.

use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509CertificationRequest};

use super::*;
use crate::fixture::{Authority, Wrong, snapshot, with};

const UNIT: &str = "nginx.service";

fn store(authority: &Authority) -> (Arc<Shared>, SvidStore) {
    let shared = with(snapshot(authority));
    (shared.clone(), SvidStore::new(shared))
}

#[test]
fn a_request_is_pkcs10_for_p256_with_identity_and_host() {
    let (_, mut store) = store(&Authority::new());
    let der = store.request(UNIT).expect("a request");
    let (rest, csr) = X509CertificationRequest::from_der(&der).expect("PKCS#10");
    assert!(rest.is_empty());
    assert_eq!(
        csr.certification_request_info.subject_pki.raw,
        store.pending[UNIT].public
    );
    let prime256v1 = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    assert!(
        store.pending[UNIT]
            .public
            .windows(prime256v1.len())
            .any(|bytes| bytes == prime256v1),
        "not P-256"
    );
    let names: Vec<String> = csr
        .requested_extensions()
        .expect("extensions")
        .filter_map(|extension| {
            if let ParsedExtension::SubjectAlternativeName(names) = extension {
                Some(names)
            } else {
                None
            }
        })
        .flat_map(|names| names.general_names.iter())
        .map(|name| match name {
            GeneralName::URI(uri) => format!("uri {uri}"),
            GeneralName::DNSName(host) => format!("dns {host}"),
            other => panic!("not asked for: {other:?}"),
        })
        .collect();
    assert_eq!(names, ["uri spiffe://mesh.local/unit/nginx", "dns h1"]);
    assert!(store.request("nobody.service").is_err());
}

#[test]
fn a_good_chain_is_in_force_for_unit_and_server_name() {
    let authority = Authority::new();
    let (shared, mut store) = store(&authority);
    let csr = store.request(UNIT).expect("a request");
    assert!(shared.svids().by_unit(UNIT).is_none());
    store
        .set(UNIT, vec![authority.sign(&csr, &Wrong::default())])
        .expect("in force");
    let svids = shared.svids();
    let svid = svids.by_unit(UNIT).expect("the unit's");
    assert_eq!(
        (svid.spiffe_id.as_str(), svid.unit.as_str()),
        ("spiffe://mesh.local/unit/nginx", UNIT)
    );
    assert!(Arc::ptr_eq(
        svid,
        svids.by_sni("nginx.unit.mesh.local").expect("by server name")
    ));
    assert!(!svid.serial.is_empty() && svid.not_before < svid.not_after);
    svid.key.keys_match().expect("key and leaf belong together");
    assert!(store.pending.is_empty());
}

/// As the agent, the journal and the entries of what is revoked write it.
#[test]
fn a_serial_number_is_told_without_leading_zeros() {
    let authority = Authority::new();
    let (shared, mut store) = store(&authority);
    let csr = store.request(UNIT).expect("a request");
    let told = [(&[0x0a, 0x1b, 0x2c][..], "a1b2c"), (&[0, 0xa1, 0xb2], "a1b2")];
    for (serial, said) in told {
        let wrong = Wrong {
            serial: Some(serial),
            ..Wrong::default()
        };
        store.set(UNIT, vec![authority.sign(&csr, &wrong)]).expect("in force");
        assert_eq!(shared.svids().by_unit(UNIT).expect("in force").serial, said);
    }
}

#[test]
fn a_wrong_chain_is_refused_with_its_reason_and_changes_nothing() {
    let authority = Authority::new();
    let (shared, mut store) = store(&authority);
    let first = store.request(UNIT).expect("a request");
    store
        .set(UNIT, vec![authority.sign(&first, &Wrong::default())])
        .expect("in force");
    let serial = shared.svids().by_unit(UNIT).expect("in force").serial.clone();
    let lost = store.request(UNIT).expect("a request");
    let csr = store.request(UNIT).expect("another request");
    let good = |wrong: Wrong| vec![authority.sign(&csr, &wrong)];
    let cases = [
        (vec![], "empty"),
        (vec![b"garbage".to_vec()], "does not parse"),
        (
            vec![Authority::new().sign(&csr, &Wrong::default())],
            "invalid peer certificate",
        ),
        (vec![authority.sign(&lost, &Wrong::default())], "another key"),
        (
            good(Wrong {
                spiffe_id: Some("spiffe://mesh.local/unit/orders"),
                ..Wrong::default()
            }),
            "expected spiffe://mesh.local/unit/nginx",
        ),
        (
            good(Wrong {
                spiffe_id: Some("spiffe://other.local/unit/nginx"),
                ..Wrong::default()
            }),
            "not of trust domain",
        ),
        (
            good(Wrong {
                host: Some("h2"),
                ..Wrong::default()
            }),
            "is for host h2",
        ),
        (
            good(Wrong {
                expired: true,
                ..Wrong::default()
            }),
            "xpired",
        ),
    ];
    for (chain, why) in cases {
        let error = store.set(UNIT, chain).expect_err(why).to_string();
        assert!(error.contains(why), "{error:?} does not say {why:?}");
        assert_eq!(shared.svids().by_unit(UNIT).expect("still in force").serial, serial);
    }
    store
        .set(UNIT, good(Wrong::default()))
        .expect("the right one still fits");
    assert_ne!(shared.svids().by_unit(UNIT).expect("in force").serial, serial);
}

#[test]
fn a_unit_that_leaves_the_snapshot_loses_its_svid() {
    let authority = Authority::new();
    let (shared, mut store) = store(&authority);
    let csr = store.request(UNIT).expect("a request");
    store
        .set(UNIT, vec![authority.sign(&csr, &Wrong::default())])
        .expect("in force");
    let mut less = snapshot(&authority);
    less.units.retain(|unit| unit.unit != UNIT);
    shared
        .set_config(Config::build(less).expect("config"))
        .expect("in force");
    store.reconcile();
    assert_eq!(shared.svids().iter().count(), 0);
}

/// What systemd gives back is believed only as far as it proves itself; the tests on a real kernel kill the process.
#[test]
fn sealed_keys_come_back_and_what_does_not_prove_itself_is_forgotten() {
    let authority = Authority::new();
    let (_, mut before) = store(&authority);
    let csr = before.request(UNIT).expect("a request");
    let key = before.pending[UNIT].private.clone();
    let keep = |chain: Vec<Vec<u8>>, key: &Zeroizing<Vec<u8>>| {
        sealed::seal(&Sealed {
            unit: UNIT.into(),
            key: key.clone(),
            chain,
        })
        .expect("sealed")
    };
    let good = || vec![authority.sign(&csr, &Wrong::default())];
    let other = before.request(UNIT).expect("another key");
    let kept = vec![
        (
            "svid-stranger".to_owned(),
            keep(vec![Authority::new().sign(&csr, &Wrong::default())], &key),
        ),
        (
            "svid-key".to_owned(),
            keep(vec![authority.sign(&other, &Wrong::default())], &key),
        ),
        (
            "svid-expired".to_owned(),
            keep(
                vec![authority.sign(
                    &csr,
                    &Wrong {
                        expired: true,
                        ..Wrong::default()
                    },
                )],
                &key,
            ),
        ),
        (
            "svid-null".to_owned(),
            std::fs::File::open("/dev/null").expect("open").into(),
        ),
        ("svid-good".to_owned(), keep(good(), &key)),
        (
            "listener-wire-0".to_owned(),
            std::fs::File::open("/dev/null").expect("open").into(),
        ),
    ];
    let inherited = Inherited::of(kept);
    let (shared, _) = crate::fixture::shared();
    let mut store = SvidStore::new(shared.clone());
    store.restore(&inherited);
    assert_eq!(
        (shared.svids().iter().count(), store.unproved.len()),
        (0, 4),
        "nothing to prove it against yet"
    );
    shared
        .set_config(Config::build(snapshot(&authority)).expect("a config"))
        .expect("in force");
    store.reconcile();
    let svids = shared.svids();
    assert_eq!(svids.iter().count(), 1);
    svids
        .by_sni("nginx.unit.mesh.local")
        .expect("back")
        .key
        .keys_match()
        .expect("with its key");
    assert_eq!(store.current[UNIT].fd_name, "svid-good");
    assert!(store.unproved.is_empty());
    let left = inherited.take("");
    assert_eq!(
        left.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(),
        ["listener-wire-0"]
    );
}

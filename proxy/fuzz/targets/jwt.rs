//! A token: as it is brought, and as its issuer signs whatever it likes to say. Only what is signed is believed, and what an
//! application gets of it is a header's value.
#![no_main]

use std::sync::{Arc, LazyLock};

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair};
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use hostmesh_proxy_core::authorize::Headers;
use hostmesh_proxy_core::snapshot::{TokenIssuer, TokenKey};
use hostmesh_proxy_core::token::{Issuers, compile};
use libfuzzer_sys::fuzz_target;

const NOW: u64 = 1_800_000_000;

struct Line(Vec<u8>);

impl Headers for Line {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        if name == "authorization" {
            see(&self.0);
        }
    }

    fn all(&self, see: &mut dyn FnMut(&[u8], &[u8])) {
        see(b"authorization", &self.0);
    }
}

static ISSUER: LazyLock<(Ed25519KeyPair, Arc<Issuers>)> = LazyLock::new(|| {
    let pair = Ed25519KeyPair::from_seed_unchecked(&[7; 32]).expect("a key");
    let der: PublicKeyX509Der<'_> = pair.public_key().as_der().expect("DER");
    let issuer = TokenIssuer {
        rule: "a.toml:1".into(),
        issuer: "i".into(),
        audience: vec!["a".into()],
        keys: vec![TokenKey {
            kid: "k".into(),
            algorithms: vec!["EdDSA".into()],
            key: STANDARD.encode(der.as_ref()),
        }],
        token: "header:authorization".into(),
        forward: true,
        leeway_ms: 60_000,
        headers: vec![("x-user".into(), "sub".into()), ("x-role".into(), "realm.role".into())],
    };
    let issuers = compile("unit a", vec![issuer]).expect("compiled").expect("one");
    (pair, issuers)
});

fuzz_target!(|bytes: &[u8]| {
    let (pair, issuers) = &*ISSUER;
    let Some((mode, bytes)) = bytes.split_first() else {
        return;
    };
    let is_signed = *mode != b'0';
    let token = if is_signed {
        let (header, claims) = bytes.split_at(bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0));
        let [header, claims] = [header, claims].map(|part| URL_SAFE_NO_PAD.encode(part));
        let signed = format!("{header}.{claims}");
        let signature = URL_SAFE_NO_PAD.encode(pair.sign(signed.as_bytes()));
        format!("{signed}.{signature}").into_bytes()
    } else {
        bytes.to_vec()
    };
    let Some(Ok(found)) = issuers.find(&Line([b"Bearer ", &*token].concat())) else {
        return;
    };
    let Ok(believed) = issuers.check(&found, NOW) else {
        return;
    };
    let (signed, signature) = found.token.rsplit_once('.').expect("a signature");
    let signature = URL_SAFE_NO_PAD.decode(signature).expect("base64");
    assert_eq!(
        pair.sign(signed.as_bytes()).as_ref(),
        signature,
        "somebody else signed it"
    );
    assert_eq!(believed.claims["iss"], "i");
    assert!(believed.until > NOW as f64);
    for (_, value) in &believed.headers {
        assert!(!value.is_empty() && value.bytes().all(|byte| (0x20..0x7f).contains(&byte)));
    }
});

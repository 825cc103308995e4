//! Made tokens of every algorithm, and those that somebody made to be let in.

use std::sync::LazyLock;

use aws_lc_rs::encoding::{AsDer, PublicKeyX509Der};
use aws_lc_rs::hmac;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::KeySize;
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
    RSA_PKCS1_SHA256, RSA_PKCS1_SHA384, RSA_PKCS1_SHA512, RSA_PSS_SHA256, RSA_PSS_SHA384, RSA_PSS_SHA512, RsaEncoding,
    RsaKeyPair,
};
use proptest::prelude::*;
use serde_json::json;

use super::*;

const NOW: u64 = 1_800_000_000;
const ISSUER: &str = "https://id.example.org";

struct Keys {
    rsa: RsaKeyPair,
    p256: EcdsaKeyPair,
    p384: EcdsaKeyPair,
    ed: Ed25519KeyPair,
}

static KEYS: LazyLock<Keys> = LazyLock::new(|| Keys {
    rsa: RsaKeyPair::generate(KeySize::Rsa2048).expect("a key"),
    p256: EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"),
    p384: EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key"),
    ed: Ed25519KeyPair::generate().expect("a key"),
});

fn der(of: &impl AsDer<PublicKeyX509Der<'static>>) -> Vec<u8> {
    of.as_der().expect("DER").as_ref().to_vec()
}

fn public(algorithm: &str) -> Vec<u8> {
    match algorithm {
        "ES256" => der(KEYS.p256.public_key()),
        "ES384" => der(KEYS.p384.public_key()),
        "EdDSA" => der(KEYS.ed.public_key()),
        _ => der(KEYS.rsa.public_key()),
    }
}

fn sign(algorithm: &str, signed: &[u8]) -> Vec<u8> {
    let random = SystemRandom::new();
    let rsa = |encoding: &'static dyn RsaEncoding| {
        let mut signature = vec![0; KEYS.rsa.public_modulus_len()];
        KEYS.rsa
            .sign(encoding, &random, signed, &mut signature)
            .expect("signed");
        signature
    };
    match algorithm {
        "RS256" => rsa(&RSA_PKCS1_SHA256),
        "RS384" => rsa(&RSA_PKCS1_SHA384),
        "RS512" => rsa(&RSA_PKCS1_SHA512),
        "PS256" => rsa(&RSA_PSS_SHA256),
        "PS384" => rsa(&RSA_PSS_SHA384),
        "PS512" => rsa(&RSA_PSS_SHA512),
        "ES256" => KEYS.p256.sign(&random, signed).expect("signed").as_ref().to_vec(),
        "ES384" => KEYS.p384.sign(&random, signed).expect("signed").as_ref().to_vec(),
        "EdDSA" => KEYS.ed.sign(signed).as_ref().to_vec(),
        // The public key as a shared secret.
        "HS256" => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &public("RS256")), signed)
            .as_ref()
            .to_vec(),
        _ => Vec::new(),
    }
}

fn encode(part: &Value) -> String {
    URL_SAFE_NO_PAD.encode(part.to_string())
}

fn token(header: &Value, claims: &Value, algorithm: &str) -> String {
    let signed = format!("{}.{}", encode(header), encode(claims));
    let signature = URL_SAFE_NO_PAD.encode(sign(algorithm, signed.as_bytes()));
    format!("{signed}.{signature}")
}

fn key(kid: &str, algorithm: &str) -> snapshot::TokenKey {
    snapshot::TokenKey {
        kid: kid.into(),
        algorithms: vec![algorithm.into()],
        key: STANDARD.encode(public(algorithm)),
    }
}

fn issuer(keys: Vec<snapshot::TokenKey>) -> snapshot::TokenIssuer {
    snapshot::TokenIssuer {
        rule: "a.toml:1".into(),
        issuer: ISSUER.into(),
        audience: vec!["inventory".into()],
        keys,
        token: "header:authorization".into(),
        forward: true,
        leeway_ms: 60_000,
        headers: vec![
            ("X-User".into(), "sub".into()),
            ("x-roles".into(), "realm.roles".into()),
        ],
    }
}

fn issuers(of: Vec<snapshot::TokenIssuer>) -> Arc<Issuers> {
    compile("unit a", of).expect("compiled").expect("some")
}

fn believed(issuers: &Issuers, token: &str) -> Result<Believed, Doubt> {
    let found = Found {
        place: Place::Bearer,
        token: token.into(),
    };
    issuers.check(&found, NOW).map_err(|refused| refused.doubt)
}

fn doubt(issuers: &Issuers, token: &str) -> Doubt {
    believed(issuers, token).map(|_| token).expect_err("it is believed")
}

fn claims() -> Value {
    json!({"iss": ISSUER, "aud": "inventory", "exp": NOW + 300, "sub": "ann"})
}

const ALL: [&str; 9] = [
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA",
];

#[test]
fn each_algorithm_is_believed_by_its_own_key_and_by_no_other() {
    for of_key in ALL {
        let issuers = issuers(vec![issuer(vec![key("k", of_key)])]);
        for of_token in ALL {
            let header = json!({"alg": of_token, "kid": "k"});
            let said = believed(&issuers, &token(&header, &claims(), of_token)).map(|_| ());
            let expected = if of_token == of_key {
                Ok(())
            } else {
                Err(Doubt::Algorithm)
            };
            assert_eq!(said, expected, "a token by {of_token}, a key for {of_key}");
            let lies = token(&json!({"alg": of_key, "kid": "k"}), &claims(), of_token);
            if of_token != of_key {
                assert_eq!(doubt(&issuers, &lies), Doubt::Signature, "by {of_token}, says {of_key}");
            }
        }
    }
}

#[test]
fn a_key_checks_nothing_by_an_algorithm_that_is_not_of_its_kind() {
    for (of_key, as_algorithm) in [
        ("RS256", "ES256"),
        ("ES256", "ES384"),
        ("ES384", "EdDSA"),
        ("EdDSA", "RS256"),
    ] {
        let mut wrong = key("k", of_key);
        wrong.algorithms = vec![as_algorithm.into()];
        let issuers = issuers(vec![issuer(vec![wrong, key("good", "ES256")])]);
        let header = json!({"alg": as_algorithm, "kid": "k"});
        assert_eq!(doubt(&issuers, &token(&header, &claims(), of_key)), Doubt::Algorithm);
        let header = json!({"alg": "ES256", "kid": "good"});
        assert!(
            believed(&issuers, &token(&header, &claims(), "ES256")).is_ok(),
            "the other key counts"
        );
    }
}

#[test]
fn no_signature_and_shared_secrets_are_never_believed() {
    let issuers = issuers(vec![issuer(vec![key("k", "RS256")])]);
    for none in [
        "none", "None", "NONE", "nOnE", "", "HS256", "hs256", "RS256 ", "rs256", "ES512", "ES256K",
    ] {
        for signed_by in ["none", "HS256", "RS256"] {
            let header = json!({"alg": none, "kid": "k"});
            assert_eq!(
                doubt(&issuers, &token(&header, &claims(), signed_by)),
                Doubt::Algorithm,
                "{none}"
            );
        }
    }
    let unsigned = format!(
        "{}.{}.",
        encode(&json!({"alg": "RS256", "kid": "k"})),
        encode(&claims())
    );
    assert_eq!(doubt(&issuers, &unsigned), Doubt::Signature);
}

#[test]
fn a_key_in_the_header_counts_for_nothing() {
    let issuers = issuers(vec![issuer(vec![key("k", "RS256")])]);
    let own = json!({"kty": "OKP", "crv": "Ed25519", "x": "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"});
    for name in ["jwk", "jku", "x5u", "x5c"] {
        let mut header = json!({"alg": "EdDSA", "kid": "k"});
        header[name] = if name == "jwk" {
            own.clone()
        } else {
            json!("https://evil.example/keys")
        };
        assert_eq!(
            doubt(&issuers, &token(&header, &claims(), "EdDSA")),
            Doubt::Algorithm,
            "{name}"
        );
        header["alg"] = json!("RS256");
        assert!(
            believed(&issuers, &token(&header, &claims(), "RS256")).is_ok(),
            "{name} is not read"
        );
    }
}

#[test]
fn a_key_is_found_by_its_whole_name_only() {
    let issuers = issuers(vec![issuer(vec![key("k", "ES256"), key("k2", "EdDSA")])]);
    for kid in [
        "",
        "K",
        "k/../k",
        "../k",
        "k\0",
        "k2/../k",
        "/dev/null",
        "file:///etc/passwd",
        "' OR 1=1 --",
        "*",
    ] {
        let header = json!({"alg": "ES256", "kid": kid});
        assert_eq!(
            doubt(&issuers, &token(&header, &claims(), "ES256")),
            Doubt::UnknownKey,
            "{kid:?}"
        );
    }
    for (kid, doubted) in [
        (json!(["k"]), Doubt::Malformed),
        (json!({"k": 1}), Doubt::Malformed),
        (json!(1), Doubt::Malformed),
    ] {
        let header = json!({"alg": "ES256", "kid": kid});
        assert_eq!(doubt(&issuers, &token(&header, &claims(), "ES256")), doubted);
    }
    let header = json!({"alg": "EdDSA"});
    assert!(
        believed(&issuers, &token(&header, &claims(), "EdDSA")).is_ok(),
        "no name: each that fits is tried"
    );
}

#[test]
fn issuer_audience_and_times() {
    let issuers = issuers(vec![issuer(vec![key("k", "ES256")])]);
    let says = |name: &str, value: Value| {
        let mut claims = claims();
        if value.is_null() {
            claims.as_object_mut().expect("an object").remove(name);
        } else {
            claims[name] = value;
        }
        believed(&issuers, &token(&json!({"alg": "ES256", "kid": "k"}), &claims, "ES256")).map(|_| ())
    };
    let both = json!(["other", "inventory"]);
    for (name, value, expected) in [
        ("iss", json!("https://id.example.org/"), Err(Doubt::Issuer)),
        ("iss", Value::Null, Err(Doubt::Issuer)),
        ("iss", json!([ISSUER]), Err(Doubt::Issuer)),
        ("aud", json!("inventory2"), Err(Doubt::Audience)),
        ("aud", json!([]), Err(Doubt::Audience)),
        ("aud", Value::Null, Err(Doubt::Audience)),
        ("aud", json!({"inventory": 1}), Err(Doubt::Audience)),
        ("aud", both, Ok(())),
        ("exp", json!(NOW - 59), Ok(())),
        ("exp", json!(NOW - 60), Err(Doubt::Expired)),
        ("exp", json!(-1), Err(Doubt::Expired)),
        ("exp", json!(NOW as f64 - 60.5), Err(Doubt::Expired)),
        ("exp", json!((NOW + 300).to_string()), Err(Doubt::Malformed)),
        ("exp", Value::Null, Err(Doubt::Malformed)),
        ("nbf", json!(NOW + 60), Ok(())),
        ("nbf", json!(NOW + 61), Err(Doubt::NotYetValid)),
        ("nbf", json!("soon"), Err(Doubt::Malformed)),
        ("iat", json!(NOW + 600), Ok(())),
    ] {
        assert_eq!(says(name, value.clone()), expected, "{name} = {value}");
    }
}

#[test]
fn what_is_no_token_is_malformed() {
    let issuers = issuers(vec![issuer(vec![key("k", "ES256")])]);
    let good = token(&json!({"alg": "ES256", "kid": "k"}), &claims(), "ES256");
    assert!(believed(&issuers, &good).is_ok());
    let (signed, signature) = good.rsplit_once('.').expect("three parts");
    let (header, said) = signed.split_once('.').expect("three parts");
    let twice = URL_SAFE_NO_PAD.encode(r#"{"alg":"none","alg":"ES256","kid":"k"}"#);
    let critical = json!({"alg": "ES256", "kid": "k", "crit": ["b64"], "b64": false});
    for bad in [
        String::new(),
        ".".into(),
        "..".into(),
        "...".into(),
        signed.into(),
        format!("{good}."),
        format!(".{good}"),
        format!("{good}="),
        format!("{good}\n"),
        format!(" {good}"),
        format!("{header}=.{said}.{signature}"),
        format!("{header}.{}.{signature}", STANDARD.encode("?>?>")),
        format!("{twice}.{said}.{signature}"),
        format!("{}.{said}.{signature}", URL_SAFE_NO_PAD.encode("[]")),
        format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode("[]")),
        format!("{header}.{}.{signature}", URL_SAFE_NO_PAD.encode("[".repeat(10_000))),
        format!("{header}.{}.{signature}", "e".repeat(MAX_TOKEN)),
        token(&critical, &claims(), "ES256"),
        token(&json!({"kid": "k"}), &claims(), "ES256"),
    ] {
        assert_eq!(doubt(&issuers, &bad), Doubt::Malformed, "{bad:.200}");
    }
}

#[test]
fn the_examples_of_the_standards() {
    // RFC 7515, appendix A.3, and RFC 8037, appendix A.4 (whose payload is no set of claims).
    let point = "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0";
    let mut der = URL_SAFE_NO_PAD
        .decode("MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE")
        .expect("base64");
    der.extend(
        point
            .split(' ')
            .flat_map(|part| URL_SAFE_NO_PAD.decode(part).expect("base64")),
    );
    let mut joe = issuer(vec![snapshot::TokenKey {
        kid: String::new(),
        algorithms: vec!["ES256".into()],
        key: STANDARD.encode(der),
    }]);
    joe.issuer = "joe".into();
    let example = "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9p\
                   c19yb290Ijp0cnVlfQ.DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-K\
                   g6NU1Q";
    let issuers = issuers(vec![joe]);
    assert_eq!(doubt(&issuers, example), Doubt::Expired, "all before the times is good");
    assert_eq!(doubt(&issuers, &example.replace("DtEh", "DtEg")), Doubt::Signature);
}

proptest! {
    #[test]
    fn one_changed_character_is_never_believed(at in 0usize..400, by in "[A-Za-z0-9_.-]") {
        static GOOD: LazyLock<(Arc<Issuers>, String)> = LazyLock::new(|| {
            let good = token(&json!({"alg": "ES256", "kid": "k"}), &claims(), "ES256");
            (issuers(vec![issuer(vec![key("k", "ES256")])]), good)
        });
        let (issuers, good) = &*GOOD;
        let mut changed = good.clone();
        let at = at % good.len();
        changed.replace_range(at..=at, &by);
        prop_assume!(changed != *good);
        prop_assert!(believed(issuers, &changed).is_err(), "{}", changed);
    }

    #[test]
    fn no_text_is_believed_or_ends_the_process(text in ".{0,300}") {
        prop_assert!(believed(&issuers(vec![issuer(vec![])]), &text).is_err());
    }
}

#[path = "token_carried_tests.rs"]
mod carried;

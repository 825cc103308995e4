//! Paths with one meaning, and those with more.

use proptest::prelude::*;
use serde::Deserialize;

use super::*;

#[derive(Deserialize)]
struct Vectors {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    path: String,
    normal: Option<String>,
}

#[test]
fn the_vectors() {
    let text = include_str!("../../../tests/vectors/paths.json");
    let vectors: Vectors = serde_json::from_str(text).expect("vectors");
    assert!(vectors.cases.len() > 40);
    for case in vectors.cases {
        let found = normal(&case.path).ok().map(Cow::into_owned);
        assert_eq!(found, case.normal, "{:?}", case.path);
    }
}

#[test]
fn the_path_of_a_target() {
    for (target, path) in [
        ("/a?b", "/a"),
        ("/a/http://x", "/a/http://x"),
        ("/?http://x/y", "/"),
        ("http://h/a/b?c", "/a/b"),
        ("http://h", "/"),
        ("*", "*"),
    ] {
        assert_eq!(of_target(target), path);
    }
}

proptest! {
    /// A normal form is its own normal form, and encoding any unreserved character of it changes nothing.
    #[test]
    fn normal_is_stable(path in "/[a-zA-Z0-9%./;~-]{0,40}", at in 0usize..40, lower: bool) {
        let Ok(once) = normal(&path) else { return Ok(()) };
        prop_assert_eq!(normal(&once), Ok(Cow::Borrowed(&*once)));
        let Some(byte) = once.as_bytes().get(at).copied() else { return Ok(()) };
        let inside = (1..3).any(|back| at >= back && once.as_bytes()[at - back] == b'%');
        if is_unreserved(byte) && !inside {
            let code = if lower { format!("%{byte:02x}") } else { format!("%{byte:02X}") };
            let encoded = format!("{}{}{}", &once[..at], code, &once[at + 1..]);
            prop_assert_eq!(normal(&encoded), Ok(Cow::Owned(once.to_string())));
        }
    }

    /// No input panics, and what passes holds nothing that a server could resolve.
    #[test]
    fn what_passes_is_plain(path in any::<String>()) {
        if let Ok(path) = normal(&path) {
            prop_assert!(path.is_ascii() && path.starts_with('/') && !path.contains("//"));
            prop_assert!(!path.split('/').any(|segment| segment == "." || segment == ".."));
            prop_assert!(!path.contains('\\') && !path.to_ascii_lowercase().contains("%2f"));
        }
    }
}

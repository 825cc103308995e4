//! Templates against a specification that looks at whole segments, and by hand.

use proptest::prelude::*;

use super::*;

fn template(text: &str) -> Template {
    Template::parse(text).unwrap_or_else(|| panic!("{text} is a template"))
}

#[test]
fn what_is_no_template() {
    for text in [
        "",
        "x",
        "/a*b",
        "/a/{}",
        "/a/{b",
        "/a/b}",
        "/a{b}",
        "/a/{b}c",
        "/{a}*",
        "/{a}/{a}",
        "/{a b}",
        "/../a",
        "/a//b",
        "/%7e",
        "/a/{b}/{c",
        "//{a}",
    ] {
        assert_eq!(Template::parse(text), None, "{text}");
    }
}

#[test]
fn filled_from_a_match() {
    for (from, path, to, filled) in [
        ("/products/{id}", "/products/7", "/v2/{id}", "/v2/7"),
        ("/{a}/{b}", "/x/y", "/{b}/{a}", "/y/x"),
        ("/old/*", "/old/a/b", "/new/*", "/new/a/b"),
        ("/old/*", "/old/", "/*", "/"),
        ("/{a}/*", "/x/y/z", "/q/*", "/q/y/z"),
        ("/old/*", "/old/a", "/gone", "/gone"),
    ] {
        let (from, to) = (template(from), template(to));
        assert!(to.fills_from(Some(&from)), "{to:?}");
        let captured = from.matches(path).expect("it fits");
        assert_eq!(to.fill(Some(&from), &captured), filled);
    }
    for (from, to) in [
        ("/a", "/{b}"),
        ("/{a}", "/{b}"),
        ("/a", "/b/*"),
        ("/a*", "/b/*"),
        ("/a/*", "/b*"),
    ] {
        assert!(!template(to).fills_from(Some(&template(from))), "{from} to {to}");
    }
    assert!(template("/a").fills_from(None) && !template("/a/*").fills_from(None));
}

/// Segment by segment, as a person would do it.
fn naive(template: &str, path: &str) -> bool {
    let (plain, is_open) = template
        .strip_suffix('*')
        .map_or((template, false), |plain| (plain, true));
    let wanted: Vec<_> = plain.split('/').collect();
    let found: Vec<_> = path.split('/').collect();
    let fits = |(wanted, found): (&&str, &&str)| {
        if wanted.starts_with('{') {
            !found.is_empty()
        } else {
            wanted == found
        }
    };
    if !is_open {
        return wanted.len() == found.len() && wanted.iter().zip(&found).all(fits);
    }
    let (last, before) = wanted.split_last().expect("one at least");
    found.len() >= wanted.len()
        && before.iter().zip(&found).all(fits)
        && found[before.len()..].join("/").starts_with(last)
}

fn a_template() -> impl Strategy<Value = String> {
    let segment = prop_oneof![Just("a"), Just("ab"), Just("b"), Just("{v}"), Just("{w}")];
    (
        prop::collection::vec(segment, 1..4),
        prop_oneof![Just(""), Just("/"), Just("/*"), Just("*")],
    )
        .prop_map(|(segments, end)| format!("/{}{end}", segments.join("/")))
}

proptest! {
    #[test]
    fn fits_as_the_naive_one_says(
        text in a_template(),
        path in prop::collection::vec(prop_oneof![Just("a"), Just("ab"), Just("abc"), Just("b"), Just("")], 1..5),
    ) {
        let path = format!("/{}", path.join("/"));
        if let Some(template) = Template::parse(&text) {
            prop_assert_eq!(template.matches(&path).is_some(), naive(&text, &path), "{} on {}", text, path);
        }
    }

    #[test]
    fn a_filled_path_is_normal(from in a_template(), to in a_template(), path in "/[a-c%;.~/-]{0,12}") {
        let (Some(from), Some(to)) = (Template::parse(&from), Template::parse(&to)) else { return Ok(()) };
        let Ok(normal) = path::normal(&path) else { return Ok(()) };
        if let Some(captured) = from.matches(&normal).filter(|_| to.fills_from(Some(&from))) {
            let filled = to.fill(Some(&from), &captured);
            prop_assert_eq!(path::normal(&filled), Ok(filled.as_str().into()));
        }
    }
}

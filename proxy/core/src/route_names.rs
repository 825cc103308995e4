//! Chooses where a connection of TLS goes by the name of the server that its client asks for (SNI, RFC 6066, section 3).

use std::net::IpAddr;
use std::sync::Arc;

use super::Route;
use crate::balance::hash;
use crate::config::HashOn;

/// Which names a route is for. In lower case; names are asked for without regard to case.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ServerName {
    /// `*`: every name, as long as one is asked for.
    Any,
    /// This one.
    Exactly(Box<str>),
    /// `*.example.org`: what ends so, with one label or more before it. Kept with its first dot.
    Under(Box<str>),
}

impl ServerName {
    /// As a policy says it. `None`: it is no such name.
    pub fn parse(text: &str) -> Option<Self> {
        if text == "*" {
            return Some(Self::Any);
        }
        let name = text.strip_prefix("*.").unwrap_or(text);
        let is_label = |label: &str| {
            let is_one = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
            (1..=63).contains(&label.len()) && label.bytes().all(is_one)
        };
        if name.len() > 253 || !name.split('.').all(is_label) {
            return None;
        }
        let name = name.to_ascii_lowercase();
        Some(match text.starts_with("*.") {
            true => Self::Under(format!(".{name}").into()),
            false => Self::Exactly(name.into()),
        })
    }

    /// Is it for this name, in lower case?
    fn fits(&self, name: &str) -> bool {
        match self {
            Self::Any => !name.is_empty(),
            Self::Exactly(exactly) => **exactly == *name,
            Self::Under(under) => name.len() > under.len() && name.ends_with(&**under),
        }
    }
}

/// The first route that is for connections to this name, and the service among its shares. `name`: empty where the client
/// names none; `random`: uniform, asked for where it is left to chance.
pub fn choose_by_name<'a>(
    routes: &'a [Arc<Route>],
    name: &str,
    source: IpAddr,
    mut random: impl FnMut() -> u64,
) -> Option<(&'a Arc<Route>, &'a Arc<str>)> {
    let name = name.to_ascii_lowercase();
    let fits = |route: &&Arc<Route>| route.fits.sni.as_ref().is_some_and(|sni| sni.fits(&name));
    let route = routes.iter().find(fits)?;
    let by_source = |on: &HashOn| matches!(on, HashOn::Source).then(|| hash::source_key(source));
    Some((route, route.share(by_source, &mut random)?))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;
    use crate::config::Config;
    use crate::snapshot;

    fn routes(said: &str) -> Vec<Arc<Route>> {
        let said: Vec<snapshot::Route> = serde_json::from_str(said).expect("routes");
        Config::routes(&said).expect("routes that may be")
    }

    fn chosen(routes: &[Arc<Route>], name: &str, random: u64) -> String {
        let source = Ipv4Addr::LOCALHOST.into();
        match choose_by_name(routes, name, source, || random) {
            Some((route, service)) => format!("{} {service}", route.name),
            None => String::new(),
        }
    }

    #[test]
    fn the_first_that_is_for_the_name() {
        let routes = routes(
            r#"[
            {"name": "requests", "rule": "r:1", "to": [{"service": "no", "weight": 1}]},
            {"name": "a", "rule": "r:2", "match": {"sni": "A.example.org"}, "to": [{"service": "one", "weight": 1}]},
            {"name": "under", "rule": "r:3", "match": {"sni": "*.example.org"},
             "to": [{"service": "two", "weight": 1}, {"service": "three", "weight": 1}]},
            {"name": "any", "rule": "r:4", "match": {"sni": "*"}, "to": [{"service": "four", "weight": 1}]}]"#,
        );
        for (name, random, expected) in [
            ("a.example.org", 0, "a one"),
            ("A.EXAMPLE.ORG", 0, "a one"),
            ("b.example.org", 0, "under two"),
            ("b.example.org", u64::MAX, "under three"),
            ("c.b.example.org", 0, "under two"),
            ("example.org", 0, "any four"),
            ("notexample.org", 0, "any four"),
            ("", 0, ""),
        ] {
            assert_eq!(chosen(&routes, name, random), expected, "{name}");
        }
    }

    #[test]
    fn what_is_no_name_of_a_server() {
        for text in [
            "",
            "*.",
            "a..b",
            "*.*",
            "a.*",
            "a b",
            ".a",
            "a.",
            "*a.b",
            "a/b",
            &"a".repeat(64),
        ] {
            assert_eq!(ServerName::parse(text), None, "{text}");
        }
    }
}

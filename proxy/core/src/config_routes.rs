//! Compiles the routes of a service. What a policy may not say is refused here again: a stolen host may have said it.

use super::traffic::hash_on;
use super::*;
use crate::fields::{FieldEdits, is_editable, is_value};
use crate::route::{Action, Inject, Match, Millionths, Mirror, Respond, Rewrite, Route, ServerName, Share};
use crate::snapshot::{HeaderEdits, RouteMatch};
use crate::template::Template;

type Compiled<T> = Result<T, ConfigError>;
type Named = (Box<str>, Box<str>);

pub(super) fn compile(at: &str, routes: &[snapshot::Route]) -> Compiled<Vec<Arc<Route>>> {
    routes
        .iter()
        .map(|one| route(&format!("{at}, route {}", one.name), one).map(Arc::new))
        .collect()
}

fn route(at: &str, said: &snapshot::Route) -> Compiled<Route> {
    let fits = fits(at, &said.r#match)?;
    let path = fits.path.as_ref();
    let to: Vec<_> = said.to.iter().map(|share| target(at, share)).collect::<Compiled<_>>()?;
    if !to.is_empty() && to.iter().all(|share| share.weight == 0) {
        return Err(bad(at, "0", "weights of which one is more than 0"));
    }
    Ok(Route {
        name: compile::not_empty(at, said.name.clone(), "a route's name")?,
        rule: (&*said.rule).into(),
        sticky: (!said.sticky.is_empty())
            .then(|| hash_on(at, &said.sticky))
            .transpose()?,
        mirror: said.mirror.as_ref().map(|said| mirror(at, said)).transpose()?,
        action: action(at, said, path)?,
        fault: said.fault.as_ref().map(|said| fault(at, said)).transpose()?,
        response: edits(at, said.response_headers.as_ref())?,
        timeout: duration(said.timeout_ms),
        retries: said.retries.as_ref().map(|said| retries(at, said)).transpose()?,
        hedge: said.hedge.as_ref().map(|said| hedge(at, said)).transpose()?,
        fits,
        to,
    })
}

fn fits(at: &str, said: &RouteMatch) -> Compiled<Match> {
    let wanted = |(name, value): &(String, String)| {
        let value = (value != "*").then(|| (**value).into());
        ((**name).into(), value)
    };
    Ok(Match {
        path: template(at, &said.path)?,
        methods: said.methods.iter().map(|method| (**method).into()).collect(),
        headers: said
            .headers
            .iter()
            .map(wanted)
            .map(|(name, value): (Box<str>, _)| (name.to_ascii_lowercase().into(), value))
            .collect(),
        query: said.query.iter().map(wanted).collect(),
        sni: server_name(at, &said.sni)?,
    })
}

fn server_name(at: &str, text: &str) -> Compiled<Option<ServerName>> {
    if text.is_empty() {
        return Ok(None);
    }
    match ServerName::parse(text) {
        Some(name) => Ok(Some(name)),
        None => Err(bad(at, text, "a name of a server, e.g. a.example.org or *.example.org")),
    }
}

fn template(at: &str, text: &str) -> Compiled<Option<Template>> {
    if text.is_empty() {
        return Ok(None);
    }
    match Template::parse(text) {
        Some(template) => Ok(Some(template)),
        None => Err(bad(
            at,
            text,
            "a path or a template of one in normal form, e.g. /products/{id}",
        )),
    }
}

/// A template that is filled from what `path` has matched.
fn filled(at: &str, text: &str, path: Option<&Template>) -> Compiled<Option<Template>> {
    match template(at, text)? {
        Some(template) if !template.fills_from(path) => {
            Err(bad(at, text, "a path that is made of what the match knows"))
        }
        template => Ok(template),
    }
}

fn target(at: &str, said: &snapshot::Share) -> Compiled<Share> {
    Ok(Share {
        service: compile::not_empty(at, said.service.clone(), "a service name")?,
        weight: said.weight,
    })
}

fn share(at: &str, percent: f64) -> Compiled<Millionths> {
    if !(0.0..=100.0).contains(&percent) {
        return Err(bad(at, percent.to_string(), "a percentage 0..100"));
    }
    Ok(Millionths((percent * 10_000.0).round() as u32))
}

fn mirror(at: &str, said: &snapshot::Mirror) -> Compiled<Mirror> {
    Ok(Mirror {
        to: compile::not_empty(at, said.to.clone(), "a service name")?,
        share: share(at, said.percent)?,
        max_pending: said.max_pending,
    })
}

fn fault(at: &str, said: &snapshot::Inject) -> Compiled<Inject> {
    let (held, ended) = (share(at, said.delay_percent)?, share(at, said.abort_percent)?);
    if said.abort != 0 && !(400..600).contains(&said.abort) {
        return Err(bad(at, said.abort.to_string(), "a status 400..599"));
    }
    Ok(Inject {
        delay: duration(said.delay_ms).map(|delay| (delay, held)),
        abort: (said.abort != 0).then_some((said.abort, ended)),
    })
}

fn action(at: &str, said: &snapshot::Route, path: Option<&Template>) -> Compiled<Action> {
    if let Some(redirect) = &said.redirect {
        let slash = redirect.to.find("://").map_or(0, |at| at + 3);
        let slash = redirect.to[slash..]
            .find('/')
            .map_or(redirect.to.len(), |at| slash + at);
        let (origin, rest) = redirect.to.split_at(slash);
        let authority = origin
            .strip_prefix("https://")
            .or_else(|| origin.strip_prefix("http://"));
        let is_origin = origin.is_empty() || authority.is_some_and(is_authority);
        return match filled(at, rest, path)? {
            Some(path) if is_origin && matches!(redirect.status, 301 | 302 | 303 | 307 | 308) => Ok(Action::Redirect {
                status: redirect.status,
                origin: origin.into(),
                path,
            }),
            _ => Err(bad(
                at,
                &redirect.to,
                "a path, or an http URL with one, with a status of redirection",
            )),
        };
    }
    if let Some(respond) = &said.respond {
        if !(200..600).contains(&respond.status) {
            return Err(bad(at, respond.status.to_string(), "a status 200..599"));
        }
        return Ok(Action::Respond(Respond {
            status: respond.status,
            body: (&*respond.body).into(),
            headers: fields(at, &respond.headers)?,
        }));
    }
    let (mut made, fields) = (Rewrite::default(), edits(at, said.request_headers.as_ref())?);
    if let Some(rewrite) = &said.rewrite {
        made.path = filled(at, &rewrite.path, path)?;
        made.host = (!rewrite.host.is_empty()).then(|| (*rewrite.host).into());
        if !made.host.as_deref().is_none_or(is_authority) {
            return Err(bad(at, &rewrite.host, "a host, with a port if need be"));
        }
    }
    made.fields = fields;
    Ok(Action::Forward((made != Rewrite::default()).then(|| Box::new(made))))
}

/// A host and perhaps a port: no user information (RFC 9110, section 4.2.4).
fn is_authority(text: &str) -> bool {
    let is_one = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~:[]".contains(&byte);
    !text.is_empty() && text.bytes().all(is_one)
}

fn fields(at: &str, said: &[(String, String)]) -> Compiled<Vec<Named>> {
    let field = |(name, value): &(String, String)| {
        if !is_value(value) {
            return Err(bad(at, value, "the value of a header"));
        }
        Ok((editable(at, name)?, (**value).into()))
    };
    said.iter().map(field).collect()
}

fn editable(at: &str, name: &str) -> Compiled<Box<str>> {
    match is_editable(name) {
        true => Ok(name.to_ascii_lowercase().into()),
        false => Err(bad(at, name, "a header that a policy may touch")),
    }
}

fn edits(at: &str, said: Option<&HeaderEdits>) -> Compiled<FieldEdits> {
    let Some(said) = said else {
        return Ok(FieldEdits::default());
    };
    Ok(FieldEdits {
        set: fields(at, &said.set)?,
        add: fields(at, &said.add)?,
        remove: said
            .remove
            .iter()
            .map(|name| editable(at, name))
            .collect::<Compiled<_>>()?,
    })
}

//! Compiles the snapshot's units and services, one value at a time.

use super::traffic::traffic;
use super::*;
use crate::balance::hash::digest;
use crate::limit::{Limit, Per, Rate};
use crate::token;

/// Only one word of a closed list will do.
pub(super) fn word<T: Copy>(
    at: &str,
    text: &str,
    words: &[(&str, T)],
    expected: &'static str,
) -> Result<T, ConfigError> {
    words
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| *value)
        .ok_or_else(|| bad(at, text, expected))
}

pub(super) fn not_empty(at: &str, text: String, expected: &'static str) -> Result<Arc<str>, ConfigError> {
    if text.is_empty() {
        return Err(bad(at, text, expected));
    }
    Ok(text.into())
}

pub(super) fn unit(unit: snapshot::Unit) -> Result<Unit, ConfigError> {
    let at = format!("unit {}", unit.unit);
    if unit.number == 0 || unit.number > MAX_UNIT_NUMBER {
        return Err(bad(&at, unit.number.to_string(), "a number 1..4095"));
    }
    if !(0.0..=1.0).contains(&unit.trace) {
        return Err(bad(&at, unit.trace.to_string(), "a share 0..1"));
    }
    if !unit.spiffe_id.starts_with("spiffe://") {
        return Err(bad(&at, unit.spiffe_id, "a SPIFFE ID"));
    }
    let file = unit
        .rule_default
        .rsplit_once(':')
        .map_or(&*unit.rule_default, |(file, _)| file);
    let rules = |rules: Vec<snapshot::InboundRule>| {
        rules
            .into_iter()
            .map(|rule| inbound_rule(&at, rule))
            .collect::<Result<Vec<_>, _>>()
    };
    Ok(Unit {
        rule_plaintext_default: format!("{file}:no-plaintext").into(),
        number: unit.number,
        ports: unit.ports.iter().map(|p| port(&at, p)).collect::<Result<_, _>>()?,
        deliver: addresses(&at, &unit.deliver)?,
        mode: word(
            &at,
            &unit.mode,
            &[("enforce", Mode::Enforce), ("audit", Mode::Audit)],
            "a mode (enforce, audit)",
        )?,
        allow: rules(unit.allow)?,
        deny: rules(unit.deny)?,
        plaintext: unit
            .plaintext
            .into_iter()
            .map(|rule| plaintext_rule(&at, rule))
            .collect::<Result<_, _>>()?,
        outbound: unit
            .outbound
            .map(|rules| rules.into_iter().map(|rule| outbound_rule(&at, rule)).collect())
            .transpose()?,
        access_log: word(
            &at,
            &unit.access_log,
            &[
                ("all", AccessLog::All),
                ("errors", AccessLog::Errors),
                ("none", AccessLog::None),
            ],
            "an access_log (all, errors, none)",
        )?,
        trace_errors: unit.trace_errors,
        trace: unit.trace,
        revoked: unit.revoked,
        tokens: token::compile(&at, unit.jwt)?,
        limits: unit
            .limits
            .into_iter()
            .map(|said| limit(&at, said))
            .collect::<Result<_, _>>()?,
        gatekeeper: unit
            .authorize
            .map(|said| gatekeeper(&at, said).map(Arc::new))
            .transpose()?,
        rule_default: unit.rule_default.into(),
        rule_outbound_default: unit.rule_outbound_default.into(),
        spiffe_id: unit.spiffe_id.into(),
        sni: not_empty(&at, unit.sni.to_ascii_lowercase(), "a server name")?,
        service: unit.service.into(),
        unit: not_empty(&at, unit.unit, "a unit name")?,
    })
}

pub(super) fn timeouts(timeouts: snapshot::Timeouts) -> Result<Timeouts, ConfigError> {
    let more_than_none = |milliseconds: u64| match milliseconds {
        0 => Err(bad("timeouts", "0", "more than 0 ms")),
        _ => Ok(Duration::from_millis(milliseconds)),
    };
    Ok(Timeouts {
        head: more_than_none(timeouts.head_ms)?,
        stall: more_than_none(timeouts.stall_ms)?,
        idle: more_than_none(timeouts.idle_ms)?,
    })
}

pub(super) fn overload(said: snapshot::Overload) -> Option<Overload> {
    let overload = Overload {
        delay: Some(Duration::from_millis(said.delay_ms)).filter(|delay| !delay.is_zero()),
        requests: Some(said.requests).filter(|most| *most > 0),
    };
    (overload.delay.is_some() || overload.requests.is_some()).then_some(overload)
}

fn port_number(at: &str, number: u16) -> Result<u16, ConfigError> {
    if number == 0 {
        return Err(bad(at, "0", "a port 1..65535"));
    }
    Ok(number)
}

fn port(at: &str, port: &snapshot::Port) -> Result<Port, ConfigError> {
    Ok(Port {
        port: port_number(at, port.port)?,
        protocol: Protocol::parse(at, &port.protocol)?,
        client_address: word(
            at,
            &port.client_address,
            &[
                ("auto", ClientAddress::Auto),
                ("keep", ClientAddress::Keep),
                ("local", ClientAddress::Local),
            ],
            "a client_address (auto, keep, local)",
        )?,
    })
}

fn request_match(
    at: &str,
    methods: Vec<String>,
    paths: Vec<String>,
    headers: Vec<(String, String)>,
) -> Result<RequestMatch, ConfigError> {
    let lower = |(name, value): (String, String)| (name.to_ascii_lowercase().into(), value.into());
    Ok(RequestMatch {
        methods: methods.into_iter().map(Into::into).collect(),
        paths: paths
            .into_iter()
            .map(|text| path_pattern(at, text))
            .collect::<Result<_, _>>()?,
        headers: headers.into_iter().map(lower).collect(),
        token: None,
    })
}

fn path_pattern(at: &str, text: String) -> Result<PathPattern, ConfigError> {
    let (path, prefix) = match text.strip_suffix('*') {
        Some(path) => (path, true),
        None => (&*text, false),
    };
    if path.contains('*') || !(path.starts_with('/') || (prefix && path.is_empty())) {
        return Err(bad(at, text, "a path pattern (begins with /, a star at its end only)"));
    }
    let path = path.into();
    Ok(if prefix {
        PathPattern::Prefix(path)
    } else {
        PathPattern::Exact(path)
    })
}

fn inbound_rule(at: &str, rule: snapshot::InboundRule) -> Result<InboundRule, ConfigError> {
    Ok(InboundRule {
        callers: rule.callers.iter().map(|text| Glob::new(text)).collect(),
        ports: rule.ports,
        request: RequestMatch {
            token: rule.jwt.map(Into::into),
            ..request_match(at, rule.methods, rule.paths, rule.headers)?
        },
        audit: rule.audit,
        rule: rule.rule.into(),
    })
}

fn limit(at: &str, limit: snapshot::Limit) -> Result<Limit, ConfigError> {
    let interval = Duration::from_millis(limit.window_ms).checked_div(limit.requests);
    let rate = interval.map(|interval| Rate {
        interval,
        burst: limit.burst,
    });
    if rate.is_some_and(|rate| rate.interval.is_zero() || rate.burst == 0) {
        return Err(bad(at, limit.of.rule, "a limit whose rate has a window and a burst"));
    }
    let concurrent = Some(limit.concurrent).filter(|most| *most > 0);
    if rate.is_none() && concurrent.is_none() {
        return Err(bad(at, limit.of.rule, "a limit with requests or concurrent"));
    }
    let per = word(
        at,
        &limit.per,
        &[("caller", Per::Caller), ("all", Per::All)],
        "whose count (caller, all)",
    )?;
    Ok(Limit::new(inbound_rule(at, limit.of)?, rate, concurrent, per))
}

fn gatekeeper(at: &str, said: snapshot::Authorize) -> Result<Gatekeeper, ConfigError> {
    let timeout = Duration::from_millis(said.timeout_ms);
    if timeout.is_zero() {
        return Err(bad(at, said.rule, "a gatekeeper that has some time"));
    }
    let on_error = [("allow", true), ("deny", false)];
    Ok(Gatekeeper {
        timeout,
        service: not_empty(at, said.service, "a gatekeeper's service")?,
        may_be_silent: word(at, &said.on_error, &on_error, "what comes of no verdict (deny, allow)")?,
        rule: said.rule.into(),
    })
}

fn network(at: &str, text: &str) -> Result<IpNet, ConfigError> {
    let address = || text.parse::<IpAddr>().map(IpNet::from);
    text.parse::<IpNet>()
        .or_else(|_| address())
        .map_err(|_| bad(at, text, "a network, e.g. 198.51.100.0/24"))
}

fn plaintext_rule(at: &str, rule: snapshot::PlaintextRule) -> Result<PlaintextRule, ConfigError> {
    let source = |text: &String| match &**text {
        "local" => Ok(Source::Local),
        text => network(at, text).map(Source::Network),
    };
    Ok(PlaintextRule {
        sources: rule.sources.iter().map(source).collect::<Result<_, _>>()?,
        ports: rule.ports,
        request: request_match(at, rule.methods, rule.paths, Vec::new())?,
        rule: rule.rule.into(),
    })
}

fn outbound_rule(at: &str, rule: snapshot::OutboundRule) -> Result<OutboundRule, ConfigError> {
    let target = match (&*rule.service, &*rule.host, &*rule.network) {
        (service, "", "") if !service.is_empty() => OutboundTarget::Service(service.into()),
        ("", host, "") if !host.is_empty() => {
            OutboundTarget::Host(host.trim_end_matches('.').to_ascii_lowercase().into())
        }
        ("", "", text) if !text.is_empty() => OutboundTarget::Network(network(at, text)?),
        _ => return Err(bad(at, rule.rule, "a rule with exactly one of service, host, network")),
    };
    Ok(OutboundRule {
        rule: rule.rule.into(),
        target,
        port: rule.port,
    })
}

fn endpoint(
    at: &str,
    service: &str,
    endpoint: snapshot::Endpoint,
    (host, zone): (&str, &str),
    units: &HashMap<Arc<str>, Arc<Unit>>,
) -> Result<Endpoint, ConfigError> {
    let is_local = endpoint.host == host;
    Ok(Endpoint {
        distance: match () {
            () if is_local => Distance::Host,
            () if !zone.is_empty() && endpoint.zone == zone => Distance::Zone,
            () => Distance::Far,
        },
        joined: OnceLock::new(),
        standing: OnceLock::new(),
        id: digest([service, &endpoint.unit, &endpoint.host].map(str::as_bytes)),
        local: is_local.then(|| units.get(&*endpoint.unit).cloned()).flatten(),
        addresses: addresses(at, &endpoint.addresses)?,
        called: None,
        wire_port: port_number(at, endpoint.wire_port)?,
        unit: endpoint.unit.into(),
        host: endpoint.host.into(),
        spiffe_id: endpoint.spiffe_id.into(),
        sni: endpoint.sni.into(),
    })
}

pub(super) fn service(
    service: snapshot::Service,
    here: (&str, &str),
    units: &HashMap<Arc<str>, Arc<Unit>>,
) -> Result<Service, ConfigError> {
    let at = format!("service {}", service.name);
    let mut ports: Vec<ServicePort> = Vec::with_capacity(service.ports.len());
    for port in &service.ports {
        let number = port_number(&at, port.port)?;
        if ports.iter().any(|port| port.port == number) {
            return Err(twice("port", number, &service.name, &service.name));
        }
        ports.push(ServicePort {
            port: number,
            target: port_number(&at, port.target)?,
            protocol: Protocol::parse(&at, &port.protocol)?,
        });
    }
    Ok(Service {
        vips: addresses(&at, &service.vips)?,
        ports,
        traffic: traffic(&at, &service.traffic)?,
        endpoints: service
            .endpoints
            .into_iter()
            .map(|e| endpoint(&at, &service.name, e, here, units).map(Arc::new))
            .collect::<Result<_, _>>()?,
        circuit: OnceLock::new(),
        name: not_empty(&at, service.name.to_ascii_lowercase(), "a service name")?,
    })
}

/// How traces are told.
pub(super) fn propagate(words: &[String]) -> Result<Formats, ConfigError> {
    words.iter().try_fold(Formats::default(), |formats, word| {
        let more =
            Formats::parse(word).ok_or_else(|| bad("propagate", word, "a way to tell traces (w3c, b3, b3multi)"))?;
        Ok(formats.and(more))
    })
}

/// The collector of traces.
pub(super) fn traces(traces: snapshot::Traces) -> Result<Traces, ConfigError> {
    let at = "traces";
    let protocols = [("grpc", Otlp::Grpc), ("http", Otlp::Http)];
    Ok(Traces {
        protocol: word(at, &traces.protocol, &protocols, "a protocol (grpc, http)")?,
        port: port_number(at, traces.port)?,
        addresses: addresses(at, &traces.addresses)?,
        ca: certificates(at, &traces.ca)?,
        queue: traces.queue as usize,
        headers: traces
            .headers
            .into_iter()
            .map(|(name, value)| (name.into(), value.into()))
            .collect(),
        endpoint: traces.endpoint.into(),
        is_tls: traces.tls,
        host: traces.host.into(),
        path: traces.path.into(),
    })
}

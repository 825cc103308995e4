//! How far one rule fits a call: caller, port, and what it asks of the request.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::net::IpAddr;

use super::{Caller, Request, Token};
use crate::claims::TokenMatch;
use crate::config::{PathPattern, RequestMatch, Source};
use crate::glob::Glob;
use crate::path::{self, Ambiguous};
use crate::token::Doubt;

/// How far a rule fits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Fit {
    No,
    Yes,
    AsksRequest,
    BadPath,
    /// All else fits.
    NeedsToken,
    BadToken(Doubt),
}

/// A request with its path's normal form, made when the first rule asks for it.
pub(super) struct Asked<'a> {
    pub(super) request: Option<&'a Request<'a>>,
    pub(super) is_http: bool,
    pub(super) normal: OnceCell<Result<Cow<'a, str>, Ambiguous>>,
}

impl<'a> Asked<'a> {
    pub(super) fn fit_allow(&self, wanted: &RequestMatch) -> Fit {
        if !wanted.asks() {
            return Fit::Yes;
        }
        if !self.is_http {
            return Fit::No; // nobody can show that opaque bytes are what the rule wants
        }
        let Some(request) = self.request else {
            return Fit::AsksRequest;
        };
        let methods = &wanted.methods;
        let method = methods.is_empty() || methods.iter().any(|method| **method == *request.method);
        let header = |(name, value): &(Box<str>, Box<str>)| {
            // One line of this name, no more: which of two the application would take is not known.
            let (mut lines, mut same) = (0, false);
            request.headers.each(name, &mut |line| {
                lines += 1;
                same = line == value.as_bytes();
            });
            lines == 1 && same
        };
        if !method || !wanted.headers.iter().all(header) {
            return Fit::No;
        }
        let token = fit_token(wanted.token.as_ref(), request.token);
        if token == Fit::No {
            return Fit::No;
        }
        match self.fit_path(&wanted.paths, request) {
            Fit::Yes => token,
            other => other,
        }
    }

    pub(super) fn fit_deny(&self, wanted: &RequestMatch) -> Fit {
        if !wanted.asks() || !self.is_http {
            return Fit::Yes; // opaque bytes may be just what the rule refuses
        }
        let Some(request) = self.request else {
            return Fit::AsksRequest;
        };
        let methods = &wanted.methods;
        // Some applications take methods without regard to case (RFC 9110 says they should not).
        let header = |(name, value): &(Box<str>, Box<str>)| {
            let mut same = false;
            request.headers.each(name, &mut |line| same |= line == value.as_bytes());
            same
        };
        if !(methods.is_empty() || methods.iter().any(|method| method.eq_ignore_ascii_case(request.method)))
            || !wanted.headers.iter().all(header)
            // Who brings no token that is good is not who it says.
            || fit_token(wanted.token.as_ref(), request.token) != Fit::Yes
        {
            return Fit::No;
        }
        self.fit_path(&wanted.paths, request)
    }

    fn fit_path(&self, paths: &[PathPattern], request: &Request<'a>) -> Fit {
        if paths.is_empty() {
            return Fit::Yes;
        }
        match self.normal.get_or_init(|| path::normal(request.path)) {
            Err(_) => Fit::BadPath,
            Ok(path) if paths.iter().any(|pattern| pattern.matches(path)) => Fit::Yes,
            Ok(_) => Fit::No,
        }
    }
}

fn fit_token(wanted: Option<&TokenMatch>, token: Token<'_>) -> Fit {
    match (wanted, token) {
        (None, _) => Fit::Yes,
        (Some(_), Token::None) => Fit::NeedsToken,
        (Some(_), Token::Bad(doubt)) => Fit::BadToken(doubt),
        (Some(wanted), Token::Good(claims)) if wanted.fits(claims) => Fit::Yes,
        (Some(_), Token::Good(_)) => Fit::No,
    }
}

pub(super) fn fits_caller(callers: &[Glob], caller: &Caller<'_>) -> bool {
    match caller {
        _ if callers.is_empty() => true,
        Caller::Identity(id) => callers.iter().any(|glob| glob.matches(id)),
        Caller::Plaintext { .. } => false,
    }
}

pub(super) fn fits_source(sources: &[Source], address: IpAddr, local: bool) -> bool {
    sources.iter().any(|source| match source {
        Source::Local => local,
        Source::Network(network) => !local && network.contains(&address.to_canonical()),
    })
}

pub(super) fn fits_port(ports: &[u16], port: u16) -> bool {
    ports.is_empty() || ports.contains(&port)
}

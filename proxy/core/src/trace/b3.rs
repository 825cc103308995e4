//! B3, as Zipkin's libraries and many proxies tell traces: one field `b3`, or several `x-b3-…`.
//!
//! A trace id has 16 or 32 digits; one that fits is written with 16, since who sent so few may read no more. Who says
//! nothing about sampling leaves it to whom is called.

use super::{Once, Span, digits, hex};

/// The fields of the form with several.
pub const MULTI: [&[u8]; 5] = [
    TRACE.as_bytes(),
    SPAN.as_bytes(),
    PARENT.as_bytes(),
    SAMPLED.as_bytes(),
    FLAGS.as_bytes(),
];
const TRACE: &str = "x-b3-traceid";
const SPAN: &str = "x-b3-spanid";
const PARENT: &str = "x-b3-parentspanid";
const SAMPLED: &str = "x-b3-sampled";
const FLAGS: &str = "x-b3-flags";

/// What B3 says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Told {
    /// The caller's span, if it has one.
    pub span: Option<Span>,
    /// Shall the trace be recorded?
    pub decision: Option<bool>,
    /// Whatever it costs.
    pub is_debug: bool,
}

impl Told {
    fn new(ids: Option<(u128, u64)>, decision: Option<bool>, is_debug: bool) -> Self {
        let is_sampled = decision == Some(true);
        Self {
            span: ids.and_then(|(trace, span)| Span::new(trace, span, is_sampled)),
            decision,
            is_debug,
        }
    }
}

/// Reads a `b3`.
pub fn parse(value: &[u8]) -> Option<Told> {
    if let Some((decision, is_debug)) = state(value) {
        return Some(Told::new(None, Some(decision), is_debug));
    }
    let mut parts = value.split(|byte| *byte == b'-');
    let ids = (trace_id(parts.next()?)?, span_id(parts.next()?)?);
    let told = match parts.next() {
        None => Told::new(Some(ids), None, false),
        Some(text) => {
            let (decision, is_debug) = state(text)?;
            Told::new(Some(ids), Some(decision), is_debug)
        }
    };
    let is_whole = parts.next().is_none_or(|parent| span_id(parent).is_some()) && parts.next().is_none();
    told.span.filter(|_| is_whole).map(|_| told)
}

fn trace_id(text: &[u8]) -> Option<u128> {
    hex(text, 16).or_else(|| hex(text, 32))
}

fn span_id(text: &[u8]) -> Option<u64> {
    u64::try_from(hex(text, 16)?).ok()
}

/// The decision, and is it debug's?
fn state(text: &[u8]) -> Option<(bool, bool)> {
    match text {
        b"0" => Some((false, false)),
        b"1" => Some((true, false)),
        b"d" => Some((true, true)),
        _ => None,
    }
}

/// The several fields, as they are seen.
#[derive(Default)]
pub struct Multi {
    trace: Once<u128>,
    span: Once<u64>,
    sampled: Once<bool>,
    is_debug: Once<bool>,
}

impl Multi {
    /// One of them.
    pub fn see(&mut self, name: &[u8], value: &[u8]) {
        if name.eq_ignore_ascii_case(TRACE.as_bytes()) {
            self.trace.see(trace_id(value));
        } else if name.eq_ignore_ascii_case(SPAN.as_bytes()) {
            self.span.see(span_id(value));
        } else if name.eq_ignore_ascii_case(SAMPLED.as_bytes()) {
            self.sampled.see(match value {
                b"1" | b"true" => Some(true),
                b"0" | b"false" => Some(false),
                _ => None,
            });
        } else if name.eq_ignore_ascii_case(FLAGS.as_bytes()) {
            self.is_debug.see(Some(value == b"1"));
        }
    }

    /// What they say together.
    pub fn told(self) -> Option<Told> {
        let is_debug = self.is_debug.said() == Some(true);
        let decision = self.sampled.said();
        let ids = self.trace.said().zip(self.span.said());
        let decision = if is_debug { Some(true) } else { decision };
        (ids.is_some() || decision.is_some()).then(|| Told::new(ids, decision, is_debug))
    }
}

fn trace_text(text: &mut [u8; 32], trace_id: u128) -> &[u8] {
    let count = if u64::try_from(trace_id).is_ok() { 16 } else { 32 };
    digits(&mut text[..count], trace_id);
    &text[..count]
}

fn span_text(span_id: u64) -> [u8; 16] {
    let mut text = [0; 16];
    digits(&mut text, span_id.into());
    text
}

/// Writes a `b3`.
pub fn write(span: &Span, parent: Option<u64>, is_debug: bool, put: &mut impl FnMut(&'static str, &[u8])) {
    let (mut text, mut length) = ([0; 32 + 1 + 16 + 2 + 1 + 16], 0);
    let mut add = |part: &[u8]| {
        text[length..length + part.len()].copy_from_slice(part);
        length += part.len();
    };
    add(trace_text(&mut [0; 32], span.trace_id));
    add(b"-");
    add(&span_text(span.span_id));
    add(match (is_debug, span.is_sampled) {
        (true, _) => b"-d",
        (false, true) => b"-1",
        (false, false) => b"-0",
    });
    if let Some(parent) = parent {
        add(b"-");
        add(&span_text(parent));
    }
    put("b3", &text[..length]);
}

/// Writes the several fields. The debug flag stands for the decision.
pub fn write_multi(span: &Span, parent: Option<u64>, is_debug: bool, put: &mut impl FnMut(&'static str, &[u8])) {
    put(TRACE, trace_text(&mut [0; 32], span.trace_id));
    put(SPAN, &span_text(span.span_id));
    if let Some(parent) = parent {
        put(PARENT, &span_text(parent));
    }
    if is_debug {
        put(FLAGS, b"1");
    } else {
        put(SAMPLED, if span.is_sampled { b"1" } else { b"0" });
    }
}

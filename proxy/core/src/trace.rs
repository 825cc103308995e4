//! Where a request stands in its trace: read from what the caller sent, written for whom is called. Random numbers are
//! arguments.
//!
//! Read and written are W3C Trace Context (`w3c`) and B3 in its two forms (`b3`). `tracestate` and `baggage` pass as they
//! come; a `tracestate` without its `traceparent` says nothing to anybody, and is dropped.

use crate::authorize::Headers;

pub mod b3;
pub mod w3c;

/// One span: which trace, which span, is it recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Not zero.
    pub trace_id: u128,
    /// Not zero.
    pub span_id: u64,
    /// Is the trace recorded, by the word of who began it?
    pub is_sampled: bool,
}

impl Span {
    /// A span of these ids; zeros are none.
    pub fn new(trace_id: u128, span_id: u64, is_sampled: bool) -> Option<Self> {
        (trace_id != 0 && span_id != 0).then_some(Self {
            trace_id,
            span_id,
            is_sampled,
        })
    }

    /// A span below this one.
    pub fn child(&self, span: u64) -> Self {
        Self {
            span_id: span.max(1),
            ..*self
        }
    }

    /// The trace id as 32 hexadecimal digits.
    pub fn trace_hex(&self) -> String {
        format!("{:032x}", self.trace_id)
    }

    /// The span id as 16 hexadecimal digits.
    pub fn span_hex(&self) -> String {
        format!("{:016x}", self.span_id)
    }
}

/// In which ways traces are told to whom is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Formats(u8);

impl Formats {
    /// `traceparent`.
    pub const W3C: Self = Self(1);
    /// `b3`.
    pub const B3: Self = Self(2);
    /// `x-b3-traceid` and its like.
    pub const B3_MULTI: Self = Self(4);

    /// By the word of the settings.
    pub fn parse(word: &str) -> Option<Self> {
        match word {
            "w3c" => Some(Self::W3C),
            "b3" => Some(Self::B3),
            "b3multi" => Some(Self::B3_MULTI),
            _ => None,
        }
    }

    /// These and those.
    pub fn and(self, more: Self) -> Self {
        Self(self.0 | more.0)
    }

    /// Are all of those among these?
    pub fn has(self, those: Self) -> bool {
        self.0 & those.0 == those.0
    }
}

/// What a caller says of the trace of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Incoming {
    /// The caller's span; none: the trace begins here.
    pub parent: Option<Span>,
    /// Has the caller decided whether the trace is recorded? Its span says how.
    decision: Option<bool>,
    /// Recorded whatever it costs (B3's debug flag).
    is_debug: bool,
    /// In which ways it was told.
    formats: Formats,
    /// The parent is a `traceparent`: `tracestate` belongs to it.
    is_w3c: bool,
}

impl Incoming {
    /// Reads header fields. Of several ways `traceparent` counts, then `b3`. A field that is there twice is none.
    pub fn read(headers: &dyn Headers) -> Self {
        let mut fields = Fields::default();
        headers.all(&mut |name, value| fields.see(name, value));
        fields.read()
    }

    /// Below this span, which was told apart from all others' fields; none: the trace begins here.
    pub fn below(parent: Option<Span>) -> Self {
        Self {
            parent,
            decision: parent.map(|parent| parent.is_sampled),
            ..Self::default()
        }
    }

    /// The span of the request on this hop. `share`: how many of the traces that begin here, or whose caller leaves it to
    /// us, are sampled, 0..1; equal traces decide alike.
    pub fn span(&self, mut random: impl FnMut() -> u64, share: f64) -> Span {
        let trace_id = match self.parent {
            Some(parent) => parent.trace_id,
            None => (u128::from(random()) << 64 | u128::from(random())).max(1),
        };
        Span {
            trace_id,
            span_id: random().max(1),
            is_sampled: self.decision.unwrap_or_else(|| is_chosen(trace_id, share)),
        }
    }

    /// What is told to whom is called below `span`: in the ways of the settings, and in those of the caller.
    pub fn outgoing(&self, span: Span, parent: Option<u64>, formats: Formats) -> Outgoing {
        Outgoing {
            span,
            parent,
            is_debug: self.is_debug,
            formats: formats.and(self.formats),
            keeps_state: self.is_w3c,
        }
    }
}

/// Does chance choose this trace? 53 bits of it: what an f64 holds exactly.
pub fn is_chosen(trace_id: u128, share: f64) -> bool {
    let chance = (trace_id as u64 >> 11) as f64 / (1u64 << 53) as f64;
    chance < share
}

/// The fields of a request that concern traces, as they are seen.
#[derive(Default)]
struct Fields {
    traceparent: Once<Span>,
    b3: Once<b3::Told>,
    multi: b3::Multi,
    formats: Formats,
}

/// What a field says that may be there once.
#[derive(Default)]
enum Once<T> {
    #[default]
    Missing,
    Said(Option<T>),
    Twice,
}

impl<T> Once<T> {
    fn see(&mut self, said: Option<T>) {
        *self = match self {
            Self::Missing => Self::Said(said),
            _ => Self::Twice,
        };
    }

    fn said(self) -> Option<T> {
        match self {
            Self::Said(said) => said,
            _ => None,
        }
    }
}

impl Fields {
    fn see(&mut self, name: &[u8], value: &[u8]) {
        let format = format_of(name);
        match format {
            Some(Formats::W3C) => self.traceparent.see(w3c::parse(value)),
            Some(Formats::B3) => self.b3.see(b3::parse(value)),
            Some(_) => self.multi.see(name, value),
            None => return,
        }
        self.formats = self.formats.and(format.unwrap_or_default());
    }

    fn read(self) -> Incoming {
        let formats = self.formats;
        if let Some(parent) = self.traceparent.said() {
            return Incoming {
                parent: Some(parent),
                decision: Some(parent.is_sampled),
                is_debug: false,
                formats,
                is_w3c: true,
            };
        }
        let told = self.b3.said().or_else(|| self.multi.told()).unwrap_or_default();
        Incoming {
            parent: told.span,
            decision: told.decision,
            is_debug: told.is_debug,
            formats,
            is_w3c: false,
        }
    }
}

/// To which way of telling a field belongs. Most names are told apart by their length.
fn format_of(name: &[u8]) -> Option<Formats> {
    match name.len() {
        2 if name.eq_ignore_ascii_case(b"b3") => Some(Formats::B3),
        11 if name.eq_ignore_ascii_case(b"traceparent") => Some(Formats::W3C),
        10..=17 if b3::MULTI.iter().any(|multi| name.eq_ignore_ascii_case(multi)) => Some(Formats::B3_MULTI),
        _ => None,
    }
}

/// Does this field say where a request stands in its trace?
pub fn is_field(name: &[u8]) -> bool {
    format_of(name).is_some()
}

/// What is told of the trace to whom is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outgoing {
    span: Span,
    parent: Option<u64>,
    is_debug: bool,
    formats: Formats,
    keeps_state: bool,
}

impl Outgoing {
    /// Is this one of the caller's fields that are not passed on as they came?
    pub fn replaces(&self, name: &[u8]) -> bool {
        format_of(name).is_some() || (!self.keeps_state && name.eq_ignore_ascii_case(b"tracestate"))
    }

    /// Gives the fields: lower-case name, value.
    pub fn fields(&self, mut put: impl FnMut(&'static str, &[u8])) {
        if self.formats.has(Formats::W3C) {
            put("traceparent", &w3c::write(&self.span));
        }
        if self.formats.has(Formats::B3) {
            b3::write(&self.span, self.parent, self.is_debug, &mut put);
        }
        if self.formats.has(Formats::B3_MULTI) {
            b3::write_multi(&self.span, self.parent, self.is_debug, &mut put);
        }
    }
}

/// Fills in lower-case digits, from the last. One request has two of these a hop: the formatter's way costs tenfold.
fn digits(text: &mut [u8], mut value: u128) {
    for digit in text.iter_mut().rev() {
        *digit = b"0123456789abcdef"[(value & 0xf) as usize];
        value >>= 4;
    }
}

/// Lower-case digits only, so many.
fn hex(digits: &[u8], count: usize) -> Option<u128> {
    if digits.len() != count {
        return None;
    }
    digits.iter().try_fold(0, |sum, byte| match byte {
        b'0'..=b'9' => Some(sum << 4 | u128::from(byte - b'0')),
        b'a'..=b'f' => Some(sum << 4 | u128::from(byte - b'a' + 10)),
        _ => None,
    })
}

#[cfg(test)]
#[path = "trace_tests.rs"]
mod tests;

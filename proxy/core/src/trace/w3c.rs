//! `traceparent` of W3C Trace Context (the recommendation of 2021, sections 3.2 and 4).

use super::{Span, digits, hex};

const SAMPLED: u128 = 1;
/// Of version 00.
pub const LENGTH: usize = 55;

/// Reads a `traceparent`. Later versions than 00 count by the fields that they share with it (section 3.2.4).
pub fn parse(value: &[u8]) -> Option<Span> {
    let (fixed, rest) = value.split_first_chunk::<LENGTH>()?;
    if [2, 35, 52].iter().any(|place| fixed[*place] != b'-') {
        return None;
    }
    let part = |from: usize, to: usize| hex(&fixed[from..to], to - from);
    let (version, trace_id, span_id, flags) = (part(0, 2)?, part(3, 35)?, part(36, 52)?, part(53, 55)?);
    let is_of_this = version == 0 && rest.is_empty();
    let is_later = version != 0 && version != 0xff && rest.first().is_none_or(|byte| *byte == b'-');
    if !is_of_this && !is_later {
        return None;
    }
    Span::new(trace_id, u64::try_from(span_id).ok()?, flags & SAMPLED != 0)
}

/// Writes a `traceparent` of version 00.
pub fn write(span: &Span) -> [u8; LENGTH] {
    let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
    digits(&mut text[3..35], span.trace_id);
    digits(&mut text[36..52], span.span_id.into());
    digits(&mut text[53..], span.is_sampled.into());
    text
}

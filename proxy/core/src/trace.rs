//! Reads and writes W3C Trace Context (the recommendation of 2021, sections 3.2 and 4). Random numbers are arguments.

use std::fmt;

/// One span: which trace, which span, is it recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Not zero.
    pub trace_id: u128,
    /// Not zero.
    pub span_id: u64,
    /// The caller's flags; bit 0: sampled.
    pub flags: u8,
}

const SAMPLED: u8 = 1;

impl Span {
    /// Reads a `traceparent`. Later versions than 00 count by the fields that they share with it (section 3.2.4).
    pub fn parse(value: &[u8]) -> Option<Self> {
        let (fixed, rest) = value.split_at_checked(55)?;
        let parts: Vec<&[u8]> = fixed.split(|byte| *byte == b'-').collect();
        let [version, trace, span, flags] = parts[..] else {
            return None;
        };
        let version = hex(version, 2)?;
        if version == 0xff || (version == 0 && !rest.is_empty()) || (!rest.is_empty() && rest[0] != b'-') {
            return None;
        }
        let (trace_id, span_id) = (hex(trace, 32)?, hex(span, 16)?);
        if trace_id == 0 || span_id == 0 {
            return None;
        }
        Some(Self {
            trace_id,
            span_id: u64::try_from(span_id).ok()?,
            flags: u8::try_from(hex(flags, 2)?).ok()?,
        })
    }

    /// A new trace. `share`: how many of such are sampled, 0..1; `random` decides, so equal traces decide alike.
    pub fn root(random: (u64, u64), span: u64, share: f64) -> Self {
        let trace_id = (u128::from(random.0) << 64 | u128::from(random.1)).max(1);
        // 53 bits of chance: what an f64 holds exactly.
        let chance = (random.1 >> 11) as f64 / (1u64 << 53) as f64;
        Self {
            trace_id,
            span_id: span.max(1),
            flags: if chance < share { SAMPLED } else { 0 },
        }
    }

    /// A span below this one.
    pub fn child(&self, span: u64) -> Self {
        Self {
            span_id: span.max(1),
            flags: self.flags & SAMPLED,
            ..*self
        }
    }

    /// Is the trace recorded?
    pub fn is_sampled(&self) -> bool {
        self.flags & SAMPLED != 0
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

impl fmt::Display for Span {
    /// As a `traceparent`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = *b"00-00000000000000000000000000000000-0000000000000000-00";
        digits(&mut text[3..35], self.trace_id);
        digits(&mut text[36..52], self.span_id.into());
        digits(&mut text[53..], self.flags.into());
        f.write_str(std::str::from_utf8(&text).map_err(|_| fmt::Error)?)
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
mod tests {
    use super::Span;

    const GOOD: &[u8] = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn reads_what_it_writes() {
        let span = Span::parse(GOOD).expect("the recommendation's example");
        assert_eq!(span.to_string().as_bytes(), GOOD);
        assert!(span.is_sampled());
        let child = span.child(7);
        assert_eq!((child.trace_id, child.span_id), (span.trace_id, 7));
        assert_eq!(child.trace_hex(), "4bf92f3577b34da6a3ce929d0e0e4736");
        assert_eq!(child.span_hex(), "0000000000000007");
    }

    #[test]
    fn refuses_what_the_recommendation_refuses() {
        let text = String::from_utf8_lossy(GOOD).into_owned();
        for bad in [
            text.replace("4bf9", "4BF9"),
            text.replacen("00-", "ff-", 1),
            text.replace("00f067aa0ba902b7", "0000000000000000"),
            text.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            text.replace("-01", "-0x"),
            text.replace("-01", "-01-x"),
            text[..54].to_owned(),
            String::new(),
        ] {
            assert_eq!(Span::parse(bad.as_bytes()), None, "{bad}");
        }
        let later = text.replacen("00-", "01-", 1) + "-more";
        assert!(Span::parse(later.as_bytes()).is_some());
    }

    #[test]
    fn samples_the_share_that_is_asked() {
        assert!(!Span::root((1, u64::MAX), 1, 0.0).is_sampled());
        assert!(Span::root((1, u64::MAX), 1, 1.0).is_sampled());
        let sampled = (0..1000u64)
            .filter(|i| Span::root((1, i << 54), 1, 0.25).is_sampled())
            .count();
        assert_eq!(sampled, 256, "of 1024 equal steps the first quarter");
        assert_ne!(Span::root((0, 0), 0, 1.0).trace_id, 0);
    }
}

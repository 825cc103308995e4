//! Traces: what is read in which way, who decides, what is told to whom is called.

use proptest::prelude::*;

use super::{Formats, Incoming, Span, b3, is_chosen, w3c};
use crate::authorize::Headers;

struct Listed(Vec<(String, Vec<u8>)>);

impl Headers for Listed {
    fn each(&self, name: &str, see: &mut dyn FnMut(&[u8])) {
        let found = self.0.iter().filter(|(key, _)| key == name);
        found.for_each(|(_, value)| see(value));
    }

    fn all(&self, see: &mut dyn FnMut(&[u8], &[u8])) {
        self.0.iter().for_each(|(name, value)| see(name.as_bytes(), value));
    }
}

fn read(fields: &[(&str, &str)]) -> Incoming {
    let fields = fields.iter();
    let owned = fields.map(|(name, value)| ((*name).to_owned(), value.as_bytes().to_vec()));
    Incoming::read(&Listed(owned.collect()))
}

/// What would be sent on below the caller's own span.
fn passed(incoming: &Incoming, parent: Option<u64>, formats: Formats) -> Vec<(String, String)> {
    let span = incoming.parent.expect("a parent");
    let mut out = Vec::new();
    incoming.outgoing(span, parent, formats).fields(|name, value| {
        out.push((name.to_owned(), String::from_utf8(value.to_vec()).expect("ASCII")));
    });
    out
}

const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const TRACE: u128 = 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736;
const SPAN: u64 = 0x00f0_67aa_0ba9_02b7;

#[test]
fn reads_what_it_writes() {
    let span = w3c::parse(GOOD.as_bytes()).expect("the recommendation's example");
    assert_eq!(w3c::write(&span), GOOD.as_bytes());
    assert_eq!((span.trace_id, span.span_id, span.is_sampled), (TRACE, SPAN, true));
    let child = span.child(7);
    assert_eq!((child.trace_id, child.span_id), (TRACE, 7));
    assert_eq!(child.trace_hex(), "4bf92f3577b34da6a3ce929d0e0e4736");
    assert_eq!(child.span_hex(), "0000000000000007");
}

#[test]
fn refuses_what_the_recommendation_refuses() {
    for bad in [
        GOOD.replace("4bf9", "4BF9"),
        GOOD.replacen("00-", "ff-", 1),
        GOOD.replace("00f067aa0ba902b7", "0000000000000000"),
        GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
        GOOD.replace("-01", "-0x"),
        GOOD.replace("-01", "-01-x"),
        GOOD[..54].to_owned(),
        String::new(),
    ] {
        assert_eq!(w3c::parse(bad.as_bytes()), None, "{bad}");
    }
    let later = GOOD.replacen("00-", "01-", 1) + "-more";
    assert!(w3c::parse(later.as_bytes()).is_some());
}

#[test]
fn reads_b3_in_both_forms() {
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let single = |text: &str| b3::parse(text.as_bytes());
    let told = single(&format!("{trace}-00f067aa0ba902b7-1-0000000000000009")).expect("all four");
    assert_eq!(told.span, Span::new(TRACE, SPAN, true));
    assert_eq!(single("0").expect("no").decision, Some(false));
    assert!(single("d").expect("debug").is_debug);
    let short = single("a3ce929d0e0e4736-00f067aa0ba902b7").expect("64 bits").span;
    assert_eq!(short, Span::new(0xa3ce_929d_0e0e_4736, SPAN, false));
    for bad in [
        "",
        "2",
        trace,
        "a3ce929d0e0e4736-",
        "0000000000000000-00f067aa0ba902b7",
        "a3ce929d0e0e4736-00f067aa0ba902b7-x",
        "a3ce929d0e0e4736-00f067aa0ba902b7-1-9",
        "a3ce929d0e0e4736-00f067aa0ba902b7-1-0000000000000009-",
        "A3CE929D0E0E4736-00f067aa0ba902b7",
    ] {
        assert_eq!(single(bad), None, "{bad}");
    }
    let multi = read(&[
        ("X-B3-TraceId", trace),
        ("X-B3-SpanId", "00f067aa0ba902b7"),
        ("x-b3-sampled", "true"),
    ]);
    assert_eq!(multi.parent, Span::new(TRACE, SPAN, true));
    let no_span = read(&[("x-b3-traceid", trace), ("x-b3-sampled", "0")]);
    assert_eq!(no_span.parent, None);
    assert!(
        !no_span.span(|| 7, 1.0).is_sampled,
        "what the caller decided holds for a trace that begins here"
    );
}

#[test]
fn the_recommendation_wins_over_b3_and_what_is_there_twice_is_none() {
    let b3 = ("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-0");
    assert_eq!(
        read(&[b3, ("traceparent", GOOD)]).parent.map(|span| span.trace_id),
        Some(TRACE)
    );
    let twice = read(&[("traceparent", GOOD), ("traceparent", GOOD), b3]);
    assert_eq!(twice.parent.map(|span| span.trace_id), Some(0xa3ce_929d_0e0e_4736));
    assert_eq!(read(&[b3, b3]).parent, None);
}

#[test]
fn a_caller_is_answered_in_its_own_way_and_by_the_settings() {
    let b3 = read(&[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7-d")]);
    assert_eq!(
        passed(&b3, Some(9), Formats::W3C),
        [
            (
                "traceparent".to_owned(),
                "00-0000000000000000a3ce929d0e0e4736-00f067aa0ba902b7-01".to_owned()
            ),
            (
                "b3".to_owned(),
                "a3ce929d0e0e4736-00f067aa0ba902b7-d-0000000000000009".to_owned()
            ),
        ]
    );
    let w3c = read(&[("traceparent", GOOD)]);
    let names: Vec<_> = passed(&w3c, None, Formats::B3_MULTI)
        .into_iter()
        .map(|(name, _)| name)
        .collect();
    assert_eq!(names, ["traceparent", "x-b3-traceid", "x-b3-spanid", "x-b3-sampled"]);
    let span = w3c.span(|| 7, 0.0);
    let edits = w3c.outgoing(span, None, Formats::W3C);
    assert!(edits.replaces(b"TraceParent") && edits.replaces(b"X-B3-Sampled") && edits.replaces(b"b3"));
    assert!(!edits.replaces(b"tracestate") && !edits.replaces(b"baggage"));
    assert!(
        b3.outgoing(span, None, Formats::W3C).replaces(b"tracestate"),
        "it belongs to no traceparent"
    );
}

#[test]
fn who_decides_is_the_caller_then_the_share() {
    assert!(read(&[("traceparent", GOOD)]).span(|| 7, 0.0).is_sampled);
    assert!(
        !read(&[("traceparent", &GOOD.replace("-01", "-00"))])
            .span(|| 7, 1.0)
            .is_sampled
    );
    let left_to_us = read(&[("b3", "a3ce929d0e0e4736-00f067aa0ba902b7")]);
    assert!(left_to_us.span(|| 7, 1.0).is_sampled && !left_to_us.span(|| 7, 0.0).is_sampled);
    let begun = read(&[]).span(|| 0, 1.0);
    assert!(begun.trace_id != 0 && begun.span_id != 0);
}

#[test]
fn samples_the_share_that_is_asked() {
    assert!(!is_chosen(u128::from(u64::MAX), 0.0) && is_chosen(u128::from(u64::MAX), 1.0));
    let sampled = (0..1024u128).filter(|i| is_chosen(i << 54, 0.25)).count();
    assert_eq!(sampled, 256, "of 1024 equal steps the first quarter");
}

proptest! {
    #[test]
    fn every_format_carries_the_span(trace in 1u128.., span in 1u64.., parent: Option<u64>, sampled: bool) {
        let from = Span::new(trace, span, sampled).expect("ids");
        for format in [Formats::W3C, Formats::B3, Formats::B3_MULTI] {
            let mut fields = Vec::new();
            let begun = Incoming { parent: Some(from), ..Incoming::default() };
            begun.outgoing(from, parent, format).fields(|name, value| fields.push((name.to_owned(), value.to_vec())));
            let read = Incoming::read(&Listed(fields));
            prop_assert_eq!(read.parent, Some(from));
            prop_assert_eq!(read.span(|| 7, 0.5).is_sampled, sampled);
            prop_assert!(read.formats == format);
        }
    }

    #[test]
    fn noise_is_no_trace_and_nothing_falls_over(values: [String; 4]) {
        let names = ["traceparent", "b3", "x-b3-traceid", "x-b3-spanid"];
        let fields: Vec<_> = names.iter().copied().zip(values.iter().map(String::as_str)).collect();
        let incoming = read(&fields);
        let span = incoming.span(|| 7, 0.5);
        prop_assert!(span.trace_id != 0 && span.span_id != 0);
    }
}

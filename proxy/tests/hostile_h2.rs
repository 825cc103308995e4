//! The corpus of hostile HTTP/2 (`tests/corpus/h2`), said on the wire by a peer with a sound SVID: no request gets past the
//! judging, the proxy goes on to serve others, and whoever breaks the rules is counted and told.

mod corpus;
#[allow(dead_code)] // other tests use the rest
mod ends;
#[allow(dead_code)]
mod frames;
#[allow(dead_code)]
mod hostile;

use corpus::corpus;
use ends::{ORDERS, WEB_UNIT, run};
use frames::{Heard, REQUEST, Speaker, block, frame, serves};
use hostile::{Door, House};
use serde::Deserialize;

/// A file of the corpus.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// Why it is hostile.
    about: String,
    frames: Vec<Frame>,
    outcome: Outcome,
    /// The code of what ends the connection or the stream (RFC 9113, section 7).
    #[serde(default)]
    code: String,
}

/// What becomes of it.
#[derive(Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// The connection ends.
    Ends,
    /// The stream is reset.
    Reset,
    /// The stream is answered, and not with 200.
    Refused,
    /// Nothing: what is not understood is skipped, and the request arrives as it was judged.
    Skipped,
}

/// What it consists of, one after the other; `{port}` stands for the unit's.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Frame {
    kind: Kind,
    #[serde(default)]
    flags: Vec<String>,
    #[serde(default)]
    stream: u32,
    #[serde(default)]
    hex: String,
    #[serde(default)]
    text: String,
    #[serde(default)]
    zeros: usize,
    #[serde(default)]
    fields: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Kind {
    Known(String),
    Unknown(u8),
}

impl Frame {
    fn bytes(&self, port: u16) -> Vec<u8> {
        let kind = match &self.kind {
            Kind::Known(name) => frames::KINDS.iter().position(|kind| kind == name).expect("a kind") as u8,
            Kind::Unknown(number) => *number,
        };
        let flag = |name: &String| match &**name {
            "ACK" | "END_STREAM" => 1,
            "END_HEADERS" => 4,
            "PADDED" => 8,
            "PRIORITY" => 32,
            other => panic!("{other} is no flag"),
        };
        let digits = |at| u8::from_str_radix(&self.hex[at..at + 2], 16).expect("hex");
        let mut load: Vec<u8> = (0..self.hex.len()).step_by(2).map(digits).collect();
        load.extend(self.text.bytes());
        load.resize(load.len() + self.zeros, 0);
        let fields: Vec<_> = self
            .fields
            .iter()
            .map(|(name, value)| (&**name, value.replace("{port}", &port.to_string())))
            .collect();
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, &**value)).collect();
        load.extend(block(&fields));
        frame(kind, self.flags.iter().map(flag).sum(), self.stream, &load)
    }
}

fn outcome(heard: &Heard) -> Option<(Outcome, &'static str)> {
    let name = |code: u32| frames::CODES[code as usize];
    match (heard.goaway, heard.resets.first()) {
        (Some(code), _) if heard.ended && code > 0 => Some((Outcome::Ends, name(code))),
        // What else comes on its stream is not wanted then: a reset without an error.
        _ if heard.refused == [1] => Some((Outcome::Refused, "")),
        (_, Some((1, code))) => Some((Outcome::Reset, name(*code))),
        _ if heard.accepted == [1] && !heard.ended => Some((Outcome::Skipped, "")),
        _ => None,
    }
}

async fn check(house: &mut House, case: &Case) -> Result<(), String> {
    // What arrives is checked to the byte, in the name of the certificate.
    let arrives: &[Vec<u8>] = if case.outcome == Outcome::Skipped {
        &[REQUEST.to_vec()]
    } else {
        &[]
    };
    house.expect(Door::Wire, arrives);
    house.mesh.h2.events.journal.top_up(&mut Vec::new(), 100);
    let before = house.mesh.h2.gauge("wire_violations");
    let mut speaker = Speaker::new(house).await;
    let port = house.mesh.ports[0];
    let bytes: Vec<u8> = case.frames.iter().flat_map(|frame| frame.bytes(port)).collect();
    speaker.say(&bytes).await;
    let heard = speaker.hear().await;
    if outcome(&heard) != Some((case.outcome, &case.code)) {
        return Err(format!("{heard:?}"));
    }
    let others = house.arrivals.others.borrow().concat();
    if house.arrivals.whole.get() != arrives.len() || !others.is_empty() {
        return Err(format!(
            "{} arrived whole; others: {}",
            house.arrivals.whole.get(),
            others.escape_ascii()
        ));
    }
    if case.outcome == Outcome::Ends {
        if house.mesh.h2.gauge("wire_violations") != before + 1 {
            return Err("it is not counted".to_owned());
        }
        let told = house.mesh.h2.event().await;
        if (&*told.unit, &*told.peer) != (WEB_UNIT, ORDERS) || !told.message.contains("HTTP/2") {
            return Err(format!("the unit's journal says: {told:?}"));
        }
    }
    Ok(())
}

#[test]
fn no_frame_gets_past_the_judging() {
    let cases = corpus::<Case>("h2");
    assert!(cases.len() >= 50, "{} cases", cases.len());
    run(async move {
        let mut house = House::new().await;
        let mut failed = Vec::new();
        for (name, case) in &cases {
            if let Err(why) = check(&mut house, case).await {
                failed.push(format!("{name}: {why}\n    {}", case.about));
            }
        }
        assert!(
            failed.is_empty(),
            "{} of {} failed:\n{}",
            failed.len(),
            cases.len(),
            failed.join("\n")
        );
        serves(&house).await;
    });
}

#[test]
fn what_is_no_http_2_is_hung_up_on() {
    run(async {
        let house = House::new().await;
        for bytes in [REQUEST, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r", &[0; 4096]] {
            let mut speaker = Speaker::silent(&house).await;
            speaker.say(bytes).await;
            let heard = speaker.hear().await;
            assert!(
                heard.ended && heard.accepted.is_empty(),
                "{}: {heard:?}",
                bytes.escape_ascii()
            );
        }
        assert_eq!(house.mesh.h2.gauge("wire_violations"), 3);
        serves(&house).await;
    });
}

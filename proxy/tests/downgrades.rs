//! The corpus of HTTP/2 for an application of HTTP/1.1 (`tests/corpus/downgrade`) by every door: nothing of a request
//! becomes a line, a length or a request of its own on the way down.

mod corpus;
#[allow(dead_code)] // other tests use the rest
mod ends;
#[allow(dead_code)]
mod frames;
#[allow(dead_code)]
mod hostile;

use std::time::Duration;

use corpus::corpus;
use ends::run;
use frames::{Heard, block, frame, heard};
use hostile::{Door, House};
use hostmesh_proxy_core::http2::PREFACE;
use serde::Deserialize;
use tokio::time::timeout;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// The application has answered.
    Answered,
    /// The proxy has, and the connection goes on.
    Refused,
    /// The stream or its connection was broken off.
    Broken,
}

/// A file of the corpus.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// Why it is hostile.
    about: String,
    fields: Vec<(String, String)>,
    data: Option<String>,
    #[serde(default)]
    trailers: Vec<(String, String)>,
    outcome: Outcome,
    /// The request that arrives, without what the mesh adds.
    arrives: Option<String>,
}

impl Case {
    fn bytes(&self) -> Vec<u8> {
        let block_of = |fields: &[(String, String)]| {
            let fields: Vec<_> = fields
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect();
            block(&fields)
        };
        let (has_data, has_trailers) = (self.data.is_some(), !self.trailers.is_empty());
        let end = |is_last: bool| if is_last { END_STREAM } else { 0 };
        let head = frame(HEADERS, END_HEADERS | end(!has_data), 1, &block_of(&self.fields));
        let data = self
            .data
            .as_ref()
            .map(|data| frame(DATA, end(!has_trailers), 1, data.as_bytes()));
        let trailers = has_trailers.then(|| frame(HEADERS, END_HEADERS | END_STREAM, 1, &block_of(&self.trailers)));
        let begin = [PREFACE, &frame(SETTINGS, 0, 0, &[])].concat();
        [begin, head, data.unwrap_or_default(), trailers.unwrap_or_default()].concat()
    }
}

fn outcome(heard: &Heard) -> Option<Outcome> {
    if heard.accepted.contains(&1) {
        Some(Outcome::Answered)
    } else if heard.refused.contains(&1) {
        Some(Outcome::Refused)
    } else {
        (heard.ended || heard.goaway.is_some() || !heard.resets.is_empty()).then_some(Outcome::Broken)
    }
}

async fn check(house: &House, door: Door, case: &Case) -> Result<(), String> {
    let arrives: Vec<_> = case.arrives.iter().map(|text| text.as_bytes().to_vec()).collect();
    house.expect(door, &arrives);
    let mut client = house.client(door).await;
    client.send(&case.bytes()).await;
    let mut bytes = Vec::new();
    let listen = async {
        loop {
            let more = client.recv().await;
            let is_end = more.is_none();
            bytes.extend(more.unwrap_or_default());
            let heard = heard(&bytes, is_end);
            if let Some(outcome) = outcome(&heard) {
                return outcome;
            }
        }
    };
    let told = timeout(Duration::from_secs(3), listen).await;
    let others: Vec<String> = house
        .arrivals
        .others
        .borrow()
        .iter()
        .map(|other| other.escape_ascii().to_string())
        .collect();
    let Ok(told) = told else {
        return Err(format!("no answer in time; the application has got {others:?}"));
    };
    if told != case.outcome || house.arrivals.whole.get() != arrives.len() {
        return Err(format!("{told:?}; the application has got {others:?}"));
    }
    // A head whose body turned out bad may have gone on, here or a case ago: it is broken off, and ends nowhere.
    let is_open = |other: &String| other.starts_with("POST /a HTTP/1.1\\r\\nhost: web\\r\\n");
    let is_more = |other: &String| !is_open(other) || other.contains("secret") || other.ends_with("0\\r\\n\\r\\n");
    match others.iter().find(|other| is_more(other)) {
        None => Ok(()),
        Some(other) => Err(format!("arrived too: {other:?}")),
    }
}

#[test]
fn what_arrives_is_what_was_judged() {
    let cases = corpus::<Case>("downgrade");
    assert!(cases.len() >= 50, "{} cases", cases.len());
    run(async move {
        let mut failed = Vec::new();
        for door in [Door::Outbound, Door::Wire, Door::Plaintext] {
            let house = House::new().await;
            for (name, case) in &cases {
                if let Err(why) = check(&house, door, case).await {
                    failed.push(format!("{name} by {door:?}: {why}\n    {}", case.about));
                }
            }
        }
        assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
    });
}

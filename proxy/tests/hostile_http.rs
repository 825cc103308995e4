//! The corpus of hostile HTTP (`tests/corpus/http`) by every door: what the client is told, and which bytes arrive at the
//! application. None arrives as two, or as other than it was judged.

mod corpus;
#[allow(dead_code)] // other tests use the rest
mod ends;
mod hostile;

use std::time::Duration;

use corpus::corpus;
use ends::run;
use hostile::{Client, Door, House};
use serde::Deserialize;
use tokio::time::timeout;

/// A file of the corpus. Texts are bytes: characters up to U+00FF, each one byte.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Case {
    /// Why it is hostile.
    about: String,
    send: String,
    /// The answers' statuses, in their order.
    status: Vec<u16>,
    /// Does the connection end after them?
    closes: bool,
    /// The requests that arrive at the application, without what the mesh adds.
    arrives: Vec<String>,
}

fn bytes(text: &str) -> Vec<u8> {
    text.chars()
        .map(|char| u8::try_from(u32::from(char)).expect("a byte"))
        .collect()
}

/// One answer with its body; `None` when it is not whole yet.
fn split_answer(heard: &[u8]) -> Option<(u16, usize)> {
    let end = heard.windows(4).position(|four| four == b"\r\n\r\n")? + 4;
    let head = std::str::from_utf8(&heard[..end]).expect("text");
    let status = head.split(' ').nth(1)?.parse().expect("a status");
    let length: usize = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "))
        .map_or(0, |length| length.parse().expect("a length"));
    (heard.len() >= end + length).then_some((status, end + length))
}

/// The answers as they come, to the number that is wanted or to the end.
async fn answers(client: &mut Client, wanted: usize) -> (Vec<u16>, Vec<u8>) {
    let (mut statuses, mut heard) = (Vec::new(), Vec::new());
    while statuses.len() < wanted {
        while let Some((status, length)) = split_answer(&heard) {
            statuses.push(status);
            heard.drain(..length);
        }
        if statuses.len() >= wanted {
            break;
        }
        match client.recv().await {
            Some(more) => heard.extend(more),
            None => break,
        }
    }
    (statuses, heard)
}

async fn check(house: &House, door: Door, case: &Case) -> Result<(), String> {
    let arrives: Vec<_> = case.arrives.iter().map(|text| bytes(text)).collect();
    house.expect(door, &arrives);
    let mut client = house.client(door).await;
    client.send(&bytes(&case.send)).await;
    let told = timeout(Duration::from_secs(3), answers(&mut client, case.status.len())).await;
    let others = || -> String {
        let others = house.arrivals.others.borrow();
        others.iter().map(|other| format!("{}", other.escape_ascii())).collect()
    };
    let Ok((statuses, rest)) = told else {
        return Err(format!("no answer in time; the application has got {}", others()));
    };
    if statuses != case.status || !rest.is_empty() {
        return Err(format!(
            "told {statuses:?} and {}; arrived: {}",
            rest.escape_ascii(),
            others()
        ));
    }
    if case.closes {
        match timeout(Duration::from_secs(3), client.recv()).await {
            Ok(None) => {}
            Ok(Some(more)) => return Err(format!("goes on after its last answer: {}", more.escape_ascii())),
            Err(_) => return Err("stays open".to_owned()),
        }
    } else if !reused(house, door, &mut client).await {
        return Err("is not to be used again".to_owned());
    }
    if house.arrivals.whole.get() != arrives.len() + usize::from(!case.closes) {
        return Err(format!(
            "{} arrived whole; others: {}",
            house.arrivals.whole.get(),
            others()
        ));
    }
    match others().is_empty() {
        true => Ok(()),
        false => Err(format!("arrived too: {}", others())),
    }
}

/// The connection carries another request, and nothing of the one before comes with it.
async fn reused(house: &House, door: Door, client: &mut Client) -> bool {
    let next = b"GET /next HTTP/1.1\r\nHost: web\r\n\r\n";
    let whole = house.arrivals.whole.get();
    house.expect(door, &[next.to_vec()]);
    house.arrivals.whole.set(whole);
    client.send(next).await;
    matches!(timeout(Duration::from_secs(3), answers(client, 1)).await, Ok((statuses, _)) if statuses == [200])
}

#[test]
fn what_arrives_is_what_was_judged() {
    let cases = corpus::<Case>("http");
    assert!(cases.len() >= 60, "{} cases", cases.len());
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

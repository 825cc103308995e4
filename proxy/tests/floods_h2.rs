//! Peers with a sound SVID that overdo it: rapid resets, heads without end, frames by the hundred thousand, no window. Each is
//! ended, or waits for itself; the application hears nothing of it, memory stays, others are served.

#[allow(dead_code)] // other tests use the rest
mod ends;
#[allow(dead_code)]
mod frames;
#[allow(dead_code)]
mod hostile;

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ends::until;
use frames::*;
use hostile::{Door, House};
use tokio::time::timeout;

const REFUSED_STREAM: u32 = 7;
const ENHANCE_YOUR_CALM: u32 = 11;

/// One test at a time: they look at the memory of the process.
fn run(test: impl Future<Output = ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    ends::run(test);
}

/// A sound CONNECT.
fn open(house: &House, stream: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &connect(house))
}

/// Says it again and again, until the other side hangs up or takes no more of it; gives how often, and what was heard.
async fn flood(speaker: &mut Speaker, times: u32, mut say: impl FnMut(u32) -> Vec<u8>) -> (u32, Heard) {
    for time in 0..times {
        let said = timeout(Duration::from_millis(300), speaker.say(&say(time))).await;
        if said != Ok(true) {
            return (time, speaker.hear().await);
        }
    }
    (times, speaker.hear().await)
}

#[test]
fn rapid_resets_end_the_connection() {
    run(async {
        let house = House::new().await;
        let mut speaker = Speaker::new(&house).await;
        let reset = |time: u32| {
            // Many at once, as CVE-2023-44487 has it.
            let streams = (0..100).map(|index| (time * 100 + index) * 2 + 1);
            let both =
                streams.map(|stream| [open(&house, stream), frame(RST_STREAM, 0, stream, &[0, 0, 0, 8])].concat());
            both.collect::<Vec<_>>().concat()
        };
        let (_, heard) = flood(&mut speaker, 100, reset).await;
        assert_eq!(
            (heard.ended, heard.goaway),
            (true, Some(ENHANCE_YOUR_CALM)),
            "{heard:?}"
        );
        assert_eq!(house.arrivals.open.get(), 0, "the application hears of none");
        until(|| house.mesh.h2.gauge("streams") == 0).await;
        serves(&house).await;
    });
}

#[test]
fn resets_that_the_peer_provokes_end_the_connection() {
    run(async {
        let house = House::new().await;
        let mut speaker = Speaker::new(&house).await;
        // Not the peer resets but we do, of streams that are served (CVE-2025-8671).
        let provoke = |time: u32| {
            let stream = time * 2 + 1;
            [
                open(&house, stream),
                frame(WINDOW_UPDATE, 0, stream, &i32::MAX.to_be_bytes()),
            ]
            .concat()
        };
        let (times, heard) = flood(&mut speaker, 4_000, provoke).await;
        assert_eq!(
            (heard.ended, heard.goaway),
            (true, Some(ENHANCE_YOUR_CALM)),
            "{times} times: {} resets",
            heard.resets.len()
        );
        until(|| house.mesh.h2.gauge("streams") == 0).await;
        serves(&house).await;
    });
}

#[test]
fn a_head_without_end_is_not_gathered() {
    run(async {
        let house = House::new().await;
        let mut speaker = Speaker::new(&house).await;
        speaker.say(&frame(HEADERS, 0, 1, &connect(&house))).await;
        let filler = block(&vec![("a", "b"); 200]);
        let (times, heard) = flood(&mut speaker, 10_000, |_| frame(CONTINUATION, 0, 1, &filler)).await;
        assert!(
            heard.ended && times < 1_000,
            "{times} continuations were taken: {heard:?}"
        );
        serves(&house).await;
    });
}

#[test]
fn a_head_that_swells_is_refused() {
    run(async {
        let house = House::new().await;
        let mut speaker = Speaker::new(&house).await;
        // A field goes into the table once, then a byte each names it: 500 KB for 4 KB.
        let long = "b".repeat(100);
        let mut swelling = connect(&house);
        swelling.extend([0x40, 1, b'a', 100]);
        swelling.extend(long.as_bytes());
        swelling.extend([0xbe; 4000]);
        speaker
            .say(&[frame(HEADERS, END_HEADERS, 1, &swelling), frame(DATA, 0, 1, REQUEST)].concat())
            .await;
        let heard = speaker.hear().await;
        assert!(heard.accepted.is_empty(), "{heard:?}");
        assert!(house.arrivals.others.borrow().is_empty());
        serves(&house).await;
    });
}

#[test]
fn streams_beyond_the_limit_are_refused() {
    run(async {
        let house = House::new().await;
        let mut speaker = Speaker::new(&house).await;
        let (_, heard) = flood(&mut speaker, 2_100, |time| open(&house, time * 2 + 1)).await;
        assert_eq!(heard.accepted.len(), 2_048, "{:?}", heard.goaway);
        assert!(
            heard.resets.iter().all(|(_, code)| *code == REFUSED_STREAM) && heard.resets.len() == 52,
            "{:?}",
            heard.resets
        );
        serves(&house).await;
        drop(speaker);
        until(|| house.mesh.h2.gauge("streams") <= 1).await;
    });
}

/// Frames that want an answer or change something, by the thousand, from a peer that reads nothing.
#[test]
fn floods_leave_others_alone() {
    type Say = fn(&House, u32) -> Vec<u8>;
    let floods: [(&str, Say); 5] = [
        ("settings", |_, time| setting(4, time)),
        ("pings", |_, time| frame(PING, 0, 0, &u64::from(time).to_be_bytes())),
        ("window updates", |_, _| frame(WINDOW_UPDATE, 0, 0, &1u32.to_be_bytes())),
        ("empty data", |house, time| match time {
            0 => open(house, 1),
            _ => frame(DATA, 0, 1, &[]),
        }),
        ("priorities", |_, time| frame(PRIORITY, 0, time * 2 + 1, &[0; 5])),
    ];
    for (what, say) in floods {
        run(async move {
            let house = House::new().await;
            let mut speaker = Speaker::new(&house).await;
            let before = resident();
            let many = |time: u32| {
                (0..100)
                    .flat_map(|index| say(&house, time * 100 + index))
                    .collect::<Vec<u8>>()
            };
            let (times, _) = flood(&mut speaker, 3_000, many).await;
            let grown = resident().saturating_sub(before);
            assert!(grown < 32 * 1024, "{what}: {grown} KB more after {times} hundred");
            serves(&house).await;
        });
    }
}

/// KB of memory that this process holds.
fn resident() -> usize {
    let pages = std::fs::read_to_string("/proc/self/statm").expect("a file of the kernel's");
    let resident = pages.split(' ').nth(1).expect("a second number");
    resident.parse::<usize>().expect("a number") * 4
}

#[test]
fn a_peer_that_gives_no_window_holds_little() {
    run(async {
        let house = House::new().await;
        house.arrivals.more.set(64 * 1024 * 1024);
        house.expect(Door::Wire, &vec![REQUEST.to_vec(); 50]);
        let mut speaker = Speaker::new(&house).await;
        speaker.say(&setting(4, 0)).await;
        let before = resident();
        for stream in (1..100).step_by(2) {
            speaker
                .say(&[open(&house, stream), frame(DATA, 0, stream, REQUEST)].concat())
                .await;
        }
        until(|| house.arrivals.open.get() == 50).await;
        let heard = speaker.hear().await;
        assert!(!heard.ended && heard.accepted.len() == 50, "{heard:?}");
        // 3 GB of answers wait.
        let grown = resident().saturating_sub(before);
        assert!(grown < 64 * 1024, "{grown} KB");
        house.arrivals.more.set(0);
        serves(&house).await;
    });
}

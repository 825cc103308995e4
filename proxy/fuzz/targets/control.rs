//! The control socket: an agent that says anything. What is framed and has an id is answered, once; the rest
//! ends the connection, and the next one finds the proxy as it was.
#![no_main]

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use hostmesh_proxy::control::Control;
use hostmesh_proxy::events;
use hostmesh_proxy::generations::lead::Generations;
use hostmesh_proxy::generations::sums::Sums;
use hostmesh_proxy::identity::SvidStore;
use hostmesh_proxy::persist::{Persist, Saver};
use hostmesh_proxy::shared::Shared;
use hostmesh_proxy::stats::Stats;
use hostmesh_proxy::traces;
use hostmesh_proxy::unix_socket::listen;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use tokio::net::UnixListener;

/// The socket of a control thread as the process has one.
static SOCKET: LazyLock<PathBuf> = LazyLock::new(|| {
    let folder = std::env::temp_dir().join(format!("hostmesh-fuzz-control-{}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("a folder");
    let socket = folder.join("control.sock");
    let listener = listen(&socket).expect("listening");
    let (sink, source) = events::queue();
    let shared = Arc::new(Shared::new(sink, traces::queue().0, Stats::new(), 1));
    let saver = Saver::start(Persist::new(&folder), shared.clone(), None).expect("a thread");
    let generations = folder.join("generations.sock");
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("a runtime");
        let uid = nix::unistd::getuid().as_raw();
        runtime.block_on(async {
            let generations = Generations::listen(&generations, shared.clone(), Sums::default()).expect("listening");
            let svids = SvidStore::new(shared.clone());
            let mut control = Control::new(shared, svids, saver, source, generations);
            let listener = UnixListener::from_std(listener).expect("listening");
            control.serve(&listener, uid).await
        });
    });
    socket
});

fuzz_target!(|bytes: &[u8]| {
    let answers = said(bytes).unwrap_or_default();
    assert!(answers.len() <= frames(bytes).len(), "more answers than questions");
    for answer in &answers {
        let kind = answer["type"].as_str().expect("a kind");
        assert!(
            matches!(kind, "ack" | "nack" | "csr" | "status" | "stats") && answer["id"].is_i64(),
            "{answer}"
        );
    }
    let status = br#"{"type":"get_status","id":77}"#;
    let frame = [&(status.len() as u32).to_be_bytes()[..], status].concat();
    let answer = said(&frame).expect("the next agent is heard");
    assert_eq!((&answer[0]["type"], &answer[0]["id"]), (&"status".into(), &77.into()));
});

/// Says all of it, then listens to the end.
fn said(bytes: &[u8]) -> io::Result<Vec<Value>> {
    let mut stream = UnixStream::connect(&*SOCKET)?;
    stream.write_all(bytes)?;
    stream.shutdown(Shutdown::Write)?;
    let mut heard = Vec::new();
    // A proxy that hangs up on unread bytes resets.
    let _reset = stream.read_to_end(&mut heard);
    Ok(frames(&heard)
        .into_iter()
        .map(|frame| serde_json::from_slice(frame).expect("an answer"))
        .collect())
}

/// The whole frames in these bytes.
fn frames(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut found = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let Some((frame, rest)) = rest.split_at_checked(u32::from_be_bytes(*length) as usize) else {
            break;
        };
        found.push(frame);
        bytes = rest;
    }
    found
}

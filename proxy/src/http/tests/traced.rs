//! What becomes a span, below which other, and what the collector gets of a trace that nobody has chosen.

use super::*;
use crate::traces::Kind;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn traced(share: f64, errors: bool) -> impl FnOnce(&mut Snapshot) {
    move |snapshot| {
        retries(&["5xx"], false, 0)(snapshot);
        let orders = &mut snapshot.units[1];
        (orders.trace, orders.trace_errors) = (share, errors);
        orders.access_log = "all".into();
    }
}

/// Of the request as a whole, as its caller has it.
fn whole(spans: &[Finished]) -> &Finished {
    let is_first = |one: &&Finished| !spans.iter().any(|other| Some(other.span.span_id) == one.parent);
    let mut first = spans.iter().filter(is_first);
    let (one, None) = (first.next().expect("a root"), first.next()) else {
        panic!("two roots: {spans:?}");
    };
    one
}

fn below<'a>(spans: &'a [Finished], parent: &Finished) -> Vec<&'a Finished> {
    let is_below = |span: &&Finished| span.parent == Some(parent.span.span_id);
    spans.iter().filter(is_below).collect()
}

fn attribute(span: &Finished, name: &str) -> Option<String> {
    let found = span.attributes.iter().find(|(known, _)| *known == name);
    found.map(|(_, value)| format!("{value:?}"))
}

#[test]
fn each_try_is_below_the_request_and_who_is_called_below_its_try() {
    run(async {
        let world = World::new(traced(0.0, false)).await;
        let mut client = Peer(world.client().await, Vec::new());
        client
            .send(&GET.replace("\r\n\r\n", &format!("\r\ntraceparent: {PARENT}\r\n\r\n")))
            .await;
        let mut heads = Vec::new();
        for answer in ["HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", OK] {
            let mut application = world.accept().await;
            heads.push(application.head().await);
            application.send(answer).await;
        }
        client.until("ok").await;
        let ended = async || while world.event_of("orders.service").await.kind != "request" {};
        ended().await;
        let spans = world.spans().await;
        assert_eq!(
            spans.len(),
            5,
            "the request, two tries, and twice who was called: {spans:?}"
        );
        assert!(
            spans
                .iter()
                .all(|span| format!("{:032x}", span.span.trace_id) == PARENT[3..35])
        );
        let request = whole(&spans);
        assert_eq!(
            (request.parent, request.kind, &request.failed),
            (Some(0x00f0_67aa_0ba9_02b7), Kind::Client, &None)
        );
        assert_eq!(attribute(request, "hostmesh.tries").as_deref(), Some("Number(2)"));
        assert_eq!(
            attribute(request, "http.response.status_code").as_deref(),
            Some("Number(200)")
        );
        let tries = below(&spans, request);
        assert_eq!(tries.len(), 2);
        for (index, (one, head)) in tries.into_iter().zip(&heads).enumerate() {
            let called = below(&spans, one);
            let [called] = &called[..] else { panic!("{called:?}") };
            assert_eq!((one.kind, called.kind), (Kind::Client, Kind::Server));
            let told = field(head, "traceparent").expect("a trace");
            assert_eq!(
                told[36..52],
                called.span.span_hex(),
                "the application is below who was called"
            );
            let is_failed = index == 0;
            assert_eq!((one.failed.is_some(), called.failed.is_some()), (is_failed, is_failed));
            let word = attribute(one, "error.type");
            assert_eq!(word.as_deref(), is_failed.then_some("Text(\"503\")"));
        }
    });
}

#[test]
fn of_what_nobody_has_chosen_the_failures_are_kept_where_they_are_wanted() {
    let answers = [
        ("200 OK", false),
        ("404 No", true),
        ("501 No", true),
        ("302 There", false),
    ];
    for errors in [true, false] {
        run(async move {
            let world = World::new(traced(0.0, errors)).await;
            let mut client = Peer(world.client().await, Vec::new());
            let mut application = None;
            for (status, is_failure) in answers {
                client.send(&GET.replace("GET", "POST")).await;
                let application = match &mut application {
                    Some(known) => known,
                    None => application.insert(world.accept().await),
                };
                let head = application.head().await;
                let trace = field(&head, "traceparent").expect("a trace");
                assert!(trace.ends_with("-00"), "{trace}");
                application
                    .send(&format!("HTTP/1.1 {status}\r\nContent-Length: 2\r\n\r\nok"))
                    .await;
                client.until("ok").await;
                let ended = world.event_of("orders.service").await;
                let spans = world.spans().await;
                if !(errors && is_failure) {
                    assert!(spans.is_empty(), "{status}: {spans:?}");
                    continue;
                }
                assert_eq!(spans.len(), 3, "{status}: {spans:?}");
                assert_eq!(format!("{:032x}", whole(&spans).span.trace_id), ended.trace_id);
                assert!(whole(&spans).failed.is_some());
            }
        });
    }
}

#[test]
fn a_caller_that_has_not_chosen_its_trace_is_followed() {
    run(async {
        let world = World::new(traced(1.0, false)).await;
        let mut client = Peer(world.client().await, Vec::new());
        let parent = PARENT.replace("-01", "-00");
        client
            .send(&GET.replace("\r\n\r\n", &format!("\r\ntraceparent: {parent}\r\n\r\n")))
            .await;
        let mut application = world.accept().await;
        application.head().await;
        application.send(OK).await;
        client.until("ok").await;
        world.event_of("orders.service").await;
        assert!(world.spans().await.is_empty());
    });
}

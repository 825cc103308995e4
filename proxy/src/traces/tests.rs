//! Spans on their way: what is kept, what is encoded, what comes of each answer of a collector.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::Poll;

use bytes::Bytes;
use hostmesh_proxy_core::config::{Config, Otlp, Traces};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::{
    ExportTracePartialSuccess, ExportTraceServiceRequest, ExportTraceServiceResponse,
};
use prost::Message;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_rustls::TlsAcceptor;
use tokio_test::task;

use super::collector::{Collector, Refused};
use super::export::Exporter;
use super::*;
use crate::shared::Shared;
use crate::stats::Stats;
use crate::tls::provider;
use crate::{events, fixture};

fn finished(config: &Config, id: u64) -> Finished {
    Finished {
        unit: config.units[0].clone(),
        span: Span::new(7, id, true).expect("ids"),
        parent: Some(3),
        kind: Kind::Client,
        name: "GET".into(),
        begun_ns: 1,
        ended_ns: 2,
        attributes: vec![("url.path", "/a".into()), ("http.response.status_code", 503u16.into())],
        failed: Some("it is away".into()),
    }
}

fn config() -> Config {
    Config::build(fixture::snapshot(&fixture::Authority::new())).expect("a config")
}

#[test]
fn what_finds_no_place_is_counted_and_nothing_is_kept_without_a_collector() {
    let (config, (sink, mut source)) = (config(), queue());
    sink.emit(finished(&config, 1));
    assert!(!sink.is_open() && sink.dropped().is_empty());
    sink.keep(10);
    (1..=14).for_each(|id| sink.emit(finished(&config, id)));
    assert_eq!(sink.dropped(), BTreeMap::from([("queue-full".to_owned(), 4)]));
    assert_eq!(source.take(6).len(), 6);
    sink.emit(finished(&config, 15));
    assert_eq!(
        sink.dropped()["queue-full"],
        5,
        "what is on its way to the collector has its place, too"
    );
    source.ledger.arrive(6);
    sink.emit(finished(&config, 16));
    assert_eq!((sink.dropped()["queue-full"], sink.exported()), (5, 6));
}

#[tokio::test(start_paused = true)]
async fn who_waits_for_a_batch_is_woken_by_its_first_and_its_last_alone() {
    let (config, (sink, mut source)) = (config(), queue());
    sink.keep(1000);
    let (pace, begun) = (Duration::from_secs(1), Instant::now());
    let mut waiting = task::spawn(source.batch(100, pace));
    assert!(waiting.poll().is_pending());
    sink.emit(finished(&config, 1));
    assert!(waiting.is_woken() && waiting.poll().is_pending());
    for id in 2..=99 {
        sink.emit(finished(&config, id));
        assert!(!waiting.is_woken(), "by span {id}");
    }
    sink.emit(finished(&config, 100));
    assert!(waiting.is_woken());
    assert!(matches!(waiting.poll(), Poll::Ready(spans) if spans.len() == 100));
    drop(waiting);
    sink.emit(finished(&config, 101));
    assert_eq!(begun.elapsed(), Duration::ZERO);
    assert_eq!(source.batch(100, pace).await.len(), 1, "the pace is over");
    assert_eq!(begun.elapsed(), pace);
}

#[tokio::test]
async fn half_of_what_may_be_kept_goes_before_the_rest_finds_no_place() {
    let (config, (sink, mut source)) = (config(), queue());
    sink.keep(10);
    let mut waiting = task::spawn(source.batch(100, Duration::from_secs(1)));
    (1..=5).for_each(|id| sink.emit(finished(&config, id)));
    let Poll::Ready(spans) = waiting.poll() else {
        panic!("it waits for more than may be kept")
    };
    assert_eq!(spans.len(), 5);
}

#[test]
fn a_request_has_a_resource_a_unit_and_the_spans_as_they_are() {
    let config = config();
    let spans = vec![finished(&config, 1), finished(&config, 2)];
    let request = otlp::request(spans, "h1");
    let [unit] = &request.resource_spans[..] else {
        panic!("one unit")
    };
    let resource = format!("{:?}", unit.resource);
    for said in [
        "service.name",
        &config.units[0].service,
        "host.name",
        "h1",
        "hostmesh.spiffe_id",
    ] {
        assert!(resource.contains(said), "{said}: {resource}");
    }
    let span = &unit.scope_spans[0].spans[1];
    assert_eq!(span.trace_id, 7u128.to_be_bytes());
    assert_eq!(
        (&span.span_id[..], &span.parent_span_id[..]),
        (&2u64.to_be_bytes()[..], &3u64.to_be_bytes()[..])
    );
    assert_eq!((span.kind, span.flags), (3, 1), "a client's, sampled");
    let status = span.status.as_ref().expect("a status");
    assert_eq!((status.code, &*status.message), (2, "it is away"));
}

/// What the collector of a test answers.
#[derive(Clone)]
struct Answer {
    status: StatusCode,
    headers: Vec<(&'static str, &'static str)>,
    grpc_status: &'static str,
    rejected: i64,
}

const FINE: Answer = Answer {
    status: StatusCode::OK,
    headers: Vec::new(),
    grpc_status: "0",
    rejected: 0,
};

impl Answer {
    fn write(&self, protocol: Otlp) -> Response<http_body_util::combinators::BoxBody<Bytes, Infallible>> {
        let partial_success = (self.rejected > 0).then(|| ExportTracePartialSuccess {
            rejected_spans: self.rejected,
            ..ExportTracePartialSuccess::default()
        });
        let message = ExportTraceServiceResponse { partial_success }.encode_to_vec();
        let body = match protocol {
            Otlp::Http => message,
            Otlp::Grpc => {
                let length = u32::try_from(message.len()).expect("short");
                [&[0][..], &length.to_be_bytes(), &message].concat()
            }
        };
        let mut response = Response::builder().status(self.status);
        for (name, value) in &self.headers {
            response = response.header(*name, *value);
        }
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", HeaderValue::from_static(self.grpc_status));
        let body = Full::new(Bytes::from(body)).with_trailers(std::future::ready(Some(Ok(trailers))));
        response.body(body.boxed()).expect("a response")
    }
}

/// A collector that gives one answer to all, and hands on what it gets.
async fn collector(protocol: Otlp, answer: Answer) -> (Collector, mpsc::UnboundedReceiver<(HeaderMap, Bytes)>) {
    let (traces, seen) = listening(protocol, answer, None).await;
    (Collector::new(Arc::new(traces), 0), seen)
}

async fn listening(
    protocol: Otlp,
    answer: Answer,
    tls: Option<TlsAcceptor>,
) -> (Traces, mpsc::UnboundedReceiver<(HeaderMap, Bytes)>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let traces = Traces {
        endpoint: "http://localhost".into(),
        protocol,
        is_tls: tls.is_some(),
        host: "localhost".into(),
        port: listener.local_addr().expect("bound").port(),
        path: "/v1/traces".into(),
        addresses: vec!["127.0.0.1".parse().expect("an address")],
        headers: vec![("authorization".into(), "Bearer t".into())],
        ca: Vec::new(),
        queue: 10,
    };
    let (seen, seeing) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            match &tls {
                None => serve(tcp, protocol, answer.clone(), seen.clone()),
                // Who does not trust it has ended the handshake: that is for the test to see.
                Some(tls) => {
                    if let Ok(tls) = tls.accept(tcp).await {
                        serve(tls, protocol, answer.clone(), seen.clone());
                    }
                }
            }
        }
    });
    (traces, seeing)
}

fn serve(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    protocol: Otlp,
    answer: Answer,
    seen: mpsc::UnboundedSender<(HeaderMap, Bytes)>,
) {
    let service = service_fn(move |request: Request<Incoming>| {
        let (answer, seen) = (answer.clone(), seen.clone());
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            // A test that looks at the answers only does not listen.
            let _unheard = seen.send((head.headers, body));
            Ok::<_, Infallible>(answer.write(protocol))
        }
    });
    let io = TokioIo::new(io);
    match protocol {
        Otlp::Http => drop(tokio::spawn(http1::Builder::new().serve_connection(io, service))),
        Otlp::Grpc => {
            let served = http2::Builder::new(TokioExecutor::new()).serve_connection(io, service);
            drop(tokio::spawn(served));
        }
    }
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("a runtime").block_on(test);
}

#[test]
fn both_protocols_carry_the_request_and_its_headers() {
    run(async {
        let message: Bytes = otlp::request(vec![finished(&config(), 1)], "h1").encode_to_vec().into();
        for (protocol, kind, frame) in [
            (Otlp::Http, "application/x-protobuf", 0),
            (Otlp::Grpc, "application/grpc", 5),
        ] {
            let (mut collector, mut seen) = collector(protocol, FINE).await;
            for _ in 0..2 {
                assert_eq!(collector.send(&message).await.expect("taken"), 0);
                let (headers, body) = seen.recv().await.expect("a request");
                assert_eq!(headers["content-type"], kind);
                assert_eq!(headers["authorization"], "Bearer t");
                let read = ExportTraceServiceRequest::decode(&body[frame..]).expect("OTLP");
                assert_eq!(read.resource_spans.len(), 1);
            }
        }
    });
}

#[test]
fn an_answer_says_whether_another_try_may_do() {
    let status = |status| Answer { status, ..FINE };
    let grpc = |grpc_status| Answer { grpc_status, ..FINE };
    let overloaded = Answer {
        headers: vec![("retry-after", "7")],
        ..status(StatusCode::SERVICE_UNAVAILABLE)
    };
    run(async {
        let send = async |protocol, answer| collector(protocol, answer).await.0.send(&Bytes::new()).await;
        let later = send(Otlp::Http, overloaded).await;
        assert!(matches!(later, Err(Refused::Later(_, Some(after))) if after == Duration::from_secs(7)));
        let unauthorized = send(Otlp::Http, status(StatusCode::UNAUTHORIZED)).await;
        assert!(matches!(unauthorized, Err(Refused::Never(why)) if why.contains("401")));
        assert!(matches!(send(Otlp::Grpc, grpc("14")).await, Err(Refused::Later(..))));
        assert!(matches!(send(Otlp::Grpc, grpc("16")).await, Err(Refused::Never(_))));
        let partly = Answer { rejected: 3, ..FINE };
        assert_eq!(send(Otlp::Grpc, partly.clone()).await.expect("taken"), 3);
        assert_eq!(send(Otlp::Http, partly).await.expect("taken"), 3);
    });
}

#[test]
fn nobody_there_may_be_there_later() {
    run(async {
        let (mut collector, seen) = collector(Otlp::Http, FINE).await;
        drop(seen);
        let gone = Traces {
            port: 1,
            ..(*collector.traces).clone()
        };
        collector.traces = Arc::new(gone);
        let refused = collector.send(&Bytes::new()).await;
        assert!(matches!(refused, Err(Refused::Later(why, None)) if why.starts_with("127.0.0.1:1: ")));
    });
}

#[test]
fn in_tls_the_collector_must_be_who_its_name_says() {
    run(async {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).expect("a certificate");
        let der = key.cert.der().clone();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .expect("TLS 1.3")
            .with_no_client_auth();
        let private = PrivateKeyDer::try_from(key.signing_key.serialize_der()).expect("a key");
        let mut config = config.with_single_cert(vec![der.clone()], private).expect("a server");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let tls = TlsAcceptor::from(Arc::new(config));
        let (traces, _seen) = listening(Otlp::Grpc, FINE, Some(tls)).await;
        let with = |host: &str, ca: &[Vec<u8>]| {
            let (host, ca) = (host.into(), ca.to_vec());
            Collector::new(
                Arc::new(Traces {
                    host,
                    ca,
                    ..traces.clone()
                }),
                0,
            )
        };
        let ca = [der.to_vec()];
        assert_eq!(with("localhost", &ca).send(&Bytes::new()).await.expect("taken"), 0);
        for mut wrong in [with("other.example", &ca), with("localhost", &[])] {
            let refused = wrong.send(&Bytes::new()).await;
            assert!(
                matches!(&refused, Err(Refused::Later(why, _)) if why.contains("certificate")),
                "{refused:?}"
            );
        }
    });
}

/// An exporter at work for a collector of these settings, and its end.
struct Exporting {
    sink: SpanSink,
    end: oneshot::Sender<()>,
    ended: tokio::task::JoinHandle<()>,
}

fn exporting(traces: Traces) -> Exporting {
    let (sink, source) = queue();
    let shared = Shared::new(events::queue().0, sink.clone(), Stats::new(), 1);
    let mut config = config();
    config.traces = Some(Arc::new(traces));
    shared.set_config(config).expect("in force");
    let (end, ending) = oneshot::channel();
    let ended = tokio::spawn(Exporter::new(Arc::new(shared), source).run(ending));
    Exporting { sink, end, ended }
}

/// Ten seconds at most.
async fn until(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(Duration::from_secs(10), waiting).await.expect("soon");
}

#[test]
fn what_waits_together_goes_together_and_makes_room() {
    run(async {
        let (traces, mut seen) = listening(Otlp::Http, FINE, None).await;
        let (most, config) = (traces.queue as u64, config());
        let Exporting { sink, end: _end, .. } = exporting(traces);
        for round in 1..=2 {
            (1..=most).for_each(|id| sink.emit(finished(&config, id)));
            let begun = Instant::now();
            let seen = timeout(Duration::from_secs(10), seen.recv());
            let (_, body) = seen.await.expect("soon").expect("a request");
            assert!(begun.elapsed() < Duration::from_secs(5), "no batch waits to be full");
            let read = ExportTraceServiceRequest::decode(&body[..]).expect("OTLP");
            let spans = read.resource_spans.iter().flat_map(|one| &one.scope_spans);
            let count: usize = spans.map(|scope| scope.spans.len()).sum();
            assert_eq!(count as u64, most, "one request");
            until(|| sink.exported() == round * most).await;
        }
        assert!(sink.dropped().is_empty(), "{:?}", sink.dropped());
    });
}

#[test]
fn what_nobody_takes_is_counted_by_its_reason() {
    run(async {
        let refusing = Answer {
            status: StatusCode::UNAUTHORIZED,
            ..FINE
        };
        let (traces, _seen) = listening(Otlp::Http, refusing, None).await;
        let config = config();
        let Exporting { sink, end: _end, .. } = exporting(traces);
        (1..=12).for_each(|id| sink.emit(finished(&config, id)));
        until(|| sink.dropped().get("rejected") == Some(&10)).await;
        assert_eq!(sink.dropped()["queue-full"], 2);
        (1..=10).for_each(|id| sink.emit(finished(&config, id)));
        until(|| sink.dropped()["rejected"] == 20).await;
        assert_eq!(sink.dropped()["queue-full"], 2, "there was room again");

        let (gone, _seen) = listening(Otlp::Http, FINE, None).await;
        let Exporting { sink, end, ended } = exporting(Traces { port: 1, ..gone });
        (1..=7).for_each(|id| sink.emit(finished(&config, id)));
        end.send(()).expect("at work");
        ended.await.expect("ended");
        assert_eq!(sink.dropped(), BTreeMap::from([("ended".to_owned(), 7)]));
    });
}

//! Hands requests of OTLP to one collector: gRPC (unary calls of HTTP/2), or HTTP/1.1 with protobuf, in TLS where asked.
//!
//! Which answers are worth another try is as in OTLP's specification ("Failures").

use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hostmesh_proxy_core::config::{Otlp, Traces};
use http::header::{CONTENT_TYPE, HOST, RETRY_AFTER, TE, USER_AGENT};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceResponse;
use prost::Message;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::grpc;
use crate::sockopt;
use crate::tls::provider;

/// One address gets this long before the next is tried.
const CONNECT: Duration = Duration::from_secs(3);
/// Data that is not acknowledged for so long ends a connection.
const USER_TIMEOUT: Duration = Duration::from_secs(10);
/// No answer is longer.
const ANSWER: usize = 64 * 1024;
/// The method of gRPC.
const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";

/// Why the collector did not take a request.
#[derive(Debug)]
pub enum Refused {
    /// Not now: another try may do, not before this time has passed.
    Later(String, Option<Duration>),
    /// These spans it never takes.
    Never(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Later(why, _) | Self::Never(why) => f.write_str(why),
        }
    }
}

impl<E: std::error::Error> From<E> for Refused {
    /// Whatever breaks on the way may be whole another time.
    fn from(error: E) -> Self {
        Self::Later(grpc::causes(&error), None)
    }
}

enum Requests {
    Http1(http1::SendRequest<Full<Bytes>>),
    Http2(http2::SendRequest<Full<Bytes>>),
}

/// A collector, and the connection to it, made when it is needed.
pub struct Collector {
    pub traces: Arc<Traces>,
    mark: u32,
    requests: Option<Requests>,
}

impl Collector {
    /// `mark`: of the socket, so that the ruleset knows it for the proxy's.
    pub fn new(traces: Arc<Traces>, mark: u32) -> Self {
        Self {
            traces,
            mark,
            requests: None,
        }
    }

    /// The connection is not used any more.
    pub fn hang_up(&mut self) {
        self.requests = None;
    }

    /// Hands over an encoded `ExportTraceServiceRequest`; how many of its spans the collector did not want.
    pub async fn send(&mut self, message: &Bytes) -> Result<usize, Refused> {
        let sent = self.try_send(message).await;
        if matches!(sent, Err(Refused::Later(..))) {
            self.hang_up();
        }
        sent
    }

    async fn try_send(&mut self, message: &Bytes) -> Result<usize, Refused> {
        let request = self.request(message)?;
        let requests = match &mut self.requests {
            Some(requests) if requests.is_open() => requests,
            _ => self.requests.insert(connect(&self.traces, self.mark).await?),
        };
        let response = match requests {
            Requests::Http1(requests) => {
                requests.ready().await?;
                requests.send_request(request).await?
            }
            Requests::Http2(requests) => {
                requests.ready().await?;
                requests.send_request(request).await?
            }
        };
        let (head, body) = response.into_parts();
        let body = Limited::new(body, ANSWER).collect().await;
        let body = body.map_err(|error| Refused::Later(format!("its answer broke off: {error}"), None))?;
        let trailers = body.trailers().cloned().unwrap_or_default();
        judge_http(head.status, &head.headers, self.traces.protocol)?;
        let body = body.to_bytes();
        match self.traces.protocol {
            Otlp::Http => rejected(&body),
            Otlp::Grpc => {
                judge_grpc(&head.headers, &trailers)?;
                rejected(body.get(5..).unwrap_or_default())
            }
        }
    }

    fn request(&self, message: &Bytes) -> Result<Request<Full<Bytes>>, Refused> {
        let Traces { host, port, path, .. } = &*self.traces;
        let authority = match host.contains(':') {
            true => format!("[{host}]:{port}"),
            false => format!("{host}:{port}"),
        };
        let agent = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION"));
        let request = Request::builder().method(Method::POST).header(USER_AGENT, agent);
        let request = match self.traces.protocol {
            Otlp::Http => {
                let typed = request.header(CONTENT_TYPE, "application/x-protobuf");
                typed.uri(&**path).header(HOST, authority)
            }
            Otlp::Grpc => {
                let scheme = if self.traces.is_tls { "https" } else { "http" };
                let uri = Uri::builder()
                    .scheme(scheme)
                    .authority(authority)
                    .path_and_query(EXPORT);
                let typed = request.header(CONTENT_TYPE, "application/grpc").header(TE, "trailers");
                typed.uri(uri.build()?)
            }
        };
        let headers = self.traces.headers.iter();
        let request = headers.fold(request, |request, (name, value)| request.header(&**name, &**value));
        let body = match self.traces.protocol {
            Otlp::Http => message.clone(),
            Otlp::Grpc => grpc::framed(message)?,
        };
        Ok(request.body(Full::new(body))?)
    }
}

impl Requests {
    fn is_open(&self) -> bool {
        match self {
            Self::Http1(requests) => !requests.is_closed(),
            Self::Http2(requests) => !requests.is_closed(),
        }
    }
}

fn judge_http(status: StatusCode, headers: &HeaderMap, protocol: Otlp) -> Result<(), Refused> {
    let why = format!("it answers {status}");
    match status {
        StatusCode::OK => Ok(()),
        StatusCode::TOO_MANY_REQUESTS
        | StatusCode::BAD_GATEWAY
        | StatusCode::SERVICE_UNAVAILABLE
        | StatusCode::GATEWAY_TIMEOUT => {
            let seconds = headers
                .get(RETRY_AFTER)
                .and_then(|value| value.to_str().ok()?.parse().ok());
            Err(Refused::Later(why, seconds.map(Duration::from_secs)))
        }
        _ if protocol == Otlp::Grpc => Err(Refused::Never(format!("{why}: is it gRPC that is spoken there?"))),
        _ => Err(Refused::Never(why)),
    }
}

fn judge_grpc(head: &HeaderMap, trailers: &HeaderMap) -> Result<(), Refused> {
    let (code, said) = grpc::status(head, trailers);
    let code = code.unwrap_or(2);
    let why = || format!("gRPC status {code} {said}");
    match code {
        0 => Ok(()),
        1 | 4 | 8 | 10 | 11 | 14 | 15 => Err(Refused::Later(why(), None)),
        _ => Err(Refused::Never(why())),
    }
}

/// Of a request that was taken: how many of its spans were not.
fn rejected(body: &[u8]) -> Result<usize, Refused> {
    let response = ExportTraceServiceResponse::decode(body)
        .map_err(|error| Refused::Never(format!("its answer is none of OTLP: {error}")))?;
    let partial = response.partial_success.unwrap_or_default();
    Ok(usize::try_from(partial.rejected_spans).unwrap_or_default())
}

async fn connect(traces: &Traces, mark: u32) -> Result<Requests, Refused> {
    let addresses = sockopt::at(&traces.addresses, traces.port);
    let (tcp, _) = sockopt::connect_any(&traces.host, addresses, mark, CONNECT).await?;
    sockopt::wire(&tcp, USER_TIMEOUT)?;
    if !traces.is_tls {
        return shake_hands(tcp, traces).await;
    }
    let name = ServerName::try_from(traces.host.to_string())?;
    let tls = TlsConnector::from(Arc::new(tls(traces)?)).connect(name, tcp).await?;
    shake_hands(tls, traces).await
}

async fn shake_hands(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    traces: &Traces,
) -> Result<Requests, Refused> {
    let io = TokioIo::new(io);
    // How a connection ends is told by its requests.
    Ok(match traces.protocol {
        Otlp::Http => {
            let (requests, connection) = http1::handshake(io).await?;
            tokio::spawn(connection);
            Requests::Http1(requests)
        }
        Otlp::Grpc => {
            let (requests, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            tokio::spawn(connection);
            Requests::Http2(requests)
        }
    })
}

fn tls(traces: &Traces) -> io::Result<ClientConfig> {
    let mut roots = RootCertStore::empty();
    if traces.ca.is_empty() {
        // What cannot be read of them is not trusted.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    }
    for der in &traces.ca {
        roots.add(CertificateDer::from_slice(der)).map_err(io::Error::other)?;
    }
    let config = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let config = config.map_err(io::Error::other)?.with_root_certificates(roots);
    let mut config = config.with_no_client_auth();
    config.alpn_protocols = match traces.protocol {
        Otlp::Grpc => vec![b"h2".to_vec()],
        Otlp::Http => vec![b"http/1.1".to_vec()],
    };
    Ok(config)
}

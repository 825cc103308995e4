//! An application and a client of HTTP/2: it sends back what it gets.

use bytes::Bytes;
use h2::client::SendRequest;
use h2::{Reason, RecvStream, SendStream};
use http::{HeaderMap, Request, Response, StatusCode};
use tokio::net::TcpListener;
use tokio::task::spawn_local;

use super::web::connect;
use super::{Mesh, soon};

/// By the window h2 also measures how many small frames may wait.
const WINDOW: u32 = 16 * 1024 * 1024;

/// Takes the application's place.
pub fn application(mesh: &mut Mesh) -> TcpListener {
    let placeholder = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    placeholder.set_nonblocking(true).expect("an option");
    std::mem::replace(
        &mut mesh.application,
        TcpListener::from_std(placeholder).expect("a listener"),
    )
}

/// An application of HTTP/2 that sends every body back, frame by frame, then trailers that say how long it was.
pub fn serve(mesh: &mut Mesh) {
    let listener = application(mesh);
    spawn_local(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            spawn_local(async move {
                let handshake = h2::server::Builder::new()
                    .initial_connection_window_size(WINDOW)
                    .handshake(tcp);
                let mut connection = handshake.await.expect("HTTP/2");
                while let Some(Ok((request, respond))) = connection.accept().await {
                    spawn_local(echo(request, respond));
                }
            });
        }
    });
}

pub async fn echo(request: Request<RecvStream>, mut respond: h2::server::SendResponse<Bytes>) {
    let (head, mut body) = request.into_parts();
    let field = |name: &str| {
        head.headers
            .get(name)
            .map(|value| value.as_bytes().to_vec())
            .unwrap_or_default()
    };
    if head.uri.path() == "/reset" {
        return respond.send_reset(Reason::ENHANCE_YOUR_CALM);
    }
    let mut response = Response::new(());
    let fields = response.headers_mut();
    fields.insert("x-peer", field("x-hostmesh-peer").try_into().expect("a value"));
    fields.insert(
        "x-authority",
        head.uri
            .authority()
            .map_or("", |said| said.as_str())
            .parse()
            .expect("a value"),
    );
    fields.insert("x-cookie", field("cookie").try_into().expect("a value"));
    fields.insert("x-hostmesh-error", "forged".parse().expect("a value"));
    let mut send = respond.send_response(response, false).expect("begun");
    let mut length = 0;
    while let Some(data) = body.data().await {
        let Ok(data) = data else { return };
        length += data.len();
        body.flow_control().release_capacity(data.len()).expect("a window");
        all(&mut send, data, false).await;
    }
    let mut trailers = body.trailers().await.expect("trailers").unwrap_or_default();
    trailers.insert("x-length", length.into());
    trailers.insert("grpc-status", 0.into());
    send.send_trailers(trailers).expect("ended");
}

pub async fn all(send: &mut SendStream<Bytes>, mut data: Bytes, end: bool) {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        let room = std::future::poll_fn(|cx| send.poll_capacity(cx))
            .await
            .expect("open")
            .expect("room");
        send.send_data(data.split_to(room), false).expect("sent");
    }
    if end {
        send.send_data(Bytes::new(), true).expect("ended");
    }
}

/// A client of HTTP/2.
pub async fn client(mesh: &Mesh) -> SendRequest<Bytes> {
    let handshake = h2::client::Builder::new()
        .initial_connection_window_size(WINDOW)
        .handshake(connect(mesh).await);
    let (send, connection) = soon(handshake).await.expect("HTTP/2");
    spawn_local(connection);
    send
}

pub fn post(path: &str) -> Request<()> {
    let uri = format!("http://web{path}");
    Request::post(uri)
        .header("content-type", "application/grpc")
        .body(())
        .expect("a request")
}

/// What came back.
pub struct Answered {
    pub status: StatusCode,
    pub fields: HeaderMap,
    pub body: Vec<u8>,
    pub trailers: HeaderMap,
}

pub async fn ask(client: &SendRequest<Bytes>, request: Request<()>, body: &[u8]) -> Result<Answered, h2::Error> {
    let mut client = soon(client.clone().ready()).await?;
    let (response, mut send) = client.send_request(request, body.is_empty())?;
    if !body.is_empty() {
        let body = Bytes::copy_from_slice(body);
        spawn_local(async move { all(&mut send, body, true).await });
    }
    let (head, mut body) = soon(response).await?.into_parts();
    let mut received = Vec::new();
    while let Some(data) = soon(body.data()).await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        received.extend_from_slice(&data);
    }
    Ok(Answered {
        status: head.status,
        fields: head.headers,
        body: received,
        trailers: soon(body.trailers()).await?.unwrap_or_default(),
    })
}

//! Serves one client's connection, request by request, in their order.

use std::future::Future;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use hostmesh_proxy_core::authorize::{Request, Token};
use hostmesh_proxy_core::config::Timeouts;
use hostmesh_proxy_core::error::Fault;
use hostmesh_proxy_core::http1::{RequestHead, local_reply};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use super::conn::{Conn, NoHead};
use super::down::{Arrived, Downstream, Http1, Progress};
use super::http2;
use crate::rejudge::Denial;
use crate::stream::Stream;
use crate::tcp::{self, Relayed};

/// What becomes of the client's connection.
pub enum Next {
    /// Another request may come.
    Keep,
    /// It ends in order.
    Close,
    /// It is broken off: what was sent is not whole.
    Abort,
    /// The same, because policy denies it: another proxy is told so.
    Deny,
    /// It is a tunnel to this upstream from now on.
    Tunnel(Conn),
}

/// What is done with requests.
pub trait Handler {
    /// How long the client is waited for.
    fn timeouts(&self) -> Timeouts;

    /// Turns true once another process has taken over: a client that can be asked to shall go there.
    fn retired(&self) -> watch::Receiver<bool>;

    /// Carries one request and its response.
    async fn request(&self, down: &mut impl Downstream, arrived: Arrived<'_>) -> Next;

    /// A head could not be read; the client is told so.
    fn unreadable(&self, fault: Fault);

    /// Waits until policy denies the request that opened the tunnel.
    async fn denied(&self, arrived: Arrived<'_>) -> Denial;

    /// How long nothing may move in the tunnel; `None`: for ever.
    fn idle(&self) -> Option<Duration> {
        None
    }

    /// A request was answered, and the client may send another. `None`: to another worker.
    fn keep(&self, client: Conn, now: Instant) -> Option<Conn>;

    /// A tunnel has ended that began then.
    fn tunnelled(&self, begun: Instant, relayed: &Relayed);
}

/// Serves the connection to its end, or, when the process drains, to the end of its request. `is_known`: it has had requests
/// of HTTP/1.1 before.
pub async fn serve<H: Handler + 'static>(
    client: Conn,
    draining: watch::Receiver<bool>,
    handler: Rc<H>,
    mut is_known: bool,
) {
    let mut down = client.of_client(handler.timeouts().stall);
    let mut quiet = pin!(sleep(handler.timeouts().idle));
    // One wait for the whole connection: to begin and end one for each request takes a lock that workers share.
    let mut told = draining.clone();
    let mut told = pin!(told.wait_for(|draining| *draining));
    let mut now = Instant::now();
    loop {
        quiet.as_mut().reset(now + handler.timeouts().idle);
        let waited = tokio::select! {
            biased;
            waited = down.wait() => waited,
            _ = &mut told => return down.linger().await,
            () = &mut quiet => return down.linger().await,
        };
        match waited {
            Ok(true) => {}
            Ok(false) => return down.linger().await,
            Err(_) => return down.abort(),
        }
        if !std::mem::replace(&mut is_known, true) && http2::speaks(&mut down, handler.timeouts().head).await {
            return Box::pin(http2::serve(down, draining, handler)).await;
        }
        let request = match head(&mut down, handler.timeouts().head).await {
            Ok(request) => request,
            Err(None) => return down.abort(),
            Err(Some(fault)) => {
                handler.unreadable(fault);
                let reply = local_reply(fault, &fault.to_string(), true, false);
                if down.send(reply).await.is_err() {
                    return down.abort();
                }
                return down.linger().await;
            }
        };
        let last = down.is_retired() || *draining.borrow();
        let begun = Instant::now();
        // Boxed: most connections wait most of the time, and a request is larger than its connection. Made in its box: from
        // elsewhere all of its room would be copied there.
        let carried = Box::write(Box::new_uninit(), carry(&*handler, &mut down, request, begun, last));
        let (request, next) = Box::into_pin(carried).await;
        match next {
            Next::Keep => {
                now = Instant::now();
                match handler.keep(down, now) {
                    Some(kept) => down = kept,
                    None => return,
                }
            }
            Next::Close => return down.linger().await,
            Next::Abort => return down.abort(),
            Next::Deny => return down.deny(),
            Next::Tunnel(up) => {
                let arrived = Arrived {
                    asked: asked(&request),
                    query: request.query(),
                    progress: &Progress::default(),
                    begun,
                };
                let relay = async { tunnel(down, up, handler.idle(), pin!(handler.denied(arrived))).await };
                // Boxed too: few connections become one.
                let relayed = Box::pin(relay).await;
                return handler.tunnelled(begun, &relayed);
            }
        }
    }
}

/// `last`: the connection ends after this request in any case.
async fn carry(
    handler: &impl Handler,
    down: &mut Conn,
    request: RequestHead,
    begun: Instant,
    last: bool,
) -> (RequestHead, Next) {
    let progress = Progress::default();
    let mut down = Http1::new(down, &request, &progress, handler.timeouts(), last);
    let arrived = Arrived {
        asked: asked(&request),
        query: request.query(),
        progress: &progress,
        begun,
    };
    let next = handler.request(&mut down, arrived).await;
    (request, next)
}

async fn head(down: &mut Conn, limit: Duration) -> Result<RequestHead, Option<Fault>> {
    let bytes: Bytes = match down.split().0.head(limit).await {
        Ok(bytes) => bytes,
        Err(NoHead::End | NoHead::Broken) => return Err(None),
        Err(NoHead::Late) => return Err(Some(Fault::SlowRequest)),
        Err(NoHead::Refused(refused)) => return Err(Some(Fault::BadRequest(refused))),
    };
    RequestHead::parse(bytes).map_err(|refused| Some(Fault::BadRequest(refused)))
}

/// What rules may ask of the request; its token is read by who serves it.
pub fn asked(request: &RequestHead) -> Request<'_> {
    Request {
        method: request.method(),
        path: request.path(),
        headers: request.headers(),
        token: Token::None,
    }
}

/// Relays between a client and an upstream, what was read of both first, unless it is denied meanwhile, or nothing moves for
/// the time of `idle`.
pub async fn tunnel(
    down: Conn,
    up: Conn,
    idle: Option<Duration>,
    denied: Pin<&mut impl Future<Output = Denial>>,
) -> Relayed {
    let ((mut down, early_up), (mut up, early_down)) = (down.into_parts(), up.into_parts());
    let early = (early_up.len() as u64, early_down.len() as u64);
    let result = async {
        up.write_chunk(early_up).await?;
        down.write_chunk(early_down).await
    };
    if let Err(error) = result.await {
        down.abort();
        up.abort();
        return Relayed {
            sent: early.0,
            received: early.1,
            result: Err(error),
            denied: None,
        };
    }
    let relayed = match (down, up) {
        (Stream::Tcp(down), up) => tcp::relay(down, up, idle, denied).await,
        (down, Stream::Tcp(up)) => tcp::relay(up, down, idle, denied).await.reversed(),
        (down, up) => {
            // A wire stream ends at this host: nothing leads from one to another.
            down.abort();
            up.abort();
            Relayed {
                sent: 0,
                received: 0,
                result: Err(std::io::ErrorKind::Unsupported.into()),
                denied: None,
            }
        }
    };
    Relayed {
        sent: relayed.sent + early.0,
        received: relayed.received + early.1,
        ..relayed
    }
}

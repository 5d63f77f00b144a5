//! A worker thread: one event loop that serves the connections handed to it, with connections to instances of its
//! own, so that a request never changes threads.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::thread::JoinHandle;
use std::time::Duration;

use hyper::Method;
use hyper::Request;
use hyper::StatusCode;
use hyper::body::Incoming;
use hyper::header::CONNECTION;
use hyper::header::HeaderValue;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::runtime::LocalOptions;
use tokio::runtime::LocalRuntime;
use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::accept::Accepted;
use super::accept::Lane;
use super::config::Config;
use super::h2;
use super::h2::Streams;
use super::h2::Watched;
use super::io::ClientIo;
use super::io::Upgraded;
use super::pace;
use super::pace::Pace;
use super::preface;
use super::preface::Protocol;
use super::service::Blueprint;
use super::service::Peer;
use super::service::Service;
use super::spare;
use super::stall::Alarm;
use crate::shutdown::Shutdown;

/// Connections that may wait for a worker to look at them.
const QUEUE: usize = 256;
/// Largest request head, and the read buffer of a connection.
const MAX_BUFFER: usize = 64 * 1024;
/// hyper keeps up to this many headers on the stack; any other limit costs an allocation per request.
const HYPER_MAX_HEADERS: usize = 100;
/// How often idle connections to instances are looked through.
const SWEEP: Duration = Duration::from_secs(30);
/// How long blocking work of handlers may hold up the end of a drained worker, and an HTTP/2 connection without requests
/// its own end.
const LAST_MOMENT: Duration = Duration::from_secs(1);

/// When a worker's connections end.
#[derive(Debug, Clone)]
struct Drain {
    /// Idle ones close, requests finish.
    end: CancellationToken,
    /// Before that, clients are told to use another.
    shutdown: Shutdown,
}

/// A running worker.
#[derive(Debug)]
pub(crate) struct Worker {
    thread: JoinHandle<()>,
    /// Closed when the thread has nothing more to do.
    ended: oneshot::Receiver<()>,
}

impl Worker {
    /// Starts a worker. It ends when its lane is dropped and its connections are done, at most the drain timeout
    /// after that.
    pub(crate) fn start(index: usize, blueprint: Blueprint, shutdown: Shutdown) -> io::Result<(Self, Lane)> {
        let (connections, queue) = mpsc::channel(QUEUE);
        let drain = Drain { end: shutdown.token().child_token(), shutdown };
        let (end, ended) = oneshot::channel();
        let (ready, is_ready) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name(format!("gateway-{index}")).spawn(move || {
            let _end: oneshot::Sender<()> = end;
            let (pace, was_ordinary) = (Pace::of_this_thread(), pace::is_ordinary());
            let runtime = Builder::new_current_thread()
                .enable_all()
                .on_thread_start(move || pace::begin_ordinary(was_ordinary))
                .on_thread_unpark({
                    let pace = pace.clone();
                    move || pace.woken()
                })
                .build_local(LocalOptions::default());
            match runtime {
                Ok(runtime) => {
                    // The starter waits for this; if it is gone, the queue is closed as well.
                    let _ = ready.send(Ok(()));
                    run(runtime, blueprint, pace, queue, drain);
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                }
            }
        })?;
        is_ready.recv().unwrap_or_else(|_| Err(io::Error::other("the worker thread ended at once")))?;
        Ok((Self { thread, ended }, Lane { connections, load: Arc::new(AtomicUsize::new(0)) }))
    }

    /// Resolves when the worker has ended.
    pub(crate) async fn join(self) {
        // An error here is the sender's end, which is what is waited for.
        let _ = self.ended.await;
        if self.thread.join().is_err() {
            tracing::error!("a gateway worker panicked");
        }
    }
}

fn run(runtime: LocalRuntime, blueprint: Blueprint, pace: Pace, queue: mpsc::Receiver<Accepted>, drain: Drain) {
    let config = Arc::clone(&blueprint.config);
    runtime.block_on(async move {
        let tasks = TaskTracker::new();
        let service = Rc::new(Service::new(blueprint, pace, tasks.clone()));
        serve(&service, queue, &config, &drain, &tasks).await;
        tasks.close();
        if tokio::time::timeout(config.drain_timeout, tasks.wait()).await.is_err() {
            tracing::warn!(connections = tasks.len(), "cut connections that did not finish in time");
        }
    });
    runtime.shutdown_timeout(LAST_MOMENT);
}

/// Serves what is queued until the acceptor is gone.
async fn serve(
    service: &Rc<Service>,
    mut queue: mpsc::Receiver<Accepted>,
    config: &Arc<Config>,
    drain: &Drain,
    tasks: &TaskTracker,
) {
    let http = Rc::new(server(config));
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let accepted = tokio::select! {
            accepted = queue.recv() => accepted,
            _ = sweep.tick() => {
                service.forwarder().pool().sweep();
                service.pace().rested();
                continue;
            }
        };
        let Some(accepted) = accepted else { return };
        let (service, http, drain) = (Rc::clone(service), Rc::clone(&http), drain.clone());
        let streams = tasks.clone();
        tasks.spawn_local(async move {
            if let Err(error) = connection(service, &http, accepted, drain, streams).await {
                tracing::debug!(%error, "take over a connection");
            }
        });
    }
}

fn server(config: &Config) -> http1::Builder {
    let mut http = http1::Builder::new();
    // The header timer also runs before the first byte and between requests: it is the idle limit too.
    http.header_read_timeout(config.header_timeout).max_buf_size(MAX_BUFFER).half_close(false);
    if config.max_headers != HYPER_MAX_HEADERS {
        http.max_headers(config.max_headers);
    }
    http
}

/// Serves one connection to its end.
async fn connection(
    service: Rc<Service>,
    http: &http1::Builder,
    accepted: Accepted,
    drain: Drain,
    tasks: TaskTracker,
) -> io::Result<()> {
    let Accepted { stream, peer, permit, spare } = accepted;
    stream.set_nodelay(true)?;
    let stream = TcpStream::from_std(stream)?;
    if let Some(lent) = spare {
        spare::serve(&service, http, stream, peer, permit).await;
        drop(lent);
        return Ok(());
    }
    let config = service.config();
    let (protocol, head) = if config.http2 {
        let told = tokio::select! {
            told = preface::tell(&stream, config.header_timeout) => told?,
            () = drain.end.cancelled() => None,
        };
        let Some(told) = told else { return Ok(()) };
        told
    } else {
        (Protocol::Http1, Vec::new())
    };
    let (upgraded, alarm) = (Upgraded::default(), Alarm::default());
    let peer = Rc::new(service.peer(peer, upgraded.clone(), alarm.clone()));
    let io = TokioIo::new(ClientIo::new(stream, upgraded.clone(), head, config.writing().stall(), permit));
    match protocol {
        Protocol::Http1 => serve_http1(service, http.clone().timer(alarm), io, peer, drain).await,
        Protocol::Http2 => {
            upgraded.set();
            serve_http2(service, io, peer, drain, tasks).await;
        }
    }
    Ok(())
}

async fn serve_http1(service: Rc<Service>, http: &http1::Builder, io: TokioIo<ClientIo>, peer: Rc<Peer>, drain: Drain) {
    let shutdown = drain.shutdown;
    let answer = service_fn(move |request| {
        let (service, peer, shutdown) = (Rc::clone(&service), Rc::clone(&peer), shutdown.clone());
        async move {
            let mut response = service.serve(&peer, request).await;
            // Told so, a client opens another connection for its next request, which then cannot cross our end of this one.
            if shutdown.is_leaving() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
                response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, Infallible>(response)
        }
    });
    let mut serving = pin!(http.serve_connection(io, answer).with_upgrades());
    // How a connection ends is the client's affair: broken pipes and timeouts are not worth a line each.
    tokio::select! {
        _ = serving.as_mut() => {}
        () = drain.end.cancelled() => {
            serving.as_mut().graceful_shutdown();
            let _ = serving.await;
        }
    }
}

async fn serve_http2(service: Rc<Service>, io: TokioIo<ClientIo>, peer: Rc<Peer>, drain: Drain, tasks: TaskTracker) {
    let limit = service.config().header_timeout;
    let streams = Streams::new(service.config().writing());
    let http = h2::server(tasks, &streams);
    let flows = Rc::clone(&streams);
    let answer = service_fn(move |mut request: Request<Incoming>| {
        let (service, peer, flow) = (Rc::clone(&service), peer.stream(), flows.begin());
        h2::normalise(&mut request);
        let is_head = request.method() == Method::HEAD;
        async move {
            let mut response = service.serve(&peer, request).await;
            if is_head {
                h2::without_body(&mut response);
            }
            Ok::<_, Infallible>(response.map(|body| flow.answer(body)))
        }
    });
    let mut serving = pin!(http.serve_connection(Watched::new(io, &streams), answer));
    tokio::select! {
        _ = serving.as_mut() => return,
        () = drain.shutdown.left() => {}
        () = streams.idle(limit) => {}
        () = streams.abused() => {}
    }
    // No new requests from here on; those that run may finish, and the client may read their answers. One that then does
    // not close is not waited for.
    serving.as_mut().graceful_shutdown();
    tokio::select! {
        _ = serving => {}
        () = streams.drained(LAST_MOMENT) => {}
    }
}

//! The whole gateway in front of a fake instance: what reaches it, what comes back, and what happens when either
//! side misbehaves. The fake is a raw socket where the misbehaviour is below HTTP.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Full;
use hyper::Request;
use hyper::Response;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;
use tokio::net::TcpStream;

use super::access::Access;
use super::config::Config;
use super::config::tests::defaults;
use super::*;

const DEADLINE: Duration = Duration::from_secs(10);

struct Fixture {
    address: SocketAddr,
    shutdown: Shutdown,
    running: tokio::task::JoinHandle<()>,
}

impl Fixture {
    fn start(upstream: SocketAddr, change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config { workers: 1, ..defaults() };
        change(&mut config);
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = Shutdown::new();
        let slow = Duration::from_mins(1);
        let gateway = Gateway::with_access(config, Access::Fixed(upstream), Metrics::new(), slow, axum::Router::new());
        let token = shutdown.clone();
        let running = tokio::spawn(async move { gateway.run(listener, token).await.unwrap() });
        Self { address, shutdown, running }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    async fn exchange(&self, request: &str) -> String {
        let mut stream = self.connect().await;
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        within(stream.read_to_end(&mut answer)).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    async fn stop(self) {
        self.shutdown.begin();
        within(self.running).await.unwrap();
    }
}

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, what).await.expect("happens in time")
}

fn get(target: &str, headers: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n")
}

const LIST: &str = "/api/collections/notes/records";

/// A fake instance on hyper. Returns its address and the number of connections it accepted.
async fn instance<F, R>(answer: F) -> (SocketAddr, Arc<AtomicUsize>)
where
    F: Fn(Request<Incoming>) -> R + Clone + Send + Sync + 'static,
    R: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&connections);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            count.fetch_add(1, Ordering::SeqCst);
            let answer = answer.clone();
            let service = service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    (address, connections)
}

/// A fake instance that says these bytes on every connection once it has read a head, and closes.
async fn raw_instance(says: &'static str) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                read_head(&mut stream).await;
                let _ = stream.write_all(says.as_bytes()).await;
            });
        }
    });
    address
}

async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => break,
        }
    }
    String::from_utf8_lossy(&head).into_owned()
}

fn text(body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    Response::new(Full::new(body.into()))
}

#[tokio::test]
async fn headers_are_rebuilt_both_ways() {
    let (address, _) = instance(|request| async move {
        let mut lines: Vec<String> =
            request.headers().iter().map(|(name, value)| format!("{name}={}", value.to_str().unwrap())).collect();
        lines.sort();
        let mut response = text(format!("{} {}", request.uri(), lines.join("|")));
        for (name, value) in [("x-internal", "1"), ("connection", "x-internal"), ("set-cookie", "a=1; Domain=b")] {
            response.headers_mut().insert(name, value.parse().unwrap());
        }
        response
    })
    .await;
    let gateway = Fixture::start(address, |_| {});
    let forged = "X-Forwarded-For: 127.0.0.1\r\nX_Forwarded_For: 127.0.0.1\r\nAuthorization: evil\r\nTE: trailers\r\n\
                  X-Request-Id: mine\r\nUpgrade: h2c\r\nAccept: x\r\n";
    let answer = gateway.exchange(&get("/api/collections/notes/records?filter=a%3D1", forged)).await;
    assert!(answer.ends_with(
        "/api/collections/notes/records?filter=a%3D1 accept=x|host=a|x-forwarded-for=192.0.2.1|x-forwarded-proto=http|x-request-id=mine"
    ), "{answer}");
    assert!(answer.contains("set-cookie: a=1\r\n") && !answer.contains("x-internal"), "{answer}");
    assert!(answer.contains("x-request-id: mine\r\n") && answer.contains("access-control-allow-origin: *\r\n"));
    let absolute = gateway.exchange(&get(&format!("http://a{LIST}"), "")).await;
    assert!(absolute.contains("\r\n\r\n/api/collections/notes/records "), "{absolute}");
    gateway.stop().await;
}

#[tokio::test]
async fn connections_to_an_instance_are_reused() {
    let (address, connections) = instance(|_| async { text("ok") }).await;
    let gateway = Fixture::start(address, |_| {});
    for _ in 0..20 {
        assert!(gateway.exchange(&get(LIST, "")).await.ends_with("ok"));
        let post = format!("POST {LIST} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi");
        assert!(gateway.exchange(&post).await.ends_with("ok"));
        let head = gateway.exchange(&format!("HEAD {LIST} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")).await;
        assert!(head.contains("content-length: 2\r\n") && head.ends_with("\r\n\r\n"), "{head}");
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
    gateway.stop().await;
}

#[tokio::test]
async fn an_idle_connection_that_the_instance_closed_is_replaced() {
    // Keeps each connection for one answer without saying so.
    let address = raw_instance("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let gateway = Fixture::start(address, |_| {});
    for round in 0..20 {
        let answer = gateway.exchange(&get(LIST, "")).await;
        assert!(answer.ends_with("ok"), "{round}: {answer}");
    }
    gateway.stop().await;
}

#[tokio::test]
async fn large_bodies_stream_both_ways() {
    let (address, _) = instance(|request| async move {
        let mut size = 0;
        let mut body = request.into_body();
        while let Some(frame) = body.frame().await {
            size += frame.unwrap().into_data().map_or(0, |data| data.len());
        }
        text(vec![b'x'; size])
    })
    .await;
    let gateway = Fixture::start(address, |_| {});
    let size = 50_000_000;
    let (mut read, mut write) = gateway.connect().await.into_split();
    let sending = tokio::spawn(async move {
        let head = format!("POST {LIST} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n");
        write.write_all(head.as_bytes()).await.unwrap();
        let part = vec![b'y'; 1_000_000];
        for _ in 0..size / part.len() {
            write.write_all(&part).await.unwrap();
        }
        write
    });
    let mut answer = Vec::new();
    within(read.read_to_end(&mut answer)).await.unwrap();
    let body = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    assert_eq!(answer.len() - body, size);
    drop(within(sending).await.unwrap());
    gateway.stop().await;
}

#[tokio::test]
async fn bodies_beyond_the_limit_are_refused_early_and_late() {
    let (address, connections) = instance(|request| async move {
        match request.into_body().collect().await {
            Ok(_) => text("whole"),
            Err(_) => text("broken"),
        }
    })
    .await;
    let gateway = Fixture::start(address, |config| config.max_body_bytes = 10);
    let head = format!("POST {LIST} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n");
    let early = gateway.exchange(&format!("{head}Content-Length: 11\r\n\r\nhello world")).await;
    assert!(early.starts_with("HTTP/1.1 413 ") && early.contains(r#""status":413"#), "{early}");
    assert_eq!(connections.load(Ordering::SeqCst), 0, "refused before the instance was asked");
    let late =
        gateway.exchange(&format!("{head}Transfer-Encoding: chunked\r\n\r\nb\r\nhello world\r\n0\r\n\r\n")).await;
    assert!(late.starts_with("HTTP/1.1 413 "), "{late}");
    let broken = gateway.exchange(&format!("{head}Transfer-Encoding: chunked\r\n\r\nzz\r\n")).await;
    assert!(broken.starts_with("HTTP/1.1 400 "), "{broken}");
    let fits = gateway.exchange(&format!("{head}Content-Length: 10\r\n\r\nhello worl")).await;
    assert!(fits.ends_with("whole"), "{fits}");
    gateway.stop().await;
}

#[tokio::test]
async fn an_upload_that_drips_or_stops_is_cut() {
    let (address, _) = instance(|request| async move {
        let _ = request.into_body().collect().await;
        text("done")
    })
    .await;
    let gateway = Fixture::start(address, |config| config.body_idle_timeout = Duration::from_millis(200));
    let head = format!("POST {LIST} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 100\r\n\r\nsome");
    let answer = gateway.exchange(&head).await;
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("stood still"), "{answer}");
    gateway.stop().await;
}

#[tokio::test]
async fn an_instance_that_answers_before_the_upload_ends_is_relayed() {
    let (address, _) = instance(|_| async { text("too early") }).await;
    let gateway = Fixture::start(address, |_| {});
    let head = format!("POST {LIST} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 1000000\r\n\r\nsome");
    let answer = gateway.exchange(&head).await;
    assert!(answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("too early"), "{answer}");
    gateway.stop().await;
}

#[tokio::test]
async fn an_instance_that_is_away_silent_or_broken_gives_502_or_504() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let gateway = Fixture::start(closed, |_| {});
    let answer = gateway.exchange(&get(LIST, "")).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains(r#""code":"BAD_GATEWAY""#), "{answer}");
    gateway.stop().await;

    let (silent, _) = instance(|_| std::future::pending()).await;
    let gateway = Fixture::start(silent, |config| config.response_timeout = Duration::from_millis(100));
    assert!(gateway.exchange(&get(LIST, "")).await.starts_with("HTTP/1.1 504 "));
    gateway.stop().await;

    for hostile in [
        "",
        "nonsense\r\n\r\n",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n",
        "HTTP/1.1 999999 X\r\n\r\n",
    ] {
        let gateway = Fixture::start(raw_instance(hostile).await, |_| {});
        let answer = gateway.exchange(&get(LIST, "")).await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && !answer.contains("hyper"), "{hostile:?}: {answer}");
        gateway.stop().await;
    }
}

#[tokio::test]
async fn an_answer_with_two_lengths_loses_both_and_a_cut_one_is_cut_for_the_client() {
    let both = "HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n";
    let gateway = Fixture::start(raw_instance(both).await, |_| {});
    let answer = gateway.exchange(&get(LIST, "")).await;
    assert!(answer.contains("transfer-encoding: chunked") && !answer.contains("content-length"), "{answer}");
    assert!(answer.contains("\r\nok\r\n"), "{answer}");
    gateway.stop().await;

    let cut = "HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nhalf";
    let gateway = Fixture::start(raw_instance(cut).await, |_| {});
    let answer = gateway.exchange(&get(LIST, "")).await;
    assert!(answer.contains("content-length: 99") && answer.ends_with("half"), "{answer}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_connection_to_the_instance_along() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let gateway = Fixture::start(listener.local_addr().unwrap(), |_| {});
    for request in [get(LIST, ""), format!("POST {LIST} HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\nsome")] {
        let mut client = gateway.connect().await;
        client.write_all(request.as_bytes()).await.unwrap();
        let (mut upstream, _) = within(listener.accept()).await.unwrap();
        assert!(within(read_head(&mut upstream)).await.contains(LIST));
        drop(client);
        let mut rest = Vec::new();
        // Ends, or is reset: either way the gateway let go.
        let _ = within(upstream.read_to_end(&mut rest)).await;
    }
    gateway.stop().await;
}

#[tokio::test]
async fn a_write_that_may_have_happened_is_not_repeated() {
    // Reads the request, then closes without an answer: a write may have happened.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&seen);
    tokio::spawn(async move {
        let mut first = true;
        while let Ok((mut stream, _)) = listener.accept().await {
            if std::mem::take(&mut first) {
                // One good answer, so that the connection is pooled; the next request on it gets none.
                read_head(&mut stream).await;
                stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            }
            let head = read_head(&mut stream).await;
            log.lock().unwrap().push(head.lines().next().unwrap_or_default().to_owned());
        }
    });
    let gateway = Fixture::start(address, |_| {});
    assert!(gateway.exchange(&get(LIST, "")).await.ends_with("ok"));
    let post = format!("POST {LIST} HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n");
    assert!(gateway.exchange(&post).await.starts_with("HTTP/1.1 502 "));
    assert_eq!(*seen.lock().unwrap(), [format!("POST {LIST} HTTP/1.1")]);
    gateway.stop().await;
}

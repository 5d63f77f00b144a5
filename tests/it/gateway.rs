//! The gateway's accept loop under raw and hostile clients, in front of a router that answers by itself. Needs no
//! `PocketBase`.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use axum::http::HeaderMap;
use axum::routing::any;
use pocketfleet::gateway::ClientIp;
use pocketfleet::gateway::Config;
use pocketfleet::gateway::Gateway;
use pocketfleet::gateway::RequestId;
use pocketfleet::shutdown::Shutdown;
use pocketfleet::telemetry::Metrics;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// Longest wait for anything that should happen soon.
const DEADLINE: Duration = Duration::from_secs(10);

fn config(change: impl FnOnce(&mut Config)) -> Config {
    use figment::providers::Format;
    let toml = figment::providers::Toml::string(include_str!("../../config/default.toml"));
    let mut config: Config = figment::Figment::from(toml).focus("server").extract().unwrap();
    config.workers = 2;
    change(&mut config);
    config.validate().unwrap();
    config
}

fn router() -> Router {
    Router::new()
        .route("/echo", any(|body: Body| async move { body }))
        .route("/len", any(|body: axum::body::Bytes| async move { body.len().to_string() }))
        .route("/forever", any(|| async { std::future::pending::<()>().await }))
        .route("/big", any(|| async { vec![b'x'; 64 * 1024 * 1024] }))
        .route(
            "/who",
            any(|request: Request| async move {
                let ip = request.extensions().get::<ClientIp>().map(|ip| ip.0.to_string());
                let id = request.extensions().get::<RequestId>().map(|id| id.0.to_string());
                format!("{ip:?} {id:?}")
            }),
        )
        .route(
            "/seen",
            any(|headers: HeaderMap| async move {
                let mut names: Vec<&str> = headers.keys().map(axum::http::HeaderName::as_str).collect();
                names.sort_unstable();
                names.join(",")
            }),
        )
        .route("/api/collections/users/auth-refresh", any(|request: Request| async move { request.uri().to_string() }))
        .fallback(|| async { "own" })
}

struct TestGateway {
    address: SocketAddr,
    shutdown: Shutdown,
    metrics: Arc<Metrics>,
    running: tokio::task::JoinHandle<()>,
}

impl TestGateway {
    fn start(config: Config) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (shutdown, metrics) = (Shutdown::new(), Metrics::new());
        let gateway = Gateway::without_instances(config, Arc::clone(&metrics), Duration::from_mins(1), router());
        let token = shutdown.clone();
        let running = tokio::spawn(async move { gateway.run(listener, token).await.unwrap() });
        Self { address, shutdown, metrics, running }
    }

    async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Sends bytes and reads until the gateway closes or the wait is over; for answers with `Connection: close`.
    async fn exchange(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.connect().await;
        let _ = stream.write_all(bytes.as_ref()).await;
        read_to_end(&mut stream).await
    }

    async fn stop(self) {
        self.shutdown.begin();
        tokio::time::timeout(DEADLINE, self.running).await.expect("drains in time").unwrap();
    }
}

async fn read_to_end(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = async {
        let mut buffer = vec![0; 65_536];
        loop {
            match stream.read(&mut buffer).await {
                Ok(0) => return,
                Ok(count) => answer.extend_from_slice(&buffer[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return,
                Err(error) => panic!("{error}"),
            }
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("the gateway closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

/// The head of the next answer on a connection that stays open.
async fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let read = async {
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.unwrap());
        }
    };
    tokio::time::timeout(DEADLINE, read).await.expect("an answer comes");
    String::from_utf8(head).unwrap()
}

fn status(answer: &str) -> u16 {
    answer.get(9..12).and_then(|code| code.parse().ok()).unwrap_or_else(|| panic!("no status in {answer:?}"))
}

fn get(target: &str, headers: &str) -> String {
    format!("GET {target} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{headers}\r\n")
}

#[tokio::test]
async fn ordinary_requests_reach_the_router() {
    let gateway = TestGateway::start(config(|_| {}));
    let answer = gateway.exchange(get("/hello", "X-Request-Id: mine-1\r\n")).await;
    assert_eq!(status(&answer), 200);
    assert!(answer.ends_with("own"), "{answer}");
    assert!(answer.contains("x-request-id: mine-1\r\n"), "{answer}");
    assert!(answer.contains("access-control-allow-origin: *\r\n"), "{answer}");
    let answer = gateway.exchange(get("/who", "X-Forwarded-For: 9.9.9.9\r\nX-Request-Id: a\r\n")).await;
    assert!(answer.ends_with(r#"Some("127.0.0.1") Some("a")"#), "{answer}");
    let answer = gateway.exchange("GET /x HTTP/1.0\r\nHost: a\r\n\r\n").await;
    assert_eq!(status(&answer), 200);
    let seen = gateway.exchange(get("/seen", "X_Forwarded_For: 1\r\nForwarded: x\r\nX-Real-IP: 1\r\n")).await;
    assert!(seen.ends_with("connection,host,x-request-id"), "{seen}");
    gateway.stop().await;
}

#[tokio::test]
async fn trusted_proxies_name_the_client() {
    let gateway = TestGateway::start(config(|config| config.trusted_proxies = vec!["127.0.0.1".parse().unwrap()]));
    let answer = gateway.exchange(get("/who", "X-Forwarded-For: 9.9.9.9, 198.51.100.7\r\n")).await;
    assert!(answer.contains("198.51.100.7"), "{answer}");
    gateway.stop().await;
}

#[tokio::test]
async fn malformed_requests_get_a_4xx_and_nothing_else() {
    let gateway = TestGateway::start(config(|_| {}));
    let fairly_long = "a".repeat(9_000);
    let many = "X: 1\r\n".repeat(150);
    let head = |line: &str, headers: &str| format!("{line}\r\n{headers}Connection: close\r\n\r\n");
    let cases: Vec<(u16, String)> = vec![
        (400, head("GET / HTTP/1.1", "")),
        (400, head("GET / HTTP/1.0", "")),
        (400, head("GET / HTTP/1.1", "Host: a\r\nHost: a\r\n")),
        (400, head("GET / HTTP/1.1", "Host: a/b\r\n")),
        (400, head("GET / HTTP/1.1", "Host: u@a\r\n")),
        (400, head("GET / HTTP/1.1", "Host: :80\r\n")),
        (400, head("GET http://evil/ HTTP/1.1", "Host: a\r\n")),
        (200, head("GET http://a/ HTTP/1.1", "Host: a\r\n")),
        (405, head("CONNECT a:80 HTTP/1.1", "Host: a\r\n")),
        (405, head("TRACE / HTTP/1.1", "Host: a\r\n")),
        (405, head("get / HTTP/1.1", "Host: a\r\n")),
        (405, head("BREW / HTTP/1.1", "Host: a\r\n")),
        (400, head("OPTIONS * HTTP/1.1", "Host: a\r\n")),
        (400, head("GET / HTTP/1.2", "Host: a\r\n")),
        (414, get(&format!("/{fairly_long}"), "")),
        (414, get(&format!("/?{fairly_long}"), "")),
        (431, get("/", &many)),
        (431, get("/", &format!("X-Big: {}\r\n", "a".repeat(200_000)))),
        (417, get("/", "Expect: junk\r\n")),
        (400, get("/", "Authorization: a\r\nAuthorization: a\r\n")),
        (400, get("/..", "")),
        (400, get("/%2e%2e/x", "")),
        (400, get("/a/%2E", "")),
        (400, get("/a%2fb", "")),
        (400, get("/a\\b", "")),
        (400, get("/a%5cb", "")),
        (400, get("/a%00", "")),
        (400, get("//a", "")),
        (400, get("/%zz", "")),
        (400, get("/%c0%ae", "")),
        (400, get("/\u{e9}", "")),
        (400, head("POST / HTTP/1.1", "Host: a\r\nContent-Length: 1\r\nContent-Length: 1\r\n") + "x"),
        (400, head("POST / HTTP/1.1", "Host: a\r\nContent-Length: 1\r\nContent-Length: 2\r\n") + "xx"),
        (400, head("POST / HTTP/1.1", "Host: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n"),
        (400, head("POST / HTTP/1.1", "Host: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n") + "0\r\n\r\n"),
        (400, head("POST / HTTP/1.1", "Host: a\r\nTransfer-Encoding: xchunked\r\n") + "0\r\n\r\n"),
        (400, head("POST / HTTP/1.0", "Host: a\r\nTransfer-Encoding: chunked\r\n") + "0\r\n\r\n"),
        (400, head("POST / HTTP/1.1", "Host: a\r\nContent-Length: +1\r\n") + "x"),
        (400, head("POST / HTTP/1.1", "Host: a\r\nContent-Length: -1\r\n")),
        (400, head("POST / HTTP/1.1", "Host: a\r\nContent-Length: 18446744073709551616\r\n")),
        (400, head("GET / HTTP/1.1", "Host: a\r\nX: b\r\n c\r\n")),
        (400, head("GET / HTTP/1.1", "Host: a\r\n: x\r\n")),
        (400, head("GET / HTTP/1.1", "Host: a\r\nA B: x\r\n")),
        (400, head("GET / HTTP/1.1", "Host: a\r\nX: \0\r\n")),
        (413, head("POST /len HTTP/1.1", "Host: a\r\nContent-Length: 99999999999\r\n")),
    ];
    let mut wrong = Vec::new();
    for (expected, request) in cases {
        let answer = gateway.exchange(&request).await;
        if answer.get(9..12) != Some(&expected.to_string()) || answer.contains("hyper") {
            wrong.push((expected, request.chars().take(120).collect::<String>(), answer));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    gateway.stop().await;
}

#[tokio::test]
async fn pocketbase_paths_are_allow_listed_in_pocketbase_shape() {
    let gateway = TestGateway::start(config(|_| {}));
    for (expected, target) in [
        (404, "/api/sql"),
        (404, "/api/%73ql"),
        (404, "/api/settings"),
        (404, "/_/"),
        (404, "/api/collections/_superusers/records"),
        (404, "/api/collections/%5fsuperusers/records"),
        (404, "/t/acme/api/collections/notes/records"),
        (404, "/t/ACME"),
        (200, "/api/health"),
        (200, "/api/v1/sql"),
    ] {
        let answer = gateway.exchange(get(target, "")).await;
        assert_eq!(status(&answer), expected, "{target}: {answer}");
        if expected != 200 {
            assert!(answer.contains(&format!(r#""status":{expected}"#)), "{answer}");
            assert!(answer.contains("x-pocketfleet-error: "), "{answer}");
        }
    }
    let answer = gateway.exchange(get("/t/acme?a=b", "")).await;
    assert!(status(&answer) == 308 && answer.contains("location: /t/acme/?a=b"), "{answer}");
    let answer = gateway
        .exchange("POST /api/collections/_pb_users_auth_/auth-refresh?a=b HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        .await;
    assert!(answer.ends_with("/api/collections/users/auth-refresh?a=b"), "{answer}");
    gateway.stop().await;
}

#[tokio::test]
async fn preflights_are_answered_without_an_instance() {
    let gateway = TestGateway::start(config(|config| config.cors_origins = vec!["https://app.example".to_owned()]));
    let preflight = |origin: &str| {
        format!(
            "OPTIONS /api/collections/notes/records HTTP/1.1\r\nHost: a\r\nOrigin: {origin}\r\nConnection: close\r\n\
             Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n\r\n"
        )
    };
    let answer = gateway.exchange(preflight("https://app.example")).await;
    assert_eq!(status(&answer), 204);
    assert!(answer.contains("access-control-allow-origin: https://app.example\r\n"), "{answer}");
    assert!(answer.contains("access-control-allow-headers: authorization\r\n"), "{answer}");
    let answer = gateway.exchange(preflight("https://evil.example")).await;
    assert!(!answer.contains("access-control-allow-origin"), "{answer}");
    gateway.stop().await;
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order_and_an_ambiguous_one_ends_the_connection() {
    let gateway = TestGateway::start(config(|_| {}));
    let one = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\none";
    let two = "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n3\r\ntwo\r\n0\r\n\r\n";
    let bad = "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\nContent-Length: 3\r\n\r\nbad";
    let answer = gateway.exchange(format!("{one}{two}{bad}{one}")).await;
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
    assert_eq!(answer.matches("HTTP/1.1 400").count(), 1, "{answer}");
    let places: Vec<Option<usize>> = ["one", "two", "HTTP/1.1 400"].map(|text| answer.find(text)).to_vec();
    assert!(places.iter().all(Option::is_some) && places.is_sorted(), "{answer}");
    gateway.stop().await;
}

#[tokio::test]
async fn slow_heads_silent_and_idle_connections_are_closed() {
    let limit = Duration::from_millis(300);
    let gateway = TestGateway::start(config(|config| config.header_timeout = limit));
    let silent = async {
        let mut stream = gateway.connect().await;
        read_to_end(&mut stream).await
    };
    let dripping = async {
        let (mut read, mut write) = gateway.connect().await.into_split();
        let drip = async {
            let mut tick = tokio::time::interval(Duration::from_millis(20));
            for byte in "GET / HTTP/1.1\r\nHost: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa".bytes().cycle() {
                tick.tick().await;
                if write.write_all(&[byte]).await.is_err() {
                    return;
                }
            }
        };
        let closed = async {
            let mut buffer = Vec::new();
            let _ = read.read_to_end(&mut buffer).await;
        };
        tokio::select! { () = drip => {}, () = closed => {} }
    };
    let idle = async {
        let mut stream = gateway.connect().await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        read_to_end(&mut stream).await
    };
    let started = Instant::now();
    let all = async { tokio::join!(silent, dripping, idle) };
    let (silent, (), idle) = tokio::time::timeout(DEADLINE, all).await.expect("all are closed");
    assert!(started.elapsed() >= limit);
    assert!(silent.is_empty() || status(&silent) >= 400, "{silent}");
    assert_eq!(status(&idle), 200);
    gateway.stop().await;
}

#[tokio::test]
async fn dripping_bodies_are_cut() {
    let gateway = TestGateway::start(config(|config| config.body_idle_timeout = Duration::from_millis(300)));
    let (mut read, mut write) = gateway.connect().await.into_split();
    write.write_all(b"POST /len HTTP/1.1\r\nHost: a\r\nContent-Length: 1000\r\n\r\n").await.unwrap();
    let drip = async {
        let mut tick = tokio::time::interval(Duration::from_millis(20));
        loop {
            tick.tick().await;
            if write.write_all(b"x").await.is_err() {
                return std::future::pending().await;
            }
        }
    };
    let closed = async {
        let mut answer = Vec::new();
        let _ = read.read_to_end(&mut answer).await;
        String::from_utf8_lossy(&answer).into_owned()
    };
    let cut = async {
        tokio::select! { () = drip => unreachable!(), answer = closed => answer }
    };
    let answer = tokio::time::timeout(DEADLINE, cut).await.expect("the upload is cut");
    assert!(answer.is_empty() || status(&answer) == 400, "{answer}");
    gateway.stop().await;
}

#[tokio::test]
async fn a_client_that_reads_nothing_is_cut() {
    let gateway = TestGateway::start(config(|config| config.body_idle_timeout = Duration::from_millis(300)));
    let mut stream = gateway.connect().await;
    stream.write_all(b"GET /big HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let closed = async {
        while gateway.metrics.connections.get() == 0 {
            tokio::task::yield_now().await;
        }
        while gateway.metrics.connections.get() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(DEADLINE, closed).await.expect("the connection is cut");
    gateway.stop().await;
}

#[tokio::test]
async fn connections_beyond_the_caps_are_closed_at_once() {
    let gateway = TestGateway::start(config(|config| config.max_connections_per_ip = 3));
    let mut open = Vec::new();
    for _ in 0..3 {
        let mut stream = gateway.connect().await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        assert_eq!(status(&read_head(&mut stream).await), 200);
        open.push(stream);
    }
    let mut refused = gateway.connect().await;
    assert_eq!(read_to_end(&mut refused).await, "");
    assert!(gateway.metrics.render().unwrap().contains(r#"reason="max_connections_per_ip"} 1"#));
    drop(open);
    let served = async {
        loop {
            let answer = gateway.exchange(get("/", "")).await;
            if !answer.is_empty() {
                return answer;
            }
        }
    };
    assert_eq!(status(&tokio::time::timeout(DEADLINE, served).await.expect("places are given back")), 200);
    gateway.stop().await;
}

#[tokio::test]
async fn shutdown_lets_running_requests_finish_and_cuts_the_rest() {
    let gateway = TestGateway::start(config(|config| config.drain_timeout = Duration::from_millis(500)));
    let mut running = gateway.connect().await;
    running.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\nab").await.unwrap();
    assert_eq!(status(&read_head(&mut running).await), 200);
    let mut stuck = gateway.connect().await;
    stuck.write_all(b"GET /forever HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let mut idle = gateway.connect().await;
    idle.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert_eq!(status(&read_head(&mut idle).await), 200);

    gateway.shutdown.begin();
    assert_eq!(read_to_end(&mut idle).await, "own", "an idle connection is closed after its answer");
    running.write_all(b"cd").await.unwrap();
    assert!(read_to_end(&mut running).await.ends_with("abcd"));
    assert_eq!(read_to_end(&mut stuck).await, "", "a request that never ends is cut");
    let address = gateway.address;
    tokio::time::timeout(DEADLINE, gateway.running).await.expect("run returns").unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "the listener is closed");
}

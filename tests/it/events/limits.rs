//! What clients can make grow is bounded, and whoever goes beyond is told by a code.

use serde_json::Value;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::PATIENCE;
use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::socket::Socket;
use crate::support::socket::publish;

#[tokio::test]
async fn messages_are_small_json_texts() {
    let app = TestApp::start().await;
    let user = app.user("ada").await;
    for (message, code) in [(Message::binary(vec![1, 2, 3]), 3506), (Message::text("x".repeat(65_537)), 1009)] {
        let mut socket = Socket::plain(&app, &user, "/ws").await;
        socket.send(message).await;
        assert_eq!(socket.closed().await, code);
    }
    let mut socket = Socket::plain(&app, &user, "/ws").await;
    let padding = "x".repeat(65_000);
    socket.send(Message::text(format!("{{\"type\":\"Ping\"}}{}", " ".repeat(65_000)))).await;
    assert_eq!(socket.hear().await["type"], "Pong");
    let deep = format!("{{\"type\":\"Ping\",\"x\":{}{}}}", "[".repeat(20_000), "]".repeat(20_000));
    for text in [&*deep, "", "nonsense", "[]", &padding, "{\"type\":7}", "{}", "7", "null"] {
        socket.send(Message::text(text.to_owned())).await;
        assert_eq!(socket.hear().await["code"], "INVALID_REQUEST");
    }
    socket.send(Message::text("the tenth")).await;
    assert_eq!(socket.closed().await, 3509);
}

#[tokio::test]
async fn a_flood_is_slowed_down_and_then_ended() {
    let app = TestApp::with("events.frames_per_second = 1\n").await;
    let user = app.user("ada").await;
    let mut socket = Socket::plain(&app, &user, "/ws").await;
    for _ in 0..62 {
        socket.send(Message::text("{\"type\":\"Ping\"}")).await;
    }
    let mut limited = 0;
    let code = loop {
        match socket.next().await {
            Ok(text) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                if frame["type"] == "Error" {
                    assert_eq!((&frame["code"], &frame["retryable"]), (&json!("RATE_LIMITED"), &json!(true)));
                    assert!(frame["retry_after_ms"].as_u64().unwrap() > 0);
                    limited += 1;
                }
            }
            Err(code) => break code,
        }
    };
    assert_eq!((code, limited), (3013, 50));
}

#[tokio::test]
async fn sockets_are_counted_before_the_upgrade() {
    let keys = "events.max_sockets = 3\nevents.max_sockets_per_user = 2\n";
    let app = TestApp::with(keys).await;
    let (ada, bob, eve) = (app.user("ada").await, app.user("bob").await, app.user("eve").await);
    let open = async |user: &User| {
        let bearer = format!("Bearer {}", user.token);
        Socket::open(&app, "/ws", &[("authorization", &bearer)]).await
    };
    let first = open(&ada).await.ok().unwrap();
    let _second = open(&ada).await.ok().unwrap();
    assert_eq!(open(&ada).await.err(), Some(429));
    let _third = open(&bob).await.ok().unwrap();
    assert_eq!(open(&eve).await.err(), Some(503));
    drop(first);
    eventually("a place is free", async || open(&eve).await.ok()).await;
}

#[tokio::test]
async fn silent_clients_are_asked_and_then_let_go() {
    let app = TestApp::with("events.ping = \"300ms\"\nevents.pong = \"2s\"\n").await;
    let user = app.user("ada").await;
    let mut polite = Socket::plain(&app, &user, "/ws").await;
    // One that reads and never answers: a bare connection, as tungstenite answers by itself.
    let address = app.base.strip_prefix("http://").unwrap();
    let mut mute = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "GET /ws HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        user.token
    );
    mute.write_all(head.as_bytes()).await.unwrap();
    let mut bytes = Vec::new();
    // Its head, and the code 3012 before the reason.
    let [high, low] = 3012_u16.to_be_bytes();
    let close = [0x88, 2 + 7, high, low];
    let closed = async {
        while !bytes.windows(4).any(|window| window == close) {
            assert!(mute.read_buf(&mut bytes).await.unwrap() > 0, "closed without the code: {bytes:?}");
        }
    };
    // The polite one lives on, because reading is answering.
    let answering = async {
        loop {
            polite.is_silent().await;
            crate::support::pause().await;
        }
    };
    tokio::time::timeout(PATIENCE, async {
        tokio::select! {
            () = closed => {}
            () = answering => {}
        }
    })
    .await
    .unwrap();
    polite.is_silent().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_the_others_notice_nothing() {
    let keys = "events.max_sockets_per_user = 2000\nevents.max_unsent_bytes = 65536\nevents.connects_per_ip = 10000\n\
        events.ping = \"10m\"\n";
    let app = TestApp::with(keys).await;
    let (user, admin) = (app.user("ada").await, app.admin("root").await);
    let mut sockets = Vec::new();
    for _ in 0..1_000 {
        sockets.push(Socket::plain(&app, &user, "/ws?subscribe=system").await);
    }
    let lazy = sockets.pop().unwrap();
    let total = 24;
    let readers = sockets.into_iter().map(|mut socket| {
        tokio::spawn(async move {
            for n in 0..total {
                let text = socket.next().await.unwrap();
                assert!(text.starts_with(&format!("{{\"n\":{n},")), "not {n}: {}", &text[..40]);
                socket.record.clear();
            }
            socket
        })
    });
    let readers: Vec<_> = readers.collect();
    let padding = "x".repeat(40_000);
    for n in 0..total {
        publish(&admin, "system", "Notice", json!({"n": n, "padding": padding})).await;
    }
    for reader in readers {
        reader.await.unwrap();
    }
    let metrics = async || app.get("/metrics").await.text().await.unwrap();
    // What the kernel holds comes first, then the reason.
    let mut lazy = lazy;
    assert_eq!(lazy.closed().await, 3008);
    eventually("it is counted", async || metrics().await.contains("ws_closes_total{code=\"3008\"} 1").then_some(()))
        .await;
    let status = std::fs::read_to_string(format!("/proc/{}/status", app.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().strip_suffix("kB").unwrap().trim().parse().unwrap();
    assert!(peak < 250_000, "{peak} kB for 1000 sockets and 24 events of 40 kB");
}

#[tokio::test]
async fn topics_of_others_that_a_client_says_it_had_are_not_even_read() {
    let app = TestApp::start().await;
    let user = app.user("ada").await;
    let (_socket, welcome) = Socket::hello(&app, &user, "/ws", Value::Null).await;
    let in_memory = async || {
        let health: Value = app.get("/health/ws").await.json().await.unwrap();
        health["topics"].as_u64().unwrap()
    };
    let before = in_memory().await;
    let had: serde_json::Map<_, _> = (0..20).map(|n| (format!("user:nobody{n}"), json!(0))).collect();
    let resume = json!({"epoch": welcome["epoch"], "topics": had});
    let (_other, welcome) = Socket::hello(&app, &user, "/ws", resume).await;
    assert_eq!(welcome["topics"].as_array().unwrap().len(), 2, "{welcome}");
    assert_eq!(in_memory().await, before);
}

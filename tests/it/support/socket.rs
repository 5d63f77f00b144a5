//! A WebSocket client for tests: a foreign implementation, so that ours is not its own judge.

use std::time::Duration;

use futures_util::SinkExt;
use futures_util::StreamExt;
use serde_json::Value;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_tungstenite::MaybeTlsStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderName;
use tokio_tungstenite::tungstenite::http::HeaderValue;

use super::PATIENCE;
use super::TestApp;
use super::User;

pub(crate) struct Socket {
    pub(crate) stream: WebSocketStream<MaybeTlsStream<TcpStream>>,
    pub(crate) protocol: Option<String>,
    /// Every text that came.
    pub(crate) record: Vec<String>,
}

impl Socket {
    /// The status that refuses the handshake, if one does.
    pub(crate) async fn open(app: &TestApp, path: &str, headers: &[(&str, &str)]) -> Result<Self, u16> {
        let url = format!("{}{path}", app.base.replace("http://", "ws://"));
        let mut request = url.into_client_request().unwrap();
        for (name, value) in headers {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            request.headers_mut().append(name, HeaderValue::from_str(value).unwrap());
        }
        match tokio_tungstenite::connect_async(request).await {
            Ok((stream, answer)) => {
                let protocol = answer.headers().get("sec-websocket-protocol");
                let protocol = protocol.map(|name| name.to_str().unwrap().to_owned());
                Ok(Self { stream, protocol, record: Vec::new() })
            }
            Err(tungstenite::Error::Http(answer)) => Err(answer.status().as_u16()),
            Err(error) => panic!("connect: {error}"),
        }
    }

    /// A plain client with a header.
    pub(crate) async fn plain(app: &TestApp, user: &User, path: &str) -> Self {
        let bearer = format!("Bearer {}", user.token);
        Self::open(app, path, &[("authorization", &bearer)]).await.unwrap()
    }

    /// A client that speaks `cp.v1`, after its `Welcome`.
    pub(crate) async fn hello(app: &TestApp, user: &User, path: &str, resume: Value) -> (Self, Value) {
        let bearer = format!("Bearer {}", user.token);
        let headers = [("authorization", &*bearer), ("sec-websocket-protocol", "cp.v1.json")];
        let mut socket = Self::open(app, path, &headers).await.unwrap();
        assert_eq!(socket.protocol.as_deref(), Some("cp.v1.json"));
        let mut hello = json!({"type": "Hello", "id": "h"});
        if !resume.is_null() {
            hello["resume"] = resume;
        }
        socket.say(hello).await;
        let welcome = socket.hear().await;
        assert_eq!((&welcome["type"], &welcome["id"]), (&json!("Welcome"), &json!("h")), "{welcome}");
        (socket, welcome)
    }

    pub(crate) async fn say(&mut self, frame: Value) {
        self.send(Message::text(frame.to_string())).await;
    }

    pub(crate) async fn send(&mut self, message: Message) {
        self.stream.send(message).await.unwrap();
    }

    /// The next JSON message.
    pub(crate) async fn hear(&mut self) -> Value {
        match self.next().await {
            Ok(text) => serde_json::from_str(&text).unwrap(),
            Err(code) => panic!("closed with {code}"),
        }
    }

    /// The next message, or the code of the close (1006 without one).
    pub(crate) async fn next(&mut self) -> Result<String, u16> {
        let next = async {
            loop {
                match self.stream.next().await {
                    Some(Ok(Message::Text(text))) => return Ok(text.to_string()),
                    Some(Ok(Message::Close(close))) => return Err(close.map_or(1005, |close| close.code.into())),
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Err(1006),
                }
            }
        };
        let next = tokio::time::timeout(PATIENCE, next).await.expect("something comes in time");
        self.record.extend(next.clone().ok());
        next
    }

    /// The code it is closed with, whatever comes before.
    pub(crate) async fn closed(&mut self) -> u16 {
        loop {
            if let Err(code) = self.next().await {
                return code;
            }
        }
    }

    /// Nothing comes before the answer to a ping.
    pub(crate) async fn is_silent(&mut self) {
        self.say(json!({"type": "Ping"})).await;
        assert_eq!(self.hear().await, json!({"type": "Pong"}));
    }
}

/// Publishes as an admin; the offset.
pub(crate) async fn publish(admin: &User, topic: &str, event: &str, data: Value) -> u64 {
    let body = json!({"topic": topic, "event": event, "data": data});
    let answer = admin.post("/api/v1/admin/realtime/publish", body).await;
    let status = answer.status();
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{answer}");
    answer["offset"].as_u64().unwrap()
}

/// How long a session may outlive its end.
pub(crate) const SOON: Duration = Duration::from_secs(1);

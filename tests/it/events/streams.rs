//! The same events without a socket.

use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::support::PATIENCE;
use crate::support::TestApp;
use crate::support::User;
use crate::support::socket::publish;

struct Stream {
    answer: reqwest::Response,
    text: String,
}

impl Stream {
    async fn open(user: &User, path: &str, last: Option<&str>) -> Self {
        let request = user.request(reqwest::Method::GET, path);
        let request = if let Some(last) = last { request.header("last-event-id", last) } else { request };
        let answer = request.send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self { answer, text: String::new() }
    }

    /// The next event: its id, name and data.
    async fn next(&mut self) -> Option<(String, String, Value)> {
        loop {
            if let Some((event, rest)) = self.text.split_once("\n\n") {
                let field = |name: &str| {
                    let line = event.lines().find_map(|line| line.strip_prefix(name));
                    line.unwrap_or_default().trim_start().to_owned()
                };
                let found = (field("id:"), field("event:"), field("data:"));
                let end = self.text.len() - rest.len();
                self.text.drain(..end);
                if !found.2.is_empty() {
                    return Some((found.0, found.1, serde_json::from_str(&found.2).unwrap()));
                }
                continue;
            }
            let chunk = tokio::time::timeout(PATIENCE, self.answer.chunk()).await.unwrap().unwrap()?;
            self.text.push_str(std::str::from_utf8(&chunk).unwrap());
        }
    }
}

#[tokio::test]
async fn a_stream_goes_on_where_it_stopped() {
    let app = TestApp::start().await;
    let (user, admin) = (app.user("ada").await, app.admin("root").await);
    let path = "/api/v1/events?topics=queue,system";
    let mut stream = Stream::open(&user, path, None).await;
    let (_, name, ready) = stream.next().await.unwrap();
    assert_eq!((&*name, &ready["recovered"]), ("ready", &Value::Null));
    publish(&admin, "system", "Notice", json!({"n": 1})).await;
    let (last, _, event) = stream.next().await.unwrap();
    assert_eq!((&event["type"], &event["data"]["n"]), (&json!("Event"), &json!(1)));
    drop(stream);
    publish(&admin, &format!("queue:{}", user.id), "QueueUpdate", json!({"n": 2})).await;
    publish(&admin, "system", "Notice", json!({"n": 3})).await;
    let mut stream = Stream::open(&user, path, Some(&last)).await;
    assert_eq!(stream.next().await.unwrap().2["recovered"], true);
    for n in [2, 3] {
        assert_eq!(stream.next().await.unwrap().2["data"]["n"], n);
    }
    publish(&admin, "system", "Notice", json!({"n": 4})).await;
    assert_eq!(stream.next().await.unwrap().2["data"]["n"], 4);
    // It ends with its session.
    assert_eq!(user.post("/auth/logout", json!({})).await.status(), 204);
    let (_, name, end) = stream.next().await.unwrap();
    assert_eq!((&*name, &end["code"]), ("end", &json!(3500)));
    assert_eq!(stream.next().await, None);
}

#[tokio::test]
async fn polls_bring_what_came_since() {
    let app = TestApp::start().await;
    let (user, admin) = (app.user("ada").await, app.admin("root").await);
    let poll = async |since: &str, timeout: u64| {
        let path = format!("/api/v1/events/poll?topics=system&timeout={timeout}&since={since}");
        let answer = user.get(&path).await;
        assert_eq!(answer.status(), 200);
        answer.json::<Value>().await.unwrap()
    };
    let first: Value = user.get("/api/v1/events/poll?topics=system").await.json().await.unwrap();
    let next = first["next"].as_str().unwrap().to_owned();
    assert_eq!((first["events"].as_array().unwrap().len(), &first["recovered"]), (0, &Value::Null));
    let waiting = poll(&next, 50);
    let saying = async {
        tokio::time::timeout(Duration::from_millis(200), std::future::pending::<()>()).await.unwrap_err();
        publish(&admin, "system", "Notice", json!({"n": 1})).await
    };
    let (polled, _) = tokio::join!(waiting, saying);
    assert_eq!((polled["events"].as_array().unwrap().len(), &polled["recovered"]), (1, &json!(true)));
    publish(&admin, "system", "Notice", json!({"n": 2})).await;
    let polled = poll(polled["next"].as_str().unwrap(), 50).await;
    assert_eq!(polled["events"][0]["data"]["n"], 2);
    let polled = poll(polled["next"].as_str().unwrap(), 0).await;
    assert_eq!(polled["events"], json!([]));
    let polled = poll("other:7", 50).await;
    assert_eq!(polled["recovered"], false);
    for (path, status) in [
        ("/api/v1/events/poll?topics=instance:global", 404),
        ("/api/v1/events?topics=nonsense", 404),
        ("/api/v1/events/poll?since=nonsense", 400),
        ("/api/v1/events/poll?timeout=3600", 400),
    ] {
        assert_eq!(user.get(path).await.status(), status, "{path}");
    }
    assert_eq!(app.get("/api/v1/events").await.status(), 401);
}

//! Talks HTTP/1 to the control socket of the running server.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use anyhow::bail;
use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::Full;
use http_body_util::Limited;
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header;
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::api::control_socket;
use crate::supervisor::jail;

/// Longest wait for an answer: a sleep may have to drain an instance first.
const PATIENCE: Duration = Duration::from_mins(2);
/// Largest answer that is read, in bytes.
const LARGEST: usize = 64 << 20;

/// The server that runs on a data directory, if one does.
#[derive(Debug, Clone)]
pub struct Control {
    data: PathBuf,
    socket: PathBuf,
}

impl Control {
    /// The server on this data directory.
    pub fn of(data: &Path) -> Self {
        Self { data: data.to_owned(), socket: control_socket::path_in(data) }
    }

    /// Whether a server holds the data directory, also while it does not answer.
    pub fn is_held(&self) -> bool {
        jail::is_locked(&self.data.join("lock")).unwrap_or(true)
    }

    /// Asks and returns whatever was answered: the status and the JSON body.
    pub async fn ask(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<(u16, Value)> {
        let asking = Box::pin(self.exchange(method, path, body));
        tokio::time::timeout(PATIENCE, asking).await.context("the server did not answer in time")?
    }

    /// Asks for something that should succeed; an error of the server becomes one here.
    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<Value> {
        let (status, answer) = self.ask(method, path, body).await?;
        if (200..300).contains(&status) {
            return Ok(answer);
        }
        let Some(message) = answer["error"]["message"].as_str() else { bail!("the server answered {status}") };
        match &answer["error"]["details"] {
            Value::Object(details) if !details.is_empty() => bail!("{message} {}", answer["error"]["details"]),
            _ => bail!("{message}"),
        }
    }

    async fn exchange(&self, method: &str, path: &str, body: Option<&Value>) -> anyhow::Result<(u16, Value)> {
        let stream = control_socket::connect(&self.socket).await.map_err(|error| self.unreachable(error))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.context("speak to the server")?;
        let driver = tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "control")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(body.map_or_else(Bytes::new, |body| Bytes::from(body.to_string()))))?;
        let response = sender.send_request(request).await.context("the server broke off")?;
        let status = response.status().as_u16();
        let collected = Limited::new(response.into_body(), LARGEST).collect().await;
        let bytes = collected.map_err(|error| anyhow::anyhow!("read the answer: {error}"))?.to_bytes();
        driver.abort();
        let answer =
            if bytes.is_empty() { Value::Null } else { serde_json::from_slice(&bytes).context("read the answer")? };
        Ok((status, answer))
    }

    fn unreachable(&self, error: io::Error) -> anyhow::Error {
        let data = self.data.display();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => {
                anyhow::anyhow!("no pocketfleet is running on {data}; start one with `pocketfleet serve --data {data}`")
            }
            io::ErrorKind::PermissionDenied => {
                anyhow::anyhow!("the pocketfleet on {data} belongs to another user; run this as that user or as root")
            }
            _ => anyhow::Error::new(error).context(format!("reach the pocketfleet on {data}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::Json;
    use axum::Router;
    use axum::http::StatusCode;
    use axum::routing::get;
    use axum::routing::post;
    use serde_json::json;

    use super::*;
    use crate::api::control_socket::ControlSocket;
    use crate::error::Code;
    use crate::error::Problem;
    use crate::shutdown::Shutdown;

    async fn refuse() -> (StatusCode, Json<Value>) {
        (StatusCode::NOT_FOUND, Json(Problem::new(Code::NotFound).message("there is no such tenant").body("r")))
    }

    #[tokio::test]
    async fn it_asks_and_tells_what_the_server_said() {
        let folder = tempfile::tempdir().unwrap();
        let control = Control::of(folder.path());
        let router = Router::new()
            .route("/echo", post(|Json(body): Json<Value>| async { Json(body) }))
            .route("/refuse", get(refuse));
        let shutdown = Shutdown::new();
        let socket = ControlSocket::bind(&control_socket::path_in(folder.path())).await.unwrap();
        let serving = tokio::spawn(socket.serve(router, shutdown.clone()));
        assert_eq!(control.call("POST", "/echo", Some(&json!({"a": 1}))).await.unwrap(), json!({"a": 1}));
        assert_eq!(control.call("GET", "/refuse", None).await.unwrap_err().to_string(), "there is no such tenant");
        shutdown.begin();
        serving.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn without_a_server_it_says_how_to_start_one() {
        let folder = tempfile::tempdir().unwrap();
        let error = Control::of(folder.path()).call("GET", "/status", None).await.unwrap_err().to_string();
        assert!(error.starts_with("no pocketfleet is running on /") && error.contains("pocketfleet serve"), "{error}");
    }
}

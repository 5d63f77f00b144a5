//! Requests of `object_store`, sent by way of the guard.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use http_body_util::BodyExt;
use http_body_util::Limited;
use object_store::ClientOptions;
use object_store::client::HttpClient;
use object_store::client::HttpConnector;
use object_store::client::HttpError;
use object_store::client::HttpErrorKind;
use object_store::client::HttpRequest;
use object_store::client::HttpResponse;
use object_store::client::HttpResponseBody;
use object_store::client::HttpService;
use reqwest::Method;

use super::Guard;

/// The slowest connection that is waited for.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;

/// How long a request with this many bytes may take.
fn patience(bytes: u64) -> Duration {
    Duration::from_secs(60 + bytes / SLOWEST_BYTES_PER_SECOND).min(Duration::from_hours(12))
}

/// An answer that is longer than one can be.
#[derive(Debug, thiserror::Error)]
#[error("the answer is too long")]
struct TooLong;

/// Sends `object_store`'s requests by way of the guard.
#[derive(Debug)]
pub struct Guarded {
    guard: Guard,
    most: usize,
}

impl Guarded {
    /// Answers of more bytes than `most` are refused.
    pub fn new(guard: Guard, most: usize) -> Self {
        Self { guard, most }
    }
}

impl HttpConnector for Guarded {
    fn connect(&self, _options: &ClientOptions) -> object_store::Result<HttpClient> {
        Ok(HttpClient::new(Self::new(self.guard.clone(), self.most)))
    }
}

impl HttpService for Guarded {
    fn call<'call, 'future>(
        &'call self,
        request: HttpRequest,
    ) -> Pin<Box<dyn Future<Output = Result<HttpResponse, HttpError>> + Send + 'future>>
    where
        'call: 'future,
        Self: 'future,
    {
        Box::pin(async move {
            let (head, body) = request.into_parts();
            let url = self
                .guard
                .parse(&head.uri.to_string())
                .map_err(|error| HttpError::new(HttpErrorKind::Decode, error))?;
            let length = body.content_length() as u64;
            let is_head = head.method == Method::HEAD;
            let mut outgoing = reqwest::Request::new(head.method, url);
            *outgoing.headers_mut() = head.headers;
            *outgoing.timeout_mut() = Some(patience(length));
            *outgoing.body_mut() = Some(reqwest::Body::wrap(body));
            let response = self.guard.uploads().execute(outgoing).await.map_err(|error| {
                let kind = if error.is_connect() { HttpErrorKind::Connect } else { HttpErrorKind::Request };
                HttpError::new(kind, super::Error::from(error))
            })?;
            // What answers a HEAD says how long the object is, and has no body.
            let announced = response.content_length().filter(|_| !is_head).unwrap_or_default();
            if announced > self.most as u64 {
                return Err(HttpError::new(HttpErrorKind::Decode, TooLong));
            }
            let (head, body) = hyper::Response::<reqwest::Body>::from(response).into_parts();
            // Collected here: whoever reads it otherwise makes as much room as the other side announces.
            let collected = tokio::time::timeout(patience(0), Limited::new(body, self.most).collect());
            let collected = collected.await.map_err(|elapsed| HttpError::new(HttpErrorKind::Timeout, elapsed))?;
            let collected = collected.map_err(|error| match error.downcast::<reqwest::Error>() {
                Ok(error) => HttpError::new(HttpErrorKind::Interrupted, error.without_url()),
                Err(_) => HttpError::new(HttpErrorKind::Decode, TooLong),
            })?;
            Ok(HttpResponse::from_parts(head, HttpResponseBody::from(collected.to_bytes())))
        })
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::outbound::Config;

    /// A server that answers every request with these bytes and keeps the connection open.
    async fn answering(answer: &'static [&'static str]) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            let mut open = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                for chunk in answer {
                    let _ = stream.write_all(chunk.as_bytes()).await;
                    let _ = stream.flush().await;
                }
                open.push(stream);
            }
        });
        base
    }

    async fn called(base: &str, method: Method) -> Result<HttpResponse, HttpError> {
        let guard = Guard::new(&Config { allow: vec![base.to_owned()], ..Config::default() }).unwrap();
        let request = hyper::Request::builder().method(method).uri(format!("{base}/bucket/key"));
        Guarded::new(guard, 1 << 20).call(request.body(Bytes::new().into()).unwrap()).await
    }

    #[tokio::test]
    async fn an_answer_that_announces_more_than_it_can_be_is_refused() {
        let base = answering(&[
            "HTTP/1.1 400 Bad Request\r\ncontent-length: 9000000000000000000\r\n\r\n<Error>",
            "<Code>Odd</Code>",
        ])
        .await;
        let error = called(&base, Method::PUT).await.unwrap_err();
        assert_eq!(error.kind(), HttpErrorKind::Decode);
        let base = answering(&["HTTP/1.1 400 Bad Request\r\ncontent-length: 5\r\n\r\nab", "cde"]).await;
        let answer = called(&base, Method::PUT).await.unwrap();
        assert_eq!(answer.into_body().bytes().await.unwrap(), "abcde");
    }

    #[tokio::test]
    async fn a_head_may_announce_an_object_of_any_length() {
        let base = answering(&["HTTP/1.1 200 OK\r\ncontent-length: 9000000000000\r\n\r\n"]).await;
        let answer = called(&base, Method::HEAD).await.unwrap();
        assert_eq!(answer.headers()["content-length"], "9000000000000");
    }
}

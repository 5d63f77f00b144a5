//! Resumable uploads by tus 1.0.0: creation, offset, patches, termination.
//!
//! Source: <https://tus.io/protocols/resumable-upload>. The successor draft of the IETF differs and is not mixed in.
//! A kill between the answer of the creation and the note of it leaves an empty upload at the server, which no client
//! can find again; servers expire those.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use reqwest::Method;
use reqwest::RequestBuilder;
use reqwest::Response;
use reqwest::StatusCode;
use reqwest::Url;
use reqwest::header::CONTENT_LENGTH;
use reqwest::header::CONTENT_TYPE;
use reqwest::header::LOCATION;
use serde_json::json;

use super::Capabilities;
use super::Delivered;
use super::Destination;
use super::Outgoing;
use super::Report;
use super::Resume;
use super::Upload;
use super::error::Error;
use super::parts;
use super::registry::Credential;
use crate::outbound::Guard;

const VERSION: &str = "1.0.0";
const OFFSET: &str = "Upload-Offset";
/// What one `PATCH` carries.
const PART: u64 = 8 * 1024 * 1024;

/// A server that takes tus uploads.
pub struct Tus {
    guard: Guard,
    endpoint: Url,
    credential: Option<Credential>,
}

impl fmt::Debug for Tus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tus").field("host", &self.endpoint.host_str()).finish_non_exhaustive()
    }
}

impl Tus {
    /// Uploads are created at `endpoint`, with `credential` if there is one.
    pub fn new(guard: Guard, endpoint: &str, credential: Option<Credential>) -> Result<Self, Error> {
        let endpoint = guard.parse(endpoint)?;
        Ok(Self { guard, endpoint, credential })
    }

    /// A request; the credential goes to the configured origin only.
    fn request(&self, method: Method, url: Url, bytes: u64) -> RequestBuilder {
        let is_ours = url.origin() == self.endpoint.origin();
        let request = self.guard.uploads().request(method, url).header("Tus-Resumable", VERSION);
        let request = request.timeout(parts::patience(bytes));
        match &self.credential {
            Some(Credential { name, value }) if is_ours => request.header(name, value),
            _ => request,
        }
    }

    async fn create(&self, size: u64, metadata: String) -> Result<Url, Error> {
        let request = self
            .request(Method::POST, self.endpoint.clone(), 0)
            .header("Upload-Length", size)
            .header("Upload-Metadata", metadata)
            .header(CONTENT_LENGTH, 0);
        let response = parts::judge(request.send().await?).await?;
        let location = response.headers().get(LOCATION).and_then(|value| value.to_str().ok());
        let location = location.ok_or(Error::Unexpected("no Location of the new upload"))?;
        let url = self.endpoint.join(location).map_err(|_| Error::Unexpected("a Location that is no address"))?;
        self.guard.check(&url)?;
        Ok(url)
    }

    fn address(&self, upload: &Upload) -> Result<Url, Error> {
        let text = upload.state.get("url").and_then(serde_json::Value::as_str).ok_or(Error::Gone)?;
        Ok(self.guard.parse(text)?)
    }

    /// How much the server has; none when it does not know the upload any more.
    async fn offset(&self, url: Url, file: &Outgoing) -> Result<Option<u64>, Error> {
        let response = self.request(Method::HEAD, url, 0).send().await?;
        if is_gone(response.status()) {
            return Ok(None);
        }
        let response = parts::judge(response).await?;
        let length = number(&response, "Upload-Length");
        let offset = number(&response, OFFSET).ok_or(Error::Unexpected("no Upload-Offset"))?;
        Ok(Some(offset).filter(|offset| *offset <= file.size && length.is_none_or(|length| length == file.size)))
    }

    /// Whoever knows the address of an upload may change or fetch it: it is not told.
    fn delivered(&self) -> Delivered {
        Delivered { url: None, location: self.endpoint.to_string() }
    }

    async fn patch(&self, file: &Outgoing, mut upload: Upload, report: Report<'_>) -> Result<Upload, Error> {
        let length = PART.min(file.size.saturating_sub(upload.offset));
        if length == 0 {
            return Ok(upload);
        }
        let sent = Arc::new(AtomicU64::new(0));
        let body = parts::body(&file.path, upload.offset, length, Arc::clone(&sent)).await?;
        let request = self
            .request(Method::PATCH, self.address(&upload)?, length)
            .header(OFFSET, upload.offset)
            .header(CONTENT_TYPE, "application/offset+octet-stream")
            .header(CONTENT_LENGTH, length)
            .body(body);
        let before = upload.offset;
        let is_last = before + length == file.size;
        let time = if is_last { parts::ANSWER } else { parts::ANSWER_TO_PART };
        let response = parts::answer(request, &sent, length, time, &|sent| report(before + sent)).await?;
        if response.status() == StatusCode::CONFLICT {
            // It has more or less than we thought: its word counts, unless it refuses the very offset that it names.
            upload.offset = self.offset(self.address(&upload)?, file).await?.ok_or(Error::Gone)?;
            return if upload.offset == before { Err(Error::Gone) } else { Ok(upload) };
        }
        if is_gone(response.status()) {
            return Err(Error::Gone);
        }
        let response = parts::judge(response).await?;
        let offset = number(&response, OFFSET).ok_or(Error::Unexpected("no Upload-Offset"))?;
        if offset <= upload.offset || offset > file.size {
            return Err(Error::Unexpected("an Upload-Offset that does not follow"));
        }
        upload.offset = offset;
        report(offset);
        Ok(upload)
    }
}

fn is_gone(status: StatusCode) -> bool {
    matches!(status, StatusCode::NOT_FOUND | StatusCode::GONE)
}

fn number(response: &Response, header: &str) -> Option<u64> {
    response.headers().get(header)?.to_str().ok()?.trim().parse().ok()
}

fn metadata(file: &Outgoing) -> String {
    let pairs = [
        ("filename", format!("{}/{}", file.folder, file.name)),
        ("filetype", file.content_type.clone()),
        ("sha256", file.sha256.clone()),
    ];
    pairs.map(|(key, value)| format!("{key} {}", STANDARD.encode(value))).join(",")
}

impl Destination for Tus {
    fn capabilities(&self) -> Capabilities {
        Capabilities { resumable: true, max_bytes: None, returns_share_url: false, needs_human: false }
    }

    fn begin<'a>(&'a self, file: &'a Outgoing) -> BoxFuture<'a, Result<Upload, Error>> {
        Box::pin(async move {
            let url = self.create(file.size, metadata(file)).await?;
            Ok(Upload { offset: 0, state: json!({ "url": url.as_str() }) })
        })
    }

    fn resume<'a>(&'a self, file: &'a Outgoing, upload: &'a Upload) -> BoxFuture<'a, Result<Resume, Error>> {
        Box::pin(async move {
            Ok(match self.offset(self.address(upload)?, file).await? {
                Some(offset) => Resume::At(Upload { offset, state: upload.state.clone() }),
                // It took all of it; many servers move on what is whole.
                None if upload.offset == file.size => Resume::Complete(self.delivered()),
                None => Resume::StartOver,
            })
        })
    }

    fn send<'a>(
        &'a self,
        file: &'a Outgoing,
        upload: Upload,
        report: Report<'a>,
    ) -> BoxFuture<'a, Result<Upload, Error>> {
        Box::pin(self.patch(file, upload, report))
    }

    fn finish<'a>(&'a self, file: &'a Outgoing, upload: &'a Upload) -> BoxFuture<'a, Result<Delivered, Error>> {
        Box::pin(async move {
            let url = self.address(upload)?;
            match self.offset(url, file).await? {
                Some(offset) if offset == file.size => Ok(self.delivered()),
                Some(_) => Err(Error::Unexpected("bytes that were taken are missing")),
                None if upload.offset == file.size => Ok(self.delivered()),
                None => Err(Error::Gone),
            }
        })
    }

    fn abandon<'a>(&'a self, _file: &'a Outgoing, upload: &'a Upload) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Ok(url) = self.address(upload) {
                // An extension of the protocol that a server need not have.
                let _ = self.request(Method::DELETE, url, 0).send().await;
            }
        })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async {
            let url = self.create(0, format!("filename {}", STANDARD.encode("pocketfleet-check"))).await?;
            let _ = self.request(Method::DELETE, url, 0).send().await;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::outbound::Config;

    fn file(path: PathBuf) -> Outgoing {
        let text = |text: &str| text.to_owned();
        let (folder, name, content_type) = (text("f"), text("n"), text("video/mp4"));
        Outgoing { path, folder, name, content_type, size: 10, sha256: String::new() }
    }

    /// A server that has `offset` and refuses every patch.
    async fn refusing(offset: &'static str) -> String {
        answering("200 OK", offset).await
    }

    /// A server that answers every look with this status and `offset`, and refuses every patch.
    async fn answering(look: &'static str, offset: &'static str) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = Vec::new();
                let is_whole = |request: &[u8]| {
                    let text = String::from_utf8_lossy(request);
                    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.len());
                    body.is_some_and(|length| text.starts_with("HEAD") || length == 10)
                };
                while !is_whole(&request) && stream.read_buf(&mut request).await.is_ok_and(|read| read > 0) {}
                let status = if request.starts_with(b"HEAD") { look } else { "409 Conflict" };
                let head = format!("HTTP/1.1 {status}\r\nupload-offset: {offset}\r\n");
                let _ =
                    stream.write_all(format!("{head}content-length: 0\r\nconnection: close\r\n\r\n").as_bytes()).await;
            }
        });
        base
    }

    #[tokio::test]
    async fn a_server_that_refuses_the_offset_it_names_gets_no_second_try_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("staged");
        std::fs::write(&path, b"ten bytes.").unwrap();
        let file = file(path);
        for (offset, is_progress) in [("0", false), ("4", true)] {
            let base = refusing(offset).await;
            let guard = Guard::new(&Config { allow: vec![base.clone()], ..Config::default() }).unwrap();
            let tus = Tus::new(guard, &base, None).unwrap();
            let upload = Upload { offset: 0, state: json!({ "url": format!("{base}/files/secret") }) };
            match tus.send(&file, upload, &|_| {}).await {
                Ok(upload) => assert_eq!((upload.offset, is_progress), (4, true)),
                Err(error) => assert!(matches!(error, Error::Gone) && !is_progress, "{error:?}"),
            }
        }
    }

    #[tokio::test]
    async fn what_was_taken_whole_may_be_gone_from_where_it_was_sent() {
        let base = answering("404 Not Found", "").await;
        let guard = Guard::new(&Config { allow: vec![base.clone()], ..Config::default() }).unwrap();
        let tus = Tus::new(guard, &base, None).unwrap();
        let state = json!({ "url": format!("{base}/files/secret") });
        let (whole, half) = (Upload { offset: 10, state: state.clone() }, Upload { offset: 5, state });
        let delivered = Delivered { url: None, location: format!("{base}/") };
        assert_eq!(tus.finish(&file("x".into()), &whole).await.unwrap(), delivered);
        assert_eq!(tus.resume(&file("x".into()), &whole).await.unwrap(), Resume::Complete(delivered));
        assert!(matches!(tus.finish(&file("x".into()), &half).await, Err(Error::Gone)));
        assert_eq!(tus.resume(&file("x".into()), &half).await.unwrap(), Resume::StartOver);
    }

    #[tokio::test]
    async fn the_address_of_an_upload_is_not_told() {
        let base = refusing("10").await;
        let guard = Guard::new(&Config { allow: vec![base.clone()], ..Config::default() }).unwrap();
        let tus = Tus::new(guard, &format!("{base}/files"), None).unwrap();
        let upload = Upload { offset: 10, state: json!({ "url": format!("{base}/files/secret?key=1") }) };
        let delivered = tus.finish(&file("x".into()), &upload).await.unwrap();
        assert_eq!(delivered, Delivered { url: None, location: format!("{base}/files") });
    }
}

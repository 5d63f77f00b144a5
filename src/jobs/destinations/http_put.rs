//! One `PUT` for each file below an address: for servers that keep what they are given.
//!
//! The path depends on the recording alone and an `Idempotency-Key` goes with it, so that a repeated request replaces
//! or is recognised. Nothing can be resumed: an interrupted file is sent anew.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use futures_util::future::BoxFuture;
use reqwest::Method;
use reqwest::RequestBuilder;
use reqwest::Url;
use reqwest::header::CONTENT_LENGTH;
use reqwest::header::CONTENT_TYPE;
use serde_json::Value;
use sha2::Digest;
use sha2::Sha256;

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
use crate::jobs::deliver::staging::hex;
use crate::outbound::Guard;

/// A base address that takes files.
pub struct HttpPut {
    guard: Guard,
    base: Url,
    credential: Option<Credential>,
}

impl fmt::Debug for HttpPut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpPut").field("host", &self.base.host_str()).finish_non_exhaustive()
    }
}

impl HttpPut {
    /// Files go below `base`, with `credential` if there is one.
    pub fn new(guard: Guard, base: &str, credential: Option<Credential>) -> Result<Self, Error> {
        let base = guard.parse(base)?;
        Ok(Self { guard, base, credential })
    }

    fn address(&self, names: &[&str]) -> Result<Url, Error> {
        below(&self.base, names)
    }

    fn request(&self, method: Method, url: Url) -> RequestBuilder {
        let request = self.guard.uploads().request(method, url);
        match &self.credential {
            Some(Credential { name, value }) => request.header(name, value),
            None => request,
        }
    }

    async fn put(&self, file: &Outgoing, report: Report<'_>) -> Result<Upload, Error> {
        let sent = Arc::new(AtomicU64::new(0));
        let body = parts::body(&file.path, 0, file.size, Arc::clone(&sent)).await?;
        let request = self
            .request(Method::PUT, self.address(&[&file.folder, &file.name])?)
            .header(CONTENT_TYPE, &file.content_type)
            .header(CONTENT_LENGTH, file.size)
            .header("Idempotency-Key", idempotency_key(file))
            .body(body);
        parts::judge(parts::answer(request, &sent, file.size, parts::ANSWER, report).await?).await?;
        report(file.size);
        Ok(Upload { offset: file.size, state: Value::Null })
    }
}

/// The same for every attempt at the same bytes in the same place.
fn idempotency_key(file: &Outgoing) -> String {
    let digest = Sha256::digest([file.folder.as_str(), &file.name, &file.sha256].join("\0"));
    hex(&digest[..16])
}

/// An address with more names at its end, each encoded.
fn below(base: &Url, names: &[&str]) -> Result<Url, Error> {
    let mut url = base.clone();
    url.path_segments_mut()
        .map_err(|()| Error::Settings("the address cannot have a path"))?
        .pop_if_empty()
        .extend(names);
    Ok(url)
}

impl Destination for HttpPut {
    fn capabilities(&self) -> Capabilities {
        Capabilities { resumable: false, max_bytes: None, returns_share_url: false, needs_human: false }
    }

    fn begin<'a>(&'a self, _file: &'a Outgoing) -> BoxFuture<'a, Result<Upload, Error>> {
        Box::pin(async { Ok(Upload::default()) })
    }

    fn resume<'a>(&'a self, file: &'a Outgoing, upload: &'a Upload) -> BoxFuture<'a, Result<Resume, Error>> {
        let is_sent = upload.offset == file.size;
        Box::pin(async move { Ok(if is_sent { Resume::At(upload.clone()) } else { Resume::StartOver }) })
    }

    fn send<'a>(
        &'a self,
        file: &'a Outgoing,
        _upload: Upload,
        report: Report<'a>,
    ) -> BoxFuture<'a, Result<Upload, Error>> {
        Box::pin(self.put(file, report))
    }

    fn finish<'a>(&'a self, file: &'a Outgoing, _upload: &'a Upload) -> BoxFuture<'a, Result<Delivered, Error>> {
        Box::pin(async move {
            let location = self.address(&[&file.folder, &file.name])?.to_string();
            Ok(Delivered { url: None, location })
        })
    }

    fn abandon<'a>(&'a self, _file: &'a Outgoing, _upload: &'a Upload) -> BoxFuture<'a, ()> {
        // What was not sent whole was not taken.
        Box::pin(async {})
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async {
            let url = self.address(&["pocketfleet-check.txt"])?;
            let body = "pocketfleet tried whether files are taken here; this one may be deleted\n";
            let put = self
                .request(Method::PUT, url.clone())
                .header(CONTENT_TYPE, "text/plain; charset=utf-8")
                .timeout(parts::patience(0))
                .body(body);
            parts::judge(put.send().await?).await?;
            // Whoever takes files need not delete them.
            let _ = self.request(Method::DELETE, url).timeout(parts::patience(0)).send().await;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_file_is_recognised_and_an_equal_one_elsewhere_is_not() {
        let file = |folder: &str, name: &str, sha256: &str| {
            let text = |text: &str| text.to_owned();
            let (folder, name, sha256) = (text(folder), text(name), text(sha256));
            idempotency_key(&Outgoing { path: "x".into(), folder, name, content_type: text(""), size: 1, sha256 })
        };
        let one = file("a", "summary.md", "ab");
        assert_eq!((one.len(), &one), (32, &file("a", "summary.md", "ab")));
        for other in [file("b", "summary.md", "ab"), file("a", "notes.md", "ab"), file("a", "summary.md", "cd")] {
            assert_ne!(one, other);
        }
    }

    #[test]
    fn names_are_parts_of_the_path_and_nothing_else() {
        let base = Url::parse("https://example.com/in/").unwrap();
        let url = below(&base, &["2025_a b?c#d", "video.mp4"]).unwrap();
        assert_eq!(url.as_str(), "https://example.com/in/2025_a%20b%3Fc%23d/video.mp4");
        let base = Url::parse("https://example.com").unwrap();
        assert_eq!(below(&base, &["x"]).unwrap().as_str(), "https://example.com/x");
    }
}

//! A bucket of Amazon S3 or anything that speaks its protocol.
//!
//! Large files go in parts: the upload's id and the tags of the parts that arrived are kept, so a killed upload goes on.
//! A kill between the completion and the note of it is recognised by the object itself, which carries its SHA-256. An
//! upload that was created and never noted is the bucket's to expire (a lifecycle rule for incomplete uploads).

use std::fmt;
use std::time::Duration;

use futures_util::future::BoxFuture;
use object_store::Attribute;
use object_store::Attributes;
use object_store::GetOptions;
use object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::PutMultipartOptions;
use object_store::PutOptions;
use object_store::PutPayload;
use object_store::RetryConfig;
use object_store::aws::AmazonS3;
use object_store::aws::AmazonS3Builder;
use object_store::multipart::MultipartStore;
use object_store::multipart::PartId;
use object_store::path::Path;
use object_store::signer::Signer;
use reqwest::Method;
use reqwest::Url;
use serde::Deserialize;
use serde::Serialize;

use super::Capabilities;
use super::Delivered;
use super::Destination;
use super::Outgoing;
use super::Report;
use super::Resume;
use super::Upload;
use super::error::Error;
use super::parts;
use super::settings;
use crate::outbound::Guard;
use crate::outbound::objects::Guarded;
use crate::vault::Opened;

/// Parts are at least this long; S3 refuses less than 5 MiB and more than 10,000 parts. Their tags are kept in the job's
/// checkpoint, which bounds them further.
const PART: u64 = 8 * 1024 * 1024;
const MOST_PARTS: u64 = 1_500;
const HASH: &str = "sha256";
/// Most of an answer that is read: object contents are never asked for, and lists of parts are far shorter.
const MAX_ANSWER: usize = 1024 * 1024;
/// Largest object of S3.
const MAX_BYTES: u64 = 5 * 1024 * 1024 * 1024 * 1024;

/// A bucket.
pub struct S3 {
    store: AmazonS3,
    prefix: Path,
    link: Option<Duration>,
    bucket: String,
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3").field("bucket", &self.bucket).finish_non_exhaustive()
    }
}

/// The two halves of a key. The vault keeps the id as a setting; a JSON object or `ACCESS:SECRET` is understood too.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Key {
    #[serde(rename = "access_key_id")]
    id: String,
    #[serde(rename = "secret_access_key")]
    secret: String,
    #[serde(default, rename = "session_token")]
    token: Option<String>,
}

impl Key {
    fn read(opened: &Opened) -> Result<Self, Error> {
        let wanted = Error::MalformedKey("store the secret access key, with its access_key_id as a setting");
        let text = opened.secret.expose().trim();
        if let Some(id) = opened.settings.get("access_key_id").and_then(serde_json::Value::as_str) {
            return Ok(Self { id: id.to_owned(), secret: text.to_owned(), token: None });
        }
        if text.starts_with('{') {
            return serde_json::from_str(text).map_err(|_| wanted);
        }
        match text.split_once(':') {
            Some((access, key)) if !access.is_empty() && !key.is_empty() => {
                Ok(Self { id: access.to_owned(), secret: key.to_owned(), token: None })
            }
            _ => Err(wanted),
        }
    }
}

/// What is kept of an upload in parts; an object that fits into one part has no id.
#[derive(Debug, Default, Clone, Serialize, Deserialize)]
struct State {
    id: Option<String>,
    part: u64,
    tags: Vec<String>,
}

impl State {
    fn of(upload: &Upload) -> Result<Self, Error> {
        serde_json::from_value(upload.state.clone()).map_err(|_| Error::Gone)
    }

    fn upload(&self, offset: u64) -> Upload {
        Upload { offset, state: serde_json::to_value(self).unwrap_or_default() }
    }
}

impl S3 {
    /// The bucket of these settings, by way of the guard.
    pub fn new(guard: Guard, settings: &settings::S3, key: &Opened) -> Result<Self, Error> {
        let service = settings.service_url();
        let url = guard.parse(&service)?;
        let key = Key::read(key)?;
        let mut builder = AmazonS3Builder::new()
            .with_http_connector(Guarded::new(guard, MAX_ANSWER))
            .with_access_key_id(key.id)
            .with_secret_access_key(key.secret)
            .with_region(&settings.region)
            .with_bucket_name(&settings.bucket)
            .with_virtual_hosted_style_request(!settings.path_style)
            .with_allow_http(url.scheme() == "http")
            .with_retry(RetryConfig {
                max_retries: 2,
                retry_timeout: Duration::from_mins(1),
                ..RetryConfig::default()
            });
        if let Some(token) = key.token {
            builder = builder.with_token(token);
        }
        if settings.path_style {
            builder = builder.with_endpoint(service);
        } else {
            builder = builder.with_endpoint(virtual_host(&url, &settings.bucket));
        }
        let store = builder.build().map_err(|_| Error::Settings("the bucket cannot be addressed like this"))?;
        let prefix = Path::from(settings.prefix.trim_matches('/'));
        let link = (settings.link_hours > 0).then(|| Duration::from_hours(settings.link_hours.into()));
        Ok(Self { store, prefix, link, bucket: settings.bucket.clone() })
    }

    fn key(&self, file: &Outgoing) -> Path {
        self.prefix.clone().join(file.folder.as_str()).join(file.name.as_str())
    }

    /// Whether the object is there with exactly the wanted bytes, as its own word goes.
    async fn has(&self, file: &Outgoing) -> Result<bool, Error> {
        let options = GetOptions { head: true, ..GetOptions::default() };
        match self.store.get_opts(&self.key(file), options).await {
            Ok(found) => {
                let hash = found.attributes.get(&Attribute::Metadata(HASH.into()));
                Ok(found.meta.size == file.size && hash.is_some_and(|hash| **hash == *file.sha256))
            }
            // Whoever may not list a bucket is told of what is absent that it is forbidden.
            Err(object_store::Error::NotFound { .. } | object_store::Error::PermissionDenied { .. }) => Ok(false),
            Err(error) => Err(translate(error)),
        }
    }

    async fn delivered(&self, file: &Outgoing) -> Result<Delivered, Error> {
        let key = self.key(file);
        let location = format!("s3://{}/{key}", self.bucket);
        let url = match self.link {
            Some(time) => Some(self.store.signed_url(Method::GET, &key, time).await.map_err(translate)?.to_string()),
            None => None,
        };
        Ok(Delivered { url, location })
    }

    /// A link to an object that was delivered here, made now, where links are wanted.
    pub async fn link(&self, location: &str) -> Result<Option<String>, Error> {
        let (Some(time), Some(key)) = (self.link, self.key_of(location)) else { return Ok(None) };
        Ok(Some(self.store.signed_url(Method::GET, &key, time).await.map_err(translate)?.to_string()))
    }

    /// The key of what a record says was delivered here; none when it is not below our prefix.
    fn key_of(&self, location: &str) -> Option<Path> {
        let key = location.strip_prefix("s3://")?.strip_prefix(&*self.bucket)?.strip_prefix('/')?;
        Path::parse(key).ok().filter(|key| key.prefix_matches(&self.prefix))
    }

    async fn announce(&self, file: &Outgoing) -> Result<Upload, Error> {
        let part = part_bytes(file.size);
        if file.size <= part {
            return Ok(State { id: None, part, tags: Vec::new() }.upload(0));
        }
        let options = PutMultipartOptions { attributes: attributes(file), ..PutMultipartOptions::default() };
        let id = self.store.create_multipart_opts(&self.key(file), options).await.map_err(translate)?;
        Ok(State { id: Some(id), part, tags: Vec::new() }.upload(0))
    }

    async fn send_part(&self, file: &Outgoing, upload: Upload, report: Report<'_>) -> Result<Upload, Error> {
        let mut state = State::of(&upload)?;
        let key = self.key(file);
        let bytes = parts::read(&file.path, upload.offset, state.part).await?;
        let sent = upload.offset + bytes.len() as u64;
        if sent != file.size.min(upload.offset + state.part) {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        match &state.id {
            None => {
                let options = PutOptions { attributes: attributes(file), ..PutOptions::default() };
                self.store.put_opts(&key, PutPayload::from(bytes), options).await.map_err(translate)?;
            }
            Some(id) => {
                let put = self.store.put_part(&key, id, state.tags.len(), PutPayload::from(bytes)).await;
                state.tags.push(put.map_err(gone)?.content_id);
            }
        }
        report(sent);
        Ok(state.upload(sent))
    }

    async fn complete(&self, file: &Outgoing, upload: &Upload) -> Result<Delivered, Error> {
        let state = State::of(upload)?;
        if let Some(id) = &state.id {
            let parts = state.tags.into_iter().map(|content_id| PartId { content_id }).collect();
            match self.store.complete_multipart(&self.key(file), id, parts).await {
                Ok(_) => {}
                // The answer to an earlier try was lost.
                Err(object_store::Error::NotFound { .. }) if self.has(file).await? => {}
                Err(error) => return Err(gone(error)),
            }
        }
        self.delivered(file).await
    }
}

fn part_bytes(size: u64) -> u64 {
    PART.max(size.div_ceil(MOST_PARTS))
}

fn attributes(file: &Outgoing) -> Attributes {
    Attributes::from_iter([
        (Attribute::ContentType, file.content_type.clone()),
        (Attribute::Metadata(HASH.into()), file.sha256.clone()),
    ])
}

/// The address with the bucket as the first part of the host.
fn virtual_host(service: &Url, bucket: &str) -> String {
    let port = service.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{bucket}.{}{port}", service.scheme(), service.host_str().unwrap_or_default())
}

#[expect(clippy::needless_pass_by_value, reason = "for map_err")]
fn translate(error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => Error::Rejected(404),
        object_store::Error::PermissionDenied { .. } => Error::Unauthorized(403),
        object_store::Error::Unauthenticated { .. } => Error::Unauthorized(401),
        // Its text may hold the address and what the service answered.
        _ => Error::Unreachable,
    }
}

/// The same where not being found means that the upload is gone.
fn gone(error: object_store::Error) -> Error {
    match error {
        object_store::Error::NotFound { .. } => Error::Gone,
        other => translate(other),
    }
}

impl Destination for S3 {
    fn capabilities(&self) -> Capabilities {
        Capabilities {
            resumable: true,
            max_bytes: Some(MAX_BYTES),
            returns_share_url: self.link.is_some(),
            needs_human: false,
        }
    }

    fn begin<'a>(&'a self, file: &'a Outgoing) -> BoxFuture<'a, Result<Upload, Error>> {
        Box::pin(self.announce(file))
    }

    fn resume<'a>(&'a self, file: &'a Outgoing, upload: &'a Upload) -> BoxFuture<'a, Result<Resume, Error>> {
        Box::pin(async move {
            if self.has(file).await? {
                return Ok(Resume::Complete(self.delivered(file).await?));
            }
            let state = State::of(upload)?;
            let sent = state.tags.len() as u64 * state.part;
            // What is not noted is sent again: a part with the same number replaces the one before.
            if state.id.is_some() { Ok(Resume::At(state.upload(sent.min(file.size)))) } else { Ok(Resume::StartOver) }
        })
    }

    fn send<'a>(
        &'a self,
        file: &'a Outgoing,
        upload: Upload,
        report: Report<'a>,
    ) -> BoxFuture<'a, Result<Upload, Error>> {
        Box::pin(self.send_part(file, upload, report))
    }

    fn finish<'a>(&'a self, file: &'a Outgoing, upload: &'a Upload) -> BoxFuture<'a, Result<Delivered, Error>> {
        Box::pin(self.complete(file, upload))
    }

    fn abandon<'a>(&'a self, file: &'a Outgoing, upload: &'a Upload) -> BoxFuture<'a, ()> {
        Box::pin(async move {
            if let Ok(State { id: Some(id), .. }) = State::of(upload) {
                let _ = self.store.abort_multipart(&self.key(file), &id).await;
            }
        })
    }

    fn check(&self) -> BoxFuture<'_, Result<(), Error>> {
        Box::pin(async {
            let key = self.prefix.clone().join("pocketfleet-check.txt");
            self.store.put(&key, PutPayload::from_static(b"pocketfleet")).await.map_err(translate)?;
            // A key that may write need not be one that may delete.
            let _ = self.store.delete(&key).await;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    use super::*;
    use crate::outbound::Config;
    use crate::vault::KeyId;
    use crate::vault::Secret;

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

    fn bucket(base: &str, settings: serde_json::Value) -> S3 {
        let guard = Guard::new(&Config { allow: vec![base.to_owned()], ..Config::default() }).unwrap();
        let opened = Opened {
            key_id: KeyId::random(),
            service: String::new(),
            label: String::new(),
            secret: Secret::new("id:secret".to_owned()),
            settings: serde_json::Value::Null,
        };
        S3::new(guard, &serde_json::from_value(settings).unwrap(), &opened).unwrap()
    }

    #[tokio::test]
    async fn a_link_is_made_to_what_was_delivered_here_and_to_nothing_else() {
        let base = "http://127.0.0.1:1";
        let settings = serde_json::json!({ "bucket": "b", "endpoint": base, "prefix": "in", "link_hours": 1 });
        let s3 = bucket(base, settings);
        let link = s3.link("s3://b/in/2025_x y/video.mp4").await.unwrap().unwrap();
        assert!(link.starts_with("http://127.0.0.1:1/b/in/2025_x%20y/video.mp4?"), "{link}");
        assert!(link.contains("X-Amz-Expires=3600"), "{link}");
        for other in ["s3://c/in/x", "s3://b/out/x", "s3://b2/in/x", "https://b/in/x", "s3://b/in/../out/x"] {
            assert_eq!(s3.link(other).await.unwrap(), None, "{other}");
        }
        let without = bucket(base, serde_json::json!({ "bucket": "b", "endpoint": base }));
        assert_eq!(without.link("s3://b/in/x").await.unwrap(), None);
    }

    #[tokio::test]
    async fn a_key_that_may_only_write_goes_on_with_an_upload() {
        let base = answering(&["HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"]).await;
        let s3 = bucket(&base, serde_json::json!({ "bucket": "b", "endpoint": base }));
        let text = |text: &str| text.to_owned();
        let (folder, name, content_type, sha256) = (text("f"), text("n"), text("video/mp4"), text("ab"));
        let file = Outgoing { path: "x".into(), folder, name, content_type, size: 3 * PART, sha256 };
        let parts = State { id: Some(text("u")), part: PART, tags: vec![text("t")] };
        let at = s3.resume(&file, &parts.upload(PART)).await.unwrap();
        assert_eq!(at, Resume::At(parts.upload(PART)));
        let whole = State { id: None, part: PART, tags: Vec::new() };
        assert_eq!(s3.resume(&file, &whole.upload(0)).await.unwrap(), Resume::StartOver);
    }
}

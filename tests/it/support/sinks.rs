//! Servers that take deliveries: plain `PUT`s and Loom's oEmbed in this process, tus and S3 in processes of their own.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::io::BufReader;
use std::net::TcpListener;
use std::path::PathBuf;
use std::process::Child;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::Path;
use axum::extract::Query;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::http::StatusCode;
use axum::routing::get;
use axum::routing::put;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use object_store::ObjectStore;
use object_store::ObjectStoreExt;
use object_store::aws::AmazonS3;
use object_store::aws::AmazonS3Builder;
use serde_json::Value;
use serde_json::json;
use tower::ServiceExt;

use super::command;
use super::eventually;
use super::http;
use super::root;

/// A `PUT` that came: its bytes, and how often it came.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stored {
    pub bytes: Bytes,
    pub times: usize,
    pub authorization: String,
    pub key: String,
}

#[derive(Debug, Default)]
struct Held {
    files: BTreeMap<String, Stored>,
    /// Statuses that the next `PUT`s get.
    refusals: Vec<u16>,
    /// Links behind which there is a video.
    videos: Vec<String>,
}

/// Takes `PUT /in/…` and answers `GET /oembed`.
pub(crate) struct Sink {
    pub base: String,
    held: Arc<Mutex<Held>>,
}

type Shared = State<Arc<Mutex<Held>>>;

async fn take(State(held): Shared, Path(path): Path<String>, headers: HeaderMap, bytes: Bytes) -> StatusCode {
    let mut held = held.lock().unwrap();
    if !held.refusals.is_empty() {
        return StatusCode::from_u16(held.refusals.remove(0)).unwrap();
    }
    let text = |name: &str| headers.get(name).map(|value| value.to_str().unwrap().to_owned()).unwrap_or_default();
    assert_eq!(text("content-length"), bytes.len().to_string());
    let stored = held.files.entry(path).or_default();
    stored.bytes = bytes;
    stored.times += 1;
    stored.authorization = text("authorization");
    stored.key = text("idempotency-key");
    StatusCode::CREATED
}

async fn forget(State(held): Shared, Path(path): Path<String>) -> StatusCode {
    held.lock().unwrap().files.remove(&path);
    StatusCode::NO_CONTENT
}

async fn oembed(State(held): Shared, Query(query): Query<BTreeMap<String, String>>) -> (StatusCode, Json<Value>) {
    if held.lock().unwrap().videos.contains(&query["url"]) {
        (StatusCode::OK, Json(json!({"type": "video", "version": "1.0", "title": "A video"})))
    } else {
        (StatusCode::NOT_FOUND, Json(json!({"message": "not found"})))
    }
}

impl Sink {
    pub(crate) async fn start() -> Self {
        let held: Arc<Mutex<Held>> = Arc::default();
        let router = Router::new()
            .route("/in/{*path}", put(take).delete(forget))
            .route("/oembed", get(oembed))
            .layer(axum::extract::DefaultBodyLimit::disable())
            .with_state(Arc::clone(&held));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        // It ends with the test's runtime.
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let router = router.clone();
                let service = service_fn(move |request| router.clone().oneshot(request));
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        Self { base, held }
    }

    /// The next `PUT`s are answered like this.
    pub(crate) fn refuse(&self, statuses: &[u16]) {
        self.held.lock().unwrap().refusals.extend(statuses);
    }

    /// There is a video behind this link.
    pub(crate) fn share(&self, link: &str) {
        self.held.lock().unwrap().videos.push(link.to_owned());
    }

    pub(crate) fn files(&self) -> BTreeMap<String, Stored> {
        self.held.lock().unwrap().files.clone()
    }
}

/// The reference server of tus.
pub(crate) struct Tus {
    child: Child,
    pub base: String,
    pub folder: tempfile::TempDir,
}

impl Tus {
    pub(crate) async fn start() -> Self {
        let sdk = root().join("tests/sdk");
        assert!(sdk.join("node_modules/@tus/server").is_dir(), "no tus server: run `npm ci` in tests/sdk");
        let folder = tempfile::tempdir().unwrap();
        let mut child = command("node")
            .arg("tus_server.mjs")
            .arg(folder.path())
            .current_dir(sdk)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = child.stdout.take().unwrap();
        let line = tokio::task::spawn_blocking(move || {
            let mut line = String::new();
            BufReader::new(output).read_line(&mut line).map(|_| line)
        });
        let port = line.await.unwrap().unwrap();
        Self { child, base: format!("http://127.0.0.1:{}", port.trim()), folder }
    }

    /// The whole uploads: their bytes.
    pub(crate) fn files(&self) -> Vec<Vec<u8>> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir(self.folder.path()).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_none() {
                let bytes = std::fs::read(&path).unwrap();
                let about: Value =
                    serde_json::from_slice(&std::fs::read(path.with_extension("json")).unwrap()).unwrap();
                if about["size"] == bytes.len() {
                    found.push(bytes);
                }
            }
        }
        found
    }
}

impl Drop for Tus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A server that speaks S3.
pub(crate) struct S3 {
    child: Child,
    pub base: String,
    _folder: tempfile::TempDir,
}

pub(crate) const S3_ACCESS: &str = "access-key-of-tests";
pub(crate) const S3_SECRET: &str = "secret-key-of-tests";
pub(crate) const BUCKET: &str = "meetings";

impl S3 {
    pub(crate) async fn start() -> Self {
        let weed: PathBuf = root().join("tests/python/.packages/bin/weed");
        assert!(weed.is_file(), "no S3 server: scripts/check installs it (`python client`)");
        let folder = tempfile::tempdir().unwrap();
        let actions = ["Admin", "Read", "Write", "List", "Tagging"];
        let credentials = json!([{"accessKey": S3_ACCESS, "secretKey": S3_SECRET}]);
        let config = json!({"identities": [{"name": "tests", "credentials": credentials, "actions": actions}]});
        let path = folder.path().join("s3.json");
        std::fs::write(&path, config.to_string()).unwrap();
        // Free at this moment; two programs of one machine rarely want the same.
        let ports: Vec<u16> = (0..8)
            .map(|_| TcpListener::bind("127.0.0.1:0").unwrap())
            .collect::<Vec<_>>()
            .iter()
            .map(|listener| listener.local_addr().unwrap().port())
            .collect();
        let socket = folder.path().join("filer.sock");
        let child = command(weed)
            .arg("server")
            .args(["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3", "-s3.autoCreateBucket", "-s3.iam=false"])
            .args(["-s3.port.https=0", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.telemetry=false"])
            .args(["-master.volumeSizeLimitMB=64", "-volume.max=30"])
            .arg(format!("-dir={}", folder.path().display()))
            .arg(format!("-s3.config={}", path.display()))
            .arg(format!("-filer.localSocket={}", socket.display()))
            .args([format!("-master.port={}", ports[0]), format!("-master.port.grpc={}", ports[1])])
            .args([format!("-volume.port={}", ports[2]), format!("-volume.port.grpc={}", ports[3])])
            .args([format!("-filer.port={}", ports[4]), format!("-filer.port.grpc={}", ports[5])])
            .args([format!("-s3.port={}", ports[6]), format!("-s3.port.grpc={}", ports[7])])
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let s3 = Self { child, base: format!("http://127.0.0.1:{}", ports[6]), _folder: folder };
        let store = s3.store();
        eventually("S3 takes objects", async || {
            store.put(&"probe".into(), "probe".into()).await.ok()?;
            store.delete(&"probe".into()).await.ok()
        })
        .await;
        s3
    }

    /// A client of its own.
    pub(crate) fn store(&self) -> AmazonS3 {
        drop(http());
        AmazonS3Builder::new()
            .with_endpoint(&self.base)
            .with_allow_http(true)
            .with_region("us-east-1")
            .with_bucket_name(BUCKET)
            .with_access_key_id(S3_ACCESS)
            .with_secret_access_key(S3_SECRET)
            .build()
            .unwrap()
    }

    /// All objects below a prefix: key and bytes.
    pub(crate) async fn objects(&self, prefix: &str) -> BTreeMap<String, Bytes> {
        let store = self.store();
        let mut found = BTreeMap::new();
        let mut folders = vec![object_store::path::Path::from(prefix)];
        while let Some(folder) = folders.pop() {
            let listed = store.list_with_delimiter(Some(&folder)).await.unwrap();
            folders.extend(listed.common_prefixes);
            for object in listed.objects {
                let bytes = store.get(&object.location).await.unwrap().bytes().await.unwrap();
                found.insert(object.location.to_string(), bytes);
            }
        }
        found
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

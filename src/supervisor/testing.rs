//! What the tests of this domain share: the real binary, golden directories in a temporary folder, and a data
//! directory served on a loopback address.

use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;
use std::time::SystemTime;

use hyper::header::HeaderValue;
use serde_json::Value;
use tempfile::TempDir;

use crate::pocketbase::database;
use crate::pocketbase::token::Signer;
use crate::supervisor::health;
use crate::supervisor::jail::Isolation;
use crate::supervisor::oneshot::Oneshot;
use crate::supervisor::template::Locations;

/// The `PocketBase` to test with.
pub(super) fn binary() -> PathBuf {
    #[expect(clippy::disallowed_methods, reason = "tests are told by the environment which binary to use")]
    let named = std::env::var("POCKETFLEET_TEST_POCKETBASE");
    let path = named
        .map_or_else(|_| Path::new(env!("CARGO_MANIFEST_DIR")).join(".pocketbase/0.40.6/pocketbase"), PathBuf::from);
    path.canonicalize().unwrap_or_else(|_| {
        panic!("no PocketBase at {}: set POCKETFLEET_TEST_POCKETBASE to the binary", path.display())
    })
}

/// The templates of the repository.
pub(super) fn templates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("pb_templates")
}

/// Folders below `root`, with the repository's templates and the real binary.
pub(super) fn locations(root: &TempDir) -> Locations {
    Locations {
        templates: templates(),
        golden: root.path().join("golden"),
        staging: root.path().join("staging"),
        binary: binary(),
        version: "0.40.6".into(),
        older: Vec::new(),
        isolation: Isolation::none(),
    }
}

/// A data directory that is being served.
#[derive(Debug)]
pub(super) struct Served {
    run: Oneshot,
    address: SocketAddr,
    _scratch: TempDir,
}

impl Served {
    /// Serves `data` and waits until it answers its superuser.
    pub(super) async fn start(data: &Path) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let empty = scratch.path().join("empty");
        std::fs::create_dir(&empty).unwrap();
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let http = address.to_string();
        let empty = empty.as_os_str();
        let args = [
            "--dir".as_ref(),
            data.as_os_str(),
            "--hooksDir".as_ref(),
            empty,
            "--migrationsDir".as_ref(),
            empty,
            "--publicDir".as_ref(),
            empty,
            "--automigrate=false".as_ref(),
            "--hooksWatch=false".as_ref(),
            "serve".as_ref(),
            "--http".as_ref(),
            http.as_ref(),
        ];
        let output = scratch.path().join("output");
        let mut run = Oneshot::start(&binary(), &args, scratch.path(), &output).unwrap();
        let token = bearer(&database::superuser(&data.join("data.db")).unwrap());
        let token = HeaderValue::try_from(token).unwrap();
        let wait = async {
            while health::check(address, &token, Duration::from_secs(1)).await.is_err() {
                assert!(run.ended().unwrap().is_none(), "{}", std::fs::read_to_string(&output).unwrap());
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), wait).await.unwrap();
        Self { run, address, _scratch: scratch }
    }

    /// One call with raw header lines; answers status and JSON body.
    pub(super) fn call(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (u16, Value) {
        let mut stream = TcpStream::connect(self.address).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        // HTTP/1.0 answers are neither chunked nor kept alive, so the answer ends with the connection.
        let mut head = format!("{method} {path} HTTP/1.0\r\nContent-Length: {}\r\n", body.len());
        for (name, value) in headers.iter().chain(&[("Content-Type", "application/json")]) {
            head.extend([name, ": ", value, "\r\n"]);
        }
        // In one piece: what comes after an early answer would reset the connection under it.
        stream.write_all(format!("{head}\r\n{body}").as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, serde_json::from_str(body).unwrap_or_default())
    }

    /// A GET as somebody.
    pub(super) fn get(&self, path: &str, authorization: &str) -> (u16, Value) {
        self.call("GET", path, &[("Authorization", authorization)], "")
    }

    /// Where it listens.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops it cleanly.
    pub(super) async fn stop(mut self) {
        assert!(self.run.terminate(Duration::from_secs(30)).await.unwrap().success());
    }
}

/// A fresh token of `signer`, as a header's value.
pub(super) fn bearer(signer: &Signer) -> String {
    format!("Bearer {}", signer.mint(SystemTime::now(), Duration::from_mins(1)))
}

//! The harness: a real pocketfleet with a real `PocketBase`, in a directory and on a port of its own.
//!
//! Dropping a [`TestApp`] checks what every test must leave behind: no process, and no unexpected error in the log.

use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use serde_json::Value;
use serde_json::json;

pub(crate) mod fathom;
pub(crate) mod golden;
pub(crate) mod isolation;
pub(crate) mod node;
pub(crate) mod oidc;
pub(crate) mod raw;
pub(crate) mod sinks;
pub(crate) mod smtp;
pub(crate) mod socket;
pub(crate) mod sse;

/// How long anything may take on a busy two-core machine before the test fails.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// The `PocketBase` under test.
pub(crate) fn pocketbase() -> PathBuf {
    let named = variable("POCKETFLEET_TEST_POCKETBASE").map(PathBuf::from);
    let fetched = root().join(".pocketbase/0.40.6/pocketbase");
    let path = named.unwrap_or(fetched);
    assert!(path.is_file(), "no PocketBase at {}: run scripts/fetch-pocketbase", path.display());
    path
}

/// The checkout.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[expect(clippy::disallowed_methods, reason = "the harness reads where programs are")]
pub(crate) fn variable(name: &str) -> Option<String> {
    std::env::var(name).ok()
}

/// Any program, for tests.
#[expect(clippy::disallowed_methods, reason = "the harness starts programs")]
pub(crate) fn command(program: impl AsRef<std::ffi::OsStr>) -> Command {
    Command::new(program)
}

/// The program under test.
pub(crate) fn pocketfleet() -> Command {
    let mut command = command(env!("CARGO_BIN_EXE_pocketfleet"));
    command.current_dir(root());
    for name in ["POCKETFLEET_SERVER__LISTEN", "POCKETFLEET_STORAGE__PATH"] {
        command.env_remove(name);
    }
    command
}

/// A client to build on, with the TLS provider that it needs even for plain HTTP.
pub(crate) fn http() -> reqwest::ClientBuilder {
    drop(rustls::crypto::ring::default_provider().install_default());
    reqwest::Client::builder()
}

/// Bytes as lowercase hexadecimal digits.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// Waits until `condition` gives something, polling; panics with `what` after [`PATIENCE`].
pub(crate) async fn eventually<T, F>(what: &str, mut condition: impl FnMut() -> F) -> T
where
    F: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(Instant::now() < deadline, "not within {PATIENCE:?}: {what}");
        pause().await;
    }
}

/// The one pause of the harness, between two looks.
pub(crate) async fn pause() {
    let mut interval = tokio::time::interval(Duration::from_millis(20));
    interval.tick().await;
    interval.tick().await;
}

/// A running pocketfleet.
pub(crate) struct TestApp {
    child: Option<Child>,
    /// `http://127.0.0.1:<port>`
    pub base: String,
    pub http: reqwest::Client,
    config: PathBuf,
    /// Log lines with these texts are expected although they are warnings or errors.
    expected: Vec<&'static str>,
    /// The program file to start, where it is not the one under test itself.
    pub program: Option<PathBuf>,
    /// The step at which the next start kills itself (`name:nth`).
    failpoint: Option<String>,
    /// The data directory, where it is not below `dir`.
    pub elsewhere: Option<PathBuf>,
    /// The `PocketBase` to run, where it is not the one under test.
    pub pocketbase: Option<PathBuf>,
    /// What the environment of each start has besides.
    pub environment: Vec<(&'static str, String)>,
    /// The first user of tenants, where the app has a range of its own.
    users: Option<u32>,
    // Must be the last field: the directory goes after everything that uses it.
    pub dir: tempfile::TempDir,
}

/// A signed-in user.
#[derive(Clone)]
pub(crate) struct User {
    pub id: String,
    pub email: String,
    pub password: String,
    pub token: String,
    pub base: String,
    pub http: reqwest::Client,
}

impl TestApp {
    /// With defaults that suit tests.
    pub(crate) async fn start() -> Self {
        Self::with("").await
    }

    /// With configuration of the test's own. Repeating a section of the defaults below is not possible in TOML, so
    /// single keys are given as `section.key = value`.
    pub(crate) async fn with(keys: &str) -> Self {
        let mut app = Self::prepare(keys);
        app.launch().await;
        app
    }

    /// Everything but the process.
    pub(crate) fn prepare(keys: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        // Tenants have users of their own where the tests run as root, and reach their folders by this one.
        std::fs::set_permissions(dir.path(), std::os::unix::fs::PermissionsExt::from_mode(0o711)).unwrap();
        let config = dir.path().join("test.toml");
        let defaults = [
            ("server.listen", "\"127.0.0.1:0\""),
            ("log.filter", "\"info\""),
            ("auth.attempts_per_ip", "100000"),
            ("auth.registrations_per_ip", "100000"),
            ("auth.max_waiting", "1000"),
            ("auth.max_concurrent", "2"),
            ("instances.wake_timeout", "\"50s\""),
            ("instances.start_timeout", "\"40s\""),
            ("instances.stop_timeout", "\"20s\""),
            // Tests count starts, and look at who sleeps after a sign-in.
            ("instances.predict", "false"),
        ];
        let users = isolation::users(keys);
        let mut text = isolation::keys(keys, users);
        for (key, value) in defaults {
            if !keys.lines().any(|line| line.trim_start().starts_with(key)) {
                text.extend([key, " = ", value, "\n"]);
            }
        }
        text.push_str(keys);
        std::fs::write(&config, text).unwrap();
        let http = http().timeout(PATIENCE).build().unwrap();
        Self {
            child: None,
            base: String::new(),
            http,
            config,
            expected: Vec::new(),
            program: None,
            failpoint: None,
            elsewhere: None,
            pocketbase: None,
            environment: Vec::new(),
            users,
            dir,
        }
    }

    /// More configuration, for an app that is not running yet.
    pub(crate) fn add_keys(&self, keys: &str) {
        let mut text = std::fs::read_to_string(&self.config).unwrap();
        text.push_str(keys);
        std::fs::write(&self.config, text).unwrap();
    }

    /// Other configuration, for an app that is not running.
    pub(crate) fn change_key(&self, from: &str, to: &str) {
        let text = std::fs::read_to_string(&self.config).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&self.config, text.replace(from, to)).unwrap();
    }

    /// A warning or error that this test provokes.
    pub(crate) fn expect_log(&mut self, text: &'static str) {
        self.expected.push(text);
    }

    /// Arms a failpoint for the next start only.
    pub(crate) fn arm(&mut self, step: &str) {
        self.failpoint = Some(step.to_owned());
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.elsewhere.clone().unwrap_or_else(|| self.dir.path().join("data"))
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.dir.path().join("pocketfleet.log")
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.log_path()).unwrap_or_default()
    }

    /// Starts the program and does not wait.
    pub(crate) fn spawn(&mut self) {
        golden::share(&self.data());
        let log = std::fs::File::options().create(true).append(true).open(self.log_path()).unwrap();
        let address = self.data().join("run/address");
        if address.exists() {
            std::fs::remove_file(&address).unwrap();
        }
        let mut program = self.program.as_ref().map_or_else(pocketfleet, command);
        let child = program
            .current_dir(root())
            .envs(self.failpoint.take().map(|step| ("PF_FAILPOINT", step)))
            .envs(self.environment.iter().map(|(name, value)| (name, value)))
            .arg("serve")
            .arg("--config")
            .arg(&self.config)
            .arg("--data")
            .arg(self.data())
            .arg("--pocketbase")
            .arg(self.pocketbase.clone().unwrap_or_else(pocketbase))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.child = Some(child);
    }

    /// Starts the program and waits until it is ready.
    pub(crate) async fn launch(&mut self) {
        self.spawn();
        self.listening().await;
        let ready = format!("{}/ready", self.base);
        let mut last = String::new();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(answer) = self.http.get(&ready).send().await {
                if answer.status() == 200 {
                    return;
                }
                last = answer.text().await.unwrap_or_default();
            }
            assert!(Instant::now() < deadline, "not ready: {last}\n{}", self.log());
            self.assert_running();
            pause().await;
        }
    }

    /// Waits until it listens and learns where.
    pub(crate) async fn listening(&mut self) {
        let file = self.data().join("run/address");
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(address) = std::fs::read_to_string(&file)
                && !address.trim().is_empty()
            {
                self.base = format!("http://{}", address.trim());
                return;
            }
            assert!(Instant::now() < deadline, "does not listen:\n{}", self.log());
            self.assert_running();
            pause().await;
        }
    }

    fn assert_running(&mut self) {
        let status = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
        assert!(status.is_none(), "pocketfleet ended: {status:?}\n{}", self.log());
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.as_ref().unwrap().id()
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// SIGTERM; the status it ends with.
    pub(crate) fn terminate(&mut self) -> ExitStatus {
        signal(i32::try_from(self.pid()).unwrap(), "TERM");
        self.ended()
    }

    /// Waits for its end.
    pub(crate) fn ended(&mut self) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = child.try_wait().unwrap() {
                return status;
            }
            if Instant::now() > deadline {
                child.kill().unwrap();
                child.wait().unwrap();
                panic!("pocketfleet did not end:\n{}", self.log());
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Runs the command line against this server.
    pub(crate) fn cli(&self, args: &[&str]) -> Output {
        pocketfleet().args(args).arg("--data").arg(self.data()).arg("--config").arg(&self.config).output().unwrap()
    }

    /// Runs the command line with `--json`; panics when it fails.
    pub(crate) fn cli_json(&self, args: &[&str]) -> Value {
        let mut all = args.to_vec();
        all.push("--json");
        let output = self.cli(&all);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{args:?}: {out}{err}");
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("{args:?}: {error}: {out}"))
    }

    /// The state of one tenant, from `tenants show`.
    pub(crate) fn tenant(&self, id: &str) -> Value {
        self.cli_json(&["tenants", "show", id])
    }

    /// Puts a tenant to sleep and asserts that it is.
    pub(crate) fn put_to_sleep(&self, id: &str) {
        let output = self.cli(&["tenants", "sleep", id]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(self.tenant(id)["state"], "asleep");
    }

    /// Registers and signs in.
    pub(crate) async fn user(&self, name: &str) -> User {
        let email = format!("{name}@example.com");
        let password = format!("password-of-{name}");
        let body = json!({"email": email, "password": password, "name": name});
        let answer = self.http.post(format!("{}/auth/register", self.base)).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 201, "{}", answer.text().await.unwrap());
        self.sign_in(&email, &password).await
    }

    /// Makes an admin of the fleet and signs in.
    pub(crate) async fn admin(&self, name: &str) -> User {
        let email = format!("{name}@example.com");
        let made = self.cli_json(&["admin", "create", "--email", &email]);
        self.sign_in(&email, made["password"].as_str().unwrap()).await
    }

    pub(crate) async fn sign_in(&self, email: &str, password: &str) -> User {
        let body = json!({"email": email, "password": password});
        let answer = self.http.post(format!("{}/auth/login", self.base)).json(&body).send().await.unwrap();
        assert_eq!(answer.status(), 200, "{}", answer.text().await.unwrap());
        let answer: Value = answer.json().await.unwrap();
        User {
            id: answer["record"]["id"].as_str().unwrap().to_owned(),
            email: email.to_owned(),
            password: password.to_owned(),
            token: answer["token"].as_str().unwrap().to_owned(),
            base: self.base.clone(),
            http: self.http.clone(),
        }
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.http.get(format!("{}{path}", self.base)).send().await.unwrap()
    }

    /// As a stranger.
    pub(crate) async fn post(&self, path: &str, body: Value) -> reqwest::Response {
        self.http.post(format!("{}{path}", self.base)).json(&body).send().await.unwrap()
    }

    /// Waits until the configuration of accounts has been applied.
    pub(crate) async fn configured(&self) {
        eventually("accounts are configured", async || {
            self.log().contains("accounts are configured anew").then_some(())
        })
        .await;
    }
}

impl User {
    pub(crate) fn request(&self, method: reqwest::Method, path: &str) -> reqwest::RequestBuilder {
        self.http.request(method, format!("{}{path}", self.base)).bearer_auth(&self.token)
    }

    pub(crate) async fn get(&self, path: &str) -> reqwest::Response {
        self.request(reqwest::Method::GET, path).send().await.unwrap()
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> reqwest::Response {
        self.request(reqwest::Method::POST, path).json(&body).send().await.unwrap()
    }

    /// Creates a note and gives its id.
    pub(crate) async fn note(&self, title: &str) -> String {
        let answer = self.post("/api/collections/notes/records", json!({ "title": title })).await;
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(status, 200, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    /// Titles of all notes.
    pub(crate) async fn titles(&self) -> Vec<String> {
        let answer = self.get("/api/collections/notes/records?perPage=500&sort=title").await;
        let status = answer.status();
        let body: Value = answer.json().await.unwrap();
        assert_eq!(status, 200, "{body}");
        body["items"].as_array().unwrap().iter().map(|item| item["title"].as_str().unwrap().to_owned()).collect()
    }

    /// The same account, for an app that restarted on another port.
    pub(crate) fn at(&self, app: &TestApp) -> Self {
        Self { base: app.base.clone(), ..self.clone() }
    }
}

/// Sends a signal by name.
pub(crate) fn signal(pid: i32, name: &str) {
    let status = command("kill").args([&format!("-{name}"), &pid.to_string()]).status().unwrap();
    assert!(status.success(), "kill -{name} {pid}");
}

/// Whether a process still runs; a zombie that nobody reaped does not.
pub(crate) fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

/// Processes whose command line names this directory, without pocketfleet itself.
pub(crate) fn processes_in(dir: &Path) -> Vec<(i32, String)> {
    let needle = dir.as_os_str().as_encoded_bytes();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        if line.windows(needle.len()).any(|window| window == needle) {
            found.push((pid, String::from_utf8_lossy(&line).replace('\0', " ")));
        }
    }
    found
}

impl Drop for TestApp {
    fn drop(&mut self) {
        let panicking = std::thread::panicking();
        if self.child.is_some() {
            if panicking {
                self.child.as_mut().and_then(|child| child.kill().ok());
            } else {
                let status = self.terminate();
                assert!(status.success(), "pocketfleet ended with {status}:\n{}", self.log());
            }
        }
        let mut left = processes_in(self.dir.path());
        left.extend(self.elsewhere.iter().flat_map(|folder| processes_in(folder)));
        isolation::forget(self.users);
        if panicking {
            for (pid, _) in left {
                // A failed test must not leave processes to the others.
                let _ = command("kill").args(["-KILL", &pid.to_string()]).status();
            }
            eprintln!("--- log of the failed test's pocketfleet\n{}", self.log());
            return;
        }
        assert!(left.is_empty(), "processes left behind: {left:?}");
        for line in self.log().lines() {
            let bad = line.contains(" WARN ") || line.contains(" ERROR ") || line.contains("panicked");
            assert!(!bad || self.expected.iter().any(|text| line.contains(text)), "unexpected log line: {line}");
        }
    }
}

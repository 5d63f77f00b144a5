//! The attempts, and whether one got what it wanted.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::Value;
use serde_json::json;

use super::run;
use crate::support::TestApp;
use crate::support::User;
use crate::support::pause;
use crate::support::pocketbase;
use crate::support::processes_in;
use crate::support::signal;

/// Who and what there is to attack, as the hook is told.
pub(super) struct Scene {
    at: Value,
    squatted: SocketAddr,
    own: PathBuf,
    /// What an attempt leaves when it works.
    marks: Vec<PathBuf>,
}

impl Scene {
    /// Everybody is awake.
    pub(super) fn of(app: &TestApp, mallory: &User, ada: &User, listed: u16) -> Self {
        let instances = app.data().join("instances");
        let (own, theirs) = (instances.join(&mallory.id), instances.join(&ada.id));
        let binary = std::fs::canonicalize(pocketbase()).unwrap();
        let status = app.tenant(&ada.id);
        let mine = app.tenant(&mallory.id);
        let hooks = hooks_of(app);
        let number = std::process::id();
        let beside = binary.with_file_name(format!("escaped-{number}"));
        let temporary = std::env::temp_dir().join(format!("escaped-{number}"));
        let squatted = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let at = json!({
            "own": own.join("pb_data"), "tmp": own.join("tmp"), "log": own.join("log/pocketbase.log"),
            "theirs": theirs.join("pb_data"), "binary": binary, "beside": beside, "temporary": temporary,
            "hook": hooks.join("more.pb.js"), "control": app.data().join("control.db"),
            "address": status["address"], "pid": status["pid"], "us": app.pid(), "base": app.base,
            "squatted": squatted.to_string(), "listed": listed, "lock": own.join("lock"), "self": mine["pid"],
        });
        Self { at, squatted, own, marks: vec![beside, temporary] }
    }
}

/// The hooks that instances of the template are served with.
fn hooks_of(app: &TestApp) -> PathBuf {
    let golden = std::fs::read_dir(app.data().join("golden")).unwrap().flatten();
    let mut hooks = golden.map(|entry| entry.path().join("template/pb_hooks")).filter(|path| path.is_dir());
    hooks.next().unwrap()
}

/// One row of the table.
pub(super) struct Attempt {
    pub(super) name: &'static str,
    /// Fails, or returns nothing, where it is closed.
    code: &'static str,
}

/// Starts the own binary on somebody else's address; whether that worked is seen from outside.
const SQUAT: &str = "squat";

const ATTEMPTS: [(&str, &str); 25] = [
    ("run a program of the system (`cat /etc/passwd`)", "return toString($os.cmd('/bin/cat', '/etc/passwd').output())"),
    ("run its own PocketBase binary", "return toString($os.cmd(at.binary, '--version').output())"),
    ("read `/etc/passwd`", "return toString($os.readFile('/etc/passwd'))"),
    ("read `/etc/shadow`", "return toString($os.readFile('/etc/shadow'))"),
    ("list another tenant's data", "return $os.readDir(at.theirs).length"),
    ("read another tenant's database", "return $os.readFile(at.theirs + '/data.db').length"),
    ("write into another tenant's data", "$os.writeFile(at.theirs + '/planted', 'x', 0o644); return 'written'"),
    ("read pocketfleet's control database", "return $os.readFile(at.control).length"),
    ("write beside the binary", "$os.writeFile(at.beside, 'x', 0o644); return 'written'"),
    ("write into its own hooks", "$os.writeFile(at.hook, '', 0o644); return 'written'"),
    ("write into `/tmp`", "$os.writeFile(at.temporary, 'x', 0o644); return 'written'"),
    (
        "exchange its own lock",
        "$os.rename(at.lock, at.lock + '.old'); $os.rename(at.lock + '.old', at.lock); return 'done'",
    ),
    ("read another tenant's environment", "$os.readFile('/proc/' + at.pid + '/environ'); return 'read'"),
    ("read another tenant's command line", "return toString($os.readFile('/proc/' + at.pid + '/cmdline'))"),
    ("read pocketfleet's environment", "return toString($os.readFile('/proc/' + at.us + '/environ'))"),
    ("find something in its own environment", "return $os.getenv('PATH') + $os.getenv('HOME')"),
    (
        "call another tenant's port",
        "return $http.send({ url: 'http://' + at.address + '/api/health', timeout: 20 }).statusCode",
    ),
    ("call pocketfleet's port", "return $http.send({ url: at.base + '/health', timeout: 20 }).statusCode"),
    (
        "call a port of this machine that its template lists for the internet",
        "return $http.send({ url: 'http://127.0.0.1:' + at.listed, timeout: 20 }).statusCode",
    ),
    ("listen on the address of a stopped tenant", SQUAT),
    (
        "put a link to another tenant's database into its data",
        "$os.cmd('/bin/ln', '-s', at.theirs + '/data.db', at.own + '/link').run(); return 'linked'",
    ),
    (
        "`ATTACH` another tenant's database",
        "$app.db().newQuery(\"ATTACH DATABASE '\" + at.theirs + \"/data.db' AS theirs\").execute(); return 'attached'",
    ),
    (
        "`ATTACH` pocketfleet's control database",
        "$app.db().newQuery(\"ATTACH DATABASE '\" + at.control + \"' AS control\").execute(); return 'attached'",
    ),
    (
        "`VACUUM INTO` another tenant's data",
        "$app.db().newQuery(\"VACUUM INTO '\" + at.theirs + \"/stolen.db'\").execute(); return 'written'",
    ),
    ("kill another tenant's process", "$os.cmd('/bin/kill', '-0', String(at.pid)).run(); return 'could'"),
];

pub(super) fn all() -> impl Iterator<Item = Attempt> {
    ATTEMPTS.iter().map(|(name, code)| Attempt { name, code })
}

impl Attempt {
    /// Whether it worked.
    pub(super) async fn works(&self, scene: &Scene, who: &User) -> bool {
        if self.code == SQUAT {
            return squats(scene, who).await;
        }
        let (worked, value) = run(who, self.code, &scene.at).await;
        worked && !value.is_empty() && value != "0"
    }
}

/// The call lasts as long as the program that the hook starts: whoever is first, its end or its answer, decides.
async fn squats(scene: &Scene, who: &User) -> bool {
    let code = "return $os.cmd(at.binary, 'serve', '--http=' + at.squatted, '--dir=' + at.tmp + '/squat').run()";
    let mut tried = Box::pin(run(who, code, &scene.at));
    let is_up = loop {
        tokio::select! {
            _ended = &mut tried => return false,
            connected = tokio::net::TcpStream::connect(scene.squatted) => {
                if connected.is_ok() {
                    break true;
                }
                pause().await;
            }
        }
    };
    let squatter = scene.own.join("tmp/squat");
    for (pid, _) in processes_in(&squatter) {
        signal(pid, "KILL");
    }
    tried.await;
    is_up
}

/// Removes what worked, so that the next level begins anew.
pub(super) fn clean_up(scene: &Scene) {
    for mark in &scene.marks {
        if mark.exists() {
            std::fs::remove_file(mark).unwrap();
        }
    }
}

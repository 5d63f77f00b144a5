//! The attempts, and whether one got what it wanted.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::Value;
use serde_json::json;

use super::run;
use crate::support::TestApp;
use crate::support::User;
use crate::support::command;
use crate::support::eventually;
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
            "squatted": squatted.to_string(), "listed": listed, "lock": own.join("lock"), "other": OTHER_USER,
        });
        for victim in ["removed", "taken", "emptied"] {
            std::fs::write(theirs.join("pb_data").join(victim), "hers").unwrap();
        }
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

/// Nobody's.
const OTHER_USER: u32 = 65_533;

const ATTEMPTS: [(&str, &str); 34] = [
    ("run a program of the system (`cat /etc/passwd`)", "return toString($os.cmd('/bin/cat', '/etc/passwd').output())"),
    ("run its own PocketBase binary", "return toString($os.cmd(at.binary, '--version').output())"),
    (
        "run a program that it wrote into its data",
        "$os.writeFile(at.own + '/program', $os.readFile(at.binary), 0o755);
         return toString($os.cmd(at.own + '/program', '--version').output())",
    ),
    (
        "start a program as another user",
        "const other = $os.cmd(at.binary, '--version');
         other.sysProcAttr = { credential: { uid: at.other, gid: at.other } }; return toString(other.output())",
    ),
    (
        "start a program that outlives it, in a session of its own",
        "const other = $os.cmd(at.binary, '--version');
         other.sysProcAttr = { setsid: true }; return toString(other.output())",
    ),
    ("read `/etc/passwd`", "return toString($os.readFile('/etc/passwd'))"),
    ("read `/etc/shadow`", "return toString($os.readFile('/etc/shadow'))"),
    ("list another tenant's data", "return $os.readDir(at.theirs).length"),
    ("read another tenant's database", "return $os.readFile(at.theirs + '/data.db').length"),
    ("write into another tenant's data", "$os.writeFile(at.theirs + '/planted', 'x', 0o644); return 'written'"),
    ("ask for the size of another tenant's database", "return $os.stat(at.theirs + '/data.db').size()"),
    ("remove another tenant's file", "$os.remove(at.theirs + '/removed'); return 'removed'"),
    (
        "move another tenant's file into its own data",
        "$os.rename(at.theirs + '/taken', at.own + '/taken'); return 'taken'",
    ),
    ("empty another tenant's file", "$os.truncate(at.theirs + '/emptied', 0); return 'emptied'"),
    ("read pocketfleet's control database", "return $os.readFile(at.control).length"),
    ("ask for the size of pocketfleet's control database", "return $os.stat(at.control).size()"),
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
        "$os.openRoot(at.own).symlink(at.theirs + '/data.db', 'link'); return 'linked'",
    ),
    (
        "make a second name of another tenant's database in its data",
        "$os.openRoot('/').link(at.theirs.slice(1) + '/data.db', at.own.slice(1) + '/second'); return 'linked'",
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
    // The last one: where it works, the neighbour has to start again. A handle that a hook makes up is as good as that of
    // a program it started.
    (
        "kill another tenant's process",
        "const other = $os.cmd(at.binary); other.process = { pid: at.pid }; other.process.kill(); return 'killed'",
    ),
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

/// A `PocketBase` with the same hook, started by hand.
pub(super) struct Outside {
    child: std::process::Child,
    who: User,
    _folder: tempfile::TempDir,
}

impl Drop for Outside {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Outside {
    /// Answers when it returns.
    pub(super) async fn start(like: &User) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let hooks = folder.path().join("pb_hooks");
        std::fs::create_dir(&hooks).unwrap();
        std::fs::write(hooks.join("escape.pb.js"), super::HOOK).unwrap();
        let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let mut program = command(pocketbase());
        program.args(["serve", "--hooksWatch=false", &format!("--http={address}")]);
        program.arg(format!("--dir={}", folder.path().join("pb_data").display()));
        program.arg(format!("--hooksDir={}", hooks.display()));
        let output = std::fs::File::create(folder.path().join("output")).unwrap();
        let child = program.stdout(output.try_clone().unwrap()).stderr(output).spawn().unwrap();
        let who = User { base: format!("http://{address}"), token: String::new(), ..like.clone() };
        let outside = Self { child, who, _folder: folder };
        eventually("PocketBase outside of everything answers", async || {
            let answer = outside.who.request(reqwest::Method::GET, "/api/health").send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await;
        outside
    }

    /// Whether an attempt works where nothing is in its way.
    pub(super) async fn shows(&self, name: &str, scene: &Scene) -> bool {
        let attempt = all().find(|attempt| attempt.name == name).unwrap();
        attempt.works(scene, &self.who).await
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

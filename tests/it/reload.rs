//! Reloads: the program is replaced while it is used, and nobody notices but the streams that are told to connect anew.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::runs;
use crate::support::signal;
use crate::support::sse::Stream;

/// What the load has seen.
#[derive(Default)]
struct Seen {
    stop: AtomicBool,
    made: AtomicUsize,
    problems: std::sync::Mutex<Vec<String>>,
}

impl Seen {
    fn note(&self, outcome: Result<u16, String>) {
        self.made.fetch_add(1, Ordering::SeqCst);
        match outcome {
            Ok(200) => {}
            other => self.problems.lock().unwrap().push(format!("{other:?}")),
        }
    }
}

/// One request on a connection of its own, with no second try.
async fn fresh(address: &str, user: &User, path: &str) -> Result<u16, String> {
    let mut stream = TcpStream::connect(address).await.map_err(|error| format!("connect: {error}"))?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {}\r\nConnection: close\r\n\r\n",
        user.token
    );
    stream.write_all(request.as_bytes()).await.map_err(|error| format!("write: {error}"))?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.map_err(|error| format!("read: {error}"))?;
    let text = String::from_utf8_lossy(&answer);
    text.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(|| format!("no answer: {text:?}"))
}

/// Requests on connections that are kept: repeated once when a connection was closed under them, as browsers do.
async fn kept(user: &User, path: &str) -> Result<u16, String> {
    for last in [false, true] {
        match user.request(reqwest::Method::GET, path).send().await {
            Ok(answer) => return Ok(answer.status().as_u16()),
            Err(error) if last => return Err(format!("{error:?}")),
            Err(_) => {}
        }
    }
    unreachable!()
}

fn load(seen: &Arc<Seen>, user: &User) -> Vec<tokio::task::JoinHandle<()>> {
    let path = "/api/collections/notes/records";
    let address = user.base.trim_start_matches("http://").to_owned();
    let mut tasks = Vec::new();
    for number in 0..6 {
        let (seen, user, address) = (Arc::clone(seen), user.clone(), address.clone());
        tasks.push(tokio::spawn(async move {
            while !seen.stop.load(Ordering::SeqCst) {
                let outcome = match number % 2 {
                    0 => fresh(&address, &user, path).await,
                    _ => kept(&user, path).await,
                };
                seen.note(outcome);
            }
        }));
    }
    tasks
}

fn reload(app: &TestApp) -> impl Future<Output = Output> + use<> {
    let (data, program) = (app.data(), PathBuf::from(env!("CARGO_BIN_EXE_pocketfleet")));
    async move {
        let asked = tokio::task::spawn_blocking(move || {
            crate::support::command(program).args(["reload", "--json", "--data"]).arg(data).output().unwrap()
        });
        asked.await.unwrap()
    }
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn pid(app: &TestApp, tenant: &str) -> i32 {
    i32::try_from(app.tenant(tenant)["pid"].as_i64().unwrap()).unwrap()
}

#[tokio::test]
async fn under_load_nobody_is_refused_or_cut_and_the_instances_go_on() {
    let mut app = TestApp::start().await;
    let (ada, bea) = (app.user("ada").await, app.user("bea").await);
    ada.note("before").await;
    bea.note("before").await;
    let before = [pid(&app, &ada.id), pid(&app, &bea.id), pid(&app, "global")];
    let stream = Stream::subscribed(&app, &ada, &["notes/*"]).await;
    let seen = Arc::new(Seen::default());
    let mut tasks = load(&seen, &ada);
    tasks.extend(load(&seen, &bea));
    for generation in 1..=2_u64 {
        let made = seen.made.load(Ordering::SeqCst);
        eventually("requests pass", async || (seen.made.load(Ordering::SeqCst) > made + 50).then_some(())).await;
        let output = reload(&app).await;
        assert!(output.status.success(), "{}", text(&output));
        let told: Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!((told["generation"].as_u64(), told["pid"].as_u64()), (Some(generation), Some(app.pid().into())));
    }
    let made = seen.made.load(Ordering::SeqCst);
    eventually("requests pass", async || (seen.made.load(Ordering::SeqCst) > made + 50).then_some(())).await;
    seen.stop.store(true, Ordering::SeqCst);
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(*seen.problems.lock().unwrap(), Vec::<String>::new(), "of {}", seen.made.load(Ordering::SeqCst));
    assert_eq!([pid(&app, &ada.id), pid(&app, &bea.id), pid(&app, "global")], before);
    stream.ended().await;
    Stream::subscribed(&app, &ada, &["notes/*"]).await;

    // Children of the process that the first program started are seen to end, reaped, and started again.
    app.expect_log("instance failed");
    signal(before[0], "KILL");
    eventually("it is reaped", async || (!Path::new(&format!("/proc/{}", before[0])).exists()).then_some(())).await;
    assert_eq!(ada.titles().await, ["before"]);
    assert_ne!(pid(&app, &ada.id), before[0]);
    assert!(app.terminate().success());
    assert!(!runs(before[1]) && !Path::new(&format!("/proc/{}", before[2])).exists(), "stopped in order, and reaped");
}

/// An app whose program file may be replaced.
async fn replaceable(keys: &str) -> (TestApp, PathBuf) {
    let mut app = TestApp::prepare(keys);
    let program = app.dir.path().join("program");
    std::fs::hard_link(env!("CARGO_BIN_EXE_pocketfleet"), &program)
        .or_else(|_| std::fs::copy(env!("CARGO_BIN_EXE_pocketfleet"), &program).map(drop))
        .unwrap();
    app.program = Some(program.clone());
    app.launch().await;
    (app, program)
}

/// Puts a script in the place of the program, which knows the real one as `$real`.
fn replace(program: &Path, script: &str) {
    let fresh = program.with_extension("new");
    let real = env!("CARGO_BIN_EXE_pocketfleet");
    std::fs::write(&fresh, format!("#!/bin/sh\nreal={real}\n{script}\n")).unwrap();
    std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::rename(fresh, program).unwrap();
}

#[tokio::test]
async fn a_program_or_a_configuration_that_does_not_start_leaves_the_old_one_serving() {
    let (mut app, program) = replaceable("").await;
    app.expect_log("not reloaded");
    let ada = app.user("ada").await;
    ada.note("kept").await;
    let before = pid(&app, &ada.id);
    for (script, reason) in
        [("exit 7", "exit status: 7"), ("echo another program", "is not pocketfleet"), ("kill -SEGV $$", "signal: 11")]
    {
        replace(&program, script);
        let output = reload(&app).await;
        assert!(!output.status.success() && text(&output).contains(reason), "{}", text(&output));
    }
    std::fs::remove_file(&program).unwrap();
    let output = reload(&app).await;
    assert!(!output.status.success() && text(&output).contains("there is no program"), "{}", text(&output));

    replace(&program, "exec $real \"$@\"");
    let configuration = app.dir.path().join("test.toml");
    let good = std::fs::read_to_string(&configuration).unwrap();
    app.add_keys("\n[sever]\nlisten = 1\n");
    let output = reload(&app).await;
    assert!(!output.status.success() && text(&output).contains("sever"), "{}", text(&output));
    signal(i32::try_from(app.pid()).unwrap(), "USR2");
    eventually("the signal is answered in the log", async || {
        (app.log().matches("not reloaded").count() == 5).then_some(())
    })
    .await;
    std::fs::write(configuration, good).unwrap();
    assert_eq!(ada.titles().await, ["kept"]);
    assert_eq!(pid(&app, &ada.id), before);
    assert_eq!(app.http.get(format!("{}/ready", app.base)).send().await.unwrap().status(), 200);
    assert!(!app.log().contains("reloading"));
}

#[tokio::test]
async fn a_program_that_fails_after_the_check_gives_back_to_the_one_before() {
    let (mut app, program) = replaceable("").await;
    app.expect_log("a reload was taken back");
    app.expect_log("this program does not start");
    let ada = app.user("ada").await;
    ada.note("kept").await;
    let before = pid(&app, &ada.id);
    let bad = app.dir.path().join("bad.toml");
    std::fs::write(&bad, "[instances]\nmax_awake = 0\n").unwrap();
    let bad = bad.display();
    replace(&program, &format!("[ \"$1\" = serve ] && exec $real serve --config {bad}\nexec $real \"$@\""));
    let output = reload(&app).await;
    assert!(!output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("the old one serves again") && text(&output).contains("max_awake"));
    assert_eq!(ada.titles().await, ["kept"]);
    assert_eq!(pid(&app, &ada.id), before);
    // So does one that does not even get to its server: that cannot make its folders, or its log.
    let nowhere = app.dir.path().join("nowhere");
    std::fs::write(&nowhere, "no folder").unwrap();
    replace(
        &program,
        &format!("[ \"$1\" = serve ] && exec $real serve --data {}\nexec $real \"$@\"", nowhere.display()),
    );
    let output = reload(&app).await;
    assert!(!output.status.success(), "{}", text(&output));
    assert!(text(&output).contains("the old one serves again") && text(&output).contains("make the folder"));
    assert_eq!(ada.titles().await, ["kept"]);
    assert_eq!(pid(&app, &ada.id), before);
    // And from there on as if nothing had been.
    replace(&program, "exec $real \"$@\"");
    let output = reload(&app).await;
    assert!(output.status.success(), "{}", text(&output));
    assert_eq!(pid(&app, &ada.id), before);
}

#[tokio::test]
async fn of_two_reloads_at_once_one_is_refused_and_a_signal_to_stop_is_not_lost() {
    let (mut app, program) = replaceable("").await;
    app.expect_log("a reload is under way already");
    // Slow enough that both are asked before the first is answered.
    let gate = app.dir.path().join("gate");
    let wait = format!("while [ ! -e {} ]; do sleep 0.05; done", gate.display());
    replace(&program, &format!("[ \"$1\" = --version ] && {{ {wait}; }}\nexec $real \"$@\""));
    let second = async {
        let refused = eventually("the second is refused", async || {
            let output = reload(&app).await;
            (!output.status.success() && text(&output).contains("under way")).then_some(())
        });
        refused.await;
        std::fs::write(&gate, "").unwrap();
    };
    // Whichever was first waits at the gate; the signal is answered in the log.
    signal(i32::try_from(app.pid()).unwrap(), "USR2");
    eventually("the first is at the gate", async || {
        let asking = crate::support::processes_in(app.dir.path()).iter().any(|(_, line)| line.contains("--version"));
        asking.then_some(())
    })
    .await;
    second.await;
    eventually("the reload is through", async || {
        let output = app.cli(&["status", "--json"]);
        let status: Value = serde_json::from_slice(&output.stdout).ok()?;
        (status["reload"]["number"] == 1).then_some(())
    })
    .await;
    std::fs::remove_file(&gate).unwrap();
    let mut output = Box::pin(reload(&app));
    // A stop in the middle of a reload: whichever of the two programs hears it, everything ends in order.
    tokio::select! {
        _ = &mut output => unreachable!("the gate is closed"),
        () = eventually("it asks", async || {
            let asking = crate::support::processes_in(app.dir.path());
            asking.iter().any(|(_, line)| line.contains("--version")).then_some(())
        }) => {}
    }
    std::fs::write(&gate, "").unwrap();
    eventually("it gives way", async || (app.log().matches("reloading").count() == 2).then_some(())).await;
    assert!(app.terminate().success());
    output.await;
}

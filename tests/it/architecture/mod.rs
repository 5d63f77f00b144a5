//! The shape of the source tree, as tables and a scanner that holds the tree to them.
//!
//! Which module may name which sibling, which outside crate is confined to which modules, how long a file may be, and
//! what no test may do. The scanner reads tokens, not types: it forgives nothing that it cannot read (a grouped
//! `crate` import, a path attribute, an unbalanced brace, a module without a row), so a new way around the tables
//! fails instead of passing unseen. Known limit: paths that macros of other crates build are not seen.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::io;
use std::path::Path;

use source::Form;
use source::Named;
use source::Token;
use source::closing;
use source::inline_modules;
use source::paths;
use source::test_items;
use source::tokens;

mod source;

/// Which siblings a module may name besides itself.
enum May {
    Name(&'static [&'static str]),
    NameAllBut(&'static [&'static str]),
}
use May::Name;
use May::NameAllBut;

/// Every module. One without a row is a fault, and so is a row without a module.
const IMPORTS: &[(&str, May)] = &[
    ("ids", Name(&[])),
    ("error", Name(&[])),
    ("failpoint", Name(&[])),
    ("shutdown", Name(&[])),
    ("telemetry", Name(&["ids", "error"])),
    ("limits", Name(&["ids", "error"])),
    ("pocketbase", Name(&["ids", "error"])),
    ("store", Name(&["ids", "error"])),
    ("outbound", Name(&["ids", "error", "limits", "telemetry"])),
    ("reload", Name(&["ids", "error"])),
    ("audit", Name(&["ids", "error", "store", "shutdown", "telemetry"])),
    ("vault", Name(&["ids", "error", "failpoint", "store", "audit", "limits", "shutdown", "telemetry"])),
    ("queue", Name(&["ids", "error", "failpoint", "store", "limits", "shutdown", "telemetry"])),
    ("quota", Name(&["ids", "error", "store", "limits", "shutdown", "telemetry"])),
    ("integrations", Name(&["ids", "error", "vault", "outbound", "limits", "shutdown", "telemetry"])),
    ("webhooks", Name(&["ids", "error", "store", "vault", "limits", "telemetry"])),
    ("supervisor", Name(&["ids", "error", "failpoint", "store", "pocketbase", "shutdown", "telemetry"])),
    ("tenancy", Name(&["ids", "error", "store", "limits", "pocketbase"])),
    ("spares", Name(&["ids", "error", "failpoint", "store", "supervisor", "tenancy", "shutdown"])),
    (
        "auth",
        Name(&[
            "ids",
            "error",
            "store",
            "tenancy",
            "spares",
            "limits",
            "supervisor",
            "pocketbase",
            "outbound",
            "shutdown",
            "telemetry",
        ]),
    ),
    ("events", Name(&["ids", "error", "auth", "store", "limits", "shutdown", "telemetry"])),
    ("records", Name(&["ids", "error", "outbound", "supervisor"])),
    (
        "meetings",
        Name(&[
            "ids",
            "error",
            "failpoint",
            "store",
            "vault",
            "outbound",
            "integrations",
            "webhooks",
            "records",
            "supervisor",
            "limits",
            "shutdown",
            "telemetry",
        ]),
    ),
    (
        "backup",
        Name(&[
            "ids",
            "error",
            "failpoint",
            "store",
            "vault",
            "outbound",
            "limits",
            "pocketbase",
            "supervisor",
            "shutdown",
            "telemetry",
        ]),
    ),
    ("jobs", NameAllBut(&["lifecycle", "gateway", "api", "config", "app", "cli", "main"])),
    ("lifecycle", NameAllBut(&["realtime", "gateway", "api", "config", "app", "cli", "main"])),
    ("realtime", Name(&["ids", "error", "auth", "supervisor", "pocketbase", "shutdown", "telemetry"])),
    (
        "gateway",
        Name(&[
            "ids",
            "error",
            "auth",
            "tenancy",
            "supervisor",
            "pocketbase",
            "realtime",
            "quota",
            "store",
            "limits",
            "shutdown",
            "telemetry",
        ]),
    ),
    ("api", NameAllBut(&["config", "app", "cli", "main"])),
    ("config", NameAllBut(&["app", "cli", "main"])),
    ("app", NameAllBut(&["cli", "main"])),
    ("cli", NameAllBut(&["main"])),
    ("lib", NameAllBut(&[])),
    ("main", NameAllBut(&[])),
];

/// Names from outside, and the only modules, or parts of one, that may use them. Tests are exempt. Each is a run of path segments; one
/// segment is the name of a crate.
const CONFINED: &[(&str, &[&str])] = &[
    ("axum", &["api", "gateway", "app"]),
    ("reqwest", &["auth", "outbound", "integrations", "records", "jobs"]),
    ("rustls", &["outbound"]),
    ("object_store", &["jobs", "outbound", "backup"]),
    ("aes_gcm", &["vault"]),
    ("ring", &["vault"]),
    ("argon2", &["vault"]),
    ("zeroize", &["vault", "backup"]),
    ("tokio_tungstenite", &["events"]),
    ("croner", &["queue"]),
    ("chrono", &["queue"]),
    ("schemars", &["events"]),
    ("askama", &["api"]),
    (
        "dashmap",
        &[
            "supervisor",
            "store",
            "auth",
            "limits",
            "realtime",
            "gateway",
            "queue",
            "events",
            "integrations",
            "meetings",
            "quota",
        ],
    ),
    ("rusqlite", &["store", "pocketbase", "auth"]),
    // The doctor looks at its own program file.
    ("std::env", &["config", "cli/doctor", "main"]),
    // The exception is the program itself: asked whether it starts, and executed in place.
    ("process::Command", &["supervisor", "reload"]),
    ("Command::new", &["supervisor", "reload"]),
    // The exceptions read a peer's user id from a socket, or a limit of our own.
    ("nix", &["supervisor", "api", "cli", "gateway", "failpoint", "vault", "reload"]),
    ("rustix::process", &["supervisor", "api", "cli", "gateway"]),
    ("rustix::thread", &["supervisor"]),
    ("landlock::", &["supervisor"]),
    ("seccompiler", &["supervisor"]),
    ("libc::", &["supervisor"]),
];

/// Most lines of a file, in `src` and `tests`.
const MAX_LINES: usize = 600;
/// The one folder of `tests` that may sleep: helpers that poll with a deadline.
const POLLING: &str = "tests/it/support/";

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Fault {
    file: String,
    line: usize,
    message: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.file, self.line, self.message)
    }
}

fn row(module: &str) -> Option<&'static May> {
    IMPORTS.iter().find(|(name, _)| *name == module).map(|(_, may)| may)
}

impl May {
    fn names(&self, sibling: &str) -> bool {
        match self {
            Name(allowed) => allowed.contains(&sibling),
            NameAllBut(refused) => row(sibling).is_some() && !refused.contains(&sibling),
        }
    }
}

/// The top-level module a file of `src` belongs to, and whether the file is that module's root.
fn module_of(file: &str) -> (&str, bool) {
    let inner = file.strip_prefix("src/").unwrap_or(file);
    match inner.split_once('/') {
        Some((module, rest)) => (module, rest == "mod.rs"),
        None => (inner.strip_suffix(".rs").unwrap_or(inner), true),
    }
}

fn check_source(file: &str, source: &str, faults: &mut Vec<Fault>) {
    let mut fault = |line, message: String| faults.push(Fault { file: file.to_owned(), line, message });
    if !source.starts_with("//!") {
        fault(1, "the file does not open with //! documentation".to_owned());
    }
    let tokens = match tokens(source) {
        Ok(tokens) => tokens,
        Err(why) => return fault(1, format!("cannot be read: {why}")),
    };
    let (module, is_root) = module_of(file);
    let Some(may) = row(module) else {
        return fault(1, format!("the module {module} has no row in the import table"));
    };
    for (line, message) in marks(&tokens) {
        fault(line, message);
    }
    let inline = inline_modules(&tokens);
    let exempt = test_items(&tokens);
    let is_test_file = file.contains("/tests/") || file.ends_with("/tests.rs") || file.ends_with("/testing.rs");
    for path in paths(&tokens) {
        let line = tokens[path.at].line;
        let at_root = is_root && !inline.iter().any(|range| range.contains(&path.at));
        if let Some(sibling) = sibling(&path, at_root)
            && sibling != module
            && !may.names(sibling)
        {
            fault(line, format!("{module} -> {sibling} is not in the import table"));
        }
        if path.segments.iter().skip(1).any(|s| *s == "super") {
            fault(line, "climbs more than one module: name the path from crate".to_owned());
        }
        if is_test_file || exempt.iter().any(|range| range.contains(&path.at)) {
            continue;
        }
        if let Some((name, homes)) = confined(&path).find(|(_, homes)| !homes.iter().any(|home| lies_in(file, home))) {
            fault(line, format!("{name} is confined to {}", homes.join(", ")));
        }
    }
}

/// The sibling a path names from the root of the crate. `super` in the root file of a module is that root too.
fn sibling<'a>(path: &Named<'a>, at_root: bool) -> Option<&'a str> {
    match path.segments.as_slice() {
        ["crate" | "pocketfleet", name, ..] => Some(name),
        ["super", name, ..] if at_root => Some(name),
        _ => None,
    }
}

/// Whether a file belongs to a module (`auth`) or a part of one (`cli/doctor`).
fn lies_in(file: &str, home: &str) -> bool {
    let rest = file.strip_prefix("src/").and_then(|inner| inner.strip_prefix(home));
    rest.is_some_and(|rest| rest.starts_with('/') || rest == ".rs")
}

fn confined(path: &Named<'_>) -> impl Iterator<Item = &'static (&'static str, &'static [&'static str])> {
    CONFINED.iter().filter(|(name, _)| {
        let wanted: Vec<&str> = name.split("::").collect();
        let has_run = path.segments.windows(wanted.len()).any(|run| run == wanted);
        let parent = &wanted[..wanted.len() - 1];
        let leads_there = path.form == Form::OpenImport && path.segments.ends_with(parent);
        match wanted.as_slice() {
            [name] => path.segments.first() == Some(name) && (path.form != Form::Expression || path.segments.len() > 1),
            _ => has_run || leads_there,
        }
    })
}

/// What is a fault wherever it stands in `src`.
fn marks(tokens: &[Token<'_>]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    let mut depth = 0_isize;
    for (at, token) in tokens.iter().enumerate() {
        let next = |n: usize| tokens.get(at + n).map_or("", |t| t.text);
        let previous = at.checked_sub(1).map_or("", |p| tokens[p].text);
        let message = match token.text {
            "crate" if next(1) == "::" && !tokens.get(at + 2).is_some_and(Token::is_ident) => {
                "a group or glob of crate: write one `use crate::module::Item;` a line"
            }
            "crate" if next(1) != "::" && !(previous == "(" && next(1) == ")") => "crate is used without a module",
            "#" if next(1) == "[" && next(2) == "path" => "a path attribute hides which module a file belongs to",
            "include" if next(1) == "!" => "include! hides what the file holds",
            "todo" | "unimplemented" if next(1) == "!" => "unfinished code",
            _ => "",
        };
        if !message.is_empty() {
            found.push((token.line, message.to_owned()));
        }
        depth += match token.text {
            "{" | "(" | "[" => 1,
            "}" | ")" | "]" => -1,
            _ => 0,
        };
    }
    if depth != 0 {
        found.push((1, "cannot be read: the braces do not match".to_owned()));
    }
    found
}

fn check_test(file: &str, source: &str, faults: &mut Vec<Fault>) {
    let mut fault =
        |line, message: &str| faults.push(Fault { file: file.to_owned(), line, message: message.to_owned() });
    let tokens = match tokens(source) {
        Ok(tokens) => tokens,
        Err(why) => return fault(1, &format!("cannot be read: {why}")),
    };
    for (at, token) in tokens.iter().enumerate() {
        let next = |n: usize| tokens.get(at + n).map_or("", |t| t.text);
        match token.text {
            "todo" | "unimplemented" if next(1) == "!" => fault(token.line, "an unfinished test"),
            "sleep" if next(1) == "(" && !file.starts_with(POLLING) => {
                fault(token.line, "a test sleeps: await an event, or poll with a deadline through support");
            }
            "#" if next(1) == "[" => {
                let attribute = at..closing(&tokens, at + 1).unwrap_or(tokens.len());
                if tokens[attribute].iter().any(|t| t.text == "ignore") {
                    fault(token.line, "an ignored test proves nothing: repair it or remove it");
                }
            }
            _ => {}
        }
    }
}

fn check_length(file: &str, source: &str, faults: &mut Vec<Fault>) {
    let lines = source.lines().count();
    if lines > MAX_LINES {
        let message = format!("{lines} lines; a file has at most {MAX_LINES}");
        faults.push(Fault { file: file.to_owned(), line: lines, message });
    }
}

/// The Rust files below a folder of the checkout, each with its name from the root and its text.
fn rust_files(folder: &str) -> io::Result<Vec<(String, String)>> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut found = Vec::new();
    let mut folders = vec![root.join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() && !path.ends_with("node_modules") {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root).unwrap_or(&path).to_string_lossy().into_owned();
                found.push((name, fs::read_to_string(&path)?));
            }
        }
    }
    Ok(found)
}

#[test]
fn the_tree_keeps_to_the_tables() {
    let (sources, tests) = (rust_files("src").unwrap(), rust_files("tests").unwrap());
    assert!(sources.len() > 10 && !tests.is_empty(), "the scan found next to nothing; is it looking at the tree?");

    let mut faults = Vec::new();
    for (file, source) in &sources {
        check_source(file, source, &mut faults);
        check_length(file, source, &mut faults);
    }
    for (file, source) in &tests {
        check_test(file, source, &mut faults);
        check_length(file, source, &mut faults);
    }
    let there: BTreeSet<&str> = sources.iter().map(|(file, _)| module_of(file).0).collect();
    let table = "tests/it/architecture/mod.rs".to_owned();
    for (module, _) in IMPORTS.iter().filter(|(module, _)| !there.contains(module)) {
        let message = format!("the import table has a row for {module}, which does not exist");
        faults.push(Fault { file: table.clone(), line: 1, message });
    }
    faults.sort();
    let report: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert!(faults.is_empty(), "{} faults\n{}\n", report.len(), report.join("\n"));
}

/// The faults of one source as `line message`, the documentation line put in front (so the source begins at 2).
fn faults_of(file: &str, source: &str) -> Vec<String> {
    let mut faults = Vec::new();
    check_source(file, &format!("//! Docs.\n{source}"), &mut faults);
    faults.iter().map(|f| format!("{} {}", f.line, f.message)).collect()
}

fn assert_clean(file: &str, source: &str) {
    assert_eq!(faults_of(file, source), Vec::<String>::new(), "{file}: {source}");
}

fn assert_fault(file: &str, source: &str, expected: &str) {
    let faults = faults_of(file, source);
    assert!(faults.iter().any(|f| f.contains(expected)), "{file}: {source}\nfound {faults:?}, not {expected:?}");
}

#[test]
fn imports_follow_the_table() {
    assert_clean("src/store/mod.rs", "use crate::ids::TenantId;\nuse crate::store::Error;");
    assert_fault("src/store/mod.rs", "\nuse crate::auth::Auth;", "3 store -> auth");
    assert_fault("src/store/mod.rs", "fn f() { let x = crate::auth::X; }", "2 store -> auth");
    assert_fault("src/store/a/b.rs", "macro_rules! m { () => { $crate::auth::X } }", "store -> auth");
    assert_fault("src/store/mod.rs", "#[cfg(test)] mod tests { use crate::auth::Auth; }", "store -> auth");
    assert_fault("src/api/mod.rs", "use crate::app::App;", "api -> app");
    assert_fault("src/api/mod.rs", "use crate::Something;", "api -> Something");
    assert_fault("src/app.rs", "use crate::cli::Cli;", "app -> cli");
    assert_clean("src/main.rs", "use pocketfleet::cli::Cli;");
    assert_fault("src/surprise.rs", "", "surprise has no row");
    assert_fault("src/surprise/mod.rs", "", "surprise has no row");
}

#[test]
fn ways_around_the_table_are_faults() {
    assert_fault("src/store/mod.rs", "use crate::{ids, auth};", "group or glob");
    assert_fault("src/store/mod.rs", "use crate::*;", "group or glob");
    assert_fault("src/store/mod.rs", "use crate as root;", "without a module");
    assert_fault("src/store/mod.rs", "use {crate::auth::A, std::fmt};", "store -> auth");
    assert_fault("src/store/mod.rs", "use super::auth::Auth;", "store -> auth");
    assert_fault("src/limits.rs", "fn f() { super::auth::f() }", "limits -> auth");
    assert_fault("src/store/a.rs", "use super::super::auth::Auth;", "more than one module");
    assert_fault("src/store/a.rs", "use super::{Error, super::auth::Auth};", "more than one module");
    assert_fault("src/store/a.rs", "fn f() { self::super::super::auth::f() }", "more than one module");
    assert_fault("src/store/a.rs", "#[path = \"../auth/mod.rs\"] mod auth;", "path attribute");
    assert_fault("src/store/a.rs", "include!(\"x.rs\");", "include!");
    assert_fault("src/store/a.rs", "fn f() {", "braces do not match");
    assert_fault("src/store/a.rs", "const A: &str = \"", "a text does not end");
    assert_clean("src/store/a.rs", "use super::Error; pub(crate) struct A; pub(super) struct B;");
    assert_clean("src/limits.rs", "mod tests { use super::*; fn f() { super::g() } }");
}

#[test]
fn confined_names_stay_where_they_belong() {
    assert_clean("src/api/a.rs", "use axum::Router;");
    assert_fault("src/store/a.rs", "use axum::Router;", "axum is confined to api, gateway, app");
    assert_fault("src/store/a.rs", "fn f() -> ::axum::Router { g() }", "axum is confined");
    assert_fault("src/store/a.rs", "use axum as web;", "axum is confined");
    for source in
        ["use std::env;", "use std::{fmt, env::{self, var}};", "fn f() { std::env::var(\"A\") }", "use std::*;"]
    {
        assert_fault("src/store/a.rs", source, "std::env is confined");
    }
    assert_fault("src/store/a.rs", "use std as s;", "std::env is confined");
    for source in ["use tokio::process::Command;", "use std::process::*;", "fn f() { process::Command::new(\"sh\") }"] {
        assert_fault("src/api/a.rs", source, "process::Command is confined");
    }
    assert_fault("src/api/a.rs", "fn f() { Command::new(\"sh\") }", "Command::new is confined");
    assert_clean("src/store/a.rs", "use std::process; fn env() { let axum = 1; let nix = env(); }");
    assert_clean("src/store/a.rs", "#[cfg(test)]\n#[expect(dead_code)]\nmod tests { use std::env; }");
    assert_clean("src/store/tests.rs", "use std::env;");
    assert_fault("src/store/a.rs", "#[cfg(test)]\nfn a(x: [u8; 2]) { b() }\nuse std::env;", "4 std::env");
    assert_fault("src/store/a.rs", "#[cfg(not(test))]\nmod a { use std::env; }", "std::env is confined");
}

#[test]
fn comments_and_texts_are_not_code() {
    let source = r###"
        //! crate::{auth} // /* crate::auth
        /* outer /* crate::auth::A */ todo!() */
        const A: &str = "crate::auth \" todo!() {";
        const B: &str = r##"crate::auth::A "# { todo!()"##;
        const C: (char, char, u8, &[u8]) = ('"', '\'', b'{', br"{\");
        fn f<'a>(x: &'a str) -> char { '\u{7b}' }
    "###;
    assert_clean("src/store/a.rs", source);
    assert_fault("src/store/a.rs", &format!("{source}\nuse crate::auth::A;"), "10 store -> auth");
}

#[test]
fn files_are_short_documented_and_finished() {
    let mut faults = Vec::new();
    check_length("src/a.rs", &"\n".repeat(MAX_LINES), &mut faults);
    assert_eq!(faults, []);
    check_length("src/a.rs", &"\n".repeat(MAX_LINES + 1), &mut faults);
    check_source("src/store/a.rs", "use std::fmt;", &mut faults);
    let report: Vec<String> = faults.iter().map(ToString::to_string).collect();
    assert_eq!(report.len(), 2, "{report:?}");
    assert!(report[0].starts_with("src/a.rs:601: 601 lines"), "{report:?}");
    assert!(report[1].starts_with("src/store/a.rs:1: the file does not open"), "{report:?}");
    assert_fault("src/store/a.rs", "fn f() { todo!() }", "unfinished");
}

#[test]
fn tests_neither_sleep_nor_hide() {
    let faults_of = |file: &str, source: &str| {
        let mut faults = Vec::new();
        check_test(file, source, &mut faults);
        faults.len()
    };
    assert_eq!(faults_of("tests/it/a.rs", "#[test] fn f() { assert_eq!(\"sleep(\", g()); }"), 0);
    assert_eq!(faults_of("tests/it/a.rs", "fn f() { std::thread::sleep(d); }"), 1);
    assert_eq!(faults_of("tests/it/a.rs", "async fn f() { tokio::time::sleep (d).await }"), 1);
    assert_eq!(faults_of("tests/it/support/poll.rs", "fn f() { std::thread::sleep(d); }"), 0);
    assert_eq!(faults_of("tests/it/a.rs", "#[test]\n#[ignore = \"slow\"]\nfn f() {}"), 1);
    assert_eq!(faults_of("tests/it/a.rs", "#[cfg_attr(unix, ignore)]\nfn f() {}"), 1);
    assert_eq!(faults_of("tests/it/a.rs", "fn f() { todo!() }"), 1);
    assert_eq!(faults_of("tests/it/a.rs", "fn f() { \"open }"), 1);
}

//! Checking one template folder without a server: bake it in a scratch folder with the real `PocketBase`, look at what
//! came out, and say what will surprise its users.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use crate::pocketbase::database::USERS;
use crate::pocketbase::schema;
use crate::pocketbase::schema::Collection;
use crate::store::tenants::Identity;
use crate::store::tenants::Kind;
use crate::supervisor::bake;
use crate::supervisor::config::Binaries;
use crate::supervisor::config::Binary;
use crate::supervisor::config::is_pinned_to;
use crate::supervisor::files;
use crate::supervisor::jail::Isolation;
use crate::supervisor::owner;
use crate::supervisor::template::Golden;
use crate::supervisor::template::Locations;
use crate::supervisor::template::Template;
use crate::supervisor::template::Traits;
use crate::supervisor::template::chain;

/// Largest hook file that is searched for routes.
const LARGEST_HOOK: u64 = 1 << 20;

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Level {
    /// The template cannot be used.
    Error,
    /// It can, and somebody will be surprised.
    Warning,
}

/// Something to know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// How bad.
    pub level: Level,
    /// What, and what to do.
    pub message: String,
}

/// What a check found.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The name it was checked under.
    pub name: String,
    /// Whether it can be used.
    pub ok: bool,
    /// What it says of itself; none when it could not be read.
    pub manifest: Option<Traits>,
    /// Migration files, all of which were run.
    pub migrations: usize,
    /// Hook files, all of which were loaded.
    pub hooks: Vec<String>,
    /// Files of `pb_public`.
    pub public_files: usize,
    /// The collections that it makes, with their rules.
    pub collections: Vec<Collection>,
    /// Bytes of a new instance's databases.
    pub bytes: u64,
    /// How long migrations and trial start took.
    pub milliseconds: u128,
    /// What to know.
    pub findings: Vec<Finding>,
}

/// Checks the folder `dir`. Only a scratch folder that cannot be made is an error; everything else is a finding.
pub async fn check(dir: &Path, binaries: &Binaries, isolation: &Isolation) -> io::Result<Report> {
    let dir = std::path::absolute(dir)?;
    let name = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let scratch = tempfile::Builder::new().prefix("pocketfleet-check-").tempdir()?;
    let mut report = Report {
        name: name.clone(),
        ok: false,
        manifest: None,
        migrations: 0,
        hooks: Vec::new(),
        public_files: 0,
        collections: Vec::new(),
        bytes: 0,
        milliseconds: 0,
        findings: Vec::new(),
    };
    let begun = Instant::now();
    match bake_in(scratch.path(), &dir, &name, (binaries, isolation), &mut report).await {
        Ok(golden) => {
            report.milliseconds = begun.elapsed().as_millis();
            look(&golden, &mut report);
        }
        Err(message) => report.findings.push(Finding { level: Level::Error, message }),
    }
    report.ok = report.findings.iter().all(|finding| finding.level != Level::Error);
    Ok(report)
}

async fn bake_in(
    scratch: &Path,
    dir: &Path,
    name: &str,
    (binaries, isolation): (&Binaries, &Isolation),
    report: &mut Report,
) -> Result<Golden, String> {
    if !dir.is_dir() {
        return Err(format!("{} is not a folder", dir.display()));
    }
    let Some((newest, older)) = binaries.all().split_first() else { return Err("no PocketBase binary".to_owned()) };
    let mut locations = Locations {
        templates: dir.parent().unwrap_or(dir).to_owned(),
        golden: scratch.join("golden"),
        staging: scratch.join("staging"),
        binary: newest.path.clone(),
        version: newest.version.clone(),
        older: older.to_vec(),
        isolation: isolation.clone(),
    };
    let make = || -> io::Result<()> {
        for folder in [&locations.golden, &locations.staging] {
            fs::create_dir(folder)?;
            owner::pass_through(folder)?;
        }
        // The template is baked as another user where that is possible.
        owner::pass_through(scratch)
    };
    make().map_err(|error| format!("make a scratch folder: {error}"))?;
    let load = |locations: &Locations| {
        Template::load(&locations.templates, name, &locations.version).map_err(|error| chain(&error))
    };
    let mut template = load(&locations)?;
    if let Some(pin) = &template.traits.pocketbase {
        let fits = |binary: &&Binary| is_pinned_to(&binary.version, pin);
        let Some(binary) = binaries.all().iter().find(fits) else {
            return Err(format!(
                "template.toml says pocketbase = {pin:?}, and no such binary is in pocketbase.binaries"
            ));
        };
        locations.binary.clone_from(&binary.path);
        locations.version.clone_from(&binary.version);
        template = load(&locations)?;
    }
    report.manifest = Some(template.traits.clone());
    report.migrations = names(template.migrations.as_ref()).iter().filter(|name| has_end(name, ".js")).count();
    report.hooks = names(template.hooks.as_ref()).into_iter().filter(|name| has_end(name, ".pb.js")).collect();
    report.public_files = names(template.public.as_ref()).len();
    let golden = bake::golden(&template, &locations).await;
    golden.map_err(|error| chain(&error).replace(&format!("{}/", scratch.display()), ""))
}

fn has_end(name: &str, end: &str) -> bool {
    name.to_ascii_lowercase().ends_with(end)
}

fn names(folder: Option<&PathBuf>) -> Vec<String> {
    let files = folder.and_then(|folder| files::list(folder).ok()).unwrap_or_default();
    files.iter().map(|path| path.display().to_string()).collect()
}

/// Looks at the instance that came out.
fn look(golden: &Golden, report: &mut Report) {
    let data = golden.dir.join("data.db");
    for name in ["data.db", "auxiliary.db"] {
        report.bytes += fs::metadata(golden.dir.join(name)).map_or(0, |metadata| metadata.len());
    }
    match schema::collections(&data) {
        Ok(collections) => report.collections = collections,
        Err(error) => report.findings.push(Finding { level: Level::Error, message: chain(&error) }),
    }
    if let Some(traits) = &report.manifest {
        report.findings.extend(judge(traits, &report.collections));
        let mut findings = judge_hooks(traits, golden.hooks_dir.as_deref(), &report.hooks);
        report.findings.append(&mut findings);
        if golden.hooks_dir.is_some() && report.hooks.is_empty() {
            report.findings.push(Finding {
                level: Level::Warning,
                message: "pb_hooks has no file whose name ends in .pb.js, and PocketBase loads no others".to_owned(),
            });
        }
    }
}

/// What the collections mean under pocketfleet.
fn judge(traits: &Traits, collections: &[Collection]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut say = |level, message: String| findings.push(Finding { level, message });
    let is_ours = traits.identity == Identity::Global || traits.kinds != [Kind::Workspace];
    let users = collections.iter().find(|collection| collection.name == USERS);
    match users {
        Some(users) if users.kind == "auth" => {
            if is_ours && traits.kinds != [Kind::Global] {
                users_rules(users, &mut say);
            }
        }
        Some(_) if is_ours => {
            say(Level::Error, "`users` is not an auth collection, and members are its rows".to_owned());
        }
        None if is_ours => say(
            Level::Error,
            "there is no collection `users`, and members are its rows; keep it, or set identity = \"own\" and \
             kinds = [\"workspace\"]"
                .to_owned(),
        ),
        _ => say(Level::Warning, "there is no auth collection `users`: nobody can sign in to it".to_owned()),
    }
    for collection in collections {
        if collection.kind == "auth" && collection.name != USERS {
            let name = &collection.name;
            say(Level::Warning, format!("`{name}` is an auth collection beside `users`: its sign-in is not offered"));
        }
        let public: Vec<&str> =
            collection.rules().iter().filter(|(_, rule)| *rule == Some("")).map(|(name, _)| *name).collect();
        let is_judged_above = is_ours && collection.name == USERS;
        if !public.is_empty() && !is_judged_above {
            let (name, rules) = (&collection.name, public.join(", "));
            say(
                Level::Warning,
                format!(
                    "`{name}` is open to everybody who reaches the instance ({rules}): an empty rule asks for nothing"
                ),
            );
        }
    }
    findings
}

/// Members' rows are kept in step with the accounts; who changes them here breaks that.
fn users_rules(users: &Collection, say: &mut impl FnMut(Level, String)) {
    for (name, rule) in [("create", &users.create_rule), ("update", &users.update_rule), ("delete", &users.delete_rule)]
    {
        if rule.is_some() {
            let text = format!(
                "`users` lets callers {name} rows ({name}Rule is not null), but accounts are managed by pocketfleet: \
                 set it to null"
            );
            say(Level::Warning, text);
        }
    }
}

/// Routes that nobody will reach, and schedules that will not fire in their sleep.
fn judge_hooks(traits: &Traits, folder: Option<&Path>, names: &[String]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(folder) = folder else { return findings };
    for name in names {
        let path = folder.join(name);
        let Ok(text) = fs::metadata(&path).and_then(|metadata| {
            if metadata.len() > LARGEST_HOOK { Ok(String::new()) } else { fs::read_to_string(&path) }
        }) else {
            continue;
        };
        for route in routes_of(&text) {
            let is_listed = traits.routes.iter().any(|listed| match listed.strip_suffix('*') {
                Some(start) => route.starts_with(start),
                None => *listed == route,
            });
            if !is_listed {
                let message =
                    format!("{name} serves {route}, which is not in `routes` of template.toml and so not reachable");
                findings.push(Finding { level: Level::Warning, message });
            }
        }
        if text.contains("cronAdd(") {
            let message = format!("{name} has a cron job, which runs only while the instance is awake");
            findings.push(Finding { level: Level::Warning, message });
        }
    }
    findings
}

/// The paths in calls of `routerAdd(method, path, …)` that are written out.
fn routes_of(text: &str) -> Vec<String> {
    let calls = text.split("routerAdd(").skip(1);
    calls.filter_map(|call| literal(literal(call)?.1.trim_start().strip_prefix(',')?).map(|(path, _)| path)).collect()
}

/// The string literal that a text begins with, and what comes after it.
fn literal(text: &str) -> Option<(String, &str)> {
    let text = text.trim_start();
    let quote = text.chars().next().filter(|c| matches!(c, '"' | '\'' | '`'))?;
    let (value, rest) = text.get(1..)?.split_once(quote)?;
    Some((value.to_owned(), rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_found_where_they_are_written_out() {
        let text =
            "routerAdd(\"GET\", '/api/hello', (e) => 1)\nrouterAdd( 'POST' ,`/api/x/{id}`, f)\nrouterAdd(m, p, f)";
        assert_eq!(routes_of(text), ["/api/hello", "/api/x/{id}"]);
    }
}

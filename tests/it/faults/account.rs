//! The account of the fault list, held to the tests that there are and to the documentation.
//!
//! `docs/faults.md` is its print, renewed when the environment has `POCKETFLEET_WRITE_FAULTS_TABLE=1`.

use std::collections::BTreeSet;

use super::table::FAULTS;
use crate::support::root;
use crate::support::variable;

const RENEW: &str = "POCKETFLEET_WRITE_FAULTS_TABLE";

/// One fault of the list.
pub(super) struct Fault {
    pub(super) number: u8,
    pub(super) what: &'static str,
    pub(super) injected: &'static str,
    pub(super) outcome: &'static str,
    /// As `file::name` of `tests/it`, or of `src` where it begins so. None: nobody tests it yet.
    pub(super) tests: &'static [&'static str],
}

/// Whether the sources have a test of this name at this place.
pub(crate) fn exists(test: &str) -> bool {
    let Some((module, name)) = test.rsplit_once("::") else { return false };
    let module = module.replace("::", "/");
    let module = if module.starts_with("src/") { module } else { format!("tests/it/{module}") };
    [format!("{module}.rs"), format!("{module}/mod.rs")].into_iter().any(|file| {
        let Ok(source) = std::fs::read_to_string(root().join(file)) else { return false };
        tests_of(&source).contains(name)
    })
}

/// Names of the test functions of a source file.
fn tests_of(source: &str) -> BTreeSet<&str> {
    let mut found = BTreeSet::new();
    let mut is_marked = false;
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[test]") || line.starts_with("#[tokio::test") {
            is_marked = true;
        } else if let Some((_, rest)) = line.split_once("fn ") {
            if is_marked && let Some((name, _)) = rest.split_once('(') {
                found.insert(name);
            }
            is_marked = false;
        }
    }
    found
}

fn print() -> String {
    let mut text = "# What breaks, and what holds then\n\n\
        Every fault of this list is injected for real by the tests that are named with it; this page is printed by the \
        account in\n`tests/it/faults`, which fails when a test or a word here is not what it says \
        (`POCKETFLEET_WRITE_FAULTS_TABLE=1` writes it anew).\nTests that need root or a tool that is not there say so on \
        standard error and count what was left out.\n\n"
        .to_owned();
    for fault in &FAULTS {
        text.extend(["## ", &fault.number.to_string(), ". ", &capital(fault.what), "\n\n"]);
        if !fault.injected.is_empty() {
            text.extend(["- **Injected:** ", fault.injected, ".\n"]);
        }
        text.extend(["- **What holds:** ", fault.outcome, ".\n"]);
        if fault.tests.is_empty() {
            text.push_str("- **Not tested yet.**\n");
        }
        for test in fault.tests {
            text.extend(["- `", test, "`\n"]);
        }
        text.push('\n');
    }
    text.truncate(text.trim_end().len());
    text.push('\n');
    text
}

fn capital(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map(|first| first.to_uppercase().chain(letters).collect()).unwrap_or_default()
}

#[test]
fn every_fault_is_accounted_for_and_every_named_test_exists() {
    let numbers: Vec<u8> = FAULTS.iter().map(|fault| fault.number).collect();
    assert_eq!(numbers, (1..=40).collect::<Vec<u8>>());
    let absent: Vec<&str> = FAULTS.iter().flat_map(|fault| fault.tests).copied().filter(|test| !exists(test)).collect();
    assert!(absent.is_empty(), "no such tests: {absent:#?}");
    // And the other way round: what is named after a fault stands in its row.
    let folder = root().join("tests/it/faults");
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let source = std::fs::read_to_string(entry.path()).unwrap();
        let stem = entry.path().file_stem().unwrap().to_string_lossy().into_owned();
        for name in tests_of(&source) {
            let Some(number) = name.strip_prefix("fault_").and_then(|rest| rest[..2].parse::<u8>().ok()) else {
                continue;
            };
            let full = format!("faults::{stem}::{name}");
            let row = FAULTS.iter().find(|fault| fault.number == number).unwrap();
            assert!(row.tests.contains(&full.as_str()), "{full} is missing in row {number}");
        }
    }
}

#[test]
fn the_documentation_is_the_print_of_the_account() {
    let path = root().join("docs/faults.md");
    let (fresh, found) = (print(), std::fs::read_to_string(&path).unwrap_or_default());
    if fresh == found {
        return;
    }
    assert!(variable(RENEW).is_some(), "docs/faults.md says something else; renew it with {RENEW}=1:\n{fresh}");
    std::fs::write(path, fresh).unwrap();
}

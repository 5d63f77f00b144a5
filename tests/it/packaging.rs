//! What is shipped for operators fits the program: commands, flags and configuration keys exist.

use std::path::PathBuf;
use std::process::Stdio;

use crate::support::command;
use crate::support::pocketfleet;
use crate::support::root;

fn file(name: &str) -> String {
    std::fs::read_to_string(root().join("scripts/packaging").join(name)).unwrap()
}

/// Every `pocketfleet <command> --flag …` of a text is understood: the help of the command knows the flags.
fn commands_exist(text: &str) -> usize {
    let mut found = 0;
    for line in text.lines().map(|line| line.replace(['"', ',', '[', ']', '\''], " ")) {
        let Some((_, rest)) = line.split_once("pocketfleet ") else { continue };
        let words: Vec<&str> = rest.split_whitespace().collect();
        let Some(name) = words.first().filter(|word| word.chars().all(|c| c.is_ascii_lowercase() || c == '-')) else {
            continue;
        };
        let Ok(output) = pocketfleet().args([name, "--help"]).output() else { continue };
        if !output.status.success() {
            continue;
        }
        let help = String::from_utf8_lossy(&output.stdout);
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(flag), "{flag} is no flag of {name}: {line}");
        }
        found += 1;
    }
    found
}

#[test]
fn commands_and_flags_of_the_unit_and_the_container_exist() {
    assert_eq!(commands_exist(&file("pocketfleet.service")), 2);
    assert!(commands_exist(&file("Containerfile")) >= 1);
    let page = std::fs::read_to_string(root().join("docs/operations-install.md")).unwrap();
    assert!(commands_exist(&page) >= 1);
    assert!(file("Containerfile").contains("CMD [\"serve\", \"--data\""));
}

#[test]
fn configuration_in_the_environment_of_the_unit_and_the_container_is_taken() {
    let mut command = pocketfleet();
    let mut count = 0;
    for text in [file("pocketfleet.service"), file("Containerfile")] {
        for word in text.split(['\n', ' ']) {
            let word = word.strip_prefix("Environment=").unwrap_or(word);
            if let Some((name, value)) = word.split_once('=').filter(|(name, _)| name.starts_with("POCKETFLEET_")) {
                command.env(name, value);
                count += 1;
            }
        }
    }
    assert_eq!(count, 3);
    let output = command.arg("check-config").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_unit_keeps_instances_and_its_paths_are_those_that_are_made() {
    let unit = file("pocketfleet.service");
    for line in [
        "KillMode=process",
        "Delegate=yes",
        "DelegateSubgroup=supervisor",
        "User=pocketfleet",
        "StateDirectory=pocketfleet",
    ] {
        assert!(unit.lines().any(|found| found == line), "{line}");
    }
    assert!(file("pocketfleet.sysusers").contains("u pocketfleet "));
    assert!(file("pocketfleet.tmpfiles").contains("/var/lib/pocketfleet"));
    let Ok(found) = command("systemd-analyze").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status()
    else {
        eprintln!("skipped: no systemd-analyze on this machine");
        return;
    };
    assert!(found.success());
    // The program has to be there for this check, so it is named by where it is.
    let dir = tempfile::tempdir().unwrap();
    let path: PathBuf = dir.path().join("pocketfleet.service");
    let real = env!("CARGO_BIN_EXE_pocketfleet");
    std::fs::write(&path, unit.replace("/usr/bin/pocketfleet", real).replace("ProtectHome=yes\n", "")).unwrap();
    let output = command("systemd-analyze").args(["verify", "--man=no"]).arg(&path).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    // Before systemd 254 the key is ignored, and so are the limits that need it.
    let is_known = |line: &&str| !line.contains("Unknown key 'DelegateSubgroup'");
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("pocketfleet.service")).filter(is_known).collect();
    assert!(ours.is_empty(), "{ours:#?}");
}

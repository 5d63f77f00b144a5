//! At which level of isolation tests run, and the kernel's rules that they may leave behind.
//!
//! Level 2 for all who do not say, where the tests run as root: rules of the packet filter are the machine's, and those
//! of many tests at once would slow every packet down. `POCKETFLEET_TEST_ISOLATION=auto` runs them as users would.

use std::path::Path;

use super::command;
use super::variable;

const LEVEL: &str = "isolation.level = ";
/// Where `nft` is on the systems that tests run on.
const NFT: [&str; 2] = ["/usr/sbin/nft", "/usr/bin/nft"];

fn wanted(keys: &str) -> Option<String> {
    let said = keys.lines().find_map(|line| line.trim().strip_prefix(LEVEL)).map(str::to_owned);
    let by_default = || rustix::process::geteuid().is_root().then(|| "2".to_owned());
    let quoted = |text: String| if text.parse::<u8>().is_ok() { text } else { format!("\"{text}\"") };
    said.or_else(|| variable("POCKETFLEET_TEST_ISOLATION").map(quoted)).or_else(by_default)
}

/// A range of users for an app that may come to level 3: rules know tenants by them, so no two apps may share any.
pub(super) fn users(keys: &str) -> Option<u32> {
    let level = wanted(keys)?;
    let is_alone = matches!(level.as_str(), "3" | "\"3\"" | "\"auto\"");
    (is_alone && !keys.contains("isolation.uid_base")).then(|| 1_000_000_000 + rand::random::<u32>() % 800_000 * 1_000)
}

/// Configuration that goes before a test's own.
pub(super) fn keys(keys: &str, users: Option<u32>) -> String {
    let mut text = String::new();
    if let Some(level) = wanted(keys).filter(|_| !keys.contains(LEVEL)) {
        text.extend([LEVEL, &level, "\n"]);
    }
    if let Some(base) = users {
        text.extend(["isolation.uid_base = ", &base.to_string(), "\nisolation.uid_count = 1000\n"]);
    }
    text
}

/// Runs `nft`; what it says, where it succeeds.
pub(crate) fn nft(args: &[&str]) -> Option<String> {
    let program = NFT.iter().find(|path| Path::new(path).is_file())?;
    let output = command(program).args(args).output().unwrap();
    output.status.success().then(|| String::from_utf8(output.stdout).unwrap())
}

/// Removes the rules of an app that was killed.
pub(super) fn forget(users: Option<u32>) {
    let Some(base) = users else { return };
    for table in tables(base) {
        nft(&["delete", "table", "inet", &table]);
    }
}

/// The tables about a range of users.
pub(crate) fn tables(base: u32) -> Vec<String> {
    let listing = nft(&["list", "tables", "inet"]).unwrap_or_default();
    let names = listing.lines().filter_map(|line| line.strip_prefix("table inet "));
    names.filter(|name| name.contains(&format!("_{base}_"))).map(str::to_owned).collect()
}

/// Why level 3 cannot be shown here, if it cannot.
pub(crate) fn lacks_packet_filter() -> Option<&'static str> {
    if !NFT.iter().any(|path| Path::new(path).is_file()) {
        return Some("there is no program nft (package nftables)");
    }
    nft(&["-c", "add table inet pocketfleet_probe"])
        .is_none()
        .then_some("the kernel takes no rules (nf_tables, CAP_NET_ADMIN)")
}

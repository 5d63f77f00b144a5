//! How far a start with this configuration would keep instances from each other.

use crate::cli::doctor::Finding;
use crate::cli::doctor::Inputs;
use crate::supervisor::binary;
use crate::supervisor::jail::Isolation;

/// The level, and what is missing.
pub fn check(inputs: &Inputs) -> Finding {
    const CHECK: &str = "isolation";
    // Where one is missing another finding says so.
    let first = binary::find(&inputs.binary, &inputs.version, &inputs.search_path);
    let others = inputs.binaries.iter().map(|other| binary::find(other, "", &inputs.search_path));
    let programs: Vec<_> = std::iter::once(first).chain(others).flatten().collect();
    let isolation = Isolation::detect(&inputs.isolation, &inputs.data, &programs);
    let report = isolation.report();
    let found = format!("level {}: {}", report.level, report.means);
    let missing = report.missing.join("; ");
    if report.level < inputs.isolation.require {
        let advice = format!("isolation.require = {}: {missing}", inputs.isolation.require);
        Finding::fail(CHECK, found, advice)
    } else if report.level == 0 {
        Finding::warn(CHECK, found, missing)
    } else if missing.is_empty() {
        Finding::ok(CHECK, found)
    } else {
        Finding::ok(CHECK, format!("{found}; {missing}"))
    }
}

//! How far a start with this configuration would keep instances from each other.

use std::path::Path;

use crate::cli::doctor::Finding;
use crate::cli::doctor::Inputs;
use crate::supervisor::binary;
use crate::supervisor::jail::Isolation;

/// The level, and what is missing.
pub fn check(inputs: &Inputs) -> Finding {
    const CHECK: &str = "isolation";
    // Without one there is another finding that says so.
    let program = binary::find(&inputs.binary, &inputs.version, &inputs.search_path);
    let program = program.unwrap_or_else(|_| Path::new("/").to_owned());
    let isolation = Isolation::detect(&inputs.isolation, &inputs.data, &program);
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

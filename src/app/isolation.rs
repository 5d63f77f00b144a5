//! The level of isolation that a start reaches, and whether the configuration is content with it.

use std::path::Path;

use anyhow::Context;
use anyhow::bail;

use crate::config::Config;
use crate::gateway::DashboardMode;
use crate::supervisor;
use crate::supervisor::config::Binaries;
use crate::supervisor::jail::Isolation;
use crate::supervisor::jail::config::Wanted;

/// How far processes will be kept from each other, and whether that is enough.
pub(super) fn reach(config: &Config, data: &Path, binaries: &Binaries) -> anyhow::Result<Isolation> {
    let isolation = Isolation::detect(&config.isolation, data, &binaries.paths());
    let required = config.isolation.require;
    let isolation = isolation.with_groups(&config.isolation).with_network(data, required);
    let report = isolation.report();
    let missing = report.missing.join("; ");
    let level = isolation.level;
    if level < required {
        bail!("isolation.require = {required}, but this start reaches level {level} only: {missing}");
    }
    if config.server.dashboard == DashboardMode::Isolated && level < 2 {
        bail!(
            "server.dashboard = isolated: \"off\" here, because processes are not isolated from each other (level 2 \
             is needed, this start reaches level {level}: {missing})"
        );
    }
    let is_unlimited = config.isolation.has_group_limits() && isolation.groups.is_none();
    let is_less = matches!(config.isolation.level, Wanted::Level(wanted) if wanted > level) || level == 0;
    if is_unlimited || is_less && config.isolation.level != Wanted::Level(0) {
        tracing::warn!(isolation.level = level, missing, "isolation level {level}: {}", report.means);
    } else {
        tracing::info!(isolation.level = level, missing, "isolation level {level}: {}", report.means);
    }
    if isolation.has_users() {
        supervisor::owner::open_data(data).context("open the data directory to the users of tenants")?;
    }
    Ok(isolation)
}

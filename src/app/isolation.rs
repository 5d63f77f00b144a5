//! The level of isolation that a start reaches, and whether the configuration is content with it.

use std::path::Path;

use anyhow::Context;
use anyhow::bail;

use crate::config::Config;
use crate::gateway::DashboardMode;
use crate::store::uids::TenantUid;
use crate::store::uids::Uids;
use crate::supervisor;
use crate::supervisor::config::Binaries;
use crate::supervisor::jail::Isolation;
use crate::supervisor::jail::config::Wanted;

/// Templates are baked as the first user of the range, which must not be somebody's: after the range was moved it can be.
fn baker_is_a_tenant(base: u32, given: &[TenantUid]) -> Option<String> {
    let taken = given.iter().find(|record| record.uid == base)?;
    let (first, last) = (given.first()?.uid, given.last()?.uid);
    // Below the first that was given nobody has one, and the range has been there before.
    let (free, count) = (first.saturating_sub(1), last - first + 2);
    Some(format!(
        "isolation.uid_base = {base}: the user {base} is the tenant {}'s for good, and templates would be baked as it: set \
         isolation.uid_base back, or to a user that no tenant has; with {free} and isolation.uid_count = {count} or more \
         every tenant's user is in the range",
        taken.tenant
    ))
}

/// How far processes will be kept from each other, and whether that is enough.
pub(super) fn reach(config: &Config, data: &Path, binaries: &Binaries, uids: &Uids) -> anyhow::Result<Isolation> {
    let isolation = Isolation::detect(&config.isolation, data, &binaries.paths());
    if isolation.has_users()
        && let Some(why) = baker_is_a_tenant(config.isolation.uid_base, &uids.given())
    {
        bail!(why);
    }
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TenantId;

    #[test]
    fn a_moved_range_does_not_take_a_tenants_user() {
        let record = |uid, tenant| TenantUid { uid, tenant: TenantId::parse(tenant).unwrap() };
        let given = [record(5_001, "one"), record(5_007, "two")];
        assert_eq!(baker_is_a_tenant(5_000, &given), None);
        assert_eq!(baker_is_a_tenant(5_002, &given), None);
        assert_eq!(baker_is_a_tenant(5_000, &[]), None);
        let why = baker_is_a_tenant(5_007, &given).unwrap();
        assert!(why.contains("the tenant two's") && why.contains("with 5000 and isolation.uid_count = 8"), "{why}");
    }
}

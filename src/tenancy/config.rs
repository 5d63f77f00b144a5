//! The `[workspaces]` section of the configuration.

use std::num::NonZeroU32;
use std::time::Duration;

use serde::Deserialize;

/// Who may make a workspace.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Creation {
    /// Every account.
    Everybody,
    /// Accounts with the role `admin`.
    Admins,
}

/// The `[workspaces]` section of the configuration; `config/default.toml` documents every key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is documented where users read it: config/default.toml")]
pub struct Config {
    pub creation: Creation,
    pub max_per_user: usize,
    pub max_members: usize,
    #[serde(with = "humantime_serde")]
    pub invitation_ttl: Duration,
    pub max_invitations: usize,
    pub changes_per_minute: NonZeroU32,
    pub template: String,
    pub hosted_template: String,
}

//! What can be done that is written down. The words are stable: exports are read by programs.

/// A secret was stored for the first time.
pub const SECRET_STORED: &str = "secret.stored";
/// A secret was replaced by another.
pub const SECRET_REPLACED: &str = "secret.replaced";
/// A secret's label or end of time was changed.
pub const SECRET_CHANGED: &str = "secret.changed";
/// A service exchanged what it had issued for a fresh secret.
pub const SECRET_RENEWED: &str = "secret.renewed";
/// A secret was deleted.
pub const SECRET_DELETED: &str = "secret.deleted";
/// A secret was shown to its owner.
pub const SECRET_REVEALED: &str = "secret.revealed";
/// A secret was asked for in clear and not shown; the particulars say why.
pub const SECRET_REVEAL_REFUSED: &str = "secret.reveal_refused";
/// A worker used a secret; at most one entry a minute for each secret and purpose.
pub const SECRET_USED: &str = "secret.used";
/// A secret could not be opened: it was changed, exchanged or put back behind our back.
pub const SECRET_UNREADABLE: &str = "secret.unreadable";
/// A secret ends within the time of the warning, or has ended.
pub const SECRET_EXPIRING: &str = "secret.expiring";
/// A tenant's data key was destroyed.
pub const VAULT_DESTROYED: &str = "vault.destroyed";
/// A master key was made or first used.
pub const MASTER_KEY_ADDED: &str = "master_key.added";
/// A master key seals nothing any more and was forgotten.
pub const MASTER_KEY_RETIRED: &str = "master_key.retired";
/// The owner of a tenant asked for a backup of it.
pub const BACKUP_REQUESTED: &str = "backup.requested";
/// The owner of a tenant downloaded a backup of it.
pub const BACKUP_DOWNLOADED: &str = "backup.downloaded";
/// The owner of a tenant asked for its data to be replaced by a backup.
pub const BACKUP_RESTORE_REQUESTED: &str = "backup.restore_requested";
/// An administrator was created.
pub const ADMIN_CREATED: &str = "admin.created";
/// An API key of ours was made.
pub const API_KEY_CREATED: &str = "api_key.created";
/// An API key of ours was revoked.
pub const API_KEY_REVOKED: &str = "api_key.revoked";
/// A tenant was deleted, and is kept for a while.
pub const TENANT_DELETED: &str = "tenant.deleted";
/// A deleted tenant was brought back.
pub const TENANT_UNDELETED: &str = "tenant.undeleted";
/// The erasure of a deleted tenant began.
pub const ERASURE_BEGUN: &str = "erasure.begun";
/// A tenant was erased; the subject names the signed record of it.
pub const TENANT_ERASED: &str = "tenant.erased";
/// A folder or a record without its other half was taken in again.
pub const ORPHAN_ADOPTED: &str = "orphan.adopted";
/// A folder that no record named was removed.
pub const ORPHAN_REMOVED: &str = "orphan.removed";
/// A tenant's own limits were changed; the particulars are the new ones.
pub const QUOTA_CHANGED: &str = "quota.changed";

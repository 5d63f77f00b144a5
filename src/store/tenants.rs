//! `tenant.<id>`: which tenants there are, and how an operator wants them treated.
//!
//! The view is read on every request and holds a hundred thousand tenants in a few tens of megabytes. A deleted tenant
//! keeps its record, which then is its tombstone; the record goes when everything else of the tenant was erased. A
//! record that is missing must not make anybody delete data.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use serde::Deserialize;
use serde::Serialize;

use super::Error;
use super::Store;
use super::table::Step;
use super::table::Table;
use super::view::Record;
use crate::ids::TenantId;
use crate::ids::UserId;

/// What a tenant is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// The global instance, which holds the accounts.
    Global,
    /// One user's own.
    Personal,
    /// Shared by its members, or an app of its own with users of its own.
    Workspace,
}

/// Whose accounts a tenant's callers have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// Ours: they sign in at the global instance, and membership decides.
    #[default]
    Global,
    /// The instance's own `users`: its sign-in is its own affair, and its tokens pass through untouched.
    Own,
}

/// How far a deletion has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Nobody reaches it any more; what belongs to it is being put away.
    Leaving,
    /// Put away, whole.
    Gone,
    /// It is being brought back.
    Returning,
    /// It is being erased, which nothing takes back.
    Erasing,
}

/// Limits of one tenant. 0 is no limit; none: whatever stands behind says it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes on the disk from which on it is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_soft: Option<u64>,
    /// Bytes on the disk from which on its writes are refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disk_hard: Option<u64>,
    /// Largest body of one request, in bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file_size: Option<u64>,
    /// Bytes of memory of its process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<u64>,
    /// Requests at work at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_flight: Option<u64>,
    /// Requests in a minute.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_per_minute: Option<u64>,
    /// Requests with files in an hour.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uploads_per_hour: Option<u64>,
}

impl Limits {
    /// These, and where they say nothing the others.
    #[must_use]
    pub fn or(self, others: &Self) -> Self {
        Self {
            disk_soft: self.disk_soft.or(others.disk_soft),
            disk_hard: self.disk_hard.or(others.disk_hard),
            file_size: self.file_size.or(others.file_size),
            memory: self.memory.or(others.memory),
            in_flight: self.in_flight.or(others.in_flight),
            requests_per_minute: self.requests_per_minute.or(others.requests_per_minute),
            uploads_per_hour: self.uploads_per_hour.or(others.uploads_per_hour),
        }
    }

    /// Whether every request has to be counted for them.
    pub fn counts_requests(&self) -> bool {
        [self.in_flight, self.requests_per_minute].into_iter().flatten().any(|most| most > 0)
    }
}

/// The erasure of a tenant: who had it begun, and what there was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erasure {
    /// Who, in the words of the audit log; `system` when the time was over.
    pub by: String,
    /// When it began.
    #[serde(with = "time::serde::rfc3339")]
    pub begun_at: time::OffsetDateTime,
    /// What was counted before anything went.
    pub counts: BTreeMap<String, u64>,
}

/// A tombstone: who deleted a tenant, when, and until when everything of it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Deletion {
    /// When it was deleted.
    #[serde(with = "time::serde::rfc3339")]
    pub at: time::OffsetDateTime,
    /// Who did it, in the words of the audit log (`user:<id>`, `operator`).
    pub by: String,
    /// When it is erased.
    #[serde(with = "time::serde::rfc3339")]
    pub erase_at: time::OffsetDateTime,
    /// How far it has come.
    pub stage: Stage,
    /// Whether its jobs were paused before.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub was_paused: bool,
    /// Its erasure, once it began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub erasure: Option<Erasure>,
}

impl Deletion {
    /// The name of the folder under which its instance is put away.
    pub fn folder(&self, tenant: &TenantId) -> String {
        format!("{tenant}-{}", self.at.unix_timestamp())
    }
}

/// A tenant as the control plane knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tenant {
    /// Its name; a personal tenant has its owner's.
    pub id: TenantId,
    /// What it is for.
    pub kind: Kind,
    /// Name of the template under `pb_templates/`.
    pub template: String,
    /// Whose it is; none for the global instance. Of a workspace, the owner who can only hand it over: because this is
    /// one field of one record, a workspace has an owner whatever happens to its members' records.
    pub owner: Option<UserId>,
    /// Never put to sleep.
    #[serde(default)]
    pub pinned: bool,
    /// Refused to everybody until an operator lifts it.
    #[serde(default)]
    pub suspended: bool,
    /// What it is called in addresses, beside its id: `{slug}.{domain}` and `/t/{slug}/`. Workspaces only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slug: Option<String>,
    /// What people call it. Workspaces only.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Whose accounts its callers have.
    #[serde(default)]
    pub identity: Identity,
    /// Paths that anybody may read (GET and HEAD) without a credential, such as `/api/collections/posts/records`; a
    /// `*` at the end stands for any rest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub public_read: Vec<String>,
    /// Put away by its owner: nobody reaches it, nothing of it is deleted. Workspaces only.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub archived: bool,
    /// Limits of its own, which stand before its template's and the configuration's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<Box<Limits>>,
    /// Deleted, and kept for a while; nobody reaches it. Behind a pointer, because few are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deleted: Option<Box<Deletion>>,
    /// When the tenant was registered.
    #[serde(with = "time::serde::rfc3339")]
    pub created_at: time::OffsetDateTime,
}

impl Tenant {
    /// A tenant of a template, made now, with nothing out of the ordinary.
    pub fn new(id: TenantId, kind: Kind, template: impl Into<String>, owner: Option<UserId>) -> Self {
        Self {
            id,
            kind,
            template: template.into(),
            owner,
            pinned: false,
            suspended: false,
            slug: None,
            name: String::new(),
            identity: Identity::Global,
            public_read: Vec::new(),
            archived: false,
            limits: None,
            deleted: None,
            created_at: time::OffsetDateTime::now_utc(),
        }
    }
}

fn key_of(id: &TenantId) -> String {
    format!("{}{id}", Tenant::PREFIX)
}

impl Record for Tenant {
    const PREFIX: &'static str = "tenant.";
    type Id = TenantId;
    type Index = TenantId;

    fn id(&self) -> TenantId {
        self.id.clone()
    }

    fn key(&self) -> String {
        key_of(&self.id)
    }

    fn parse_id(rest: &str) -> Option<TenantId> {
        TenantId::parse(rest).ok()
    }

    fn index(&self) -> Option<TenantId> {
        Some(self.id.clone())
    }

    fn compact(mut self) -> Self {
        if let Some(owner) = self.owner.as_ref().filter(|owner| owner.as_str() == self.id.as_str()) {
            self.id = TenantId::personal(owner);
        }
        self.template.shrink_to_fit();
        self
    }
}

/// The tenants: typed records plus an in-memory view fed by the watch. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tenants {
    table: Table<Tenant>,
}

impl Tenants {
    /// Loads the view and follows the store, on the caller's runtime, until the last handle is gone or the store is
    /// closed.
    pub async fn open(store: Arc<dyn Store>) -> Result<Self, Error> {
        Ok(Self { table: Table::open(store).await? })
    }

    /// From the view, no I/O.
    pub fn find(&self, id: &TenantId) -> Option<Arc<Tenant>> {
        self.table.find(id)
    }

    /// Whether there is really no such tenant: asked of the store, because the view hides a record that cannot be read.
    /// Whatever is to be removed or given away for a tenant's absence asks this first.
    pub async fn is_absent(&self, id: &TenantId) -> Result<bool, Error> {
        match self.table.read(&key_of(id)).await {
            Ok(found) => Ok(found.is_none()),
            Err(Error::Corrupt(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A page of the view in id order: at most `limit` tenants after `after`, from the start without it.
    pub fn page(&self, after: Option<&TenantId>, limit: usize) -> Vec<Arc<Tenant>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let ids = self.table.view().range(from, limit, |_| true);
        ids.iter().filter_map(|id| self.find(id)).collect()
    }

    /// Creates the record; an existing one is returned unchanged (one winner of N creates).
    pub async fn create_or_find(&self, tenant: Tenant) -> Result<Arc<Tenant>, Error> {
        if let Some(found) = self.find(&tenant.id) {
            return Ok(found);
        }
        let decide = |current: Option<&_>| {
            Ok(match current {
                Some(_) => Step::Keep,
                None => Step::Write(tenant.clone()),
            })
        };
        self.table.change(&tenant.key(), decide).await?.ok_or(Error::Stale)
    }

    /// Creates those that do not exist, in few commits, and leaves the others unchanged. Returns how many are new.
    /// After an error some may have been created.
    pub async fn create_many(&self, tenants: Vec<Tenant>) -> Result<usize, Error> {
        self.table.create_many(tenants).await
    }

    /// Those that were deleted, in the order of their deletion. One pass over memory.
    pub fn deleted(&self) -> Vec<Arc<Tenant>> {
        let mut found = Vec::new();
        self.table.view().scan(|tenant, _| {
            if tenant.deleted.is_some() {
                found.push(Arc::clone(tenant));
            }
            true
        });
        found.sort_by_key(|tenant| tenant.deleted.as_ref().map(|deletion| (deletion.at, tenant.id.clone())));
        found
    }

    /// Removes the record of a tenant that was erased; any other stays. Whether it is gone.
    pub async fn forget(&self, id: &TenantId) -> Result<bool, Error> {
        let is_erased = |tenant: &Tenant| tenant.deleted.as_ref().is_some_and(|found| found.stage == Stage::Erasing);
        Ok(self.table.remove(&key_of(id), is_erased).await?.is_some())
    }

    /// Read, change, compare-and-swap, again when somebody was faster. `Ok(None)`: no such tenant. `with` may run
    /// several times and must leave `id` alone.
    pub async fn change(
        &self,
        id: &TenantId,
        with: impl Fn(&mut Tenant) + Send + Sync,
    ) -> Result<Option<Arc<Tenant>>, Error> {
        let decide = |current: Option<&super::table::Read<Tenant>>| {
            let Some(current) = current else { return Ok(Step::Keep) };
            let mut tenant = Tenant::clone(&current.record);
            with(&mut tenant);
            if tenant.id != *id {
                return Err(Error::Invalid("a tenant keeps its id"));
            }
            Ok(if tenant == *current.record { Step::Keep } else { Step::Write(tenant) })
        };
        self.table.change(&key_of(id), decide).await
    }
}

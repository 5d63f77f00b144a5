//! Calls of Fathom's webhooks: proved, written down, acknowledged, and only then taken in.
//!
//! What a call says goes to the blobs first and its record second; the record is what counts, so a crash in between
//! leaves a blob that nobody asks for, and a crash after it a letter that is taken in at the next start. The record stays
//! when the letter is dealt with: Fathom calls again when it did not hear us, by the same name.

use std::net::IpAddr;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream;
use hyper::HeaderMap;
use time::OffsetDateTime;
use tokio::sync::Notify;

use super::Config;
use super::Error;
use super::Meetings;
use super::NewMeeting;
use super::hooks::seal_context;
use super::record::is_keepable;
use crate::failpoint;
use crate::ids::TenantId;
use crate::integrations::fathom::Meeting;
use crate::limits::Keyed;
use crate::store;
use crate::store::hooks::Hook;
use crate::store::hooks::HookId;
use crate::store::hooks::HookStatus;
use crate::store::inbox::Letter;
use crate::store::inbox::LetterId;
use crate::store::inbox::LetterStatus;
use crate::vault::Sealed;
use crate::webhooks::standard;

/// Hooks and addresses whose calls are counted.
const MAX_COUNTED: usize = 10_000;
/// Letters that are taken in at once.
const AT_ONCE: usize = 4;
/// Letters that one round takes in, and of those of one hook: the next round comes soon, and others have had a turn.
const ROUND: usize = 64;
const ROUND_SHARE: usize = 4;
/// One hook's letters that may wait: this part of all.
const WAITING_SHARE: usize = 4;
/// First and longest wait before the next attempt.
const FIRST_WAIT: Duration = Duration::from_secs(2);
const LONGEST_WAIT: Duration = Duration::from_mins(10);
/// Longest time between two looks at what waits.
const LOOK: Duration = Duration::from_secs(5);
/// The same, when there may be more.
const SOON: Duration = Duration::from_millis(100);

/// How often anybody may call.
pub(super) struct Limits {
    hooks: Mutex<Keyed<HookId>>,
    addresses: Mutex<Keyed<IpAddr>>,
    news: Notify,
}

impl Limits {
    pub(super) fn new(config: &Config) -> Self {
        let minute = Duration::from_mins(1);
        Self {
            hooks: Mutex::new(Keyed::new(config.hook_calls_per_minute, minute, MAX_COUNTED)),
            addresses: Mutex::new(Keyed::new(config.hook_calls_per_ip, minute, MAX_COUNTED)),
            news: Notify::new(),
        }
    }
}

/// What Fathom sent. The body is what was signed, byte by byte.
#[derive(Debug, Clone, Copy)]
pub struct Call<'a> {
    /// Its headers, with the signature.
    pub headers: &'a HeaderMap,
    /// The body.
    pub body: &'a Bytes,
}

impl Meetings {
    /// Largest body of a call.
    pub fn max_call_bytes(&self) -> usize {
        usize::try_from(self.inner.parts.config.max_hook_bytes).unwrap_or(usize::MAX)
    }

    /// Whether this address may call now; the error says how long until then.
    pub fn may_call(&self, from: IpAddr, now: Instant) -> Result<(), Duration> {
        self.inner.limits.addresses.lock().unwrap_or_else(PoisonError::into_inner).check(&from, now)
    }

    /// The hook at an address, before its body is read: none for a stranger. The error says how long until it may call.
    pub fn hook_at(&self, opaque: &str, now: Instant) -> Result<Option<HookId>, Duration> {
        let Some(id) = HookId::parse(opaque) else { return Ok(None) };
        let is_active = |hook: &Hook| matches!(hook.status, HookStatus::Active { .. });
        if !self.inner.parts.hooks.find(&id).is_some_and(|hook| is_active(&hook)) {
            return Ok(None);
        }
        self.inner.limits.hooks.lock().unwrap_or_else(PoisonError::into_inner).check(&id, now)?;
        Ok(Some(id))
    }

    /// Takes a call: when this returns, what it says is on disk and will be taken in. A name that was heard before is
    /// acknowledged and changes nothing.
    pub async fn receive(&self, hook: &HookId, call: Call<'_>, now: OffsetDateTime) -> Result<(), Error> {
        let parts = &self.inner.parts;
        let hook = parts.hooks.find(hook).ok_or(Error::Forged)?;
        let HookStatus::Active { secret, .. } = &hook.status else { return Err(Error::Forged) };
        let sealed = Sealed(secret.clone());
        let secret = parts.vault.unseal(&hook.tenant, &seal_context(&hook.id), &sealed).await?;
        let key = standard::Key::read(&secret).map_err(|_| Error::Forged)?;
        let verified = standard::verify(&[key], call.headers, call.body, now).map_err(|_| Error::Forged)?;
        let letter = LetterId::of(&hook.id, &verified.id);
        if parts.inbox.find(&letter).is_some() {
            return Ok(());
        }
        let meeting: Meeting = serde_json::from_slice(call.body).map_err(|_| Error::NotAMeeting)?;
        if !is_keepable(&meeting) {
            return Err(Error::NotAMeeting);
        }
        let (waiting, of_hook) = parts.inbox.waiting(&hook.id);
        let most = parts.config.max_inbox;
        if waiting >= most || of_hook >= most.div_ceil(WAITING_SHARE) {
            return Err(Error::InboxFull);
        }
        match parts.blobs.put(&letter.blob(), call.body.clone()).await {
            // Of an attempt that was interrupted; the same name says the same.
            Ok(()) | Err(store::Error::Exists) => {}
            Err(error) => return Err(error.into()),
        }
        let status = LetterStatus::Waiting { attempts: 0, next_at: now.unix_timestamp() };
        let deliver_for = hook.auto_deliver.then(|| hook.user.clone());
        let record = Letter { id: letter, tenant: hook.tenant.clone(), status, deliver_for, received_at: now };
        parts.inbox.create(record).await?;
        failpoint::hit("meetings.hook_stored");
        parts.hooks.change(&hook.id, |hook| hook.heard_at = Some(now)).await?;
        self.inner.limits.news.notify_one();
        Ok(())
    }

    /// Takes in what waits, for as long as the program runs.
    pub(super) async fn take_in(self) {
        let shutdown = self.inner.parts.shutdown.clone();
        loop {
            let now = OffsetDateTime::now_utc();
            let due = self.inner.parts.inbox.due(now.unix_timestamp(), ROUND, ROUND_SHARE);
            let wait = if due.is_empty() { LOOK } else { SOON };
            let round = stream::iter(due).for_each_concurrent(AT_ONCE, async |letter| self.deal_with(&letter).await);
            tokio::select! {
                () = round => {}
                () = shutdown.begun() => return,
            }
            tokio::select! {
                () = self.inner.limits.news.notified() => {}
                () = tokio::time::sleep(wait) => {}
                () = shutdown.begun() => return,
            }
        }
    }

    async fn deal_with(&self, letter: &Letter) {
        let LetterStatus::Waiting { attempts, .. } = letter.status else { return };
        let done = self.open_letter(letter).await;
        let status = becomes(letter, attempts, &done, OffsetDateTime::now_utc(), self.inner.parts.config.inbox_keep);
        match (&status, &done) {
            (LetterStatus::Waiting { .. }, Err(error)) => {
                tracing::info!(tenant.id = %letter.tenant, attempts, %error, "a webhook call is taken in later");
            }
            (_, Err(error)) => tracing::warn!(tenant.id = %letter.tenant, %error, "a webhook call cannot be taken in"),
            (_, Ok(())) => {}
        }
        let is_over = !matches!(status, LetterStatus::Waiting { .. });
        let settled = async {
            self.inner.parts.inbox.settle(&letter.id, status).await?;
            if is_over {
                self.inner.parts.blobs.delete(&letter.id.blob()).await?;
            }
            Ok::<_, store::Error>(())
        };
        if let Err(error) = settled.await {
            tracing::info!(tenant.id = %letter.tenant, %error, "what became of a webhook call is not noted yet");
        }
    }

    async fn open_letter(&self, letter: &Letter) -> Result<(), Error> {
        let parts = &self.inner.parts;
        // Without what it says there is nothing to do: it was dealt with, and that was not noted.
        let Some(body) = parts.blobs.get(&letter.id.blob()).await? else { return Ok(()) };
        let meeting: Meeting = serde_json::from_slice(&body).map_err(|_| Error::NotAMeeting)?;
        self.ingest(&letter.tenant, &meeting).await?;
        failpoint::hit("meetings.ingested");
        // Letters of an earlier version say nothing of it; their hooks do.
        let of_hook = || parts.hooks.find(letter.id.hook()).filter(|hook| hook.auto_deliver);
        let user = letter.deliver_for.clone().or_else(|| of_hook().map(|hook| hook.user.clone()));
        if let (Some(user), Some(auto_deliver)) = (user, &parts.auto_deliver) {
            let (recording_id, title) = (meeting.recording_id, meeting.name().to_owned());
            let new = NewMeeting { tenant: letter.tenant.clone(), user, recording_id, title };
            auto_deliver(new).await.map_err(|super::NotYet| Error::Busy)?;
        }
        Ok(())
    }

    /// Removes what calls said that were interrupted before they were letters, or after they were dealt with. Before
    /// any call is taken.
    pub(super) async fn burn_unasked(&self) -> Result<(), Error> {
        let parts = &self.inner.parts;
        for blob in parts.blobs.list("").await? {
            let letter = LetterId::of_blob(&blob.key).and_then(|id| parts.inbox.find(&id));
            if letter.is_none_or(|letter| !letter.is_waiting()) {
                parts.blobs.delete(&blob.key).await?;
            }
        }
        Ok(())
    }

    /// How many calls are kept for a tenant.
    pub fn kept_calls(&self, tenant: &TenantId) -> usize {
        self.inner.parts.inbox.of_tenant(tenant).len()
    }

    /// Removes what is kept outside a tenant's instance: calls that were taken, and the addresses they came by.
    pub async fn erase(&self, tenant: &TenantId) -> Result<(), Error> {
        for letter in self.inner.parts.inbox.of_tenant(tenant) {
            self.forget(&letter.id).await?;
        }
        for hook in self.inner.parts.hooks.of_tenant(tenant) {
            self.inner.parts.hooks.remove(&hook.id).await?;
        }
        Ok(())
    }

    /// Forgets a letter and what it said.
    pub(super) async fn forget(&self, letter: &LetterId) -> Result<(), Error> {
        self.inner.parts.blobs.delete(&letter.blob()).await?;
        self.inner.parts.inbox.remove(letter).await?;
        Ok(())
    }
}

/// What becomes of a letter after an attempt: it was acknowledged, so what fails in passing is tried for as long as
/// letters are kept.
fn becomes(
    letter: &Letter,
    attempts: u32,
    done: &Result<(), Error>,
    now: OffsetDateTime,
    keep: Duration,
) -> LetterStatus {
    match done {
        Ok(()) => LetterStatus::Done,
        Err(error) if error.is_passing() && now - letter.received_at <= keep => {
            let wait = FIRST_WAIT.saturating_mul(1 << attempts.min(10)).min(LONGEST_WAIT);
            LetterStatus::Waiting { attempts: attempts.saturating_add(1), next_at: (now + wait).unix_timestamp() }
        }
        Err(error) => LetterStatus::Refused { reason: error.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;
    use crate::ids::TenantId;

    #[test]
    fn what_was_acknowledged_is_tried_for_as_long_as_it_is_kept() {
        let now = datetime!(2026-01-01 12:00 UTC);
        let letter = Letter {
            id: LetterId::of(&HookId::random(), "x"),
            tenant: TenantId::parse("ada").unwrap(),
            status: LetterStatus::Waiting { attempts: 0, next_at: 0 },
            deliver_for: None,
            received_at: now,
        };
        let keep = Duration::from_hours(24 * 7);
        let after = |attempts, error, at| becomes(&letter, attempts, &Err(error), at, keep);
        let next_at = (now + keep + LONGEST_WAIT).unix_timestamp();
        assert_eq!(after(5000, Error::Busy, now + keep), LetterStatus::Waiting { attempts: 5001, next_at });
        let over = now + keep + Duration::from_secs(1);
        assert!(matches!(after(1, Error::Busy, over), LetterStatus::Refused { .. }));
        assert!(matches!(after(0, Error::NotAMeeting, now), LetterStatus::Refused { .. }));
        assert_eq!(becomes(&letter, 0, &Ok(()), over, keep), LetterStatus::Done);
    }
}

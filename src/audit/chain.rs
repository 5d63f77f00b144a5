//! The chain in the store: entries under `audit.<segment>.<number>`, a thousand to a segment, and the newest of them
//! named by `audithead.last`.
//!
//! Entries are written before the head. Between the two, entries stand beyond the head; the next start takes them in.

use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use sha2::Digest;
use sha2::Sha256;
use time::OffsetDateTime;

use super::Entry;
use super::Error;
use super::stamp;
use crate::ids::TenantId;
use crate::store::Revision;
use crate::store::Store;

/// Entries in one segment.
const SEGMENT: u64 = 1_000;
const HEAD: &str = "audithead.last";

/// An entry as it is written.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logged {
    /// Its number, from 1.
    pub seq: u64,
    /// When it was written.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// Who: `user:<id>`, `api_key:<id>`, `operator` or `system`.
    pub actor: String,
    /// What.
    pub action: String,
    /// In whose tenant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tenant: Option<TenantId>,
    /// What it was done to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// From where.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip: Option<IpAddr>,
    /// Particulars.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub detail: Value,
    /// The hash of the entry before; empty for the first.
    pub prev: String,
    /// The hash of everything above.
    pub hash: String,
}

impl Logged {
    fn after(end: &End, entry: Entry) -> Result<Self, Error> {
        let mut logged = Self {
            seq: end.seq + 1,
            at: stamp(),
            actor: entry.actor.text(),
            action: entry.action.to_owned(),
            tenant: entry.tenant,
            subject: entry.subject,
            ip: entry.ip,
            detail: entry.detail,
            prev: end.hash.clone(),
            hash: String::new(),
        };
        logged.hash = logged.compute()?;
        Ok(logged)
    }

    /// SHA-256 over the entry as JSON with an empty hash.
    fn compute(&self) -> Result<String, Error> {
        let bare = Self { hash: String::new(), ..self.clone() };
        let bytes = serde_json::to_vec(&bare).map_err(|_| Error::Unreadable(self.seq))?;
        let mut text = String::with_capacity(64);
        for byte in Sha256::digest(bytes) {
            use std::fmt::Write;
            // Writing to a string cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        Ok(text)
    }

    fn end(&self) -> End {
        End { seq: self.seq, hash: self.hash.clone() }
    }
}

/// Where the chain ends.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct End {
    seq: u64,
    hash: String,
}

/// What [`verify`](super::Audit::verify) found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// Whether everything follows.
    pub intact: bool,
    /// Entries that were looked at and follow.
    pub entries: u64,
    /// The number of the first entry that is wrong.
    pub broken_at: Option<u64>,
    /// What is wrong there.
    pub reason: Option<&'static str>,
    /// The hash of the last good entry.
    pub hash: String,
}

/// Reads and writes the chain.
#[derive(Debug, Clone)]
pub(super) struct Log {
    store: Arc<dyn Store>,
}

fn segment_prefix(segment: u64) -> String {
    format!("audit.{segment:010}.")
}

fn key_of(seq: u64) -> String {
    format!("{}{seq:013}", segment_prefix(seq / SEGMENT))
}

impl Log {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    async fn head(&self) -> Result<(End, Option<Revision>), Error> {
        match self.store.get(HEAD).await? {
            None => Ok((End::default(), None)),
            Some(entry) => {
                let end = serde_json::from_slice(&entry.value).map_err(|_| Error::Unreadable(0))?;
                Ok((end, Some(entry.revision)))
            }
        }
    }

    async fn find(&self, seq: u64) -> Result<Option<Logged>, Error> {
        let Some(entry) = self.store.get(&key_of(seq)).await? else { return Ok(None) };
        serde_json::from_slice(&entry.value).map(Some).map_err(|_| Error::Unreadable(seq))
    }

    /// The end of the chain: the head, and what was written after it before a crash.
    pub(super) async fn end(&self) -> Result<End, Error> {
        let (mut end, _) = self.head().await?;
        while let Some(next) = self.find(end.seq + 1).await? {
            end = next.end();
        }
        Ok(end)
    }

    /// Writes entries after an end; the new end. On an error the end has to be [found](Self::end) again.
    pub(super) async fn append(&self, mut end: End, entries: Vec<Entry>) -> Result<End, Error> {
        let mut records = Vec::with_capacity(entries.len());
        for entry in entries {
            let logged = Logged::after(&end, entry)?;
            let value = serde_json::to_vec(&logged).map_err(|_| Error::Unreadable(logged.seq))?;
            end = logged.end();
            records.push((key_of(logged.seq), Bytes::from(value)));
        }
        for answer in self.store.create_many(records).await? {
            answer?;
        }
        let value = Bytes::from(serde_json::to_vec(&end).map_err(|_| Error::Unreadable(0))?);
        match self.head().await?.1 {
            Some(revision) => self.store.update(HEAD, value, revision).await?,
            None => self.store.create(HEAD, value).await?,
        };
        Ok(end)
    }

    /// The number of the newest entry that an end names.
    pub(super) fn number(end: &End) -> u64 {
        end.seq
    }

    async fn segment(&self, segment: u64) -> Result<Vec<Logged>, Error> {
        let entries = self.store.list(&segment_prefix(segment)).await?;
        let read = |entry: &crate::store::Entry| serde_json::from_slice(&entry.value).ok();
        Ok(entries.iter().filter_map(read).collect())
    }

    pub(super) async fn newest(&self, before: Option<u64>, limit: usize) -> Result<Vec<Logged>, Error> {
        let newest = self.head().await?.0.seq;
        let mut below = before.unwrap_or(u64::MAX).min(newest + 1);
        let mut found = Vec::new();
        while below > 0 && found.len() < limit {
            let segment = (below - 1) / SEGMENT;
            let mut entries = self.segment(segment).await?;
            entries.retain(|entry| entry.seq < below);
            found.extend(entries.into_iter().rev().take(limit - found.len()));
            below = segment * SEGMENT;
        }
        Ok(found)
    }

    pub(super) async fn after(&self, seq: u64, limit: usize) -> Result<Vec<Logged>, Error> {
        let newest = self.head().await?.0.seq;
        let mut found: Vec<Logged> = Vec::new();
        let mut segment = (seq + 1) / SEGMENT;
        while segment <= newest / SEGMENT && found.len() < limit {
            let mut entries = self.segment(segment).await?;
            entries.retain(|entry| entry.seq > seq && entry.seq <= newest);
            found.extend(entries.into_iter().take(limit - found.len()));
            segment += 1;
        }
        Ok(found)
    }

    pub(super) async fn verify(&self) -> Result<Verdict, Error> {
        // The head first: what is written meanwhile stands beyond it.
        let (head, _) = self.head().await?;
        let mut end = End::default();
        let broken = |end: &End, at, reason| Verdict {
            intact: false,
            entries: end.seq,
            broken_at: Some(at),
            reason: Some(reason),
            hash: end.hash.clone(),
        };
        for segment in 0..=head.seq / SEGMENT {
            for entry in self.store.list(&segment_prefix(segment)).await? {
                let next = end.seq + 1;
                if next > head.seq {
                    break;
                }
                let Ok(logged) = serde_json::from_slice::<Logged>(&entry.value) else {
                    return Ok(broken(&end, next, "the entry cannot be read"));
                };
                if *entry.key != *key_of(next) || logged.seq != next {
                    return Ok(broken(&end, next, "the entry is missing"));
                }
                if logged.prev != end.hash {
                    return Ok(broken(&end, next, "the entry does not follow from the one before"));
                }
                if logged.compute()? != logged.hash {
                    return Ok(broken(&end, next, "the entry was changed"));
                }
                end = logged.end();
            }
        }
        if end.seq < head.seq {
            return Ok(broken(&end, end.seq + 1, "the end of the log is missing"));
        }
        if end != head {
            return Ok(broken(&end, end.seq, "the last entry is not the one that was written last"));
        }
        Ok(Verdict { intact: true, entries: end.seq, broken_at: None, reason: None, hash: end.hash })
    }
}

//! What a snapshot says of itself, and the list of its files.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;

use super::tree::Stamp;
use crate::ids::TenantId;

/// The version of the format that this program writes, and the newest that it reads.
pub(super) const FORMAT: u32 = 1;

const TIME: &[BorrowedFormatItem<'_>] =
    format_description!("[year][month][day]T[hour][minute][second][subsecond digits:3]");

/// Names a snapshot: when it was taken, to the millisecond, and a random part. Sorts by time.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct SnapshotId(String);

/// It is not the name of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a backup's id looks like 20260102T030405678-0a1b2c3d")]
pub struct InvalidSnapshotId;

impl SnapshotId {
    pub(super) fn new(at: OffsetDateTime) -> Self {
        let time = at.format(TIME).unwrap_or_default();
        Self(format!("{time}-{:08x}", rand::random::<u32>()))
    }

    /// Parses the name.
    pub fn parse(text: &str) -> Result<Self, InvalidSnapshotId> {
        let (time, random) = text.split_once('-').ok_or(InvalidSnapshotId)?;
        let is_hex = random.len() == 8 && random.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !is_hex || time.len() != 18 || moment(time).is_none() {
            return Err(InvalidSnapshotId);
        }
        Ok(Self(text.to_owned()))
    }

    /// When it was taken.
    pub fn at(&self) -> OffsetDateTime {
        self.0.split_once('-').and_then(|(time, _)| moment(time)).unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn moment(text: &str) -> Option<OffsetDateTime> {
    time::PrimitiveDateTime::parse(text, TIME).ok().map(time::PrimitiveDateTime::assume_utc)
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for SnapshotId {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

/// Content in chunks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content {
    pub(super) bytes: u64,
    /// Of the whole, in hex.
    pub(super) sha256: String,
    /// The chunks' names, in order.
    pub(super) chunks: Vec<String>,
}

/// A file of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Item {
    /// Relative to the data directory.
    pub(super) path: String,
    #[serde(flatten)]
    pub(super) content: Content,
    /// What the original was when it was read; databases have none, because they are not read as files.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) stamp: Option<Stamp>,
}

/// Who had a snapshot taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The schedule.
    Schedule,
    /// An operator.
    Operator,
    /// The owner of the tenant.
    Owner,
}

/// A snapshot. Whole as soon as this is in the store: it is written last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format.
    pub(super) format: u32,
    /// Its name.
    pub id: SnapshotId,
    /// Whose it is.
    pub tenant: TenantId,
    /// When it was taken.
    #[serde(with = "time::serde::rfc3339")]
    pub taken_at: OffsetDateTime,
    /// Who had it taken.
    pub reason: Reason,
    /// How many times the instance had been started.
    pub epoch: u64,
    /// The template of the tenant.
    pub template: String,
    /// The version of it that the data has.
    pub template_hash: Option<String>,
    /// The version of `PocketBase` that the data has; empty for the control database.
    pub pocketbase: String,
    /// The pocketfleet that took it.
    pub pocketfleet: String,
    /// Its files.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Bytes that were not in the store before.
    pub new_bytes: u64,
    /// Files that a record names and that were not there.
    pub missing: u64,
    /// Links, pipes and other things in its folders, which are left out.
    pub skipped: u64,
    /// What the database's file was: when it is the same, nothing changed.
    pub(super) fingerprint: String,
    /// The list of files.
    pub(super) index: Content,
}

pub(super) fn encode(items: &[Item]) -> serde_json::Result<Vec<u8>> {
    let mut lines = Vec::new();
    for item in items {
        serde_json::to_writer(&mut lines, item)?;
        lines.push(b'\n');
    }
    Ok(lines)
}

/// Reads a list of files. None: it is not one, or names a file that no data directory has, or one twice, or one where
/// another has a folder.
pub(super) fn decode(lines: &[u8]) -> Option<Vec<Item>> {
    let mut items: Vec<Item> = Vec::new();
    for line in lines.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let item: Item = serde_json::from_slice(line).ok()?;
        if items.len() >= super::tree::MOST_FILES + 8 || !super::tree::is_path(&item.path) {
            return None;
        }
        items.push(item);
    }
    let paths: HashSet<&str> = items.iter().map(|item| item.path.as_str()).collect();
    let is_in_a_file = |path: &str| path.match_indices('/').any(|(at, _)| paths.contains(&path[..at]));
    let is_sound = paths.len() == items.len() && !paths.iter().any(|path| is_in_a_file(path));
    is_sound.then_some(items)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_time_and_nothing_else_is_one() {
        let at = time::macros::datetime!(2026-11-21 13:37:01.042 UTC);
        let id = SnapshotId::new(at);
        assert_eq!(id.at(), at);
        assert_eq!(SnapshotId::parse(id.as_str()).unwrap(), id);
        for bad in [
            "",
            "latest",
            "../../x",
            "20261321T000000000-00000000",
            "20261121T133701042-0000000g",
            "20261121T133701042",
        ] {
            assert!(SnapshotId::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_list_with_a_path_that_leads_out_is_none() {
        let item = |path: &str| Item {
            path: path.to_owned(),
            content: Content { bytes: 1, sha256: "x".to_owned(), chunks: vec!["y".to_owned()] },
            stamp: None,
        };
        let good = [item("data.db"), item("storage/a/b")];
        assert_eq!(decode(&encode(&good).unwrap()).unwrap(), good);
        for bad in ["../data.db", "/data.db", "storage/../../x"] {
            assert!(decode(&encode(&[item(bad)]).unwrap()).is_none(), "{bad}");
        }
        assert!(decode(&encode(&[item("data.db"), item("data.db")]).unwrap()).is_none());
        assert!(decode(&encode(&[item("storage/a"), item("storage/a-b"), item("storage/a/b")]).unwrap()).is_none());
        assert!(decode(b"{}\n").is_none());
    }
}

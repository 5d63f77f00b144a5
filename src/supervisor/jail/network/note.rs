//! What the data directory remembers of the rules: whose they are, and where they may be in force.
//!
//! The path of a data directory does not tell two pocketfleets apart that run in containers on one network, so a random
//! number in it does. And where `nft` is gone, nobody but this note knows that the kernel may still have a table.

use std::fs::File;
use std::io;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use serde::Deserialize;
use serde::Serialize;

use crate::supervisor::process;

/// In the data directory. Not part of a backup: what is restored elsewhere is another pocketfleet.
const NAME: &str = "network.json";

/// The content of the file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Note {
    /// Random, made by the first start at level 3.
    pub(super) id: String,
    /// Noted before the kernel gets the rules, and until it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    in_force: Option<Place>,
}

/// A table, and the kernel and network that have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    boot: String,
    namespace: u64,
    table: String,
}

impl Note {
    /// None where no start has come to level 3, or where it cannot be read.
    pub(super) fn read(data: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(data.join(NAME)).ok()?).ok()
    }

    /// The one that is there, or a new one. Nothing is written.
    pub(super) fn read_or_make(data: &Path) -> Self {
        Self::read(data).unwrap_or_else(|| Self { id: format!("{:032x}", rand::random::<u128>()), in_force: None })
    }

    /// Notes that a table is about to be in force here.
    pub(super) fn begin(mut self, data: &Path, table: String) -> io::Result<()> {
        let (boot, namespace) = here()?;
        self.in_force = Some(Place { boot, namespace, table });
        self.write(data)
    }

    /// Notes that none is.
    pub(super) fn end(mut self, data: &Path) -> io::Result<()> {
        if self.in_force.take().is_none() { Ok(()) } else { self.write(data) }
    }

    /// The table that may be in force here: the machine runs since it was written, and on the same network.
    pub(super) fn table(&self) -> Option<&str> {
        let place = self.in_force.as_ref()?;
        // Where that cannot be told, it may.
        let is_here = here().map_or(true, |(boot, namespace)| boot == place.boot && namespace == place.namespace);
        is_here.then_some(&*place.table)
    }

    fn write(&self, data: &Path) -> io::Result<()> {
        let fresh = data.join(format!(".{NAME}.new"));
        let mut file = File::options().create(true).truncate(true).write(true).mode(0o600).open(&fresh)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        // A machine that lost power keeps no rules, but an empty note would lose the number.
        file.sync_all()?;
        std::fs::rename(fresh, data.join(NAME))
    }
}

/// The kernel's run, and the network of this thread.
fn here() -> io::Result<(String, u64)> {
    Ok((process::boot_id()?, std::fs::metadata("/proc/thread-self/ns/net")?.ino()))
}

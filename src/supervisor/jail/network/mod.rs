//! Level 3: rules of the kernel's packet filter that know tenants by their users.
//!
//! A tenant's processes can answer connections to the address that is theirs, and begin those that their template
//! lists; nothing else that they send leaves the machine's network stack, wherever they bound it to. One table
//! (`rules`) holds that for all tenants of this pocketfleet and is never about anybody else. It is written by `nft`
//! (`nft`), one transaction at a time, and looked at every few seconds: somebody who flushes the machine's rules takes
//! ours along.
//!
//! Invariant: a route opens only after the kernel has the entries of its user ([`Network::admit`]). The entries stay
//! while an instance sleeps, and its next start takes the same address, so a wake costs nothing here but the first.
//!
//! The rules stay in force when this process dies or leaves, as instances do; they go when it has stopped them all.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::SocketAddrV4;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use serde::Serialize;
use sha2::Digest;
use sha2::Sha256;
use tokio_util::sync::CancellationToken;

use crate::telemetry::Metrics;

mod nft;
mod note;
mod rules;

pub use nft::Error;
pub(super) use nft::Mode;
use note::Note;
use rules::Element;
use rules::Owner;
pub(crate) use rules::Reach;

/// Where the machine's name servers are written down.
const RESOLVERS: &str = "/etc/resolv.conf";

/// The table, for operators.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, utoipa::ToSchema)]
#[schema(as = NetworkReport)]
pub struct Report {
    /// Its name: `nft list table inet <name>` shows it.
    pub table: String,
    /// How often it was found changed by somebody else, or could not be seen, and was put back.
    pub repaired: u64,
    /// Why it is not in force, or not known to be, while it cannot be looked at or put back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<String>,
}

/// The handle of the rules. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Network {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    owner: Owner,
    data: PathBuf,
    state: Mutex<State>,
    /// Held during a run of `nft`, so that what is noted as in force is.
    writing: Mutex<()>,
}

#[derive(Debug, Default)]
struct State {
    wanted: BTreeMap<u32, Wanted>,
    in_force: BTreeMap<u32, BTreeSet<Element>>,
    /// Users whose entries are to be written.
    changed: BTreeSet<u32>,
    resolvers: BTreeSet<Element>,
    /// The rules as the kernel printed them when they were written.
    chains: String,
    repaired: u64,
    lost: Option<String>,
}

/// What is to hold for one user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    /// The address of the instance, also while it sleeps.
    instance: Option<SocketAddrV4>,
    /// Addresses of trial starts.
    trials: BTreeSet<SocketAddrV4>,
    reach: Reach,
}

impl Wanted {
    fn elements(&self, owner: Owner, user: u32) -> BTreeSet<Element> {
        let mut elements = self.reach.elements(user, self.instance.iter().chain(&self.trials).copied());
        if !owner.has(user) {
            elements.insert(("others", user.to_string()));
        }
        elements
    }
}

/// Leave for a trial start to answer at an address; given back when dropped.
#[derive(Debug)]
pub(crate) struct Trial {
    network: Network,
    user: u32,
    address: SocketAddrV4,
}

impl Drop for Trial {
    fn drop(&mut self) {
        let mut state = self.network.state();
        if let Some(wanted) = state.wanted.get_mut(&self.user) {
            wanted.trials.remove(&self.address);
        }
        // Written with the next change: by itself the entry lets only this user answer there.
        state.changed.insert(self.user);
    }
}

/// The same table.
impl PartialEq for Network {
    fn eq(&self, other: &Self) -> bool {
        self.inner.owner == other.inner.owner
    }
}

impl Eq for Network {}

/// What is in the way of level 3, for these users and this data directory. Changes nothing. Blocks.
pub(super) fn lacks(data: &Path, base: u32, count: u32) -> Option<String> {
    let owner = known(data, base, count);
    if let Err(error) = nft::run(Mode::Check, &rules::whole(owner, &[], std::iter::empty())) {
        return Some(format!("level 3 takes nf_tables, CAP_NET_ADMIN and the program nft: {error}"));
    }
    let stranger = strangers(data, base, count).first().copied()?;
    Some(format!(
        "process {stranger} runs as one of the users {base} to {} and is not an instance of this pocketfleet: set \
         isolation.uid_base to users that nobody else has",
        u64::from(base) + u64::from(count) - 1
    ))
}

/// The table of another pocketfleet that would cut off our users. Where it cannot be looked for there is none. Blocks.
pub(super) fn rival(data: &Path, base: u32, count: u32) -> Option<String> {
    let owner = known(data, base, count);
    let found = nft::tables().unwrap_or_default();
    found.into_iter().find(|name| Owner::of(name).is_some_and(|other| owner.is_hurt_by(other)))
}

/// Removes what earlier runs of this pocketfleet left in force: below level 3 nobody keeps entries there, and no instance
/// of the same users could be reached. Or only looks whether that would work. Blocks.
pub(super) fn clear(data: &Path, mode: Mode) -> Result<(), String> {
    // Without a note no start of this one came to level 3.
    let Some(note) = Note::read(data) else { return Ok(()) };
    let own = short(data, &note.id);
    let is_own = |name: &String| Owner::of(name).is_some_and(|other| other.data == own);
    let (tables, done) = match nft::tables() {
        Ok(tables) => {
            let tables: Vec<String> = tables.into_iter().filter(is_own).collect();
            let done = if tables.is_empty() { Ok(()) } else { nft::run(mode, &rules::without(&tables)) };
            (tables.join(", inet "), done)
        }
        Err(error) => match note.table() {
            Some(table) => (table.to_owned(), Err(error)),
            None => return Ok(()),
        },
    };
    if let Err(error) = done {
        return Err(format!(
            "the rules of an earlier run at level 3, the nftables table inet {tables}, may be in force and hold for the \
             users of level 2: delete it with nft, or restart the machine ({error})"
        ));
    }
    if mode == Mode::Apply {
        if !tables.is_empty() {
            tracing::info!(network.table = tables, "removed the rules of an earlier run at level 3");
        }
        forget(data);
    }
    Ok(())
}

/// Whose rules ours would be, as far as that is known before the first time.
fn known(data: &Path, base: u32, count: u32) -> Owner {
    let note = Note::read(data);
    Owner { data: short(data, note.as_ref().map_or("", |note| &note.id)), base, count }
}

/// A data directory in short. The path tells copies apart, and the number those who call their own by the same path.
fn short(data: &Path, id: &str) -> u32 {
    let data = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
    let data = data.canonicalize().unwrap_or(data);
    let hash = Sha256::new().chain_update(data.as_os_str().as_encoded_bytes()).chain_update([0]).chain_update(id);
    hash.finalize().iter().take(4).fold(0, |short, byte| short << 8 | u32::from(*byte))
}

/// Notes that no table of ours is in force.
fn forget(data: &Path) {
    if let Some(Err(error)) = Note::read(data).map(|note| note.end(data)) {
        tracing::warn!(%error, "note that the rules of the network are gone");
    }
}

/// Processes of these users that do not work below the data directory. Whoever bakes a template for a check works
/// elsewhere, as the first user.
fn strangers(data: &Path, base: u32, count: u32) -> Vec<i32> {
    let data = data.canonicalize().unwrap_or_else(|_| data.to_owned());
    let is_one = |pid: &i32| {
        let folder = format!("/proc/{pid}");
        let user = std::fs::metadata(&folder).map_or(0, |found| found.uid());
        let is_tenant = user > base && u64::from(user) < u64::from(base) + u64::from(count);
        is_tenant && std::fs::read_link(format!("{folder}/cwd")).is_ok_and(|cwd| !cwd.starts_with(&data))
    };
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let pids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(is_one).collect()
}

impl Network {
    /// Puts the rules into force. Entries of an earlier run stay: its instances may still be there, and their addresses
    /// are taken again. Blocks.
    pub(super) fn set_up(data: &Path, base: u32, count: u32) -> Result<Self, Error> {
        let note = Note::read_or_make(data);
        let owner = Owner { data: short(data, &note.id), base, count };
        let is_earlier =
            |name: &String| Owner::of(name).is_some_and(|other| other.data == owner.data && other != owner);
        let earlier: Vec<String> = nft::tables()?.into_iter().filter(is_earlier).collect();
        let mut kept = BTreeSet::new();
        for table in earlier.iter().chain([&owner.table()]) {
            kept.extend(nft::list(table)?.map(|listing| rules::read(&listing).elements).unwrap_or_default());
        }
        let state = State { wanted: remembered(&kept), ..State::default() };
        let inner = Inner { owner, data: data.to_owned(), state: Mutex::new(state), writing: Mutex::new(()) };
        let network = Self { inner: Arc::new(inner) };
        note.begin(data, owner.table()).map_err(Error::Note)?;
        network.write_all(&earlier)?;
        Ok(network)
    }

    /// Sees to it that the rules are about a user, before anything runs as it: one that was given before the range was
    /// moved is not among those that they name.
    pub(crate) async fn cover(&self, user: u32) -> Result<(), Error> {
        let is_covered = {
            let mut state = self.state();
            let is_covered = self.inner.owner.has(user) || state.in_force.contains_key(&user);
            if !is_covered {
                state.wanted.entry(user).or_default();
                state.changed.insert(user);
            }
            is_covered && state.lost.is_none()
        };
        if is_covered { Ok(()) } else { self.flush().await }
    }

    /// Sees to it that a user's process can be reached at an address and connect to where its template says. Resolves
    /// when the kernel has it; at once when it had.
    pub(crate) async fn admit(&self, user: u32, address: SocketAddr, reach: Reach) -> Result<(), Error> {
        let SocketAddr::V4(address) = address else { return Ok(()) };
        let is_there = {
            let mut state = self.state();
            let wanted = state.wanted.entry(user).or_default();
            let is_same = wanted.instance == Some(address) && wanted.reach == reach;
            wanted.instance = Some(address);
            wanted.reach = reach;
            if !is_same {
                state.changed.insert(user);
            }
            is_same && state.lost.is_none() && !state.changed.contains(&user) && state.in_force.contains_key(&user)
        };
        if is_there { Ok(()) } else { self.flush().await }
    }

    /// The same for a trial start of the user's data, which reaches nothing.
    pub(crate) async fn admit_trial(&self, user: u32, address: SocketAddr) -> Result<Option<Trial>, Error> {
        let SocketAddr::V4(address) = address else { return Ok(None) };
        let trial = Trial { network: self.clone(), user, address };
        {
            let mut state = self.state();
            state.wanted.entry(user).or_default().trials.insert(address);
            state.changed.insert(user);
        }
        self.flush().await?;
        Ok(Some(trial))
    }

    /// The address that a user's entries are about.
    pub(crate) fn address(&self, user: u32) -> Option<SocketAddr> {
        self.state().wanted.get(&user).and_then(|wanted| wanted.instance).map(SocketAddr::V4)
    }

    /// Takes another address at the next start: somebody else has this one.
    pub(crate) fn forget(&self, user: u32) {
        if let Some(wanted) = self.state().wanted.get_mut(&user) {
            wanted.instance = None;
        }
    }

    /// For operators.
    pub fn report(&self) -> Report {
        let state = self.state();
        Report { table: self.inner.owner.table(), repaired: state.repaired, lost: state.lost.clone() }
    }

    /// Looks at the rules again and again and puts them back when somebody changed them, until cancelled.
    pub(crate) async fn watch(self, every: Duration, metrics: Arc<Metrics>, ended: CancellationToken) {
        let mut known = 0;
        loop {
            tokio::select! {
                () = tokio::time::sleep(every) => {}
                () = ended.cancelled() => return,
            }
            let of = self.clone();
            // The task does not panic, and a runtime that goes down ends this one too.
            drop(tokio::task::spawn_blocking(move || of.look()).await);
            let (repaired, is_lost) = {
                let state = self.state();
                (state.repaired, state.lost.is_some())
            };
            metrics.network_repaired.inc_by(repaired - known);
            metrics.network_lost.set(i64::from(is_lost));
            known = repaired;
        }
    }

    /// Removes the table: nobody runs any more. Blocks.
    pub(crate) fn take_down(&self) {
        let _writing = self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.inner.owner.table();
        if let Err(error) = nft::run(Mode::Apply, &format!("add table inet {table}\ndelete table inet {table}\n")) {
            return tracing::warn!(%error, network.table = table, "remove the rules of the network");
        }
        forget(&self.inner.data);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Values are replaced as wholes, so a panic elsewhere leaves nothing half done.
        self.inner.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn flush(&self) -> Result<(), Error> {
        let of = self.clone();
        let done = tokio::task::spawn_blocking(move || of.write_changes());
        done.await.unwrap_or_else(|error| Err(Error::Io(std::io::Error::other(error))))
    }

    /// Writes every change that waits, whoever made it: those who come at once share one transaction.
    fn write_changes(&self) -> Result<(), Error> {
        let writing = self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (text, fresh) = {
            let mut state = self.state();
            if state.lost.is_some() {
                drop(state);
                return self.put_back(&writing);
            }
            let users = std::mem::take(&mut state.changed);
            let fresh: Vec<(u32, BTreeSet<Element>)> = users
                .into_iter()
                .map(|user| {
                    let elements = state.wanted.get(&user).map(|wanted| wanted.elements(self.inner.owner, user));
                    (user, elements.unwrap_or_default())
                })
                .collect();
            let none = BTreeSet::new();
            let old = |user: &u32| state.in_force.get(user).unwrap_or(&none);
            let less = fresh.iter().flat_map(|(user, new)| old(user).difference(new));
            let more = fresh.iter().flat_map(|(user, new)| new.difference(old(user)));
            (rules::change(self.inner.owner, less, more), fresh)
        };
        if text.is_empty() {
            return Ok(());
        }
        let written = nft::run(Mode::Apply, &text);
        let mut state = self.state();
        match written {
            Ok(()) => {
                state.in_force.extend(fresh);
                Ok(())
            }
            Err(error) => {
                // The table is gone, or what is in it is not what was noted: all of it is written anew.
                state.changed.extend(fresh.into_iter().map(|(user, _)| user));
                drop(state);
                tracing::error!(%error, "the rules of the network were changed by somebody else; they are put back");
                self.put_back(&writing)
            }
        }
    }

    /// Compares what the kernel has with what it should have. Blocks.
    fn look(&self) {
        let writing = self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let table = self.inner.owner.table();
        let listing = nft::list(&table).or_else(|error| match error {
            Error::Deadline => Err(error),
            // Once more, for what goes wrong now and then.
            _ => nft::list(&table),
        });
        let listing = match listing {
            Ok(listing) => listing,
            Err(error) => {
                tracing::error!(%error, "look at the rules of the network; no instance is started until this works");
                self.state().lost = Some(format!("they cannot be looked at: {error}"));
                return;
            }
        };
        let servers = rules::resolvers(&std::fs::read_to_string(RESOLVERS).unwrap_or_default());
        let (why, is_moved, was_lost) = {
            let state = self.state();
            let why = match listing.map(|listing| rules::read(&listing)) {
                None => Some("their table is gone"),
                Some(found) if found.chains != state.chains => Some("their chains are not as they were written"),
                Some(found) if found.elements != entries(&state) => Some("their sets are not as they were written"),
                Some(_) => None,
            };
            (why, servers != state.resolvers, state.lost.is_some())
        };
        if let Some(why) = why {
            tracing::error!(
                network.table = table,
                "the rules of the network were changed by somebody else ({why}); they are put back"
            );
        } else if !is_moved && !was_lost {
            return;
        }
        // What was lost may be as it should now, but nobody knows since when.
        let outcome =
            if why.is_some() || was_lost { self.put_back(&writing) } else { self.write_all_locked(&[], &writing) };
        if let Err(error) = outcome {
            tracing::error!(%error, "put the rules of the network back; no instance is started until this works");
        }
    }

    fn put_back(&self, writing: &MutexGuard<'_, ()>) -> Result<(), Error> {
        let outcome = self.write_all_locked(&[], writing);
        if outcome.is_ok() {
            self.state().repaired += 1;
        }
        outcome
    }

    fn write_all(&self, earlier: &[String]) -> Result<(), Error> {
        let writing = self.inner.writing.lock().unwrap_or_else(PoisonError::into_inner);
        self.write_all_locked(earlier, &writing)
    }

    /// Writes the whole table in one transaction: there is no moment without it.
    fn write_all_locked(&self, earlier: &[String], _writing: &MutexGuard<'_, ()>) -> Result<(), Error> {
        let resolvers = rules::resolvers(&std::fs::read_to_string(RESOLVERS).unwrap_or_default());
        let (fresh, taken) = {
            let mut state = self.state();
            let fresh: BTreeMap<u32, BTreeSet<Element>> =
                state.wanted.iter().map(|(user, wanted)| (*user, wanted.elements(self.inner.owner, *user))).collect();
            (fresh, std::mem::take(&mut state.changed))
        };
        let text = rules::whole(self.inner.owner, earlier, fresh.values().flatten().chain(&resolvers));
        let chains = nft::run(Mode::Apply, &text).and_then(|()| {
            let listing = nft::list(&self.inner.owner.table())?.unwrap_or_default();
            Ok(rules::read(&listing).chains)
        });
        let mut state = self.state();
        match chains {
            Ok(chains) => {
                state.in_force = fresh;
                state.resolvers = resolvers;
                state.chains = chains;
                state.lost = None;
                Ok(())
            }
            Err(error) => {
                state.changed.extend(taken);
                state.lost = Some(error.to_string());
                Err(error)
            }
        }
    }
}

/// All entries that should be there.
fn entries(state: &State) -> BTreeSet<Element> {
    state.in_force.values().flatten().chain(&state.resolvers).cloned().collect()
}

/// What was in force in an earlier run: running instances go on with it until they are adopted.
fn remembered(elements: &BTreeSet<Element>) -> BTreeMap<u32, Wanted> {
    let mut found: BTreeMap<u32, Wanted> = BTreeMap::new();
    for (set, text) in elements {
        let parts: Vec<&str> = text.split(" . ").collect();
        let Some(user) = parts.first().and_then(|user| user.parse().ok()) else { continue };
        let port = parts.last().and_then(|port| port.parse::<u16>().ok());
        let (Some(port), address) = (port, parts.get(1).and_then(|ip| ip.parse::<IpAddr>().ok())) else { continue };
        let wanted = found.entry(user).or_default();
        match (*set, address) {
            ("listeners", Some(IpAddr::V4(ip))) => wanted.instance = Some(SocketAddrV4::new(ip, port)),
            ("exact4" | "exact6", Some(ip)) => wanted.reach.exact.push(SocketAddr::new(ip, port)),
            ("public_ports", _) => wanted.reach.public.push(port),
            ("anywhere", _) => wanted.reach.anywhere.push(port),
            _ => {}
        }
    }
    found
}

#[cfg(test)]
mod tests;

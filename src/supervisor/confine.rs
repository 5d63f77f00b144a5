//! What the process of one instance is put under: its user, its limits, where it may connect to.

use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;

use crate::ids::TenantId;
use crate::supervisor::fleet::Fleet;
use crate::supervisor::jail;
use crate::supervisor::jail::Limits;
use crate::supervisor::jail::Sandbox;
use crate::supervisor::jail::network;
use crate::supervisor::jail::network::Reach;
use crate::supervisor::launch;
use crate::supervisor::launch::outside;
use crate::supervisor::manifest;
use crate::supervisor::state::Failure;

/// Everything that the sandbox of an instance depends on, and does not change from one start to the next.
#[derive(Debug, Clone)]
pub(crate) struct Confinement {
    level: u8,
    /// The tenant's user, at level 2.
    pub(crate) user: Option<u32>,
    pub(crate) limits: Limits,
    outbound: Vec<u16>,
    /// Where to, at level 3.
    reach: Reach,
    /// All of it in short, for the record of the process.
    pub(crate) profile: String,
}

impl Fleet {
    /// What an instance of this template is put under. Gives the tenant a user when it needs one and has none.
    pub(crate) async fn confinement(&self, tenant: &TenantId, template: &str) -> Result<Confinement, Failure> {
        let user = match self.isolation.users() {
            None => None,
            Some(users) => {
                // The first is the one that templates are baked as.
                let range = users.base + 1..users.base + users.count;
                let user = self.uids.of(tenant, range).await;
                let user = user.map_err(|error| outside(format!("the control database: {error}")))?;
                Some(user.ok_or_else(|| outside("no user is left for it: raise isolation.uid_count"))?)
            }
        };
        if let (Some(network), Some(user)) = (&self.isolation.network, user) {
            network.cover(user).await.map_err(|error| closed(&error))?;
        }
        let config = &self.config;
        let configured = Limits {
            nofile: config.nofile,
            nproc: config.nproc,
            data_bytes: config.data_bytes,
            file_bytes: config.file_bytes,
        };
        let limits = self.isolation.limits(configured);
        let traits = self.templates.traits(template);
        let (mut outbound, mut reach) = (manifest::ports(traits.as_deref()), manifest::reach(traits.as_deref()));
        if tenant.is_global() {
            outbound.extend(&self.global_outbound);
            // Hosts that the operator named: a mail server is often on this machine or beside it.
            reach.anywhere.clone_from(&self.global_outbound);
        }
        outbound.sort_unstable();
        outbound.dedup();
        let profile = self.isolation.profile(&limits, &outbound, user);
        Ok(Confinement { level: self.isolation.level, user, limits, outbound, reach, profile })
    }
}

impl Fleet {
    /// The address for a start: the one that the rules of level 3 know, else a new one.
    pub(crate) fn address(&self, confinement: &Confinement) -> SocketAddr {
        let known = self.isolation.network.as_ref().zip(confinement.user);
        known.and_then(|(network, user)| network.address(user)).unwrap_or_else(launch::random_address)
    }

    /// Sees to it that the rules of level 3 let the process answer at its address, and reach what it may. Resolves when
    /// they do.
    pub(crate) async fn connect(&self, confinement: &Confinement, address: SocketAddr) -> Result<(), Failure> {
        let (Some(network), Some(user)) = (&self.isolation.network, confinement.user) else { return Ok(()) };
        let admitted = network.admit(user, address, confinement.reach.clone()).await;
        admitted.map_err(|error| closed(&error))
    }

    /// Somebody else has the address: another one at the next start.
    pub(crate) fn give_up_address(&self, confinement: &Confinement) {
        if let (Some(network), Some(user)) = (&self.isolation.network, confinement.user) {
            network.forget(user);
        }
    }
}

/// What Go's runtime is told: how rarely to collect (0: as it likes), and where to begin to collect more often, which is
/// three quarters of the smaller limit (0: none). <https://go.dev/doc/gc-guide>
pub(crate) fn environment(gc_percent: u32, data_bytes: u64, group_bytes: u64) -> Vec<(String, String)> {
    let mut told = Vec::new();
    if gc_percent > 0 {
        told.push(("GOGC".to_owned(), gc_percent.to_string()));
    }
    if let Some(limit) = [data_bytes, group_bytes].into_iter().filter(|bytes| *bytes > 0).min() {
        told.push(("GOMEMLIMIT".to_owned(), (limit / 4 * 3).to_string()));
    }
    told
}

fn closed(error: &network::Error) -> Failure {
    outside(format!("the rules of level 3 are not in force: {error}"))
}

impl Confinement {
    /// The sandbox of a process in the instance's folder; none at level 0.
    pub(crate) fn sandbox(
        &self,
        program: &Path,
        folder: &Path,
        read: Vec<PathBuf>,
        listens: Option<SocketAddr>,
    ) -> Option<Sandbox> {
        (self.level > 0).then(|| Sandbox {
            program: program.to_owned(),
            write: vec![folder.join("pb_data"), folder.join(jail::TMP)],
            read,
            bind: listens.map(|address| address.port()),
            outbound: self.outbound.clone(),
            user: self.user,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_is_told_how_rarely_to_collect_and_when_to_hurry() {
        let told = |gc, data, group| {
            let pairs = environment(gc, data, group);
            pairs.into_iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>()
        };
        assert_eq!(told(200, 1 << 30, 0), ["GOGC=200", "GOMEMLIMIT=805306368"]);
        assert_eq!(told(200, 1 << 30, 64 << 20), ["GOGC=200", "GOMEMLIMIT=50331648"], "the smaller one");
        assert_eq!(told(0, 0, 0), Vec::<String>::new(), "as Go likes");
    }
}

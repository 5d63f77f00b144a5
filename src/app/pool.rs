//! The spares, and what they stand on.

use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

use crate::auth::Verifier;
use crate::config::Config;
use crate::quota::Quotas;
use crate::shutdown::Shutdown;
use crate::spares;
use crate::spares::Spares;
use crate::store;
use crate::supervisor::Supervisor;
use crate::tenancy::Tenancy;

/// The database of the accounts, below the data directory.
pub(super) fn accounts_in(data: &Path) -> PathBuf {
    data.join("instances").join("global").join("pb_data").join("data.db")
}

/// The spares, as the configuration wants them.
pub(super) fn open(
    config: &Config,
    listen: SocketAddr,
    records: store::spares::Spares,
    (supervisor, verifier, tenancy): (&Supervisor, &Verifier, &Tenancy),
) -> Spares {
    let verifier = verifier.clone();
    Spares::new(spares::Parts {
        number: config.instances.spares,
        url: config.public_url(listen),
        records,
        supervisor: supervisor.clone(),
        tenancy: tenancy.clone(),
        accounts: Arc::new(move |users| {
            let found = verifier.owners(users).ok()?;
            Some(found.into_iter().map(|account| account.id).collect())
        }),
    })
}

/// Keeps their number from now on, while the disk has room.
pub(super) fn run(spares: Spares, quotas: Quotas, shutdown: &Shutdown) {
    shutdown.spawn(spares.run(Arc::new(move || quotas.is_full()), shutdown.clone()));
}

//! The meetings, and who says whether a key of Fathom's is good.

use std::path::Path;
use std::sync::Arc;

use tokio::runtime::Handle;

use crate::config::Config;
use crate::integrations::fathom;
use crate::integrations::fathom::Fathom;
use crate::meetings;
use crate::meetings::Meetings;
use crate::records::Records;
use crate::shutdown::Shutdown;
use crate::store::Store;
use crate::store::blobs::FolderBlobs;
use crate::store::hooks::Hooks;
use crate::store::inbox::Inbox;
use crate::vault::Check;
use crate::vault::Secret;
use crate::vault::Vault;
use crate::vault::Verdict;

/// Opens what meetings keep of their own, and starts them.
pub(super) async fn open(
    config: &Config,
    data: &Path,
    store: Arc<dyn Store>,
    records: &Records,
    vault: &Vault,
    fathom: Fathom,
    shutdown: Shutdown,
) -> anyhow::Result<Meetings> {
    let parts = meetings::Parts {
        config: config.meetings.clone(),
        records: records.clone(),
        vault: vault.clone(),
        fathom,
        hooks: Hooks::open(Arc::clone(&store)).await?,
        inbox: Inbox::open(store).await?,
        blobs: Arc::new(FolderBlobs::open(&data.join("inbox"))?),
        auto_deliver: None,
        public_url: config.server.public_url.clone(),
        shutdown,
    };
    Ok(Meetings::start(parts).await?)
}

/// Asks Fathom about a key that its owner is about to store, on the runtime where connections to Fathom live.
pub(super) fn check_of(fathom: Fathom) -> Check {
    let runtime = Handle::current();
    Arc::new(move |secret, _| {
        let (fathom, secret) = (fathom.clone(), Secret::new(secret.expose().to_owned()));
        let asked = runtime.spawn(async move { meetings::check_key(&fathom, secret).await });
        Box::pin(async move {
            match asked.await {
                Ok(Ok(())) => Verdict::Ok,
                Ok(Err(error @ (fathom::Error::Unauthorized | fathom::Error::Forbidden))) => {
                    Verdict::Rejected { message: error.to_string() }
                }
                Ok(Err(_)) | Err(_) => Verdict::Unavailable,
            }
        })
    })
}

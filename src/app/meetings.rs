//! The meetings, and who says whether a key of Fathom's is good.

use std::path::Path;
use std::sync::Arc;

use time::OffsetDateTime;
use tokio::runtime::Handle;

use crate::config::Config;
use crate::integrations::fathom;
use crate::integrations::fathom::Fathom;
use crate::jobs::deliver;
use crate::meetings;
use crate::meetings::AutoDeliver;
use crate::meetings::Meetings;
use crate::meetings::NewMeeting;
use crate::meetings::NotYet;
use crate::queue;
use crate::queue::Queue;
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
    (queue, shutdown): (&Queue, Shutdown),
) -> anyhow::Result<Meetings> {
    let parts = meetings::Parts {
        config: config.meetings.clone(),
        records: records.clone(),
        vault: vault.clone(),
        fathom,
        hooks: Hooks::open(Arc::clone(&store)).await?,
        inbox: Inbox::open(store).await?,
        blobs: Arc::new(FolderBlobs::open(&data.join("inbox"))?),
        auto_deliver: Some(auto_deliver(queue.clone())),
        public_url: config.server.public_url.clone(),
        shutdown,
    };
    Ok(Meetings::start(parts).await?)
}

/// Puts the delivery of a new meeting into the queue: once, however often it is told.
fn auto_deliver(queue: Queue) -> AutoDeliver {
    Arc::new(move |new| {
        let queue = queue.clone();
        Box::pin(async move {
            let NewMeeting { tenant, user, recording_id, title } = new;
            let mut job = deliver::order(tenant, user, Some(recording_id), None, None);
            job.title = title;
            // Unlike `dedupe` it holds when the delivery is over.
            job.idempotency_key = Some(format!("webhook:{recording_id}"));
            match queue.add(vec![job], OffsetDateTime::now_utc()).await {
                Ok(_) | Err(queue::Error::KeyReused) => Ok(()),
                Err(error) => {
                    tracing::info!(%error, "queue the delivery of a new meeting; it is tried again");
                    Err(NotYet)
                }
            }
        })
    })
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

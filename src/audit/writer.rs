//! The one task that writes the chain: what is queued goes to disk together, in order.

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::Error;
use super::Queued;
use super::chain::End;
use super::chain::Log;
use crate::store;

/// Most entries in one commit.
const BATCH: usize = 256;

/// Writes until told to stop, and then what is still queued.
pub(super) async fn run(log: Log, end: End, mut queue: mpsc::Receiver<Queued>, stop: CancellationToken) {
    let mut end = Some(end);
    let mut batch = Vec::new();
    loop {
        tokio::select! {
            count = queue.recv_many(&mut batch, BATCH) => if count == 0 { return },
            () = stop.cancelled(), if !queue.is_closed() => queue.close(),
        }
        if !batch.is_empty() {
            write(&log, &mut end, std::mem::take(&mut batch)).await;
        }
    }
}

/// Writes a batch and answers everybody who waits for it.
async fn write(log: &Log, end: &mut Option<End>, batch: Vec<Queued>) {
    let (entries, waiting): (Vec<_>, Vec<_>) = batch.into_iter().map(|queued| (queued.entry, queued.done)).unzip();
    let outcome = async {
        let from = match end.take() {
            Some(end) => end,
            // The last write failed: whether it happened is only in the store.
            None => log.end().await?,
        };
        let first = Log::number(&from) + 1;
        let reached = log.append(from, entries).await?;
        Ok::<_, Error>((first, reached))
    };
    match outcome.await {
        Ok((first, reached)) => {
            *end = Some(reached);
            for (number, done) in (first..).zip(waiting) {
                // Who does not wait any more has given up on it.
                let _ = done.send(Ok(number));
            }
        }
        Err(error) => {
            tracing::error!(%error, "the audit log could not be written; what needed it was refused");
            let is_full = matches!(error, Error::Store(store::Error::Full));
            for done in waiting {
                let refusal = if is_full { Error::Store(store::Error::Full) } else { Error::Failed };
                let _ = done.send(Err(refusal));
            }
        }
    }
}

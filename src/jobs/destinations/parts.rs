//! Reading staged files in parts, and streaming them into a request.

use std::io;
use std::io::SeekFrom;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use futures_util::stream;
use reqwest::Response;
use reqwest::header::HeaderMap;
use reqwest::header::RETRY_AFTER;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncSeekExt;

use super::error::Error;

/// What is read at once while streaming.
const CHUNK: usize = 128 * 1024;
/// The slowest connection that is waited for.
const SLOWEST_BYTES_PER_SECOND: u64 = 16 * 1024;
/// Most of an answer's body that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// How long a request with this many bytes may take.
pub(super) fn patience(bytes: u64) -> Duration {
    Duration::from_secs(60 + bytes / SLOWEST_BYTES_PER_SECOND)
}

/// The bytes of a part, which is short at the end of the file only.
pub(super) async fn read(path: &Path, offset: u64, length: u64) -> io::Result<Bytes> {
    let mut file = File::open(path).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    let mut buffer = Vec::with_capacity(usize::try_from(length).unwrap_or_default());
    file.take(length).read_to_end(&mut buffer).await?;
    Ok(buffer.into())
}

/// Streams `length` bytes of a file from `offset`, counting into `sent`.
pub(super) async fn body(path: &Path, offset: u64, length: u64, sent: Arc<AtomicU64>) -> io::Result<reqwest::Body> {
    let mut file = File::open(path).await?;
    file.seek(SeekFrom::Start(offset)).await?;
    Ok(reqwest::Body::wrap_stream(chunks(file, length, sent)))
}

fn chunks(file: File, length: u64, sent: Arc<AtomicU64>) -> impl Stream<Item = io::Result<Bytes>> + Send + 'static {
    stream::unfold((file, length, sent), async move |(mut file, left, sent)| {
        if left == 0 {
            return None;
        }
        let mut buffer = vec![0; CHUNK.min(usize::try_from(left).unwrap_or(CHUNK))];
        match file.read(&mut buffer).await {
            // A request that promised more than the file has must fail, not end early.
            Ok(0) => Some((Err(io::ErrorKind::UnexpectedEof.into()), (file, 0, sent))),
            Ok(read) => {
                buffer.truncate(read);
                sent.fetch_add(read as u64, Ordering::Relaxed);
                Some((Ok(buffer.into()), (file, left - read as u64, sent)))
            }
            Err(error) => Some((Err(error), (file, 0, sent))),
        }
    })
}

/// Judges an answer and takes its body off the connection. What it says is for machines of the other side: only the
/// status is used.
pub(super) async fn judge(mut response: Response) -> Result<Response, Error> {
    let Some(error) = Error::of_status(response.status(), retry_after(response.headers())) else { return Ok(response) };
    let mut read = 0;
    while let Ok(Some(chunk)) = response.chunk().await {
        read += chunk.len();
        if read > MAX_ANSWER {
            break;
        }
    }
    Err(error)
}

/// A `Retry-After` in seconds, at most an hour.
pub(crate) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(3600)))
}

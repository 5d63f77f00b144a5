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
use reqwest::RequestBuilder;
use reqwest::Response;
use reqwest::header::HeaderMap;
use reqwest::header::RETRY_AFTER;
use tokio::fs::File;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncSeekExt;
use tokio::time::Instant;

use super::Report;
use super::error::Error;

/// What is read at once while streaming.
const CHUNK: usize = 128 * 1024;
/// The slowest connection that is waited for.
const SLOWEST_BYTES_PER_SECOND: u64 = 64 * 1024;
/// The longest that any request is waited for.
pub(crate) const LONGEST: Duration = Duration::from_hours(12);
/// How long no byte may be taken while there are some left.
const STALL: Duration = Duration::from_mins(1);
/// Over this time bytes have to be taken at the slowest rate at least.
const WINDOW: Duration = Duration::from_mins(5);
/// How long an answer may take once all bytes of a file were taken: the other side may look through them first.
pub(super) const ANSWER: Duration = Duration::from_mins(5);
/// The same for a part of a file, with which nothing is to be done yet.
pub(super) const ANSWER_TO_PART: Duration = Duration::from_secs(30);
/// How often it is looked at how far a request is.
const LOOK: Duration = Duration::from_millis(500);
/// Most of an answer's body that is read.
const MAX_ANSWER: usize = 64 * 1024;

/// How long a request with this many bytes may take.
pub(super) fn patience(bytes: u64) -> Duration {
    Duration::from_secs(60 + bytes / SLOWEST_BYTES_PER_SECOND).min(LONGEST)
}

/// Judges whether a transfer gets anywhere, from how many of its bytes were taken and when.
#[derive(Debug)]
pub(crate) struct Pace {
    length: u64,
    answer: Duration,
    taken: u64,
    /// When a byte was taken last.
    moved_at: Instant,
    /// Where the window began.
    window: (Instant, u64),
}

impl Pace {
    /// Of a request with so many bytes, whose answer may take this long.
    fn new(length: u64, answer: Duration, now: Instant) -> Self {
        Self { length, answer, taken: 0, moved_at: now, window: (now, 0) }
    }

    /// Of bytes that come, as many as there may be.
    pub(crate) fn coming(now: Instant) -> Self {
        Self::new(u64::MAX, Duration::ZERO, now)
    }

    /// Whether to wait on.
    pub(crate) fn goes_on(&mut self, taken: u64, now: Instant) -> bool {
        if taken > self.taken {
            (self.taken, self.moved_at) = (taken, now);
        }
        if taken >= self.length {
            return now - self.moved_at < self.answer;
        }
        let (began, before) = self.window;
        if now - began >= WINDOW {
            if taken - before < SLOWEST_BYTES_PER_SECOND * WINDOW.as_secs() {
                return false;
            }
            self.window = (now, taken);
        }
        now - self.moved_at < STALL
    }
}

/// Awaits the answer to a request whose [`body`] counts into `sent`, as long as it gets anywhere and then for `time`;
/// tells how far it is.
pub(super) async fn answer(
    request: RequestBuilder,
    sent: &AtomicU64,
    length: u64,
    time: Duration,
    report: Report<'_>,
) -> Result<Response, Error> {
    let mut pace = Pace::new(length, time, Instant::now());
    let mut looks = tokio::time::interval(LOOK);
    let mut request = std::pin::pin!(request.timeout(patience(length) + time).send());
    loop {
        tokio::select! {
            response = &mut request => return Ok(response?),
            _ = looks.tick() => {
                let taken = sent.load(Ordering::Relaxed);
                if !pace.goes_on(taken, Instant::now()) {
                    return Err(Error::Unreachable);
                }
                report(taken);
            }
        }
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_that_stands_still_or_crawls_is_given_up() {
        let (now, length) = (Instant::now(), 1 << 40);
        let mut still = Pace::new(length, ANSWER, now);
        assert!(still.goes_on(1, now + Duration::from_secs(1)));
        assert!(still.goes_on(1, now + Duration::from_mins(1)));
        assert!(!still.goes_on(1, now + Duration::from_secs(61)));

        // A byte now and then is not enough.
        let mut crawls = Pace::new(length, ANSWER, now);
        let given_up = (1..=600).find(|second| !crawls.goes_on(*second, now + Duration::from_secs(*second)));
        assert_eq!(given_up, Some(300));

        let mut slow = Pace::new(length, ANSWER, now);
        let given_up = (1..=6000).find(|second| !slow.goes_on(second * 64 * 1024, now + Duration::from_secs(*second)));
        assert_eq!(given_up, None);
    }

    #[test]
    fn an_answer_may_take_longer_than_a_byte() {
        let now = Instant::now();
        let mut pace = Pace::new(10, ANSWER, now);
        assert!(pace.goes_on(10, now));
        assert!(pace.goes_on(10, now + Duration::from_secs(299)));
        assert!(!pace.goes_on(10, now + Duration::from_mins(5)));
        let mut part = Pace::new(10, ANSWER_TO_PART, now);
        assert!(part.goes_on(10, now));
        assert!(!part.goes_on(10, now + Duration::from_secs(30)));
    }

    #[test]
    fn what_comes_in_drops_is_given_up() {
        let now = Instant::now();
        let mut coming = Pace::coming(now);
        let given_up = (1..=600).find(|second| !coming.goes_on(*second, now + Duration::from_secs(*second)));
        assert_eq!(given_up, Some(300));
    }

    #[test]
    fn nothing_is_waited_for_longer_than_half_a_day() {
        assert_eq!(patience(0), Duration::from_mins(1));
        assert_eq!(patience(u64::MAX), LONGEST);
    }
}

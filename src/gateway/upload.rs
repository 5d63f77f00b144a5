//! The request body on its way to an instance or to our own router: streamed, counted, and cut when it drips.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;
use std::task::Context;
use std::task::Poll;

use bytes::Bytes;
use http_body::Body as HttpBody;
use http_body::Frame;
use http_body::SizeHint;
use hyper::body::Incoming;

use super::config::Pace;
use super::stall::Stall;
use crate::quota::Tally;

/// Why a request body ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("the body is larger than allowed")]
    TooLarge,
    #[error("the body stood still")]
    Stalled,
    #[error("the body broke off")]
    Broken(#[source] hyper::Error),
}

/// How an upload stands, seen by whoever waits for the answer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Standing {
    Running,
    Done,
    TooLarge,
    Stalled,
    Broken,
}

impl Standing {
    fn of(code: u8) -> Self {
        [Self::Done, Self::TooLarge, Self::Stalled, Self::Broken]
            .into_iter()
            .find(|standing| *standing as u8 == code)
            .unwrap_or(Self::Running)
    }
}

/// What the body, which hyper owns while it sends, shares with the forwarder.
#[derive(Debug, Default)]
pub(crate) struct Upload {
    standing: AtomicU8,
    moved: AtomicBool,
}

impl Upload {
    pub(crate) fn standing(&self) -> Standing {
        Standing::of(self.standing.load(Ordering::Relaxed))
    }

    /// Whether bytes moved since the last call.
    pub(crate) fn take_moved(&self) -> bool {
        self.moved.swap(false, Ordering::Relaxed)
    }

    fn set(&self, standing: Standing) {
        self.standing.store(standing as u8, Ordering::Relaxed);
    }
}

/// A request body with a size limit and a least pace.
#[derive(Debug)]
pub(crate) struct RequestBody {
    inner: Option<Incoming>,
    left: u64,
    stall: Option<Stall>,
    upload: Option<Arc<Upload>>,
    tally: Option<Tally>,
}

impl RequestBody {
    pub(crate) fn new(incoming: Incoming, limit: u64, pace: Pace) -> Self {
        if incoming.is_end_stream() {
            return Self::empty();
        }
        Self {
            inner: Some(incoming),
            left: limit,
            stall: Some(pace.stall()),
            upload: Some(Arc::new(Upload::default())),
            tally: None,
        }
    }

    /// Has its bytes counted against a quota, which may end it.
    pub(crate) fn counted(self, tally: Option<Tally>) -> Self {
        Self { tally, ..self }
    }

    pub(crate) fn empty() -> Self {
        Self { inner: None, left: 0, stall: None, upload: None, tally: None }
    }

    /// `None` when there is no body.
    pub(crate) fn upload(&self) -> Option<Arc<Upload>> {
        self.upload.clone()
    }

    fn end(&mut self, standing: Standing) {
        self.inner = None;
        self.tally = None;
        if let Some(upload) = &self.upload {
            upload.set(standing);
        }
    }

    fn accept(&mut self, data: &Bytes) -> Result<(), UploadError> {
        let Some(left) = self.left.checked_sub(data.len() as u64) else {
            self.end(Standing::TooLarge);
            return Err(UploadError::TooLarge);
        };
        self.left = left;
        if self.tally.as_ref().is_some_and(|tally| !tally.came(data.len() as u64)) {
            self.end(Standing::TooLarge);
            return Err(UploadError::TooLarge);
        }
        if let Some(stall) = &mut self.stall {
            stall.moved(data.len());
        }
        if let Some(upload) = &self.upload {
            upload.moved.store(true, Ordering::Relaxed);
        }
        if self.inner.as_ref().is_none_or(HttpBody::is_end_stream) {
            self.end(Standing::Done);
        }
        Ok(())
    }
}

impl HttpBody for RequestBody {
    type Data = Bytes;
    type Error = UploadError;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, UploadError>>> {
        let this = &mut *self;
        let Some(incoming) = &mut this.inner else { return Poll::Ready(None) };
        match Pin::new(incoming).poll_frame(cx) {
            Poll::Pending => {
                if this.stall.as_mut().is_some_and(|stall| stall.poll_stalled(cx).is_ready()) {
                    this.end(Standing::Stalled);
                    return Poll::Ready(Some(Err(UploadError::Stalled)));
                }
                Poll::Pending
            }
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => Poll::Ready(Some(this.accept(&data).map(|()| Frame::data(data)))),
                // Trailers belong to this hop.
                Err(_trailers) => {
                    this.end(Standing::Done);
                    Poll::Ready(None)
                }
            },
            Poll::Ready(Some(Err(error))) => {
                this.end(Standing::Broken);
                Poll::Ready(Some(Err(UploadError::Broken(error))))
            }
            Poll::Ready(None) => {
                this.end(Standing::Done);
                Poll::Ready(None)
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), HttpBody::size_hint)
    }
}

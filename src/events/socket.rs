//! One socket on its worker's event loop: what waits to be written, and how it is written.
//!
//! Frames are shared bytes; a socket holds references in order. Whoever has something to say pushes it and flushes: one
//! vectored write takes everything that waits. A socket that takes nothing keeps its references until the budget of
//! unsent bytes is used up, and is then closed as slow: never skipped.

use std::any::Any;
use std::cell::Cell;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::io::IoSlice;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use bytes::Bytes;
use tokio::net::TcpStream;
use tokio::sync::Notify;

use super::Position;
use super::Topic;
use super::census::Seat;
use super::close::CloseCode;
use super::frame;
use super::message::ServerFrame;
use crate::auth::Principal;
use crate::auth::Standing;

/// Frames of one write.
const SLICES: usize = 64;
/// Capacity that an empty queue keeps.
const KEPT: usize = 4;
/// How long a client may take to close after us, and longer when it still has to read what came before.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_SLOW: Duration = Duration::from_secs(10);

/// How a client wants events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The messages of the seed documents.
    Plain,
    /// `cp.v1`.
    Enveloped,
}

/// Who a client is.
#[derive(Debug, Clone)]
pub(super) struct Identity {
    pub(super) principal: Principal,
    pub(super) standing: Standing,
}

/// What waits to be written.
#[derive(Debug, Default)]
struct Outbox {
    frames: VecDeque<Bytes>,
    /// Bytes of the first frame that are written.
    written: usize,
    bytes: usize,
}

/// Where a socket is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It talks.
    Open,
    /// Its close frame is on its way; gone at this moment at the latest.
    Closing(Instant),
    /// Nothing more is read or written.
    Gone,
}

pub(super) struct Socket {
    pub(super) stream: TcpStream,
    pub(super) seat: Seat,
    pub(super) implicit: &'static [&'static str],
    pub(super) form: Cell<Form>,
    pub(super) greeted: Cell<bool>,
    pub(super) identity: RefCell<Option<Identity>>,
    pub(super) topics: RefCell<Vec<Topic>>,
    /// What the address asked for, until the client says `Hello`.
    pub(super) wanted: RefCell<(Option<Position>, Vec<Topic>)>,
    /// When the client was heard last.
    pub(super) heard: Cell<Instant>,
    /// When it was pinged and has not been heard since.
    pub(super) pinged: Cell<Option<Instant>>,
    /// When its bucket of frames is full again.
    pub(super) full_at: Cell<Instant>,
    pub(super) strikes: Cell<u32>,
    pub(super) errors: Cell<u32>,
    pub(super) phase: Cell<Phase>,
    /// Whether it waits for the socket to take more.
    pub(super) blocked: Cell<bool>,
    /// Whether it is on the list of those to be flushed.
    pub(super) dirty: Cell<bool>,
    /// Wakes the reader: it has to look at `blocked` and `phase`.
    pub(super) wake: Notify,
    /// Why we closed it.
    pub(super) code: Cell<u16>,
    outbox: RefCell<Outbox>,
    budget: usize,
    _place: Box<dyn Any + Send>,
}

impl fmt::Debug for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Socket").field("id", &self.seat.connection.id).finish_non_exhaustive()
    }
}

/// What a socket is made of.
pub(super) struct Made {
    pub(super) stream: TcpStream,
    pub(super) place: Box<dyn Any + Send>,
    pub(super) seat: Seat,
    pub(super) implicit: &'static [&'static str],
    pub(super) form: Form,
    pub(super) identity: Option<Identity>,
    pub(super) budget: usize,
}

impl Socket {
    pub(super) fn new(made: Made, now: Instant) -> Rc<Self> {
        let Made { stream, place, seat, implicit, form, identity, budget } = made;
        Rc::new(Self {
            stream,
            seat,
            implicit,
            form: Cell::new(form),
            greeted: Cell::new(false),
            identity: RefCell::new(identity),
            topics: RefCell::default(),
            wanted: RefCell::default(),
            heard: Cell::new(now),
            pinged: Cell::new(None),
            full_at: Cell::new(now),
            strikes: Cell::new(0),
            errors: Cell::new(0),
            phase: Cell::new(Phase::Open),
            blocked: Cell::new(false),
            dirty: Cell::new(false),
            wake: Notify::new(),
            code: Cell::new(0),
            outbox: RefCell::default(),
            budget,
            _place: place,
        })
    }

    pub(super) fn is_open(&self) -> bool {
        self.phase.get() == Phase::Open
    }

    /// Queues a frame. A client that has too much waiting is closed instead, if it was offered what waits: several
    /// large events that come together are no fault of its own.
    pub(super) fn push(&self, frame: &Bytes, now: Instant) {
        if !self.is_open() {
            return;
        }
        if self.is_beyond(frame) && !self.blocked.get() {
            self.flush();
        }
        if self.is_beyond(frame) {
            return self.close(CloseCode::Slow, now);
        }
        let mut outbox = self.outbox.borrow_mut();
        outbox.bytes += frame.len();
        outbox.frames.push_back(frame.clone());
    }

    fn is_beyond(&self, frame: &Bytes) -> bool {
        let waiting = self.outbox.borrow().bytes;
        waiting > 0 && waiting + frame.len() > self.budget
    }

    /// Queues a frame of ours.
    pub(super) fn say(&self, message: &ServerFrame, now: Instant) {
        self.push(&frame::text(&message.json()), now);
    }

    /// Writes as much of what waits as the socket takes. Returns the bytes written.
    pub(super) fn flush(&self) -> usize {
        self.dirty.set(false);
        let mut outbox = self.outbox.borrow_mut();
        let mut total = 0;
        while !outbox.frames.is_empty() && self.phase.get() != Phase::Gone {
            match self.write(&outbox) {
                Ok(count) => {
                    total += count;
                    outbox.took(count);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if !self.blocked.replace(true) {
                        self.wake.notify_one();
                    }
                    return total;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => {
                    drop(outbox);
                    self.gone();
                    return total;
                }
            }
        }
        self.blocked.set(false);
        if outbox.frames.capacity() > KEPT {
            outbox.frames.shrink_to(KEPT);
        }
        total
    }

    fn write(&self, outbox: &Outbox) -> io::Result<usize> {
        let Some(first) = outbox.frames.front() else { return Ok(0) };
        let first = first.get(outbox.written..).unwrap_or_default();
        if outbox.frames.len() == 1 {
            return self.stream.try_write(first);
        }
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut count = 0;
        let all = std::iter::once(first).chain(outbox.frames.iter().skip(1).map(|frame| &**frame));
        for (slice, frame) in slices.iter_mut().zip(all) {
            *slice = IoSlice::new(frame);
            count += 1;
        }
        self.stream.try_write_vectored(&slices[..count])
    }

    /// Closes with a code: the client learns why, if it still reads.
    pub(super) fn close(&self, code: CloseCode, now: Instant) {
        self.close_with(code, None, 0, now);
    }

    /// The same; tells a client that speaks `cp.v1` when to come back.
    pub(super) fn close_with(&self, code: CloseCode, reason: Option<&str>, reconnect_after_ms: u64, now: Instant) {
        if !self.is_open() {
            return;
        }
        let reason = reason.unwrap_or(code.reason());
        let mut outbox = self.outbox.borrow_mut();
        let is_slow = self.blocked.get() || code == CloseCode::Slow;
        if is_slow {
            outbox.abandon();
        }
        if self.form.get() == Form::Enveloped {
            let message = ServerFrame::Disconnect {
                code: code.number(),
                reason: reason.to_owned(),
                reconnect: code.reconnect(),
                reconnect_after_ms,
            };
            outbox.add(frame::text(&message.json()));
        }
        outbox.add(frame::closing(code.number(), reason));
        drop(outbox);
        self.code.set(code.number());
        self.phase.set(Phase::Closing(now + if is_slow { LINGER_SLOW } else { LINGER }));
        self.flush();
        self.wake.notify_one();
    }

    /// Answers a client's close.
    pub(super) fn closed(&self, code: Option<u16>) {
        if self.is_open() {
            self.code.set(code.unwrap_or(1005));
            self.outbox.borrow_mut().add(frame::closing_echo(code));
            self.flush();
        }
        self.gone();
    }

    /// Nothing more is read or written; the reader lets go of it.
    pub(super) fn gone(&self) {
        self.phase.set(Phase::Gone);
        self.wake.notify_one();
    }
}

impl Outbox {
    fn add(&mut self, frame: Bytes) {
        self.bytes += frame.len();
        self.frames.push_back(frame);
    }

    /// Notes that so many bytes were written.
    fn took(&mut self, mut count: usize) {
        self.bytes = self.bytes.saturating_sub(count);
        while let Some(first) = self.frames.front() {
            let left = first.len() - self.written;
            if count < left {
                self.written += count;
                return;
            }
            count -= left;
            self.written = 0;
            self.frames.pop_front();
        }
    }

    /// Drops whole frames that wait; one that is on its way has to be finished.
    fn abandon(&mut self) {
        let begun = if self.written > 0 { self.frames.front().cloned() } else { None };
        self.frames.clear();
        self.bytes = begun.as_ref().map_or(0, |frame| frame.len() - self.written);
        self.frames.extend(begun);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_that_was_begun_is_finished() {
        let mut outbox = Outbox::default();
        for text in ["abcd", "efgh", "ij"] {
            outbox.add(Bytes::from_static(text.as_bytes()));
        }
        outbox.took(5);
        assert_eq!((outbox.bytes, outbox.written, outbox.frames.len()), (5, 1, 2));
        outbox.abandon();
        outbox.add(Bytes::from_static(b"close"));
        assert_eq!((outbox.bytes, outbox.frames.len()), (8, 2));
        outbox.took(8);
        assert_eq!((outbox.bytes, outbox.written, outbox.frames.len()), (0, 0, 0));
        outbox.add(Bytes::from_static(b"x"));
        outbox.abandon();
        assert!(outbox.frames.is_empty());
    }
}

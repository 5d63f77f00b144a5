//! Where deliveries go: one trait, and the kinds that implement it.
//!
//! A destination takes one staged file at a time: [`begin`](Destination::begin), then
//! [`send`](Destination::send) part by part, then [`finish`](Destination::finish). What it needs to go on after a kill is
//! in the [`Upload`] that the caller keeps; [`resume`](Destination::resume) compares it with what really arrived.
//!
//! Invariants:
//! - Names at a destination depend on the recording alone, so that a repeated send replaces and never duplicates.
//! - Every outbound address passes the guard; redirects are not followed; credentials go to the configured origin only.
//!
//! Deliberately absent: uploading to Loom. It takes files from people only, so its kind hands the file over.

pub mod error;
pub mod folder;
pub mod http_put;
pub mod loom;
pub mod registry;
pub mod s3;
pub mod settings;
pub mod tus;

mod parts;

use std::fmt;
use std::path::PathBuf;

use futures_util::future::BoxFuture;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

pub use error::Error;
pub(crate) use parts::LONGEST;
pub(crate) use parts::Pace;
pub use settings::Kind;
pub use settings::Settings;

/// What a kind of destination can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Whether an interrupted file goes on where it stopped.
    pub resumable: bool,
    /// Largest file in bytes, if there is a limit that is known beforehand.
    pub max_bytes: Option<u64>,
    /// Whether a delivered file has a link that works for others.
    pub returns_share_url: bool,
    /// Whether a person has to do the last step.
    pub needs_human: bool,
}

/// A staged file on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outgoing {
    /// The staged file.
    pub path: PathBuf,
    /// Its folder at the destination: one plain name.
    pub folder: String,
    /// Its own name: one plain name.
    pub name: String,
    /// Its media type.
    pub content_type: String,
    /// Its length in bytes.
    pub size: u64,
    /// Its SHA-256, in hexadecimal.
    pub sha256: String,
}

/// How far a file is, in the words of its destination; kept between attempts. May hold an upload address, so it is
/// sealed wherever it is stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Upload {
    /// Bytes that arrived.
    pub offset: u64,
    /// What the kind needs beside that.
    pub state: Value,
}

/// What a look at the destination says of an interrupted file.
#[derive(Debug, Clone, PartialEq)]
pub enum Resume {
    /// Go on from here.
    At(Upload),
    /// Nothing there can be used: begin again.
    StartOver,
    /// It is there, whole.
    Complete(Delivered),
}

/// A file that arrived.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Delivered {
    /// A link to it, if the destination gives one.
    pub url: Option<String>,
    /// Where it lies, in the destination's own terms.
    pub location: String,
}

/// Hears how many bytes of a file have been sent.
pub type Report<'a> = &'a (dyn Fn(u64) + Send + Sync);

/// A place that takes files.
pub trait Destination: fmt::Debug + Send + Sync {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Announces a file.
    fn begin<'a>(&'a self, file: &'a Outgoing) -> BoxFuture<'a, Result<Upload, Error>>;

    /// Finds out how much of an announced file is there.
    fn resume<'a>(&'a self, file: &'a Outgoing, upload: &'a Upload) -> BoxFuture<'a, Result<Resume, Error>>;

    /// Sends the next part, from `upload.offset` on.
    fn send<'a>(
        &'a self,
        file: &'a Outgoing,
        upload: Upload,
        report: Report<'a>,
    ) -> BoxFuture<'a, Result<Upload, Error>>;

    /// Puts the file, all of which was sent, in its place.
    fn finish<'a>(&'a self, file: &'a Outgoing, upload: &'a Upload) -> BoxFuture<'a, Result<Delivered, Error>>;

    /// Takes back what was sent of a file that will not be finished. Best effort.
    fn abandon<'a>(&'a self, file: &'a Outgoing, upload: &'a Upload) -> BoxFuture<'a, ()>;

    /// Whether files would be taken, tried with as little as possible.
    fn check(&self) -> BoxFuture<'_, Result<(), Error>>;
}

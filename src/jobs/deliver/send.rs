//! The files on their way to the destination, what is noted of them, and the hand-off to a person.

use std::io;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use serde_json::json;
use tokio::time::Instant;

use super::attempt::Attempt;
use super::attempt::Step;
use super::attempt::dead;
use super::attempt::now;
use super::attempt::of_destination;
use super::attempt::of_io;
use super::attempt::of_meetings;
use super::attempt::of_records;
use super::attempt::retry;
use super::bundle;
use super::checkpoint::Sending;
use super::checkpoint::Staged;
use super::checkpoint::Subject;
use super::ledger;
use super::ledger::Artifact;
use crate::failpoint;
use crate::jobs::destinations;
use crate::jobs::destinations::Delivered;
use crate::jobs::destinations::Destination;
use crate::jobs::destinations::LONGEST;
use crate::jobs::destinations::Outgoing;
use crate::jobs::destinations::Resume;
use crate::jobs::destinations::Upload;
use crate::jobs::destinations::error::Remedy;
use crate::jobs::destinations::loom::ShareLink;
use crate::meetings;
use crate::queue::Outcome;
use crate::records::Instance;

pub(super) const UPLOAD: &str = "upload";
/// What a parked delivery waits for.
pub const AWAITING: &str = "awaiting_upload: upload the video in Loom and submit its share link";

/// For how long one attempt sends a file that can be gone on with; then others have a turn.
const TURN: Duration = Duration::from_mins(30);
const NEXT_TURN: Duration = Duration::from_secs(1);
/// The least that a destination takes in one turn, but for a few.
const LEAST_PART: u64 = 1024 * 1024;
const SHORT_TURNS: u64 = 64;

/// Where a file is, without what lets in whoever has the link.
pub(super) fn plain(url: &str) -> Option<&str> {
    let address = url.split(['?', '#']).next().unwrap_or_default();
    (address.starts_with("https://") || address.starts_with("http://")).then_some(address)
}

/// Whether a file that is on its way gives its place to others.
fn gives_way(is_resumable: bool, sending: Duration, upload: &Upload, size: u64) -> bool {
    is_resumable && sending >= TURN && upload.offset < size
}

/// How many turns a file of this size may take within an attempt.
fn most_turns(size: u64) -> u64 {
    SHORT_TURNS + size / LEAST_PART
}

/// A staged file as a destination takes it.
pub(super) fn outgoing(folder: &Path, subject: &Subject, staged: &Staged) -> Outgoing {
    Outgoing {
        path: folder.join(&staged.file),
        folder: subject.folder.clone(),
        name: staged.name.clone(),
        content_type: staged.content_type.clone(),
        size: staged.size,
        sha256: staged.sha256.clone(),
    }
}

impl Attempt {
    /// Has the files beside the video staged.
    pub(super) async fn make_bundle(&mut self, subject: &Subject) -> Step<()> {
        if !self.checkpoint.files.is_empty() {
            return Ok(());
        }
        let Some(video) = self.checkpoint.video.clone() else { return Err(dead("there is no staged video")) };
        self.run.progress("bundling", 0, None);
        let (whole, lacks) = match self.parts.meetings.completed(self.tenant(), subject.recording_id).await {
            Ok(found) => found,
            Err(meetings::Error::NotFound) => return Err(dead("the meeting was deleted meanwhile")),
            Err(error) => return Err(of_meetings(&error)),
        };
        if let Some(error) = lacks {
            let said = error.retry_after();
            if error.is_passing()
                && let Some(after) = self.checkpoint.wait_for_papers(said, now())
            {
                return Err(self.later("waits for the transcript and the summary of the meeting", after).await?);
            }
            tracing::info!(job.id = %self.run.job.id, %error, "a recording is delivered without its transcript");
        }
        let (folder, of) = (self.folder.clone(), subject.clone());
        let written = tokio::task::spawn_blocking(move || bundle::write(&folder, &of, &whole, &video)).await;
        self.checkpoint.files = written.map_err(|error| of_io(io::Error::other(error)))?.map_err(of_io)?;
        self.save().await?;
        failpoint::hit("delivery.bundled");
        Ok(())
    }

    /// Sends all files that were not sent.
    pub(super) async fn send_all(&mut self, subject: &Subject, to: &dyn Destination) -> Step<()> {
        while let Some(staged) = self.checkpoint.files.get(self.checkpoint.sent.len()).cloned() {
            let file = outgoing(&self.folder, subject, &staged);
            if self.checkpoint.sent.len() + 1 == self.checkpoint.files.len() {
                // It may have fallen asleep over the fetching, and is written to when the last file is there.
                self.parts.records.expect(self.tenant());
            }
            if to.capabilities().max_bytes.is_some_and(|most| file.size > most) {
                return Err(dead(destinations::Error::TooLarge.to_string()));
            }
            let delivered = loop {
                match self.send_one(&file, to).await? {
                    Ok(delivered) => break delivered,
                    Err(error) if error.remedy() == Remedy::StartOver => {
                        self.checkpoint.sending = None;
                        self.restart(&error.to_string()).await?;
                    }
                    Err(error) => return Err(of_destination(error)),
                }
            };
            failpoint::hit("delivery.placed");
            // A link that lets in whoever has it is made for its owner when they ask for it, and kept nowhere.
            let url = delivered.url.as_deref().and_then(plain).map(str::to_owned);
            self.checkpoint.sent.push(Delivered { url, ..delivered });
            self.checkpoint.sending = None;
            self.save().await?;
            failpoint::hit("delivery.sent");
        }
        Ok(())
    }

    /// Sends one file, from where it stopped. The outer error ends the attempt.
    async fn send_one(
        &mut self,
        file: &Outgoing,
        to: &dyn Destination,
    ) -> Step<Result<Delivered, destinations::Error>> {
        let index = self.checkpoint.sent.len();
        let mut upload = match self.under_way(index).await {
            None => None,
            Some(upload) => match to.resume(file, &upload).await {
                Ok(Resume::At(upload)) => Some(upload),
                Ok(Resume::StartOver) => None,
                Ok(Resume::Complete(delivered)) => return Ok(Ok(delivered)),
                Err(error) => return Ok(Err(error)),
            },
        };
        if upload.is_none() {
            let begun = match to.begin(file).await {
                Ok(begun) => begun,
                Err(error) => return Ok(Err(error)),
            };
            failpoint::hit("delivery.begun");
            self.note_upload(index, &begun).await?;
            failpoint::hit("delivery.announced");
            upload = Some(begun);
        }
        let mut upload = upload.unwrap_or_default();
        let run = self.run.clone();
        let step = if index + 1 == self.checkpoint.files.len() { "uploading" } else { "uploading the papers" };
        let report = move |sent: u64| run.progress(step, sent, Some(file.size));
        // An empty file is sent once, so that it exists.
        let mut is_first = upload.offset == 0;
        let (mut turns, begun) = (0, Instant::now());
        let is_resumable = to.capabilities().resumable;
        while upload.offset < file.size || (is_first && file.size == 0) {
            is_first = false;
            if turns >= most_turns(file.size) {
                return Ok(Err(destinations::Error::Gone));
            }
            turns += 1;
            if gives_way(is_resumable, begun.elapsed(), &upload, file.size) {
                return Err(self.later("gives its place to others and goes on", NEXT_TURN).await?);
            }
            if begun.elapsed() > LONGEST {
                return Err(retry("the destination takes the file too slowly; it goes on later"));
            }
            let before = upload.offset;
            upload = match to.send(file, upload, &report).await {
                Ok(upload) => upload,
                Err(error) => return Ok(Err(error)),
            };
            failpoint::hit("delivery.part_sent");
            self.note_upload(index, &upload).await?;
            failpoint::hit("delivery.part");
            self.parts.metrics.sent(upload.offset.saturating_sub(before));
        }
        Ok(to.finish(file, &upload).await)
    }

    async fn under_way(&self, index: usize) -> Option<Upload> {
        let sending = self.checkpoint.sending.as_ref().filter(|sending| sending.index == index)?;
        let opened = self.unseal(UPLOAD, &sending.sealed).await?;
        serde_json::from_str(opened.expose()).ok()
    }

    async fn note_upload(&mut self, index: usize, upload: &Upload) -> Step<()> {
        let text = serde_json::to_string(upload).unwrap_or_default();
        let sealed = self.seal(UPLOAD, text).await?;
        self.checkpoint.sending = Some(Sending { index, sealed });
        self.save().await
    }

    /// Notes in the user's instance what was delivered.
    pub(super) async fn record(&mut self, subject: &Subject) -> Step<()> {
        self.run.progress("recording", 0, None);
        let instance = self.instance().await?;
        let placed: Vec<(Staged, Delivered)> =
            self.checkpoint.files.iter().cloned().zip(self.checkpoint.sent.iter().cloned()).collect();
        for (staged, placed) in &placed {
            let content = self.content(staged).await;
            let file = Artifact { staged, placed, expires_at: None, content };
            self.note_artifact(&instance, subject, file).await?;
        }
        failpoint::hit("delivery.noted");
        let url = placed.last().and_then(|(_, video)| video.url.as_deref()).and_then(plain);
        self.note_delivered(&instance, subject, url).await
    }

    async fn note_artifact(&self, instance: &Instance, subject: &Subject, file: Artifact<'_>) -> Step<()> {
        let job = self.run.job.id.as_str();
        ledger::artifact(instance, subject, job, file).await.map_err(|error| of_records(&error))
    }

    async fn note_delivered(&self, instance: &Instance, subject: &Subject, url: Option<&str>) -> Step<()> {
        let change = json!({
            "state": "delivered",
            "job": self.run.job.id.as_str(),
            "url": url.unwrap_or_default(),
            "error": "",
            "attempts": self.run.attempt,
            "finished_at": ledger::stored(now()),
        });
        ledger::note(instance, subject, &change).await.map_err(|error| of_records(&error))?;
        failpoint::hit("delivery.recorded");
        self.parts.metrics.delivered(subject.kind);
        Ok(())
    }

    /// The content of a small file that is not the video; none when its staging is gone already.
    async fn content(&self, staged: &Staged) -> Option<Bytes> {
        if staged.kind == "video" || staged.size > ledger::KEPT_BYTES {
            return None;
        }
        tokio::fs::read(self.folder.join(&staged.file)).await.ok().map(Bytes::from)
    }

    /// Gives the files to the person, or takes their answer.
    pub(super) async fn hand_off(&mut self, subject: &Subject) -> Step<Value> {
        if self.checkpoint.handed_off.is_none() {
            self.offer(subject).await?;
        }
        let input = self.run.job.input.as_ref();
        let said = input.and_then(|input| input.get("share_url").or_else(|| input.get("url")));
        let Some(url) = said.and_then(Value::as_str) else {
            return Err(Outcome::Park { reason: AWAITING.to_owned() });
        };
        let accepted = match ShareLink::parse(url) {
            Ok(link) => self.parts.destinations.loom().accept(&link).await,
            Err(error) => Err(error),
        };
        let delivered = match accepted {
            Ok(delivered) => delivered,
            Err(error) if error.remedy() == Remedy::GiveUp => {
                return Err(Outcome::Park { reason: format!("awaiting_upload: {error}") });
            }
            Err(error) => return Err(of_destination(error)),
        };
        let instance = self.instance().await?;
        let mut sent = Vec::new();
        for staged in &self.checkpoint.files {
            let placed = if staged.kind == "video" { delivered.clone() } else { Delivered::default() };
            let content = self.content(staged).await;
            if staged.kind == "video" || content.is_some() {
                let file = Artifact { staged, placed: &placed, expires_at: None, content };
                self.note_artifact(&instance, subject, file).await?;
            }
            sent.push(placed);
        }
        self.note_delivered(&instance, subject, delivered.url.as_deref()).await?;
        self.checkpoint.sent = sent;
        self.clean();
        Ok(self.result(subject))
    }

    /// Notes the staged files as theirs to fetch.
    async fn offer(&mut self, subject: &Subject) -> Step<()> {
        let at = now();
        let instance = self.instance().await?;
        for staged in &self.checkpoint.files {
            let is_video = staged.kind == "video";
            let location = if is_video { format!("staging:{}", self.run.job.id) } else { String::new() };
            let file = Artifact {
                staged,
                placed: &Delivered { url: None, location },
                expires_at: is_video.then(|| at + self.parts.config.handoff_ttl),
                content: self.content(staged).await,
            };
            self.note_artifact(&instance, subject, file).await?;
        }
        ledger::note(&instance, subject, &json!({ "state": "awaiting_upload", "error": "" }))
            .await
            .map_err(|error| of_records(&error))?;
        failpoint::hit("delivery.offered");
        self.checkpoint.handed_off = Some(at);
        self.save().await?;
        failpoint::hit("delivery.handed_off");
        Ok(())
    }

    /// What the job leaves behind for whoever asks for it.
    pub(super) fn result(&self, subject: &Subject) -> Value {
        let files: Vec<Value> = self
            .checkpoint
            .files
            .iter()
            .zip(&self.checkpoint.sent)
            .map(|(staged, placed)| {
                json!({
                    "kind": staged.kind,
                    "name": staged.name,
                    "size": staged.size,
                    "sha256": staged.sha256,
                    "location": placed.location,
                })
            })
            .collect();
        json!({
            "recording_id": subject.recording_id.to_string(),
            "title": subject.title,
            "destination": subject.destination,
            "kind": subject.kind,
            "state": "delivered",
            "url": self.checkpoint.sent.last().and_then(|video| video.url.as_deref()).and_then(plain),
            "files": files,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_takes_so_many_turns_and_no_more() {
        assert_eq!(most_turns(0), SHORT_TURNS);
        assert_eq!(most_turns(32 * LEAST_PART), SHORT_TURNS + 32);
    }

    #[test]
    fn what_lets_in_is_not_kept() {
        let signed = "https://s3.example.com/b/video.mp4?X-Amz-Signature=1";
        assert_eq!(plain(signed), Some("https://s3.example.com/b/video.mp4"));
        let shared = "https://www.loom.com/share/0123456789abcdef0123456789abcdef";
        assert_eq!(plain(shared), Some(shared));
        // As an earlier version kept it.
        assert_eq!(plain("sealed:AAAA"), None);
    }

    #[test]
    fn a_file_that_can_be_gone_on_with_gives_way() {
        let at = |offset| Upload { offset, ..Upload::default() };
        assert!(gives_way(true, TURN, &at(5), 10));
        assert!(!gives_way(true, Duration::from_mins(29), &at(5), 10));
        assert!(!gives_way(true, TURN, &at(10), 10), "what is left is to finish it");
        assert!(!gives_way(false, TURN, &at(5), 10));
    }
}

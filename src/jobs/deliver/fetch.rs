//! The video: asked for, waited for, and brought to the staging folder, from where it stopped if need be.
//!
//! The link to it is a credential: it exists in clear here only, and in the checkpoint sealed.

use std::path::Path;
use std::time::Duration;

use tokio::fs::File;
use tokio::fs::OpenOptions;
use tokio::io::AsyncSeekExt;
use tokio::io::AsyncWriteExt;
use tokio::time::Instant;

use super::attempt::Attempt;
use super::attempt::Step;
use super::attempt::dead;
use super::attempt::no_room;
use super::attempt::now;
use super::attempt::of_fathom;
use super::attempt::of_io;
use super::attempt::retry;
use super::checkpoint::Download;
use super::checkpoint::Link;
use super::checkpoint::Staged;
use super::checkpoint::Subject;
use super::names;
use super::staging::digest;
use crate::failpoint;
use crate::integrations::fathom;
use crate::integrations::fathom::DownloadStatus;
use crate::integrations::fathom::Fetched;
use crate::integrations::fathom::Media;
use crate::integrations::fathom::RecordingDownload;
use crate::jobs::destinations::Kind;
use crate::jobs::destinations::Pace;
use crate::jobs::destinations::loom;
use crate::queue::JobId;
use crate::queue::Outcome;
use crate::vault::Secret;

const LINK: &str = "link";
const VIDEO: &str = "video.mp4";
const PART: &str = "video.part";
/// How long one attempt waits for Fathom; then the job gives its place to others.
const HOLD: Duration = Duration::from_mins(2);
const NEXT_LOOK: Duration = Duration::from_secs(30);
/// What a delivery waits for whose owner has too much lying here, and how long until it looks again.
const NO_SHARE: &str = "your other recordings that wait to be fetched take all the room you have here; submit their \
    share links or cancel them";
const NEXT_SHARE: Duration = Duration::from_mins(10);
/// How often a body may end early within one attempt, as long as each brings something.
const MAX_RESUMES: u32 = 20;
/// How many bytes are written between two looks at the room that is left.
const ROOM_EVERY: u64 = 32 * 1024 * 1024;

/// How the transfer of a body ended.
enum Ended {
    /// The host sent all it announced.
    Whole,
    /// The body broke off; what came is kept.
    Short,
}

impl Attempt {
    /// Has the video staged, whole.
    pub(super) async fn fetch_video(&mut self, subject: &Subject) -> Step<()> {
        if let Some(video) = &self.checkpoint.video {
            let path = self.folder.join(&video.file);
            if path.metadata().is_ok_and(|found| found.len() == video.size) {
                return Ok(());
            }
            self.checkpoint.video = None;
            self.checkpoint.files.clear();
        }
        self.parts.staging.make(self.run.job.id.as_str()).map_err(of_io)?;
        self.share(0).await?;
        let (part, path) = (self.folder.join(PART), self.folder.join(VIDEO));
        if path.exists() && !part.exists() {
            // A kill between the new name and the note of it: it is looked at again.
            tokio::fs::rename(&path, &part).await.map_err(of_io)?;
        }
        let mut resumes = 0;
        loop {
            let (link, url) = self.link(subject).await?;
            match self.transfer(&link, url).await? {
                Ended::Whole => break,
                Ended::Short if resumes < MAX_RESUMES => resumes += 1,
                Ended::Short => return Err(retry("the recording broke off again and again")),
            }
        }
        self.keep_video(subject).await
    }

    /// A link that is good, from the checkpoint or from Fathom.
    async fn link(&mut self, subject: &Subject) -> Step<(Link, Secret)> {
        loop {
            if let Some(Download { link: Some(link), .. }) = &self.checkpoint.download
                && link.is_good(now())
                && let Some(url) = self.unseal(LINK, &link.sealed).await
            {
                return Ok((link.clone(), url));
            }
            if self.checkpoint.download.as_ref().is_some_and(|download| download.link.is_some()) {
                self.checkpoint.download = None;
                self.restart("the link to the recording was over").await?;
            }
            self.prepare(subject).await?;
        }
    }

    /// Asks Fathom for the download and waits until it is prepared.
    async fn prepare(&mut self, subject: &Subject) -> Step<()> {
        let session = self.fathom().await?;
        let mut answer = None;
        if self.checkpoint.download.is_none() {
            self.run.progress("requesting", 0, None);
            let asked = session.request_download(subject.recording_id).await.map_err(|error| of_fathom(&error))?;
            let id = asked.download_id.clone();
            self.checkpoint.download = Some(Download { id, requested_at: now(), link: None });
            failpoint::hit("delivery.asked");
            self.save().await?;
            failpoint::hit("delivery.requested");
            answer = Some(asked);
        }
        let Some(download) = self.checkpoint.download.clone() else { return Err(retry("no download was noted")) };
        let until = Instant::now() + HOLD;
        let mut looks = tokio::time::interval(self.parts.config.poll_interval);
        looks.tick().await;
        loop {
            let found = match answer.take() {
                Some(found) => found,
                None => match session.download(subject.recording_id, &download.id).await {
                    Ok(found) => found,
                    // Asked for with another key, or forgotten.
                    Err(fathom::Error::NotFound) => {
                        self.checkpoint.download = None;
                        return self.restart("Fathom does not know the download any more").await;
                    }
                    Err(error) => return Err(of_fathom(&error)),
                },
            };
            if self.judge(found).await? {
                return Ok(());
            }
            self.run.progress("preparing", 0, None);
            let waited = now() - download.requested_at;
            if waited > self.parts.config.poll_deadline {
                self.checkpoint.download = None;
                self.save().await?;
                return Err(retry("Fathom did not prepare the recording in time"));
            }
            if Instant::now() > until {
                return Err(self.later("Fathom prepares the recording", NEXT_LOOK).await?);
            }
            looks.tick().await;
        }
    }

    /// Whether a download is over, for better or worse.
    async fn judge(&mut self, found: RecordingDownload) -> Step<bool> {
        match found.status {
            DownloadStatus::Completed => {
                let media = found.video.ok_or_else(|| dead("Fathom has no video of this recording"))?;
                let link = Link {
                    sealed: self.seal(LINK, media.url.expose().to_owned()).await?,
                    size: media.file_size_bytes,
                    content_type: media.content_type.unwrap_or_else(|| "video/mp4".to_owned()),
                    expires_at: media.expires_at,
                };
                if let Some(download) = &mut self.checkpoint.download {
                    download.link = Some(link);
                }
                self.save().await?;
                failpoint::hit("delivery.linked");
                Ok(true)
            }
            DownloadStatus::Failed => {
                self.checkpoint.download = None;
                let reason = match found.failure_reason.as_deref() {
                    Some("generation_timeout") => "Fathom could not prepare the recording in time",
                    _ => "Fathom could not prepare the recording",
                };
                self.restart(reason).await?;
                Err(retry(reason))
            }
            DownloadStatus::Expired => {
                self.checkpoint.download = None;
                self.restart("the download was over before it began").await?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    /// One request for the rest of the video.
    async fn transfer(&mut self, link: &Link, url: Secret) -> Step<Ended> {
        let path = self.folder.join(PART);
        let mut have = tokio::fs::metadata(&path).await.map_or(0, |found| found.len());
        if let Some(size) = link.size {
            self.fits(size)?;
            if have == size {
                return Ok(Ended::Whole);
            }
            if have > size {
                have = 0;
            }
            self.room(size - have)?;
            self.share(size).await?;
        }
        let media = Media { url, content_type: None, file_size_bytes: link.size, expires_at: link.expires_at };
        let fetched = match self.parts.fathom.fetch(&media, have, self.checkpoint.etag.as_deref()).await {
            Ok(fetched) => fetched,
            Err(fathom::Error::LinkExpired) => {
                self.checkpoint.download = None;
                self.restart("the link to the recording was refused").await?;
                return Ok(Ended::Short);
            }
            // What is there does not go with what is asked for.
            Err(fathom::Error::Rejected { status: 416, .. } | fathom::Error::Malformed(_)) if have > 0 => {
                self.throw_away(&path, "the recording could not be resumed").await?;
                return Ok(Ended::Short);
            }
            Err(error) => return Err(of_fathom(&error)),
        };
        let total = link.size.or(fetched.length);
        if let (Some(announced), Some(size)) = (fetched.length, link.size)
            && announced != size
        {
            self.throw_away(&path, "the recording has another size than Fathom says").await?;
            return Err(retry("the recording has another size than Fathom says"));
        }
        if let Some(total) = total {
            self.fits(total)?;
            self.room(total.saturating_sub(fetched.offset))?;
        }
        if fetched.etag != self.checkpoint.etag {
            // First: under the new mark a part of the old version would be gone on with.
            cut(&path, fetched.offset).await.map_err(of_io)?;
            failpoint::hit("delivery.cut");
            self.checkpoint.etag.clone_from(&fetched.etag);
            self.save().await?;
            failpoint::hit("delivery.marked");
        }
        self.write(&path, fetched, total).await
    }

    /// Writes what comes, from where it begins.
    async fn write(&mut self, path: &Path, mut fetched: Fetched, total: Option<u64>) -> Step<Ended> {
        let mut file = OpenOptions::new().create(true).write(true).truncate(false).open(path).await.map_err(of_io)?;
        let mut have = fetched.offset;
        file.set_len(have).await.map_err(of_io)?;
        file.seek(std::io::SeekFrom::Start(have)).await.map_err(of_io)?;
        let most = total.unwrap_or(self.parts.config.max_bytes);
        let (mut looked_at, mut pace) = (have, Pace::coming(Instant::now()));
        let ended = loop {
            match fetched.chunk().await {
                // Others wait for the place.
                Ok(Some(_)) if !pace.goes_on(have - fetched.offset, Instant::now()) => break false,
                Ok(Some(chunk)) => {
                    have += chunk.len() as u64;
                    if have > most {
                        drop(file);
                        self.throw_away(path, "the recording is longer than was said").await?;
                        return Err(retry("the recording is longer than was said"));
                    }
                    file.write_all(&chunk).await.map_err(of_io)?;
                    self.run.progress("downloading", have, total);
                    failpoint::hit("delivery.fetching");
                    if have - looked_at > ROOM_EVERY {
                        looked_at = have;
                        self.room(0)?;
                    }
                }
                Ok(None) => break total.is_none_or(|total| have == total),
                // What came before it broke off is good.
                Err(_) => break false,
            }
        };
        sync(&mut file).await?;
        self.parts.metrics.fetched(have.saturating_sub(fetched.offset));
        Ok(if ended { Ended::Whole } else { Ended::Short })
    }

    /// The part is whole: its name says so from now on.
    async fn keep_video(&mut self, subject: &Subject) -> Step<()> {
        let (part, path) = (self.folder.join(PART), self.folder.join(VIDEO));
        self.run.progress("checking", 0, None);
        let read = part.clone();
        let (size, sha256) = tokio::task::spawn_blocking(move || digest(&read))
            .await
            .map_err(|error| of_io(std::io::Error::other(error)))?
            .map_err(of_io)?;
        let link = self.checkpoint.download.as_ref().and_then(|download| download.link.clone());
        if link.as_ref().and_then(|link| link.size).is_some_and(|expected| expected != size) || size == 0 {
            self.throw_away(&part, "the recording has another size than Fathom says").await?;
            return Err(retry("the recording has another size than Fathom says"));
        }
        tokio::fs::rename(&part, &path).await.map_err(of_io)?;
        failpoint::hit("delivery.renamed");
        let name = match subject.kind {
            // Loom takes the name of the file as the title.
            Kind::Loom => format!("{}.mp4", names::title_part(&subject.title)),
            _ => VIDEO.to_owned(),
        };
        let content_type = link.map_or_else(|| "video/mp4".to_owned(), |link| link.content_type);
        let (kind, file) = ("video".to_owned(), VIDEO.to_owned());
        self.checkpoint.video = Some(Staged { kind, file, name, content_type, size, sha256 });
        // The link has done its part.
        self.checkpoint.download = None;
        self.save().await?;
        failpoint::hit("delivery.fetched");
        Ok(())
    }

    fn fits(&self, size: u64) -> Step<()> {
        let is_loom = self.checkpoint.subject.as_ref().is_some_and(|subject| subject.kind == Kind::Loom);
        if size > self.parts.config.max_bytes {
            return Err(dead("the recording is larger than this server takes (delivery.max_bytes)"));
        }
        if is_loom && size >= loom::MAX_BYTES {
            return Err(dead("the recording is larger than Loom takes (4 GB)"));
        }
        Ok(())
    }

    fn room(&self, more: u64) -> Step<()> {
        if self.parts.staging.has_room(more).map_err(of_io)? { Ok(()) } else { Err(no_room()) }
    }

    /// Waits until what lies here for the tenant leaves them enough of their share for a video of this size. The
    /// others go on meanwhile.
    async fn share(&mut self, size: u64) -> Step<()> {
        let own = self.run.job.id.as_str();
        let is_theirs = |name: &str| name != own && JobId::parse(name).is_ok_and(|id| self.run.sibling(&id).is_some());
        let used = self.parts.staging.used(is_theirs).map_err(of_io)?;
        let config = &self.parts.config;
        if used.leaves(size, config.max_staged_per_tenant, config.max_staged_bytes_per_tenant) {
            return Ok(());
        }
        // The link would be over by then.
        self.checkpoint.download = None;
        Err(self.later(NO_SHARE, NEXT_SHARE).await?)
    }

    /// Notes that it waits, and how.
    pub(super) async fn later(&mut self, reason: &str, after: Duration) -> Step<Outcome> {
        self.checkpoint.is_waiting = true;
        self.save().await?;
        Ok(super::later(reason, after))
    }

    async fn throw_away(&mut self, path: &Path, reason: &str) -> Step<()> {
        match tokio::fs::remove_file(path).await {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(of_io(error)),
            _ => {}
        }
        self.checkpoint.etag = None;
        // What was said of it may be what was wrong.
        self.checkpoint.download = None;
        self.restart(reason).await
    }
}

/// Shortens a file, if there is one, durably.
async fn cut(path: &Path, length: u64) -> std::io::Result<()> {
    match OpenOptions::new().write(true).open(path).await {
        Ok(file) => {
            file.set_len(length).await?;
            file.sync_all().await
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

async fn sync(file: &mut File) -> Step<()> {
    file.flush().await.map_err(of_io)?;
    file.sync_all().await.map_err(of_io)
}

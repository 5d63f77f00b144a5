//! The refresh: reads Fathom's pages into the user's own instance, one refresh per user at a time.
//!
//! After each page what it says and where to go on are written in one transaction, so that a refresh that is killed goes
//! on with the page it was at. While the limits of Fathom let it wait, it stays under way; what fails in passing is
//! noted and tried again by the next request that finds the list too old.

use std::collections::HashMap;
use std::collections::HashSet;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use time::OffsetDateTime;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;
use tokio::sync::watch;

use super::Error;
use super::Meetings;
use super::dates;
use super::list::row_of;
use super::record::changes;
use super::record::is_keepable;
use super::record::record_id;
use super::state::Circumstances;
use super::state::Phase;
use super::state::Row;
use super::state::judge;
use crate::failpoint;
use crate::ids::TenantId;
use crate::integrations::fathom;
use crate::integrations::fathom::Meeting;
use crate::integrations::fathom::MeetingsQuery;
use crate::integrations::fathom::Patience;
use crate::integrations::fathom::Session;
use crate::records::Instance;
use crate::records::Put;
use crate::records::sql_text;
use crate::supervisor::Priority;

/// Refreshes that are under way or wait for their turn.
const MAX_FLIGHTS: usize = 10_000;
/// Pages of one phase: Fathom's cursors come from outside and could go round.
const MAX_PAGES: usize = 20_000;
/// How long one call to Fathom is tried.
const PATIENCE: Patience = Patience { total: Duration::from_secs(10) };
/// Longest single wait for Fathom's limits, and how many a refresh takes before it gives its place to others.
const LONGEST_WAIT: Duration = Duration::from_secs(61);
const MAX_WAITS: u32 = 60;
/// Longest time before a refresh that failed in passing is tried again.
const RETRY: Duration = Duration::from_mins(1);
/// While contents are read, the list is read again when it is older than this.
const RELIST: Duration = Duration::from_mins(5);

/// How far a refresh is, for those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Begun,
    FirstPage,
}

/// A refresh to wait for.
#[derive(Debug)]
pub(super) struct Flight(watch::Receiver<Step>);

impl Flight {
    /// Resolves when the first page is there, or the refresh is over.
    pub(super) async fn shows_something(&mut self) {
        // An error says that it is over.
        let _ = self.0.wait_for(|step| *step == Step::FirstPage).await;
    }
}

/// What those who wait for a refresh want of it. Without either it reads what is too old by the time it begins.
#[derive(Debug, Default)]
struct Wants {
    /// To ask Fathom in any case.
    any: AtomicBool,
    /// To read the list from its beginning.
    all: AtomicBool,
}

/// A refresh that is under way.
struct Airborne {
    step: watch::Receiver<Step>,
    wants: Arc<Wants>,
}

type Running = Arc<Mutex<HashMap<TenantId, Airborne>>>;

/// The refreshes that are under way, by tenant.
pub(super) struct Flights {
    running: Running,
    turns: Arc<Semaphore>,
}

impl Flights {
    pub(super) fn new(at_once: usize) -> Self {
        Self { running: Arc::default(), turns: Arc::new(Semaphore::new(at_once)) }
    }

    pub(super) fn is_running(&self, tenant: &TenantId) -> bool {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).contains_key(tenant)
    }
}

/// Takes a refresh off the list, whatever ends it.
struct Landing {
    running: Running,
    tenant: TenantId,
}

impl Drop for Landing {
    fn drop(&mut self) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.tenant);
    }
}

impl Meetings {
    /// Begins a refresh of a list that was found too old, unless one is under way; none when too many are. What was found
    /// may be what the last refresh has mended since, so the new one looks again before it asks Fathom.
    pub(super) fn begin(&self, tenant: &TenantId) -> Option<Flight> {
        self.begin_with(tenant, false, false)
    }

    fn begin_with(&self, tenant: &TenantId, any: bool, all: bool) -> Option<Flight> {
        let flights = &self.inner.flights;
        let mut running = flights.running.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = running.get(tenant) {
            flight.wants.any.fetch_or(any, Ordering::AcqRel);
            flight.wants.all.fetch_or(all, Ordering::AcqRel);
            return Some(Flight(flight.step.clone()));
        }
        if running.len() >= MAX_FLIGHTS || self.inner.parts.shutdown.has_begun() {
            return None;
        }
        let (step, flight) = watch::channel(Step::Begun);
        let wants = Arc::new(Wants { any: AtomicBool::new(any), all: AtomicBool::new(all) });
        running.insert(tenant.clone(), Airborne { step: flight.clone(), wants: Arc::clone(&wants) });
        drop(running);
        let landing = Landing { running: Arc::clone(&flights.running), tenant: tenant.clone() };
        let (meetings, turns) = (self.clone(), Arc::clone(&flights.turns));
        let shutdown = self.inner.parts.shutdown.clone();
        let task = async move {
            // First of all, so that whoever waits for `step` finds the refresh off the list.
            let (step, landing) = (step, landing);
            let work = async {
                let mut turn = Turn { turns, permit: None };
                turn.take().await;
                meetings.fly(&landing.tenant, &step, &wants, turn).await;
            };
            tokio::select! {
                () = work => {}
                () = shutdown.begun() => {}
            }
            drop(landing);
            drop(step);
        };
        self.inner.parts.shutdown.spawn_on(task, &self.inner.runtime);
        Some(Flight(flight))
    }

    /// Begins a refresh because somebody asked for it, also when the last one failed; true when one is under way.
    pub fn sync(&self, tenant: &TenantId) -> bool {
        self.begin_with(tenant, true, false).is_some()
    }

    /// The same, and the list is read from its beginning.
    pub fn sync_all(&self, tenant: &TenantId) -> bool {
        self.begin_with(tenant, true, true).is_some()
    }

    async fn fly(&self, tenant: &TenantId, step: &watch::Sender<Step>, wants: &Wants, turn: Turn) {
        let begun = std::time::Instant::now();
        // To open the key may take a call to Fathom.
        self.inner.parts.records.expect(tenant);
        let (session, key) = match self.session(tenant, "sync meetings").await {
            Ok((session, key)) => (session.patience(PATIENCE), key),
            Err(error) => {
                tracing::info!(tenant.id = %tenant, %error, "meetings are not synced: no key can be used");
                return;
            }
        };
        let mut run = Run { meetings: self, tenant, key: &key, session, step, wants, turn, waits: 0, written: 0 };
        match run.whole().await {
            Ok(false) => {}
            Ok(true) => {
                let duration_ms = begun.elapsed().as_millis();
                tracing::info!(tenant.id = %tenant, meetings = run.written, duration_ms, "synced meetings");
            }
            Err(error) => self.note_failure(tenant, &key, &error).await,
        }
    }

    async fn note_failure(&self, tenant: &TenantId, key: &str, error: &Error) {
        tracing::info!(tenant.id = %tenant, %error, "meetings are not synced");
        let now = OffsetDateTime::now_utc();
        let (retry_at, refused) = match error {
            Error::Fathom(fathom::Error::Unauthorized) => (None, key),
            Error::Fathom(fathom::Error::RateLimited { retry_after }) => (Some(now + *retry_after), ""),
            _ => (Some(now + RETRY.min(self.inner.parts.config.ttl)), ""),
        };
        let noted = async {
            let instance = self.inner.parts.records.open(tenant, Priority::Background).await?;
            let mut row = row_of(&instance).await?;
            row.fail(error.to_string(), retry_at, refused);
            instance.put(&[Put { collection: "sync_state", value: &row.record() }]).await?;
            Ok::<_, Error>(())
        };
        if let Err(error) = noted.await {
            tracing::info!(tenant.id = %tenant, %error, "a failure to sync could not be noted");
        }
    }

    /// Asks for the summary and the transcript of one meeting and keeps them.
    pub(super) async fn fetch_contents(&self, tenant: &TenantId, recording_id: u64) -> Result<(), Error> {
        self.inner.parts.records.expect(tenant);
        let (session, _) = self.session(tenant, "read a meeting").await?;
        let session = session.patience(Patience::JOB);
        let (summary, transcript) = (session.summary(recording_id).await?, session.transcript(recording_id).await?);
        let instance = self.inner.parts.records.open(tenant, Priority::Client).await?;
        let id = record_id(recording_id);
        let known = digests(&instance, std::slice::from_ref(&id)).await?;
        // The rest of the meeting is known; only these two are compared.
        let Some(digest) = known.get(&id) else { return Ok(()) };
        let contents = super::record::contents(recording_id, summary, transcript, digest, OffsetDateTime::now_utc());
        if let Some(record) = contents {
            instance.update("meetings", &id, &record).await?;
        }
        Ok(())
    }

    /// Keeps a meeting that came by itself; true when it was not known.
    pub async fn ingest(&self, tenant: &TenantId, meeting: &Meeting) -> Result<bool, Error> {
        let instance = self.inner.parts.records.open(tenant, Priority::Background).await?;
        let id = record_id(meeting.recording_id);
        if !is_keepable(meeting) {
            return Err(Error::NotAMeeting);
        }
        let known = digests(&instance, std::slice::from_ref(&id)).await?;
        let known = known.get(&id).map(String::as_str);
        if let Some(record) = changes(meeting, known, OffsetDateTime::now_utc()) {
            instance.put(&[Put { collection: "meetings", value: &record }]).await?;
        }
        Ok(known.is_none())
    }
}

/// What the records with these ids know of the source.
async fn digests(instance: &Instance, ids: &[String]) -> Result<HashMap<String, String>, Error> {
    if ids.is_empty() {
        return Ok(HashMap::new());
    }
    let ids: Vec<String> = ids.iter().map(|id| sql_text(id)).collect();
    let select = format!("SELECT id, digest FROM meetings WHERE id IN ({})", ids.join(", "));
    let rows = instance.rows(&select).await?;
    let pair = |row: Vec<Option<String>>| {
        let mut values = row.into_iter();
        Some((values.next()??, values.next()??))
    };
    Ok(rows.into_iter().filter_map(pair).collect())
}

/// A place among those that are refreshed at once.
struct Turn {
    turns: Arc<Semaphore>,
    permit: Option<OwnedSemaphorePermit>,
}

impl Turn {
    async fn take(&mut self) {
        // It is never closed.
        self.permit = Arc::clone(&self.turns).acquire_owned().await.ok();
    }

    /// Others have it meanwhile.
    async fn pause(&mut self, time: Duration) {
        self.permit = None;
        tokio::time::sleep(time).await;
        self.take().await;
    }
}

/// One refresh.
struct Run<'a> {
    meetings: &'a Meetings,
    tenant: &'a TenantId,
    key: &'a str,
    session: Session,
    step: &'a watch::Sender<Step>,
    wants: &'a Wants,
    turn: Turn,
    waits: u32,
    written: usize,
}

impl Run<'_> {
    async fn instance(&self) -> Result<Instance, Error> {
        Ok(self.meetings.inner.parts.records.open(self.tenant, Priority::Background).await?)
    }

    /// False when there was nothing to do.
    async fn whole(&mut self) -> Result<bool, Error> {
        let mut is_all_wanted = false;
        let mut row = row_of(&self.instance().await?).await?;
        if !self.wants.any.load(Ordering::Acquire) && !self.is_due(&row) {
            return Ok(false);
        }
        loop {
            is_all_wanted |= self.wants.all.swap(false, Ordering::AcqRel);
            let config = &self.meetings.inner.parts.config;
            let phase;
            (phase, row) = row.begin(config, self.key, is_all_wanted, OffsetDateTime::now_utc());
            if phase == Phase::List {
                is_all_wanted &= !row.since.is_empty();
                self.list(&mut row).await?;
            }
            self.contents(&mut row).await?;
            // What was interrupted before goes first; who asked meanwhile is not forgotten.
            if !is_all_wanted && !self.wants.all.load(Ordering::Acquire) {
                return Ok(true);
            }
            row = row_of(&self.instance().await?).await?;
        }
    }

    /// Whether whoever sees this row would begin a refresh.
    fn is_due(&self, row: &Row) -> bool {
        let around = Circumstances { key: Some(self.key), is_running: false };
        judge(row, around, OffsetDateTime::now_utc(), &self.meetings.inner.parts.config).refresh
    }

    /// Reads which meetings there are, and leaves the row at the beginning of the contents, or at the end.
    async fn list(&mut self, row: &mut Row) -> Result<(), Error> {
        let (is_whole, whole_at) = (row.since.is_empty(), row.read_whole_at());
        let usual = dates::stored(row.usual_since(self.meetings.inner.parts.config.overlap));
        let mut walk = Walk::default();
        loop {
            let page = self.page(row, Phase::List).await?;
            let next = next_of(&page);
            row.read(next.as_deref(), newest_of(&page));
            let instance = self.instance().await?;
            if next.is_some() {
                self.keep(&instance, &page.items, Some(row)).await?;
                walk.step(&row.cursor)?;
                continue;
            }
            let now = OffsetDateTime::now_utc();
            row.listed(now);
            // The meetings first: what lacks contents is asked of them.
            self.keep(&instance, &page.items, Some(row)).await?;
            let since = if is_whole && whole_at.is_some() { &usual } else { &row.since };
            let oldest = lacking(&instance, since, whole_at.filter(|_| is_whole)).await?;
            if is_whole {
                row.read_whole(now);
            }
            match oldest {
                Some(oldest) => row.enter(Phase::Contents, oldest),
                None => row.finish(),
            }
            instance.put(&[Put { collection: "sync_state", value: &row.record() }]).await?;
            return Ok(());
        }
    }

    /// Reads what is new while contents are read. The row says where those go on, also after a kill: it is written once,
    /// with what the list says.
    async fn list_aside(&mut self, row: &mut Row) -> Result<(), Error> {
        let mut aside = row.clone();
        aside.enter(Phase::List, row.usual_since(self.meetings.inner.parts.config.overlap));
        let mut walk = Walk::default();
        loop {
            let page = self.page(&mut aside, Phase::List).await?;
            let next = next_of(&page);
            aside.read(next.as_deref(), newest_of(&page));
            self.keep(&self.instance().await?, &page.items, None).await?;
            if next.is_none() {
                break;
            }
            walk.step(&aside.cursor)?;
        }
        row.seen = aside.seen;
        row.listed(OffsetDateTime::now_utc());
        self.instance().await?.put(&[Put { collection: "sync_state", value: &row.record() }]).await?;
        failpoint::hit("meetings.relisted");
        Ok(())
    }

    /// Reads what was said in the meetings since the row's `since`.
    async fn contents(&mut self, row: &mut Row) -> Result<(), Error> {
        let mut walk = Walk::default();
        while row.phase == "contents" {
            let now = OffsetDateTime::now_utc();
            let relist = RELIST.max(self.meetings.inner.parts.config.ttl);
            if row.synced_at().is_some_and(|at| now - at > relist) {
                self.list_aside(row).await?;
            }
            let page = self.page(row, Phase::Contents).await?;
            let next = next_of(&page);
            row.read(next.as_deref(), None);
            if next.is_none() {
                row.finish();
            }
            self.keep(&self.instance().await?, &page.items, Some(row)).await?;
            if next.is_some() {
                walk.step(&row.cursor)?;
            }
        }
        Ok(())
    }

    /// One page, however long the limits make it take.
    async fn page(&mut self, row: &mut Row, phase: Phase) -> Result<fathom::Page<Meeting>, Error> {
        loop {
            let query = MeetingsQuery {
                cursor: Some(row.cursor.clone()).filter(|cursor| !cursor.is_empty()),
                created_after: dates::instant(&row.since),
                include_action_items: true,
                include_summary: phase == Phase::Contents,
                include_transcript: phase == Phase::Contents,
                ..MeetingsQuery::default()
            };
            match self.session.meetings(&query).await {
                Err(fathom::Error::RateLimited { retry_after }) if self.waits < MAX_WAITS => {
                    self.waits += 1;
                    self.turn.pause(retry_after.clamp(Duration::from_millis(100), LONGEST_WAIT)).await;
                }
                // A cursor that was kept for long may be known no more.
                Err(fathom::Error::Rejected { .. } | fathom::Error::NotFound) if !row.cursor.is_empty() => {
                    row.cursor = String::new();
                }
                answer => return Ok(answer?),
            }
        }
    }

    /// Keeps a page, and where to go on if that is given, together.
    async fn keep(&mut self, instance: &Instance, meetings: &[Meeting], row: Option<&Row>) -> Result<(), Error> {
        let keepable: Vec<&Meeting> = meetings.iter().filter(|meeting| is_keepable(meeting)).collect();
        let ids: Vec<String> = keepable.iter().map(|meeting| record_id(meeting.recording_id)).collect();
        let known = digests(instance, &ids).await?;
        let now = OffsetDateTime::now_utc();
        let mut seen = HashSet::new();
        let records: Vec<_> = keepable
            .iter()
            .zip(&ids)
            .filter(|(_, id)| seen.insert(id.as_str()))
            .filter_map(|(meeting, id)| changes(meeting, known.get(id).map(String::as_str), now))
            .collect();
        let row = row.map(Row::record);
        let mut puts: Vec<_> = records.iter().map(|value| Put { collection: "meetings", value }).collect();
        // Fathom's pages have 10; a larger one is written in parts, the row with the last.
        puts.extend(row.as_ref().map(|value| Put { collection: "sync_state", value }));
        for group in puts.chunks(25) {
            instance.put(group).await?;
        }
        self.written += records.len();
        failpoint::hit("meetings.page_stored");
        self.step.send_replace(Step::FirstPage);
        Ok(())
    }
}

/// Of the meetings since then, and of those that were kept here since `kept`, whether any lacks its contents: since when
/// to read those, one second before the oldest.
async fn lacking(
    instance: &Instance,
    since: &str,
    kept: Option<OffsetDateTime>,
) -> Result<Option<Option<OffsetDateTime>>, Error> {
    let kept = kept.map(|at| format!(" OR created >= {}", sql_text(&dates::stored(Some(at))))).unwrap_or_default();
    let select = format!(
        "SELECT count(*), min(created_at) FROM meetings WHERE (created_at >= {}{kept}) AND (has_transcript = 0 \
         OR summary = '')",
        sql_text(since)
    );
    let rows = instance.rows(&select).await?;
    let mut values = rows.into_iter().next().unwrap_or_default().into_iter();
    let count = values.next().flatten().unwrap_or_default();
    let oldest = values.next().flatten().and_then(|text| dates::instant(&text));
    Ok((count != "0" && !count.is_empty()).then_some(oldest.map(|at| at - Duration::from_secs(1))))
}

fn newest_of(page: &fathom::Page<Meeting>) -> Option<OffsetDateTime> {
    page.items.iter().filter_map(|meeting| meeting.created_at).max()
}

/// Where to go on; nowhere behind a page without anything.
fn next_of(page: &fathom::Page<Meeting>) -> Option<String> {
    page.next_cursor.clone().filter(|_| !page.items.is_empty() || page.skipped > 0)
}

/// A walk over pages whose order somebody else decides.
#[derive(Default)]
struct Walk {
    seen: HashSet<String>,
}

impl Walk {
    fn step(&mut self, cursor: &str) -> Result<(), Error> {
        if self.seen.len() >= MAX_PAGES || !self.seen.insert(cursor.to_owned()) {
            return Err(fathom::Error::Malformed("pages without end").into());
        }
        Ok(())
    }
}

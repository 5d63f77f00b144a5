//! Everything the stand-in knows: keys and their meetings, tokens, downloads, webhooks, budgets, faults, counts.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::content;
use crate::content::Made;
use crate::downloads::Download;
use crate::faults::Fault;
use crate::hooks::Delivery;
use crate::hooks::Hook;
use crate::oauth::Grants;

/// What can be changed while it runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Settings {
    pub(crate) calls_per_minute: usize,
    pub(crate) heavy_per_minute: usize,
    pub(crate) downloads_per_minute: usize,
    pub(crate) download_polls: u32,
    pub(crate) download_ms: u64,
    /// How long a signed link is good.
    pub(crate) link_seconds: u64,
    pub(crate) media_bytes: u64,
    pub(crate) media_rate: u64,
    /// Another one has other bytes under the same links.
    pub(crate) media_version: u64,
    /// How long an access token is good.
    pub(crate) token_seconds: u64,
    /// Pauses before each further try of a webhook delivery.
    pub(crate) webhook_retries_ms: Vec<u64>,
    pub(crate) client_id: String,
    pub(crate) client_secret: String,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            calls_per_minute: 60,
            heavy_per_minute: 30,
            downloads_per_minute: 30,
            download_polls: 2,
            download_ms: 0,
            link_seconds: 24 * 3600,
            media_bytes: 2_000_000,
            media_rate: 0,
            media_version: 0,
            token_seconds: 3600,
            webhook_retries_ms: vec![200, 1000, 5000],
            client_id: "standin-app".to_owned(),
            client_secret: "standin-secret".to_owned(),
        }
    }
}

/// A meeting and who sees how much of it.
pub(crate) struct Meeting {
    pub(crate) made: Made,
    /// Shared with limits: its recording is refused with 403.
    pub(crate) is_limited: bool,
    /// Without media: its recording is refused with 422.
    pub(crate) has_media: bool,
}

/// What one key or user has.
pub(crate) struct Account {
    pub(crate) seed: usize,
    /// Newest first.
    pub(crate) meetings: Vec<Meeting>,
    pub(crate) next_id: u64,
    budgets: [VecDeque<Instant>; 3],
}

/// What a call counts against besides the budget of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cost {
    Plain,
    Heavy,
    Download,
}

/// What the headers of an answer say.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Left {
    pub(crate) limit: usize,
    pub(crate) remaining: usize,
    pub(crate) reset: u64,
    pub(crate) is_over: bool,
}

pub(crate) struct State {
    pub(crate) settings: Settings,
    pub(crate) accounts: BTreeMap<String, Account>,
    pub(crate) downloads: HashMap<String, Download>,
    pub(crate) hooks: Vec<Hook>,
    pub(crate) deliveries: Vec<Delivery>,
    pub(crate) faults: Vec<Fault>,
    pub(crate) calls: BTreeMap<String, u64>,
    pub(crate) grants: Grants,
    pub(crate) serial: u64,
}

pub(crate) struct World {
    pub(crate) base: String,
    pub(crate) http: reqwest::Client,
    state: Mutex<State>,
}

const MINUTE: Duration = Duration::from_mins(1);

impl World {
    pub(crate) fn new(base: String, settings: Settings) -> anyhow::Result<Self> {
        let state = Mutex::new(State {
            settings,
            accounts: BTreeMap::new(),
            downloads: HashMap::new(),
            hooks: Vec::new(),
            deliveries: Vec::new(),
            faults: Vec::new(),
            calls: BTreeMap::new(),
            grants: Grants::default(),
            serial: 0,
        });
        let http = pocketfleet::outbound::client().timeout(Duration::from_secs(10)).build()?;
        Ok(Self { base, http, state })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes a key with meetings, or replaces what it has.
    pub(crate) fn add_key(&self, key: &str, meetings: usize) {
        let mut state = self.state();
        let seed = state.accounts.get(key).map_or(state.accounts.len(), |account| account.seed);
        let now = OffsetDateTime::now_utc();
        let first = 120_000_000 + seed as u64 * 1_000_000;
        let made = (0..meetings).map(|n| {
            let id = first + (meetings - n) as u64 * 37;
            Meeting { made: content::meeting(seed, n, id, now), is_limited: false, has_media: true }
        });
        let meetings: Vec<Meeting> = made.collect();
        let next_id = first + (meetings.len() as u64 + 1) * 37;
        state.accounts.insert(key.to_owned(), Account { seed, meetings, next_id, budgets: Default::default() });
    }
}

impl State {
    /// A number that was not given out yet.
    pub(crate) fn serial(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    /// Adds a meeting that just ended, with the given fields instead of its own.
    pub(crate) fn add_meeting(&mut self, key: &str, fields: &Value) -> Option<&Meeting> {
        let account = self.accounts.get_mut(key)?;
        let id = account.next_id;
        account.next_id += 37;
        let n = account.meetings.len();
        let mut made = content::fresh(account.seed, n, id, OffsetDateTime::now_utc());
        let mut meeting = Meeting {
            is_limited: false,
            has_media: true,
            made: Made { created_at: made.created_at, value: Value::Null },
        };
        for (field, value) in fields.as_object().into_iter().flatten() {
            match field.as_str() {
                "_limited" => meeting.is_limited = value == true,
                "_media" => meeting.has_media = value != false,
                _ => made.value[field] = value.clone(),
            }
        }
        if let Some(at) = fields.get("created_at").and_then(Value::as_str) {
            made.created_at = OffsetDateTime::parse(at, &Rfc3339).unwrap_or(made.created_at);
        }
        meeting.made = made;
        account.meetings.insert(0, meeting);
        account.meetings.first()
    }

    /// Counts a call of an account against its budgets.
    pub(crate) fn spend(&mut self, key: &str, cost: Cost, now: Instant) -> Left {
        let limits =
            [self.settings.calls_per_minute, self.settings.heavy_per_minute, self.settings.downloads_per_minute];
        let Some(account) = self.accounts.get_mut(key) else {
            return Left { limit: limits[0], remaining: limits[0], reset: 60, is_over: false };
        };
        let which: &[usize] = match cost {
            Cost::Plain => &[0],
            Cost::Heavy => &[0, 1],
            Cost::Download => &[0, 2],
        };
        let mut tightest: Option<Left> = None;
        for &at in which {
            let calls = &mut account.budgets[at];
            while calls.front().is_some_and(|call| now.saturating_duration_since(*call) >= MINUTE) {
                calls.pop_front();
            }
            let is_over = calls.len() >= limits[at];
            let oldest = calls.front().copied().unwrap_or(now);
            let reset = MINUTE.saturating_sub(now.saturating_duration_since(oldest)).as_secs() + 1;
            let remaining = limits[at].saturating_sub(calls.len() + 1);
            let left = Left { limit: limits[at], remaining, reset, is_over };
            if tightest.is_none_or(|other| (!left.is_over, left.remaining) <= (!other.is_over, other.remaining)) {
                tightest = Some(left);
            }
        }
        let left = tightest.unwrap_or(Left { limit: 0, remaining: 0, reset: 60, is_over: true });
        if !left.is_over {
            for &at in which {
                account.budgets[at].push_back(now);
            }
        }
        left
    }

    pub(crate) fn meeting(&self, key: &str, recording_id: u64) -> Option<&Meeting> {
        let meetings = &self.accounts.get(key)?.meetings;
        meetings.iter().find(|meeting| meeting.made.value["recording_id"] == recording_id)
    }
}

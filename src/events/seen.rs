//! How far a user has read, whatever they read with: a place for each topic, kept beside the log.
//!
//! One record a user, `seen.<user>`, of one epoch: places of another one mean nothing any more. A place only moves on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde::Serialize;

use super::Error;
use super::Position;
use super::Topic;
use crate::ids::UserId;
use crate::store;
use crate::store::Store;

/// Most topics of one user; the one that was left behind the longest gives way.
const MAX_TOPICS: usize = 128;
/// How long the store may take.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Tries while others of the same user write too.
const TRIES: usize = 16;

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Places {
    epoch: String,
    topics: BTreeMap<String, u64>,
}

impl Places {
    /// Pure: moves a place on; false if it is there or further already.
    fn note(&mut self, topic: String, position: &Position) -> bool {
        if self.epoch != position.epoch {
            *self = Self { epoch: position.epoch.clone(), topics: BTreeMap::new() };
        }
        if self.topics.get(&topic).is_some_and(|known| *known >= position.offset) {
            return false;
        }
        self.topics.insert(topic, position.offset);
        while self.topics.len() > MAX_TOPICS {
            let oldest = self.topics.iter().min_by_key(|(_, offset)| **offset).map(|(name, _)| name.clone());
            if let Some(oldest) = oldest {
                self.topics.remove(&oldest);
            }
        }
        true
    }
}

/// Where users are.
pub(super) struct Seen {
    store: Arc<dyn Store>,
}

fn key_of(user: &UserId) -> String {
    format!("seen.{user}")
}

impl Seen {
    pub(super) fn new(store: Arc<dyn Store>) -> Self {
        Self { store }
    }

    /// Where a user was last; none if nobody said.
    pub(super) async fn find(&self, user: &UserId, topic: &Topic) -> Result<Option<Position>, Error> {
        let key = key_of(user);
        let read = self.store.get(&key);
        let entry = tokio::time::timeout(TIMEOUT, read).await.map_err(|_| Error::Closed)??;
        let Some(places) = entry.and_then(|entry| serde_json::from_slice::<Places>(&entry.value).ok()) else {
            return Ok(None);
        };
        let offset = places.topics.get(&topic.to_string()).copied();
        Ok(offset.map(|offset| Position { epoch: places.epoch, offset }))
    }

    /// Moves a user's place on. Durable when it returns.
    pub(super) async fn note(&self, user: &UserId, topic: &Topic, position: &Position) -> Result<(), Error> {
        let noted = tokio::time::timeout(TIMEOUT, self.try_note(user, topic, position)).await;
        noted.map_err(|_| Error::Closed)?
    }

    async fn try_note(&self, user: &UserId, topic: &Topic, position: &Position) -> Result<(), Error> {
        let key = key_of(user);
        let mut refused: Option<store::Error> = None;
        for _ in 0..TRIES {
            let entry = self.store.get(&key).await?;
            let known = entry.as_ref().and_then(|entry| serde_json::from_slice::<Places>(&entry.value).ok());
            let mut places = known.unwrap_or_default();
            if !places.note(topic.to_string(), position) {
                return Ok(());
            }
            let value = Bytes::from(serde_json::to_vec(&places).unwrap_or_default());
            let written = match &entry {
                Some(entry) => self.store.update(&key, value, entry.revision).await,
                None => self.store.create(&key, value).await,
            };
            match written {
                Ok(_) => return Ok(()),
                Err(error) if error.is_refusal() => refused = Some(error),
                Err(error) => return Err(error.into()),
            }
        }
        refused.map_or(Ok(()), |error| Err(error.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_only_moves_on_and_belongs_to_one_epoch() {
        let at = |epoch: &str, offset| Position { epoch: epoch.to_owned(), offset };
        let mut places = Places::default();
        assert!(places.note("queue".to_owned(), &at("a", 5)));
        assert!(!places.note("queue".to_owned(), &at("a", 4)) && !places.note("queue".to_owned(), &at("a", 5)));
        assert!(places.note("system".to_owned(), &at("a", 9)));
        assert!(places.note("queue".to_owned(), &at("b", 1)));
        assert_eq!(places.topics, BTreeMap::from([("queue".to_owned(), 1)]));
        for n in 0..200 {
            places.note(format!("instance:i{n}"), &at("b", n + 2));
        }
        assert_eq!((places.topics.len(), places.topics.contains_key("queue")), (MAX_TOPICS, false));
    }
}

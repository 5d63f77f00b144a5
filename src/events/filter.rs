//! Which events of a topic a client wants. Pure.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

use super::event::Event;

/// Most words of one sort, and the longest, in bytes.
const MAX_WORDS: usize = 32;
const MAX_WORD: usize = 64;

/// Only events that fit; an empty list fits all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Filter {
    /// What happened: the name of the event has one of these in it. At most 32, of 1 to 64 bytes each, as below.
    pub event_types: Vec<String>,
    /// The kind of thing that it happened to.
    pub entity_types: Vec<String>,
    /// Which one.
    pub entity_ids: Vec<String>,
}

impl Filter {
    /// Whether it keeps to the bounds.
    pub(super) fn is_valid(&self) -> bool {
        [&self.event_types, &self.entity_types, &self.entity_ids]
            .into_iter()
            .all(|words| words.len() <= MAX_WORDS && words.iter().all(|word| (1..=MAX_WORD).contains(&word.len())))
    }

    /// Whether every event fits.
    pub(super) fn fits_all(&self) -> bool {
        self.event_types.is_empty() && self.entity_types.is_empty() && self.entity_ids.is_empty()
    }

    /// Whether this event does.
    pub(super) fn fits(&self, event: &Event) -> bool {
        let among = |words: &[String], word: Option<&str>| words.is_empty() || words.iter().any(|w| Some(&**w) == word);
        let (entity, id) = event.entity().unzip();
        (self.event_types.is_empty() || self.event_types.iter().any(|part| event.kind().contains(&**part)))
            && among(&self.entity_types, entity)
            && among(&self.entity_ids, id)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;
    use serde_json::json;

    use super::*;
    use crate::events::Message;
    use crate::events::Topic;

    fn filter(value: Value) -> Filter {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn all_lists_have_to_fit_and_an_empty_one_fits_all() {
        let job = Message::new("QueueUpdate", Value::Null).about("job", "j1");
        let job = Event::new(&Topic::System, 1, 0, 0, job);
        let bare = Event::new(&Topic::System, 2, 1, 0, Message::new("Notice", Value::Null));
        for (wanted, fits_job, fits_bare) in [
            (json!({}), true, true),
            (json!({"event_types": ["Update"]}), true, false),
            (json!({"event_types": ["Not", "Queue"]}), true, true),
            (json!({"entity_types": ["job"]}), true, false),
            (json!({"entity_types": ["jo"]}), false, false),
            (json!({"entity_types": ["job"], "entity_ids": ["j2"]}), false, false),
            (json!({"event_types": ["Queue"], "entity_types": ["job"], "entity_ids": ["j2", "j1"]}), true, false),
        ] {
            let filter = filter(wanted.clone());
            assert_eq!((filter.fits(&job), filter.fits(&bare)), (fits_job, fits_bare), "{wanted}");
        }
    }

    #[test]
    fn filters_are_bounded() {
        assert!(filter(json!({"entity_ids": vec!["x"; 32]})).is_valid());
        for bad in [
            json!({"entity_ids": vec!["x"; 33]}),
            json!({"event_types": [""]}),
            json!({"event_types": ["x".repeat(65)]}),
        ] {
            assert!(!filter(bad).is_valid());
        }
        assert!(serde_json::from_value::<Filter>(json!({"event_type": ["x"]})).is_err());
    }
}

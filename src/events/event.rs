//! One event: serialised once, framed once, shared by everybody who gets it.

use std::borrow::Cow;
use std::sync::OnceLock;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::Map;
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Topic;
use super::frame;

/// What a publisher says.
#[derive(Debug, Clone)]
pub struct Message {
    /// What happened: `QueueUpdate`, `ProgressUpdate`, ...
    pub kind: Cow<'static, str>,
    /// The particulars. Seed clients get its fields beside `type`.
    pub data: Value,
    /// Messages of one topic with the same key replace each other for as long as they have not been logged: only the
    /// latest matters.
    pub coalesce: Option<String>,
    /// What it is about, e.g. `("job", id)`.
    pub entity: Option<(Cow<'static, str>, String)>,
    /// Who caused it.
    pub actor: Option<String>,
}

impl Message {
    /// A message with nothing but its kind and particulars.
    pub fn new(kind: impl Into<Cow<'static, str>>, data: Value) -> Self {
        Self { kind: kind.into(), data, coalesce: None, entity: None, actor: None }
    }

    /// Lets the next message with the same key take its place.
    #[must_use]
    pub fn coalesced(self, key: impl Into<String>) -> Self {
        Self { coalesce: Some(key.into()), ..self }
    }

    /// Says what it is about.
    #[must_use]
    pub fn about(self, entity: impl Into<Cow<'static, str>>, id: impl Into<String>) -> Self {
        Self { entity: Some((entity.into(), id.into())), ..self }
    }

    /// Says who caused it.
    #[must_use]
    pub fn by(self, actor: impl Into<String>) -> Self {
        Self { actor: Some(actor.into()), ..self }
    }
}

/// Kinds that clients know which speak only what the seed documents name.
const SEED_KINDS: [&str; 2] = ["QueueUpdate", "ProgressUpdate"];

/// An event as it was logged.
#[derive(Debug)]
pub struct Event {
    /// What it is about.
    pub topic: Topic,
    /// Its place among all events of this epoch.
    pub offset: u64,
    /// No event of the topic lies between this offset and its own.
    pub prev: u64,
    /// When it was published, Unix milliseconds.
    pub at_ms: i64,
    kind: Box<str>,
    /// The kind of thing that it is about, and which one.
    entity: Option<(Box<str>, Box<str>)>,
    /// `"offset":…,"prev":…,…,"data":…`: the fields, without braces.
    fields: Box<str>,
    /// The flat form of the seed documents, without braces.
    flat: OnceLock<Bytes>,
    enveloped: OnceLock<Bytes>,
}

/// An event in the log.
#[derive(Deserialize)]
pub(super) struct Stored {
    offset: u64,
    prev: u64,
    at: String,
    event: String,
    #[serde(default)]
    entity: Option<String>,
    #[serde(default)]
    entity_id: Option<String>,
    #[serde(default)]
    actor: Option<String>,
    data: Value,
}

impl Stored {
    pub(super) fn into_event(self, topic: &Topic) -> Option<Event> {
        let at = OffsetDateTime::parse(&self.at, &Rfc3339).ok()?;
        let at_ms = i64::try_from(at.unix_timestamp_nanos() / 1_000_000).ok()?;
        let entity = self.entity.zip(self.entity_id).map(|(entity, id)| (Cow::Owned(entity), id));
        let message =
            Message { kind: Cow::Owned(self.event), data: self.data, coalesce: None, entity, actor: self.actor };
        Some(Event::new(topic, self.offset, self.prev, at_ms, message))
    }
}

impl Event {
    /// The event that a message becomes. `at_ms` is Unix milliseconds.
    pub(super) fn new(topic: &Topic, offset: u64, prev: u64, at_ms: i64, message: Message) -> Self {
        let mut fields = Map::new();
        fields.insert("offset".to_owned(), offset.into());
        fields.insert("prev".to_owned(), prev.into());
        fields.insert("event".to_owned(), Value::from(&*message.kind));
        let entity = message.entity.map(|(entity, id)| (Box::from(&*entity), id.into_boxed_str()));
        if let Some((entity, id)) = &entity {
            fields.insert("entity".to_owned(), Value::from(&**entity));
            fields.insert("entity_id".to_owned(), Value::from(&**id));
        }
        if let Some(actor) = message.actor {
            fields.insert("actor".to_owned(), actor.into());
        }
        fields.insert("at".to_owned(), rfc3339(at_ms).into());
        fields.insert("data".to_owned(), message.data);
        let text = Value::Object(fields).to_string();
        Self {
            topic: topic.clone(),
            offset,
            prev,
            at_ms,
            kind: message.kind.into(),
            entity,
            fields: text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or_default().into(),
            flat: OnceLock::new(),
            enveloped: OnceLock::new(),
        }
    }

    /// What happened.
    pub fn kind(&self) -> &str {
        &self.kind
    }

    /// The kind of thing that it is about, and which one.
    pub(super) fn entity(&self) -> Option<(&str, &str)> {
        self.entity.as_ref().map(|(entity, id)| (&**entity, &**id))
    }

    /// Whether a client that speaks only what the seed documents name knows it.
    pub(super) fn is_seed(&self) -> bool {
        SEED_KINDS.contains(&&*self.kind)
    }

    /// Bytes it takes in memory, about.
    pub(super) fn weight(&self) -> usize {
        self.fields.len() + 200
    }

    /// The object in the log.
    pub(super) fn stored(&self) -> String {
        format!("{{{}}}", self.fields)
    }

    /// `{"type":"Event","topic":…,"offset":…,"prev":…,"event":…,"at":…,"data":…}`
    pub fn json(&self) -> String {
        format!(r#"{{"type":"Event","topic":"{}",{}}}"#, self.topic, self.fields)
    }

    /// `{"type":"QueueUpdate",…}`, as the seed documents have it.
    pub fn flat_json(&self) -> String {
        let mut data = match serde_json::from_str::<Value>(&self.stored()) {
            Ok(mut stored) => stored["data"].take(),
            Err(_) => Value::Null,
        };
        let kind = Value::from(&*self.kind);
        if let Some(fields) = data.as_object_mut() {
            fields.insert("type".to_owned(), kind);
            data.to_string()
        } else {
            serde_json::json!({ "type": kind, "data": data }).to_string()
        }
    }

    /// The frame for clients that speak `cp.v1`.
    pub(super) fn frame(&self) -> &Bytes {
        self.enveloped.get_or_init(|| frame::text(&self.json()))
    }

    /// The frame for clients that do not.
    pub(super) fn flat_frame(&self) -> &Bytes {
        self.flat.get_or_init(|| frame::text(&self.flat_json()))
    }
}

/// Milliseconds are what JavaScript's dates know, so events carry no more.
pub(super) fn rfc3339(at_ms: i64) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(at_ms) * 1_000_000);
    at.unwrap_or(OffsetDateTime::UNIX_EPOCH).format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn an_event_comes_back_from_the_log_as_it_went_in() {
        let message = Message::new("QueueUpdate", json!({"update_type": "meeting_added", "queue": []}));
        let message = message.about("job", "j1").by("u1");
        let event = Event::new(&Topic::System, 9, 4, 1_700_000_000_123, message);
        let stored: Stored = serde_json::from_str(&event.stored()).unwrap();
        let again = stored.into_event(&Topic::System).unwrap();
        assert_eq!(again.json(), event.json());
        assert_eq!(again.at_ms, event.at_ms);
        let value: Value = serde_json::from_str(&event.json()).unwrap();
        assert_eq!((&value["type"], &value["offset"], &value["prev"]), (&json!("Event"), &json!(9), &json!(4)));
        assert_eq!((&value["event"], &value["entity_id"]), (&json!("QueueUpdate"), &json!("j1")));
        assert_eq!(value["at"], "2023-11-14T22:13:20.123Z");
    }

    #[test]
    fn seed_clients_get_flat_messages() {
        let event = Event::new(&Topic::System, 1, 0, 0, Message::new("ProgressUpdate", json!({"step": "x"})));
        let flat: Value = serde_json::from_str(&event.flat_json()).unwrap();
        assert_eq!(flat, json!({"type": "ProgressUpdate", "step": "x"}));
        assert!(event.is_seed());
    }
}

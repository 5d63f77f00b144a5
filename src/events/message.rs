//! What clients and server say to each other: the frames of `cp.v1`, as types. `asyncapi` documents them from here.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;

use super::Filter;
use super::Position;
use crate::error::Code;
use crate::error::ErrorKind;

/// The version of the protocol.
pub const VERSION: u32 = 1;
/// The subprotocol that a client offers which speaks it.
pub const SUBPROTOCOL: &str = "cp.v1.json";
/// How deep JSON of a client may nest.
const MAX_DEPTH: usize = 16;
/// Longest `id` of a frame.
const MAX_ID: usize = 64;

/// A frame of a client. Any may carry an `id` (a text or a number); it is then answered by exactly one `Reply` or
/// `Error` with the same `id`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", deny_unknown_fields)]
pub enum ClientFrame {
    /// The first frame of a client that speaks `cp.v1`; answered by `Welcome`.
    Hello {
        /// The version that the client speaks; 1.
        #[serde(default)]
        version: Option<u32>,
        /// The credential of a client that connected without one.
        #[serde(default)]
        token: Option<String>,
        /// What the client has already.
        #[serde(default)]
        resume: Option<Resume>,
    },
    /// A new token before the old one expires.
    Auth {
        /// The token.
        token: String,
    },
    /// Listen to topics.
    Subscribe {
        /// Their names: `queue`, `user:{id}`, `system`, `instance:{id}`.
        topics: Vec<String>,
        /// Get what came after this first.
        #[serde(default)]
        since: Option<Wanted>,
        /// Only events that fit.
        #[serde(default)]
        filter: Option<Filter>,
    },
    /// From now on other events of topics that one listens to.
    SubscriptionChange {
        /// Their names.
        topics: Vec<String>,
        /// Only events that fit; all without one.
        #[serde(default)]
        filter: Option<Filter>,
    },
    /// This far the user has read a topic, whatever they read with. A later `Subscribe` can ask for what came after.
    UpdateLastSeen {
        /// Its name.
        topic: String,
        /// The offset of an event of this epoch.
        offset: u64,
    },
    /// Do not listen to them any more.
    Unsubscribe {
        /// Their names.
        topics: Vec<String>,
    },
    /// Is anybody there?
    Ping {},
    /// Somebody is.
    Pong {},
}

/// What a client that comes back has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Resume {
    /// `session_id` of the last `Welcome`; for the record only.
    #[serde(default)]
    pub session_id: Option<String>,
    /// The epoch of its offsets.
    pub epoch: String,
    /// For each topic, the largest offset it has seen.
    pub topics: BTreeMap<String, u64>,
}

/// A place in the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Since {
    /// The epoch of the offset.
    pub epoch: String,
    /// The largest offset that the client has seen.
    pub offset: u64,
}

/// Where to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Wanted {
    /// Behind this place.
    Since(Since),
    /// Behind what the user's `UpdateLastSeen` said last for each topic.
    LastSeen(LastSeen),
}

/// Always `last_seen`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LastSeen {
    /// The one value.
    LastSeen,
}

impl From<Since> for Position {
    fn from(since: Since) -> Self {
        Self { epoch: since.epoch, offset: since.offset }
    }
}

/// What bounds a connection.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Limits {
    /// Largest message of a client, in bytes.
    pub max_message_bytes: usize,
    /// Most topics at once.
    pub max_topics: usize,
    /// Frames a second.
    pub frames_per_second: u32,
}

/// Where a subscription stands.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct Subscribed {
    /// The topic.
    pub topic: String,
    /// The epoch of the offset.
    pub epoch: String,
    /// What was replayed and what follows is complete after this offset.
    pub offset: u64,
}

/// A frame of the server, but for events (see [`EventFrame`]).
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type")]
pub enum ServerFrame {
    /// The answer to `Hello`.
    Welcome {
        /// The `id` of the `Hello`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<Value>,
        /// The version of the protocol that is spoken.
        version: u32,
        /// Names this connection, for operators.
        connection_id: String,
        /// Names the session that the credential belongs to.
        session_id: String,
        /// Who the client is.
        user_id: String,
        /// The tenant that is theirs.
        tenant_id: String,
        /// The epoch of offsets.
        epoch: String,
        /// The server asks a silent client after this long whether it is there.
        ping_ms: u64,
        /// When the credential expires (RFC 3339).
        expires_at: String,
        /// What bounds the connection.
        limits: Limits,
        /// What the server can do beyond the core.
        features: Vec<String>,
        /// The server's clock (RFC 3339).
        server_time: String,
        /// What the client listens to without having asked.
        topics: Vec<Subscribed>,
    },
    /// A frame with an `id` was carried out.
    Reply {
        /// Its `id`.
        id: Value,
        /// After `Subscribe`: where the topics stand.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        topics: Option<Vec<Subscribed>>,
    },
    /// A frame was not carried out.
    Error {
        /// Its `id`, if it had one.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<Value>,
        /// A code of the one registry that HTTP answers use too.
        code: String,
        /// What to do about it.
        message: String,
        /// Whether the same frame may succeed later.
        retryable: bool,
        /// When.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        retry_after_ms: Option<u64>,
    },
    /// After the events that a resuming client had missed, and before the first new one.
    Recovered {
        /// The topic.
        topic: String,
        /// Whether they are complete. If not, read the state anew: something is missing.
        recovered: bool,
        /// How many there were.
        count: usize,
        /// Everything up to here is known now.
        offset: u64,
    },
    /// The server ended a subscription: the right to it is gone.
    Unsubscribed {
        /// The topic.
        topic: String,
        /// A code of the registry.
        code: String,
    },
    /// The server is about to close.
    Disconnect {
        /// The close code that follows.
        code: u16,
        /// The same in words.
        reason: String,
        /// Whether to connect again.
        reconnect: bool,
        /// Not before this.
        reconnect_after_ms: u64,
    },
    /// The answer to `Ping`.
    Pong {
        /// The `id` of the `Ping`.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        id: Option<Value>,
    },
}

/// An event, to a client that said `Hello`.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct EventFrame {
    /// `Event`.
    #[serde(rename = "type")]
    pub kind: EventTag,
    /// The topic.
    pub topic: String,
    /// Its place among all events of the epoch.
    pub offset: u64,
    /// No event of the topic lies between this offset and its own. A client that has not seen up to here resumes.
    pub prev: u64,
    /// What happened: `QueueUpdate`, `ProgressUpdate`, `SecretExpiring`, ...
    pub event: String,
    /// The kind of thing that it happened to.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entity: Option<String>,
    /// Which one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub entity_id: Option<String>,
    /// Who did it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub actor: Option<String>,
    /// When (RFC 3339).
    pub at: String,
    /// The particulars; for `QueueUpdate`, `ProgressUpdate`, `SecretExpiring` and `DiskUsage` the fields of the message of that name.
    pub data: Value,
}

/// Always `Event`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EventTag {
    /// The one value.
    Event,
}

/// What a client gets that did not say `Hello`: the messages of the seed documents.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type")]
pub enum PlainFrame {
    /// The caller's queue changed.
    QueueUpdate {
        /// What happened.
        update_type: UpdateType,
        /// The caller's items, in the order of dispatch.
        queue: Vec<Value>,
        /// Whose queue it is.
        affected_user_id: String,
        /// The position of the item it is about among all items, 1 = next.
        global_position: Option<u64>,
        /// When (RFC 3339).
        timestamp: String,
    },
    /// An item goes on.
    ProgressUpdate {
        /// The item.
        job_id: String,
        /// The recording that it is about.
        recording_id: Option<Value>,
        /// Its title.
        topic: String,
        /// What is being done.
        step: String,
        /// How much of it is done.
        done: u64,
        /// Of how much, if that is known.
        total: Option<u64>,
        /// The same in percent.
        percent: Option<f64>,
        /// Units a second.
        rate: Option<f64>,
        /// How long it may still take.
        eta_seconds: Option<f64>,
        /// When (RFC 3339).
        timestamp: String,
    },
    /// The time of a secret in the caller's vault ends soon, or has ended. On `user:{id}`.
    SecretExpiring {
        /// The secret's id.
        key_id: String,
        /// What it is for.
        service: String,
        /// What its owner calls it.
        label: String,
        /// When it ends (RFC 3339).
        expires_at: String,
    },
    /// A tenant of the caller's crossed a limit of its disk, upwards or downwards. On `user:{id}`.
    DiskUsage {
        /// Which tenant.
        tenant_id: String,
        /// `ok`, `soft` (nearly full) or `hard` (full: writes are refused).
        level: String,
        /// Bytes on the disk.
        used: u64,
        /// The limit that warns, in bytes.
        disk_soft: Option<u64>,
        /// The limit that refuses, in bytes.
        disk_hard: Option<u64>,
    },
    /// Is anybody there?
    Ping {},
    /// Somebody is.
    Pong {},
}

/// What happened to a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpdateType {
    /// An item was added.
    MeetingAdded,
    /// An item was removed.
    MeetingRemoved,
    /// Positions changed.
    PositionUpdated,
    /// All items were removed.
    QueueCleared,
    /// An item is being worked on.
    TaskStarted,
    /// An item is done.
    TaskCompleted,
    /// An item failed for good.
    TaskFailed,
    /// An item is tried again.
    TaskRetried,
}

impl ServerFrame {
    /// An error of the registry.
    pub(super) fn error(id: Option<Value>, code: Code, message: Option<&str>) -> Self {
        Self::Error {
            id,
            code: code.as_str().to_owned(),
            message: message.unwrap_or(code.message()).to_owned(),
            retryable: code.kind() != ErrorKind::Client,
            retry_after_ms: None,
        }
    }

    /// Its text.
    pub(super) fn json(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }
}

/// What could be made of a text.
#[derive(Debug, PartialEq)]
pub(super) struct Parsed {
    pub(super) id: Option<Value>,
    pub(super) frame: Result<ClientFrame, Bad>,
}

/// Why a text is not a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Bad {
    /// Not JSON, not an object, nested too deep, or an `id` that is none.
    Malformed,
    /// A type that nobody knows.
    Unknown,
    /// A type of the chat documents; there are no rooms yet.
    Later,
    /// The fields are not those of the type.
    Fields,
}

impl Bad {
    pub(super) fn code(self) -> Code {
        match self {
            Self::Later => Code::NotImplemented,
            Self::Malformed | Self::Unknown | Self::Fields => Code::InvalidRequest,
        }
    }

    pub(super) fn message(self) -> &'static str {
        match self {
            Self::Malformed => "a frame is a JSON object with a text `type`, nested at most 16 deep",
            Self::Unknown => "this type of frame is not known",
            Self::Later => "there are no rooms yet",
            Self::Fields => "the fields are not those of this type of frame",
        }
    }
}

/// Frames of the chat documents.
const LATER: [&str; 5] = ["CreateMessage", "JoinRoom", "LeaveRoom", "StartTyping", "StopTyping"];
const KNOWN: [&str; 8] =
    ["Hello", "Auth", "Subscribe", "SubscriptionChange", "UpdateLastSeen", "Unsubscribe", "Ping", "Pong"];

/// Reads a client's text.
pub(super) fn parse(text: &str) -> Parsed {
    let bad = |id, why| Parsed { id, frame: Err(why) };
    if depth(text) > MAX_DEPTH {
        return bad(None, Bad::Malformed);
    }
    let Ok(Value::Object(mut fields)) = serde_json::from_str::<Value>(text) else { return bad(None, Bad::Malformed) };
    let id = match fields.remove("id") {
        None | Some(Value::Null) => None,
        Some(id @ Value::Number(_)) => Some(id),
        Some(Value::String(id)) if id.len() <= MAX_ID => Some(Value::String(id)),
        Some(_) => return bad(None, Bad::Malformed),
    };
    let Some(kind) = fields.get("type").and_then(Value::as_str).map(str::to_owned) else {
        return bad(id, Bad::Malformed);
    };
    // Of a message in a room; ours says how far a topic was read.
    let is_of_room = kind == "UpdateLastSeen" && fields.contains_key("message_id");
    let frame = serde_json::from_value(Value::Object(fields)).map_err(|_| match &*kind {
        _ if is_of_room => Bad::Later,
        kind if KNOWN.contains(&kind) => Bad::Fields,
        kind if LATER.contains(&kind) => Bad::Later,
        _ => Bad::Unknown,
    });
    Parsed { id, frame }
}

/// How deep a text nests at most, without parsing it: what is not JSON is refused afterwards.
fn depth(text: &str) -> usize {
    let (mut depth, mut deepest, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        if in_text {
            in_text = escaped || byte != b'"';
            escaped = !escaped && byte == b'\\';
            continue;
        }
        match byte {
            b'"' => in_text = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        deepest = deepest.max(depth);
    }
    deepest
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn frames_are_read_with_and_without_an_id() {
        let parsed = parse(r#"{"type":"Subscribe","id":7,"topics":["queue"],"since":{"epoch":"e","offset":9}}"#);
        assert_eq!(parsed.id, Some(json!(7)));
        let since = Some(Wanted::Since(Since { epoch: "e".to_owned(), offset: 9 }));
        let topics = vec!["queue".to_owned()];
        assert_eq!(parsed.frame, Ok(ClientFrame::Subscribe { topics: topics.clone(), since, filter: None }));
        let parsed =
            parse(r#"{"type":"Subscribe","topics":["queue"],"since":"last_seen","filter":{"event_types":["Queue"]}}"#);
        let filter = Some(Filter { event_types: vec!["Queue".to_owned()], ..Filter::default() });
        let since = Some(Wanted::LastSeen(LastSeen::LastSeen));
        assert_eq!(parsed.frame, Ok(ClientFrame::Subscribe { topics, since, filter }));
        assert_eq!(parse(r#"{"type":"Ping"}"#), Parsed { id: None, frame: Ok(ClientFrame::Ping {}) });
    }

    #[test]
    fn what_is_no_frame_says_why() {
        let deep = format!(r#"{{"type":"Ping","x":{}{}}}"#, "[".repeat(16), "]".repeat(16));
        for (text, why) in [
            ("", Bad::Malformed),
            ("[]", Bad::Malformed),
            ("{}", Bad::Malformed),
            (r#"{"type":7}"#, Bad::Malformed),
            (r#"{"type":"Ping","id":{}}"#, Bad::Malformed),
            (&deep, Bad::Malformed),
            (r#"{"type":"Nothing"}"#, Bad::Unknown),
            (r#"{"type":"JoinRoom","room_id":"x"}"#, Bad::Later),
            (r#"{"type":"UpdateLastSeen","message_id":"x"}"#, Bad::Later),
            (r#"{"type":"UpdateLastSeen","topic":"queue"}"#, Bad::Fields),
            (r#"{"type":"Subscribe","topics":[],"since":"yesterday"}"#, Bad::Fields),
            (r#"{"type":"Ping","more":1}"#, Bad::Fields),
            (r#"{"type":"Subscribe","topics":"queue"}"#, Bad::Fields),
        ] {
            assert_eq!(parse(text).frame, Err(why), "{text}");
        }
        assert_eq!(depth(r#"{"a":"[[[[\"[["}"#), 1);
    }
}

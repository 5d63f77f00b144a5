//! What events are about, and how clients and the log name it.

use std::fmt;

use crate::ids::TenantId;
use crate::ids::UserId;

/// What an event is about. Who may listen is decided in `rights`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Topic {
    /// A user's own queue. Clients call it `queue`: whose it is comes from who they are.
    Queue(UserId),
    /// What concerns one user: `user:{id}`.
    User(UserId),
    /// What concerns everybody: `system`.
    System,
    /// The running side of a tenant: `instance:{id}`. For admins and the tenant's owner.
    Instance(TenantId),
}

impl Topic {
    /// The topic that `me` means by this name.
    pub fn parse(name: &str, me: &UserId) -> Option<Self> {
        match name.split_once(':') {
            None if name == "queue" => Some(Self::Queue(me.clone())),
            None if name == "user" => Some(Self::User(me.clone())),
            None if name == "system" => Some(Self::System),
            Some(("user", id)) => UserId::parse(id).ok().map(Self::User),
            Some(("instance", id)) => TenantId::parse(id).ok().map(Self::Instance),
            _ => None,
        }
    }

    /// The topic of a name that says whose queue it means: `queue:{user}`. For operators.
    pub fn parse_full(name: &str) -> Option<Self> {
        match name.split_once(':') {
            None if name == "system" => Some(Self::System),
            Some(("queue", id)) => UserId::parse(id).ok().map(Self::Queue),
            Some(("user", id)) => UserId::parse(id).ok().map(Self::User),
            Some(("instance", id)) => TenantId::parse(id).ok().map(Self::Instance),
            _ => None,
        }
    }

    /// Its words in keys of the store.
    pub(super) fn prefix(&self) -> String {
        match self {
            Self::Queue(user) => format!("event.queue-{user}."),
            Self::User(user) => format!("event.user-{user}."),
            Self::System => "event.system.".to_owned(),
            Self::Instance(tenant) => format!("event.instance-{tenant}."),
        }
    }

    /// The topic whose events lie under a key of the store.
    pub(super) fn of_key(key: &str) -> Option<Self> {
        let (word, _) = key.strip_prefix("event.")?.split_once('.')?;
        match word.split_once('-') {
            None if word == "system" => Some(Self::System),
            Some(("queue", id)) => UserId::parse(id).ok().map(Self::Queue),
            Some(("user", id)) => UserId::parse(id).ok().map(Self::User),
            Some(("instance", id)) => TenantId::parse(id).ok().map(Self::Instance),
            _ => None,
        }
    }
}

impl fmt::Display for Topic {
    /// The name that clients use.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Queue(_) => f.write_str("queue"),
            Self::User(user) => write!(f, "user:{user}"),
            Self::System => f.write_str("system"),
            Self::Instance(tenant) => write!(f, "instance:{tenant}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_is_always_ones_own() {
        let me = UserId::parse("b5c3xih3gtjb48z").unwrap();
        assert_eq!(Topic::parse("queue", &me), Some(Topic::Queue(me.clone())));
        assert_eq!(Topic::parse("user", &me), Some(Topic::User(me.clone())));
        for bad in ["", "queue:b5c3xih3gtjb48z", "queues", "user:", "user:..", "room:1", "system:1", "instance:a.b"] {
            assert_eq!(Topic::parse(bad, &me), None, "{bad}");
        }
    }

    #[test]
    fn keys_name_their_topic() {
        let user = UserId::parse("b5c3xih3gtjb48z").unwrap();
        let tenant = TenantId::parse("b5c3xih3gtjb48z").unwrap();
        for topic in [Topic::Queue(user.clone()), Topic::User(user), Topic::System, Topic::Instance(tenant)] {
            assert_eq!(Topic::of_key(&format!("{}00000001", topic.prefix())), Some(topic));
        }
    }
}

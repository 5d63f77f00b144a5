//! Who may listen to what. Asked when a client subscribes, and again and again while it listens.

use super::Hub;
use super::Topic;
use super::socket::Identity;
use crate::auth::Role;

/// Whether this client may listen to a topic. What it may not is to it as if it were not there.
pub(super) fn may_listen(hub: &Hub, identity: &Identity, topic: &Topic) -> bool {
    let user = identity.standing.user();
    let is_admin = identity.standing.role() == Role::Admin;
    match topic {
        Topic::System => true,
        Topic::Queue(owner) => owner == user,
        Topic::User(other) => other == user || is_admin,
        Topic::Instance(tenant) => is_admin || (hub.owns)(user, tenant),
    }
}

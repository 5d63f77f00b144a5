//! What a client asks for, checked as `PocketBase` 0.40 checks it, and who it may be asked by. Pure.

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use hyper::header::HeaderValue;
use serde_json::Value;
use serde_json::json;

use super::Error;
use super::OAUTH2;
use crate::auth::Standing;
use crate::ids::TenantId;
use crate::pocketbase::token::Claims;
use crate::pocketbase::token::Unverified;

const MAX_CLIENT_ID: usize = 255;
const MAX_SUBSCRIPTIONS: usize = 1000;
const MAX_SUBSCRIPTION: usize = 2500;

/// Checks the fields of a subscription; the answers are those of `PocketBase`.
pub(super) fn check(client_id: &str, subscriptions: &[String]) -> Result<(), Error> {
    if client_id.is_empty() {
        return Err(Error::blank("clientId"));
    }
    if client_id.len() > MAX_CLIENT_ID {
        let data = json!({ "clientId": {
            "code": "validation_length_out_of_range",
            "message": "The length must be between 1 and 255.",
            "params": { "max": MAX_CLIENT_ID, "min": 1 },
        }});
        return Err(Error::Invalid { data });
    }
    if subscriptions.len() > MAX_SUBSCRIPTIONS {
        return Err(Error::Invalid { data: json!({ "subscriptions": too_long(MAX_SUBSCRIPTIONS) }) });
    }
    if let Some(at) = subscriptions.iter().position(|one| one.len() > MAX_SUBSCRIPTION) {
        return Err(Error::Invalid {
            data: json!({ "subscriptions": { at.to_string(): too_long(MAX_SUBSCRIPTION) } }),
        });
    }
    Ok(())
}

fn too_long(max: usize) -> Value {
    json!({
        "code": "validation_length_too_long",
        "message": format!("The length must be no more than {max}."),
        "params": { "max": max, "min": 0 },
    })
}

/// Whether a topic is the collection of users or one of them.
pub(super) fn is_of_users(topic: &str) -> bool {
    let name = topic.split(['/', '?']).next().unwrap_or_default();
    name.eq_ignore_ascii_case("users") || name.eq_ignore_ascii_case("_pb_users_auth_")
}

/// What the instance is asked for, and whether the client waits for an `OAuth2` sign-in, which never leaves this process.
pub(super) fn split(subscriptions: Vec<String>) -> (Vec<String>, bool) {
    let before = subscriptions.len();
    let topics: Vec<String> = subscriptions.into_iter().filter(|topic| topic != OAUTH2).collect();
    let oauth2 = topics.len() < before;
    (topics, oauth2)
}

/// Whom a stream belongs to.
pub(super) enum Binding {
    /// Nobody subscribed yet.
    Unbound,
    /// Somebody without a token who waits for an `OAuth2` sign-in.
    SignIn,
    /// A tenant's.
    Bound { tenant: TenantId, rights: Rights },
}

/// In whose name a stream is subscribed in the instance.
#[derive(Clone)]
pub(super) enum Rights {
    Member(Box<Standing>),
    Visitor(Option<HeaderValue>),
}

impl Binding {
    /// Whether a stream with this binding may be bound to `next`. As in `PocketBase`, a guest's stream may become
    /// somebody's, and never somebody else's.
    pub(super) fn admits(&self, next: &Self) -> Result<(), Error> {
        match (self, next) {
            (Self::Unbound | Self::SignIn, _) => Ok(()),
            (Self::Bound { .. }, Self::Unbound | Self::SignIn) => Err(Error::OtherAuthorization),
            (Self::Bound { tenant, rights }, Self::Bound { tenant: other, rights: asked }) => {
                let same = match (rights, asked) {
                    (Rights::Visitor(None), _) => true,
                    (Rights::Member(bound), Rights::Member(asked)) => bound.user() == asked.user(),
                    (Rights::Visitor(Some(bound)), Rights::Visitor(Some(asked))) => {
                        bound == asked || record_of(bound).is_some_and(|record| Some(record) == record_of(asked))
                    }
                    (Rights::Member(_) | Rights::Visitor(Some(_)), _) => false,
                };
                match (same, tenant == other) {
                    (true, true) => Ok(()),
                    (false, _) => Err(Error::OtherAuthorization),
                    // Another instance would not know the id.
                    (true, false) => Err(Error::UnknownClient),
                }
            }
        }
    }

    /// Whether nobody is behind it that the instance would know.
    pub(super) fn is_guest(&self) -> bool {
        matches!(self, Self::SignIn | Self::Bound { rights: Rights::Visitor(None), .. })
    }

    /// Whether the instance would take both for the same.
    pub(super) fn has_rights_of(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Bound { rights: Rights::Visitor(own), .. }, Self::Bound { rights: Rights::Visitor(asked), .. }) => {
                own == asked
            }
            (Self::Bound { rights: Rights::Member(_), .. }, Self::Bound { rights: Rights::Member(_), .. }) => true,
            (own, asked) => own.tenant().is_none() && asked.tenant().is_none(),
        }
    }

    pub(super) fn tenant(&self) -> Option<&TenantId> {
        match self {
            Self::Bound { tenant, .. } => Some(tenant),
            Self::Unbound | Self::SignIn => None,
        }
    }
}

/// What a visitor sent, as the instance would take it now: an expired token is no token, and the one who sent it a guest.
pub(super) fn unexpired(authorization: Option<HeaderValue>, now: SystemTime) -> Option<HeaderValue> {
    authorization.filter(|header| !has_expired(header, now))
}

/// Whether the token has had its time. What is no token has none.
pub(super) fn has_expired(header: &HeaderValue, now: SystemTime) -> bool {
    let now = now.duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    claims_of(header).is_some_and(|claims| claims.exp <= now)
}

/// Collection and id of the record that a token claims. The instance checks the token; here it only has to be the same
/// claim as before.
fn record_of(header: &HeaderValue) -> Option<(String, String)> {
    claims_of(header).map(|claims| (claims.collection_id, claims.id))
}

/// What a visitor's token claims, unproved.
fn claims_of(header: &HeaderValue) -> Option<Claims> {
    let text = header.to_str().ok()?.trim();
    let token = text.rsplit(' ').next().unwrap_or(text);
    Some(Unverified::parse(token).ok()?.claims().clone())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::pocketbase::token::Key;
    use crate::pocketbase::token::Signer;

    #[test]
    fn fields_have_the_limits_of_pocketbase() {
        let many = |count, length| vec!["x".repeat(length); count];
        assert_eq!(check("id", &many(1000, 2500)), Ok(()));
        assert_eq!(check("", &[]), Err(Error::blank("clientId")));
        let data = |result: Result<(), Error>| match result {
            Err(Error::Invalid { data }) => data,
            other => panic!("{other:?}"),
        };
        assert_eq!(data(check(&"x".repeat(256), &[]))["clientId"]["code"], "validation_length_out_of_range");
        assert_eq!(data(check("id", &many(1001, 1)))["subscriptions"]["params"]["max"], 1000);
        assert_eq!(data(check("id", &many(1, 2501)))["subscriptions"]["0"]["params"]["max"], 2500);
    }

    #[test]
    fn users_are_told_from_other_topics() {
        assert!(is_of_users("users/*") && is_of_users("users") && is_of_users("Users/x?options=1"));
        assert!(!is_of_users("users2/*") && !is_of_users("notes/users"));
    }

    #[test]
    fn the_sign_in_topic_stays_here() {
        let topics = vec!["notes/*".to_owned(), "@oauth2".to_owned(), "@oauth2x".to_owned()];
        assert_eq!(split(topics), (vec!["notes/*".to_owned(), "@oauth2x".to_owned()], true));
        assert_eq!(split(vec!["a".to_owned()]), (vec!["a".to_owned()], false));
    }

    #[test]
    fn a_visitor_with_an_expired_token_is_a_guest() {
        let (now, minute) = (SystemTime::now(), Duration::from_mins(1));
        let signer = Signer { collection_id: "c".into(), record_id: "r".into(), key: Key::new("a", "b") };
        let token = Some(HeaderValue::try_from(format!("Bearer {}", signer.mint(now, minute))).unwrap());
        assert_eq!(unexpired(token.clone(), now), token);
        assert_eq!(unexpired(token, now + minute * 2), None);
        let other = Some(HeaderValue::from_static("something else"));
        assert_eq!(unexpired(other.clone(), now), other);
    }

    #[test]
    fn a_guests_stream_may_become_somebodys_and_never_somebody_elses() {
        let tenant = TenantId::parse("acme").unwrap();
        let visitor = |authorization| Binding::Bound { tenant: tenant.clone(), rights: Rights::Visitor(authorization) };
        let token = |id: &str, seconds| {
            let signer = Signer { collection_id: "c".into(), record_id: id.into(), key: Key::new("a", "b") };
            Some(HeaderValue::try_from(signer.mint(SystemTime::now(), Duration::from_secs(seconds))).unwrap())
        };
        assert_eq!(Binding::Unbound.admits(&visitor(None)), Ok(()));
        assert_eq!(Binding::SignIn.admits(&visitor(None)), Ok(()));
        assert_eq!(visitor(None).admits(&visitor(token("ada", 60))), Ok(()));
        assert_eq!(visitor(token("ada", 60)).admits(&visitor(token("ada", 90))), Ok(()));
        assert_eq!(visitor(token("ada", 60)).admits(&visitor(token("bob", 60))), Err(Error::OtherAuthorization));
        assert_eq!(visitor(token("ada", 60)).admits(&visitor(None)), Err(Error::OtherAuthorization));
        assert_eq!(visitor(token("ada", 60)).admits(&Binding::SignIn), Err(Error::OtherAuthorization));
        let elsewhere = Binding::Bound { tenant: TenantId::parse("other").unwrap(), rights: Rights::Visitor(None) };
        assert_eq!(visitor(None).admits(&elsewhere), Err(Error::UnknownClient));
    }
}

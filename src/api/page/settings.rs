//! Keys of other services, and the places that recordings go to.

use askama::Template;
use axum::extract::Path;
use axum::extract::Query;
use axum::http::Method;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::Value;
use serde_json::json;
use time::Date;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::api::error::status_of;
use crate::api::json::invalid_field;
use crate::api::page::Params;
use crate::api::page::api::encoded;
use crate::api::page::fields::Fields;
use crate::api::page::layout;
use crate::api::page::layout::Frame;
use crate::api::page::layout::Notice;
use crate::api::page::layout::sentence;
use crate::api::page::session::Visitor;
use crate::api::page::views::Connection;
use crate::api::page::views::Destination;
use crate::api::page::views::Items;
use crate::api::page::views::Key;
use crate::error::Code;
use crate::error::Problem;

const HERE: &str = "/app/settings";

#[derive(Template)]
#[template(path = "app/settings.html")]
pub(super) struct SettingsPage {
    pub(super) frame: Frame,
    pub(super) keys: Vec<Key>,
    pub(super) keys_failed: Option<String>,
    pub(super) fathom: Connection,
    /// Where to go on with a sign-in at Fathom that was just begun.
    pub(super) go_on: Option<String>,
    pub(super) destinations: Vec<Destination>,
    pub(super) destinations_failed: Option<String>,
}

impl SettingsPage {
    fn has_fathom_key(&self) -> bool {
        self.keys.iter().any(|key| key.service == "fathom")
    }
}

/// The page.
pub(super) async fn settings(visitor: Visitor, Query(params): Params) -> Response {
    shown(&visitor, StatusCode::OK, Notice::said(params.get("said").map(String::as_str)), None).await
}

async fn shown(visitor: &Visitor, status: StatusCode, notice: Option<Notice>, go_on: Option<String>) -> Response {
    let (keys, destinations, fathom) = tokio::join!(
        visitor.api.read::<Items<Key>>("/api/v1/vault"),
        visitor.api.read::<Items<Destination>>("/api/v1/destinations"),
        visitor.api.read::<Connection>("/api/v1/services/fathom"),
    );
    let fathom = fathom.unwrap_or_default();
    let (keys, keys_failed) = match keys {
        Ok(found) => (found.items, None),
        Err(problem) if matches!(problem.code, Code::Unauthorized | Code::TenantDeleted) => {
            return layout::failure(&problem);
        }
        Err(problem) => (Vec::new(), Some(sentence(&problem))),
    };
    let (destinations, destinations_failed) = match destinations {
        Ok(found) => (found.items, None),
        Err(problem) => (Vec::new(), Some(sentence(&problem))),
    };
    let frame = Frame::new("Settings", &visitor.principal.email, notice);
    layout::page(status, &SettingsPage { frame, keys, keys_failed, fathom, go_on, destinations, destinations_failed })
}

/// What was done, or the page again with the reason why not.
async fn done(visitor: &Visitor, outcome: Result<(), Problem>, word: &str) -> Response {
    match outcome {
        Ok(()) => layout::back(HERE, word),
        Err(problem) if problem.code == Code::Unauthorized => layout::failure(&problem),
        Err(problem) => shown(visitor, status_of(problem.code), Some(Notice::problem(&problem)), None).await,
    }
}

/// Stores a key of a service; one of the same service and name is replaced. With a Fathom key the meetings are
/// looked for at once.
pub(super) async fn put_key(visitor: Visitor, fields: Fields) -> Response {
    let is_fathom = fields.text("service") == "fathom";
    let stored = store_key(&visitor, &fields).await;
    if stored.is_err() || !is_fathom {
        return done(&visitor, stored, "key-saved").await;
    }
    let begun = visitor.api.send::<Value>(Method::POST, "/api/v1/meetings/sync", json!({})).await;
    // The key is stored whatever becomes of the look, and the list says what did.
    if let Err(problem) = begun {
        tracing::debug!(error.code = problem.code.as_str(), "no look for meetings after a key was stored");
    }
    layout::back("/app", "key-saved")
}

async fn store_key(visitor: &Visitor, fields: &Fields) -> Result<(), Problem> {
    let mut body = json!({ "service": fields.text("service"), "secret": fields.text("secret") });
    if !fields.text("label").is_empty() {
        body["label"] = Value::from(fields.text("label"));
    }
    if let Some(end) = end_of(fields.text("expires"))? {
        body["expires_at"] = Value::from(end);
    }
    visitor.api.send::<Value>(Method::PUT, "/api/v1/vault", body).await.map(|_| ())
}

/// The end of a day as browsers write days; empty is none.
fn end_of(day: &str) -> Result<Option<String>, Problem> {
    if day.is_empty() {
        return Ok(None);
    }
    let read = Date::parse(day, format_description!("[year]-[month]-[day]")).ok();
    let end = read.and_then(|date| date.with_hms(23, 59, 59).ok()).map(time::PrimitiveDateTime::assume_utc);
    let text = end.and_then(|end: OffsetDateTime| end.format(&Rfc3339).ok());
    let wrong = || invalid_field("expires", "validation_invalid_date", "Give a day such as 2027-01-31.");
    text.map(Some).ok_or_else(wrong)
}

/// Begins a sign-in at Fathom. The page leads there by a link: browsers follow no form to another site.
pub(super) async fn connect_fathom(visitor: Visitor) -> Response {
    let begun = visitor.api.send::<Value>(Method::POST, "/api/v1/services/fathom/connect", json!({})).await;
    match begun {
        Ok(begun) => {
            let url = begun.get("url").and_then(Value::as_str).map(str::to_owned);
            shown(&visitor, StatusCode::OK, None, url).await
        }
        Err(problem) => done(&visitor, Err(problem), "").await,
    }
}

/// Forgets the sign-in at Fathom.
pub(super) async fn disconnect_fathom(visitor: Visitor) -> Response {
    let gone = visitor.api.send::<Value>(Method::DELETE, "/api/v1/services/fathom", Value::Null).await;
    done(&visitor, gone.map(|_| ()), "fathom-disconnected").await
}

/// Deletes a key.
pub(super) async fn delete_key(visitor: Visitor, Path(id): Path<String>) -> Response {
    let path = format!("/api/v1/vault/{}", encoded(&id));
    let gone = visitor.api.send::<Value>(Method::DELETE, &path, Value::Null).await;
    done(&visitor, gone.map(|_| ()), "key-deleted").await
}

/// Adds a destination, and stores the secret it is used with if one was given.
pub(super) async fn add_destination(visitor: Visitor, fields: Fields) -> Response {
    let outcome = add(&visitor, &fields).await;
    done(&visitor, outcome, "destination-added").await
}

async fn add(visitor: &Visitor, fields: &Fields) -> Result<(), Problem> {
    let (kind, name) = (fields.text("kind"), fields.text("name"));
    let mut body = json!({ "kind": kind, "name": name, "settings": settings_of(kind, fields)? });
    if fields.text("default") == "yes" {
        body["is_default"] = Value::from(true);
    }
    let key = if fields.text("secret").is_empty() { None } else { Some(store_destination_key(visitor, fields).await?) };
    if let Some(key) = &key {
        body["vault_key"] = Value::from(key.as_str());
    }
    let made = visitor.api.send::<Value>(Method::POST, "/api/v1/destinations", body).await;
    if let (Err(_), Some(key)) = (&made, &key) {
        // The key was for this destination alone.
        let path = format!("/api/v1/vault/{}", encoded(key));
        if let Err(problem) = visitor.api.send::<Value>(Method::DELETE, &path, Value::Null).await {
            tracing::debug!(error.code = problem.code.as_str(), "a key of a destination that was refused stays");
        }
    }
    made.map(|_| ())
}

/// Stores the secret of a new destination, under a name that no other key has.
async fn store_destination_key(visitor: &Visitor, fields: &Fields) -> Result<String, Problem> {
    let is_s3 = fields.text("kind") == "s3";
    let name: String = fields.text("name").chars().filter(|c| c.is_alphanumeric() || *c == ' ').take(40).collect();
    let mut body = json!({
        "service": if is_s3 { "s3" } else { "http" },
        "secret": fields.text("secret"),
        "label": format!("{} {:08x}", name.trim(), rand::random::<u32>()).trim(),
    });
    if is_s3 {
        body["settings"] = json!({ "access_key_id": fields.text("access_key") });
    }
    let key: Value = visitor.api.send(Method::PUT, "/api/v1/vault", body).await?;
    Ok(key.get("key_id").and_then(Value::as_str).unwrap_or_default().to_owned())
}

/// What a kind of destination takes, from the fields of its form. What was left empty is left out.
fn settings_of(kind: &str, fields: &Fields) -> Result<Value, Problem> {
    let names: &[&str] = match kind {
        "folder" => &["subfolder"],
        "s3" => &["bucket", "region", "endpoint", "prefix"],
        "http_put" | "http_tus" => &["url"],
        _ => &[],
    };
    let given = names.iter().map(|name| (*name, fields.text(name))).filter(|(_, value)| !value.is_empty());
    let mut settings: serde_json::Map<String, Value> =
        given.map(|(name, value)| (name.to_owned(), Value::from(value))).collect();
    let hours = fields.text("link_hours");
    if kind == "s3" && !hours.is_empty() {
        let wrong = || invalid_field("link_hours", "validation_invalid_number", "Give whole hours, at most 168.");
        settings.insert("link_hours".to_owned(), Value::from(hours.parse::<u32>().map_err(|_| wrong())?));
    }
    Ok(Value::Object(settings))
}

/// Makes one the default.
pub(super) async fn make_default(visitor: Visitor, Path(id): Path<String>) -> Response {
    let path = format!("/api/v1/destinations/{}", encoded(&id));
    let made = visitor.api.send::<Value>(Method::PATCH, &path, json!({ "is_default": true })).await;
    done(&visitor, made.map(|_| ()), "destination-default").await
}

/// Asks whether it can be used.
pub(super) async fn check_destination(visitor: Visitor, Path(id): Path<String>) -> Response {
    let path = format!("/api/v1/destinations/{}/check", encoded(&id));
    let checked = visitor.api.send::<Value>(Method::POST, &path, json!({})).await;
    let outcome = checked.and_then(|answer| match answer.get("error").and_then(Value::as_str) {
        Some(reason) => Err(Problem::new(Code::Conflict).message(reason.to_owned())),
        None => Ok(()),
    });
    done(&visitor, outcome, "destination-works").await
}

/// Deletes one.
pub(super) async fn delete_destination(visitor: Visitor, Path(id): Path<String>) -> Response {
    let path = format!("/api/v1/destinations/{}", encoded(&id));
    let gone = visitor.api.send::<Value>(Method::DELETE, &path, Value::Null).await;
    done(&visitor, gone.map(|_| ()), "destination-deleted").await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_gets_its_own_settings_and_nothing_empty() {
        let pairs = [("bucket", "b"), ("region", ""), ("link_hours", "24"), ("url", "https://a.b"), ("subfolder", "x")];
        let fields = Fields(pairs.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec());
        assert_eq!(settings_of("s3", &fields).unwrap(), json!({"bucket": "b", "link_hours": 24}));
        assert_eq!(settings_of("http_tus", &fields).unwrap(), json!({"url": "https://a.b"}));
        assert_eq!(settings_of("folder", &fields).unwrap(), json!({"subfolder": "x"}));
        assert_eq!(settings_of("loom", &fields).unwrap(), json!({}));
        let wrong = Fields(vec![("link_hours".to_owned(), "soon".to_owned())]);
        assert_eq!(settings_of("s3", &wrong).unwrap_err().code, Code::ValidationFailed);
    }

    #[test]
    fn a_key_ends_with_its_last_day() {
        assert_eq!(end_of("2027-01-31").unwrap().as_deref(), Some("2027-01-31T23:59:59Z"));
        assert_eq!(end_of("").unwrap(), None);
        assert_eq!(end_of("tomorrow").unwrap_err().code, Code::ValidationFailed);
    }
}

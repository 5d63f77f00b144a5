//! The own account: what it takes up, its backups, and its end.

use askama::Template;
use axum::extract::Path;
use axum::extract::Query;
use axum::http::Method;
use axum::http::StatusCode;
use axum::http::header;
use axum::response::AppendHeaders;
use axum::response::IntoResponse;
use axum::response::Redirect;
use axum::response::Response;
use serde_json::Value;
use serde_json::json;

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
use crate::api::page::views::Backup;
use crate::api::page::views::Items;
use crate::api::page::views::Usage;
use crate::api::session_cookie;
use crate::error::Code;
use crate::error::Problem;

const HERE: &str = "/app/account";

#[derive(Template)]
#[template(path = "app/account.html")]
struct AccountPage {
    frame: Frame,
    /// The account was deleted and can be brought back.
    is_deleted: bool,
    usage: Option<Usage>,
    usage_failed: Option<String>,
    backups: Vec<Backup>,
    backups_failed: Option<String>,
}

/// The page.
pub(super) async fn account(visitor: Visitor, Query(params): Params) -> Response {
    shown(&visitor, StatusCode::OK, Notice::said(params.get("said").map(String::as_str))).await
}

async fn shown(visitor: &Visitor, status: StatusCode, notice: Option<Notice>) -> Response {
    let (usage, backups) =
        tokio::join!(visitor.api.read::<Usage>("/api/v1/usage"), visitor.api.read::<Items<Backup>>("/api/v1/backups"),);
    let mut page = AccountPage {
        frame: Frame::new("Account", &visitor.principal.email, notice),
        is_deleted: false,
        usage: None,
        usage_failed: None,
        backups: Vec::new(),
        backups_failed: None,
    };
    match usage {
        Ok(usage) => page.usage = Some(usage),
        Err(problem) if problem.code == Code::Unauthorized => return layout::failure(&problem),
        Err(problem) if problem.code == Code::TenantDeleted => page.is_deleted = true,
        Err(problem) => page.usage_failed = Some(sentence(&problem)),
    }
    match backups {
        Ok(found) => page.backups = found.items,
        Err(problem) => page.backups_failed = Some(sentence(&problem)),
    }
    layout::page(status, &page)
}

/// What was done, or the page again with the reason why not.
async fn done(visitor: &Visitor, outcome: Result<Value, Problem>, word: &str) -> Response {
    match outcome {
        Ok(_) => layout::back(HERE, word),
        Err(problem) if problem.code == Code::Unauthorized => layout::failure(&problem),
        Err(problem) => shown(visitor, status_of(problem.code), Some(Notice::problem(&problem))).await,
    }
}

/// Takes a backup.
pub(super) async fn back_up(visitor: Visitor) -> Response {
    let begun = visitor.api.send(Method::POST, "/api/v1/backups", Value::Null).await;
    done(&visitor, begun, "backup-begun").await
}

/// Goes back to a backup.
pub(super) async fn restore(visitor: Visitor, Path(id): Path<String>) -> Response {
    let path = format!("/api/v1/backups/{}/restore", encoded(&id));
    let begun = visitor.api.send(Method::POST, &path, Value::Null).await;
    done(&visitor, begun, "restore-begun").await
}

/// A backup as a file.
pub(super) async fn download(visitor: Visitor, Path(id): Path<String>) -> Response {
    match visitor.api.file(&format!("/api/v1/backups/{}/download", encoded(&id))).await {
        Ok(file) => file,
        Err(problem) => layout::failure(&problem),
    }
}

/// Deletes the account of whoever typed its address.
pub(super) async fn delete(visitor: Visitor, fields: Fields) -> Response {
    if !fields.text("email").eq_ignore_ascii_case(&visitor.principal.email) {
        let wrong = invalid_field("email", "validation_mismatch", "Type the address of this account to delete it.");
        return done(&visitor, Err(wrong), "").await;
    }
    match visitor.api.send::<Value>(Method::DELETE, "/api/v1/auth/me", Value::Null).await {
        Ok(_) => {
            let [plain, host] = session_cookie::clear();
            let cookies = AppendHeaders([(header::SET_COOKIE, plain), (header::SET_COOKIE, host)]);
            (cookies, Redirect::to("/app/sign-in?said=account-deleted")).into_response()
        }
        refused => done(&visitor, refused, "").await,
    }
}

/// Brings the account back.
pub(super) async fn undelete(visitor: Visitor) -> Response {
    let path = format!("/api/v1/tenants/{}/undelete", encoded(visitor.principal.user.as_str()));
    match visitor.api.send::<Value>(Method::POST, &path, json!({})).await {
        Ok(_) => layout::back("/app", "account-back"),
        refused => done(&visitor, refused, "").await,
    }
}

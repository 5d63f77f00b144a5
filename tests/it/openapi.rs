//! The document and the router are made from the same handlers; these tests hold them to it.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::Request;
use axum::http::Response;
use http_body_util::BodyExt;
use pocketfleet::api::About;
use pocketfleet::api::AccountBodies;
use pocketfleet::api::Addresses;
use pocketfleet::api::AppState;
use pocketfleet::api::Limits;
use pocketfleet::api::control;
use pocketfleet::api::oauth2_redirect::Deliver;
use pocketfleet::api::router::document;
use pocketfleet::api::router::router;
use pocketfleet::app::services;
use pocketfleet::app::services::Ended;
use pocketfleet::app::services::Given;
use pocketfleet::auth::Verifier;
use pocketfleet::auth::accounts;
use pocketfleet::auth::accounts::Accounts;
use pocketfleet::config::Config;
use pocketfleet::config::Flags;
use pocketfleet::gateway::ClientIp;
use pocketfleet::gateway::DashboardMode;
use pocketfleet::gateway::Dashboards;
use pocketfleet::reload::Generation;
use pocketfleet::reload::Origin;
use pocketfleet::reload::Reloads;
use pocketfleet::shutdown::Shutdown;
use pocketfleet::store::Store;
use pocketfleet::store::invitations::Invitations;
use pocketfleet::store::members::Members;
use pocketfleet::store::placements::Placements;
use pocketfleet::store::sessions::Sessions;
use pocketfleet::store::slugs::Slugs;
use pocketfleet::store::sqlite::ControlDatabase;
use pocketfleet::store::tenants::Tenants;
use pocketfleet::store::uids::Uids;
use pocketfleet::store::versions::Versions;
use pocketfleet::supervisor::Parts;
use pocketfleet::supervisor::Supervisor;
use pocketfleet::supervisor::config::Access;
use pocketfleet::supervisor::config::Binaries;
use pocketfleet::supervisor::config::Binary;
use pocketfleet::supervisor::config::Layout;
use pocketfleet::supervisor::config::Rosters;
use pocketfleet::supervisor::jail::Isolation;
use pocketfleet::supervisor::template::Locations;
use pocketfleet::supervisor::template::Templates;
use pocketfleet::telemetry::Metrics;
use pocketfleet::tenancy;
use pocketfleet::tenancy::Tenancy;
use pocketfleet::vault;
use serde_json::Value;
use tempfile::TempDir;
use tower::ServiceExt;

/// Real parts over an empty control database; no instance ever runs. The folder goes when the test ends.
#[expect(clippy::too_many_lines, reason = "one list: what is built on what, in order")]
pub(crate) async fn state() -> (AppState, TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    std::fs::create_dir(at("templates")).unwrap();
    let store: Arc<dyn Store> = Arc::new(ControlDatabase::open(&at("control.db")).unwrap());
    let tenants = Tenants::open(Arc::clone(&store)).await.unwrap();
    let sessions = Sessions::open(Arc::clone(&store)).await.unwrap();
    let config = Config::load(&Flags::default()).unwrap();
    let (metrics, shutdown) = (Metrics::new(), Shutdown::new());
    let locations = Locations {
        templates: at("templates"),
        golden: at("golden"),
        staging: at("staging"),
        binary: at("pocketbase"),
        version: "0.40.6".to_owned(),
        older: Vec::new(),
        isolation: Isolation::none(),
    };
    let kept_ids = pocketfleet::store::spares::Spares::open(Arc::clone(&store)).await.unwrap();
    let supervisor = Supervisor::new(Parts {
        config: config.instances.clone(),
        layout: Layout {
            instances: at("instances"),
            deleted: at("deleted"),
            staging: at("staging"),
            empty: at("empty"),
        },
        binaries: Binaries::new(
            Binary { path: at("pocketbase"), sha256: String::new(), version: "0.40.6".to_owned() },
            Vec::new(),
        ),
        templates: Templates::open(&locations).await.unwrap(),
        tenants: tenants.clone(),
        placements: Placements::open(Arc::clone(&store), "test".to_owned()).await.unwrap(),
        rosters: Rosters(Arc::new(|_| Access::Unknown)),
        versions: Versions::open(Arc::clone(&store)).await.unwrap(),
        upgrade: config.pocketbase.upgrade,
        public_url: String::new(),
        isolation: Isolation::none(),
        spares: kept_ids.clone(),
        network_check: config.isolation.network_check,
        uids: Uids::open(Arc::clone(&store)).await.unwrap(),
        global_outbound: Vec::new(),
        metrics: Arc::clone(&metrics),
    });
    let tenancy = Tenancy::new(tenancy::Parts {
        tenants: tenants.clone(),
        members: Members::open(Arc::clone(&store)).await.unwrap(),
        invitations: Invitations::open(Arc::clone(&store)).await.unwrap(),
        slugs: Slugs::open(Arc::clone(&store)).await.unwrap(),
        config: config.workspaces.clone(),
        personal_template: "personal".to_owned(),
        can_verify: false,
    });
    let (verifier, _) = Verifier::new(&config.auth, at("data.db"), sessions.clone());
    let spares = pocketfleet::spares::Spares::new(pocketfleet::spares::Parts {
        number: 0,
        url: String::new(),
        records: kept_ids,
        supervisor: supervisor.clone(),
        tenancy: tenancy.clone(),
        accounts: Arc::new(|_| None),
    });
    let parts = accounts::Parts {
        supervisor: supervisor.clone(),
        verifier: verifier.clone(),
        sessions: sessions.clone(),
        tenancy: tenancy.clone(),
        spares,
        metrics: Arc::clone(&metrics),
        shutdown: shutdown.clone(),
        operator: accounts::Operator {
            mail: config.mail.clone(),
            accounts: config.accounts.clone(),
            public_url: String::new(),
        },
    };
    let unlocked = vault::unlock(&config.vault, dir.path(), Arc::clone(&store)).await.unwrap();
    let accounts = Accounts::new(&config.auth, parts).unwrap();
    let services = services::open(Given {
        config: &config,
        data: dir.path(),
        store: Arc::clone(&store),
        unlocked,
        supervisor: supervisor.clone(),
        verifier: verifier.clone(),
        tenancy: tenancy.clone(),
        tenants: tenants.clone(),
        settle: Arc::new(|_| Box::pin(async {})),
        incarnation: "test".to_owned(),
        metrics: Arc::clone(&metrics),
        shutdown: shutdown.clone(),
    })
    .await
    .unwrap();
    let ended = Ended {
        config: &config,
        store,
        tenants: tenants.clone(),
        accounts: accounts.clone(),
        supervisor: supervisor.clone(),
        tenancy: tenancy.clone(),
        shutdown: shutdown.clone(),
    };
    let state = AppState::from(pocketfleet::api::Parts {
        quotas: services::quotas(
            &config,
            dir.path(),
            tenants.clone(),
            &supervisor,
            &services.events,
            Arc::clone(&metrics),
        )
        .0,
        lifecycle: services::lifecycle(ended, &services),
        services,
        accounts,
        verifier,
        dashboards: Dashboards::new(DashboardMode::Off, Duration::from_mins(1)),
        addresses: Addresses::new("http://localhost:3000", ""),
        supervisor,
        tenancy,
        tenants,
        sessions,
        metrics,
        shutdown,
        limits: Limits { json: 1 << 20, account: 8 << 20 },
        account_bodies: AccountBodies::default(),
        about: Arc::new(About::new("127.0.0.1:3000")),
        reloads: Reloads::new(Origin::default(), Generation::default(), "/nowhere".into()),
        oauth2: Deliver::nowhere(),
    });
    (state, dir)
}

async fn ask(method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (Response<()>, Value) {
    let (state, _dir) = state().await;
    ask_of(router(state), method, path, headers, body).await
}

async fn ask_of(app: Router, method: &str, path: &str, headers: &[(&str, &str)], body: &str) -> (Response<()>, Value) {
    let mut request = Request::builder().method(method).uri(path);
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let mut request = request.body(Body::from(body.to_owned())).unwrap();
    request.extensions_mut().insert(ClientIp(IpAddr::V4(Ipv4Addr::LOCALHOST)));
    let (parts, body) = app.oneshot(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    (Response::from_parts(parts, ()), serde_json::from_slice(&body).unwrap_or(Value::Null))
}

/// (method, path) of every operation in the document.
fn operations() -> Vec<(String, String, Value)> {
    let document = serde_json::to_value(document()).unwrap();
    let mut found = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            found.push((method.to_uppercase(), path.clone(), operation.clone()));
        }
    }
    assert!(found.len() > 25, "{} operations", found.len());
    found
}

/// A path of the document or of the router, with something in place of its parameters.
fn concrete(path: &str) -> String {
    path.split('/').map(|part| if part.starts_with('{') { "x" } else { part }).collect::<Vec<_>>().join("/")
}

#[tokio::test]
async fn every_documented_operation_is_routed() {
    let paths: HashSet<String> = operations().into_iter().map(|(_, path, _)| path).collect();
    for path in &paths {
        // A method that no route takes: the router answers 405 with the methods it has, and runs no handler.
        let (answer, body) = ask("PROPFIND", &concrete(path), &[], "").await;
        assert_eq!(answer.status(), 405, "{path}: {body}");
        let allowed = answer.headers()["allow"].to_str().unwrap().to_owned();
        let documented: HashSet<String> =
            operations().into_iter().filter(|(_, other, _)| other == path).map(|(method, ..)| method).collect();
        let routed: HashSet<String> = allowed.split(',').map(|m| m.trim().to_owned()).filter(|m| m != "HEAD").collect();
        assert_eq!(routed, documented, "{path}");
    }
}

/// `routes!` documents what it routes; axum's own `.route(` does not, so only the control socket, which is
/// not part of the API, may use it.
#[test]
fn no_other_file_routes_past_the_document() {
    for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/api")).unwrap() {
        let path = entry.unwrap().path();
        // The page is for browsers, and the document leaves it out.
        if path.ends_with("page") {
            continue;
        }
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]").next().unwrap();
        let past = [".route(", ".route_service(", ".nest_service("].iter().any(|call| code.contains(call));
        assert!(
            !past
                || matches!(
                    &*name,
                    "control.rs"
                        | "control_api_keys.rs"
                        | "control_backups.rs"
                        | "control_jobs.rs"
                        | "control_life.rs"
                        | "control_pocketbase.rs"
                        | "control_templates.rs"
                ),
            "{name} adds a route that is not documented"
        );
    }
}

#[test]
fn operation_ids_are_unique_and_every_operation_is_described() {
    let mut seen = HashSet::new();
    for (method, path, operation) in operations() {
        let id = operation["operationId"].as_str().unwrap_or_else(|| panic!("{method} {path} has no id")).to_owned();
        assert!(seen.insert(id.clone()), "{id} twice");
        assert!(operation["summary"].is_string(), "{method} {path} has no summary");
        assert!(
            operation["tags"].as_array().is_some_and(|tags| tags.len() == 1),
            "{method} {path}: {}",
            operation["tags"]
        );
        assert!(operation["responses"]["default"]["$ref"].is_string(), "{method} {path} has no error response");
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = serde_json::to_value(document()).unwrap();
    let mut open = vec![&document];
    while let Some(value) = open.pop() {
        if let Some(reference) = value.get("$ref").and_then(Value::as_str) {
            assert!(document.pointer(reference.trim_start_matches('#')).is_some(), "{reference} is not defined");
        }
        match value {
            Value::Object(fields) => open.extend(fields.values()),
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
}

#[tokio::test]
async fn the_document_is_served() {
    let (answer, body) = ask("GET", "/openapi.json", &[], "").await;
    assert_eq!((answer.status().as_u16(), body), (200, serde_json::to_value(document()).unwrap()));
}

#[tokio::test]
async fn wrong_paths_and_methods_are_answered_in_the_shape_of_the_path() {
    let (answer, body) = ask("GET", "/nowhere", &[], "").await;
    assert_eq!((answer.status().as_u16(), &body["error"]["code"]), (404, &Value::from("NOT_FOUND")));
    assert_eq!(answer.headers()["x-pocketfleet-error"], "NOT_FOUND");
    let (answer, body) = ask("GET", "/api/sql", &[], "").await;
    assert_eq!((answer.status().as_u16(), &body["status"], &body["code"]), (404, &404.into(), &"NOT_FOUND".into()));
    let (answer, body) = ask("GET", "/auth/login", &[], "").await;
    assert_eq!((answer.status().as_u16(), &body["error"]["code"]), (405, &Value::from("METHOD_NOT_ALLOWED")));
    let (answer, body) = ask("PUT", "/api/collections/users/auth-refresh", &[], "").await;
    assert_eq!((answer.status().as_u16(), &body["status"]), (405, &405.into()));
}

#[tokio::test]
async fn nobody_gets_in_without_a_token() {
    for (method, path, operation) in operations() {
        if operation["security"].as_array().is_none_or(|needed| needed.len() != 1) {
            continue;
        }
        let (answer, body) = ask(&method, &concrete(&path), &[], "").await;
        assert_eq!(answer.status(), 401, "{method} {path}: {body}");
        assert_eq!(answer.headers()["www-authenticate"], "Bearer", "{method} {path}");
    }
}

#[tokio::test]
async fn bodies_that_are_not_what_a_route_takes_are_refused() {
    let json = [("content-type", "application/json")];
    for path in ["/auth/login", "/api/v1/auth/register"] {
        for (headers, body, code) in [
            (&json[..], "{", "INVALID_BODY"),
            (&json[..], "[]", "INVALID_BODY"),
            (&json[..], r#"{"email":"a@b.c","password":"p","role":"admin"}"#, "INVALID_BODY"),
            (&json[..], r#"{"email":" ","password":"p"}"#, "VALIDATION_FAILED"),
            (&[], r#"{"email":"a@b.c","password":"p"}"#, "INVALID_BODY"),
        ] {
            let (answer, answered) = ask("POST", path, headers, body).await;
            assert_eq!((answer.status().as_u16(), &answered["error"]["code"]), (400, &code.into()), "{path} {body}");
        }
    }
    let path = "/api/collections/users/auth-with-password";
    let (_, body) = ask("POST", path, &json, r#"{"identity":"a@b.c"}"#).await;
    assert_eq!(
        (&body["status"], &body["data"]["password"]["code"]),
        (&400.into(), &"validation_required".into()),
        "{body}"
    );
}

#[tokio::test]
async fn what_needs_no_other_part_answers() {
    let (answer, body) = ask("GET", "/health", &[], "").await;
    assert_eq!((answer.status().as_u16(), &body["status"]), (200, &"ok".into()));
    let (_, body) = ask("GET", "/api/health", &[], "").await;
    assert_eq!(body, serde_json::json!({"code": 200, "message": "API is healthy.", "data": {}}));
    let (_, body) = ask("GET", "/health/ws", &[], "").await;
    assert_eq!(body, serde_json::json!({"status": "ok", "connections": 0, "users": 0, "topics": 0}));
    let (_, body) = ask("GET", "/", &[], "").await;
    assert_eq!(body["name"], "pocketfleet");
    let (answer, _) = ask("GET", "/", &[("accept", "text/html,*/*")], "").await;
    let policy = answer.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.contains("frame-ancestors 'none'") && policy.contains("style-src 'sha256-"), "{policy}");
}

#[tokio::test]
async fn operators_are_told_what_is_wrong_with_a_request() {
    let json = [("content-type", "application/json")];
    for (method, path, body, status, code) in [
        ("GET", "/tenants?state=hungry", "", 400, "INVALID_REQUEST"),
        ("GET", "/tenants?limit=-1", "", 400, "INVALID_REQUEST"),
        ("GET", "/tenants?after=..%2f", "", 400, "INVALID_REQUEST"),
        ("GET", "/tenants?surprise=1", "", 400, "INVALID_REQUEST"),
        ("GET", "/tenants/Not-An-Id", "", 404, "NOT_FOUND"),
        ("POST", "/tenants/b5c3xih3gtjb48z/explode", "", 400, "INVALID_REQUEST"),
        ("GET", "/tenants/b5c3xih3gtjb48z/wake", "", 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/admins", r#"{"email":"nobody","password":"correct horse"}"#, 400, "VALIDATION_FAILED"),
        ("POST", "/admins", r#"{"email":"a@b.c"}"#, 400, "INVALID_BODY"),
        ("GET", "/metrics", "", 404, "NOT_FOUND"),
    ] {
        let (state, _dir) = state().await;
        let (answer, answered) = ask_of(control::router(state), method, path, &json, body).await;
        assert_eq!((answer.status().as_u16(), &answered["error"]["code"]), (status, &code.into()), "{method} {path}");
    }
}

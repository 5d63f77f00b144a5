//! Keeping the rows of those who may act in an instance in step with who they are: before it starts, and while it runs.
//!
//! Before a start the rows are compared and written if they differ, so that what changed while the instance slept (a
//! member more or less, a role, a name, an address) counts from its first request on. While it runs the same is done to
//! its file, which it does not cache; the keys that tokens are minted from are exchanged, and then each row is saved
//! once more through the instance's own API without a change, so that whoever is subscribed to `users` hears of it.
//!
//! Limits: subscribers hear of a newcomer as of an update. A failure to write is logged, and the instance goes on with
//! the rows it has: who is let in is decided in front of it, request by request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::AUTHORIZATION;
use hyper::header::CONNECTION;
use hyper::header::CONTENT_TYPE;
use hyper::header::HOST;
use hyper::header::HeaderValue;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::ids::TenantId;
use crate::pocketbase::apart::Ask;
use crate::pocketbase::copy::Served;
use crate::pocketbase::database;
use crate::pocketbase::database::Owner;
use crate::pocketbase::database::Signers;
use crate::pocketbase::roster;
use crate::pocketbase::roster::Roster;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;
use crate::supervisor::apart;
use crate::supervisor::config::Access;
use crate::supervisor::fleet::Fleet;
use crate::supervisor::slot::Running;

/// How long saving one row may take.
const TOUCH_PATIENCE: Duration = Duration::from_secs(2);

/// The row that a new personal instance is made with. The rows of a workspace follow at its first start.
pub(super) fn owner(fleet: &Fleet, tenant: &Tenant) -> Result<Option<Owner>, &'static str> {
    if tenant.id.is_global() || fleet.is_spare(&tenant.id) {
        return Ok(None);
    }
    match (fleet.rosters.0)(tenant) {
        Access::Unknown => Err("the owner's account cannot be read"),
        Access::Own => Ok(None),
        Access::Roster(roster) if roster.is_shared => Ok(None),
        Access::Roster(roster) => Ok(roster.rows.into_iter().next().map(|row| row.account)),
    }
}

/// Brings the rows of an instance in step and reads its keys; the changed rows' ids come with them. Nobody's token is
/// ever minted for the global instance, or for one with users of its own, but the control superuser's. While a process
/// serves the database, one that can be spared looks at it for us. Blocks.
pub(super) fn keys(
    fleet: &Fleet,
    tenant: &TenantId,
    served: Served,
) -> Result<(Signers, Vec<String>), database::Error> {
    let path = fleet.folder(tenant).join("pb_data").join("data.db");
    let jailer = &fleet.isolation.jailer;
    let asked = |ask: &Ask, limit| fleet.lookers.ask(jailer, ask, limit)?.keys(&path);
    let nobody = || {
        if served == Served::Yes {
            return asked(&Ask::superuser(&path), apart::LOOK);
        }
        Ok((
            Signers {
                superuser: database::superuser(&path)?,
                superuser_files: None,
                users: HashMap::new(),
                files: HashMap::new(),
            },
            Vec::new(),
        ))
    };
    let as_it_is = || match served {
        Served::Yes => asked(&Ask::signers(&path), apart::LOOK),
        Served::No => Ok((database::signers(&path)?, Vec::new())),
    };
    let enroll = |wanted: &Roster| match served {
        Served::Yes => asked(&Ask::enroll(&path, wanted), apart::EDIT),
        Served::No => roster::enroll(&path, wanted),
    };
    if tenant.is_global() {
        return nobody();
    }
    let Some(record) = fleet.tenants.find(tenant) else { return as_it_is() };
    match (fleet.rosters.0)(&record) {
        Access::Own => nobody(),
        Access::Unknown => as_it_is(),
        Access::Roster(wanted) => enroll(&wanted).or_else(|error| {
            let (mut signers, none) = as_it_is()?;
            tracing::error!(tenant.id = %tenant, %error, "bring the rows of an instance's members in step");
            if wanted.is_shared {
                signers.users.retain(|user, _| wanted.rows.iter().any(|row| row.account.id == *user));
            }
            Ok((signers, none))
        }),
    }
}

/// Brings a running instance in step.
pub(super) async fn follow(fleet: &Arc<Fleet>, tenant: &TenantId, running: &Arc<Running>) {
    let (of, id) = (Arc::clone(fleet), tenant.clone());
    let kind = fleet.tenants.find(tenant).map(|tenant| tenant.kind);
    // In what was a spare until a moment ago nobody has done anything, so that its file is trusted like a sleeper's: another
    // process to look at it would take longer than the rest of a claim. Once in the life of a process.
    let served = if running.takes_its_first() { Served::No } else { Served::Yes };
    let changed = match tokio::task::spawn_blocking(move || keys(&of, &id, served)).await {
        Ok(Ok((signers, changed))) => {
            running.renew(signers);
            changed
        }
        Ok(Err(error)) => return tracing::error!(tenant.id = %tenant, %error, "read the keys of a running instance"),
        Err(error) => return tracing::error!(tenant.id = %tenant, %error, "bring a running instance in step"),
    };
    if changed.is_empty() || kind != Some(Kind::Workspace) {
        return;
    }
    // Nobody waits for the events, and the instance may go down meanwhile.
    let (running, stopping) = (Arc::clone(running), fleet.stopping.clone());
    fleet.tasks.spawn_on(
        async move {
            for id in changed {
                let touched = touch(running.address, running.superuser_token(), &id);
                let touched = tokio::select! {
                    touched = tokio::time::timeout(TOUCH_PATIENCE, touched) => touched,
                    () = stopping.cancelled() => return,
                };
                if !matches!(touched, Ok(Some(()))) {
                    tracing::debug!("a member's row could not be announced to subscribers");
                }
            }
        },
        &fleet.runtime,
    );
}

/// Saves a row as it is.
async fn touch(address: SocketAddr, authorization: HeaderValue, id: &str) -> Option<()> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::patch(format!("/api/collections/{}/records/{id}", database::USERS))
        .header(HOST, address.to_string())
        .header(AUTHORIZATION, authorization)
        .header(CONTENT_TYPE, "application/json")
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::from_static(b"{}")))
        .ok()?;
    let exchange = async { sender.send_request(request).await.ok().filter(|answer| answer.status().is_success()) };
    tokio::pin!(exchange, connection);
    // The connection is driven here and not by a task of its own: dropping this future closes it.
    let answer = tokio::select! {
        biased;
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    };
    answer.map(drop)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::SystemTime;

    use serde_json::Value;
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::ids::UserId;
    use crate::pocketbase::roster::Row;
    use crate::pocketbase::token::Signer;
    use crate::pocketbase::visitors;
    use crate::supervisor::provision::provision;
    use crate::supervisor::slot::mint;
    use crate::supervisor::template::Templates;
    use crate::supervisor::testing::Served;
    use crate::supervisor::testing::bearer;
    use crate::supervisor::testing::locations;

    const NOTES: &str = "/api/collections/notes/records";

    fn user(name: &str) -> UserId {
        UserId::parse(&name.repeat(5)).unwrap()
    }

    fn row(name: &str, member_role: &'static str) -> Row {
        let account = Owner { id: user(name), email: format!("{name}@example.com"), name: name.to_owned() };
        Row { account, member_role }
    }

    async fn instance(root: &TempDir, template: &str) -> std::path::PathBuf {
        let locations = locations(root);
        let golden = Templates::open(&locations).await.unwrap().golden(template).unwrap();
        let dest = root.path().join("instance");
        provision(&golden, &dest, &locations.staging, None, "").unwrap();
        dest
    }

    fn send(served: &Served, method: &str, path: &str, signer: &Signer, body: &Value) -> (u16, Value) {
        served.call(method, path, &[("Authorization", &bearer(signer))], &body.to_string())
    }

    #[tokio::test]
    async fn roles_count_in_the_instance_and_change_while_it_runs() {
        let root = tempfile::tempdir().unwrap();
        let dir = instance(&root, "workspace").await;
        let path = dir.join("data.db");
        let people = |roles: &[(&str, &'static str)]| {
            let rows = roles.iter().map(|(name, role)| row(name, role)).collect();
            roster::enroll(&path, &Roster { rows, is_shared: true }).unwrap()
        };
        let (signers, _) = people(&[("ada", "owner"), ("bob", "member"), ("gus", "guest")]);
        let [ada, bob, gus] = ["ada", "bob", "gus"].map(|name| &signers.users[&user(name)]);
        let served = Served::start(&dir).await;

        let note = |by: &str| json!({"title": "x", "author": user(by).as_str()});
        let (status, made) = send(&served, "POST", NOTES, bob, &note("bob"));
        assert_eq!(status, 200, "{made}");
        let at = format!("{NOTES}/{}", made["id"].as_str().unwrap());
        assert_eq!(send(&served, "POST", NOTES, bob, &note("ada")).0, 400, "nobody writes under another's name");
        assert_eq!(send(&served, "PATCH", &at, bob, &json!({"author": user("ada").as_str()})).0, 404);
        assert_eq!(send(&served, "PATCH", &at, ada, &json!({"title": "y"})).0, 200);
        assert_eq!(send(&served, "POST", NOTES, gus, &note("gus")).0, 400, "guests read");
        assert_eq!(send(&served, "GET", NOTES, gus, &json!({})).1["totalItems"], 1);
        assert_eq!(send(&served, "DELETE", &at, bob, &json!({})).0, 404, "members do not clean up");
        let users = send(&served, "GET", "/api/collections/users/records", gus, &json!({})).1;
        assert_eq!(users["totalItems"], 3, "members see each other: {users}");
        assert_eq!(served.get(NOTES, "").1["totalItems"], 0, "strangers see nothing");

        // While it runs: a newcomer, another role, one who goes.
        let (after, changed) = people(&[("ada", "owner"), ("gus", "member"), ("cyd", "admin")]);
        assert_eq!(changed.len(), 3);
        assert_eq!(send(&served, "POST", NOTES, gus, &note("gus")).0, 200, "the key of one who stays holds");
        assert_eq!(send(&served, "GET", NOTES, bob, &json!({})).1["totalItems"], 0, "a token from before is nobody's");
        assert!(!after.users.contains_key(&user("bob")), "and there is none from now on");
        assert_eq!(send(&served, "DELETE", &at, &after.users[&user("cyd")], &json!({})).0, 204);

        // Saving a row as it is goes through the instance's own validation; its subscribers hear of that.
        let token = mint(&after.superuser, SystemTime::now(), Duration::from_mins(1));
        for name in ["cyd", "bob"] {
            assert_eq!(touch(served.address(), token.clone(), user(name).as_str()).await, Some(()), "{name}");
        }
        assert_eq!(people(&[("ada", "owner"), ("gus", "member"), ("cyd", "admin")]).1, Vec::<String>::new());
        served.stop().await;
    }

    fn accepts(path: &Path, token: &str) -> bool {
        visitors::accepts(path, token, SystemTime::now()).unwrap()
    }

    #[tokio::test]
    async fn a_hosted_apps_own_tokens_are_told_from_all_others() {
        let root = tempfile::tempdir().unwrap();
        let dir = instance(&root, "hosted").await;
        let path = dir.join("data.db");
        let served = Served::start(&dir).await;
        let body = r#"{"email":"vi@example.com","password":"12345678","passwordConfirm":"12345678"}"#;
        let (status, made) = served.call("POST", "/api/collections/users/records", &[], body);
        assert_eq!(status, 200, "{made}");
        let chosen =
            r#"{"id":"aaaaaaaaaaaaaaa","email":"al@example.com","password":"12345678","passwordConfirm":"12345678"}"#;
        assert_eq!(served.call("POST", "/api/collections/users/records", &[], chosen).0, 400);
        let body = r#"{"identity":"vi@example.com","password":"12345678"}"#;
        let (_, signed_in) = served.call("POST", "/api/collections/users/auth-with-password", &[], body);
        let token = signed_in["token"].as_str().unwrap();
        let (_, file) = served.call("POST", "/api/files/token", &[("Authorization", token)], "{}");
        let file = file["token"].as_str().unwrap();

        assert!(accepts(&path, token) && accepts(&path, file), "awake");
        let superuser = database::superuser(&path).unwrap();
        assert!(!accepts(&path, &superuser.mint(SystemTime::now(), Duration::from_mins(1))), "a superuser's");
        let by_name = Signer { collection_id: "_superusers".to_owned(), ..superuser };
        assert!(!accepts(&path, &by_name.mint(SystemTime::now(), Duration::from_mins(1))));
        let late = SystemTime::now() + Duration::from_hours(24 * 365);
        assert!(!visitors::accepts(&path, token, late).unwrap(), "expired");
        for (at, _) in token.char_indices() {
            let mut changed = token.to_owned();
            changed.replace_range(at..=at, if &token[at..=at] == "A" { "B" } else { "A" });
            assert!(!accepts(&path, &changed), "byte {at}");
        }
        for nothing in ["", "x", "a.b.c", "..", &"x".repeat(5000)] {
            assert!(!accepts(&path, nothing));
        }
        let signers = database::signers(&path).unwrap();
        let visitor = &signers.users[&UserId::parse(made["id"].as_str().unwrap()).unwrap()];
        let named = Signer { collection_id: "users".to_owned(), ..visitor.clone() };
        assert!(accepts(&path, &named.mint(SystemTime::now(), Duration::from_mins(1))), "a collection has two names");
        let stranger = Signer { record_id: "bbbbbbbbbbbbbbb".to_owned(), ..visitor.clone() };
        assert!(!accepts(&path, &stranger.mint(SystemTime::now(), Duration::from_mins(1))));

        // A draft is its author's; what is published is everybody's.
        let posts = "/api/collections/posts/records";
        let post = json!({"title": "x", "author": made["id"], "published": false});
        let (status, draft) = send(&served, "POST", posts, visitor, &post);
        assert_eq!((status, served.get(posts, "").1["totalItems"].clone()), (200, json!(0)), "{draft}");
        let at = format!("{posts}/{}", draft["id"].as_str().unwrap());
        assert_eq!(send(&served, "PATCH", &at, visitor, &json!({"published": true})).0, 200);
        assert_eq!(served.get(posts, "").1["totalItems"], 1);
        served.stop().await;
        assert!(accepts(&path, token) && accepts(&path, file), "asleep");
        let sibling = tempfile::tempdir().unwrap();
        let other = instance(&sibling, "hosted").await;
        assert!(!accepts(&other.join("data.db"), token), "another instance");
    }
}

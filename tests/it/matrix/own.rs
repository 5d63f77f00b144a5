//! The part of the matrix that our own API answers: accounts, sessions, workspaces, jobs, secrets, deliveries.

use reqwest::Method;
use serde_json::json;

use crate::matrix::EVERYBODY;
use crate::matrix::Who;
use crate::matrix::people::SECRET;
use crate::matrix::people::World;

/// How many calls were made, and what was wrong with them.
pub(crate) async fn check(world: &World) -> (usize, Vec<String>) {
    let (mut cases, mut wrong) = (0, Vec::new());
    for who in EVERYBODY.into_iter().chain([Who::Suspended]) {
        for (method, path, body, wanted) in calls(world, who) {
            let (status, text) = world.send(who, method.clone(), &path, body).await;
            cases += 1;
            if !wanted.contains(&status) {
                wrong.push(format!("{who:?} {method} {path}: {status}, not {wanted:?}: {text}"));
            }
        }
    }
    // Nobody else's calls did anything to what is the owner's.
    let (status, text) = world.send(Who::Owner, Method::GET, "/api/v1/schedules", None).await;
    if status != 200 || !text.contains(&world.schedule) {
        wrong.push(format!("the owner's schedule after all this: {status}: {text}"));
    }
    let path = format!("/api/v1/vault/{}/reveal", world.secret);
    let (status, text) = world.send(Who::Owner, Method::POST, &path, Some(json!({}))).await;
    if status != 200 || !text.contains(SECRET) {
        wrong.push(format!("the owner's secret after all this: {status}: {text}"));
    }
    (cases, wrong)
}

type Case = (Method, String, Option<serde_json::Value>, Vec<u16>);

fn calls(world: &World, who: Who) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |method: Method, path: String, body: Option<serde_json::Value>, wanted: &[u16]| {
        let wanted = if who.is_somebody() { wanted.to_vec() } else { vec![401] };
        cases.push((method, path, body, wanted));
    };
    for path in ["auth/me", "auth/sessions", "tenants", "settings/api-keys", "usage"] {
        add(Method::GET, format!("/api/v1/{path}"), None, &[200]);
    }
    let (owners, others) = &world.sessions;
    let absent = "0".repeat(64);
    for (session, is_own) in [(owners, who == Who::Owner), (others, who == Who::Other), (&absent, false)] {
        let path = format!("/api/v1/auth/sessions/{session}");
        add(Method::GET, path.clone(), None, if is_own { &[200] } else { &[404] });
        if !is_own {
            add(Method::DELETE, path, None, &[404]);
        }
    }
    if who != Who::Owner {
        add(Method::DELETE, format!("/api/v1/settings/api-keys/{}", world.api_key), None, &[404]);
    }
    // By slug, by id, a tenant that others have, and one that nobody has.
    let places = [
        ("acme", matches!(who, Who::Owner | Who::Member | Who::Guest), who == Who::Owner),
        (&*world.workspace, matches!(who, Who::Owner | Who::Member | Who::Guest), who == Who::Owner),
        (&*world.owner, who == Who::Owner, who == Who::Owner),
        (&*world.other, who == Who::Other, who == Who::Other),
        ("acne", false, false),
        ("global", false, false),
    ];
    for (name, belongs, owns) in places {
        let path = |rest: &str| format!("/api/v1/tenants/{name}{rest}");
        let reads: &[u16] = if belongs { &[200] } else { &[404] };
        add(Method::GET, path(""), None, reads);
        // A personal tenant has no members to manage.
        add(Method::GET, path("/members"), None, if belongs { &[200, 403, 404, 409] } else { &[404] });
        // Refusals only: what owners may change is tested with the workspaces.
        if !owns {
            let refused: &[u16] = if belongs { &[403] } else { &[404] };
            add(Method::PATCH, path(""), Some(json!({"name": "Mine now"})), refused);
            add(Method::GET, path("/invitations"), None, refused);
            add(Method::POST, path("/invitations"), Some(json!({"role": "admin"})), refused);
            add(Method::POST, path("/transfer"), Some(json!({"user": world.account(who)})), refused);
            add(Method::PATCH, path(&format!("/members/{}", world.owner)), Some(json!({"role": "guest"})), refused);
            add(Method::DELETE, path(&format!("/members/{}", world.owner)), None, refused);
            add(Method::POST, path("/dashboard"), Some(json!({})), refused);
            let backups = |rest: &str| format!("/api/v1/backups{rest}?tenant={name}");
            let one = "/20261121T133701042-0a1b2c3d";
            add(Method::GET, backups(""), None, refused);
            add(Method::POST, backups(""), None, refused);
            add(Method::GET, backups(&format!("{one}/download")), None, refused);
            add(Method::POST, backups(&format!("{one}/restore")), None, refused);
        }
    }
    // What belongs to admins alone; nobody's word ends somebody else's tenant.
    let admins: &[u16] = if who == Who::Admin { &[200] } else { &[403] };
    add(Method::GET, "/api/v1/admin/tenants/deleted".to_owned(), None, admins);
    add(Method::GET, "/api/v1/admin/erasures".to_owned(), None, admins);
    add(Method::GET, "/api/v1/admin/usage".to_owned(), None, admins);
    add(Method::GET, format!("/api/v1/admin/tenants/{}/quota", world.owner), None, admins);
    if who != Who::Admin {
        add(Method::PUT, format!("/api/v1/admin/tenants/{}/quota", world.owner), Some(json!({})), &[403]);
    }
    for (name, belongs, _) in places {
        let reads: &[u16] = if belongs { &[200] } else { &[404] };
        add(Method::GET, format!("/api/v1/usage?tenant={name}"), None, reads);
    }
    for (name, belongs, owns) in places {
        if !owns && who != Who::Admin {
            let refused: &[u16] = if belongs { &[403] } else { &[404] };
            add(Method::DELETE, format!("/api/v1/tenants/{name}"), None, refused);
            add(Method::DELETE, format!("/api/v1/tenants/{name}?now=true"), None, refused);
            add(Method::POST, format!("/api/v1/tenants/{name}/undelete"), None, refused);
        }
    }
    if who != Who::Owner {
        let path = format!("/api/collections/users/records/{}", world.owner);
        add(Method::DELETE, path, None, &[404]);
    }
    cases.extend(jobs(world, who));
    cases.extend(secrets(world, who));
    cases.extend(deliveries(world, who));
    cases.extend(connections(who));
    cases
}

/// The routes of jobs, which a key of the owner's reaches as the owner does, and those of workers, which nobody does.
fn jobs(world: &World, who: Who) -> Vec<Case> {
    let mut cases = Vec::new();
    let is_somebody = who.is_somebody() || who == Who::ApiKey;
    let mut add = |method: Method, path: String, body: Option<serde_json::Value>, wanted: u16| {
        cases.push((method, path, body, vec![if is_somebody { wanted } else { 401 }]));
    };
    let (owners, others) = &world.jobs;
    let absent = "0".repeat(26);
    let is_owner = matches!(who, Who::Owner | Who::ApiKey);
    for (job, is_own) in [(owners, is_owner), (others, who == Who::Other), (&absent, false)] {
        let found = if is_own { 200 } else { 404 };
        for base in ["/api/v1/queue", "/api/queue", "/api/v1/jobs"] {
            add(Method::GET, format!("{base}/{job}"), None, found);
            add(Method::POST, format!("{base}/{job}/move"), Some(json!({"to": "front"})), found);
            add(Method::POST, format!("{base}/{job}/retry"), Some(json!({})), found);
        }
        if !is_own {
            add(Method::DELETE, format!("/api/v1/queue/{job}"), None, 404);
            add(Method::POST, format!("/api/v1/jobs/{job}/cancel"), Some(json!({})), 404);
            let url = json!({"url": "https://www.loom.com/share/0123456789abcdef0123456789abcdef"});
            add(Method::POST, format!("/api/v1/queue/{job}/share_url"), Some(url), 404);
        }
    }
    for (schedule, is_own) in [(&*world.schedule, is_owner), (&*absent, false), ("not-an-id", false)] {
        if !is_own {
            add(Method::DELETE, format!("/api/v1/schedules/{schedule}"), None, 404);
        }
    }
    add(Method::GET, "/api/v1/schedules".to_owned(), None, 200);
    let never = json!({"cron": "0 0 30 2 *", "kind": "transcode"});
    add(Method::POST, "/api/v1/schedules".to_owned(), Some(never), if who == Who::Suspended { 403 } else { 400 });
    for path in ["/api/v1/queue", "/api/queue", "/api/v1/jobs"] {
        add(Method::GET, path.to_owned(), None, 200);
        add(Method::POST, path.to_owned(), Some(json!({"items": []})), 400);
    }
    let wanted = if who == Who::ApiKey { 403 } else { 401 };
    for verb in ["claim", "heartbeat", "progress", "complete", "fail", "release"] {
        cases.push((Method::POST, format!("/api/v1/worker/{verb}"), Some(json!({})), vec![wanted]));
    }
    cases
}

/// The routes of the vault, at both addresses. A key of ours is good for none of them, and neither is an admin's role;
/// whose instance is suspended keeps their secrets.
fn secrets(world: &World, who: Who) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |method: Method, path: String, body: Option<serde_json::Value>, wanted: &[u16]| {
        let wanted = if who.is_somebody() { wanted.to_vec() } else { vec![401] };
        cases.push((method, path, body, wanted));
    };
    let absent = "0b8f9c0e-6b7e-4d62-9a53-6a1f0f2f3c11";
    for base in ["/api/v1/vault", "/api/keys"] {
        add(Method::GET, base.to_owned(), None, &[200]);
        let own = json!({"service": "generic", "label": "matrix", "secret": "stored-by-the-matrix"});
        add(Method::PUT, base.to_owned(), Some(own), &[200, 201]);
        for (key, is_own) in [(&*world.secret, who == Who::Owner), (absent, false), ("not-an-id", false)] {
            if !is_own {
                add(Method::PATCH, format!("{base}/{key}"), Some(json!({"label": "mine"})), &[404]);
                add(Method::DELETE, format!("{base}/{key}"), None, &[404]);
            }
            let shown: &[u16] = if is_own { &[200] } else { &[404] };
            add(Method::POST, format!("{base}/{key}/reveal"), Some(json!({})), shown);
        }
    }
    cases
}

/// The routes of destinations, artifacts and meetings, which live in the caller's own instance. Bytes are let out by a signed
/// link alone: no credential opens one, not even the owner's.
fn deliveries(world: &World, who: Who) -> Vec<Case> {
    let mut cases = Vec::new();
    let mut add = |method: Method, path: String, body: Option<serde_json::Value>, wanted: u16| {
        let wanted = match who {
            Who::Suspended => 403,
            _ if who.is_somebody() => wanted,
            _ => 401,
        };
        cases.push((method, path, body, vec![wanted]));
    };
    add(Method::GET, "/api/v1/destinations".to_owned(), None, 200);
    for (id, is_own) in [(&*world.destination, who == Who::Owner), ("absentabsentabs", false)] {
        let path = format!("/api/v1/destinations/{id}");
        add(Method::GET, path.clone(), None, if is_own { 200 } else { 404 });
        if !is_own {
            add(Method::PATCH, path.clone(), Some(json!({"name": "Mine now"})), 404);
            add(Method::POST, format!("{path}/check"), None, 404);
            add(Method::DELETE, path, None, 404);
        }
    }
    add(Method::GET, "/api/v1/meetings/4711/artifacts".to_owned(), None, 200);
    add(Method::GET, "/api/v1/meetings/4711".to_owned(), None, 404);
    for ticket in ["", "?token=", "?token=bm9ib2R5"] {
        let path = format!("/api/v1/artifacts/absentabsentabs/download{ticket}");
        cases.push((Method::GET, path, None, vec![404]));
    }
    cases
}

/// The routes of a sign-in at Fathom, which nobody began. What comes back without a session is led to the page for that.
fn connections(who: Who) -> Vec<Case> {
    let wanted = |status: u16| vec![if who.is_somebody() { status } else { 401 }];
    let path = "/api/v1/services/fathom".to_owned();
    vec![
        (Method::GET, path.clone(), None, wanted(200)),
        (Method::POST, format!("{path}/connect"), Some(json!({})), wanted(501)),
        (Method::DELETE, path.clone(), None, wanted(404)),
        (Method::GET, format!("{path}/callback?state=x&code=x"), None, vec![200]),
    ]
}

//! The part of the matrix that our own API answers: accounts, sessions, workspaces.

use reqwest::Method;
use serde_json::json;

use crate::matrix::EVERYBODY;
use crate::matrix::Who;
use crate::matrix::people::World;

/// How many calls were made, and what was wrong with them.
pub(crate) async fn check(world: &World) -> (usize, Vec<String>) {
    let (mut cases, mut wrong) = (0, Vec::new());
    for who in EVERYBODY {
        for (method, path, body, wanted) in calls(world, who) {
            let (status, text) = world.send(who, method.clone(), &path, body).await;
            cases += 1;
            if !wanted.contains(&status) {
                wrong.push(format!("{who:?} {method} {path}: {status}, not {wanted:?}: {text}"));
            }
        }
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
    add(Method::GET, "/api/v1/auth/me".to_owned(), None, &[200]);
    add(Method::GET, "/api/v1/auth/sessions".to_owned(), None, &[200]);
    add(Method::GET, "/api/v1/tenants".to_owned(), None, &[200]);
    let (owners, others) = &world.sessions;
    let absent = "0".repeat(64);
    for (session, is_own) in [(owners, who == Who::Owner), (others, who == Who::Other), (&absent, false)] {
        let path = format!("/api/v1/auth/sessions/{session}");
        add(Method::GET, path.clone(), None, if is_own { &[200] } else { &[404] });
        if !is_own {
            add(Method::DELETE, path, None, &[404]);
        }
    }
    add(Method::GET, "/api/v1/settings/api-keys".to_owned(), None, &[200]);
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
    add(Method::GET, "/api/v1/usage".to_owned(), None, &[200]);
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

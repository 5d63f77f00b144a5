//! What members, guests, strangers and those who left get at a workspace's address, from one request to the next.

use reqwest::Method;
use reqwest::StatusCode;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::User;
use crate::support::eventually;
use crate::support::sse::Stream;

const NOTES: &str = "/api/collections/notes/records";

/// Makes the workspace `team` and gives its id.
async fn team(owner: &User, body: Value) -> String {
    let mut wanted = json!({"name": "Team", "slug": "team"});
    wanted.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
    let answer = owner.post("/api/v1/tenants", wanted).await;
    let status = answer.status();
    let made: Value = answer.json().await.unwrap();
    assert_eq!(status, 201, "{made}");
    made["id"].as_str().unwrap().to_owned()
}

async fn join(owner: &User, who: &User, role: &str) {
    let answer = owner.post("/api/v1/tenants/team/invitations", json!({ "role": role })).await;
    let invited: Value = answer.json().await.unwrap();
    let accepted = who.post("/api/v1/invitations/accept", json!({"token": invited["token"]})).await;
    assert_eq!(accepted.status(), 200, "{}", accepted.text().await.unwrap());
}

/// The same account with the workspace's address as its base URL.
fn there(user: &User) -> User {
    User { base: format!("{}/t/team", user.base), ..user.clone() }
}

async fn write(who: &User, title: &str) -> StatusCode {
    who.post(NOTES, json!({"title": title, "author": who.id})).await.status()
}

async fn role(owner: &User, who: &User, role: &str) {
    let path = format!("/api/v1/tenants/team/members/{}", who.id);
    let changed = owner.request(Method::PATCH, &path).json(&json!({ "role": role })).send().await.unwrap();
    assert_eq!(changed.status(), 200, "{}", changed.text().await.unwrap());
}

async fn remove(owner: &User, who: &User) {
    let path = format!("/api/v1/tenants/team/members/{}", who.id);
    assert_eq!(owner.request(Method::DELETE, &path).send().await.unwrap().status(), 204);
}

async fn change(owner: &User, body: Value) -> Value {
    let answer = owner.request(Method::PATCH, "/api/v1/tenants/team").json(&body).send().await.unwrap();
    let status = answer.status();
    let body: Value = answer.json().await.unwrap();
    assert_eq!(status, 200, "{body}");
    body
}

async fn subscribed(who: &User, topics: &[&str]) -> Stream {
    let stream = Stream::at(&who.base).await;
    assert_eq!(stream.subscribe(Some(&who.token), topics).await, 204);
    stream
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_request_of_whoever_comes_goes_or_changes_knows_it() {
    let app = TestApp::start().await;
    let (ada, bob, cyd) = (app.user("ada").await, app.user("bob").await, app.user("cyd").await);
    let id = team(&ada, json!({})).await;
    assert_eq!(write(&there(&ada), "first").await, 200);
    let epoch = app.tenant(&id)["epoch"].clone();
    // Before the invitation there is nothing, and nobody is told that there could be.
    assert_eq!(there(&bob).get(NOTES).await.status(), 404);
    join(&ada, &bob, "member").await;
    assert_eq!(there(&bob).titles().await, ["first"]);
    assert_eq!(write(&there(&bob), "Bob's").await, 200);
    // Members see each other, by the instance's own records.
    let seen: Value = there(&bob).get("/api/collections/users/records?sort=name").await.json().await.unwrap();
    let people: Vec<_> =
        seen["items"].as_array().unwrap().iter().map(|item| (&item["id"], &item["member_role"])).collect();
    assert_eq!(people, [(&json!(ada.id), &json!("owner")), (&json!(bob.id), &json!("member"))]);

    // The rules see another role with the next request.
    let note = there(&ada).titles().await.len();
    assert_eq!(note, 2);
    let first: Value = there(&ada).get(NOTES).await.json().await.unwrap();
    let path = format!("{NOTES}/{}", first["items"][0]["id"].as_str().unwrap());
    let delete = async || there(&bob).request(Method::DELETE, &path).send().await.unwrap().status();
    assert_eq!(delete().await, 404, "the rule lets owners and admins delete");
    role(&ada, &bob, "guest").await;
    assert_eq!(there(&bob).titles().await.len(), 2);
    let listens = subscribed(&there(&bob), &["notes/*"]).await;
    for (method, path) in [
        (Method::POST, NOTES),
        (Method::PATCH, path.as_str()),
        (Method::DELETE, path.as_str()),
        (Method::POST, "/api/batch"),
    ] {
        let answer = there(&bob).request(method, path).json(&json!({"title": "x", "author": bob.id})).send().await;
        assert_eq!(answer.unwrap().status(), 403, "{path}");
    }
    assert_eq!(write(&there(&ada), "for guests too").await, 200);
    assert_eq!(listens.until("for guests too").await, ["for guests too"]);
    role(&ada, &bob, "admin").await;
    assert_eq!(delete().await, 204);

    // Out, with the stream; and back.
    let stream = subscribed(&there(&bob), &["notes/*"]).await;
    remove(&ada, &bob).await;
    for path in [NOTES, "/api/collections/users/records"] {
        assert_eq!(there(&bob).get(path).await.status(), 404);
    }
    assert_eq!(write(&there(&bob), "late").await, 404);
    listens.ended().await;
    stream.ended().await;
    let again = Stream::at(&there(&bob).base).await;
    assert_eq!(again.subscribe(Some(&bob.token), &["notes/*"]).await, 404);
    assert_eq!(write(&bob, "at home nothing changed").await, 200);
    join(&ada, &bob, "member").await;
    assert_eq!(write(&there(&bob), "back").await, 200);

    // Asleep it is the same.
    app.put_to_sleep(&id);
    remove(&ada, &bob).await;
    assert_eq!(there(&bob).get(NOTES).await.status(), 404);
    assert_eq!(there(&cyd).get(NOTES).await.status(), 404);
    assert_eq!(app.tenant(&id)["state"], "asleep");
    join(&ada, &cyd, "guest").await;
    assert_eq!(write(&there(&cyd), "x").await, 403);
    assert_eq!(app.tenant(&id)["state"], "asleep", "a refusal wakes nothing");
    assert!(there(&cyd).titles().await.contains(&"back".to_owned()));
    assert_eq!(epoch.as_u64().map(|epoch| epoch + 1), app.tenant(&id)["epoch"].as_u64(), "one start since");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_member_hears_of_the_others_writes_once_also_across_sleep() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let id = team(&ada, json!({})).await;
    join(&ada, &bob, "member").await;
    let streams = [subscribed(&there(&ada), &["notes/*"]).await, subscribed(&there(&bob), &["notes/*"]).await];
    let home = subscribed(&ada, &["notes/*"]).await;
    let mut expected = Vec::new();
    for round in 0..3 {
        for who in [&ada, &bob] {
            let title = format!("{round} by {}", who.email);
            assert_eq!(write(&there(who), &title).await, 200);
            expected.push(title);
        }
        for stream in &streams {
            assert_eq!(stream.until(expected.last().unwrap()).await, expected);
        }
        app.put_to_sleep(&id);
    }
    // What happens at home is another story.
    ada.note("at home").await;
    assert_eq!(home.until("at home").await, ["at home"]);
    for stream in &streams {
        assert_eq!(stream.titles(), expected);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_earlier_slug_leads_there_and_an_archived_workspace_is_gone() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let id = team(&ada, json!({"public_read": ["/api/collections/notes/records"]})).await;
    join(&ada, &bob, "member").await;
    assert_eq!(write(&there(&ada), "one").await, 200);
    let old = subscribed(&there(&bob), &["notes/*"]).await;
    assert_eq!(change(&ada, json!({"slug": "crew"})).await["slug"], "crew");
    let at = |name: &str| User { base: format!("{}/t/{name}", app.base), ..bob.clone() };
    for name in ["team", "crew", &id] {
        assert_eq!(at(name).titles().await, ["one"], "{name}");
    }
    let fresh = subscribed(&at("crew"), &["notes/*"]).await;
    assert_eq!(write(&at("team"), "two").await, 200);
    assert_eq!(old.until("two").await, ["two"]);
    assert_eq!(fresh.until("two").await, ["two"]);

    let stranger = Stream::at(&at("crew").base).await;
    assert_eq!(stranger.subscribe(None, &["notes/*"]).await, 204);
    assert_eq!(change(&ada, json!({"archived": true})).await["archived"], true);
    for name in ["team", "crew", &id] {
        assert_eq!(at(name).get(NOTES).await.status(), 404, "{name}");
        assert_eq!(app.get(&format!("/t/{name}{NOTES}")).await.status(), 401, "{name}");
    }
    for stream in [&old, &fresh, &stranger] {
        stream.ended().await;
    }
    eventually("it sleeps", async || (app.tenant(&id)["state"] == "asleep").then_some(())).await;
    assert_eq!(change(&ada, json!({"archived": false})).await["archived"], false);
    assert_eq!(at("team").titles().await, ["one", "two"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_public_is_for_everybody_and_nothing_else_is() {
    let app = TestApp::start().await;
    let (ada, eve) = (app.user("ada").await, app.user("eve").await);
    let id = team(&ada, json!({"public_read": [NOTES]})).await;
    assert_eq!(write(&there(&ada), "inside").await, 200);
    let tasks = "/api/collections/tasks/records";
    for asleep in [false, true] {
        if asleep {
            app.put_to_sleep(&id);
        }
        assert_eq!(app.get(&format!("/t/team{tasks}")).await.status(), 401);
        assert_eq!(there(&eve).get(tasks).await.status(), 404);
        assert_eq!(app.post(&format!("/t/team{NOTES}"), json!({"title": "x"})).await.status(), 401);
        assert_eq!(there(&eve).post(NOTES, json!({"title": "x"})).await.status(), 404);
        assert_eq!(app.tenant(&id)["state"], if asleep { "asleep" } else { "awake" });
        // The rules still apply: this template's let members read only.
        for answer in [app.get(&format!("/t/team{NOTES}")).await, there(&eve).get(NOTES).await] {
            assert_eq!(answer.status(), 200);
            assert_eq!(answer.json::<Value>().await.unwrap()["totalItems"], 0);
        }
    }
    let stranger = Stream::at(&there(&ada).base).await;
    assert_eq!(stranger.subscribe(None, &["tasks/*"]).await, 401);
    assert_eq!(stranger.subscribe(Some(&eve.token), &["tasks/*"]).await, 404);
    assert_eq!(stranger.subscribe(None, &["notes/*"]).await, 204);
    // Closed again, and whoever listened hears no more.
    change(&ada, json!({"public_read": []})).await;
    assert_eq!(app.get(&format!("/t/team{NOTES}")).await.status(), 401);
    stranger.ended().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workspace_that_gets_users_of_its_own_is_closed_to_accounts_at_once() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    team(&ada, json!({})).await;
    join(&ada, &bob, "member").await;
    assert_eq!(write(&there(&ada), "one").await, 200);
    let streams = [subscribed(&there(&ada), &["notes/*"]).await, subscribed(&there(&bob), &["notes/*"]).await];
    assert_eq!(change(&ada, json!({"identity": "own"})).await["identity"], "own");
    for who in [&ada, &bob] {
        assert_eq!(there(who).get(NOTES).await.status(), 401);
    }
    for stream in &streams {
        stream.ended().await;
    }
    assert_eq!(change(&ada, json!({"identity": "global"})).await["identity"], "global");
    for who in [&ada, &bob] {
        assert_eq!(there(who).titles().await, ["one"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_name_that_changes_is_seen_by_the_other_members() {
    let app = TestApp::start().await;
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    let id = team(&ada, json!({})).await;
    join(&ada, &bob, "member").await;
    assert_eq!(write(&there(&ada), "one").await, 200);
    let path = format!("/api/collections/users/records/{}", bob.id);
    let renamed = there(&bob).request(Method::PATCH, &path).json(&json!({"name": "Robert"})).send().await.unwrap();
    assert_eq!(renamed.json::<Value>().await.unwrap()["name"], "Robert");
    let seen = async || there(&ada).get(&path).await.json::<Value>().await.unwrap()["name"].clone();
    eventually("the running instance is told", async || (seen().await == "Robert").then_some(())).await;
    app.put_to_sleep(&id);
    let home = bob.request(Method::PATCH, &path).json(&json!({"name": "Rob"})).send().await.unwrap();
    assert_eq!(home.status(), 200);
    assert_eq!(app.tenant(&id)["state"], "asleep");
    assert_eq!(seen().await, "Rob");
}

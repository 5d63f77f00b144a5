//! Others on an instance's address, connections that lead to a process that is gone, servers that never answer.

use std::sync::Arc;
use std::sync::Mutex;

use futures_util::future::join_all;
use serde_json::json;
use tokio::io::AsyncReadExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::NOTES;
use super::address_of;
use super::edit_placement;
use super::list;
use super::pid;
use super::write;
use crate::support::TestApp;
use crate::support::eventually;
use crate::support::runs;

/// Somebody who answers everything with 200, and notes what was asked.
async fn stranger(address: std::net::SocketAddr) -> Arc<Mutex<String>> {
    let listener = TcpListener::bind(address).await.unwrap();
    let heard = Arc::new(Mutex::new(String::new()));
    let notes = Arc::clone(&heard);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let notes = Arc::clone(&notes);
            tokio::spawn(async move {
                let mut buffer = vec![0; 4096];
                while let Ok(count) = stream.read(&mut buffer).await {
                    if count == 0 {
                        return;
                    }
                    notes.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..count]));
                    let body = r#"{"code":200,"message":"API is healthy.","data":{}}"#;
                    let first = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n";
                    let answer = format!("{first}Content-Length: {}\r\n\r\n{body}", body.len());
                    if stream.write_all(answer.as_bytes()).await.is_err() {
                        return;
                    }
                }
            });
        }
    });
    heard
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_11_a_stranger_on_the_address_gets_no_request_and_another_one_is_taken() {
    let mut app = TestApp::prepare("");
    // The second start is that of the user's instance.
    let taken = "127.100.7.9:20123".parse().unwrap();
    let heard = stranger(taken).await;
    app.environment.push(("PF_STAND_IN", format!("instance.address:2={taken}")));
    app.launch().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let own = address_of(pid(&app, &ada.id).unwrap());
    assert_ne!(own, taken);
    let shown = app.tenant(&ada.id);
    assert_eq!((&shown["restarts"], &shown["epoch"]), (&json!(0), &json!(2)), "tried again, and no failure: {shown}");
    let text = heard.lock().unwrap().clone();
    assert!(!text.contains("/api/collections") && !text.contains(&ada.token), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_11_a_stranger_where_the_record_says_our_process_listens_is_not_adopted() {
    let mut app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let before = pid(&app, &ada.id).unwrap();
    let place = "127.100.7.10:20124".parse().unwrap();
    let heard = stranger(place).await;
    app.kill();
    edit_placement(&app, &ada.id, |record| record["process"]["address"] = place.to_string().into());
    app.launch().await;
    let ada = ada.at(&app);
    assert_eq!(ada.titles().await, ["x"]);
    assert!(!runs(before), "who does not answer where it should is stopped");
    let text = heard.lock().unwrap().clone();
    assert!(text.contains("GET /api/health"), "it was asked who it is: {text}");
    assert!(!text.contains("/api/collections") && !text.contains(&ada.token), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_12_a_squatter_on_the_address_of_a_sleeping_instance_hears_nothing() {
    let app = TestApp::start().await;
    let ada = app.user("ada").await;
    ada.note("x").await;
    let old = address_of(pid(&app, &ada.id).unwrap());
    // Requests leave connections behind.
    join_all((0..8).map(|_| ada.titles())).await;
    app.put_to_sleep(&ada.id);
    let heard = stranger(old).await;
    let calls = join_all((0..8).map(|n| {
        let ada = ada.clone();
        async move { write(&ada, &format!("note-{n}")).await }
    }));
    assert!(calls.await.iter().all(|status| *status == 200));
    assert_ne!(address_of(pid(&app, &ada.id).unwrap()), old);
    assert_eq!(ada.titles().await.len(), 9);
    assert_eq!(*heard.lock().unwrap(), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_32_connections_of_the_process_before_are_never_used_and_no_write_is_repeated() {
    let mut app = TestApp::start().await;
    app.expect_log("instance failed");
    app.expect_log("the instance broke off");
    app.expect_log("request failed");
    let ada = app.user("ada").await;
    let mut written = Vec::new();
    for round in 0..4 {
        let reads = join_all((0..8).map(|_| ada.get(NOTES))).await;
        assert!(reads.iter().all(|answer| answer.status() == 200));
        if round % 2 == 0 {
            app.put_to_sleep(&ada.id);
        } else {
            crate::support::signal(pid(&app, &ada.id).unwrap(), "KILL");
        }
        let titles: Vec<String> = (0..8).map(|n| format!("round-{round}-{n}")).collect();
        let statuses = join_all(titles.iter().map(|title| write(&ada, title))).await;
        for (title, status) in titles.into_iter().zip(statuses) {
            // After a kill a write may be refused, or break off with the process before.
            assert!(status == 200 || (round % 2 == 1 && matches!(status, 502..=504)), "{title}: {status}");
            written.push((title, status));
        }
        eventually("it serves again", async || (list(&ada).await.0 == 200).then_some(())).await;
    }
    let stored = ada.titles().await;
    for (title, status) in written {
        let times = stored.iter().filter(|stored| **stored == title).count();
        assert!(times == 1 || (times == 0 && status != 200), "{title}: answered {status}, stored {times} times");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn fault_38_a_server_that_never_answers_slows_down_nobody_who_does_not_ask_it() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = silent.local_addr().unwrap().port();
    let keys = format!(
        "fathom.base_url = \"http://127.0.0.1:{port}/external/v1\"\noutbound.allow = [\"http://127.0.0.1:{port}\"]\n\
         fathom.timeout = \"45s\"\nmeetings.first_wait = \"30s\"\n"
    );
    let mut app = TestApp::with(&keys).await;
    app.expect_log("request failed");
    app.expect_log("slow");
    // Everybody who connects is let in and told nothing.
    let held = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&held);
    tokio::spawn(async move {
        while let Ok((stream, _)) = silent.accept().await {
            keep.lock().unwrap().push(stream);
        }
    });
    let (ada, bob) = (app.user("ada").await, app.user("bob").await);
    bob.note("y").await;
    app.put_to_sleep(&bob.id);
    let key = json!({"service": "fathom", "secret": "a-key-of-ada", "verify": false});
    let stored = ada.request(reqwest::Method::PUT, "/api/v1/vault").json(&key).send().await.unwrap();
    assert!(stored.status().is_success(), "{}", stored.text().await.unwrap());
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let ada = ada.clone();
            tokio::spawn(async move { ada.request(reqwest::Method::GET, "/api/v1/meetings").send().await })
        })
        .collect();
    eventually("somebody is asked and silent", async || (!held.lock().unwrap().is_empty()).then_some(())).await;
    assert!(waiting.iter().all(|call| !call.is_finished()), "they wait");
    // Meanwhile others are woken and served, and so is she in all else.
    assert_eq!(bob.titles().await, ["y"]);
    assert_eq!(write(&ada, "x").await, 200);
    assert_eq!(app.get("/health").await.status(), 200);
    assert_eq!(app.tenant(&bob.id)["state"], "awake");
    held.lock().unwrap().clear();
    for call in waiting {
        call.abort();
    }
}

//! The real program, killed while jobs are added and claimed.

use std::collections::BTreeSet;

use crate::support::TestApp;
use crate::workers;
use crate::workers::KINDS;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn after_kill_minus_nine_every_acknowledged_job_is_there_and_claims_go_on() {
    let mut app = TestApp::with(KINDS).await;
    let ada = app.user("ada").await;
    let farm = workers::worker(&app, &["transcode"]);
    workers::add(&ada, "transcode", 3).await;
    let claimed = workers::claim(&farm, 2, 0).await;
    let acknowledged = Log::<String>::default();
    let adding: Vec<_> = (0..4)
        .map(|_| {
            let (http, token, base, acknowledged) =
                (ada.http.clone(), ada.token.clone(), ada.base.clone(), acknowledged.clone());
            tokio::spawn(async move {
                // Until the server is gone.
                loop {
                    let body = json!({ "kind": "transcode", "payload": { "n": 1 } });
                    let sent = http.post(format!("{base}/api/v1/jobs")).bearer_auth(&token).json(&body).send().await;
                    let Ok(answer) = sent else { return };
                    let Ok(job) = answer.json::<Value>().await else { return };
                    acknowledged.note(job["id"].as_str().unwrap().to_owned());
                }
            })
        })
        .collect();
    eventually("some are acknowledged", async || (acknowledged.events().len() >= 60).then_some(())).await;
    app.kill();
    for task in adding {
        task.await.unwrap();
    }
    app.launch().await;
    let (ada, farm) = (ada.at(&app), farm.at(&app));
    let (mut found, mut cursor) = (BTreeSet::new(), String::new());
    loop {
        let page = ada.get(&format!("/api/v1/jobs?limit=100{cursor}")).await.json::<Value>().await.unwrap();
        found.extend(page["items"].as_array().unwrap().iter().map(|job| job["id"].as_str().unwrap().to_owned()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
    }
    let lost: Vec<_> = acknowledged.events().into_iter().filter(|id| !found.contains(id)).collect();
    assert!(lost.is_empty(), "lost: {lost:?}");
    // A worker's lease does not end with the server.
    let (status, done) = workers::say(&farm, "complete", &claimed[0], json!({})).await;
    assert_eq!(status, 200, "{done}");
    assert_eq!(workers::job(&ada, &claimed[0]["id"]).await["state"], "done");
    assert_eq!(workers::job(&ada, &claimed[1]["id"]).await["state"], "running");
}

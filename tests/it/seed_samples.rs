//! The samples that the API was specified with, run as they were written.
//!
//! They speak to `localhost:3000`. A configuration file for curl leads that to the port of the test, so that not a
//! letter of the commands is changed but `TOKEN`, which stands for a token. The sample for browsers is run by the test
//! of the page.

use std::path::Path;

use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::support::command;

const LOGIN: &str = r#"curl -X POST http://localhost:3000/auth/login \
  -H "Content-Type: application/json" \
  -d '{"email": "user@example.com", "password": "password"}'"#;

const ADD: &str = r#"curl -X POST http://localhost:3000/api/queue \
  -H "Authorization: Bearer TOKEN" \
  -H "Content-Type: application/json" \
  -d '{"user_id": "user123", "topic": "Team Meeting"}'"#;

const SHOW: &str = r#"curl -X GET http://localhost:3000/api/queue \
  -H "Authorization: Bearer TOKEN""#;

/// Runs a sample in a shell; what it prints.
async fn run(home: &Path, sample: &str) -> Value {
    let mut shell = command("sh");
    shell.arg("-c").arg(sample).env("CURL_HOME", home).env_remove("http_proxy").env("no_proxy", "*");
    let output = tokio::task::spawn_blocking(move || shell.output().unwrap()).await.unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{sample}\n{out}{err}");
    serde_json::from_str(&out).unwrap_or_else(|error| panic!("{sample}\n{error}: {out}{err}"))
}

#[tokio::test]
async fn the_samples_for_the_command_line_work_as_written() {
    let app = TestApp::start().await;
    let registered = app.post("/auth/register", json!({"email": "user@example.com", "password": "password"})).await;
    assert_eq!(registered.status(), 201);
    let port = app.base.rsplit_once(':').unwrap().1;
    let settings = format!("connect-to = \"localhost:3000:127.0.0.1:{port}\"\nsilent\nshow-error\n");
    std::fs::write(app.dir.path().join(".curlrc"), settings).unwrap();
    let home = app.dir.path();

    let answer = run(home, LOGIN).await;
    let token = answer["token"].as_str().unwrap_or_else(|| panic!("{answer}"));
    assert_eq!(answer["record"]["email"], "user@example.com");

    let added = run(home, &ADD.replace("TOKEN", token)).await;
    assert_eq!((&added["topic"], &added["kind"]), (&json!("Team Meeting"), &json!("deliver_meeting")), "{added}");
    assert_eq!(added["user_id"], answer["record"]["id"], "whose it is follows from the token: {added}");

    let shown = run(home, &SHOW.replace("TOKEN", token)).await;
    assert!(shown["items"].is_array() && shown["waiting"].is_u64(), "{shown}");
    let path = format!("/api/queue/{}", added["id"].as_str().unwrap());
    let request = app.http.get(format!("{}{path}", app.base)).bearer_auth(token);
    assert_eq!(request.send().await.unwrap().status(), 200, "it can be asked for by its id");
}

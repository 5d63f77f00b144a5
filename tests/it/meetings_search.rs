//! Finding meetings: words in titles, summaries and transcripts, filters, and pages that stay in place.

use serde_json::Value;
use serde_json::json;

use crate::meetings::fleet;
use crate::meetings::list;
use crate::meetings::store_key;
use crate::meetings::synced;
use crate::support::User;
use crate::support::fathom::KEY;
use crate::support::fathom::Standin;

/// A search by a text that is encoded here.
async fn search(user: &User, text: &str) -> Value {
    let mut url = reqwest::Url::parse("http://x/").unwrap();
    url.query_pairs_mut().append_pair("search", text);
    list(user, &format!("?{}", url.query().unwrap())).await
}

fn titles(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["title"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn words_are_found_wherever_they_stand_and_nothing_typed_is_an_error() {
    let standin = Standin::with(&["--key", "key-of-words=3"]).await;
    for (title, summary, said) in [
        ("Zürich offsite", "## Plan\nWe meet by the lake.", "the xylophone was out of tune"),
        ("Budget", "A *heliotrope* wall and NOT much else", "nothing to see"),
        ("NOT and OR", "Words that look like operators", "near the end"),
    ] {
        let meeting = json!({
            "title": title,
            "default_summary": {"template_name": "general", "markdown_formatted": summary},
            "transcript": [{"speaker": {"display_name": "Grace"}, "text": said, "timestamp": "00:00:01"}],
        });
        standin.add_meeting("key-of-words", meeting, false).await;
    }
    let app = fleet(&standin, "").await;
    let ada = app.user("ada").await;
    store_key(&ada, "key-of-words").await;
    synced(&ada, 6).await;
    for (typed, found) in [
        ("zurich", vec!["Zürich offsite"]),
        ("xylo", vec!["Zürich offsite"]),
        ("heliotrope", vec!["Budget"]),
        ("\"out of tune\"", vec!["Zürich offsite"]),
        ("\"tune of out\"", vec![]),
        ("xylophone heliotrope", vec![]),
        ("NOT operators", vec!["NOT and OR"]),
        ("qqqqqqqq", vec![]),
    ] {
        assert_eq!(titles(&search(&ada, typed).await), found, "{typed}");
    }
    let snippet = search(&ada, "xylophone").await["items"][0]["snippet"].as_str().unwrap().to_owned();
    assert!(snippet.contains("**xylophone**"), "{snippet}");
    for nasty in [
        "NOT",
        "AND",
        "OR",
        "NEAR",
        "NEAR(",
        "\"",
        "\"\"\"",
        "*",
        "a*b",
        "-x",
        "^x",
        "title:x",
        "(",
        ")",
        "{",
        "'",
        "';--",
        "%",
        "\\",
        "a\u{0}b",
        "{:x}",
        "[[x]]",
        "{{x}}",
        "‘’“”",
        "🦀",
        "\u{202e}",
        "NOT NOT",
        "x AND",
        "' OR 1=1 --",
    ] {
        let answer = search(&ada, nasty).await;
        assert!(answer["items"].is_array(), "{nasty:?}");
    }
    assert!(search(&ada, &"word ".repeat(70)).await["items"].is_array());
    let long = ada.get(&format!("/api/v1/meetings?search={}", "x".repeat(401))).await;
    assert_eq!(long.status(), 400);
    assert_eq!(titles(&search(&ada, "' OR 1=1 --").await), Vec::<&str>::new());
    assert_eq!(search(&ada, "  ").await["items"].as_array().unwrap().len(), 6, "nothing typed is no search");
}

#[tokio::test(flavor = "multi_thread")]
async fn filters_narrow_the_list() {
    let standin = Standin::start().await;
    let app = fleet(&standin, "").await;
    let ada = app.user("ada").await;
    store_key(&ada, KEY).await;
    let all = synced(&ada, 27).await;
    let items = all["items"].as_array().unwrap();
    let middle = items[13]["created_at"].as_str().unwrap();
    let count = |list: Value| list["items"].as_array().unwrap().len();
    let newer = count(list(&ada, &format!("?limit=100&created_after={}", middle.replace('+', "%2B"))).await);
    let older = count(list(&ada, &format!("?limit=100&created_before={}", middle.replace('+', "%2B"))).await);
    assert_eq!((newer, older), (13, 13));
    let email = items[0]["recorded_by"]["email"].as_str().unwrap();
    let same = items.iter().filter(|item| item["recorded_by"]["email"] == email).count();
    assert_eq!(count(list(&ada, &format!("?limit=100&recorded_by={}", email.to_uppercase())).await), same);
    assert_eq!(count(list(&ada, "?limit=100&recorded_by=nobody@example.com").await), 0);
    let with = count(list(&ada, "?limit=100&has_summary=true").await);
    let without = count(list(&ada, "?limit=100&has_summary=false").await);
    assert_eq!(with + without, 27);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_stay_in_place_while_meetings_arrive() {
    let standin = Standin::start().await;
    let app = fleet(&standin, "").await;
    let ada = app.user("ada").await;
    store_key(&ada, KEY).await;
    let all = synced(&ada, 27).await;
    let (mut seen, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = list(&ada, &format!("?limit=4{cursor}")).await;
        seen.extend(page["items"].as_array().unwrap().iter().map(|item| item["recording_id"].clone()));
        let Some(next) = page["next_cursor"].as_str() else { break };
        cursor = format!("&cursor={next}");
        standin.add_meeting(KEY, json!({"title": "Meanwhile"}), false).await;
        ada.post("/api/v1/meetings/sync", Value::Null).await;
    }
    let whole: Vec<_> = all["items"].as_array().unwrap().iter().map(|item| item["recording_id"].clone()).collect();
    assert_eq!(seen, whole, "each once, and none twice");
}

//! The client of Fathom's API under pressure: limits, broken answers, walks without end, tokens that rotate, deadlines.

use std::sync::Arc;
use std::sync::Mutex;
use std::time::Duration;
use std::time::Instant;

use pocketfleet::integrations::fathom::Auth;
use pocketfleet::integrations::fathom::Error;
use pocketfleet::integrations::fathom::Fathom;
use pocketfleet::integrations::fathom::MeetingsQuery;
use pocketfleet::integrations::fathom::OAuth;
use pocketfleet::integrations::fathom::Patience;
use pocketfleet::integrations::fathom::Session;
use pocketfleet::integrations::fathom::Tokens;
use pocketfleet::vault::Secret;
use reqwest::Method;
use serde_json::Value;
use serde_json::json;
use time::OffsetDateTime;

use crate::fathom::client;
use crate::fathom::client_with;
use crate::fathom::with_key;
use crate::support::fathom::KEY;
use crate::support::fathom::Standin;
use crate::support::http;

#[tokio::test]
async fn a_429_with_headers_says_when_and_no_further_call_is_made_until_then() {
    let standin = Standin::start().await;
    let session = with_key(&client(&standin), KEY);
    standin.fault(json!({ "path": "/meetings", "kind": "status", "status": 429, "retry_after": 40 })).await;
    let error = session.check().await.unwrap_err();
    assert_eq!(error.retry_after(), Some(Duration::from_secs(40)), "{error:?}");
    let again = session.check().await.unwrap_err().retry_after().unwrap();
    assert!(again <= Duration::from_secs(40) && again > Duration::from_secs(30), "{again:?}");
    assert_eq!(standin.calls("GET /meetings").await, 1);
}

#[tokio::test]
async fn a_429_without_headers_is_waited_out_with_growing_pauses() {
    let standin = Standin::start().await;
    let session = with_key(&client(&standin), KEY).patience(Patience::INTERACTIVE);
    standin.fault(json!({ "path": "/meetings", "kind": "no_headers429", "times": 2 })).await;
    let begun = Instant::now();
    session.check().await.unwrap();
    assert_eq!(standin.calls("GET /meetings").await, 3);
    assert!(begun.elapsed() > Duration::from_millis(900), "{:?}", begun.elapsed());
    let impatient = session.patience(Patience::NONE);
    standin.fault(json!({ "path": "/meetings", "kind": "no_headers429" })).await;
    let wait = impatient.check().await.unwrap_err().retry_after().unwrap();
    assert!(wait < Duration::from_secs(2), "{wait:?}");
}

#[tokio::test]
async fn sessions_of_one_key_share_its_budget_and_never_meet_a_429() {
    let standin = Standin::start().await;
    let fathom = client(&standin);
    let id = standin.meetings(KEY).await[0]["recording_id"].as_u64().unwrap();
    let tasks: Vec<_> = (0..50)
        .map(|_| {
            let session = with_key(&fathom, KEY).patience(Patience::NONE);
            tokio::spawn(async move { session.summary(id).await.map(drop) })
        })
        .collect();
    let mut limited = 0;
    for task in tasks {
        match task.await.unwrap() {
            Ok(()) => {}
            Err(Error::RateLimited { retry_after }) => {
                assert!(retry_after > Duration::from_secs(30) && retry_after <= Duration::from_mins(1));
                limited += 1;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    assert_eq!((limited, standin.calls("GET /recordings/*/summary").await), (20, 30));
    standin.control(Method::POST, "/keys", Some(json!({ "key": "other", "meetings": 1 }))).await;
    with_key(&fathom, "other").check().await.unwrap();
}

#[tokio::test]
async fn what_another_program_used_up_is_learnt_from_the_headers() {
    let standin = Standin::with(&["--calls-per-minute", "5"]).await;
    let session = with_key(&client(&standin), KEY).patience(Patience::NONE);
    for _ in 0..5 {
        session.check().await.unwrap();
    }
    assert!(session.check().await.unwrap_err().retry_after().is_some());
    assert_eq!(standin.calls("GET /meetings").await, 5, "the sixth was not made");
}

#[tokio::test]
async fn broken_answers_are_errors_and_odd_fields_are_not() {
    let standin = Standin::start().await;
    let session = with_key(&client(&standin), KEY).patience(Patience::NONE);
    standin.fault(json!({ "path": "/meetings", "kind": "malformed" })).await;
    assert!(matches!(session.check().await, Err(Error::Malformed(_))));
    standin.fault(json!({ "path": "/meetings", "kind": "short_body" })).await;
    assert!(matches!(session.check().await, Err(Error::Unreachable(_))));
    standin.fault(json!({ "path": "/meetings", "kind": "drop" })).await;
    assert!(matches!(session.check().await, Err(Error::Unreachable(_))));
    standin.fault(json!({ "path": "/meetings", "kind": "missing_field", "field": "recording_id" })).await;
    let page = session.meetings(&MeetingsQuery::default()).await.unwrap();
    assert_eq!((page.items.len(), page.skipped), (0, 10));
    for (field, value) in [
        ("recorded_by", json!("Alice")),
        ("calendar_invitees", json!(null)),
        ("shared_with", json!("somebody_new")),
        ("created_at", json!("yesterday")),
        ("title", json!(null)),
    ] {
        standin.fault(json!({ "path": "/meetings", "kind": "set_field", "field": field, "value": value })).await;
        assert_eq!(session.meetings(&MeetingsQuery::default()).await.unwrap().items.len(), 10, "{field}");
        standin.fault(json!({ "path": "/meetings", "kind": "missing_field", "field": field })).await;
        assert_eq!(session.meetings(&MeetingsQuery::default()).await.unwrap().items.len(), 10, "{field}");
    }
    let small = client_with(&standin, |config| config.max_answer_bytes = 1 << 16);
    let query = MeetingsQuery {
        include_transcript: true,
        include_summary: true,
        include_action_items: true,
        ..MeetingsQuery::default()
    };
    let error = with_key(&small, KEY).meetings(&query).await.unwrap_err();
    assert!(matches!(error, Error::Malformed(why) if why.contains("large")), "{error:?}");
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_the_key_goes_nowhere() {
    let standin = Standin::start().await;
    let other = Standin::start().await;
    let session = with_key(&client(&standin), KEY);
    let to = format!("{}/external/v1/meetings", other.base);
    standin.fault(json!({ "path": "/meetings", "kind": "redirect_loopback", "to": to })).await;
    assert!(matches!(session.check().await, Err(Error::Malformed(_))));
    assert_eq!(other.calls("GET /meetings").await, 0);
}

#[tokio::test]
async fn a_cursor_that_comes_back_ends_the_walk() {
    let standin = Standin::start().await;
    let session = with_key(&client(&standin), KEY);
    standin.fault(json!({ "path": "/meetings", "kind": "repeat_cursor", "times": 1000 })).await;
    let mut pages = session.pages(MeetingsQuery::default());
    assert!(pages.next().await.unwrap().is_some());
    assert!(matches!(pages.next().await, Err(Error::Malformed(_))));
    assert!(pages.next().await.unwrap().is_none(), "and stays ended");
    standin.fault(json!({ "path": "/teams", "kind": "repeat_cursor", "times": 1000 })).await;
    assert!(matches!(session.teams().await, Err(Error::Malformed(_))));
    assert!(standin.calls("GET /teams").await <= 3);
}

#[tokio::test]
async fn an_answer_that_does_not_come_is_given_up() {
    let standin = Standin::start().await;
    let session = with_key(&client_with(&standin, |config| config.timeout = Duration::from_millis(300)), KEY)
        .patience(Patience::NONE);
    for fault in
        [json!({ "path": "/meetings", "kind": "stall" }), json!({ "path": "/meetings", "kind": "slow", "ms": 20_000 })]
    {
        standin.fault(fault).await;
        let begun = Instant::now();
        assert!(matches!(session.check().await, Err(Error::Unreachable(_))));
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    }
    let address = standin.api();
    drop(standin);
    let gone = Fathom::new(
        pocketfleet::integrations::fathom::Config { base_url: address, ..Default::default() },
        pocketfleet::outbound::Guard::new(&pocketfleet::outbound::Config::default()).unwrap(),
        pocketfleet::shutdown::Shutdown::new(),
    );
    assert!(matches!(with_key(&gone.unwrap(), KEY).check().await, Err(Error::Unreachable(_))));
}

/// Tokens as they were stored, by access token.
type Saved = Arc<Mutex<Vec<String>>>;

fn signed_in(fathom: &Fathom, answer: &Value, saved: &Saved) -> Session {
    let text = |name: &str| Secret::new(answer[name].as_str().unwrap().to_owned());
    let lasts = Duration::from_secs(answer["expires_in"].as_u64().unwrap());
    let tokens = Tokens {
        access: text("access_token"),
        refresh: text("refresh_token"),
        expires_at: Some(OffsetDateTime::now_utc() + lasts),
    };
    let saved = Arc::clone(saved);
    let save: pocketfleet::integrations::fathom::Save = Arc::new(move |tokens| {
        let saved = Arc::clone(&saved);
        Box::pin(async move {
            saved.lock().unwrap().push(tokens.access.expose().to_owned());
            Ok(())
        })
    });
    fathom
        .as_user(Auth::OAuth(OAuth { user: "user-1".to_owned(), tokens, save, load: nothing() }))
        .patience(Patience::JOB)
}

/// Nothing but what was said is stored.
fn nothing() -> pocketfleet::integrations::fathom::Load {
    Arc::new(|| Box::pin(async { None }))
}

async fn tokens(standin: &Standin) -> Value {
    standin.control(Method::POST, "/oauth/tokens", Some(json!({ "key": KEY }))).await
}

#[tokio::test]
async fn twenty_calls_at_once_refresh_the_tokens_once_and_keep_them_first() {
    let standin = Standin::start().await;
    let fathom = client(&standin);
    let saved = Saved::default();
    let answer = tokens(&standin).await;
    standin.control(Method::POST, "/oauth/void", Some(json!({ "access": true }))).await;
    // Several sessions of one user, opened with the same stored tokens.
    let calls: Vec<_> = (0..20)
        .map(|_| {
            let session = signed_in(&fathom, &answer, &saved);
            tokio::spawn(async move { session.check().await })
        })
        .collect();
    for call in calls {
        call.await.unwrap().unwrap();
    }
    assert_eq!(standin.calls("POST /oauth2/token").await, 1);
    assert_eq!(saved.lock().unwrap().len(), 1);
    // Twenty that were refused at most, and twenty that were not.
    assert!(standin.calls("GET /meetings").await <= 40);
}

#[tokio::test]
async fn tokens_about_to_end_are_refreshed_before_the_call_and_refused_ones_once() {
    let standin = Standin::start().await;
    let fathom = client(&standin);
    let saved = Saved::default();
    let mut answer = tokens(&standin).await;
    answer["expires_in"] = json!(30);
    let session = signed_in(&fathom, &answer, &saved);
    session.check().await.unwrap();
    assert_eq!((standin.calls("POST /oauth2/token").await, standin.calls("GET /meetings").await), (1, 1));
    standin.control(Method::POST, "/oauth/void", Some(json!({ "access": true, "refresh": true }))).await;
    assert!(matches!(session.check().await, Err(Error::Unauthorized)));
    assert!(matches!(session.check().await, Err(Error::Unauthorized)));
    assert_eq!(standin.calls("POST /oauth2/token").await, 2, "a dead refresh token is not tried again");
    // The user signs in again, while the old session lives.
    let anew = signed_in(&fathom, &tokens(&standin).await, &saved);
    anew.check().await.unwrap();
    session.check().await.unwrap();
}

#[tokio::test]
async fn whoever_read_tokens_before_others_exchanged_them_takes_those_that_are_stored() {
    let standin = Standin::start().await;
    let fathom = client(&standin);
    let (used_up, answer) = (tokens(&standin).await, tokens(&standin).await);
    let of = |answer: &Value, expires_at| Tokens {
        access: Secret::new(answer["access_token"].as_str().unwrap().to_owned()),
        refresh: Secret::new(answer["refresh_token"].as_str().unwrap().to_owned()),
        expires_at,
    };
    standin.control(Method::POST, "/oauth/void", Some(json!({ "access": true, "refresh": true }))).await;
    let fresh = tokens(&standin).await;
    // What is stored by now is good, or was used for nothing yet: either way nobody has to sign in again.
    for (user, stored_ends, exchanges) in [("a", None, 1), ("b", Some(OffsetDateTime::UNIX_EPOCH), 2)] {
        let before = standin.calls("POST /oauth2/token").await;
        let stored = fresh.clone();
        let load: pocketfleet::integrations::fathom::Load = Arc::new(move || {
            let stored = of(&stored, stored_ends);
            Box::pin(async move { Some(stored) })
        });
        let save: pocketfleet::integrations::fathom::Save = Arc::new(|_| Box::pin(async { Ok(()) }));
        let old = if user == "a" { &used_up } else { &answer };
        let tokens = of(old, Some(OffsetDateTime::UNIX_EPOCH));
        let session = fathom.as_user(Auth::OAuth(OAuth { user: user.to_owned(), tokens, save, load }));
        session.check().await.unwrap();
        assert_eq!(standin.calls("POST /oauth2/token").await - before, exchanges, "{user}");
    }
}

#[tokio::test]
async fn tokens_that_cannot_be_kept_are_not_used_but_not_lost() {
    let standin = Standin::start().await;
    let fathom = client(&standin);
    let failing = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let answer = tokens(&standin).await;
    let told = Arc::clone(&failing);
    let session = fathom
        .as_user(Auth::OAuth(OAuth {
            user: "user-1".to_owned(),
            tokens: Tokens {
                access: Secret::new("over".to_owned()),
                refresh: Secret::new(answer["refresh_token"].as_str().unwrap().to_owned()),
                expires_at: Some(OffsetDateTime::UNIX_EPOCH),
            },
            save: Arc::new(move |_| {
                let fails = told.load(std::sync::atomic::Ordering::Relaxed);
                Box::pin(async move { if fails { Err("the disk is full".to_owned()) } else { Ok(()) } })
            }),
            load: nothing(),
        }))
        .patience(Patience::NONE);
    assert!(matches!(session.check().await, Err(Error::NotSaved(_))));
    assert_eq!(standin.calls("GET /meetings").await, 0);
    failing.store(false, std::sync::atomic::Ordering::Relaxed);
    session.check().await.unwrap();
    assert_eq!(standin.calls("POST /oauth2/token").await, 1);
}

#[tokio::test]
async fn a_user_signs_in_at_fathom_and_content_is_asked_for_one_by_one() {
    let standin = Standin::start().await;
    let fathom = client(&standin);
    let url = fathom.authorize_url("https://us.example/back", "state-1").unwrap();
    let http = http().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let answer = http.get(url).send().await.unwrap();
    let back = reqwest::Url::parse(answer.headers()["location"].to_str().unwrap()).unwrap();
    let pairs: std::collections::HashMap<_, _> = back.query_pairs().into_owned().collect();
    assert_eq!(pairs["state"], "state-1");
    let tokens = fathom.exchange(&pairs["code"], "https://us.example/back").await.unwrap();
    let again = fathom.exchange(&pairs["code"], "https://us.example/back").await;
    assert!(matches!(again, Err(Error::Unauthorized)), "a code is good once");
    let save: pocketfleet::integrations::fathom::Save = Arc::new(|_| Box::pin(async { Ok(()) }));
    let session = fathom.as_user(Auth::OAuth(OAuth { user: "user-1".to_owned(), tokens, save, load: nothing() }));
    assert!(!session.may_include_content());
    let query = MeetingsQuery { include_transcript: true, include_summary: true, ..MeetingsQuery::default() };
    let page = session.meetings(&query).await.unwrap();
    assert!(page.items[0].transcript.is_none());
    assert!(session.summary(page.items[0].recording_id).await.unwrap().is_some());
}

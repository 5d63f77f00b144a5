//! The chain against a real store: what was done to it is found.

use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::store::sqlite::ControlDatabase;

async fn log_of(count: usize) -> (Audit, Arc<ControlDatabase>, tempfile::TempDir) {
    let dir = tempfile::tempdir().unwrap();
    let database = Arc::new(ControlDatabase::open(&dir.path().join("control.db")).unwrap());
    let audit = Audit::open(Arc::clone(&database) as Arc<dyn Store>).await.unwrap();
    let record = |at: usize| {
        let entry = Entry::new(Actor::System, action::SECRET_USED).subject(at.to_string());
        audit.record(entry.detail(json!({ "purpose": "test" })))
    };
    let numbers = futures_util::future::join_all((0..count).map(record)).await;
    let mut numbers: Vec<u64> = numbers.into_iter().map(Result::unwrap).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=count as u64).collect::<Vec<_>>());
    (audit, database, dir)
}

fn key(seq: u64) -> String {
    format!("audit.{:010}.{seq:013}", seq / 1_000)
}

async fn rewrite(database: &ControlDatabase, seq: u64, change: impl FnOnce(&mut Value)) {
    let found = database.get(&key(seq)).await.unwrap().unwrap();
    let mut value: Value = serde_json::from_slice(&found.value).unwrap();
    change(&mut value);
    database.update(&key(seq), Bytes::from(value.to_string()), found.revision).await.unwrap();
}

#[tokio::test]
async fn an_untouched_log_is_intact_and_read_from_both_ends() {
    let (audit, _database, _dir) = log_of(2_500).await;
    let verdict = audit.verify().await.unwrap();
    assert_eq!((verdict.intact, verdict.entries, verdict.hash.len()), (true, 2_500, 64));
    let newest = audit.newest(None, 1_700).await.unwrap();
    assert_eq!((newest[0].seq, newest.len(), newest[1_699].seq), (2_500, 1_700, 801));
    assert_eq!(audit.newest(Some(801), 10_000).await.unwrap().len(), 800);
    let page = audit.after(990, 1_020).await.unwrap();
    assert_eq!((page[0].seq, page.len(), page[1_019].seq), (991, 1_020, 2_010));
    assert!(audit.after(2_500, 10).await.unwrap().is_empty());
    audit.close().await;
    assert!(matches!(audit.record(Entry::new(Actor::Operator, action::ADMIN_CREATED)).await, Err(Error::Closed)));
}

#[tokio::test]
async fn whatever_is_done_to_an_entry_is_found_at_its_place() {
    let (audit, database, _dir) = log_of(20).await;
    let whole = database.get(&key(7)).await.unwrap().unwrap();
    for field in ["actor", "action", "subject", "detail", "at", "prev", "hash"] {
        rewrite(&database, 7, |value| {
            value[field] = if field == "at" { json!("2020-01-01T00:00:00Z") } else { json!("x") };
        })
        .await;
        let verdict = audit.verify().await.unwrap();
        assert_eq!((verdict.intact, verdict.broken_at), (false, Some(7)), "{field}: {:?}", verdict.reason);
        let found = database.get(&key(7)).await.unwrap().unwrap();
        database.update(&key(7), whole.value.clone(), found.revision).await.unwrap();
    }
    rewrite(&database, 7, |value| value["more"] = json!(1)).await;
    assert_eq!(audit.verify().await.unwrap().broken_at, Some(7));
    let found = database.get(&key(7)).await.unwrap().unwrap();
    database.delete(&key(7), found.revision).await.unwrap();
    let verdict = audit.verify().await.unwrap();
    assert_eq!((verdict.broken_at, verdict.reason), (Some(7), Some("the entry is missing")));
    audit.close().await;
}

#[tokio::test]
async fn a_tail_that_was_cut_off_is_missed() {
    let (audit, database, _dir) = log_of(20).await;
    for seq in [20, 19] {
        let found = database.get(&key(seq)).await.unwrap().unwrap();
        database.delete(&key(seq), found.revision).await.unwrap();
    }
    let verdict = audit.verify().await.unwrap();
    assert_eq!((verdict.broken_at, verdict.reason), (Some(19), Some("the end of the log is missing")));
    audit.close().await;
}

#[tokio::test]
async fn entries_that_a_crash_left_beyond_the_head_are_taken_in() {
    let (audit, database, _dir) = log_of(5).await;
    let head = database.get("audithead.last").await.unwrap().unwrap();
    audit.record(Entry::new(Actor::System, action::SECRET_USED)).await.unwrap();
    audit.close().await;
    // As if the process had ended between the entry and the head.
    let now = database.get("audithead.last").await.unwrap().unwrap();
    database.update("audithead.last", head.value, now.revision).await.unwrap();
    let audit = Audit::open(Arc::clone(&database) as Arc<dyn Store>).await.unwrap();
    assert_eq!(audit.record(Entry::new(Actor::System, action::SECRET_USED)).await.unwrap(), 7);
    let verdict = audit.verify().await.unwrap();
    assert_eq!((verdict.intact, verdict.entries), (true, 7));
    audit.close().await;
}

#[tokio::test]
async fn an_entry_that_is_too_long_is_refused() {
    let (audit, _database, _dir) = log_of(0).await;
    let long = Entry::new(Actor::Operator, action::ADMIN_CREATED).detail(json!("x".repeat(5_000)));
    assert!(matches!(audit.record(long).await, Err(Error::TooLarge)));
    assert!(audit.verify().await.unwrap().intact);
    audit.close().await;
}

#[tokio::test]
async fn an_entry_beyond_the_head_that_cannot_be_read_is_no_end() {
    let (audit, database, _dir) = log_of(3).await;
    audit.close().await;
    database.create(&key(4), Bytes::from_static(b"not an entry")).await.unwrap();
    let opened = Audit::open(Arc::clone(&database) as Arc<dyn Store>).await;
    assert!(matches!(opened, Err(Error::Unreadable(4))));
}

//! Provisioning: a new instance's data directory, copied from a golden one.
//!
//! A copy shares every secret with its siblings until they are rotated, so a directory gets its final name only
//! after that. Invariants: `dest` appears whole, durable and with secrets of its own, or not at all; nothing that
//! exists is ever overwritten or deleted.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use serde_json::json;

use crate::pocketbase::database;
use crate::pocketbase::database::Durability;
use crate::pocketbase::database::Owner;
use crate::pocketbase::database::USERS;
use crate::supervisor::files;
use crate::supervisor::files::Mode;
use crate::supervisor::template::Golden;
use crate::supervisor::template::STAGING_PREFIXES;

/// Why no instance was made.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something is there already; it was not touched.
    #[error("{} exists already", .0.display())]
    Exists(PathBuf),
    /// The copy could not be given secrets, owner or URL.
    #[error(transparent)]
    Database(#[from] database::Error),
    /// The file system refused.
    #[error("cannot make {}", path.display())]
    Io {
        /// The directory that was to be made.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

/// Makes the data directory `dest`, whose parent must exist on the file system of `staging`. An empty `app_url`
/// leaves what the template says. Blocks for some milliseconds: disk writes and one SQL transaction.
pub fn provision(
    golden: &Golden,
    dest: &Path,
    staging: &Path,
    owner: Option<&Owner>,
    app_url: &str,
) -> Result<(), Error> {
    let at = |source: io::Error| match source.kind() {
        io::ErrorKind::AlreadyExists => Error::Exists(dest.to_owned()),
        _ => Error::Io { path: dest.to_owned(), source },
    };
    // Checked again, without a gap, by the rename; here it saves the work.
    if files::exists(dest).map_err(at)? {
        return Err(Error::Exists(dest.to_owned()));
    }
    let work = tempfile::Builder::new().prefix(STAGING_PREFIXES[1]).tempdir_in(staging).map_err(at)?;
    copy(&golden.dir, work.path()).map_err(at)?;
    // The file is synced as a whole below.
    database::edit(&work.path().join("data.db"), Durability::Caller, |edit| {
        edit.rotate_secrets()?;
        if let Some(owner) = owner {
            edit.set_owner(USERS, owner)?;
        }
        if !app_url.is_empty() {
            edit.apply_settings(&[("/meta/appURL", json!(app_url))])?;
        }
        Ok(())
    })?;
    files::sync_tree(work.path()).map_err(at)?;
    files::rename_new(work.path(), dest).map_err(at)?;
    // The folder has its final name now: there is nothing left to clean up.
    drop(work.keep());
    Ok(())
}

fn copy(golden: &Path, to: &Path) -> io::Result<()> {
    for name in ["data.db", "auxiliary.db", "types.d.ts"] {
        fs::copy(golden.join(name), to.join(name))?;
    }
    let storage = golden.join("storage");
    if storage.is_dir() {
        files::copy_tree(&storage, &to.join("storage"), Mode::Same)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tempfile::TempDir;

    use super::*;
    use crate::ids::UserId;
    use crate::supervisor::template::Locations;
    use crate::supervisor::template::Templates;
    use crate::supervisor::testing::Served;
    use crate::supervisor::testing::bearer;
    use crate::supervisor::testing::locations;

    const RECORDS: &str = "/api/collections/notes/records";

    fn owner(id: &str) -> Owner {
        Owner { id: UserId::parse(id).unwrap(), email: format!("{id}@example.com"), name: "Ada".into() }
    }

    async fn golden(root: &TempDir, template: &str) -> (Locations, Arc<Golden>) {
        let locations = locations(root);
        let golden = Templates::open(&locations).await.unwrap().golden(template).unwrap();
        (locations, golden)
    }

    #[tokio::test]
    async fn copies_accept_their_own_tokens_only_and_know_their_owner() {
        let root = tempfile::tempdir().unwrap();
        let (locations, golden) = golden(&root, "personal").await;
        let (a, b) = (root.path().join("a"), root.path().join("b"));
        let ada = owner("aaaaaaaaaaaaaaa");
        provision(&golden, &a, &locations.staging, Some(&ada), "http://a.example.com").unwrap();
        provision(&golden, &b, &locations.staging, Some(&ada), "").unwrap();
        assert_eq!(fs::read_dir(&locations.staging).unwrap().count(), 0);
        let (signers_a, signers_b) = [&a, &b].map(|dir| database::signers(&dir.join("data.db")).unwrap()).into();
        let served = [Served::start(&a).await, Served::start(&b).await];

        let superuser = bearer(&signers_a.superuser);
        let data = |answer: (u16, serde_json::Value)| answer.1["data"]["realIP"].clone();
        assert_eq!(data(served[0].get("/api/health", &superuser)), "127.0.0.1");
        assert_eq!(data(served[1].get("/api/health", &superuser)), serde_json::Value::Null);
        let (status, settings) = served[0].get("/api/settings", &superuser);
        assert_eq!((status, &settings["meta"]["appURL"]), (200, &json!("http://a.example.com")));
        assert_eq!(settings["logs"]["minLevel"], 8);
        assert_eq!(served[1].get("/api/settings", &superuser).0, 401);

        let (mine, other) = (bearer(&signers_a.users[&ada.id]), bearer(&signers_b.users[&ada.id]));
        let create = |token: &str, body: &str| served[0].call("POST", RECORDS, &[("Authorization", token)], body);
        assert_eq!(create(&mine, r#"{"title":"first","tags":["a","b"]}"#).0, 200);
        assert_eq!(create(&other, r#"{"title":"second"}"#).0, 400, "a guest may not create");
        let (status, list) = served[0].get(RECORDS, &mine);
        assert_eq!((status, &list["items"][0]["tags"]), (200, &json!(["a", "b"])));
        assert_eq!(served[0].get(RECORDS, &other).1["totalItems"], 0);
        let (status, row) = served[0].get("/api/collections/users/records/aaaaaaaaaaaaaaa", &mine);
        assert_eq!((status, &row["name"], &row["email"]), (200, &json!("Ada"), &json!(ada.email)));

        let [first, second] = served;
        first.stop().await;
        second.stop().await;
        assert_eq!(fs::metadata(a.join("types.d.ts")).unwrap().len(), 13, "the stamp was not taken for an old file");
    }

    #[tokio::test]
    async fn a_superuser_token_is_refused_to_foreign_addresses() {
        let root = tempfile::tempdir().unwrap();
        let (locations, golden) = golden(&root, "personal").await;
        let dest = root.path().join("a");
        provision(&golden, &dest, &locations.staging, None, "").unwrap();
        let token = bearer(&database::superuser(&dest.join("data.db")).unwrap());
        let served = Served::start(&dest).await;
        for (client, expected) in [("203.0.113.7", 403), ("2001:db8::1", 403), ("127.0.0.1", 200)] {
            let headers = [("Authorization", token.as_str()), ("X-Forwarded-For", client)];
            assert_eq!(served.call("GET", "/api/settings", &headers, "").0, expected, "{client}");
        }
        served.stop().await;
    }

    #[tokio::test]
    async fn what_exists_is_neither_overwritten_nor_deleted() {
        let root = tempfile::tempdir().unwrap();
        let (locations, golden) = golden(&root, "personal").await;
        let dest = root.path().join("a");
        fs::create_dir(&dest).unwrap();
        let again = || provision(&golden, &dest, &locations.staging, None, "");
        assert!(matches!(again(), Err(Error::Exists(_))));
        assert_eq!(fs::read_dir(&dest).unwrap().count(), 0);
        assert_eq!(fs::read_dir(&locations.staging).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn accounts_sign_up_without_choosing_role_or_id() {
        let root = tempfile::tempdir().unwrap();
        let (locations, golden) = golden(&root, "global").await;
        let dest = root.path().join("global");
        provision(&golden, &dest, &locations.staging, None, "").unwrap();
        let served = Served::start(&dest).await;
        let sign_up = |name: &str, extra: &str| {
            let body = format!(
                r#"{{"email":"{name}@example.com","password":"12345678","passwordConfirm":"12345678"{extra}}}"#
            );
            served.call("POST", "/api/collections/users/records", &[], &body)
        };
        assert_eq!(sign_up("mallory", r#","role":"admin""#).0, 400);
        assert_eq!(sign_up("mallory", r#","role":"""#).0, 400);
        assert_eq!(sign_up("mallory", r#","id":"aaaaaaaaaaaaaaa""#).0, 400);
        assert_eq!(sign_up("mallory", r#","verified":true"#).0, 400);
        let (status, ada) = sign_up("ada", "");
        assert_eq!((status, &ada["role"]), (200, &json!("")));

        let id = ada["id"].as_str().unwrap();
        let signers = database::signers(&dest.join("data.db")).unwrap();
        let token = bearer(&signers.users[&UserId::parse(id).unwrap()]);
        let path = format!("/api/collections/users/records/{id}");
        let change = |body: &str| served.call("PATCH", &path, &[("Authorization", &token)], body).0;
        assert_eq!(change(r#"{"name":"Ada"}"#), 200);
        assert_eq!(change(r#"{"role":"admin"}"#), 404);
        assert_eq!(change(r#"{"role+":"admin"}"#), 404);
        assert_eq!(served.call("DELETE", &path, &[("Authorization", &token)], "").0, 403);
        served.stop().await;
    }
}

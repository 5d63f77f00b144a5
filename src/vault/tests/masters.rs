//! Master keys: replacing, forgetting and missing them.

use super::*;

#[tokio::test]
async fn a_fresh_master_key_takes_the_place_of_the_old_one_in_its_file() {
    let dir = tempfile::tempdir().unwrap();
    let world = open(dir.path(), config()).await.unwrap();
    let file = dir.path().join(KEY_FILE);
    assert_eq!(world.vault.made(), Some(&*file));
    let old = std::fs::read_to_string(&file).unwrap();
    let mut ids = Vec::new();
    for at in 0..70 {
        ids.push(world.put(&format!("user{at}"), "fathom", "default", SECRET).await);
    }
    world.vault.rotate(NewMaster::Generated, now()).await.unwrap();
    for (at, id) in ids.iter().enumerate() {
        assert_eq!(world.reads(&format!("user{at}"), id).await.unwrap(), SECRET, "while it is under way");
    }
    world.put("late", "fathom", "default", SECRET).await;
    world.settled().await;
    let status = world.vault.status().await.unwrap();
    let shown: Vec<_> = status.keys.iter().map(|key| (key.state, key.tenants)).collect();
    assert_eq!(shown, [("retired", 0), ("primary", 71)]);
    let new = std::fs::read_to_string(&file).unwrap();
    assert_ne!(old, new);
    world.close().await;
    std::fs::write(&file, old).unwrap();
    assert!(matches!(open(dir.path(), config()).await, Err(Locked::Retired { .. })));
    std::fs::write(&file, new).unwrap();
    let world = open(dir.path(), config()).await.unwrap();
    assert_eq!(world.reads("user3", &ids[3]).await.unwrap(), SECRET);
    assert_eq!(world.vault.made(), None);
    world.close().await;
}

#[tokio::test]
async fn a_replaced_master_key_opens_keys_of_backups_until_none_is_sealed_by_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(KEY_FILE);
    let world = open(dir.path(), config()).await.unwrap();
    let sealed = world.vault.seal_backup_key(&Vault::new_backup_key(&tenant("ada"))).unwrap();
    let mut replaced = Vec::new();
    for _ in 0..2 {
        replaced.push(std::fs::read_to_string(&file).unwrap());
        world.vault.rotate(NewMaster::Generated, now()).await.unwrap();
        world.settled().await;
    }
    assert_ne!(world.vault.master_key_id(), sealed.kek);
    assert!(world.vault.open_backup_key(&sealed).is_ok());
    world.close().await;
    for old in replaced {
        let new = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, old).unwrap();
        assert!(matches!(open(dir.path(), config()).await, Err(Locked::Retired { .. })), "it opens nothing by itself");
        std::fs::write(&file, new).unwrap();
    }
    let world = open(dir.path(), config()).await.unwrap();
    assert!(world.vault.open_backup_key(&sealed).is_ok(), "over both replacements, after a start");
    let retired = world.vault.retired_masters().await.unwrap();
    assert_eq!((retired.len(), &retired[0]), (2, &sealed.kek));
    world.vault.forget_former(&retired).await.unwrap();
    assert!(world.vault.open_backup_key(&sealed).is_err());
    world.close().await;
    let world = open(dir.path(), config()).await.unwrap();
    assert!(world.vault.open_backup_key(&sealed).is_err());
    world.close().await;
}

#[tokio::test]
async fn a_key_that_the_operator_brings_is_alone_once_the_configuration_has_it() {
    let dir = tempfile::tempdir().unwrap();
    let world = open(dir.path(), config()).await.unwrap();
    let id = world.put("ada", "fathom", "default", SECRET).await;
    let passphrase_text = "correct horse battery";
    let new = NewMaster::Passphrase(Secret::new(passphrase_text.to_owned()));
    world.vault.rotate(new, now()).await.unwrap();
    world.settled().await;
    assert_eq!(world.vault.progress().phase, rotate::Phase::AwaitsConfiguration);
    assert!(matches!(world.vault.rotate(NewMaster::Generated, now()).await, Err(Refused::UnderWay)));
    world.close().await;
    // The configuration is still the old one: everything opens, nothing is forgotten.
    let world = open(dir.path(), config()).await.unwrap();
    assert_eq!(world.reads("ada", &id).await.unwrap(), SECRET);
    world.close().await;
    let world = open(dir.path(), passphrase(passphrase_text)).await.unwrap();
    world.settled().await;
    assert_eq!(world.vault.progress().phase, rotate::Phase::Settled);
    assert_eq!(world.reads("ada", &id).await.unwrap(), SECRET);
    assert!(matches!(world.vault.rotate(NewMaster::Generated, now()).await, Err(Refused::NotOurs)));
    world.close().await;
    assert!(matches!(open(dir.path(), config()).await, Err(Locked::Retired { .. })));
    assert!(matches!(open(dir.path(), passphrase("another passphrase")).await, Err(Locked::Wrong { .. })));
    let world = open(dir.path(), passphrase(passphrase_text)).await.unwrap();
    assert_eq!(world.reads("ada", &id).await.unwrap(), SECRET);
    world.close().await;
}

#[tokio::test]
async fn without_its_key_a_vault_does_not_open_and_nothing_is_written() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join(KEY_FILE);
    let world = open(dir.path(), config()).await.unwrap();
    world.put("ada", "fathom", "default", SECRET).await;
    world.close().await;
    let contents = async || {
        let database = ControlDatabase::open(&dir.path().join("control.db")).unwrap();
        let entries = database.list("").await.unwrap();
        database.close().await;
        entries.into_iter().map(|entry| (entry.key, entry.revision, entry.value)).collect::<Vec<_>>()
    };
    let before = contents().await;
    let moved = dir.path().join("elsewhere");
    std::fs::rename(&file, &moved).unwrap();
    assert!(matches!(open(dir.path(), config()).await, Err(Locked::Missing { .. })));
    assert!(!file.exists(), "no key is made for a vault that has one");
    kek::write_new(&file, &envelope::Key::random()).unwrap();
    let wrong = open(dir.path(), config()).await.err().unwrap();
    assert!(matches!(wrong, Locked::Wrong { .. }), "{wrong}");
    assert!(wrong.to_string().contains("master key"));
    assert_eq!(contents().await, before);
    // A vault whose record of keys is gone is not begun anew.
    let database = ControlDatabase::open(&dir.path().join("control.db")).unwrap();
    let master = database.get("vaultmaster.keys").await.unwrap().unwrap();
    database.delete("vaultmaster.keys", master.revision).await.unwrap();
    database.close().await;
    assert!(matches!(open(dir.path(), config()).await, Err(Locked::NoRecord)));
}

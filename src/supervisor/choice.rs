//! Which version of `PocketBase` a template is made with, which one a golden directory was, and which one serves the
//! data of an instance.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::supervisor::bake;
use crate::supervisor::config::Binaries;
use crate::supervisor::config::Binary;
use crate::supervisor::config::is_older;
use crate::supervisor::config::is_pinned_to;
use crate::supervisor::snapshot;
use crate::supervisor::template::BAKED_BY;
use crate::supervisor::template::COMPLETE;
use crate::supervisor::template::Golden;
use crate::supervisor::template::Locations;
use crate::supervisor::template::Template;
use crate::supervisor::template::Traits;
use crate::supervisor::template::chain;

/// Reads and bakes one template, with the newest `PocketBase` that it allows. One that the newest cannot bake keeps
/// being served by the next older one that can.
pub(super) async fn prepare(name: &str, locations: &Locations) -> (Result<Arc<Golden>, String>, Option<Arc<Traits>>) {
    let newest = match Template::load(&locations.templates, name, &locations.version) {
        Ok(template) => template,
        Err(error) => return (Err(chain(&error)), None),
    };
    let mut candidates = vec![locations.clone()];
    for older in &locations.older {
        let (binary, version) = (older.path.clone(), older.version.clone());
        candidates.push(Locations { binary, version, ..locations.clone() });
    }
    if let Some(pin) = &newest.traits.pocketbase {
        candidates.retain(|candidate| is_pinned_to(&candidate.version, pin));
        if candidates.is_empty() {
            let why =
                format!("its template.toml says pocketbase = {pin:?}, and no such binary is in pocketbase.binaries");
            return (Err(why), Some(Arc::new(newest.traits)));
        }
    }
    let mut first = None;
    for candidate in &candidates {
        let baked = match Template::load(&candidate.templates, name, &candidate.version) {
            Ok(template) => bake::golden(&template, candidate).await.map(|golden| (golden, template.traits)),
            Err(error) => Err(error.into()),
        };
        match baked {
            Ok((golden, traits)) => return (Ok(Arc::new(golden)), Some(Arc::new(traits))),
            Err(error) => {
                let error = chain(&error);
                if candidates.len() > 1 {
                    tracing::error!(
                        template.name = name,
                        pocketbase = candidate.version,
                        error,
                        "a template does not bake"
                    );
                }
                first.get_or_insert(error);
            }
        }
    }
    (Err(first.unwrap_or_default()), Some(Arc::new(newest.traits)))
}

/// The version of `PocketBase` that the data in an instance's folder has, which was made from `golden`. Empty where
/// nobody noted one. Reads a file.
pub(super) fn of_data(folder: &Path, golden: &Golden) -> Result<String, String> {
    let noted = snapshot::pocketbase(folder).map_err(|error| format!("read the PocketBase of its data: {error}"))?;
    Ok(newer(&golden.pocketbase, noted))
}

/// The newer one of what a version is made with and what was noted since.
pub(super) fn newer(made: &str, noted: Option<String>) -> String {
    noted.filter(|noted| made.is_empty() || is_older(made, noted)).unwrap_or_else(|| made.to_owned())
}

/// The `PocketBase` that serves what lies in an instance's folder, which was made from `golden`.
pub(super) fn binary<'a>(binaries: &'a Binaries, folder: &Path, golden: &Golden) -> Result<&'a Binary, String> {
    let version = of_data(folder, golden)?;
    binaries.for_data_of(&version).ok_or_else(|| missing(&version))
}

/// Why data of this version is not served.
pub(super) fn missing(version: &str) -> String {
    format!(
        "its data is PocketBase {version}'s, and no binary of that version or a newer one is in pocketbase.binaries"
    )
}

/// Notes that the data is given to a newer `PocketBase` than its own, before that one starts: no older one may have it
/// afterwards, should its binary come back. Blocks.
pub(super) fn note(binaries: &Binaries, folder: &Path, golden: &Golden) -> Result<(), String> {
    let version = of_data(folder, golden)?;
    let binary = binaries.for_data_of(&version).ok_or_else(|| missing(&version))?;
    if binary.version == version {
        return Ok(());
    }
    let noted = snapshot::set_pocketbase(folder, &binary.version);
    noted.map_err(|error| format!("note the PocketBase of its data: {error}"))
}

/// The version of `PocketBase` behind each golden directory, by its hash.
pub(super) fn baked_by(names: &[String], golden: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    for name in names {
        let root = golden.join(name);
        // One that is not ours, or not whole, is not asked for.
        let read = |file: &str| fs::read_to_string(root.join(file)).ok();
        if let (Some(hash), Some(version)) = (read(COMPLETE), read(BAKED_BY)) {
            found.insert(hash, version);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(version: &str) -> Binary {
        Binary { path: version.into(), sha256: String::new(), version: version.to_owned() }
    }

    fn golden(pocketbase: &str) -> Golden {
        Golden {
            name: String::new(),
            hash: String::new(),
            dir: Path::new("").to_owned(),
            app_name: String::new(),
            pocketbase: pocketbase.to_owned(),
            migrations_dir: None,
            hooks_dir: None,
            public_dir: None,
        }
    }

    #[test]
    fn data_that_a_newer_version_has_served_is_never_given_back_to_its_own() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let own = golden("0.39.11");
        let (both, new) =
            (Binaries::new(binary("0.40.6"), vec![binary("0.39.11")]), Binaries::new(binary("0.40.6"), Vec::new()));
        let serves = |binaries: &Binaries| super::binary(binaries, folder, &own).map(|binary| binary.version.clone());
        note(&both, folder, &own).unwrap();
        assert_eq!(
            (serves(&both).unwrap().as_str(), snapshot::pocketbase(folder).unwrap()),
            ("0.39.11", None),
            "its own"
        );
        note(&new, folder, &own).unwrap();
        assert_eq!(serves(&new).unwrap(), "0.40.6");
        assert_eq!(serves(&both).unwrap(), "0.40.6", "its own is there again");
        let old = Binaries::new(binary("0.39.11"), Vec::new());
        assert!(serves(&old).unwrap_err().contains("PocketBase 0.40.6's"));
        assert!(note(&old, folder, &own).unwrap_err().contains("pocketbase.binaries"));
        // What it was upgraded to since is newer still.
        assert_eq!(of_data(folder, &golden("0.41.0")).unwrap(), "0.41.0");
        assert_eq!(of_data(folder, &golden("")).unwrap(), "0.40.6");
        // A note that cannot be read at the moment is not none.
        std::fs::remove_file(folder.join("pocketbase")).unwrap();
        std::fs::create_dir(folder.join("pocketbase")).unwrap();
        for refused in [serves(&both).unwrap_err(), note(&both, folder, &own).unwrap_err()] {
            assert!(refused.contains("read the PocketBase of its data"), "{refused}");
        }
    }
}

//! Which version of `PocketBase` a template is made with, and which one a golden directory was.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::supervisor::bake;
use crate::supervisor::config::is_pinned_to;
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

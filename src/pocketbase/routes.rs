//! Which paths are whose below `/api/`: `PocketBase`'s own, ours, and those that are left to an app's hooks; and which
//! of them can be opened to everybody. One list, because what one part takes for a hook's and another for its own would
//! be a way around both.

/// First words below `/api/` that are `PocketBase`'s own or ours, so that a hook cannot have them.
pub const TAKEN: [&str; 18] = [
    "auth",
    "backups",
    "batch",
    "collections",
    "crons",
    "files",
    "health",
    "keys",
    "logs",
    "meetings",
    "oauth2-redirect",
    "queue",
    "queue_updates",
    "realtime",
    "settings",
    "sql",
    "v1",
    "workspaces",
];

/// Whether a first word below `/api/` is left to hooks. `PocketBase` compares exactly; spellings in other letters are
/// refused all the same.
pub fn is_hooks(word: &str) -> bool {
    let lower = word.to_ascii_lowercase();
    // These two are recognised by how they begin.
    !word.is_empty() && !TAKEN.contains(&&*lower) && !lower.starts_with("queue") && !lower.starts_with("meetings")
}

/// Whether what begins like this (decoded) path is something that anybody may be let read: records or files of one
/// named collection, a hook's route, or a page.
pub fn can_be_public(path: &str) -> bool {
    let Some(rest) = path.strip_prefix("/api/") else { return is_page(path) };
    let (first, tail) = rest.split_once('/').unwrap_or((rest, ""));
    let (collection, call) = tail.split_once('/').unwrap_or((tail, ""));
    match first {
        "collections" => is_open_collection(collection) && (call == "records" || call.starts_with("records/")),
        "files" => is_open_collection(collection) && tail.contains('/'),
        _ => is_hooks(first),
    }
}

/// Whether a path is none of an API's.
pub fn is_page(path: &str) -> bool {
    let first = path.trim_start_matches('/').split('/').next().unwrap_or_default();
    !first.eq_ignore_ascii_case("api") && !first.starts_with('_')
}

/// By name only: ids would let a system collection in unseen.
fn is_open_collection(name: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    !name.is_empty()
        && name.bytes().all(is_plain)
        && !name.starts_with('_')
        && !name.to_ascii_lowercase().starts_with("pbc_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_have_what_nobody_else_has() {
        assert!(is_hooks("hello") && is_hooks("collection"));
        for word in ["", "sql", "SQL", "collections", "queue", "queued", "meetings-x", "v1"] {
            assert!(!is_hooks(word), "{word}");
        }
        for path in
            ["/api/hello", "/api/hello/you", "/api/collections/posts/records/x", "/api/files/posts/r/f", "/a.html"]
        {
            assert!(can_be_public(path), "{path}");
        }
        for path in
            ["/api", "/api/", "/api/sql", "/api/collections/posts", "/api/collections/_superusers/records", "/_/"]
        {
            assert!(!can_be_public(path), "{path}");
        }
    }
}

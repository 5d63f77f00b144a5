//! The rules of workspaces as pure functions: who may change whom, which names are names, which paths can be public.

use crate::pocketbase::routes::can_be_public;
use crate::pocketbase::routes::is_page;
use time::Duration;
use time::OffsetDateTime;

use super::error::Invalid;
use crate::store::members::MemberRole;
use crate::store::slugs::Slug;
use crate::store::tenants::Tenant;

/// How long a name that a workspace left goes on leading to it, and is nobody else's. Bookmarks and apps that still use
/// it must not end up at a stranger's.
pub const SLUG_HOLD: Duration = Duration::days(90);
/// Names that one workspace left and that are still held.
pub const MAX_HELD: usize = 5;
/// Paths of one workspace that anybody may read.
pub const MAX_PUBLIC: usize = 50;
/// Longest of them, in bytes.
const MAX_PATTERN: usize = 200;
/// Longest name that people see, in characters.
const MAX_NAME: usize = 100;
/// Letters and digits after `w-` in the id of a workspace.
pub const ID_LETTERS: usize = 14;
/// Length of the accounts' ids, which are names of personal tenants.
const ACCOUNT_ID: usize = 15;

/// Names that mean something else in an address, or that a visitor would take for ours.
const RESERVED: [&str; 62] = [
    "www",
    "api",
    "admin",
    "app",
    "apps",
    "global",
    "static",
    "assets",
    "mail",
    "status",
    "auth",
    "con",
    "prn",
    "aux",
    "nul",
    "localhost",
    "local",
    "internal",
    "invalid",
    "test",
    "example",
    "root",
    "system",
    "superuser",
    "staff",
    "support",
    "help",
    "docs",
    "blog",
    "about",
    "login",
    "logout",
    "signin",
    "signup",
    "register",
    "account",
    "accounts",
    "user",
    "users",
    "tenant",
    "tenants",
    "workspace",
    "workspaces",
    "personal",
    "health",
    "metrics",
    "ready",
    "openapi",
    "webhooks",
    "billing",
    "security",
    "abuse",
    "postmaster",
    "hostmaster",
    "webmaster",
    "noreply",
    "smtp",
    "imap",
    "ftp",
    "cdn",
    "dev",
    "pocketfleet",
];

/// Whether a member with the role `actor` may change or remove one with the role `target`.
pub fn may_manage(actor: MemberRole, target: MemberRole) -> bool {
    match actor {
        MemberRole::Owner => true,
        MemberRole::Admin => target < MemberRole::Admin,
        MemberRole::Member | MemberRole::Guest => false,
    }
}

/// Whether a member with the role `actor` may give somebody the role `given`.
pub fn may_give(actor: MemberRole, given: MemberRole) -> bool {
    may_manage(actor, given)
}

/// Whether the text can be what a workspace is called in addresses.
pub fn check_slug(slug: &str) -> Result<(), Invalid> {
    let invalid = |message| Err(Invalid { field: "slug", code: "validation_invalid_slug", message });
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    if !(3..=32).contains(&slug.len()) || !slug.bytes().all(|b| is_plain(b) || b == b'-') {
        return invalid("Must be 3 to 32 characters of a-z, 0-9 and hyphens.");
    }
    if slug.starts_with('-') || slug.ends_with('-') || slug.contains("--") {
        return invalid("Must not begin or end with a hyphen, or have two in a row.");
    }
    let is_workspace_id = slug.strip_prefix("w-").is_some_and(|rest| rest.len() == ID_LETTERS && !rest.contains('-'));
    if is_workspace_id || (slug.len() == ACCOUNT_ID && !slug.contains('-')) {
        return invalid("Must not look like an id: use another length or a hyphen.");
    }
    if RESERVED.contains(&slug) {
        return Err(Invalid { field: "slug", code: "validation_reserved_slug", message: "This name is reserved." });
    }
    Ok(())
}

/// The name that people see, cleaned; not empty.
pub fn check_name(name: &str) -> Result<String, Invalid> {
    let invalid = |message| Err(Invalid { field: "name", code: "validation_invalid_name", message });
    let name = name.trim();
    if name.is_empty() || name.chars().count() > MAX_NAME {
        return invalid("Must be 1 to 100 characters.");
    }
    // What turns the direction of a text, or cannot be seen, can make one name look like another.
    let is_hidden = |c: char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
    };
    if name.chars().any(is_hidden) {
        return invalid("Must not have control or invisible characters.");
    }
    Ok(name.to_owned())
}

/// The e-mail address of an invitation, as addresses are compared.
pub fn check_email(email: &str) -> Result<String, Invalid> {
    let email = email.trim().to_lowercase();
    let is_form = email.split_once('@').is_some_and(|(name, domain)| !name.is_empty() && domain.contains('.'));
    if is_form && email.len() <= 254 && !email.chars().any(|c| c.is_control() || c.is_whitespace()) {
        return Ok(email);
    }
    Err(Invalid { field: "email", code: "validation_is_email", message: "Must be a valid e-mail address." })
}

/// Whether paths can be opened to everybody.
pub fn check_public_read(patterns: &[String]) -> Result<(), Invalid> {
    let invalid = |message| Err(Invalid { field: "public_read", code: "validation_invalid_path", message });
    if patterns.len() > MAX_PUBLIC {
        return invalid("Must be at most 50 paths.");
    }
    for pattern in patterns {
        let fixed = pattern.strip_suffix('*').unwrap_or(pattern);
        let is_plain = |b: u8| b.is_ascii_graphic() && !b"*%?#\\;\"<>".contains(&b);
        if pattern.len() > MAX_PATTERN || !fixed.starts_with('/') || !fixed.bytes().all(is_plain) {
            return invalid("Must begin with / and have plain characters; * stands at the end only.");
        }
        if fixed.contains("//") || fixed.split('/').any(|segment| segment == ".." || segment == ".") {
            return invalid("Must not have empty segments, . or ..");
        }
        // `/api/coll*` would open `/api/collections/…` as well.
        let is_short = fixed.strip_prefix("/api/").is_some_and(|rest| !rest.contains('/'));
        if !can_be_public(fixed) || (pattern.ends_with('*') && is_short) {
            return invalid(
                "Must be records or files of one named collection, a hook's route, or a page, of a whole first word.",
            );
        }
    }
    Ok(())
}

/// Whether anybody may read this (decoded) path without a credential. A pattern for pages never covers an API's path,
/// however short it is.
pub fn is_public(tenant: &Tenant, path: &str) -> bool {
    tenant.public_read.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(fixed) => path.starts_with(fixed) && can_be_public(path) && is_page(fixed) == is_page(path),
        None => path == pattern && can_be_public(path),
    })
}

/// What a claimed name is worth.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// The name of its workspace.
    Current,
    /// An earlier name of its workspace; leads there still, and is nobody else's.
    Held,
    /// Claimed and not taken (yet).
    Claimed,
    /// Anybody's.
    Free,
}

/// A claim nobody followed up on for this long was interrupted.
const CLAIM_PATIENCE: Duration = Duration::minutes(10);

/// What a claimed name is worth, given the tenant that claimed it.
pub fn standing(slug: &Slug, tenant: Option<&Tenant>, now: OffsetDateTime) -> Standing {
    let bears = tenant.is_some_and(|tenant| tenant.slug.as_deref() == Some(&*slug.slug));
    match slug.left_at {
        _ if bears => Standing::Current,
        Some(left) if tenant.is_some() && now < left + SLUG_HOLD => Standing::Held,
        None if now < slug.claimed_at + CLAIM_PATIENCE => Standing::Claimed,
        _ => Standing::Free,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::TenantId;
    use crate::store::tenants::Kind;

    #[test]
    fn admins_manage_those_below_them_and_owners_everybody() {
        use MemberRole::{Admin, Guest, Member, Owner};
        for (actor, targets) in
            [(Owner, &[Guest, Member, Admin, Owner][..]), (Admin, &[Guest, Member]), (Member, &[]), (Guest, &[])]
        {
            for target in MemberRole::ALL {
                assert_eq!(may_manage(actor, target), targets.contains(&target), "{actor:?} {target:?}");
            }
        }
    }

    #[test]
    fn slugs_cannot_be_mistaken_for_anything_else() {
        for good in ["abc", "team-1", "a-b-c", "1st", "fifteen-letters", "abcdefghijklmnopqrstuvwxyz012345"] {
            assert_eq!(check_slug(good), Ok(()), "{good}");
        }
        for bad in [
            "",
            ".",
            "..",
            "con",
            "_",
            "ab",
            "a--b",
            "-abc",
            "abc-",
            "Team",
            "tëam",
            "te am",
            "team ",
            "www",
            "api",
            "admin",
            "global",
            "b5c3xih3gtjb48z",
            "w-abcdefgh123456",
            "abcdefghijklmnopqrstuvwxyz0123456",
            "a.b",
            "a/b",
            "xn--abc",
            "te\u{0430}m",
        ] {
            assert!(check_slug(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_trimmed_and_show_what_they_say() {
        assert_eq!(check_name("  Ada & Söhne "), Ok("Ada & Söhne".to_owned()));
        let long = "x".repeat(101);
        for bad in ["", "   ", "a\u{202e}b", "a\nb", "\u{200b}", long.as_str()] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn only_records_files_and_pages_can_be_public() {
        let check = |pattern: &str| check_public_read(&[pattern.to_owned()]);
        for good in [
            "/",
            "/*",
            "/about",
            "/assets/*",
            "/api/collections/posts/records",
            "/api/collections/posts/records/*",
            "/api/files/posts/*",
            "/api/collections/posts/records*",
        ] {
            // The last one names more than one thing: records and whatever begins so.
            let expected = good != "/api/collections/posts/records*" || check(good).is_ok();
            assert_eq!(check(good).is_ok(), expected, "{good}");
        }
        for bad in [
            "",
            "about",
            "*",
            "/a*b",
            "/a//b",
            "/a/../b",
            "/%61pi",
            "/api",
            "/api*",
            "/api/*",
            "/API/x",
            "/_/",
            "/_*",
            "/a?b",
            "/api/collections/*",
            "/api/collections/po*",
            "/api/collections/_superusers/records",
            "/api/collections/pbc_3142635823/records",
            "/api/collections/posts",
            "/api/collections/posts/*",
            "/api/collections/users/auth-with-password",
            "/api/settings",
            "/api/files/*",
            "/api/files/_superusers/*",
            "/api/realtime",
            "/api/batch",
            "/a\u{e4}",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
        assert!(check_public_read(&vec!["/a".to_owned(); 51]).is_err());
    }

    #[test]
    fn a_public_page_opens_no_api() {
        let mut tenant = Tenant::new(TenantId::parse("w-a").unwrap(), Kind::Workspace, "hosted", None);
        tenant.public_read = ["/*", "/api/collections/posts/records*", "/api/files/posts/*"].map(String::from).into();
        for open in [
            "/",
            "/index.html",
            "/apiary",
            "/api/collections/posts/records",
            "/api/collections/posts/records/x",
            "/api/files/posts/a/b.png",
        ] {
            assert!(is_public(&tenant, open), "{open}");
        }
        for closed in [
            "/api/collections/notes/records",
            "/api",
            "/api/",
            "/api/collections/posts/recordsx",
            "/_/",
            "/api/files/notes/a/b",
            "/api/realtime",
            "/API/files/notes/a/b",
        ] {
            assert!(!is_public(&tenant, closed), "{closed}");
        }
    }

    #[test]
    fn a_left_name_is_held_and_an_abandoned_claim_is_not() {
        let now = OffsetDateTime::UNIX_EPOCH + Duration::days(1000);
        let id = TenantId::parse("w-a").unwrap();
        let slug =
            |left_at| Slug { slug: "old".into(), tenant: id.clone(), claimed_at: now - Duration::days(200), left_at };
        let mut tenant = Tenant::new(id.clone(), Kind::Workspace, "workspace", None);
        tenant.slug = Some("new".to_owned());
        assert_eq!(standing(&slug(Some(now)), Some(&tenant), now), Standing::Held);
        assert_eq!(standing(&slug(Some(now - SLUG_HOLD)), Some(&tenant), now), Standing::Free);
        assert_eq!(standing(&slug(None), Some(&tenant), now), Standing::Free, "interrupted before the name was taken");
        assert_eq!(standing(&slug(None), None, now - Duration::days(200)), Standing::Claimed);
        tenant.slug = Some("old".to_owned());
        assert_eq!(standing(&slug(Some(now)), Some(&tenant), now), Standing::Current, "interrupted before it was left");
    }
}

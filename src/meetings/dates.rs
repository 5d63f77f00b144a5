//! Instants as `PocketBase` writes them, `2025-03-01 17:01:30.000Z`, which sort as texts.

use time::OffsetDateTime;
use time::PrimitiveDateTime;
use time::UtcOffset;
use time::format_description::BorrowedFormatItem;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

const FORMAT: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day] [hour]:[minute]:[second].[subsecond digits:3]Z");

/// The instant as it is stored; empty for none.
pub(super) fn stored(at: Option<OffsetDateTime>) -> String {
    at.and_then(|at| at.to_offset(UtcOffset::UTC).format(FORMAT).ok()).unwrap_or_default()
}

/// The instant that is stored; none when empty, or not one.
pub(super) fn instant(text: &str) -> Option<OffsetDateTime> {
    PrimitiveDateTime::parse(text, FORMAT).ok().map(PrimitiveDateTime::assume_utc)
}

/// As our API shows it.
pub(super) fn shown(text: &str) -> Option<String> {
    instant(text).and_then(|at| at.format(&Rfc3339).ok())
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn what_is_stored_is_found_again() {
        let at = datetime!(2025-03-01 18:01:30.5 +1);
        assert_eq!(stored(Some(at)), "2025-03-01 17:01:30.500Z");
        assert_eq!(instant(&stored(Some(at))), Some(at.to_offset(UtcOffset::UTC)));
        assert_eq!(shown("2025-03-01 17:01:30.000Z").as_deref(), Some("2025-03-01T17:01:30Z"));
        assert_eq!((stored(None).as_str(), instant(""), shown("soon")), ("", None, None));
    }
}

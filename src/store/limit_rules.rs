//! Which limits of a tenant make sense, wherever they are written: in the configuration, in a template, by an admin.

use crate::store::tenants::Limits;

/// The largest limit in bytes: a pebibyte, which no one machine has and every sum of which fits.
const MOST_BYTES: u64 = 1 << 50;
/// The largest limit of a count.
const MOST_COUNT: u64 = 1_000_000_000;
/// The least memory that `PocketBase` starts with.
const LEAST_MEMORY: u64 = 128 << 20;
/// Less than this no database fits in; whoever wants nobody to write suspends the tenant.
const LEAST_DISK: u64 = 64 << 10;

/// The field that breaks a rule, and the rule.
pub fn check(limits: &Limits) -> Result<(), (&'static str, &'static str)> {
    let bytes = [
        ("disk_soft", limits.disk_soft),
        ("disk_hard", limits.disk_hard),
        ("file_size", limits.file_size),
        ("memory", limits.memory),
    ];
    for (field, value) in bytes {
        if value.is_some_and(|value| value > MOST_BYTES) {
            return Err((field, "Must be at most 1125899906842624 (2^50) bytes; 0 is no limit."));
        }
    }
    let counts = [
        ("in_flight", limits.in_flight),
        ("requests_per_minute", limits.requests_per_minute),
        ("uploads_per_hour", limits.uploads_per_hour),
    ];
    for (field, value) in counts {
        if value.is_some_and(|value| value > MOST_COUNT) {
            return Err((field, "Must be at most 1000000000; 0 is no limit."));
        }
    }
    if limits.memory.is_some_and(|bytes| bytes > 0 && bytes < LEAST_MEMORY) {
        return Err(("memory", "Must be 0 (as the server says) or at least 134217728 (128 MiB)."));
    }
    if limits.disk_hard.is_some_and(|bytes| bytes > 0 && bytes < LEAST_DISK) {
        return Err(("disk_hard", "Must be 0 (no limit) or at least 65536 (64 KiB)."));
    }
    if let (Some(soft), Some(hard)) = (limits.disk_soft, limits.disk_hard)
        && hard > 0
        && soft > hard
    {
        return Err(("disk_soft", "Must not be above disk_hard."));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_beyond_all_sense_are_refused_by_name() {
        let wrong = |limits: Limits| check(&limits).unwrap_err().0;
        assert_eq!(wrong(Limits { disk_hard: Some(1 << 63), ..Limits::default() }), "disk_hard");
        assert_eq!(wrong(Limits { disk_soft: Some(u64::MAX), ..Limits::default() }), "disk_soft");
        assert_eq!(wrong(Limits { memory: Some(1), ..Limits::default() }), "memory");
        assert_eq!(wrong(Limits { in_flight: Some(1 << 40), ..Limits::default() }), "in_flight");
        let crossed = Limits { disk_soft: Some(3 << 20), disk_hard: Some(2 << 20), ..Limits::default() };
        assert_eq!(wrong(crossed), "disk_soft");
        let good = Limits { disk_hard: Some(2 << 20), memory: Some(0), in_flight: Some(0), ..Limits::default() };
        assert_eq!(check(&good), Ok(()));
        for bad in ["-1", "NaN", "1.5", "1e400", "18446744073709551616", "\"5\""] {
            let text = format!("{{\"disk_hard\": {bad}}}");
            assert!(serde_json::from_str::<Limits>(&text).is_err(), "{bad}");
        }
    }
}

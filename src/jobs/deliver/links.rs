//! Links to artifacts that work without any other credential: signed, and over after a while.
//!
//! A token is `{tenant}.{end}.{HMAC-SHA256 over the artifact, the tenant and the end}`. The key is made at the first
//! start, in the data directory; whoever removes it ends all links.

use std::fmt;
use std::fs;
use std::io;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use hmac::Hmac;
use hmac::KeyInit;
use hmac::Mac;
use sha2::Sha256;
use time::OffsetDateTime;

use super::staging::hex;
use crate::ids::TenantId;

const KEY_FILE: &str = "links.key";
const KEY_BYTES: usize = 32;

/// Signs links and recognises them. Cheap to clone.
#[derive(Clone)]
pub struct Links {
    key: Arc<[u8; KEY_BYTES]>,
    ttl: Duration,
}

impl fmt::Debug for Links {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Links").finish_non_exhaustive()
    }
}

impl Links {
    /// With the key of the data directory, which is made if there is none.
    pub fn open(data: &Path, ttl: Duration) -> io::Result<Self> {
        let path = data.join(KEY_FILE);
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let fresh: [u8; KEY_BYTES] = rand::random();
                let new = data.join(format!("{KEY_FILE}.new"));
                let mut file = fs::File::options().write(true).create(true).truncate(true).mode(0o600).open(&new)?;
                file.write_all(&fresh)?;
                file.sync_all()?;
                fs::rename(&new, &path)?;
                fresh.to_vec()
            }
            bytes => bytes?,
        };
        let key = bytes.try_into().map_err(|_| {
            io::Error::new(io::ErrorKind::InvalidData, format!("{} is not a key of 32 bytes", path.display()))
        })?;
        Ok(Self { key: Arc::new(key), ttl })
    }

    fn mac(&self, tenant: &TenantId, artifact: &str, end: i64) -> Hmac<Sha256> {
        // Any length of key is taken, so this cannot fail.
        let mut mac = Hmac::<Sha256>::new_from_slice(&*self.key).unwrap_or_else(|_| Hmac::new(&Default::default()));
        for word in [b"artifact".as_slice(), tenant.as_str().as_bytes(), artifact.as_bytes(), &end.to_be_bytes()] {
            mac.update(&(word.len() as u64).to_be_bytes());
            mac.update(word);
        }
        mac
    }

    /// A token for an artifact, and when it ends.
    pub fn sign(&self, tenant: &TenantId, artifact: &str, now: OffsetDateTime) -> (String, OffsetDateTime) {
        let end = now + self.ttl;
        let seconds = end.unix_timestamp();
        let mac = self.mac(tenant, artifact, seconds).finalize().into_bytes();
        (format!("{tenant}.{seconds}.{}", hex(&mac)), end)
    }

    /// Whose artifact a token lets through; none when it is not ours, for another one, or over.
    pub fn verify(&self, artifact: &str, token: &str, now: OffsetDateTime) -> Option<TenantId> {
        let mut words = token.splitn(3, '.');
        let (tenant, end, mac) = (words.next()?, words.next()?, words.next()?);
        let (tenant, end) = (TenantId::parse(tenant).ok()?, end.parse::<i64>().ok()?);
        let given = unhex(mac)?;
        self.mac(&tenant, artifact, end).verify_slice(&given).ok()?;
        (now.unix_timestamp() < end).then_some(tenant)
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    (0..64).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn a_link_is_good_for_one_artifact_for_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let links = Links::open(dir.path(), Duration::from_hours(1)).unwrap();
        let now = datetime!(2026-01-01 12:00 UTC);
        let tenant = TenantId::parse("ada").unwrap();
        let (token, end) = links.sign(&tenant, "a1", now);
        assert_eq!(end, now + Duration::from_hours(1));
        // The same key after a restart.
        let links = Links::open(dir.path(), Duration::from_hours(1)).unwrap();
        assert_eq!(links.verify("a1", &token, now), Some(tenant.clone()));
        assert_eq!(links.verify("a2", &token, now), None);
        assert_eq!(links.verify("a1", &token, end), None);
        assert_eq!(links.verify("a1", &token.replacen("ada", "bob", 1), now), None);
        let later = token.replacen(&end.unix_timestamp().to_string(), "9999999999", 1);
        assert_eq!(links.verify("a1", &later, now), None);
        for bad in ["", ".", "..", "ada.1.zz", &token[..token.len() - 1], &format!("{token}0")] {
            assert_eq!(links.verify("a1", bad, now), None, "{bad:?}");
        }
        assert_eq!(
            fs::metadata(dir.path().join(KEY_FILE)).map(|m| std::os::unix::fs::MetadataExt::mode(&m) & 0o777).unwrap(),
            0o600
        );
    }
}

//! Where a master key comes from: a file, the environment, a passphrase, or a fresh one in the data directory.
//!
//! A key that many could know is worse than none, because it looks like one: a file that others can read, a text
//! instead of random bytes, and bytes that repeat are refused with the reason.

use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::path::PathBuf;

use argon2::Algorithm;
use argon2::Argon2;
use argon2::Params;
use argon2::Version;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use zeroize::Zeroizing;

use super::Config;
use super::Secret;
use super::envelope::Aad;
use super::envelope::KEY_BYTES;
use super::envelope::Key;
use super::envelope::Kind;

/// The file of a key that was made at the first start, in the data directory.
pub const KEY_FILE: &str = "vault.key";
/// Most bytes of a key file.
const MAX_FILE_BYTES: u64 = 4_096;
/// Fewest different bytes of a key: fewer are not random. (32 random bytes have 30 on average.)
const FEWEST_BYTES: usize = 16;
/// Shortest passphrase, in characters.
const SHORTEST_PASSPHRASE: usize = 12;
/// Length of the salt of a passphrase, in bytes.
const SALT_BYTES: usize = 16;
/// Argon2id: 64 MiB, three passes, four lanes (the second choice of RFC 9106).
const ARGON2: (u32, u32, u32) = (64 * 1_024, 3, 4);

/// Why a key is not taken. No message tells of the key.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// The file cannot be read.
    #[error("the vault's key file {} cannot be read: {error}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Others may read it.
    #[error("the vault's key file {} has mode {mode:04o}; others must not read it: chmod 600", path.display())]
    Mode {
        /// The file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// It belongs to somebody else.
    #[error("the vault's key file {} belongs to another user", .0.display())]
    Owner(PathBuf),
    /// What it holds is no key.
    #[error("{place}: {reason}; make one with: openssl rand -base64 32")]
    Weak {
        /// Where it is from.
        place: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The passphrase is too short.
    #[error("vault.passphrase has less than {SHORTEST_PASSPHRASE} characters")]
    ShortPassphrase,
    /// Deriving failed; the machine has too little memory.
    #[error("make a key from the passphrase")]
    Derivation,
}

/// What the configuration gives.
#[derive(Debug)]
pub(super) enum Given {
    /// A key in a file.
    File(PathBuf, Key),
    /// A key in the environment.
    Environment(Key),
    /// Something to make a key from.
    Passphrase(Secret),
    /// Nothing: a key is made, here.
    Nothing(PathBuf),
}

impl Given {
    /// The word for records and people.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::File(..) => "file",
            Self::Environment(_) => "environment",
            Self::Passphrase(_) => "passphrase",
            Self::Nothing(_) => "generated",
        }
    }
}

/// Looks where the configuration says: `key_file`, then `key`, then `passphrase`, then the file of an earlier start.
pub(super) fn find(config: &Config, data: &Path) -> Result<Given, Unusable> {
    if !config.key_file.as_os_str().is_empty() {
        return Ok(Given::File(config.key_file.clone(), read(&config.key_file)?));
    }
    if let Some(text) = config.key.expose() {
        return Ok(Given::Environment(parse("vault.key", text)?));
    }
    if let Some(passphrase) = config.passphrase.expose() {
        return Ok(Given::Passphrase(check_passphrase(Secret::new(passphrase.to_owned()))?));
    }
    let path = data.join(KEY_FILE);
    match path.symlink_metadata() {
        // What a loss of power leaves of a file that was being made, and what opens nothing in any case.
        Ok(found) if found.is_file() && found.len() == 0 => Ok(Given::Nothing(path)),
        Ok(_) => Ok(Given::File(path.clone(), read(&path)?)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Given::Nothing(path)),
        Err(error) => Err(Unusable::Io { path, error }),
    }
}

pub(super) fn check_passphrase(passphrase: Secret) -> Result<Secret, Unusable> {
    if passphrase.expose().chars().count() < SHORTEST_PASSPHRASE {
        return Err(Unusable::ShortPassphrase);
    }
    Ok(passphrase)
}

/// Reads a key file that nobody else can read. The file that was opened is the one that is looked at.
pub(super) fn read(path: &Path) -> Result<Key, Unusable> {
    let failed = |error| Unusable::Io { path: path.to_owned(), error };
    let file = File::options().read(true).open(path).map_err(failed)?;
    let found = file.metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    if found.mode() & 0o077 != 0 {
        return Err(Unusable::Mode { path: path.to_owned(), mode: found.mode() & 0o7777 });
    }
    // Credentials of systemd belong to root and are shown to the service alone.
    if found.uid() != 0 && found.uid() != nix::unistd::geteuid().as_raw() {
        return Err(Unusable::Owner(path.to_owned()));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_FILE_BYTES).read_to_string(&mut text).map_err(failed)?;
    parse(&path.display().to_string(), &text)
}

/// 32 bytes in base64 that could be random.
pub(super) fn parse(place: &str, text: &str) -> Result<Key, Unusable> {
    let weak = |reason| Unusable::Weak { place: place.to_owned(), reason };
    let text = text.trim();
    if text.is_empty() {
        return Err(weak("the key is empty"));
    }
    let bytes = Zeroizing::new(STANDARD.decode(text).map_err(|_| weak("the key is not base64"))?);
    if bytes.len() != KEY_BYTES {
        return Err(weak("the key does not have 32 bytes"));
    }
    let mut seen = [false; 256];
    bytes.iter().for_each(|byte| seen[usize::from(*byte)] = true);
    let different = seen.iter().filter(|seen| **seen).count();
    let steps = bytes.windows(2).filter(|pair| pair[0].abs_diff(pair[1]) <= 1).count();
    if different < FEWEST_BYTES || steps > KEY_BYTES / 2 {
        return Err(weak("the key repeats itself or counts; it is not random"));
    }
    // 32 random bytes are never all letters: such a key is a sentence, or the example of some documentation.
    if bytes.iter().all(|byte| byte.is_ascii_graphic() || *byte == b' ') {
        return Err(weak("the key is a text and not random bytes; a text goes into vault.passphrase"));
    }
    Key::of(&bytes).ok_or_else(|| weak("the key does not have 32 bytes"))
}

/// Writes a key to a file that must not exist; on disk, its folder too, when this returns.
pub(super) fn write_new(path: &Path, key: &Key) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).mode(0o600).open(path)?;
    let text = Zeroizing::new(STANDARD.encode(key.bytes()) + "\n");
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    File::open(folder_of(path))?.sync_all()
}

/// Puts a key into a file that is not there or empty: it holds the whole key or nothing, whatever happens meanwhile. Not
/// for two at once.
pub(super) fn place(path: &Path, key: &Key) -> io::Result<()> {
    match path.symlink_metadata() {
        Ok(found) if !found.is_file() || found.len() > 0 => Err(io::ErrorKind::AlreadyExists.into()),
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => replace(path, key),
    }
}

/// Puts a key in place of the one in a file: the file holds the one or the other, whatever happens meanwhile.
pub(super) fn replace(path: &Path, key: &Key) -> io::Result<()> {
    let fresh = staged(path);
    match std::fs::remove_file(&fresh) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    write_new(&fresh, key)?;
    std::fs::rename(&fresh, path)?;
    File::open(folder_of(path))?.sync_all()
}

/// Whether [`replace`] could do it: tries to make the file that it would rename.
pub(super) fn is_replaceable(path: &Path) -> io::Result<()> {
    let fresh = staged(path);
    drop(File::options().write(true).create(true).truncate(false).mode(0o600).open(&fresh)?);
    std::fs::remove_file(fresh)
}

fn staged(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".new");
    name.into()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A fresh salt, as text for the record.
pub(super) fn salt() -> String {
    STANDARD.encode(rand::random::<[u8; SALT_BYTES]>())
}

/// Makes a key from a passphrase: a quarter of a second and 64 MiB, so not on a thread that others wait for.
pub(super) fn derive(passphrase: &Secret, salt: &str) -> Result<Key, Unusable> {
    let salt = STANDARD.decode(salt).map_err(|_| Unusable::Derivation)?;
    let (memory, passes, lanes) = ARGON2;
    let params = Params::new(memory, passes, lanes, Some(KEY_BYTES)).map_err(|_| Unusable::Derivation)?;
    let mut key = Zeroizing::new([0; KEY_BYTES]);
    argon2id(params, &[], passphrase.expose().as_bytes(), &salt, key.as_mut_slice())?;
    Key::of(key.as_slice()).ok_or(Unusable::Derivation)
}

fn argon2id(params: Params, pepper: &[u8], password: &[u8], salt: &[u8], out: &mut [u8]) -> Result<(), Unusable> {
    let argon2 = Argon2::new_with_secret(pepper, Algorithm::Argon2id, Version::V0x13, params);
    argon2.and_then(|argon2| argon2.hash_password_into(password, salt, out)).map_err(|_| Unusable::Derivation)
}

/// Names a key without telling anything of it.
pub(super) fn id(key: &Key) -> String {
    hex(&key.tag("pocketfleet vault: id of a master key 1", &Aad::new(Kind::MasterKey))[..8])
}

/// Tells whether a key is the one that was meant.
pub(super) fn check(key: &Key) -> String {
    hex(&key.tag("pocketfleet vault: check of a master key 1", &Aad::new(Kind::MasterKey))[..16])
}

pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use argon2::AssociatedData;
    use argon2::ParamsBuilder;

    use super::*;

    #[test]
    fn argon2id_gives_the_vector_of_rfc_9106() {
        let mut params = ParamsBuilder::new();
        params.m_cost(32).t_cost(3).p_cost(4).output_len(32).data(AssociatedData::new(&[4; 12]).unwrap());
        let mut out = [0; 32];
        argon2id(params.build().unwrap(), &[3; 8], &[1; 32], &[2; 16], &mut out).unwrap();
        let expected = "0d640df58d78766c08c037a34a8b53c9d01ef0452d75b65eb52520e96b01e659";
        assert_eq!(hex(&out), expected);
    }

    #[test]
    fn one_passphrase_and_salt_are_one_key() {
        let (passphrase, salt) = (Secret::new("correct horse battery".to_owned()), salt());
        let key = derive(&passphrase, &salt).unwrap();
        assert_eq!(derive(&passphrase, &salt).unwrap().bytes(), key.bytes());
        assert_ne!(derive(&passphrase, &super::salt()).unwrap().bytes(), key.bytes());
        assert!(check_passphrase(Secret::new("short".to_owned())).is_err());
    }

    #[test]
    fn keys_that_others_could_know_are_refused() {
        let encode = |bytes: &[u8]| STANDARD.encode(bytes);
        let counting: Vec<u8> = (0..32).collect();
        for (bad, reason) in [
            (String::new(), "empty"),
            ("not base64!".to_owned(), "base64"),
            (encode(&[1; 31]), "32 bytes"),
            (encode(&[7; 32]), "random"),
            (encode(&counting), "random"),
            (encode(&[1, 200].repeat(16)), "random"),
            (encode(b"0123456789abcdef0123456789abcdef"), "random"),
            (encode(b"the quick brown fox jumps over a"), "passphrase"),
        ] {
            let refused = parse("vault.key", &bad).unwrap_err().to_string();
            assert!(refused.contains(reason), "{bad}: {refused}");
            assert!(bad.is_empty() || !refused.contains(&bad), "{refused}");
        }
        for _ in 0..1_000 {
            assert!(parse("vault.key", &encode(Key::random().bytes())).is_ok());
        }
    }

    #[test]
    fn a_file_is_read_when_it_is_ours_alone_and_replaced_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("vault.key");
        let (one, other) = (Key::random(), Key::random());
        write_new(&path, &one).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(read(&path).unwrap().bytes(), one.bytes());
        assert!(write_new(&path, &other).is_err(), "a key is never overwritten");
        assert!(place(&path, &other).is_err(), "nor replaced unasked");
        is_replaceable(&path).unwrap();
        replace(&path, &other).unwrap();
        assert_eq!(read(&path).unwrap().bytes(), other.bytes());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        assert!(matches!(read(&path), Err(Unusable::Mode { mode: 0o644, .. })));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_key_is_named_without_telling_of_it() {
        let key = Key::random();
        assert_eq!((id(&key).len(), check(&key).len()), (16, 32));
        assert_ne!(id(&key), id(&Key::random()));
        assert_ne!(id(&key), check(&key)[..16]);
    }
}

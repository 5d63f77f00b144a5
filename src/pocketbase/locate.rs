//! Where a database really is, if it is one that may be opened.

use std::io;
use std::path::Path;
use std::path::PathBuf;

use crate::pocketbase::database::Error;

/// The file where it really is. The process that serves a data directory may put anything into it: a link to somebody
/// else's database would make us read their keys as its own, and a pipe would keep us waiting for ever. The folders
/// above belong to us, and may be reached by links.
pub(super) fn locate(path: &Path) -> Result<PathBuf, Error> {
    let failed = |source: io::Error| match source.kind() {
        io::ErrorKind::NotFound => Error::NoFile { path: path.to_owned() },
        _ => Error::Io { path: path.to_owned(), source },
    };
    let (Some(folder), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(Error::NoFile { path: path.to_owned() });
    };
    if folder.symlink_metadata().map_err(failed)?.is_symlink() {
        return Err(Error::NotADatabase { path: path.to_owned() });
    }
    let found = path.symlink_metadata().map_err(failed)?;
    if !found.is_file() {
        return Err(Error::NotADatabase { path: path.to_owned() });
    }
    Ok(folder.canonicalize().map_err(failed)?.join(name))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use rusqlite::Connection;

    use super::*;
    use crate::pocketbase::copy::quick_check;
    use crate::pocketbase::database::Access;
    use crate::pocketbase::database::open;

    #[test]
    fn what_is_no_plain_file_is_refused_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let real = dir.path().join("theirs");
        fs::create_dir(&real).unwrap();
        let target = real.join("data.db");
        Connection::open(&target).unwrap().execute_batch("CREATE TABLE t (a)").unwrap();
        let at = |name: &str| dir.path().join(name);
        std::os::unix::fs::symlink(&target, at("link.db")).unwrap();
        std::os::unix::fs::symlink(&real, at("folder")).unwrap();
        fs::create_dir(at("directory.db")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            at("pipe.db"),
            rustix::fs::FileType::Fifo,
            rustix::fs::Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        let inside = at("folder").join(target.file_name().unwrap());
        for path in [at("link.db"), at("directory.db"), at("pipe.db"), inside] {
            for access in [Access::Read, Access::Write] {
                let refused = open(&path, access).err();
                assert!(matches!(refused, Some(Error::NotADatabase { .. })), "{}: {refused:?}", path.display());
            }
        }
        quick_check(&target).unwrap();
        // A link above the data directory is the operator's.
        std::os::unix::fs::symlink(dir.path(), at("above")).unwrap();
        quick_check(&at("above").join("theirs").join(target.file_name().unwrap())).unwrap();
    }
}

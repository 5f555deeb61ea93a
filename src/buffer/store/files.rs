//! The file and its log, as the file system knows them.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::buffer::beside;

/// Which files were opened. Somebody may delete or replace them meanwhile: SQLite would go on
/// with what nobody can open any more.
pub(super) struct Files {
    path: PathBuf,
    log_path: PathBuf,
    file: Identity,
    /// There is no log before the first commit.
    log: Option<Identity>,
}

#[derive(PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
        }
    }
}

impl Files {
    pub(super) fn new(path: &Path) -> Result<Self> {
        let log_path = beside(path, "-wal");
        Ok(Self {
            path: path.to_owned(),
            file: Identity::of(&std::fs::metadata(path)?),
            log: metadata(&log_path)?.map(|meta| Identity::of(&meta)),
            log_path,
        })
    }

    /// Where they cannot be looked at, they count as in place: the commit itself has told
    /// whether the disk works.
    pub(super) fn are_in_place(&mut self) -> bool {
        let file = match metadata(&self.path) {
            Ok(Some(meta)) => Identity::of(&meta) == self.file,
            Ok(None) => false,
            Err(_) => true,
        };
        let log = match (metadata(&self.log_path), &self.log) {
            (Ok(Some(meta)), Some(opened)) => Identity::of(&meta) == *opened,
            (Ok(Some(meta)), None) => {
                self.log = Some(Identity::of(&meta));
                true
            }
            (Ok(None), Some(_)) => false,
            (Ok(None), None) | (Err(_), _) => true,
        };
        file && log
    }

    /// Bytes of the file and of its log.
    pub(super) fn sizes(&self) -> Result<(u64, u64)> {
        let size =
            |path: &Path| Ok::<_, std::io::Error>(metadata(path)?.map_or(0, |meta| meta.len()));
        Ok((size(&self.path)?, size(&self.log_path)?))
    }
}

/// `None` where there is no file.
fn metadata(path: &Path) -> Result<Option<Metadata>> {
    match std::fs::metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes it durable that a file is in its folder, or no longer.
pub(super) fn sync_folder(path: &Path) -> Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

/// Reads all of a file and its log. SQLite says "corrupt" of a disk that cannot be read, too;
/// what is on it may be in order.
pub(in crate::buffer) fn try_reading(path: &Path) -> Result<()> {
    let mut sink = std::io::sink();
    for path in [path, &beside(path, "-wal")] {
        match File::open(path) {
            Ok(mut file) => std::io::copy(&mut file, &mut sink).map(|_| ())?,
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

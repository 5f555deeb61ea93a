//! The file and its log, as the file system knows them.

use std::fs::{File, Metadata};
use std::io::{ErrorKind, Result};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[cfg(target_os = "linux")]
use rustix::fs::{AtFlags, CWD, StatxFlags, statx};
#[cfg(target_os = "linux")]
use rustix::io::Errno;

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
    /// Of the file at this path; `None` where there is none.
    ///
    /// It asks for nothing but the inode. Since Linux 6.13, to have looked at a file's times makes
    /// the next write take a new one, and then each fdatasync has the inode to write besides: it
    /// took a third longer.
    /// <https://docs.kernel.org/filesystems/multigrain-ts.html>
    #[cfg(target_os = "linux")]
    fn at(path: &Path) -> Result<Option<Self>> {
        match statx(CWD, path, AtFlags::empty(), StatxFlags::INO) {
            Ok(stat) => Ok(Some(Self {
                device: u64::from(stat.stx_dev_major) << 32 | u64::from(stat.stx_dev_minor),
                inode: stat.stx_ino,
            })),
            Err(Errno::NOENT) => Ok(None),
            // A sandbox that does not know the call.
            Err(Errno::NOSYS) => Self::with_times(path),
            Err(error) => Err(error.into()),
        }
    }

    #[cfg(not(target_os = "linux"))]
    fn at(path: &Path) -> Result<Option<Self>> {
        Self::with_times(path)
    }

    fn with_times(path: &Path) -> Result<Option<Self>> {
        Ok(metadata(path)?.map(|meta| Self {
            device: meta.dev(),
            inode: meta.ino(),
        }))
    }
}

impl Files {
    pub(super) fn new(path: &Path) -> Result<Self> {
        let log_path = beside(path, "-wal");
        Ok(Self {
            path: path.to_owned(),
            file: Identity::at(path)?.ok_or(ErrorKind::NotFound)?,
            log: Identity::at(&log_path)?,
            log_path,
        })
    }

    /// Where they cannot be looked at, they count as in place: the commit itself has told
    /// whether the disk works.
    pub(super) fn are_in_place(&mut self) -> bool {
        let file = match Identity::at(&self.path) {
            Ok(Some(found)) => found == self.file,
            Ok(None) => false,
            Err(_) => true,
        };
        let log = match (Identity::at(&self.log_path), &self.log) {
            (Ok(Some(found)), Some(opened)) => found == *opened,
            (Ok(Some(found)), None) => {
                self.log = Some(found);
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

/// Removes a file, and all that SQLite keeps beside it.
pub(super) fn remove_database(path: &Path) -> Result<()> {
    ["", "-wal", "-shm", "-journal"]
        .iter()
        .try_for_each(|suffix| remove(&beside(path, suffix)))
}

/// It may be gone already.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
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

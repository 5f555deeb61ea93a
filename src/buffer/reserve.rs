//! Room on the disk for the time when there is none: a file beside the buffer that is given
//! up when the disk is full, and taken back later.
//!
//! On a full disk SQLite cannot even delete, since that is a write as well. With the room of
//! the reserve the backlog is published and settled to its end, and a start works too.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;
use tracing::{debug, warn};

use super::{beside, give_to_owner};

/// As much as the log may hold that is not in the file yet: that is what a full disk must
/// still let through. See `Copying`.
const LARGEST: u64 = 32 << 20;

/// Of a small disk not more than this share.
const SHARE_OF_DISK: u64 = 16;

/// With less than this even a small log could not be copied into the file.
const SMALLEST: u64 = 256 << 10;

#[derive(Debug)]
pub(super) struct Reserve {
    buffer: PathBuf,
    path: PathBuf,
    bytes: u64,
    is_held: bool,
}

impl Reserve {
    /// Nothing is written yet: that would be wrong on a full disk.
    pub(super) fn of(buffer: &Path) -> Self {
        let path = beside(buffer, ".reserve");
        let disk = Disk::of(buffer).map_or(u64::MAX, |disk| disk.size);
        Self {
            bytes: (disk / SHARE_OF_DISK).clamp(SMALLEST, LARGEST),
            is_held: path.exists(),
            path,
            buffer: buffer.to_owned(),
        }
    }

    /// Its size, whether it is held or not.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_held(&self) -> bool {
        self.is_held
    }

    /// Takes the room, if there is as much; whether it is held now.
    pub(super) fn take(&mut self) -> bool {
        if !self.is_held {
            match self.allocate() {
                Ok(()) => self.is_held = true,
                Err(error) => {
                    debug!(%error, path = %self.path.display(), "Reserve could not be taken");
                    // What was allocated in part would be missing elsewhere.
                    std::fs::remove_file(&self.path).ok();
                }
            }
        }
        self.is_held
    }

    /// Gives the room to whoever writes next; whether there was any to give.
    pub(super) fn give_up(&mut self) -> bool {
        if !self.is_held {
            return false;
        }
        match std::fs::remove_file(&self.path) {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                warn!(%error, path = %self.path.display(), "Reserve could not be given up");
                return false;
            }
        }
        self.is_held = false;
        true
    }

    fn allocate(&self) -> std::io::Result<()> {
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&self.path)?;
        give_to_owner(&file, &self.buffer);
        match fallocate(&file, FallocateFlags::empty(), 0, self.bytes) {
            Ok(()) => Ok(()),
            Err(Errno::OPNOTSUPP | Errno::NOSYS) => fill(&mut file, self.bytes),
            Err(error) => Err(error.into()),
        }
    }
}

/// Where a file system cannot allocate, it has to write.
fn fill(file: &mut File, bytes: u64) -> std::io::Result<()> {
    let zeros = vec![0; 64 << 10];
    let mut left = bytes;
    while left > 0 {
        let piece = zeros
            .get(..usize::try_from(left).unwrap_or(usize::MAX))
            .unwrap_or(&zeros);
        file.write_all(piece)?;
        left -= piece.len() as u64;
    }
    file.sync_data()
}

/// The file system that a file is on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Disk {
    /// Bytes in all.
    pub(super) size: u64,
    /// Bytes that this process may still use.
    pub(super) free: u64,
}

impl Disk {
    /// `None` where the file system does not tell.
    pub(super) fn of(path: &Path) -> Option<Self> {
        let folder = path
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty());
        let stat = statvfs(folder.unwrap_or(Path::new("."))).ok()?;
        (stat.f_blocks > 0).then(|| Self {
            size: stat.f_blocks.saturating_mul(stat.f_frsize),
            free: stat.f_bavail.saturating_mul(stat.f_frsize),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_allocated_and_what_is_given_up_is_gone() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("buffer.db");
        let mut reserve = Reserve::of(&path);
        assert!(!reserve.is_held() && !reserve.give_up());
        assert!(reserve.take());
        let meta = std::fs::metadata(dir.path().join("buffer.db.reserve")).unwrap();
        assert_eq!(meta.len(), reserve.bytes());
        assert!(meta.blocks() * 512 >= reserve.bytes(), "it has no holes");
        assert!(Reserve::of(&path).is_held(), "the next process finds it");
        assert!(reserve.give_up());
        assert!(!Reserve::of(&path).is_held());
    }
}

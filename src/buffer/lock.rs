//! One sidecar a buffer: an advisory lock on a file of its own.
//!
//! Not on the buffer file: SQLite's own locks there are dropped as soon as any other handle
//! of the process on that file is closed. The lock ends with the process, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{beside, give_to_owner};

/// How often a lock that is waited for is tried. Strapi's connections wait as long.
const LOOK: Duration = Duration::from_millis(2);

/// Why the lock was not taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// Another process has it.
    #[error(
        "another strapi-qstash{} uses the buffer {}; stop it, or give this one a buffer of its own with --buffer",
        holder.as_ref().map_or_else(String::new, |pid| format!(" (process {pid})")), buffer.display()
    )]
    Held {
        /// The buffer.
        buffer: PathBuf,
        /// The other's process id, where it could be read.
        holder: Option<u32>,
    },
    /// The lock file cannot be used.
    #[error(
        "could not lock {path}; its folder must be there and writable, or choose another with --data-dir"
    )]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
}

/// Holds the lock until it is dropped.
#[derive(Debug)]
pub(super) struct Lock {
    file: File,
    path: PathBuf,
    was_signed: bool,
}

/// Takes the lock, waiting for another holder to let go of it.
pub(super) fn take(buffer: &Path, wait: Duration) -> Result<Lock, LockError> {
    let path = beside(buffer, ".lock");
    let failed = |source| LockError::Io {
        path: path.clone(),
        source,
    };
    let file = open(&path, buffer).map_err(failed)?;
    let deadline = Instant::now() + wait;
    let tried = loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::park_timeout(LOOK)
            }
            tried => break tried,
        }
    };
    let signed = signature(&file);
    match tried {
        Ok(()) => Ok(Lock {
            was_signed: signed.is_some(),
            file,
            path,
        }),
        Err(TryLockError::WouldBlock) => Err(LockError::Held {
            buffer: buffer.to_owned(),
            holder: signed.flatten(),
        }),
        Err(TryLockError::Error(source)) => Err(failed(source)),
    }
}

/// One that is there can be locked on a file system that takes no more writes. Only one that was
/// made here is given away: what stands there already may be a link to anything.
fn open(path: &Path, buffer: &Path) -> std::io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    match options.clone().create_new(true).open(path) {
        Ok(file) => {
            give_to_owner(&file, buffer);
            return Ok(file);
        }
        Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error),
    }
    match options.open(path) {
        Err(error) if error.kind() == ErrorKind::ReadOnlyFilesystem => {
            File::open(path).or(Err(error))
        }
        opened => opened,
    }
}

/// Who signed it: `None` for nobody, `Some(None)` where that is not legible.
fn signature(file: &File) -> Option<Option<u32>> {
    let mut text = [0; SIGNATURE];
    let read = file.read_at(&mut text, 0).unwrap_or(0);
    let text = text.get(..read).filter(|text| !text.is_empty())?;
    Some(
        std::str::from_utf8(text)
            .ok()
            .and_then(|pid| pid.trim().parse().ok()),
    )
}

/// Bytes of a signature. Each has the same length, so that signing needs no room on the disk.
const SIGNATURE: usize = 11;

impl Lock {
    /// Whether a sidecar has used the buffer beside it before.
    pub(super) fn was_signed(&self) -> bool {
        self.was_signed
    }

    /// Says that the buffer beside it is in use, and by which process.
    pub(super) fn sign(&mut self) {
        let is_first = !std::mem::replace(&mut self.was_signed, true);
        let text = format!("{:<10}\n", std::process::id());
        let signed = self.file.write_all_at(text.as_bytes(), 0);
        // Durable once and for all: a buffer whose header is damaged is known by it only.
        let signed = signed.and_then(|()| match is_first {
            true => self.file.sync_data(),
            false => Ok(()),
        });
        if let Err(error) = signed {
            // Only for the message above, and for telling a damaged buffer from another file.
            tracing::debug!(%error, path = %self.path.display(), "Could not sign the lock file");
        }
    }
}

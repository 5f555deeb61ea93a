//! One sidecar a buffer: an advisory lock on a file of its own.
//!
//! Not on the buffer file: SQLite's own locks there are dropped as soon as any other handle
//! of the process on that file is closed. The lock ends with the process, however it ends.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::beside;

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
pub(super) struct Lock(#[expect(dead_code, reason = "the open file is the lock")] File);

/// Takes the lock, waiting for another holder to let go of it.
pub(super) fn take(buffer: &Path, wait: Duration) -> Result<Lock, LockError> {
    let path = beside(buffer, ".lock");
    let failed = |source| LockError::Io {
        path: path.clone(),
        source,
    };
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    let deadline = Instant::now() + wait;
    let tried = loop {
        match file.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => {
                std::thread::park_timeout(LOOK)
            }
            tried => break tried,
        }
    };
    match tried {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut pid = String::new();
            let holder = file
                .read_to_string(&mut pid)
                .ok()
                .and_then(|_| pid.trim().parse().ok());
            return Err(LockError::Held {
                buffer: buffer.to_owned(),
                holder,
            });
        }
        Err(TryLockError::Error(source)) => return Err(failed(source)),
    }
    // Only for the message above: a disk that is full must not keep the sidecar from starting.
    let written = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    if let Err(error) = written {
        tracing::debug!(%error, path = %path.display(), "Could not write the process id into the lock file");
    }
    Ok(Lock(file))
}

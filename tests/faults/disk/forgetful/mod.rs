//! A file system that forgets: it lives in memory behind FUSE, writes down every operation in
//! order, fails where it is told to, and can tell what a disk would hold had the power gone at
//! any moment.
//!
//! **What the model covers.** The record holds each write with its bytes, each cut, growth,
//! creation, rename and removal, and each fsync of a file or of the folder. At a power loss
//! ([`Replay`]) what was written before a file's last fsync is on the disk; of what came later
//! each page of 4 KiB may be as it was, as it is, or as it was at any moment between, and may
//! be torn at a sector of 512 bytes; the size is any that the file had meanwhile; names follow
//! in the order of their changes, up to any point after the last fsync of the folder (or, as
//! ext4 does it, of the file that they name). After an fsync that fails the pages count as
//! clean, as in Linux's page cache: reads still see them, the disk never gets them unless they
//! are written again, and the next fsync succeeds; each that has the file open is told once.
//! Errors are those of the system calls: EIO, ENOSPC and EROFS on write, fsync, creation and
//! growth, EIO on reads of a whole disk or of a bad sector. `mmap` works, as SQLite's `-shm`
//! needs it; what is written and read through it meets no error, since nobody would be told of
//! one.
//!
//! **What it does not.** No disk turns written bytes into others: there is no bit rot here
//! (`damage` has some), no sector that is lost after its fsync, and no lying disk but the one
//! that [`without_syncs`] makes. Two files' unsynced pages are independent, and so are pages
//! and names, which is more than most file systems mix up; the pages of one file that is cut
//! and grows again are less mixed than POSIX would allow: what was written after a cut is
//! there only if the cut is. There is one folder, no links, and no metadata but names and
//! sizes. The kernel's own cache lies above this: a read error is seen only for pages that it
//! does not hold, which is why [`Forgetful::set`] drops them first.

mod crash;
mod serve;
mod state;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard};

use fuser::{BackgroundSession, Config, INodeNo, MountOption};
use tempfile::TempDir;

pub(crate) use self::crash::{Luck, Replay, without_commit_syncs, without_syncs};
use self::serve::Served;
use self::state::State;
pub(crate) use self::state::{Op, Record};
use crate::report::Report;

/// Bytes of a file.
pub(crate) type Sector = (String, std::ops::Range<u64>);

/// What goes wrong on the disk.
#[derive(Debug, Clone, Default)]
pub(crate) struct Faults {
    /// Writes fail with EIO, and so do growth and creation.
    pub(crate) write: bool,
    /// How many of a hundred fsyncs fail with EIO.
    pub(crate) sync_percent: u8,
    /// Only those of the file with this name.
    pub(crate) sync_only: Option<&'static str>,
    /// Reads fail with EIO.
    pub(crate) read: bool,
    /// Reads of these bytes of these files fail with EIO.
    pub(crate) bad_sectors: Vec<Sector>,
    /// Whatever changes something fails with EROFS.
    pub(crate) read_only: bool,
    /// Bytes that all files may take together; beyond it ENOSPC.
    pub(crate) limit: Option<u64>,
}

/// A mounted one; unmounted when it is dropped.
pub(crate) struct Forgetful {
    state: Arc<Mutex<State>>,
    session: Option<BackgroundSession>,
    dir: TempDir,
}

impl Forgetful {
    /// Mounts it. Where that is not possible the report says so: skipped on the machine of
    /// someone who only wants to run the tests, wrong in CI.
    pub(crate) fn mount(report: &mut Report) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let state = Arc::new(Mutex::new(State::default()));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("forgetful".to_owned())];
        match fuser::spawn_mount(Served(Arc::clone(&state)), dir.path(), &config) {
            Ok(session) => Some(Self {
                state,
                session: Some(session),
                dir,
            }),
            Err(error) => {
                report.skip(format!("no FUSE file system can be mounted: {error}"));
                None
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// A function that tells how many operations there were so far.
    pub(crate) fn clock(&self) -> impl Fn() -> usize + Send + Sync + 'static {
        let state = Arc::clone(&self.state);
        move || state.lock().unwrap().log.len()
    }

    /// How often an operation was made to fail.
    pub(crate) fn failures(&self) -> usize {
        self.state().failures.load(Ordering::Relaxed)
    }

    /// Bytes that all files take.
    pub(crate) fn used(&self) -> u64 {
        self.state().used()
    }

    /// From now on this goes wrong.
    pub(crate) fn set(&self, faults: Faults) {
        let drops_cache = faults.read || !faults.bad_sectors.is_empty();
        let inodes: Vec<u64> = {
            let mut state = self.state();
            state.faults = faults;
            // What is written through `mmap` must stay with the kernel.
            let inodes = state.names.values().copied();
            inodes.filter(|ino| !state.is_mapped(*ino)).collect()
        };
        if let Some(session) = self.session.as_ref().filter(|_| drops_cache) {
            for ino in inodes {
                session.notifier().inval_inode(INodeNo(ino), 0, 0).unwrap();
            }
        }
    }

    /// The sectors in which this text begins.
    pub(crate) fn sectors_of(&self, text: &str) -> Vec<Sector> {
        let state = self.state();
        let mut found = Vec::new();
        for (name, ino) in &state.names {
            let windows = state.files[ino].windows(text.len()).enumerate();
            let places = windows.filter(|(_, window)| *window == text.as_bytes());
            found.extend(places.map(|(at, _)| {
                let sector = at as u64 / 512 * 512;
                (name.clone(), sector..sector + 512)
            }));
        }
        found
    }

    /// Unmounts it; what was written down.
    pub(crate) fn into_log(mut self) -> Vec<Record> {
        self.unmount();
        std::mem::take(&mut self.state().log)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    fn unmount(&mut self) {
        let Some(session) = self.session.take() else {
            return;
        };
        if session.umount_and_join().is_err() {
            // Some process still has a file open: it goes when that ends.
            let lazily = ["-l".as_ref(), self.dir.path().as_os_str()];
            std::process::Command::new("umount")
                .args(lazily)
                .status()
                .ok();
        }
    }
}

impl Drop for Forgetful {
    fn drop(&mut self) {
        self.unmount();
    }
}

/// What the folder holds, by name.
pub(crate) type Contents = BTreeMap<String, Vec<u8>>;

/// Puts these files into a folder.
pub(crate) fn write_out(contents: &Contents, folder: &Path) -> PathBuf {
    for (name, bytes) in contents {
        std::fs::write(folder.join(name), bytes).unwrap();
    }
    folder.to_owned()
}

//! The files as reads see them, and the record of what was done to them.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Faults, Sector};

pub(super) type Ino = u64;

/// A file that somebody has open.
pub(super) type Handle = u64;

/// The folder's inode.
pub(super) const ROOT: Ino = 1;

/// Something that was done.
#[derive(Debug, Clone)]
pub(crate) enum Op {
    /// A name for a new, empty file.
    Create {
        name: String,
        ino: u64,
    },
    Unlink {
        name: String,
    },
    Rename {
        from: String,
        to: String,
    },
    Write {
        ino: u64,
        offset: usize,
        data: Arc<[u8]>,
    },
    /// A new size, smaller or larger.
    Resize {
        ino: u64,
        size: usize,
    },
    /// fsync or fdatasync that succeeded; the one like the other, since fdatasync writes the
    /// size too.
    Sync {
        ino: u64,
    },
    FailedSync {
        ino: u64,
    },
    SyncFolder,
    /// In the place of one that was answered and not done.
    NoSync,
}

/// An operation, and when it was done (ms since 1970, as QStash's times are).
#[derive(Debug, Clone)]
pub(crate) struct Record {
    pub(crate) at: i64,
    pub(crate) op: Op,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) names: BTreeMap<String, Ino>,
    /// A file without a name stays: some process may have it open.
    pub(super) files: BTreeMap<Ino, Vec<u8>>,
    pub(super) log: Vec<Record>,
    /// How many fsyncs of a file have failed.
    failed_syncs: BTreeMap<Ino, u64>,
    /// How many of these each open file has told of.
    told: BTreeMap<Handle, u64>,
    pub(super) faults: Faults,
    /// How often an operation was made to fail.
    pub(super) failures: AtomicUsize,
    pub(super) random: fastrand::Rng,
}

/// What an operation fails with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failure {
    NotFound,
    Exists,
    Io,
    NoSpace,
    ReadOnly,
}

impl State {
    pub(super) fn lookup(&self, name: &str) -> Result<Ino, Failure> {
        self.names.get(name).copied().ok_or(Failure::NotFound)
    }

    pub(super) fn file(&self, ino: Ino) -> Result<&Vec<u8>, Failure> {
        self.files.get(&ino).ok_or(Failure::NotFound)
    }

    pub(super) fn create(&mut self, name: &str) -> Result<Ino, Failure> {
        self.may_change()?;
        if self.names.contains_key(name) {
            return Err(Failure::Exists);
        }
        self.may_write()?;
        let ino = ROOT + 1 + self.files.len() as u64; // no file is ever removed
        self.names.insert(name.to_owned(), ino);
        self.files.insert(ino, Vec::new());
        self.note(Op::Create {
            name: name.to_owned(),
            ino,
        });
        Ok(ino)
    }

    pub(super) fn unlink(&mut self, name: &str) -> Result<(), Failure> {
        self.may_change()?;
        self.names.remove(name).ok_or(Failure::NotFound)?;
        self.note(Op::Unlink {
            name: name.to_owned(),
        });
        Ok(())
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<(), Failure> {
        self.may_change()?;
        let ino = self.names.remove(from).ok_or(Failure::NotFound)?;
        self.names.insert(to.to_owned(), ino);
        self.note(Op::Rename {
            from: from.to_owned(),
            to: to.to_owned(),
        });
        Ok(())
    }

    pub(super) fn read(&self, ino: Ino, offset: usize, size: usize) -> Result<&[u8], Failure> {
        let end = offset.saturating_add(size) as u64;
        let is_bad = |(name, range): &Sector| {
            self.names.get(name) == Some(&ino) && range.start < end && (offset as u64) < range.end
        };
        let is_bad = self.faults.bad_sectors.iter().any(is_bad);
        if is_bad || (self.faults.read && !self.is_mapped(ino)) {
            return self.fail(Failure::Io);
        }
        let file = self.file(ino)?;
        let begin = offset.min(file.len());
        Ok(&file[begin..begin.saturating_add(size).min(file.len())])
    }

    /// SQLite's `-shm`. The pages of a new one come from no disk, so a read of them cannot fail;
    /// if it could, the process would be killed (SIGBUS).
    pub(super) fn is_mapped(&self, ino: Ino) -> bool {
        let mut names = self.names.iter();
        names.any(|(name, named)| *named == ino && name.ends_with("-shm"))
    }

    /// `from_cache`: what was written through `mmap`, which meets no error here.
    pub(super) fn write(
        &mut self,
        ino: Ino,
        offset: usize,
        data: &[u8],
        from_cache: bool,
    ) -> Result<(), Failure> {
        let end = offset + data.len();
        if !from_cache {
            self.may_change()?;
            self.may_write()?;
            self.may_grow(ino, end)?;
        }
        let file = self.files.get_mut(&ino).ok_or(Failure::NotFound)?;
        if file.len() < end {
            file.resize(end, 0);
        }
        file[offset..end].copy_from_slice(data);
        self.note(Op::Write {
            ino,
            offset,
            data: data.into(),
        });
        Ok(())
    }

    pub(super) fn resize(&mut self, ino: Ino, size: usize) -> Result<(), Failure> {
        self.may_change()?;
        let grows = size > self.file(ino)?.len();
        if grows {
            self.may_write()?;
            self.may_grow(ino, size)?;
        }
        if let Some(file) = self.files.get_mut(&ino) {
            file.resize(size, 0);
        }
        self.note(Op::Resize { ino, size });
        Ok(())
    }

    pub(super) fn open(&mut self, ino: Ino) -> Handle {
        let handle = 1 + self.told.len() as u64; // none is ever removed
        let failed = self.failed_syncs.get(&ino).copied().unwrap_or(0);
        self.told.insert(handle, failed);
        handle
    }

    /// Whoever has the file open is told of a failure once, though it was another's fsync.
    pub(super) fn sync(&mut self, ino: Ino, handle: Handle) -> Result<(), Failure> {
        let only = self.faults.sync_only;
        let is_meant = only.is_none_or(|name| self.names.get(name) == Some(&ino));
        if is_meant && self.random.u8(0..100) < self.faults.sync_percent {
            self.note(Op::FailedSync { ino });
            *self.failed_syncs.entry(ino).or_default() += 1;
        } else {
            self.note(Op::Sync { ino });
        }
        let failed = self.failed_syncs.get(&ino).copied().unwrap_or(0);
        match self.told.insert(handle, failed) {
            Some(told) if told < failed => self.fail(Failure::Io),
            _ => Ok(()),
        }
    }

    pub(super) fn sync_folder(&mut self) -> Result<(), Failure> {
        let is_meant = self.faults.sync_only.is_none();
        if is_meant && self.random.u8(0..100) < self.faults.sync_percent {
            return self.fail(Failure::Io);
        }
        self.note(Op::SyncFolder);
        Ok(())
    }

    /// Names of a file: an open one without any is deleted.
    pub(super) fn links(&self, ino: Ino) -> u32 {
        let names = self.names.values().filter(|named| **named == ino);
        names.count().try_into().unwrap()
    }

    pub(super) fn used(&self) -> u64 {
        let named = self.names.values().filter_map(|ino| self.files.get(ino));
        named.map(|file| file.len() as u64).sum()
    }

    pub(super) fn may_change(&self) -> Result<(), Failure> {
        match self.faults.read_only {
            true => self.fail(Failure::ReadOnly),
            false => Ok(()),
        }
    }

    fn may_write(&self) -> Result<(), Failure> {
        match self.faults.write {
            true => self.fail(Failure::Io),
            false => Ok(()),
        }
    }

    fn may_grow(&self, ino: Ino, end: usize) -> Result<(), Failure> {
        let more = end.saturating_sub(self.file(ino)?.len()) as u64;
        match self.faults.limit {
            Some(limit) if more > 0 && self.used() + more > limit => self.fail(Failure::NoSpace),
            _ => Ok(()),
        }
    }

    fn fail<T>(&self, failure: Failure) -> Result<T, Failure> {
        self.failures.fetch_add(1, Ordering::Relaxed);
        Err(failure)
    }

    fn note(&mut self, op: Op) {
        self.log.push(Record {
            at: strapi_qstash::clock::now().as_millis(),
            op,
        });
    }
}

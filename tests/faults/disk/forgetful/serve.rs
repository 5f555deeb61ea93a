//! What the kernel asks, answered from the state.

use std::ffi::OsStr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{
    BsdFileFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, OpenAccMode, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData,
    ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, ReplyWrite, Request, TimeOrNow,
    WriteFlags,
};

use super::state::{Failure, Ino, ROOT, State};

/// How long the kernel may believe what it was told: names and sizes change through it only.
const TTL: Duration = Duration::from_secs(60);

/// As for a disk of this size; nothing keeps it from growing but [`super::Faults::limit`].
const DISK: u64 = 64 << 20;

const BLOCK: u32 = 4096;

pub(super) struct Served(pub(super) Arc<Mutex<State>>);

impl Served {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap()
    }
}

impl From<Failure> for Errno {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::NotFound => Self::ENOENT,
            Failure::Exists => Self::EEXIST,
            Failure::Io => Self::EIO,
            Failure::NoSpace => Self::ENOSPC,
            Failure::ReadOnly => Self::EROFS,
        }
    }
}

fn attributes(state: &State, ino: Ino) -> Result<FileAttr, Failure> {
    let (kind, perm, nlink, size) = match ino {
        ROOT => (FileType::Directory, 0o700, 2, 0),
        ino => (
            FileType::RegularFile,
            0o600,
            state.links(ino),
            state.file(ino)?.len() as u64,
        ),
    };
    Ok(FileAttr {
        ino: INodeNo(ino),
        size,
        blocks: size.div_ceil(512),
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind,
        perm,
        nlink,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: BLOCK,
        flags: 0,
    })
}

/// There is one folder, and its names are text.
fn text(parent: INodeNo, name: &OsStr) -> Result<&str, Failure> {
    name.to_str()
        .filter(|_| parent.0 == ROOT)
        .ok_or(Failure::NotFound)
}

fn done(result: Result<(), Failure>, reply: ReplyEmpty) {
    match result {
        Ok(()) => reply.ok(),
        Err(failure) => reply.error(failure.into()),
    }
}

impl Filesystem for Served {
    fn lookup(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let state = self.state();
        let found = text(parent, name).and_then(|name| state.lookup(name));
        match found.and_then(|ino| attributes(&state, ino)) {
            Ok(found) => reply.entry(&TTL, &found, Generation(0)),
            Err(failure) => reply.error(failure.into()),
        }
    }

    fn getattr(&self, _: &Request, ino: INodeNo, _: Option<FileHandle>, reply: ReplyAttr) {
        match attributes(&self.state(), ino.0) {
            Ok(found) => reply.attr(&TTL, &found),
            Err(failure) => reply.error(failure.into()),
        }
    }

    fn setattr(
        &self,
        _: &Request,
        ino: INodeNo,
        _mode: Option<u32>,
        _uid: Option<u32>,
        _gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let mut state = self.state();
        let changed = match size {
            Some(size) => state.resize(ino.0, size.try_into().unwrap()),
            None => state.may_change(),
        };
        match changed.and_then(|()| attributes(&state, ino.0)) {
            Ok(found) => reply.attr(&TTL, &found),
            Err(failure) => reply.error(failure.into()),
        }
    }

    fn create(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        _mode: u32,
        _umask: u32,
        _flags: i32,
        reply: ReplyCreate,
    ) {
        let mut state = self.state();
        let created = text(parent, name).and_then(|name| state.create(name));
        match created.and_then(|ino| attributes(&state, ino)) {
            Ok(found) => reply.created(
                &TTL,
                &found,
                Generation(0),
                FileHandle(state.open(found.ino.0)),
                FopenFlags::FOPEN_KEEP_CACHE,
            ),
            Err(failure) => reply.error(failure.into()),
        }
    }

    fn open(&self, _: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let writes = flags.acc_mode() != OpenAccMode::O_RDONLY;
        let mut state = self.state();
        match state.may_change() {
            Err(failure) if writes => reply.error(failure.into()),
            _ => reply.opened(FileHandle(state.open(ino.0)), FopenFlags::FOPEN_KEEP_CACHE),
        }
    }

    fn unlink(&self, _: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        done(
            text(parent, name).and_then(|name| self.state().unlink(name)),
            reply,
        );
    }

    fn rename(
        &self,
        _: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let names = text(parent, name).and_then(|from| Ok((from, text(new_parent, new_name)?)));
        done(
            names.and_then(|(from, to)| self.state().rename(from, to)),
            reply,
        );
    }

    fn read(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        size: u32,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let offset = offset.try_into().unwrap();
        match self.state().read(ino.0, offset, size as usize) {
            Ok(data) => reply.data(data),
            Err(failure) => reply.error(failure.into()),
        }
    }

    fn write(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _: OpenFlags,
        _: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let from_cache = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        let offset = offset.try_into().unwrap();
        match self.state().write(ino.0, offset, data, from_cache) {
            Ok(()) => reply.written(data.len().try_into().unwrap()),
            Err(failure) => reply.error(failure.into()),
        }
    }

    fn fallocate(
        &self,
        _: &Request,
        ino: INodeNo,
        _: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        if mode != 0 {
            return reply.error(Errno::EOPNOTSUPP); // as on a file system without extents
        }
        let end = usize::try_from(offset + length).unwrap();
        let mut state = self.state();
        let result = match state.file(ino.0) {
            Ok(file) if file.len() < end => state.resize(ino.0, end),
            Ok(_) => state.may_change(),
            Err(failure) => Err(failure),
        };
        done(result, reply);
    }

    fn fsync(
        &self,
        _: &Request,
        ino: INodeNo,
        handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        done(self.state().sync(ino.0, handle.0), reply);
    }

    fn fsyncdir(&self, _: &Request, _: INodeNo, _: FileHandle, _: bool, reply: ReplyEmpty) {
        done(self.state().sync_folder(), reply);
    }

    fn flush(&self, _: &Request, _: INodeNo, _: FileHandle, _: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn readdir(
        &self,
        _: &Request,
        _: INodeNo,
        _: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let state = self.state();
        let names = state.names.iter().zip(1..);
        for ((name, ino), next) in names.skip(offset.try_into().unwrap()) {
            if reply.add(INodeNo(*ino), next, FileType::RegularFile, name) {
                break;
            }
        }
        reply.ok();
    }

    fn statfs(&self, _: &Request, _: INodeNo, reply: ReplyStatfs) {
        let state = self.state();
        let size = state.faults.limit.unwrap_or(DISK);
        let blocks = |bytes: u64| bytes / u64::from(BLOCK);
        let free = blocks(size.saturating_sub(state.used()));
        reply.statfs(blocks(size), free, free, 1000, 1000, BLOCK, 255, BLOCK);
    }
}

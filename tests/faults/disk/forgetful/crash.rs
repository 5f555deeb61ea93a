//! What the disk holds when the power goes.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::Contents;
use super::state::{Ino, Op, Record};

/// The kernel writes whole pages.
const PAGE: usize = 4096;

/// The disk writes whole sectors.
const SECTOR: usize = 512;

/// How much of what was not synced has come to the disk by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Luck {
    Nothing,
    Everything,
    /// Everything but one page.
    AllButOne,
    /// Each page by itself, whole.
    Pages,
    /// Each page by itself, and torn.
    Sectors,
}

impl Luck {
    pub(crate) fn any(random: &mut Rng) -> Self {
        let all = [
            Self::Nothing,
            Self::Everything,
            Self::AllButOne,
            Self::Pages,
            Self::Sectors,
        ];
        random.choice(all).unwrap_or(Self::Nothing)
    }
}

/// Walks through a record, and tells what a power loss would leave.
pub(crate) struct Replay<'a> {
    log: &'a [Record],
    next: usize,
    files: BTreeMap<Ino, File>,
    /// Names that only an fsync of the folder makes last.
    strict: Names,
    /// Names that an fsync of the file makes last too.
    usual: Names,
}

impl<'a> Replay<'a> {
    pub(crate) fn new(log: &'a [Record]) -> Self {
        Self {
            log,
            next: 0,
            files: BTreeMap::new(),
            strict: Names::default(),
            usual: Names::default(),
        }
    }

    /// Goes on until the first `position` operations are done.
    pub(crate) fn advance(&mut self, position: usize) {
        while self.next < position.min(self.log.len()) {
            self.step(self.next);
            self.next += 1;
        }
    }

    fn step(&mut self, at: usize) {
        match &self.log[at].op {
            op @ (Op::Create { .. } | Op::Unlink { .. } | Op::Rename { .. }) => {
                if let Op::Create { ino, .. } = op {
                    self.files.insert(*ino, File::new());
                }
                self.strict.pending.push(op.clone());
                self.usual.pending.push(op.clone());
            }
            Op::Write { ino, offset, data } => self.file(*ino).write(*offset, data),
            Op::Resize { ino, size } => self.file(*ino).resize(*size),
            Op::Sync { ino } => {
                self.file(*ino).sync();
                // One journal holds all names: what came before comes along.
                self.usual.sync();
            }
            Op::FailedSync { ino } => self.file(*ino).failed_sync(),
            Op::NoSync => {}
            Op::SyncFolder => {
                self.strict.sync();
                self.usual.sync();
            }
        }
    }

    fn file(&mut self, ino: Ino) -> &mut File {
        self.files.get_mut(&ino).expect("it was created")
    }

    /// What is there after a power loss now.
    pub(crate) fn lose_power(&self, luck: Luck, random: &mut Rng) -> Contents {
        let names = match random.bool() {
            true => &self.strict,
            false => &self.usual,
        };
        names
            .survive(luck, random)
            .into_iter()
            .map(|(name, ino)| (name, self.files[&ino].survive(luck, random)))
            .collect()
    }
}

#[derive(Default)]
struct Names {
    durable: BTreeMap<String, Ino>,
    pending: Vec<Op>,
}

impl Names {
    fn sync(&mut self) {
        for op in self.pending.drain(..) {
            apply(&mut self.durable, &op);
        }
    }

    fn survive(&self, luck: Luck, random: &mut Rng) -> BTreeMap<String, Ino> {
        let count = match luck {
            Luck::Nothing => 0,
            Luck::Everything | Luck::AllButOne => self.pending.len(),
            Luck::Pages | Luck::Sectors => random.usize(0..=self.pending.len()),
        };
        let mut names = self.durable.clone();
        self.pending[..count]
            .iter()
            .for_each(|op| apply(&mut names, op));
        names
    }
}

fn apply(names: &mut BTreeMap<String, Ino>, op: &Op) {
    match op {
        Op::Create { name, ino } => {
            names.insert(name.clone(), *ino);
        }
        Op::Unlink { name } => {
            names.remove(name);
        }
        Op::Rename { from, to } => {
            if let Some(ino) = names.remove(from) {
                names.insert(to.clone(), ino);
            }
        }
        _ => {}
    }
}

struct File {
    /// What reads see.
    now: Vec<u8>,
    /// What is surely on the disk.
    durable: Vec<u8>,
    /// What came since the last fsync; one more for each time that the file was cut.
    stages: Vec<Stage>,
}

/// What was written up to the next cut.
struct Stage {
    /// The size to which the file was cut at its beginning.
    cut: usize,
    /// Each page as it was after each write to it.
    pages: BTreeMap<usize, Vec<Box<[u8]>>>,
    /// Each size that the file had.
    sizes: Vec<usize>,
}

impl Stage {
    fn new(size: usize) -> Self {
        Self {
            cut: size,
            pages: BTreeMap::new(),
            sizes: vec![size],
        }
    }
}

impl File {
    fn new() -> Self {
        Self {
            now: Vec::new(),
            durable: Vec::new(),
            stages: vec![Stage::new(0)],
        }
    }

    fn write(&mut self, offset: usize, data: &[u8]) {
        let end = offset + data.len();
        if self.now.len() < end {
            self.now.resize(end, 0);
            self.stage().sizes.push(end);
        }
        self.now[offset..end].copy_from_slice(data);
        for page in offset / PAGE..end.div_ceil(PAGE) {
            self.page_changed(page);
        }
    }

    fn resize(&mut self, size: usize) {
        let cuts = size < self.now.len();
        self.now.resize(size, 0);
        if cuts {
            self.stages.push(Stage::new(size));
            if !size.is_multiple_of(PAGE) {
                self.page_changed(size / PAGE);
            }
        } else {
            self.stage().sizes.push(size);
        }
    }

    fn page_changed(&mut self, page: usize) {
        let end = ((page + 1) * PAGE).min(self.now.len());
        let mut bytes = self.now[page * PAGE..end].to_vec();
        bytes.resize(PAGE, 0);
        let versions = self.stage().pages.entry(page).or_default();
        versions.push(bytes.into());
    }

    fn stage(&mut self) -> &mut Stage {
        self.stages.last_mut().expect("there is always one")
    }

    fn sync(&mut self) {
        for stage in &self.stages {
            self.durable.truncate(stage.cut);
            for (page, versions) in &stage.pages {
                put_page(&mut self.durable, *page, versions.last().unwrap());
            }
        }
        self.durable.resize(self.now.len(), 0);
        self.stages = vec![Stage::new(self.now.len())];
    }

    /// The pages count as clean now, and never come to the disk unless they are written again.
    fn failed_sync(&mut self) {
        self.stages.iter_mut().for_each(|stage| stage.pages.clear());
    }

    fn survive(&self, luck: Luck, random: &mut Rng) -> Vec<u8> {
        let last = match luck {
            Luck::Nothing => 0,
            Luck::Everything | Luck::AllButOne => self.stages.len() - 1,
            Luck::Pages | Luck::Sectors => random.usize(0..self.stages.len()),
        };
        let mut disk = self.durable.clone();
        let mut pages: BTreeMap<usize, Vec<&[u8]>> = BTreeMap::new();
        for stage in &self.stages[..=last] {
            disk.truncate(stage.cut);
            pages.retain(|page, _| page * PAGE < stage.cut);
            for (page, versions) in &stage.pages {
                let known = pages.entry(*page).or_default();
                known.extend(versions.iter().map(|version| &version[..]));
            }
        }
        let sizes = &self.stages[last].sizes;
        let size = match luck {
            Luck::Nothing => sizes[0],
            Luck::Everything | Luck::AllButOne => sizes[sizes.len() - 1],
            Luck::Pages | Luck::Sectors => *random.choice(sizes).unwrap(),
        };
        let missing = match luck {
            Luck::AllButOne => random.choice(pages.keys().copied()),
            _ => None,
        };
        for (page, versions) in pages {
            let chosen = match luck {
                Luck::Nothing => continue,
                Luck::AllButOne if missing == Some(page) => continue,
                Luck::Everything | Luck::AllButOne => versions[versions.len() - 1].to_vec(),
                Luck::Pages | Luck::Sectors => {
                    let mut before = disk.get(page * PAGE..).unwrap_or_default().to_vec();
                    before.resize(PAGE, 0);
                    let all: Vec<&[u8]> = std::iter::once(&before[..]).chain(versions).collect();
                    choose(&all, luck, random)
                }
            };
            put_page(&mut disk, page, &chosen);
        }
        disk.resize(size, 0);
        disk
    }
}

/// One of the versions, or sectors of two of them.
fn choose(versions: &[&[u8]], luck: Luck, random: &mut Rng) -> Vec<u8> {
    let first = random.usize(0..versions.len());
    let mut page = versions[first].to_vec();
    if luck == Luck::Sectors {
        let second = versions[random.usize(first..versions.len())];
        for at in (0..PAGE).step_by(SECTOR).filter(|_| random.bool()) {
            page[at..at + SECTOR].copy_from_slice(&second[at..at + SECTOR]);
        }
    }
    page
}

fn put_page(file: &mut Vec<u8>, page: usize, bytes: &[u8]) {
    let end = (page + 1) * PAGE;
    if file.len() < end {
        file.resize(end, 0);
    }
    file[page * PAGE..end].copy_from_slice(bytes);
}

/// The record of the same run on a disk that answers each fsync without having written
/// anything. SQLite with `synchronous=OFF` makes the same calls less the fsyncs, so to the
/// disk the two are the same.
pub(crate) fn without_syncs(log: &[Record]) -> Vec<Record> {
    let lied_to = |record: &Record| match record.op {
        Op::Sync { .. } | Op::SyncFolder => Record {
            op: Op::NoSync,
            ..record.clone()
        },
        _ => record.clone(),
    };
    log.iter().map(lied_to).collect()
}

/// The record of the same run with `synchronous=NORMAL`: of the write-ahead log's fsyncs only
/// those are left that come before pages are copied into the buffer.
pub(crate) fn without_commit_syncs(log: &[Record]) -> Vec<Record> {
    let created = |suffix: &str| -> BTreeSet<Ino> {
        let with_suffix = |record: &Record| match &record.op {
            Op::Create { name, ino } if name.ends_with(suffix) => Some(*ino),
            _ => None,
        };
        log.iter().filter_map(with_suffix).collect()
    };
    let (buffers, logs) = (created(".db"), created("-wal"));
    let mut copies = false;
    let mut left = log.to_vec();
    for record in left.iter_mut().rev() {
        match record.op {
            Op::Write { ino, .. } if buffers.contains(&ino) => copies = true,
            Op::Sync { ino } if logs.contains(&ino) && !std::mem::take(&mut copies) => {
                record.op = Op::NoSync;
            }
            _ => {}
        }
    }
    left
}

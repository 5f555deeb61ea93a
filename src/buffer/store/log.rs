//! The write-ahead log as it lies on the disk, before SQLite opens it.
//!
//! SQLite reads a log up to the first frame whose checksum is wrong, and takes the rest for the
//! torn end of what was being written when the power went. Mostly it is. But each commit is
//! synced before the next one is written, so no more than one commit can be torn: several of them
//! behind a broken frame mean that a page went bad, and what SQLite would throw away was
//! promised. Then the sound frames are applied to a copy of the file, and the broken ones left
//! out.
//!
//! That no more than one commit is torn holds because [`renew`] comes before the first commit to a
//! log that was left: what was written there and not synced would be a second one.
//!
//! The format: <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>.

use std::fs::File;
use std::io::{ErrorKind, Read, Result};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{APPLICATION_ID, PAGE_SIZE};
use crate::buffer::beside;

const PAGE: usize = PAGE_SIZE as usize;
const FRAME_HEADER: usize = 24;
const FRAME: usize = FRAME_HEADER + PAGE;
const LOG_HEADER: usize = 32;

/// The last bit says in which byte order checksums are computed: 1 for the big end first.
const MAGIC: u32 = 0x377f_0682;
const VERSION: u32 = 3_007_000;

/// After so many frames of other generations nothing of this one comes any more: a mebibyte.
/// The rest of the file may be long, and it has to be read from the disk.
const FAR: u32 = 128;

/// A log that has more in it than SQLite would read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::buffer) struct Damage {
    /// Commits behind the first broken frame.
    pub(in crate::buffer) commits_behind: u32,
    /// Frames that cannot be read, among those that can.
    pub(in crate::buffer) broken: u32,
    /// The frame that ends the last commit which is surely no torn one.
    last: u32,
}

/// Whether the log of the buffer at `path` is damaged in its middle.
pub(in crate::buffer) fn look(path: &Path) -> Result<Option<Damage>> {
    let Some(mut frames) = Frames::open(path)? else {
        return Ok(None);
    };
    // A run is a row of sound frames; SQLite reads the first, if it begins at the header.
    let (mut run, mut is_first) = (Run::default(), frames.salts.is_some());
    let (mut found, mut broken, mut commits, mut far) = (None, 0, 0, 0);
    loop {
        let frame = frames.next()?;
        if let Some(Frame::Sound { commit, .. }) = &frame {
            far = 0;
            if commit.is_some() {
                run.commits += 1;
                run.last = frames.count;
            }
            continue;
        }
        let ended = std::mem::take(&mut run);
        if !std::mem::take(&mut is_first) {
            commits += ended.commits;
            if ended.commits >= 2 {
                found = Some(Damage {
                    commits_behind: commits,
                    broken,
                    last: ended.last,
                });
            }
        }
        match frame {
            None => return Ok(found),
            Some(Frame::Foreign) if far == FAR => return Ok(found),
            Some(Frame::Foreign) => far += 1,
            Some(_) => far = 0,
        }
        broken += 1;
    }
}

#[derive(Default)]
struct Run {
    commits: u32,
    /// The last frame of the last of them.
    last: u32,
}

/// Puts what the damaged log of `path` holds into `copy`, a new file; `false` where the log is
/// not damaged.
pub(super) fn salvage(path: &Path, copy: &Path) -> Result<bool> {
    let (Some(damage), Some(mut frames)) = (look(path)?, Frames::open(path)?) else {
        return Ok(false);
    };
    std::fs::copy(path, copy)?;
    let (file, copy) = (
        File::open(path)?,
        File::options().read(true).write(true).open(copy)?,
    );
    let mut pages = 0;
    while frames.count < damage.last
        && let Some(frame) = frames.next()?
    {
        match frame {
            Frame::Sound { page, commit } => {
                copy.write_all_at(frames.page(), offset_of(page))?;
                pages = commit.unwrap_or(pages);
            }
            // It may have been copied into the file before it went bad here. Were it left out,
            // an older version of the page would take the place of that.
            Frame::Broken { page } => {
                let mut bytes = vec![0; PAGE];
                if file.read_exact_at(&mut bytes, offset_of(page)).is_ok() && frames.was(&bytes) {
                    copy.write_all_at(&bytes, offset_of(page))?;
                }
            }
            Frame::Foreign => {}
        }
    }
    copy.set_len(u64::from(pages) * u64::from(PAGE_SIZE))?;
    // The first page says how large the file is, if it says of itself that it is up to date.
    // <https://www.sqlite.org/fileformat2.html#in_header_database_size>
    let mut change_counter = [0; 4];
    copy.read_exact_at(&mut change_counter, 24)?;
    copy.write_all_at(&pages.to_be_bytes(), 28)?;
    copy.write_all_at(&change_counter, 92)?;
    Ok(true)
}

/// Makes durable what is in the log. Its last commit may be read back from memory, and lost all
/// the same with the power: a process that was killed had not synced it, or the fsync failed. Then
/// the kernel takes it for written, and so does the next fsync; so it is written again first.
/// Without that, what is behind it in the log would be lost with it, and what is copied into the
/// file would be of a later time than the log, whose pages take precedence.
/// <https://wiki.postgresql.org/wiki/Fsync_Errors>
pub(in crate::buffer) fn renew(path: &Path) -> Result<()> {
    let Some(mut frames) = Frames::open(path)? else {
        return Ok(());
    };
    let (mut begin, mut end) = (0, 0);
    while let Some(Frame::Sound { commit, .. }) = frames.next()? {
        if commit.is_some() {
            begin = end;
            end = LOG_HEADER as u64 + u64::from(frames.count) * FRAME as u64;
        }
    }
    let log = File::options().read(true).write(true).open(log_of(path))?;
    let mut piece = vec![0; 1 << 20];
    while begin < end {
        let size = usize::try_from(end - begin).map_or(piece.len(), |left| left.min(piece.len()));
        let piece = piece.get_mut(..size).unwrap_or_default();
        log.read_exact_at(piece, begin)?;
        log.write_all_at(piece, begin)?;
        begin += size as u64;
    }
    log.sync_data()
}

/// Whether the file says that it is a buffer.
pub(in crate::buffer) fn is_buffer(path: &Path) -> bool {
    let mut id = [0; 4];
    let read = File::open(path).and_then(|file| file.read_exact_at(&mut id, 68));
    read.is_ok() && i32::from_be_bytes(id) == APPLICATION_ID
}

fn open(path: &Path) -> Result<Option<File>> {
    match File::open(log_of(path)) {
        Ok(log) => Ok(Some(log)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn log_of(path: &Path) -> PathBuf {
    beside(path, "-wal")
}

fn offset_of(page: u32) -> u64 {
    u64::from(page.saturating_sub(1)) * u64::from(PAGE_SIZE)
}

/// Two numbers that mark a generation: from one beginning of the log to the next.
type Salts = [u8; 8];

/// A checksum over all that came before.
type Sum = [u32; 2];

enum Frame {
    /// It continues the frame before.
    Sound {
        page: u32,
        /// The size of the file in pages, when it ends a commit.
        commit: Option<u32>,
    },
    /// Of this generation, and its checksum is wrong.
    Broken { page: u32 },
    /// Of another generation, or nothing that is known.
    Foreign,
}

/// Reads a log frame by frame.
struct Frames {
    log: std::io::BufReader<File>,
    buffer: Box<[u8; FRAME]>,
    /// Frames that were read.
    count: u32,
    is_big_endian: bool,
    /// Of the generation that is read. Where the header is broken: of the first two frames that
    /// belong together, since a log is always written from its beginning.
    salts: Option<Salts>,
    /// What the frame before says of itself, sound or not: the salts, and the sum up to there.
    before: Option<(Salts, Sum)>,
    /// The sum that the frame in the buffer continues.
    base: Option<Sum>,
}

impl Frames {
    /// `None`: no log, or none of ours.
    fn open(path: &Path) -> Result<Option<Self>> {
        let Some(log) = open(path)? else {
            return Ok(None);
        };
        let mut log = std::io::BufReader::with_capacity(64 << 10, log);
        let mut header = [0; LOG_HEADER];
        if !read_whole(&mut log, &mut header)? {
            return Ok(None);
        }
        let magic = word(&header, 0);
        let mut frames = Self {
            log,
            buffer: Box::new([0; FRAME]),
            count: 0,
            is_big_endian: cfg!(target_endian = "big"),
            salts: None,
            before: None,
            base: None,
        };
        if magic & !1 == MAGIC && word(&header, 4) == VERSION {
            frames.is_big_endian = magic & 1 == 1;
            let sum = [word(&header, 24), word(&header, 28)];
            if frames.sum([0, 0], header.get(..24).unwrap_or_default()) == sum {
                if word(&header, 8) != PAGE_SIZE {
                    return Ok(None);
                }
                let salts = salts(&header, 16);
                frames.salts = Some(salts);
                frames.before = Some((salts, sum));
            }
        }
        Ok(Some(frames))
    }

    /// The next one; `None` at the end of the file.
    fn next(&mut self) -> Result<Option<Frame>> {
        if !read_whole(&mut self.log, self.buffer.as_mut_slice())? {
            return Ok(None);
        }
        self.count += 1;
        let (page, commit) = (word(&*self.buffer, 0), word(&*self.buffer, 4));
        let salts = salts(&*self.buffer, 8);
        let own_sum = [word(&*self.buffer, 16), word(&*self.buffer, 20)];
        let before = self.before.replace((salts, own_sum));
        self.base = before.filter(|(of, _)| *of == salts).map(|(_, sum)| sum);
        if self.salts.is_some_and(|current| current != salts) || page == 0 {
            return Ok(Some(Frame::Foreign));
        }
        if self.was(self.page()) {
            self.salts = Some(salts);
            let commit = (commit > 0).then_some(commit);
            return Ok(Some(Frame::Sound { page, commit }));
        }
        Ok(Some(match self.salts {
            Some(_) => Frame::Broken { page },
            None => Frame::Foreign,
        }))
    }

    /// The page that the last frame holds.
    fn page(&self) -> &[u8] {
        self.buffer.get(FRAME_HEADER..).unwrap_or_default()
    }

    /// Whether the last frame held these bytes when it was written.
    fn was(&self, page: &[u8]) -> bool {
        let Some(base) = self.base else { return false };
        let head = self.buffer.get(..8).unwrap_or_default();
        self.sum(self.sum(base, head), page) == [word(&*self.buffer, 16), word(&*self.buffer, 20)]
    }

    fn sum(&self, [mut first, mut second]: Sum, bytes: &[u8]) -> Sum {
        let number = |bytes| match self.is_big_endian {
            true => u32::from_be_bytes(bytes),
            false => u32::from_le_bytes(bytes),
        };
        for pair in bytes.as_chunks::<8>().0 {
            let [a, b, c, d, e, f, g, h] = *pair;
            first = first
                .wrapping_add(number([a, b, c, d]))
                .wrapping_add(second);
            second = second
                .wrapping_add(number([e, f, g, h]))
                .wrapping_add(first);
        }
        [first, second]
    }
}

/// `false` where the file ends before that.
fn read_whole(from: &mut impl Read, into: &mut [u8]) -> Result<bool> {
    match from.read_exact(into) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(false),
        Err(error) => Err(error),
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    let word = bytes.get(at..).and_then(|rest| rest.first_chunk());
    word.map_or(0, |word| u32::from_be_bytes(*word))
}

fn salts(bytes: &[u8], at: usize) -> Salts {
    let salts = bytes.get(at..).and_then(|rest| rest.first_chunk());
    salts.copied().unwrap_or_default()
}

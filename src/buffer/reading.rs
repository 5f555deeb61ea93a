//! The reader: the one thread that reads, on a connection of its own.

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::error;

use super::store::{Reader, StoreError, try_reading};
use super::writer::{Command, Shared};

/// What cannot be read may be damaged, or the disk fails: so often it is looked which.
const LOOK_AT_DISK: Duration = Duration::from_secs(10);

/// What the reader is asked.
pub(super) enum Asked {
    Read(Read),
    /// To close the file, to drop `gone` then, and to wait until the other end of `until` is
    /// dropped.
    LetGo {
        gone: Sender<()>,
        until: Receiver<()>,
    },
    Close,
}

/// Says whether the file turned out to be damaged.
pub(super) type Read = Box<dyn FnOnce(Result<&Reader, StoreError>) -> bool + Send>;

/// Keeps the reader from the file until it is dropped.
pub(super) struct Away(#[expect(dead_code, reason = "it matters when it is dropped")] Sender<()>);

/// Returns when the reader has closed the file. `None`: there is no reader.
pub(super) fn send_away(reader: &mpsc::WeakSender<Asked>) -> Option<Away> {
    let ((gone, closed), (away, until)) = (channel(), channel());
    let let_go = Asked::LetGo { gone, until };
    reader.upgrade()?.blocking_send(let_go).ok()?;
    closed.recv().ok(); // nothing is ever sent: it is dropped
    Some(Away(away))
}

/// Follows the writer to each new file.
pub(super) fn run(
    path: &Path,
    mut asked: mpsc::Receiver<Asked>,
    shared: &Shared,
    commands: &mpsc::WeakSender<Command>,
) {
    let mut open: Option<(u64, Reader)> = None;
    let mut next_look = Instant::now();
    while let Some(asked) = asked.blocking_recv() {
        let read = match asked {
            Asked::Read(read) => read,
            Asked::LetGo { gone, until } => {
                open = None;
                drop(gone);
                until.recv().ok(); // as above
                continue;
            }
            Asked::Close => return,
        };
        let generation = shared.generation.load(Ordering::Acquire);
        let reader = match open.take_if(|(opened, _)| *opened == generation) {
            Some(reader) => Ok(reader),
            None if generation == 0 => Err(StoreError::NotOpen),
            None => Reader::open(path).map(|reader| (generation, reader)),
        };
        let is_damaged = match reader {
            Ok(reader) => read(Ok(&open.insert(reader).1)),
            Err(error) => read(Err(error)),
        };
        if !is_damaged || Instant::now() < next_look {
            continue;
        }
        next_look = Instant::now() + LOOK_AT_DISK;
        match (try_reading(path), commands.upgrade()) {
            (Ok(()), Some(commands)) => {
                // Where there is no room it is told at the next look: whoever makes room may be
                // waiting for this thread.
                commands.try_send(Command::Damaged { generation }).ok();
            }
            (Err(error), _) => {
                error!(%error, "The disk of the buffer cannot be read, what is there waits")
            }
            (Ok(()), None) => {}
        }
    }
}

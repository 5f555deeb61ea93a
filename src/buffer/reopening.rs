//! The time between a failure and the next opening, for those who wait for the writer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tracing::warn;

use super::opening::{Failure, Left, Opener};
use super::store::{Store, StoreError};
use super::writer::Command;
use super::{AppendError, Tally};

/// How often a writer that waits for the opening looks whether it is over, and answers whoever
/// waits meanwhile.
const OPEN_LOOK: Duration = Duration::from_millis(2);

/// Between two tries to open the file again.
const REOPEN_PAUSE: Duration = Duration::from_millis(200);

/// How long those who come meanwhile wait for it. Strapi gives an answer 10 s, and QStash
/// needs some of them if it must be asked instead.
const PATIENCE: Duration = Duration::from_secs(2);

/// How many of them.
const MAX_KEPT: usize = 1024;

/// Those who come while the buffer is being opened again. At first they wait, since Strapi
/// does, and what is published straight away overtakes what is in the buffer. Then they are
/// told, so that their events are published.
pub(super) struct Waiters<'a> {
    commands: &'a mut mpsc::Receiver<Command>,
    kept: Vec<Command>,
    /// Until when they wait.
    patience: Instant,
    cause: Failure,
}

impl<'a> Waiters<'a> {
    /// `kept` are those who wait already.
    pub(super) fn new(
        commands: &'a mut mpsc::Receiver<Command>,
        kept: Vec<Command>,
        cause: Failure,
    ) -> Self {
        Self {
            commands,
            kept,
            patience: Instant::now() + PATIENCE,
            cause,
        }
    }

    /// Tries until it works. `None` when the buffer was closed.
    pub(super) fn reopen(
        mut self,
        opener: &mut Opener,
        mut left: Left,
    ) -> Option<(Store, Tally, Vec<Command>)> {
        loop {
            // Apart, since to carry over a large file takes its time.
            let opened = std::thread::scope(|scope| {
                let opening = scope.spawn(|| opener.open(&mut left));
                while !opening.is_finished() {
                    self.attend()?;
                }
                Some(opening.join().unwrap_or(Err(StoreError::Panicked)))
            })?;
            match opened {
                Ok((store, tally)) => return Some((store, tally, self.kept)),
                Err(error) => {
                    if error.to_string() != self.cause.to_string() {
                        warn!(
                            error = &error as &dyn std::error::Error,
                            "Buffer cannot be opened, will try again"
                        );
                    }
                    self.cause = Arc::new(error);
                }
            }
            let pause = Instant::now() + REOPEN_PAUSE;
            while Instant::now() < pause {
                self.attend()?;
            }
        }
    }

    /// For a moment. `None` when the buffer was closed.
    fn attend(&mut self) -> Option<()> {
        std::thread::park_timeout(OPEN_LOOK);
        loop {
            match self.commands.try_recv() {
                Ok(Command::Close) | Err(mpsc::error::TryRecvError::Disconnected) => return None,
                // Of the file that is being left.
                Ok(Command::Damaged { .. }) => {}
                Ok(command) => self.kept.push(command),
                Err(mpsc::error::TryRecvError::Empty) => break,
            }
        }
        if Instant::now() > self.patience || self.kept.len() > MAX_KEPT {
            self.kept
                .drain(..)
                .for_each(|command| command.refuse(&self.cause));
        }
        Some(())
    }
}

impl Command {
    pub(super) fn refuse(self, cause: &Failure) {
        let failed = || AppendError::Commit(Arc::clone(cause));
        // Whoever asked may have gone.
        match self {
            Self::Append { done, .. } | Self::Settle { done, .. } => {
                done.send(Err(failed())).ok();
            }
            Self::Change { done, .. } => {
                done.send(Err(failed())).ok();
            }
            Self::Tidy
            | Self::SettleNow
            | Self::Probe { .. }
            | Self::Damaged { .. }
            | Self::Close => {}
            #[cfg(test)]
            Self::Panic => {}
        }
    }
}

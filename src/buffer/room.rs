//! Room for what comes: the limit, the disk, and the reserve for when it is full.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tracing::{info, warn};

use super::opening::Failure;
use super::reserve::Disk;
use super::store::StoreError;
use super::writer::{Waiting, Writer};
use super::{AppendError, Health, NewEvent};
use crate::clock::{self, Timestamp};

/// Between two tries to take the reserve back.
const RESERVE_LOOK: Duration = Duration::from_millis(500);

/// What must fit for the buffer to count as writable.
const TYPICAL_EVENT: u64 = 4096;

impl Writer<'_> {
    /// Whether these fit under the limit and onto the disk; history goes first when they do not.
    pub(super) fn make_room(
        &mut self,
        appends: &[Waiting<Arc<NewEvent>>],
    ) -> Result<Result<(), AppendError>, Failure> {
        if appends.is_empty() {
            return Ok(Ok(()));
        }
        // An event's row and its part of the indexes take less than this beside its bytes.
        const ROW_BYTES: usize = 1024;
        let incoming: usize = appends
            .iter()
            .map(|(event, _)| event.event.payload.body.len() + ROW_BYTES)
            .sum();
        let incoming = incoming as u64;
        if !self.reserve.is_held() && !self.take_reserve() {
            return Ok(Err(AppendError::Commit(Arc::new(StoreError::DiskFull))));
        }
        let limit_bytes = self.settings.max_bytes;
        loop {
            let used_bytes = self.store.used_bytes();
            let full = if used_bytes.saturating_add(incoming) > limit_bytes {
                AppendError::Full {
                    used_bytes,
                    limit_bytes,
                }
            } else if self.disk_takes(incoming)? {
                return Ok(Ok(()));
            } else {
                AppendError::Commit(Arc::new(StoreError::DiskFull))
            };
            if !self.forget_some_history()? {
                return Ok(Err(full));
            }
        }
    }

    /// Whether so many bytes more can be committed and copied into the file. Asked before, since
    /// what is committed and cannot be copied would take the room from what is to be settled.
    fn disk_takes(&self, incoming: u64) -> Result<bool, Failure> {
        let Some(disk) = Disk::of(&self.settings.path) else {
            return Ok(true); // it does not tell: the commit will
        };
        // Looking closer is not worth it then.
        const PLENTY: u64 = 256 << 20;
        Ok(disk.free >= PLENTY + 4 * incoming || disk.free >= self.store.growth(incoming)?)
    }

    /// Removes a little of the history, whatever its age; whether there was any.
    fn forget_some_history(&mut self) -> Result<bool, Failure> {
        let all = clock::now().plus(Duration::from_secs(24 * 3600)); // also of a clock that went back
        match self.purge(all) {
            Err(StoreError::DiskFull) => Ok(false),
            purged => Ok(purged?),
        }
    }

    pub(super) fn purge(&mut self, before: Timestamp) -> Result<bool, StoreError> {
        let is_some = self.store.purge(before)?;
        if is_some {
            self.shared.set_tally(self.store.tally());
        }
        Ok(is_some)
    }

    /// On a full disk: room for what is to be settled.
    pub(super) fn make_do(&mut self) -> Result<(), Failure> {
        if self.reserve.give_up() {
            warn!("The disk is full, the reserve is given up so that events go on being published");
        }
        match self.store.finish_checkpoint() {
            Ok(()) | Err(StoreError::DiskFull) => {}
            Err(error) => return Err(error.into()),
        }
        // Settled events are a little longer than pending ones.
        self.forget_some_history()?;
        Ok(())
    }

    /// Takes the reserve back, if there is room again; whether it is held.
    pub(super) fn take_reserve(&mut self) -> bool {
        let now = Instant::now();
        if self.reserve.is_held() || now < self.reserve_look {
            return self.reserve.is_held();
        }
        self.reserve_look = now + RESERVE_LOOK;
        let taken = self.reserve.take();
        if taken {
            info!(
                bytes = self.reserve.bytes(),
                "Reserve for a full disk is set aside"
            );
        }
        taken
    }

    pub(super) fn probe(&mut self) -> Result<(), Failure> {
        // Healthy again only with some room: at the brim the next event would not fit.
        let limit = self.settings.max_bytes - self.settings.max_bytes / 16;
        let has_room = self.take_reserve()
            && self.store.used_bytes() < limit
            && self.disk_takes(TYPICAL_EVENT)?;
        let health = match self.store.probe() {
            Ok(()) if !self.store.is_in_place() => return Err(Arc::new(StoreError::Moved)),
            Ok(()) if has_room => Health::Writable,
            Ok(()) | Err(StoreError::DiskFull) => Health::Full,
            Err(error) => return Err(error.into()),
        };
        self.shared.set_health(health);
        Ok(())
    }
}

//! A new buffer file, made under another name: under its own there is none, or a whole one.
//!
//! Whatever an attempt leaves that failed is not built upon. After an fsync that failed, or with
//! the power gone, it could be a file without its tables, or one of no size, for which SQLite
//! throws the log away.

use std::path::Path;

use super::files::{remove, remove_database, sync_folder};
use super::{Store, StoreError};
use crate::buffer::beside;

pub(in crate::buffer) fn create(path: &Path) -> Result<(), StoreError> {
    let new = beside(path, ".new");
    remove_database(&new).map_err(StoreError::Io)?;
    Store::open(&new, true)?.leave_log_behind()?;
    // SQLite would take for this file's what another one has left here.
    for suffix in ["-wal", "-shm", "-journal"] {
        remove(&beside(path, suffix)).map_err(StoreError::Io)?;
    }
    std::fs::rename(&new, path).map_err(StoreError::Io)?;
    sync_folder(path).map_err(StoreError::Io)
}

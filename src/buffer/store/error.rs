//! Why the file does not do what is asked, and what may be done about it.

use rusqlite::ErrorCode;

use super::FORMAT;
use crate::buffer::LockError;

/// Why the file could not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// There is no room on the disk.
    #[error("the disk is full")]
    DiskFull,
    /// The file was written by a version that this one does not know.
    #[error("the buffer file has format {found}, this version reads format {FORMAT}")]
    Format {
        /// What the file says.
        found: i32,
    },
    /// The file is some other program's.
    #[error("the file is not a strapi-qstash buffer")]
    NotABuffer,
    /// What is in the file makes no sense.
    #[error("the buffer file is damaged")]
    Damaged(#[source] rusqlite::Error),
    /// The bytes of an event are not those that were stored.
    #[error("the buffer file is damaged: the bytes of event {seq} do not match their checksum")]
    Checksum {
        /// Which event.
        seq: i64,
    },
    /// The reader met what makes no sense.
    #[error("the buffer file is damaged, a part of it cannot be read")]
    Unreadable,
    /// Another file is where the open one was, or none.
    #[error("the buffer file was deleted or replaced while it was in use")]
    Moved,
    /// The file could not be created, or the file system does not do what is asked.
    #[error("could not use the folder of the buffer file")]
    Io(#[source] std::io::Error),
    /// What was copied into the file did not come to the disk.
    #[error("could not write the buffer file to the disk")]
    Sync(#[source] std::io::Error),
    /// SQLite does not keep a write-ahead log on this file system.
    #[error(
        "the file system does not let SQLite keep a write-ahead log for the buffer file; choose a local disk with --data-dir"
    )]
    NoLog,
    /// Another process has the buffer, or its lock cannot be used.
    #[error(transparent)]
    Lock(#[from] LockError),
    /// It was never opened, or is closed.
    #[error("the buffer file is not open")]
    NotOpen,
    /// The writer or the checkpointer panicked; both start again.
    #[error("a thread of the buffer panicked")]
    Panicked,
    /// SQLite failed.
    #[error("the buffer file could not be used")]
    Sqlite(#[source] rusqlite::Error),
}

impl StoreError {
    /// Whether reading what is left into a new file would help. Of a file that was in use, and
    /// so was ours.
    pub(in crate::buffer) fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Damaged(_)
                | Self::Checksum { .. }
                | Self::Unreadable
                | Self::NotABuffer
                | Self::Moved
        )
    }

    /// Whether nothing is wrong with what was written: there was no room, or somebody else had
    /// the file.
    pub(in crate::buffer) fn may_pass(&self) -> bool {
        match self {
            Self::DiskFull => true,
            Self::Sqlite(error) => error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy),
            _ => false,
        }
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        match (&error, error.sqlite_error_code()) {
            (_, Some(ErrorCode::DiskFull)) => Self::DiskFull,
            (_, Some(ErrorCode::NotADatabase)) => Self::NotABuffer,
            (_, Some(ErrorCode::DatabaseCorrupt)) => Self::Damaged(error),
            // A column that holds what its table does not allow.
            (
                rusqlite::Error::FromSqlConversionFailure(..)
                | rusqlite::Error::IntegralValueOutOfRange(..)
                | rusqlite::Error::InvalidColumnType(..),
                _,
            ) => Self::Damaged(error),
            _ => Self::Sqlite(error),
        }
    }
}

//! The token, from a value or from a file that may change while the sidecar runs.
//!
//! The file is looked at (one `stat`) before each use, so a rotated secret is used by the
//! next publish, with no timer that wakes an idle machine.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use tracing::{info, warn};

use super::TokenSource;
use crate::secret::Secret;

/// Gives the token that is right now.
#[derive(Debug)]
pub(super) struct Token {
    source: TokenSource,
    read: Mutex<Read>,
}

#[derive(Debug, Default)]
struct Read {
    secret: Option<Secret>,
    stamp: Option<Stamp>,
}

/// Tells whether the file is the one that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(meta: &Metadata) -> Self {
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.len(),
            modified: (meta.mtime(), meta.mtime_nsec()),
        }
    }
}

impl Token {
    pub(super) fn new(source: TokenSource) -> Self {
        let read = match &source {
            TokenSource::Value(secret) => Read {
                secret: Some(secret.clone()),
                stamp: None,
            },
            TokenSource::File(_) => Read::default(),
        };
        let token = Self {
            source,
            read: Mutex::new(read),
        };
        token.refresh();
        token
    }

    /// The token; `None` while the file has never been readable.
    pub(super) fn current(&self) -> Option<Secret> {
        self.refresh();
        self.read
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .secret
            .clone()
    }

    /// Reads the file again if it changed; whether the token is another one now. A file that
    /// cannot be read leaves the last token in use: a secret is often replaced in two steps.
    pub(super) fn refresh(&self) -> bool {
        let TokenSource::File(path) = &self.source else {
            return false;
        };
        let stamp = std::fs::metadata(path).ok().map(|meta| Stamp::of(&meta));
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        if stamp == read.stamp {
            return false;
        }
        let first = read.secret.is_none();
        read.stamp = stamp;
        match read_file(path) {
            Ok(secret) => {
                let changed = read
                    .secret
                    .replace(secret.clone())
                    .is_none_or(|before| before != secret);
                if changed && !first {
                    info!(path = %path.display(), "QStash token was read again");
                }
                changed && !first
            }
            Err(error) => {
                warn!(path = %path.display(), error, "QStash token file cannot be read, the last token stays in use");
                false
            }
        }
    }
}

fn read_file(path: &Path) -> Result<Secret, String> {
    let text = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
    Secret::trimmed(&text).ok_or_else(|| "the file is empty".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_replaced_file_is_read_again_and_a_missing_one_keeps_the_last_token() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("token");
        std::fs::write(&path, "first\n").unwrap();
        let token = Token::new(TokenSource::File(path.clone()));
        assert_eq!(token.current().unwrap().expose(), "first");

        std::fs::remove_file(&path).unwrap();
        assert_eq!(token.current().unwrap().expose(), "first");
        std::fs::write(&path, "").unwrap();
        assert_eq!(token.current().unwrap().expose(), "first");
        std::fs::write(&path, " \"second\"\n").unwrap();
        assert_eq!(token.current().unwrap().expose(), "second");
        assert!(!token.refresh());
    }
}

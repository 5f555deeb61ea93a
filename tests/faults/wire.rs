//! HTTP/1.1 as bytes, for whoever stands between two ends or plays one of them.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt};

/// One request or answer whose length is told by `Content-Length`, as the sidecar's and the
/// development server's are.
#[derive(Debug, Clone)]
pub(crate) struct Whole {
    pub(crate) bytes: Vec<u8>,
    /// Where the body begins.
    pub(crate) body_at: usize,
}

impl Whole {
    /// Reads the next one; `None` when the other end has closed.
    pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Self>> {
        let mut bytes = Vec::new();
        let mut piece = [0; 16 << 10];
        let mut ends_at = usize::MAX;
        let mut body_at = 0;
        while bytes.len() < ends_at {
            // Nobody sends the next one before this one is answered, so there is no more to read.
            match stream.read(&mut piece).await? {
                0 if bytes.is_empty() => return Ok(None),
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                read => bytes.extend_from_slice(&piece[..read]),
            }
            if body_at == 0
                && let Some(at) = bytes.windows(4).position(|four| four == b"\r\n\r\n")
            {
                body_at = at + 4;
                ends_at = body_at + length(&bytes[..body_at])?;
            }
        }
        Ok(Some(Self { bytes, body_at }))
    }

    /// The head, for a person or to be searched.
    pub(crate) fn head(&self) -> String {
        String::from_utf8_lossy(&self.bytes[..self.body_at]).into_owned()
    }

    pub(crate) fn body(&self) -> &[u8] {
        &self.bytes[self.body_at..]
    }

    /// The value of a header, by its name in lower case.
    pub(crate) fn header(&self, name: &str) -> Option<String> {
        header(&self.head(), name)
    }
}

fn length(head: &[u8]) -> io::Result<usize> {
    let Some(value) = header(&String::from_utf8_lossy(head), "content-length") else {
        return Ok(0);
    };
    value.parse().map_err(io::Error::other)
}

fn header(head: &str, name: &str) -> Option<String> {
    head.lines().find_map(|line| {
        let (known, value) = line.split_once(':')?;
        known
            .eq_ignore_ascii_case(name)
            .then(|| value.trim().to_owned())
    })
}

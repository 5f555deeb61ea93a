//! A body that is too large to be in memory: read from the buffer while it is sent.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use super::window::Entry;
use crate::buffer::Buffer;
use crate::qstash::{Client, Message, Outcome};

/// Publishes an event whose body lies in the buffer in so many pieces. `None`: they could not
/// be read, so the failure is not QStash's.
pub(super) async fn publish(
    buffer: &Buffer,
    client: &Client,
    entry: &Entry,
    pieces: u32,
    message: Message<'_>,
    patience: Duration,
) -> Option<Outcome> {
    let (sender, receiver) = mpsc::channel(1);
    let body = Pieces {
        left: entry.event.size,
        pieces: receiver,
    };
    let feed = async move {
        for number in 0..pieces {
            let Ok(Some(bytes)) = buffer.piece(entry.seq(), number).await else {
                return false; // and the body ends too soon, which breaks the request off
            };
            if sender.send(bytes).await.is_err() {
                return true; // QStash wants no more of it
            }
        }
        true
    };
    let mut published = std::pin::pin!(client.publish_streamed(message, body, patience));
    tokio::select! {
        outcome = published.as_mut() => Some(outcome),
        all_read = feed => {
            let outcome = published.await;
            all_read.then_some(outcome)
        }
    }
}

struct Pieces {
    /// Bytes yet to come.
    left: u64,
    pieces: mpsc::Receiver<Bytes>,
}

#[derive(Debug, thiserror::Error)]
#[error("the body could not be read from the buffer")]
struct Unread;

impl Body for Pieces {
    type Data = Bytes;
    type Error = Unread;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Unread>>> {
        Poll::Ready(match ready!(self.pieces.poll_recv(context)) {
            Some(bytes) => {
                self.left = self.left.saturating_sub(bytes.len() as u64);
                Some(Ok(Frame::data(bytes)))
            }
            None if self.left == 0 => None,
            None => Some(Err(Unread)),
        })
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}

//! What goes into the buffer and comes out of it.

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::destination::Destination;
use crate::event::{Event, EventId, Facts};

/// The place of an event in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Seq(pub(super) i64);

impl Seq {
    /// Before all events.
    pub const START: Self = Self(0);

    /// As it is stored and shown.
    pub const fn raw(self) -> i64 {
        self.0
    }

    #[cfg(test)]
    pub(crate) const fn from_raw(raw: i64) -> Self {
        Self(raw)
    }
}

/// Where an event goes, as text: the buffer does not look into it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Address {
    /// The destination; events with equal texts are held together.
    pub destination: String,
    /// Delivery options of the route it took.
    pub options: String,
}

impl From<&Destination> for Address {
    fn from(destination: &Destination) -> Self {
        Self {
            destination: destination.to_string(),
            options: destination.options.to_text(),
        }
    }
}

/// An event to append.
#[derive(Debug)]
pub struct NewEvent {
    /// The event.
    pub event: Event,
    /// Where it goes; `None` for a dead letter without a route.
    pub address: Option<Address>,
    /// What is known of it already.
    pub fate: Fate,
}

/// In which state an event enters the buffer.
#[derive(Debug)]
pub enum Fate {
    /// To be published; `failed` says why a first attempt did not succeed.
    Pending {
        /// The first attempt's failure.
        failed: Option<String>,
    },
    /// Published already, before it came here.
    Delivered {
        /// QStash's message ids.
        message_ids: Vec<String>,
    },
    /// Cannot be published.
    Dead {
        /// Why not.
        reason: String,
        /// Attempts made.
        attempts: u32,
    },
}

/// A pending event, without its bytes.
#[derive(Debug, Clone)]
pub struct Pending {
    /// Its place in the order of arrival.
    pub seq: Seq,
    /// Our name for it.
    pub id: EventId,
    /// When it came.
    pub received_at: Timestamp,
    /// What was read from its body.
    pub facts: Facts,
    /// Where it goes.
    pub address: Address,
    /// Bytes of the body.
    pub size: u64,
    /// Whether headers and body are UTF-8, as a batch needs it.
    pub is_text: bool,
    /// Attempts so far.
    pub attempts: u32,
    /// How often it was replayed by hand.
    pub replays: u32,
    /// Not before this.
    pub due_at: Timestamp,
}

/// An event in whatever state, as far as replaying and discarding it need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its place in the order of arrival.
    pub seq: Seq,
    /// What was read from its body.
    pub facts: Facts,
    /// Whether it is known where it goes.
    pub has_address: bool,
}

/// What became of a pending event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settlement {
    /// Which.
    pub seq: Seq,
    /// What.
    pub verdict: Verdict,
}

/// The outcome of an attempt, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// QStash has it.
    Delivered {
        /// QStash's message ids.
        message_ids: Vec<String>,
    },
    /// Stays pending.
    Postponed {
        /// Not before this.
        due_at: Timestamp,
        /// Why it was not delivered.
        reason: String,
    },
    /// A dead letter.
    Dead {
        /// Why.
        reason: String,
        /// Whether an attempt was made for it (an event can die of age alone).
        attempted: bool,
    },
}

/// What a person wants to become of events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// To be published once more: dead letters and delivered ones, each with where it goes if
    /// that is not known yet.
    Replay(Vec<(Seq, Option<Address>)>),
    /// To be gone, whatever their state.
    Discard(Vec<Seq>),
}

/// How many events are in each state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// To be published.
    pub pending: i64,
    /// Published, kept as history.
    pub delivered: i64,
    /// Dead letters.
    pub dead: i64,
}

/// The bytes of an event, as they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPayload {
    /// Headers for the receiver.
    pub headers: Vec<(String, Bytes)>,
    /// The body.
    pub body: StoredBody,
}

/// A body: read whole, or, where it is large, to be read piece by piece, so that it is never
/// in memory as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StoredBody {
    /// All of it.
    Whole(Bytes),
    /// So many pieces, to be read with [`Buffer::piece`](super::Buffer::piece).
    Pieces {
        /// How many.
        count: u32,
    },
}

//! What goes into the buffer and comes out of it.

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::destination::{self, Destination};
use crate::event::{Event, EventId, Facts, Headers};

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

    /// From what was shown.
    pub const fn from_raw(raw: i64) -> Self {
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

impl Address {
    /// The destination without what may be secret in it.
    pub(crate) fn for_log(&self) -> Cow<'_, str> {
        destination::for_log(&self.destination)
    }
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
    /// The event; shared with whoever publishes it when it cannot be kept.
    pub event: Arc<Event>,
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

/// In which state an event is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventState {
    /// To be published.
    Pending,
    /// QStash has it.
    Delivered,
    /// A dead letter.
    Dead,
}

impl EventState {
    /// All of them, in the order in which an event meets them.
    pub const ALL: [Self; 3] = [Self::Pending, Self::Delivered, Self::Dead];

    /// As people write it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Dead => "dead",
        }
    }
}

impl std::str::FromStr for EventState {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let known = Self::ALL.into_iter().find(|state| state.as_str() == text);
        known.ok_or_else(|| format!("there is no state {text:?}: write pending, delivered or dead"))
    }
}

/// An event as people see it: all that is known but its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// Its place in the order of arrival.
    pub seq: Seq,
    /// Our name for it.
    pub id: EventId,
    /// When it came.
    pub received_at: Timestamp,
    /// When its commit began: milliseconds before the 202.
    pub stored_at: Timestamp,
    /// In which state it is.
    pub state: EventState,
    /// What was read from its body.
    pub facts: Facts,
    /// Where it goes; `None` for a dead letter without a route.
    pub destination: Option<String>,
    /// Delivery options of its route.
    pub options: String,
    /// Bytes of the body.
    pub size: u64,
    /// Attempts so far.
    pub attempts: u32,
    /// How often it was replayed by hand.
    pub replays: u32,
    /// Not before this, while it is pending.
    pub due_at: Timestamp,
    /// Since when it is no longer pending.
    pub settled_at: Option<Timestamp>,
    /// QStash's message ids.
    pub message_ids: Vec<String>,
    /// Why it is dead, or why the last attempt failed.
    pub reason: Option<String>,
}

/// Something that an event went through before the state it is in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// What it was.
    pub kind: StepKind,
    /// When, for the first time.
    pub first_at: Timestamp,
    /// When, for the last time.
    pub last_at: Timestamp,
    /// So often in a row, with the same words.
    pub count: u32,
    /// Why an attempt failed or the event was dead; QStash's message ids where it was delivered.
    pub words: String,
}

/// What a [`Step`] was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StepKind {
    /// An attempt that did not deliver it.
    Failed,
    /// It was delivered, before it was replayed.
    Delivered,
    /// It was a dead letter, before it was replayed.
    Dead,
    /// A person made it pending again.
    Replayed,
}

/// Which events are wanted; what is not set lets all pass.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Filter {
    /// In this state.
    pub state: Option<EventState>,
    /// Of this kind; `*` and `?` as in a route.
    pub kind: Option<String>,
    /// Of this content type; a pattern without `::` is for the model's name.
    pub uid: Option<String>,
    /// Of this document: the documentId, or the row id.
    pub document: Option<String>,
    /// Received at this time or later.
    pub since: Option<Timestamp>,
}

/// From where on a list is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ListFrom {
    /// The newest first, those before this one; `None`: from the last on.
    Newest(Option<Seq>),
    /// In the order of arrival, those after this one.
    Oldest(Seq),
}

/// A part of a list.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Page {
    /// The events that were found.
    pub events: Vec<Listed>,
    /// Where the list goes on; `None` at its end. A page may be short, or empty, and not the last.
    pub next: Option<Seq>,
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

/// How many events are in each state, and what became of all others that ever came, as of one
/// commit: none is in two places, or in none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// To be published.
    pub pending: i64,
    /// Published, kept as history.
    pub delivered: i64,
    /// Dead letters.
    pub dead: i64,
    /// Delivered, and no longer kept.
    pub forgotten: i64,
    /// Discarded by hand.
    pub discarded: i64,
    /// All that ever came.
    pub accepted: i64,
    /// Lost with a file that was damaged.
    pub lost: i64,
}

impl Tally {
    /// All that are accounted for: as many as ever came.
    pub fn sum(&self) -> i64 {
        self.pending + self.delivered + self.dead + self.forgotten + self.discarded + self.lost
    }
}

/// The bytes of an event, as they are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPayload {
    /// Headers for the receiver.
    pub headers: Headers,
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

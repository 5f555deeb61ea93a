//! What may be typed to operate a sidecar: `events`, and what its commands share.
//!
//! Each takes the flags and the environment of `serve` too, so that what runs the sidecar tells
//! them all they need; those that matter are in the help.

use clap::{Args, Subcommand};

use super::ServeArgs;

/// The commands of `events`.
#[derive(Debug, Subcommand)]
pub enum EventsCommand {
    /// List events, the newest first
    List(Box<ListArgs>),
    /// Tell all that is known of one event: what happened to it here, and what QStash did with it
    Show(Box<ShowArgs>),
    /// Publish events once more: dead letters, or delivered ones
    Replay(Box<ChangeArgs>),
    /// Delete events, whatever their state
    Discard(Box<ChangeArgs>),
    /// Write events as files that curl can post
    Export(Box<ExportArgs>),
}

/// Which events.
#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Which events")]
pub struct FilterArgs {
    /// In this state: pending, delivered or dead
    #[arg(long, value_name = "STATE")]
    pub state: Option<String>,
    /// Of this kind, with * and ?: entry.publish, 'entry.*'
    #[arg(long, value_name = "EVENT")]
    pub event: Option<String>,
    /// Of this content type, with * and ?: api::article.article, or a model's name: article
    #[arg(long, value_name = "UID")]
    pub uid: Option<String>,
    /// Of this document: its documentId, or its id in Strapi 4
    #[arg(long, value_name = "ID")]
    pub document: Option<String>,
    /// Received since then: 15m, 2h (ago), 2026-11-25, 2026-11-25T10:00:00Z (UTC)
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
}

impl FilterArgs {
    /// Whether nothing was said: all events are meant.
    pub fn is_empty(&self) -> bool {
        let Self {
            state,
            event,
            uid,
            document,
            since,
        } = self;
        [state, event, uid, document, since]
            .iter()
            .all(|value| value.is_none())
    }
}

/// The flags of `events list`.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Which events.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub limit: usize,
    /// Go on with what comes, and with what becomes of it, until interrupted
    #[arg(long)]
    pub follow: bool,
    /// One JSON object a line, for scripts
    #[arg(long)]
    pub json: bool,
    /// Fit the table into so many columns [default: the terminal's; all of it elsewhere]
    #[arg(long, value_name = "N")]
    pub width: Option<usize>,
    /// The flags of the sidecar.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// The flags of `events show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The event's id, or the beginning of it
    #[arg(value_name = "ID")]
    pub id: String,
    /// One JSON object
    #[arg(long)]
    pub json: bool,
    /// Do not ask QStash what became of it there
    #[arg(long)]
    pub offline: bool,
    /// Where the running sidecar's admin address is [default: as --admin-listen says]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// The flags of the sidecar.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// The flags of `events replay` and `events discard`.
#[derive(Debug, Args)]
pub struct ChangeArgs {
    /// The events' ids, or the beginnings of them; or else a filter
    #[arg(value_name = "ID", conflicts_with_all = ["state", "event", "uid", "document", "since"])]
    pub ids: Vec<String>,
    /// Which events.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Do not ask before it is done
    #[arg(long)]
    pub yes: bool,
    /// Tell the end of it as a JSON object
    #[arg(long)]
    pub json: bool,
    /// Where the running sidecar's admin address is [default: as --admin-listen says]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// The flags of the sidecar.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// The flags of `events export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The events' ids, or the beginnings of them; or else a filter
    #[arg(value_name = "ID", conflicts_with_all = ["state", "event", "uid", "document", "since"])]
    pub ids: Vec<String>,
    /// Which events.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// The folder to write into; made if there is none
    #[arg(long, short, value_name = "DIR")]
    pub out: String,
    /// Where curl is to post them, if the files are to say it
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// Tell the end of it as a JSON object
    #[arg(long)]
    pub json: bool,
    /// The flags of the sidecar.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// The flags of `check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// Only tell where an event of this kind would go, rule by rule
    #[arg(long, value_name = "EVENT")]
    pub event: Option<String>,
    /// The event's content type, such as api::article.article
    #[arg(long, value_name = "UID", requires = "event")]
    pub uid: Option<String>,
    /// The event's model [default: the last part of the UID]
    #[arg(long, value_name = "MODEL", requires = "event")]
    pub model: Option<String>,
    /// One JSON object a line, for scripts
    #[arg(long)]
    pub json: bool,
    /// Where the running sidecar's admin address is [default: as --admin-listen says]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// The flags of the sidecar.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// The commands of `topics`.
#[derive(Debug, Subcommand)]
pub enum TopicsCommand {
    /// List the URL groups with their endpoints
    List(Box<ListTopicsArgs>),
    /// Make a URL group of these endpoints; what waits for it goes out
    Create(Box<ChangeTopicArgs>),
    /// Add endpoints to a URL group
    Add(Box<ChangeTopicArgs>),
    /// Take endpoints out of a URL group; without any, remove the group
    Remove(Box<ChangeTopicArgs>),
}

/// The flags of `topics list`.
#[derive(Debug, Args)]
pub struct ListTopicsArgs {
    /// One JSON object a line, for scripts
    #[arg(long)]
    pub json: bool,
    /// The flags of the sidecar.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// The flags of the commands that change a URL group.
#[derive(Debug, Args)]
pub struct ChangeTopicArgs {
    /// The group's name: letters, digits, '_', '-' and '.'
    #[arg(value_name = "NAME")]
    pub name: String,
    /// URLs of endpoints, https://…, or with a name for each: site=https://…
    #[arg(value_name = "URL")]
    pub endpoints: Vec<String>,
    /// Do not ask before a group is removed
    #[arg(long)]
    pub yes: bool,
    /// Where the running sidecar's admin address is [default: as --admin-listen says]
    #[arg(long, value_name = "ADDR")]
    pub admin: Option<String>,
    /// The flags of the sidecar.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Flags of `serve` that tell where the buffer is.
pub(super) const OF_BUFFER: &[&str] = &["buffer", "data_dir"];

/// Flags of `serve` that tell where the running sidecar can be asked.
pub(super) const OF_ADMIN: &[&str] = &["admin_listen", "admin_token"];

/// Flags of `serve` that tell how QStash is reached.
pub(super) const OF_QSTASH: &[&str] =
    &["qstash_token", "qstash_token_file", "qstash_url", "ca_file"];

/// Flags of `serve` that tell where events go.
pub(super) const OF_ROUTING: &[&str] = &["topic", "route"];

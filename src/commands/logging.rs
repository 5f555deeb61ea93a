//! Starts the log: on stderr, for people on a terminal and for machines elsewhere.

use std::io::IsTerminal;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Layer, fmt};

use crate::config::{LogFormat, LogSettings};

/// Starts it, once a process; a second start changes nothing.
pub(super) fn start(settings: &LogSettings) {
    let filter: Targets = settings.filter.parse().unwrap_or_default(); // `config` has checked it
    let terminal = std::io::stderr().is_terminal();
    let format = settings.format.unwrap_or(if terminal {
        LogFormat::Text
    } else {
        LogFormat::Json
    });
    let lines = fmt::layer().with_writer(std::io::stderr);
    let lines = match format {
        LogFormat::Text => lines.with_ansi(terminal).with_target(false).boxed(),
        LogFormat::Json => lines
            .json()
            .flatten_event(true)
            .with_current_span(false)
            .boxed(),
    };
    let log = tracing_subscriber::registry().with(lines.with_filter(filter));
    log.try_init().ok(); // the log of a test is started already
}

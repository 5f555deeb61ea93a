//! Without the feature `otlp`.

use std::time::Duration;

use hyper::StatusCode;

use crate::event::{Event, EventId, Facts, Headers};
use crate::qstash::{ExtraRoots, Outcome};

pub(crate) struct Spans;

pub(crate) struct Receiving;

impl Spans {
    pub(crate) async fn from_environment(_: &ExtraRoots) -> Self {
        Self
    }

    pub(crate) fn receive(&self, _: &Event) -> Receiving {
        Receiving
    }

    pub(crate) fn received(&self, _: Receiving, _: StatusCode) {}

    pub(crate) fn published(
        &self,
        _: EventId,
        _: &Facts,
        _: &str,
        _: &Headers,
        _: &Outcome,
        _: Duration,
    ) {
    }

    pub(crate) async fn end(&self) {}
}

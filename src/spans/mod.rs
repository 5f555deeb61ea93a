//! Spans: what an event went through here, for the trace that its `traceparent` names.
//!
//! One when it is received and one each time it is published. They go to an OpenTelemetry
//! collector where the program is built with the feature `otlp`, and nowhere else; either way
//! the calls are the same.

#[cfg(not(feature = "otlp"))]
mod nowhere;
#[cfg(feature = "otlp")]
mod otlp;

#[cfg(not(feature = "otlp"))]
pub(crate) use self::nowhere::Spans;
#[cfg(feature = "otlp")]
pub(crate) use self::otlp::Spans;

//! Events as JSON, as the admin API and the command line give them: one form for both.

use serde_json::{Map, Value, json};

use crate::buffer::{EventState, Listed, Step, StepKind};

/// All that is known of an event but its bytes; what is not known is left out.
pub(crate) fn event(event: &Listed) -> Map<String, Value> {
    let document = event.facts.document.as_ref();
    let pending = event.state == EventState::Pending;
    let all = json!({
        "id": event.id.to_string(),
        "received_at": event.received_at.to_string(),
        "stored_at": event.stored_at.to_string(),
        "state": event.state.as_str(),
        "event": event.facts.kind,
        "model": event.facts.model,
        "uid": event.facts.uid,
        "document": document.map(|document| &document.id),
        "locale": document.and_then(|document| document.locale.as_ref()),
        "destination": event.destination,
        "options": (!event.options.is_empty()).then_some(&event.options),
        "size": event.size,
        "attempts": event.attempts,
        "replays": event.replays,
        "due_at": pending.then(|| event.due_at.to_string()),
        "settled_at": event.settled_at.map(|at| at.to_string()),
        "message_ids": (!event.message_ids.is_empty()).then_some(&event.message_ids),
        "reason": event.reason,
    });
    known(all)
}

/// What an event went through before the state it is in.
pub(crate) fn steps(steps: &[Step]) -> Value {
    let step = |step: &Step| {
        known(json!({
            "what": what(step.kind),
            "first_at": step.first_at.to_string(),
            "last_at": step.last_at.to_string(),
            "count": step.count,
            "words": (!step.words.is_empty()).then_some(&step.words),
        }))
    };
    steps.iter().map(step).collect()
}

fn what(kind: StepKind) -> &'static str {
    match kind {
        StepKind::Failed => "failed",
        StepKind::Delivered => "delivered",
        StepKind::Dead => "dead",
        StepKind::Replayed => "replayed",
    }
}

fn known(object: Value) -> Map<String, Value> {
    match object {
        Value::Object(mut fields) => {
            fields.retain(|_, value| !value.is_null());
            fields
        }
        _ => Map::new(),
    }
}

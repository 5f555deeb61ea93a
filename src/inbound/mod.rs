//! Inbound: where Strapi posts. Authorise, limit, read, route, make durable, answer.
//!
//! What it promises: a 202 only after the commit. What is authentic is taken, since Strapi
//! sends each webhook once; what cannot be made durable is published before the answer, and
//! only when that fails too is it refused. It does not know the forwarder: the buffer is all
//! they share.

mod admission;
mod direct;
mod request;
mod trace;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytesize::ByteSize;
use hyper::body::Incoming;
use hyper::header::{ALLOW, HeaderName, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, StatusCode};
use tokio::net::TcpListener;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::block_in_place;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{debug, error, warn};

pub(crate) use self::admission::Admission;
pub(crate) use self::request::{Unread, read as read_body};
use crate::buffer::{Buffer, Fate, NewEvent};
use crate::clock;
use crate::destination::{Destination, DestinationError, for_log};
use crate::event::{Event, EventId, Facts, NotAnObject, Payload, TRIGGER_TEST};
use crate::http::{self, Answer, plain};
use crate::metrics::Metrics;
use crate::qstash::Client;
use crate::router::{Router, Routing};
use crate::secret::Secret;
use crate::spans::Spans;

/// The paths that name a URL group, so that the URL of an old tutorial works with only its
/// host changed.
const GROUP_PATHS: [&str; 3] = ["/webhook/", "/v1/publish/", "/v2/publish/"];

/// Tells the sender our name for its event.
const EVENT_ID: HeaderName = HeaderName::from_static("x-event-id");

/// Strapi's client drops idle connections after 4 s unless it is told otherwise.
const KEEP_ALIVE: (HeaderName, HeaderValue) = (
    HeaderName::from_static("keep-alive"),
    HeaderValue::from_static("timeout=75"),
);

/// How long a connection of Strapi's that is idle may bring one more event after the stop. In
/// a busy second each of its connections does.
const LINGER: Duration = Duration::from_secs(1);

/// What inbound is told by flags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where to listen.
    pub listen: Vec<SocketAddr>,
    /// What `Authorization: Bearer` must carry; `None`: nothing is required.
    pub secret: Option<Secret>,
    /// Largest body taken, in bytes.
    pub max_body: u64,
}

/// What a request needs.
pub(crate) struct Inbound {
    pub(crate) settings: Settings,
    pub(crate) admission: Admission,
    pub(crate) router: Arc<Router>,
    pub(crate) buffer: Buffer,
    pub(crate) client: Arc<Client>,
    pub(crate) metrics: Arc<Metrics>,
    pub(crate) spans: Arc<Spans>,
}

/// Accepts connections until `shutdown`.
pub(crate) async fn serve(
    inbound: Arc<Inbound>,
    listener: TcpListener,
    shutdown: CancellationToken,
    tasks: TaskTracker,
) {
    let service = service_fn(move |request| {
        let inbound = Arc::clone(&inbound);
        async move { Ok::<_, Infallible>(inbound.handle(request).await) }
    });
    http::serve(listener, shutdown, LINGER, tasks, service).await;
}

/// Why a request is refused before it is an event.
enum Refused {
    /// Nothing is at its path.
    Path,
    /// Its path names something that is no URL group.
    Group(DestinationError),
    /// Not a POST.
    Method,
    /// The secret is wrong or missing.
    Secret,
    /// Its Content-Type is not JSON.
    ContentType,
    /// Its body did not come in.
    Body(Unread),
}

impl Inbound {
    async fn handle(&self, request: Request<Incoming>) -> Answer {
        let mut answer = match self.take(request).await {
            Ok(answer) => answer,
            Err(refused) => self.refuse(&refused),
        };
        answer.headers_mut().insert(KEEP_ALIVE.0, KEEP_ALIVE.1);
        answer
    }

    async fn take(&self, request: Request<Incoming>) -> Result<Answer, Refused> {
        let group = group_in_path(request.uri().path())?;
        if request.method() != Method::POST {
            return Err(Refused::Method);
        }
        let secret = self.settings.secret.as_ref();
        if secret.is_some_and(|secret| !request::is_authorised(request.headers(), secret)) {
            return Err(Refused::Secret);
        }
        if !request::is_json(request.headers()) {
            return Err(Refused::ContentType);
        }
        let (head, body) = request.into_parts();
        // The room is given back with the answer: by then the body is on disk, or published.
        let (body, _room) = request::read(body, self.settings.max_body, &self.admission)
            .await
            .map_err(Refused::Body)?;
        let id = EventId::new();
        let (facts, invalid) = match read_facts(&body) {
            Ok(facts) => (facts, None),
            Err(error) => (Facts::default(), Some(error)),
        };
        let facts = request::with_kind(facts, &head.headers);
        let mut headers = request::for_receiver(&head.headers, &facts.kind);
        trace::ensure(&mut headers, id);
        let payload = Payload { headers, body };
        let event = Event {
            id,
            received_at: clock::now(),
            facts,
            payload,
        };

        let receiving = self.spans.receive(&event);
        let mut answer = if let Some(error) = invalid {
            self.bury_invalid(event, &error).await
        } else {
            let routing = group.map_or_else(|| self.router.route(&event.facts), Routing::To);
            match event.facts.kind == TRIGGER_TEST {
                true => self.trigger(event, routing).await,
                false => self.accept(event, routing).await,
            }
        };
        self.spans.received(receiving, answer.status());
        // Hyper reads the next head into the map of this answer: this one is large enough for it.
        let mut headers = head.headers;
        headers.clear();
        headers.extend(std::mem::take(answer.headers_mut()));
        *answer.headers_mut() = headers;
        if let Ok(value) = HeaderValue::from_str(&id.to_string()) {
            answer.headers_mut().insert(EVENT_ID, value);
        }
        Ok(answer)
    }

    /// Makes an event durable, or else publishes it.
    async fn accept(&self, event: Event, routing: Routing) -> Answer {
        let destination = match routing {
            Routing::To(destination) => destination,
            Routing::Drop => {
                self.metrics.dropped.add();
                debug!(event.id = %event.id, event.kind = event.facts.kind, "Dropped by its route");
                return plain(StatusCode::ACCEPTED, "");
            }
            Routing::NoRoute => return self.bury_unrouted(event).await,
        };
        let event = Arc::new(event);
        let new = NewEvent {
            event: Arc::clone(&event),
            address: Some((&destination).into()),
            fate: Fate::Pending { failed: None },
        };
        let started = Instant::now();
        match self.buffer.append(new).await {
            Ok(()) => {
                self.metrics.ack_seconds.observe(started.elapsed());
                self.metrics.accepted_minutes.add();
                debug!(event.id = %event.id, event.kind = event.facts.kind, destination = %for_log(&destination.to_string()), "Accepted");
                plain(StatusCode::ACCEPTED, "")
            }
            Err(error) => self.publish_instead(&event, &destination, &error).await,
        }
    }

    async fn bury_unrouted(&self, event: Event) -> Answer {
        error!(event.id = %event.id, event.kind = event.facts.kind, event.model = event.facts.model, reason = "no route", "Event is a dead letter");
        self.metrics.dead_no_route.add();
        self.bury(
            event,
            "no route".to_owned(),
            plain(StatusCode::ACCEPTED, ""),
        )
        .await
    }

    /// Authentic, but no event: kept, so that nothing is lost, and told.
    async fn bury_invalid(&self, event: Event, error: &NotAnObject) -> Answer {
        error!(event.id = %event.id, %error, "Event is a dead letter");
        self.metrics.dead_invalid.add();
        let answer = plain(
            StatusCode::UNPROCESSABLE_ENTITY,
            format!("{error}; it is kept as a dead letter"),
        );
        self.bury(event, error.to_string(), answer).await
    }

    async fn bury(&self, event: Event, reason: String, answer: Answer) -> Answer {
        match self
            .buffer
            .append(NewEvent {
                event: Arc::new(event),
                address: None,
                fate: Fate::Dead {
                    reason,
                    attempts: 0,
                },
            })
            .await
        {
            Ok(()) => {
                self.metrics.accepted_minutes.add();
                answer
            }
            Err(error) => {
                self.metrics.refused_unavailable.add();
                error!(
                    error = &error as &dyn std::error::Error,
                    "Event is lost: it could not be kept"
                );
                plain(
                    StatusCode::SERVICE_UNAVAILABLE,
                    format!("the event could not be kept: {error}"),
                )
            }
        }
    }

    /// The answer to what is refused, and the trace it leaves.
    fn refuse(&self, refused: &Refused) -> Answer {
        match refused {
            Refused::Path => plain(
                StatusCode::NOT_FOUND,
                "nothing here: Strapi's webhooks go to /webhook",
            ),
            Refused::Group(error) => plain(
                StatusCode::NOT_FOUND,
                format!("{error}. A path names a URL group; URLs go into --route"),
            ),
            Refused::Method => {
                let mut answer = plain(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "webhooks are posted here: use POST",
                );
                answer
                    .headers_mut()
                    .insert(ALLOW, HeaderValue::from_static("POST"));
                answer
            }
            Refused::Secret => {
                self.metrics.refused_unauthorized.add();
                let text = "wrong or missing secret: set the header 'Authorization: Bearer SECRET' in Strapi's webhook";
                plain(StatusCode::UNAUTHORIZED, text)
            }
            Refused::ContentType => {
                self.metrics.refused_content_type.add();
                plain(
                    StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    "the Content-Type must be application/json",
                )
            }
            Refused::Body(Unread::TooLarge) => {
                self.metrics.refused_too_large.add();
                let limit = ByteSize(self.settings.max_body);
                error!(%limit, "Event is lost: its body is larger than --max-body");
                plain(
                    StatusCode::PAYLOAD_TOO_LARGE,
                    format!("the body is larger than {limit}; raise --max-body"),
                )
            }
            Refused::Body(Unread::TooSlow) => {
                self.metrics.refused_incomplete.add();
                warn!("Request gave no more of its body in time");
                plain(
                    StatusCode::REQUEST_TIMEOUT,
                    "the body did not arrive in time",
                )
            }
            Refused::Body(Unread::Broken(error)) => {
                self.metrics.refused_incomplete.add();
                warn!(%error, "Request ended before its body");
                plain(StatusCode::BAD_REQUEST, "the body did not arrive whole")
            }
        }
    }
}

/// What the body tells. Reading a large one takes tens of milliseconds, in which other threads take
/// over. Nothing is waited for: a connection that breaks meanwhile would take the event along.
fn read_facts(body: &[u8]) -> Result<Facts, NotAnObject> {
    const LARGE: usize = 256 << 10;
    let can_step_aside = Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread;
    match body.len() >= LARGE && can_step_aside {
        true => block_in_place(|| Facts::read(body)),
        false => Facts::read(body),
    }
}

/// The group that a path names; `None` for the path that leaves it to the routes.
fn group_in_path(path: &str) -> Result<Option<Destination>, Refused> {
    if matches!(path, "/webhook" | "/webhook/") {
        return Ok(None);
    }
    let name = GROUP_PATHS
        .iter()
        .find_map(|prefix| path.strip_prefix(prefix))
        .ok_or(Refused::Path)?;
    Destination::group(name).map(Some).map_err(Refused::Group)
}

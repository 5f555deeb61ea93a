//! The page of `dev`: each event's way while it happens, and switches that make the receiver fail
//! and take QStash away.
//!
//! `GET /` is the page; `GET /live` tells it what happens (server-sent events: `state`, `ways`
//! once, then `way` for each change); `GET /ways/{id}` has all about one message. Changes are
//! POSTs in JSON: `/sample`, `/catcher`, `/qstash`, `/speed`.
//!
//! `ways` gathers what became of each message, `live` tells it to the pages that are open.

mod live;
mod ways;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Either, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, broadcast};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::live::{MAX_BEHIND, MAX_STREAMS, Stream};
use self::ways::Ways;
use super::samples::SAMPLES;
use crate::buffer::Buffer;
use crate::clock::{self, Timestamp};
use crate::dev_server::{Catcher, DevServer, Fault, Reply};
use crate::http::{self, Answer, plain};
use crate::page;
use crate::secret::Secret;

/// The largest body of a change.
const MAX_BODY: usize = 4 << 10;

/// Samples sent by one click.
const MAX_SAMPLES: usize = 100;

/// How long the quotas last that the page has QStash claim.
const QUOTA: Duration = Duration::from_secs(30);
const BURST: Duration = Duration::from_secs(5);

/// The longest that the page has the catcher take: longer than anything waits for it.
const MAX_DELAY_MS: u64 = 3_600_000;

/// The parts of the chain that the page shows and switches.
pub(super) struct Parts {
    pub(super) webhook: SocketAddr,
    pub(super) secret: Option<Secret>,
    pub(super) buffer: Buffer,
    pub(super) server: DevServer,
    pub(super) catcher: Catcher,
}

/// The running page.
struct Page {
    listen: SocketAddr,
    parts: Parts,
    ways: Mutex<Ways>,
    switches: Mutex<Switches>,
    /// What to tell open pages.
    told: broadcast::Sender<Bytes>,
    streams: Arc<Semaphore>,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// How the page has set the chain.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Switches {
    qstash: Away,
    catcher: Failing,
}

/// In which way QStash is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Away {
    None,
    Refuse,
    Hang,
    Quota,
    Burst,
    Unauthorized,
    Error,
}

/// How the catcher answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Failing {
    status: u16,
    delay_ms: u64,
    every: u64,
}

#[derive(Deserialize)]
struct SampleBody {
    count: usize,
}

#[derive(Deserialize)]
struct QstashBody {
    away: Away,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SpeedBody {
    time_scale: f64,
}

/// An answer, whole or bit by bit.
type PageAnswer = Response<Either<Full<Bytes>, Stream>>;

/// Serves the page until `shutdown`, with all work on `tasks`.
pub(super) fn start(
    listener: TcpListener,
    listen: SocketAddr,
    parts: Parts,
    tasks: &TaskTracker,
    shutdown: &CancellationToken,
) {
    let page = Arc::new(Page {
        listen,
        parts,
        ways: Mutex::default(),
        switches: Mutex::new(Switches {
            qstash: Away::None,
            catcher: Failing {
                status: 200,
                delay_ms: 0,
                every: 1,
            },
        }),
        told: broadcast::Sender::new(MAX_BEHIND),
        streams: Arc::new(Semaphore::new(MAX_STREAMS)),
        tasks: tasks.clone(),
        shutdown: shutdown.clone(),
    });
    tasks.spawn(Arc::clone(&page).follow());
    tasks.spawn(Arc::clone(&page).look());
    let service = service_fn(move |request| {
        let page = Arc::clone(&page);
        async move { Ok::<_, Infallible>(page.answer(request).await) }
    });
    let serving = http::serve(
        listener,
        shutdown.clone(),
        Duration::ZERO,
        tasks.clone(),
        service,
    );
    tasks.spawn(serving);
}

impl Page {
    async fn answer(self: &Arc<Self>, request: Request<Incoming>) -> PageAnswer {
        let refused = page::refuse(request.method(), request.headers(), self.listen);
        let mut answer = match refused {
            Some(refused) => refused.map(Either::Left),
            None => self.route(request).await,
        };
        page::protect(answer.headers_mut());
        answer
    }

    async fn route(self: &Arc<Self>, request: Request<Incoming>) -> PageAnswer {
        let path = request.uri().path().to_owned();
        let whole = match (request.method(), path.as_str()) {
            (&Method::GET | &Method::HEAD, "/") => {
                page::asset("text/html", include_str!("page.html"))
            }
            (&Method::GET | &Method::HEAD, "/dev.js") => {
                page::asset("text/javascript", include_str!("page.js"))
            }
            (&Method::GET, "/live") => return self.live(),
            (&Method::GET, path) => match path.strip_prefix("/ways/") {
                Some(id) => self.details(id),
                None => page::shared(path).unwrap_or_else(not_found),
            },
            (&Method::POST, "/sample" | "/catcher" | "/qstash" | "/speed") => {
                self.change(&path, request).await
            }
            (_, "/sample" | "/catcher" | "/qstash" | "/speed") => {
                plain(StatusCode::METHOD_NOT_ALLOWED, "use POST\n")
            }
            (&Method::HEAD, path) => page::shared(path).unwrap_or_else(not_found),
            _ => plain(StatusCode::METHOD_NOT_ALLOWED, "use GET\n"),
        };
        whole.map(Either::Left)
    }

    fn details(&self, id: &str) -> Answer {
        match self.ways().details(id) {
            Some(details) => http::json(StatusCode::OK, &details),
            None => not_found(),
        }
    }

    async fn change(self: &Arc<Self>, path: &str, request: Request<Incoming>) -> Answer {
        let kind = request.headers().get(CONTENT_TYPE);
        if kind.is_none_or(|kind| kind != "application/json") {
            return plain(StatusCode::UNSUPPORTED_MEDIA_TYPE, "use application/json\n");
        }
        let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
        let Ok(body) = body.map(|body| body.to_bytes()) else {
            return plain(StatusCode::PAYLOAD_TOO_LARGE, "too large\n");
        };
        let changed = match path {
            "/sample" => self.send_samples(&body).await,
            "/catcher" => read(&body).and_then(|failing| self.set_catcher(failing)),
            "/qstash" => self.set_qstash(&body).await,
            _ => read(&body).and_then(|speed| self.set_speed(&speed)),
        };
        match changed {
            Ok(()) => {
                self.tell_state().await;
                http::json(StatusCode::OK, &json!({}))
            }
            Err(Refused(why)) => plain(StatusCode::BAD_REQUEST, format!("{why}\n")),
        }
    }

    async fn send_samples(&self, body: &[u8]) -> Result<(), Refused> {
        let SampleBody { count } = read(body)?;
        if !(1..=MAX_SAMPLES).contains(&count) {
            return Err(bad("count: between 1 and 100"));
        }
        let (webhook, secret) = (self.parts.webhook, self.parts.secret.as_ref());
        for sample in SAMPLES.iter().cycle().take(count) {
            let accepted = sample.send(webhook, secret).await;
            let accepted = accepted.map_err(|error| bad(&format!("{error:#}")))?;
            if !accepted.head.contains(" 202 ") {
                return Err(bad(&format!("the sidecar answered {}", accepted.head)));
            }
        }
        Ok(())
    }

    fn set_catcher(&self, wanted: Failing) -> Result<(), Refused> {
        let status = StatusCode::from_u16(wanted.status).ok();
        let status = status.filter(|status| (200..600).contains(&status.as_u16()));
        let status = status.ok_or_else(|| bad("status: between 200 and 599"))?;
        if wanted.delay_ms > MAX_DELAY_MS {
            return Err(bad("delay: an hour at most"));
        }
        if wanted.every == 0 {
            return Err(bad("every: above 0"));
        }
        let delay = Duration::from_millis(wanted.delay_ms);
        let mut reply = Reply::status(status).after(delay).every(wanted.every);
        // What QStash heeds with these.
        match wanted.status {
            429 => drop(reply.headers.insert(RETRY_AFTER, HeaderValue::from(5))),
            489 => {
                let value = HeaderValue::from_static("true");
                reply.headers.insert("upstash-nonretryable-error", value);
            }
            _ => {}
        }
        self.parts.catcher.respond_with(reply);
        self.switches().catcher = wanted;
        Ok(())
    }

    async fn set_qstash(self: &Arc<Self>, body: &[u8]) -> Result<(), Refused> {
        let QstashBody { away } = read(body)?;
        let until = match away {
            Away::Quota => Some(clock::now().plus(QUOTA)),
            Away::Burst => Some(clock::now().plus(BURST)),
            _ => None,
        };
        let reset = until.unwrap_or_default();
        let fault = match away {
            Away::None => Fault::None,
            Away::Refuse => Fault::Refuse,
            Away::Hang => Fault::Hang,
            Away::Quota => Fault::DailyQuota { reset },
            Away::Burst => Fault::BurstLimit { reset },
            Away::Unauthorized => Fault::Unauthorized,
            Away::Error => Fault::status(StatusCode::INTERNAL_SERVER_ERROR, "internal error"),
        };
        self.parts.server.faults().set(fault.clone()).await;
        self.switches().qstash = away;
        if let Some(until) = until {
            let page = Arc::clone(self);
            self.tasks.spawn(async move {
                tokio::select! {
                    () = page.shutdown.cancelled() => {}
                    () = page.lift(fault, until) => {}
                }
            });
        }
        Ok(())
    }

    /// Ends a limit when its time is over, unless something else was switched meanwhile.
    async fn lift(&self, fault: Fault, at: Timestamp) {
        tokio::time::sleep(at.since(clock::now())).await;
        let faults = self.parts.server.faults();
        if faults.current() == fault {
            faults.set(Fault::None).await;
            self.switches().qstash = Away::None;
            self.tell_state().await;
        }
    }

    fn set_speed(&self, wanted: &SpeedBody) -> Result<(), Refused> {
        let scale = wanted.time_scale;
        if !(scale > 0.0 && scale <= 1_000_000.0) {
            return Err(bad("timeScale: above 0, a million at most"));
        }
        self.parts.server.set_time_scale(scale);
        Ok(())
    }

    fn ways(&self) -> MutexGuard<'_, Ways> {
        // No code that holds the lock can panic half-way through a change.
        self.ways.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn switches(&self) -> MutexGuard<'_, Switches> {
        self.switches.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read<T: for<'a> Deserialize<'a>>(body: &[u8]) -> Result<T, Refused> {
    serde_json::from_slice(body).map_err(|error| bad(&error.to_string()))
}

/// A change that was not made, and why.
struct Refused(String);

fn bad(text: &str) -> Refused {
    Refused(text.to_owned())
}

fn not_found() -> Answer {
    plain(StatusCode::NOT_FOUND, "not found\n")
}

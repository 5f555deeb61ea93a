//! A receiving API: takes QStash's deliveries, checks that they are QStash's, and says which
//! event came.
//!
//! ```sh
//! QSTASH_CURRENT_SIGNING_KEY=sig_… QSTASH_NEXT_SIGNING_KEY=sig_… cargo run --example receiver
//! ```
//!
//! Without the variables it takes the keys of the development server (`strapi-qstash dev`).

use std::convert::Infallible;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use strapi_qstash::clock;
use strapi_qstash::dev_server::{DEVELOPMENT_CURRENT_KEY, DEVELOPMENT_NEXT_KEY};
use strapi_qstash::signature::{self, Keys};
use tokio::net::TcpListener;

/// No message of QStash's largest plan is larger.
const LARGEST_BODY: usize = 50 << 20;

/// How far QStash's clock and ours may be apart.
const TOLERANCE: Duration = Duration::from_secs(5);

#[tokio::main]
#[expect(clippy::print_stdout, reason = "it is what the example is for")]
async fn main() -> anyhow::Result<()> {
    let keys = Keys {
        current: variable("QSTASH_CURRENT_SIGNING_KEY", DEVELOPMENT_CURRENT_KEY),
        next: variable("QSTASH_NEXT_SIGNING_KEY", DEVELOPMENT_NEXT_KEY),
    };
    let listener = TcpListener::bind(variable("LISTEN", "127.0.0.1:3000")).await?;
    println!("Receiving at http://{}", listener.local_addr()?);
    loop {
        let (stream, _) = listener.accept().await?;
        let keys = keys.clone();
        let service = service_fn(move |request| receive(keys.clone(), request));
        let connection = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service);
        #[expect(
            clippy::disallowed_methods,
            reason = "an example has no drain that its tasks could hold up"
        )]
        tokio::spawn(connection);
    }
}

/// A 2xx tells QStash that the event is dealt with. Anything else, and it tries again.
#[expect(clippy::print_stdout, reason = "it is what the example is for")]
async fn receive(
    keys: Keys,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, Infallible> {
    let header = |name: &str| {
        let value = request
            .headers()
            .get(name)
            .and_then(|value| value.to_str().ok());
        value.unwrap_or_default().to_owned()
    };
    let (signature, kind, id) = (
        header(signature::HEADER),
        header("x-strapi-event"),
        header("webhook-id"),
    );
    // The signature is over the bytes: check it before anything reads them as JSON.
    let Ok(body) = Limited::new(request.into_body(), LARGEST_BODY)
        .collect()
        .await
    else {
        return Ok(answer(StatusCode::PAYLOAD_TOO_LARGE));
    };
    let body = body.to_bytes();
    // With the public URL of this API in place of `None`, a signature for another is refused.
    match signature::verify(&keys, &signature, &body, None, clock::now(), TOLERANCE) {
        Ok(_) => {
            // The id is the same for all deliveries of an event: remember it to drop repeats.
            println!("{kind} {id}: {} bytes, signature verified", body.len());
            Ok(answer(StatusCode::OK))
        }
        Err(error) => {
            println!("refused: {error}");
            Ok(answer(StatusCode::UNAUTHORIZED))
        }
    }
}

fn answer(status: StatusCode) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::default());
    *answer.status_mut() = status;
    answer
}

#[expect(
    clippy::disallowed_methods,
    reason = "an example has no command line that could read it"
)]
fn variable(name: &str, default: &str) -> String {
    std::env::var(name).unwrap_or_else(|_unset| default.to_owned())
}

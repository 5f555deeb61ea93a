//! `verify`: runs the receiving end in front of an API.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use anyhow::Context;
use reqwest::Url;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{info, warn};

use super::logging;
use super::serve::Signals;
use crate::cli::VerifyArgs;
use crate::config::{self, LogSettings, Mistakes};
use crate::receiver::{Receiver, Settings};
use crate::signature::Keys;

/// QStash's largest plan takes 50 MB a message.
const MAX_BODY: u64 = 50 << 20;

/// The longest that QStash waits for an answer, on its free plan.
const PATIENCE: Duration = Duration::from_secs(15 * 60);

/// Runs until SIGTERM or SIGINT, then finishes what is being passed on.
pub async fn run(args: &VerifyArgs) -> anyhow::Result<()> {
    let (settings, log, grace) = check(args)?;
    logging::start(&log);
    let listener = TcpListener::bind(settings.listen).await;
    let listener = listener.with_context(|| {
        format!(
            "could not listen on {}; is another program there? Choose another address with --listen",
            settings.listen
        )
    })?;
    let mut signals = Signals::listen()?;
    let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
    let (address, upstream) = (listener.local_addr()?, settings.upstream.clone());
    let checks_url = settings.public_url.is_some();
    let receiver = Receiver::new(settings, tasks.clone())?;
    tasks.spawn(receiver.serve(listener, stop.clone(), tasks.clone()));
    info!(version = env!("CARGO_PKG_VERSION"), %upstream, checks_url, "Deliveries go to http://{address}/");

    signals.wait().await;
    info!("Stopping");
    stop.cancel();
    tasks.close();
    tokio::select! {
        stopped = tokio::time::timeout(grace, tasks.wait()) => match stopped {
            Ok(()) => info!("Stopped"),
            Err(_elapsed) => warn!("Stopped at the end of the grace; QStash will try the rest again"),
        },
        () = signals.wait() => anyhow::bail!("stopped at once by a second signal; QStash will try the rest again"),
    }
    Ok(())
}

fn check(args: &VerifyArgs) -> Result<(Settings, LogSettings, Duration), Mistakes> {
    let mut mistakes = Mistakes::default();
    let listen = match config::given(&args.listen) {
        Some(text) => mistakes.check("--listen", config::address(text)),
        None => Some(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8791)),
    };
    let upstream = mistakes.check("--upstream", url(&args.upstream));
    let public_url = match config::given(&args.public_url) {
        Some(text) => mistakes.check("--public-url", url(text)).map(Some),
        None => Some(None),
    };
    let current = (
        "--current-signing-key",
        &args.current_signing_key,
        &args.current_signing_key_file,
    );
    let next = (
        "--next-signing-key",
        &args.next_signing_key,
        &args.next_signing_key_file,
    );
    let keys = (key(current, &mut mistakes), key(next, &mut mistakes));
    let roots = config::roots(&args.ca_file, &mut mistakes);
    let max_body = config::optional(&args.max_body, "--max-body", config::size, &mut mistakes);
    let patience = config::optional(
        &args.upstream_timeout,
        "--upstream-timeout",
        config::duration,
        &mut mistakes,
    );
    let grace = config::optional(
        &args.shutdown_grace,
        "--shutdown-grace",
        config::duration,
        &mut mistakes,
    );
    let log = config::log_settings(&args.log_format, &args.log, &mut mistakes);
    match (listen, upstream, public_url, keys, roots, log) {
        (
            Some(listen),
            Some(upstream),
            Some(public_url),
            (Some(current), Some(next)),
            Some(roots),
            Some(log),
        ) if mistakes.is_empty() => {
            let settings = Settings {
                listen,
                upstream,
                roots,
                keys: Keys { current, next },
                public_url,
                max_body: max_body.unwrap_or(MAX_BODY),
                patience: patience.unwrap_or(PATIENCE),
            };
            Ok((settings, log, grace.unwrap_or(Duration::from_secs(10))))
        }
        _ => Err(mistakes),
    }
}

/// A key from its value or its file; one is needed.
fn key(
    (flag, value, file): (&str, &Option<String>, &Option<String>),
    mistakes: &mut Mistakes,
) -> Option<String> {
    let secret = match (config::given(value), config::given(file)) {
        (Some(_), Some(_)) => {
            mistakes.add(
                flag,
                format_args!("there is a {flag}-file too: leave one of them out"),
            );
            None
        }
        (Some(value), None) => crate::secret::Secret::trimmed(value),
        (None, Some(path)) => config::read_secret(&format!("{flag}-file"), path, mistakes),
        (None, None) => {
            mistakes.add(
                flag,
                "the key is missing: copy it from the QStash console into the environment \
                 (QSTASH_CURRENT_SIGNING_KEY, QSTASH_NEXT_SIGNING_KEY), or name a file",
            );
            None
        }
    };
    secret.map(|secret| secret.expose().to_owned())
}

fn url(text: &str) -> Result<Url, String> {
    let wrong = |why: &str| format!("{why}: write an address such as http://127.0.0.1:3000");
    let url = Url::parse(text.trim()).map_err(|error| wrong(&error.to_string()))?;
    if !matches!(url.scheme(), "http" | "https")
        || url.query().is_some()
        || url.fragment().is_some()
    {
        return Err(wrong("it is no http:// or https:// URL without ? and #"));
    }
    Ok(url)
}

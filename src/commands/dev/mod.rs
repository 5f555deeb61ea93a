//! `dev`: the whole chain on one machine, with no account and no network: the sidecar, a
//! QStash development server, a catcher that plays the receiving API, and a page that shows it.

mod page;
mod samples;

use std::io::Write;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::logging;
use super::serve::Signals;
use crate::cli::{DevArgs, ServeArgs};
use crate::config::{self, Config};
use crate::dev_server::{
    self, Catcher, CatcherSettings, DEVELOPMENT_CURRENT_KEY, DEVELOPMENT_NEXT_KEY,
    DEVELOPMENT_TOKEN, DevServer, Progress, Received,
};
use crate::event::{Facts, STRAPI_EVENTS};
use crate::router::Routing;
use crate::secret::Secret;
use crate::sidecar::Sidecar;
use crate::sockets::{Inherited, Sockets};

/// The URL group of a chain that was given no route.
const GROUP: &str = "strapi";

/// How long the sample may take from end to end.
const SAMPLE_TIMEOUT: Duration = Duration::from_secs(10);

/// Runs until Ctrl-C, or until the sample has arrived.
pub async fn run(args: &DevArgs) -> anyhow::Result<()> {
    let chain = Chain::start(args).await?;
    let mut signals = Signals::listen()?;
    chain.introduce()?;
    let mut done = Ok(());
    if args.send_sample {
        done = chain.send_sample().await;
    } else {
        tokio::select! {
            () = signals.wait() => say("Stopping.")?,
            told = chain.tell() => done = told,
        }
    }
    chain.stop().await;
    done
}

/// All parts of the chain, running.
struct Chain {
    sidecar: Sidecar,
    page: Option<SocketAddr>,
    webhook: SocketAddr,
    secret: Option<Secret>,
    server: DevServer,
    catcher: Catcher,
    tasks: TaskTracker,
    shutdown: CancellationToken,
    grace: Duration,
    /// Holds the buffer, unless one was named.
    _folder: Option<tempfile::TempDir>,
}

impl Chain {
    async fn start(args: &DevArgs) -> anyhow::Result<Self> {
        let qstash_listener = listen(&args.qstash_listen, "--qstash-listen").await?;
        let catcher_listener = listen(&args.catcher_listen, "--catcher-listen").await?;
        // A sample on its way is told in words.
        let page_listener = if args.send_sample {
            None
        } else {
            Some(listen(&args.page_listen, "--page-listen").await?)
        };
        let server_settings = dev_server::Settings {
            time_scale: args
                .time_scale
                .parse()
                .ok()
                .filter(|scale: &f64| *scale > 0.0 && scale.is_finite())
                .with_context(|| {
                    format!(
                        "--time-scale: {:?} is no number above 0: write one such as 100",
                        args.time_scale
                    )
                })?,
            max_message: config::size(&args.max_message)
                .map_err(|error| anyhow::anyhow!("--max-message: {error}"))?,
            ..dev_server::Settings::default()
        };
        let server_url = format!("http://{}", qstash_listener.local_addr()?);
        let folder = match (&args.serve.buffer, &args.serve.data_dir) {
            (None, None) => Some(
                tempfile::tempdir().context("could not make a temporary folder for the buffer")?,
            ),
            _ => None,
        };
        let (config, warnings) =
            Config::from_args(&sidecar_args(&args.serve, server_url, folder.as_ref()))?;
        logging::start(&config.log);
        for warning in warnings {
            say(&format!("Note: {warning}"))?;
        }

        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let server = DevServer::start(
            qstash_listener,
            server_settings,
            tasks.clone(),
            shutdown.clone(),
        );
        let catcher = Catcher::start(
            catcher_listener,
            CatcherSettings::default(),
            tasks.clone(),
            shutdown.clone(),
        );
        for group in groups(&config) {
            server.upsert_endpoints(
                &group,
                &[(Some("catcher"), &catcher.url(&format!("/{group}")))],
            )?;
        }
        let (grace, secret) = (config.shutdown_grace, config.inbound.secret.clone());
        let admin = config.admin.as_ref().map(|admin| admin.listen);
        let sockets = Sockets::open(Inherited::default(), &config.inbound.listen, admin)?;
        let sidecar = Sidecar::start(config, &sockets).await?;
        let webhook = *sidecar
            .addresses()
            .first()
            .context("the sidecar listens nowhere")?;
        let page = page_listener.as_ref().map(TcpListener::local_addr);
        let page = page.transpose()?;
        if let (Some(listener), Some(address)) = (page_listener, page) {
            let parts = page::Parts {
                webhook,
                secret: secret.clone(),
                buffer: sidecar.buffer().clone(),
                server: server.clone(),
                catcher: catcher.clone(),
            };
            page::start(listener, address, parts, &tasks, &shutdown);
        }
        Ok(Self {
            sidecar,
            page,
            webhook,
            secret,
            server,
            catcher,
            tasks,
            shutdown,
            grace,
            _folder: folder,
        })
    }

    fn introduce(&self) -> anyhow::Result<()> {
        if let Some(page) = self.page {
            say(&format!(
                "Open http://{page}/ to see each event's way, to send samples, and to make things fail.\n"
            ))?;
        }
        let webhook = self.webhook;
        let server = self.server.url();
        say(&format!(
            "Everything runs on this machine:\n\
             \x20 sidecar                    http://{webhook}/webhook\n\
             \x20 QStash development server  {server}\n\
             \x20 catcher, the receiving API {}",
            self.catcher.url("/"),
        ))?;
        if let Some(admin) = self.sidecar.admin_address() {
            say(&format!("  status                     http://{admin}/"))?;
        }
        let (header, authorization) = match &self.secret {
            Some(_) => (
                "\n  Headers: Authorization with the value Bearer YOUR-SECRET",
                " -H 'Authorization: Bearer YOUR-SECRET'",
            ),
            None => ("", ""),
        };
        say(&format!(
            "\nIn Strapi (npm run develop): Settings > Webhooks > Create new webhook\n\
             \x20 Url: http://{webhook}/webhook{header}\n\
             \x20 Events: what you like, then Save. Trigger sends a test.\n\
             Or without Strapi:\n\
             \x20 curl http://{webhook}/webhook{authorization} -H 'Content-Type: application/json' \\\n\
             \x20   -d '{{\"event\":\"entry.publish\",\"model\":\"article\",\"uid\":\"api::article.article\",\"entry\":{{\"id\":1}}}}'\n\
             In your own code, for QStash's SDKs (Upstash's public values, for development only):\n\
             \x20 QSTASH_URL={server}\n\
             \x20 QSTASH_TOKEN={DEVELOPMENT_TOKEN}\n\
             \x20 QSTASH_CURRENT_SIGNING_KEY={DEVELOPMENT_CURRENT_KEY}\n\
             \x20 QSTASH_NEXT_SIGNING_KEY={DEVELOPMENT_NEXT_KEY}\n"
        ))
    }

    /// Tells what happens, until the end.
    async fn tell(&self) -> anyhow::Result<()> {
        say("Waiting for webhooks. Ctrl-C stops.")?;
        let (mut life, mut arrivals) = (self.server.subscribe(), self.catcher.subscribe());
        loop {
            tokio::select! {
                step = life.recv() => match step {
                    Ok(step) => tell_progress(&step.progress, &step.message)?,
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(missed)) => say(&format!("  … {missed} steps not shown"))?,
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return Ok(()),
                },
                arrival = arrivals.recv() => match arrival {
                    Ok(received) => tell_arrival(&received)?,
                    Err(tokio::sync::broadcast::error::RecvError::Lagged(missed)) => say(&format!("  … {missed} arrivals not shown"))?,
                    Err(tokio::sync::broadcast::error::RecvError::Closed) => return Ok(()),
                },
            }
        }
    }

    /// Sends the captured webhook through the chain and tells its way.
    async fn send_sample(&self) -> anyhow::Result<()> {
        let [sample, ..] = &samples::SAMPLES;
        let body = sample.body();
        say(&format!(
            "Strapi → sidecar    entry.publish of api::article.article, {} bytes, as captured from Strapi 5",
            body.len()
        ))?;
        let started = Instant::now();
        let accepted = sample.send(self.webhook, self.secret.as_ref()).await?;
        let took = started.elapsed();
        if !accepted.head.contains(" 202 ") {
            bail!("the sidecar answered {:?} instead of 202", accepted.head);
        }
        let id = accepted.event_id;
        say(&format!(
            "sidecar             202 after {:.1} ms: the event is on disk as {id}",
            took.as_secs_f64() * 1e3
        ))?;
        let received = self.catcher.wait_for(1, SAMPLE_TIMEOUT).await.map_err(|_too_few| {
            anyhow::anyhow!("nothing arrived at the catcher within 10 s; run again with --log debug to see why")
        })?;
        let received = received.first().context("nothing arrived at the catcher")?;
        for message in self.server.messages() {
            let to = message.endpoint_name.as_deref().unwrap_or(&message.url);
            say(&format!(
                "sidecar → QStash    accepted as {} for {to}",
                message.id
            ))?;
        }
        tell_arrival(received)?;
        if !received.verified {
            bail!("the signature of the delivery did not verify");
        }
        if received.body != body {
            bail!("the body arrived changed");
        }
        say(&format!(
            "Done: the webhook arrived, signature verified, body identical, {:.1} ms after Strapi sent it.",
            started.elapsed().as_secs_f64() * 1e3
        ))
    }

    async fn stop(self) {
        self.sidecar.drain(self.grace).await;
        self.shutdown.cancel();
        self.tasks.close();
        tokio::time::timeout(self.grace, self.tasks.wait())
            .await
            .ok(); // it holds nothing of value
    }
}

fn tell_progress(progress: &Progress, message: &dev_server::Message) -> anyhow::Result<()> {
    let kind = message
        .headers
        .get("x-strapi-event")
        .and_then(|kind| kind.to_str().ok())
        .unwrap_or("message");
    match progress {
        Progress::Created => say(&format!(
            "sidecar → QStash    {kind} accepted as {}",
            message.id
        )),
        Progress::Retry { error, after, .. } => say(&format!(
            "QStash → catcher    {kind} failed ({error}), next try in {:.1} s",
            after.as_secs_f64()
        )),
        Progress::Failed { error, .. } => say(&format!(
            "QStash → catcher    {kind} failed for good ({error})"
        )),
        Progress::Cancelled => say(&format!("QStash              {kind} cancelled")),
        Progress::Active { .. } | Progress::Delivered { .. } | Progress::CancelRequested => Ok(()),
    }
}

fn tell_arrival(received: &Received) -> anyhow::Result<()> {
    let signature = match (received.verified, &received.signature_error) {
        (true, _) => "signature verified".to_owned(),
        (false, Some(error)) => format!("SIGNATURE WRONG ({error})"),
        (false, None) => "NO SIGNATURE".to_owned(),
    };
    say(&format!(
        "QStash → catcher    {} {} {}, {} bytes, {signature}, answered {}",
        received.method,
        received.path,
        received.header("x-strapi-event").unwrap_or_default(),
        received.body.len(),
        received.answered.as_u16(),
    ))
}

/// The flags of the sidecar in the chain: what was typed, with the development server as
/// QStash, a place for the buffer and a group for what no route takes.
fn sidecar_args(
    typed: &ServeArgs,
    server_url: String,
    folder: Option<&tempfile::TempDir>,
) -> ServeArgs {
    let routed = typed.topic.is_some() || !typed.route.is_empty();
    ServeArgs {
        qstash_token: Some(DEVELOPMENT_TOKEN.to_owned()),
        qstash_token_file: None,
        qstash_url: Some(server_url),
        topic: if routed {
            typed.topic.clone()
        } else {
            Some(GROUP.to_owned())
        },
        data_dir: folder.map_or_else(
            || typed.data_dir.clone(),
            |folder| Some(folder.path().display().to_string()),
        ),
        // What happens is told in words; the log is for what goes wrong.
        log: typed.log.clone().or_else(|| Some("warn".to_owned())),
        typed: Vec::new(),
        ..typed.clone()
    }
}

/// The groups that the routes give for what Strapi emits.
fn groups(config: &Config) -> Vec<String> {
    let mut groups = Vec::new();
    for kind in STRAPI_EVENTS {
        for model in [None, Some("article")] {
            let facts = Facts {
                kind: kind.to_owned(),
                model: model.map(str::to_owned),
                uid: model.map(|model| format!("api::{model}.{model}")),
                document: None,
            };
            if let Routing::To(destination) = config.router.route(&facts)
                && let crate::destination::Target::Group(name) = destination.target
            {
                groups.push(name);
            }
        }
    }
    groups.sort();
    groups.dedup();
    groups
}

async fn listen(text: &str, flag: &str) -> anyhow::Result<TcpListener> {
    let address = config::address(text).map_err(|error| anyhow::anyhow!("{flag}: {error}"))?;
    let listener = TcpListener::bind(address).await;
    listener.with_context(|| {
        format!("could not listen on {address}; choose another address with {flag}")
    })
}

/// To a person. A reader that went away, as in `dev | head`, ends the command.
fn say(text: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{text}").context("could not write to the terminal")
}

//! From what was typed to what runs. Everything is checked, then every mistake is reported
//! at once, each with the flag to fix and what to write there.

mod part;
mod values;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytesize::ByteSize;

pub(crate) use self::part::{admin_to_ask, admin_token, buffer, qstash, routing};
pub use self::values::Mistakes;
pub(crate) use self::values::{address, duration, given, optional, read_secret, size};
use self::values::{either, secret};
use crate::cli::{DeliveryArgs, ServeArgs};
use crate::destination::DeliveryOptions;
use crate::qstash::{Api, BaseUrl, ExtraRoots, TokenSource};
use crate::router::{Route, Router, Template};
use crate::secret::Secret;
use crate::{admin, buffer, forwarder, inbound, qstash};

/// The buffer's name in the data directory.
const BUFFER_NAME: &str = "strapi-qstash.db";

/// Flags whose value everyone on the machine can see in the list of processes.
const SECRET_FLAGS: [&str; 3] = ["--qstash-token", "--webhook-secret", "--admin-token"];

/// SQLite's own pages, the indexes and some events must fit.
const SMALLEST_BUFFER: u64 = 1 << 20;

/// What runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where Strapi posts.
    pub inbound: inbound::Settings,
    /// Health, metrics, status; `None` for none.
    pub admin: Option<admin::Settings>,
    /// How QStash is reached.
    pub qstash: qstash::Settings,
    /// Where events go.
    pub router: Router,
    /// Where they wait.
    pub buffer: buffer::Settings,
    /// How they are published.
    pub forwarder: forwarder::Settings,
    /// How long a stop may take.
    pub shutdown_grace: Duration,
    /// What is logged.
    pub log: LogSettings,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogSettings {
    /// `None`: text on a terminal, JSON elsewhere.
    pub format: Option<LogFormat>,
    /// A filter as `tracing-subscriber` reads it.
    pub filter: String,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one object a line.
    Json,
}

/// Something that works, but maybe not as meant.
pub type Warning = String;

impl Config {
    /// Checks all flags.
    pub fn from_args(args: &ServeArgs) -> Result<(Self, Vec<Warning>), Mistakes> {
        let mut mistakes = Mistakes::default();
        let mut warnings = Vec::new();
        let inbound = inbound_settings(args, &mut mistakes);
        let admin = admin_settings(args, &mut mistakes);
        let qstash = qstash_settings(args, &mut mistakes, &mut warnings);
        let router = router(args, &mut mistakes, &mut warnings);
        let buffer = buffer_settings(args, &mut mistakes);
        let max_age = optional(&args.max_age, "--max-age", duration, &mut mistakes);
        if max_age.is_some_and(|max_age| max_age.is_zero()) {
            mistakes.add(
                "--max-age",
                "0 would give up on every event: leave the flag out for never",
            );
        }
        let shutdown_grace = optional(
            &args.shutdown_grace,
            "--shutdown-grace",
            duration,
            &mut mistakes,
        );
        let log = log_settings(&args.log_format, &args.log, &mut mistakes);
        for flag in SECRET_FLAGS.iter().filter(|flag| args.is_typed(flag)) {
            warnings.push(format!(
                "{flag}: everyone on this machine can see it in the list of processes; set it in the environment or in a file"
            ));
        }
        if let (Some(qstash), Some(router)) = (&qstash, &router)
            && qstash.api == Api::V1
            && router.uses_queues()
        {
            mistakes.add(
                "--qstash-api",
                "v1 has no queues: take queue:… out of the routes, or use v2",
            );
        }
        match (inbound, qstash, router, buffer, log) {
            (Some(inbound), Some(qstash), Some(router), Some(buffer), Some(log))
                if mistakes.is_empty() =>
            {
                let config = Self {
                    inbound,
                    admin,
                    qstash,
                    router,
                    buffer,
                    forwarder: forwarder::Settings {
                        max_age,
                        ..forwarder::Settings::default()
                    },
                    shutdown_grace: shutdown_grace.unwrap_or(Duration::from_secs(10)),
                    log,
                };
                Ok((config, warnings))
            }
            _ => Err(mistakes),
        }
    }
}

/// Where the buffer is.
pub(crate) fn buffer_path(args: &ServeArgs) -> PathBuf {
    let folder = PathBuf::from(given(&args.data_dir).unwrap_or_default());
    folder.join(given(&args.buffer).unwrap_or(BUFFER_NAME))
}

impl Config {
    /// Sockets that were given are held to the rule for those that are bound: away from
    /// loopback only with a secret.
    pub(crate) fn check_open_sockets(&self, addresses: &[SocketAddr]) -> Result<(), Mistakes> {
        match addresses.iter().find(|address| !address.ip().is_loopback()) {
            Some(open) if self.inbound.secret.is_none() => {
                Err(Mistakes(vec![open_without_secret(open)]))
            }
            _ => Ok(()),
        }
    }

    /// The effective settings on one line, without secrets.
    pub fn summary(&self) -> String {
        let settings = self.effective().into_iter();
        let settings = settings.map(|(name, value)| format!("{name}={value}"));
        settings.collect::<Vec<_>>().join(" ")
    }

    /// The same, one by one.
    pub(crate) fn effective(&self) -> Vec<(String, String)> {
        let on = |secret: bool| if secret { "set" } else { "none" }.to_owned();
        let time = |duration| humantime::format_duration(duration).to_string();
        let admin = self.admin.as_ref();
        let max_age = self.forwarder.max_age;
        let (routes, topic) = self.router.for_log();
        let mut settings = vec![
            ("listen", format!("{:?}", self.inbound.listen)),
            ("webhook_secret", on(self.inbound.secret.is_some())),
            ("max_body", ByteSize(self.inbound.max_body).to_string()),
            ("topic", topic.unwrap_or_else(|| "none".to_owned())),
            ("qstash_url", self.qstash.base.to_string()),
            ("qstash_api", format!("{:?}", self.qstash.api)),
            ("buffer", self.buffer.path.display().to_string()),
            ("buffer_max", ByteSize(self.buffer.max_bytes).to_string()),
            ("keep_delivered", time(self.buffer.keep_delivered)),
            ("max_age", max_age.map_or("never".to_owned(), time)),
            (
                "admin",
                admin.map_or("off".to_owned(), |admin| admin.listen.to_string()),
            ),
            (
                "admin_token",
                on(admin.is_some_and(|admin| admin.token.is_some())),
            ),
            ("shutdown_grace", time(self.shutdown_grace)),
        ];
        if !routes.is_empty() {
            settings.push(("route", routes.join(", ")));
        }
        for (name, value) in self.qstash.options.for_log() {
            match settings.iter_mut().find(|(known, _)| *known == name) {
                Some((_, values)) => values.push_str(&format!(", {value}")), // headers
                None => settings.push((name, value)),
            }
        }
        settings
            .into_iter()
            .map(|(name, value)| (name.replace('-', "_"), value))
            .collect()
    }
}

fn inbound_settings(args: &ServeArgs, mistakes: &mut Mistakes) -> Option<inbound::Settings> {
    let mut listen = Vec::new();
    for text in args.listen.iter().filter(|text| !text.is_empty()) {
        listen.extend(mistakes.check("--listen", address(text)));
    }
    if args.listen.is_empty() {
        listen.push(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8787));
    }
    let secret = secret(
        args,
        ("--webhook-secret", &args.webhook_secret),
        ("--webhook-secret-file", &args.webhook_secret_file),
        mistakes,
    );
    let given = given(&args.webhook_secret)
        .or(given(&args.webhook_secret_file))
        .is_some();
    if let (Some(open), false, false) = (
        listen.iter().find(|address| !address.ip().is_loopback()),
        given,
        args.dangerous_no_auth,
    ) {
        mistakes.0.push(open_without_secret(open));
    }
    let max_body = optional(&args.max_body, "--max-body", size, mistakes).unwrap_or(32 << 20);
    if max_body == 0 {
        mistakes.add(
            "--max-body",
            "0 would refuse every event: write a size such as 32MiB",
        );
    }
    Some(inbound::Settings {
        listen,
        secret,
        max_body,
    })
}

fn open_without_secret(address: &SocketAddr) -> String {
    format!(
        "--listen: {address} can be reached from other machines: set STRAPI_QSTASH_WEBHOOK_SECRET or \
         --webhook-secret-file, and in Strapi the header 'Authorization: Bearer SECRET' (or --dangerous-no-auth \
         where no one else gets there)"
    )
}

fn admin_settings(args: &ServeArgs, mistakes: &mut Mistakes) -> Option<admin::Settings> {
    if args.no_admin {
        return None;
    }
    let token = given(&args.admin_token).and_then(Secret::trimmed);
    let listen = admin_address(given(&args.admin_listen));
    let listen = mistakes.check("--admin-listen", listen)?;
    if !listen.ip().is_loopback() && token.is_none() {
        mistakes.add(
            "--admin-listen",
            format_args!("{listen} can be reached from other machines: set STRAPI_QSTASH_ADMIN_TOKEN (health and metrics stay open)"),
        );
    }
    Some(admin::Settings { listen, token })
}

/// The admin address that was typed, or the usual one.
fn admin_address(typed: Option<&str>) -> Result<SocketAddr, String> {
    match typed.filter(|text| !text.trim().is_empty()) {
        Some(text) => address(text),
        None => Ok(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8788)),
    }
}

fn qstash_settings(
    args: &ServeArgs,
    mistakes: &mut Mistakes,
    warnings: &mut Vec<Warning>,
) -> Option<qstash::Settings> {
    let value = ("--qstash-token", &args.qstash_token);
    let file = ("--qstash-token-file", &args.qstash_token_file);
    let token = match either(args, value, file, mistakes) {
        (Some(_), Some(_)) => None,
        (Some(value), None) => Secret::trimmed(value).map(TokenSource::Value),
        // The path is kept, since the file is read again when it changes.
        (None, Some(path)) => read_secret("--qstash-token-file", path, mistakes)
            .map(|_| TokenSource::File(PathBuf::from(path))),
        (None, None) => {
            mistakes.add(
                "QSTASH_TOKEN",
                "the token is missing: copy it from the QStash console into the environment, or name a file with --qstash-token-file",
            );
            None
        }
    };
    let base = mistakes.check(
        "--qstash-url",
        BaseUrl::parse(given(&args.qstash_url).unwrap_or(BaseUrl::DEFAULT)),
    );
    if let Some(base) = base
        .as_ref()
        .filter(|base| base.is_plain_http() && !base.is_loopback())
    {
        warnings.push(format!(
            "--qstash-url: the token travels unencrypted to {base}; use https://"
        ));
    }
    let api = match given(&args.qstash_api).unwrap_or("v2") {
        "v2" => Some(Api::V2),
        "v1" => Some(Api::V1),
        other => {
            mistakes.add(
                "--qstash-api",
                format_args!("there is no {other:?}: write v2 or v1"),
            );
            None
        }
    };
    let roots = roots(&args.ca_file, mistakes);
    let options = delivery_options(&args.delivery, mistakes);
    Some(qstash::Settings {
        base: base?,
        api: api?,
        token: token?,
        roots: roots?,
        options,
    })
}

pub(crate) fn roots(file: &Option<String>, mistakes: &mut Mistakes) -> Option<ExtraRoots> {
    match given(file) {
        Some(path) => mistakes.check("--ca-file", ExtraRoots::read(Path::new(path))),
        None => Some(ExtraRoots::default()),
    }
}

fn delivery_options(args: &DeliveryArgs, mistakes: &mut Mistakes) -> DeliveryOptions {
    let mut options = DeliveryOptions::default();
    let single = [
        ("retries", &args.retries),
        ("retry-delay", &args.retry_delay),
        ("delay", &args.delay),
        ("timeout", &args.timeout),
        ("callback", &args.callback),
        ("failure-callback", &args.failure_callback),
        ("method", &args.method),
        ("flow-control", &args.flow_control),
        ("redact", &args.redact),
    ];
    let single = single
        .into_iter()
        .filter_map(|(name, value)| Some((name, given(value)?)));
    let labels = args.label.iter().map(|value| ("label", value.as_str()));
    let headers = args
        .forward_header
        .iter()
        .map(|value| ("forward-header", value.as_str()));
    for (name, value) in single.chain(labels).chain(headers) {
        if let Err(error) = options.set(name, value) {
            mistakes.0.push(format!("--{error}"));
        }
    }
    options
}

fn router(
    args: &ServeArgs,
    mistakes: &mut Mistakes,
    warnings: &mut Vec<Warning>,
) -> Option<Router> {
    let mut routes = Vec::new();
    for text in args.route.iter().filter(|text| !text.trim().is_empty()) {
        let route = Route::parse(text).map_err(|error| format!("{text:?}: {error}"));
        routes.extend(mistakes.check("--route", route));
    }
    let default = match given(&args.topic) {
        Some(text) => Some(mistakes.check("--topic", Template::parse(text))?),
        None => None,
    };
    let router = Router::new(routes, default);
    for (shadowed, earlier) in router.shadowed() {
        let (shadowed, earlier) = (shadowed.for_log(), earlier.for_log());
        warnings.push(format!("--route: {shadowed:?} can never match, since {earlier:?} comes first and covers it; put it in front"));
    }
    if router.is_empty() {
        warnings.push(
            "--topic: without it and without --route only webhooks to /webhook/NAME are published, all others become dead letters"
                .to_owned(),
        );
    }
    Some(router)
}

fn buffer_settings(args: &ServeArgs, mistakes: &mut Mistakes) -> Option<buffer::Settings> {
    let path = buffer_path(args);
    let max_bytes = optional(&args.buffer_max, "--buffer-max", size, mistakes).unwrap_or(1 << 30);
    if max_bytes < SMALLEST_BUFFER {
        mistakes.add(
            "--buffer-max",
            format_args!("{} is too little: write at least 1MiB", ByteSize(max_bytes)),
        );
    }
    let keep = optional(&args.keep_delivered, "--keep-delivered", duration, mistakes);
    let keep_delivered = keep.unwrap_or(Duration::from_secs(24 * 3600));
    Some(buffer::Settings {
        path,
        max_bytes,
        keep_delivered,
        wait_for_lock: Duration::ZERO,
    })
}

pub(crate) fn log_settings(
    format: &Option<String>,
    filter: &Option<String>,
    mistakes: &mut Mistakes,
) -> Option<LogSettings> {
    let format = match given(format) {
        None => None,
        Some("text") => Some(LogFormat::Text),
        Some("json") => Some(LogFormat::Json),
        Some(other) => {
            mistakes.add(
                "--log-format",
                format_args!("there is no {other:?}: write text or json"),
            );
            return None;
        }
    };
    let filter = given(filter).unwrap_or("info").to_owned();
    let parsed = filter.parse::<tracing_subscriber::filter::Targets>();
    mistakes.check(
        "--log",
        parsed.map_err(|error| format!("{error}: write a level such as info, or target=level")),
    )?;
    Some(LogSettings { format, filter })
}

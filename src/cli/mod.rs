//! What a person may type, and the help for it: clap types only. Values stay as typed;
//! `config` checks them, so that every mistake is reported in one run.

mod operate;
mod receive;

use clap::builder::FalseyValueParser;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, parser::ValueSource};

pub use self::operate::{
    ChangeArgs, ChangeTopicArgs, CheckArgs, EventsCommand, ExportArgs, FilterArgs, ListArgs,
    ListTopicsArgs, ShowArgs, TopicsCommand,
};
pub use self::receive::VerifyArgs;

/// Takes Strapi's webhooks on localhost, makes each one durable, and publishes it to QStash.
#[derive(Debug, Parser)]
#[command(
    name = "strapi-qstash",
    version,
    about = "Takes Strapi's webhooks on localhost, makes each one durable, and publishes it to Upstash QStash",
    after_help = "Try it with no account:  strapi-qstash dev --send-sample\n\
                  A first sidecar:         QSTASH_TOKEN=… strapi-qstash --topic my-url-group\n\
                  Every flag can be set in the environment: see the names in [env: …].",
    args_conflicts_with_subcommands = true,
    disable_help_subcommand = true,
    max_term_width = 100
)]
pub struct Cli {
    /// What to do; `serve` when left out.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The flags of `serve`.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the sidecar (the default)
    Serve(Box<ServeArgs>),
    /// Run everything on one machine, with no account and no network: the sidecar, a QStash
    /// development server, a catcher that plays the receiving API, and a page that shows it
    Dev(Box<DevArgs>),
    /// Say what is wrong and how to mend it: token, region, URL groups, endpoints, routes, buffer,
    /// disk, clock. It takes the flags of the sidecar; with --event it tells where an event goes
    Check(Box<CheckArgs>),
    /// QStash's URL groups (topics): list, create, add, remove
    #[command(subcommand)]
    Topics(TopicsCommand),
    /// Where is my webhook? List, show, replay, discard and export events, of a running sidecar and
    /// of a stopped one
    #[command(subcommand)]
    Events(EventsCommand),
    /// Print the code that registers the webhook where Strapi runs with NODE_ENV=production, since
    /// its admin panel refuses local addresses there: strapi-qstash strapi-bootstrap > src/index.js
    StrapiBootstrap(StrapiBootstrapArgs),
    /// Stand before the receiving API: check that a delivery is QStash's, drop repeats, and pass
    /// the rest on
    Verify(Box<VerifyArgs>),
    /// Ask the sidecar on this machine whether it can make events durable; the exit code tells.
    /// For images without curl
    Healthcheck(HealthcheckArgs),
    /// Print completions for a shell: bash, elvish, fish, powershell or zsh
    Completions(CompletionsArgs),
    /// Print the man page
    Man(ManArgs),
}

/// The flags of `serve`.
#[derive(Debug, Clone, Args, Default)]
pub struct ServeArgs {
    /// Where Strapi posts; may be repeated [default: 127.0.0.1:8787]
    #[arg(
        long,
        value_name = "ADDR",
        env = "STRAPI_QSTASH_LISTEN",
        value_delimiter = ',',
        help_heading = "Receive"
    )]
    pub listen: Vec<String>,
    /// Require `Authorization: Bearer S` on webhooks. Prefer the environment or the file: flags
    /// are visible in the list of processes
    #[arg(
        long,
        value_name = "S",
        env = "STRAPI_QSTASH_WEBHOOK_SECRET",
        hide_env_values = true,
        help_heading = "Receive"
    )]
    pub webhook_secret: Option<String>,
    /// The same, read from a file
    #[arg(
        long,
        value_name = "FILE",
        env = "STRAPI_QSTASH_WEBHOOK_SECRET_FILE",
        help_heading = "Receive"
    )]
    pub webhook_secret_file: Option<String>,
    /// Largest body taken, such as 32MiB [default: 32MiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "STRAPI_QSTASH_MAX_BODY",
        help_heading = "Receive"
    )]
    pub max_body: Option<String>,
    /// Take webhooks from other machines without a secret
    #[arg(long, env = "STRAPI_QSTASH_DANGEROUS_NO_AUTH", value_parser = FalseyValueParser::new(), help_heading = "Receive")]
    pub dangerous_no_auth: bool,

    /// QStash's token. Prefer the environment or the file: flags are visible in the list of
    /// processes
    #[arg(
        long,
        value_name = "TOKEN",
        env = "QSTASH_TOKEN",
        hide_env_values = true,
        help_heading = "QStash"
    )]
    pub qstash_token: Option<String>,
    /// The same, read from a file, and again when the file changes
    #[arg(
        long,
        value_name = "FILE",
        env = "STRAPI_QSTASH_QSTASH_TOKEN_FILE",
        help_heading = "QStash"
    )]
    pub qstash_token_file: Option<String>,
    /// QStash's address.
    #[arg(
        long,
        help = "QStash's address, in the region of the token [default: https://qstash.upstash.io]",
        value_name = "URL",
        env = "QSTASH_URL",
        help_heading = "QStash"
    )]
    pub qstash_url: Option<String>,
    /// v2, or v1 to publish to /v1/publish/{topic} as old tutorials do [default: v2]
    #[arg(
        long,
        value_name = "VERSION",
        env = "STRAPI_QSTASH_QSTASH_API",
        help_heading = "QStash"
    )]
    pub qstash_api: Option<String>,
    /// Certificates to trust besides the usual ones, as PEM: for a proxy that opens TLS, or a
    /// server of your own
    #[arg(
        long,
        value_name = "FILE",
        env = "STRAPI_QSTASH_CA_FILE",
        help_heading = "QStash"
    )]
    pub ca_file: Option<String>,

    /// Where events go that no route matches: a URL group's name, or what a route takes
    #[arg(
        long,
        alias = "url-group",
        value_name = "NAME",
        env = "STRAPI_QSTASH_TOPIC",
        help_heading = "Routing"
    )]
    pub topic: Option<String>,
    /// A rule, first match wins; may be repeated (in the environment: one a line). MATCH is EVENT
    /// or EVENT:UID, both with * and ?; DEST is a URL group, https://…, queue:NAME/DEST or drop,
    /// may hold {event} {action} {model} {uid}, and ends in ?retries=5&delay=10s if wanted.
    /// Example: 'entry.publish:api::article.*=news'
    #[arg(
        long,
        value_name = "MATCH=DEST",
        env = "STRAPI_QSTASH_ROUTE",
        value_delimiter = '\n',
        help_heading = "Routing"
    )]
    pub route: Vec<String>,

    /// How deliveries are made, for all routes.
    #[command(flatten)]
    pub delivery: DeliveryArgs,

    /// The buffer file; a relative path is within the data directory [default: strapi-qstash.db]
    #[arg(
        long,
        value_name = "PATH",
        env = "STRAPI_QSTASH_BUFFER",
        help_heading = "Buffer"
    )]
    pub buffer: Option<String>,
    /// Where the buffer file is [default: the working directory]
    #[arg(
        long,
        value_name = "DIR",
        env = "STRAPI_QSTASH_DATA_DIR",
        help_heading = "Buffer"
    )]
    pub data_dir: Option<String>,
    /// Most disk space for events; beyond it history goes, then events are published before the
    /// answer [default: 1GiB]
    #[arg(
        long,
        value_name = "SIZE",
        env = "STRAPI_QSTASH_BUFFER_MAX",
        help_heading = "Buffer"
    )]
    pub buffer_max: Option<String>,
    /// How long delivered events are kept for inspection and replay; 0 keeps none [default: 24h]
    #[arg(
        long,
        value_name = "DURATION",
        env = "STRAPI_QSTASH_KEEP_DELIVERED",
        help_heading = "Buffer"
    )]
    pub keep_delivered: Option<String>,
    /// Give up on an event that could not be published for so long, such as 7d [default: never]
    #[arg(
        long,
        value_name = "DURATION",
        env = "STRAPI_QSTASH_MAX_AGE",
        help_heading = "Buffer"
    )]
    pub max_age: Option<String>,

    /// Health, metrics and status [default: 127.0.0.1:8788]
    #[arg(
        long,
        value_name = "ADDR",
        env = "STRAPI_QSTASH_ADMIN_LISTEN",
        help_heading = "Operate"
    )]
    pub admin_listen: Option<String>,
    /// No admin address at all
    #[arg(long, env = "STRAPI_QSTASH_NO_ADMIN", value_parser = FalseyValueParser::new(), help_heading = "Operate")]
    pub no_admin: bool,
    /// Require this token for what is more than health and metrics
    #[arg(
        long,
        value_name = "TOKEN",
        env = "STRAPI_QSTASH_ADMIN_TOKEN",
        hide_env_values = true,
        help_heading = "Operate"
    )]
    pub admin_token: Option<String>,
    /// How long a stop may take [default: 10s]
    #[arg(
        long,
        value_name = "DURATION",
        env = "STRAPI_QSTASH_SHUTDOWN_GRACE",
        help_heading = "Operate"
    )]
    pub shutdown_grace: Option<String>,
    /// text or json [default: text on a terminal, else json]
    #[arg(
        long,
        value_name = "FORMAT",
        env = "STRAPI_QSTASH_LOG_FORMAT",
        help_heading = "Operate"
    )]
    pub log_format: Option<String>,
    /// What is logged, such as warn or strapi_qstash=debug [default: info]
    #[arg(
        long,
        value_name = "FILTER",
        env = "STRAPI_QSTASH_LOG",
        help_heading = "Operate"
    )]
    pub log: Option<String>,

    /// Keep the sockets in a process that does nothing else, and restart the worker when it ends:
    /// for containers. SIGUSR2 puts a new binary in its place
    #[arg(long, env = "STRAPI_QSTASH_SUPERVISE", value_parser = FalseyValueParser::new(), help_heading = "Operate")]
    pub supervise: bool,
    /// Started by a predecessor or a supervisor: says when it is ready to take over, and waits
    /// for the buffer.
    #[arg(long, hide = true, env = "STRAPI_QSTASH_SUCCESSOR", value_parser = FalseyValueParser::new())]
    pub successor: bool,
    /// Started by a supervisor: stops when its stdin is closed, and so also when that dies.
    #[arg(long, hide = true, env = "STRAPI_QSTASH_WORKER", value_parser = FalseyValueParser::new())]
    pub worker: bool,
    /// The names of the sockets that were given, as systemd passes them.
    #[arg(long, hide = true, env = "LISTEN_FDNAMES")]
    pub listen_fdnames: Option<String>,

    /// The flags that were typed, and not set in the environment.
    #[arg(skip)]
    pub typed: Vec<String>,
}

/// QStash's delivery options.
#[derive(Debug, Clone, Args, Default)]
#[command(next_help_heading = "Delivery options")]
pub struct DeliveryArgs {
    /// Retries after the first try [QStash: 3]
    #[arg(long, value_name = "N", env = "STRAPI_QSTASH_RETRIES")]
    pub retries: Option<String>,
    /// Milliseconds before a retry, as an expression: 'pow(2, retried) * 1000'
    #[arg(long, value_name = "EXPR", env = "STRAPI_QSTASH_RETRY_DELAY")]
    pub retry_delay: Option<String>,
    /// Wait before the first try: 10s, 5m, 1h30m
    #[arg(long, value_name = "DURATION", env = "STRAPI_QSTASH_DELAY")]
    pub delay: Option<String>,
    /// How long the endpoint may take: 30s, 5m
    #[arg(long, value_name = "DURATION", env = "STRAPI_QSTASH_TIMEOUT")]
    pub timeout: Option<String>,
    /// URL that is told the endpoint's answer
    #[arg(long, value_name = "URL", env = "STRAPI_QSTASH_CALLBACK")]
    pub callback: Option<String>,
    /// URL that is told when all retries have failed
    #[arg(long, value_name = "URL", env = "STRAPI_QSTASH_FAILURE_CALLBACK")]
    pub failure_callback: Option<String>,
    /// Method of the delivery [QStash: POST]
    #[arg(long, value_name = "METHOD", env = "STRAPI_QSTASH_METHOD")]
    pub method: Option<String>,
    /// Label to find messages by; may be repeated
    #[arg(
        long,
        value_name = "LABEL",
        env = "STRAPI_QSTASH_LABEL",
        value_delimiter = ','
    )]
    pub label: Vec<String>,
    /// Limits for the endpoint, such as site:parallelism=5,rate=10,period=1m
    #[arg(long, value_name = "KEY:VALUE", env = "STRAPI_QSTASH_FLOW_CONTROL")]
    pub flow_control: Option<String>,
    /// Header for the receiver; may be repeated (in the environment: one a line)
    #[arg(
        long,
        value_name = "'K: V'",
        env = "STRAPI_QSTASH_FORWARD_HEADER",
        value_delimiter = '\n'
    )]
    pub forward_header: Vec<String>,
    /// What QStash's logs do not show.
    #[arg(
        long,
        help = "What QStash's logs do not show: body, header, header[Name]",
        value_name = "FIELDS",
        env = "STRAPI_QSTASH_REDACT"
    )]
    pub redact: Option<String>,
}

/// The flags of `dev`.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Send a real captured Strapi webhook through the chain, and stop when it has arrived
    #[arg(long)]
    pub send_sample: bool,
    /// Where the QStash development server listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub qstash_listen: String,
    /// Where the catcher listens
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8789")]
    pub catcher_listen: String,
    /// Where the page is that shows each event's way and makes things fail
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8790")]
    pub page_listen: String,
    /// Make the development server's retry delays N times shorter
    #[arg(long, value_name = "N", default_value = "1")]
    pub time_scale: String,
    /// Largest message that the development server takes; QStash's free plan: 1MB
    #[arg(long, value_name = "SIZE", default_value = "1MB")]
    pub max_message: String,
    /// The flags of the sidecar.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// The flags of `strapi-bootstrap`.
#[derive(Debug, Clone, Args)]
pub struct StrapiBootstrapArgs {
    /// Print it for src/index.ts instead of src/index.js
    #[arg(long)]
    pub typescript: bool,
    /// Where the sidecar listens, the first if there are several: where Strapi posts unless its
    /// environment says otherwise [default: 127.0.0.1:8787]
    #[arg(
        long,
        value_name = "ADDR",
        env = "STRAPI_QSTASH_LISTEN",
        value_delimiter = ','
    )]
    pub listen: Vec<String>,
}

/// The flags of `healthcheck`.
#[derive(Debug, Clone, Args)]
pub struct HealthcheckArgs {
    /// Ask only whether the process lives
    #[arg(long)]
    pub live: bool,
    /// Where the sidecar has its admin address [default: 127.0.0.1:8788]
    #[arg(long, value_name = "ADDR", env = "STRAPI_QSTASH_ADMIN_LISTEN")]
    pub admin_listen: Option<String>,
}

/// The flags of `completions`.
#[derive(Debug, Clone, Args)]
pub struct CompletionsArgs {
    /// The shell
    #[arg(value_name = "SHELL")]
    pub shell: String,
}

/// The flags of `man`.
#[derive(Debug, Clone, Args)]
pub struct ManArgs {
    /// Write a page for each command into this folder
    #[arg(long, value_name = "DIR")]
    pub out: Option<String>,
}

impl ServeArgs {
    /// Whether a flag (`--topic`) was typed, and not set in the environment.
    pub fn is_typed(&self, flag: &str) -> bool {
        self.typed.iter().any(|typed| typed == flag)
    }
}

impl Cli {
    /// All that may be typed. The commands that operate a sidecar take each flag of `serve`, and
    /// show those that matter to them.
    pub fn build() -> clap::Command {
        use operate::{OF_ADMIN, OF_BUFFER, OF_QSTASH, OF_ROUTING};
        let topics = |topics: clap::Command| {
            topics
                .mut_subcommand("list", |list| show_only(list, &[OF_QSTASH]))
                .mut_subcommand("create", |create| show_only(create, &[OF_QSTASH, OF_ADMIN]))
                .mut_subcommand("add", |add| show_only(add, &[OF_QSTASH, OF_ADMIN]))
                .mut_subcommand("remove", |remove| show_only(remove, &[OF_QSTASH, OF_ADMIN]))
        };
        let command = Self::command().mut_subcommand("topics", topics);
        command.mut_subcommand("events", |events| {
            events
                .mut_subcommand("list", |list| show_only(list, &[OF_BUFFER]))
                .mut_subcommand("show", |show| show_only(show, &[OF_BUFFER, OF_QSTASH]))
                .mut_subcommand("replay", |replay| {
                    show_only(replay, &[OF_BUFFER, OF_ADMIN, OF_ROUTING])
                })
                .mut_subcommand("discard", |discard| {
                    show_only(discard, &[OF_BUFFER, OF_ADMIN])
                })
                .mut_subcommand("export", |export| show_only(export, &[OF_BUFFER]))
        })
    }

    /// Reads the command line and the environment. Ends the process for `--help`, `--version`
    /// and wrong usage (2).
    pub fn from_environment() -> Self {
        let matches = Self::build().get_matches();
        let mut cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        let mut flags = &matches;
        while let Some((_, deeper)) = flags.subcommand() {
            flags = deeper;
        }
        let is_typed =
            |id: &&clap::Id| flags.value_source(id.as_str()) == Some(ValueSource::CommandLine);
        let typed = flags
            .ids()
            .filter(is_typed)
            .map(|id| format!("--{}", id.as_str().replace('_', "-")))
            .collect();
        if let Some(serve) = cli.serve_args() {
            serve.typed = typed;
        }
        cli
    }

    fn serve_args(&mut self) -> Option<&mut ServeArgs> {
        match &mut self.command {
            None => Some(&mut self.serve),
            Some(Command::Serve(args)) => Some(args),
            Some(Command::Dev(args)) => Some(&mut args.serve),
            Some(Command::Check(args)) => Some(&mut args.serve),
            Some(Command::Topics(command)) => Some(match command {
                TopicsCommand::List(args) => &mut args.serve,
                TopicsCommand::Create(args)
                | TopicsCommand::Add(args)
                | TopicsCommand::Remove(args) => &mut args.serve,
            }),
            Some(Command::Events(command)) => Some(match command {
                EventsCommand::List(args) => &mut args.serve,
                EventsCommand::Show(args) => &mut args.serve,
                EventsCommand::Replay(args) | EventsCommand::Discard(args) => &mut args.serve,
                EventsCommand::Export(args) => &mut args.serve,
            }),
            Some(
                Command::Verify(_)
                | Command::Healthcheck(_)
                | Command::StrapiBootstrap(_)
                | Command::Completions(_)
                | Command::Man(_),
            ) => None,
        }
    }
}

/// Hides the flags of `serve` from a command's help but for these.
fn show_only(command: clap::Command, shown: &[&[&str]]) -> clap::Command {
    let of_serve = ServeArgs::augment_args(clap::Command::new("serve"));
    let hidden: Vec<clap::Id> = of_serve
        .get_arguments()
        .map(|arg| arg.get_id().clone())
        .filter(|id| !shown.iter().any(|group| group.contains(&id.as_str())))
        .collect();
    command.mut_args(|arg| match hidden.contains(arg.get_id()) {
        true => arg.hide(true),
        false => arg,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serve_may_be_left_out() {
        Cli::build().debug_assert();
        let cli = Cli::try_parse_from([
            "strapi-qstash",
            "--topic",
            "news",
            "--route",
            "a=b",
            "--route",
            "c=d",
        ])
        .unwrap();
        assert_eq!(cli.serve.topic.as_deref(), Some("news"));
        assert_eq!(cli.serve.route, ["a=b", "c=d"]);
        let cli = Cli::try_parse_from(["strapi-qstash", "serve", "--url-group", "news"]).unwrap();
        assert!(
            matches!(cli.command, Some(Command::Serve(args)) if args.topic.as_deref() == Some("news"))
        );
    }

    #[test]
    fn every_flag_has_a_line_of_help() {
        fn check(command: &clap::Command) {
            for arg in command.get_arguments() {
                assert!(
                    arg.get_help()
                        .is_some_and(|help| !help.to_string().is_empty()),
                    "{} {}",
                    command.get_name(),
                    arg.get_id()
                );
            }
            command.get_subcommands().for_each(check);
        }
        check(&Cli::build());
    }
}

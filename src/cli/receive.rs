//! The flags of the receiving end.

use clap::Args;

/// The flags of `verify`.
#[derive(Debug, Clone, Args)]
pub struct VerifyArgs {
    /// The API.
    #[arg(
        long,
        help = "The API, such as http://127.0.0.1:3000: a delivery's path and query are put behind it",
        value_name = "URL",
        env = "STRAPI_QSTASH_UPSTREAM"
    )]
    pub upstream: String,
    /// Where QStash delivers, through whatever stands between [default: 127.0.0.1:8791]
    #[arg(long, value_name = "ADDR", env = "STRAPI_QSTASH_LISTEN")]
    pub listen: Option<String>,
    /// What deliveries are signed with. Prefer the environment or the file: flags are visible in
    /// the list of processes
    #[arg(
        long,
        value_name = "KEY",
        env = "QSTASH_CURRENT_SIGNING_KEY",
        hide_env_values = true
    )]
    pub current_signing_key: Option<String>,
    /// The same, read from a file
    #[arg(
        long,
        value_name = "FILE",
        env = "STRAPI_QSTASH_CURRENT_SIGNING_KEY_FILE"
    )]
    pub current_signing_key_file: Option<String>,
    /// What they will be signed with after the next rotation
    #[arg(
        long,
        value_name = "KEY",
        env = "QSTASH_NEXT_SIGNING_KEY",
        hide_env_values = true
    )]
    pub next_signing_key: Option<String>,
    /// The same, read from a file
    #[arg(long, value_name = "FILE", env = "STRAPI_QSTASH_NEXT_SIGNING_KEY_FILE")]
    pub next_signing_key_file: Option<String>,
    /// What QStash has for this address.
    #[arg(
        long,
        help = "What QStash has for this address, without the path, such as https://api.example.com: \
                what was signed for another one is refused [default: any is taken]",
        value_name = "URL",
        env = "STRAPI_QSTASH_PUBLIC_URL"
    )]
    pub public_url: Option<String>,
    /// Certificates to trust besides the usual ones, as PEM, if the API is at https://
    #[arg(long, value_name = "FILE", env = "STRAPI_QSTASH_CA_FILE")]
    pub ca_file: Option<String>,
    /// Largest body taken [default: 50MiB]
    #[arg(long, value_name = "SIZE", env = "STRAPI_QSTASH_MAX_BODY")]
    pub max_body: Option<String>,
    /// How long the API may take [default: 15m]
    #[arg(long, value_name = "DURATION", env = "STRAPI_QSTASH_UPSTREAM_TIMEOUT")]
    pub upstream_timeout: Option<String>,
    /// How long a stop may take [default: 10s]
    #[arg(long, value_name = "DURATION", env = "STRAPI_QSTASH_SHUTDOWN_GRACE")]
    pub shutdown_grace: Option<String>,
    /// text or json [default: text on a terminal, else json]
    #[arg(long, value_name = "FORMAT", env = "STRAPI_QSTASH_LOG_FORMAT")]
    pub log_format: Option<String>,
    /// What is logged, such as warn or strapi_qstash=debug [default: info]
    #[arg(long, value_name = "FILTER", env = "STRAPI_QSTASH_LOG")]
    pub log: Option<String>,
}

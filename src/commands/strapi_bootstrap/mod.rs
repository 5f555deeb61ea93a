//! `strapi-bootstrap`: prints the code that registers the webhook where Strapi runs with
//! NODE_ENV=production. There Strapi's admin API refuses every webhook to a local address, and
//! only code can register one (<https://github.com/strapi/strapi/issues/22177>).
//!
//! What is printed is one of the two files beside this one, byte for byte, but for the address
//! when another is asked for. `tests/real/bootstrap` runs both in a real Strapi.

use std::borrow::Cow;
use std::io::{IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use anyhow::Context;

use crate::cli::StrapiBootstrapArgs;
use crate::config::{self, Mistakes};

const JAVASCRIPT: &str = include_str!("bootstrap.js");
const TYPESCRIPT: &str = include_str!("bootstrap.ts");

/// Where `serve` listens when nothing is said; both files name it.
const DEFAULT_ADDRESS: &str = "127.0.0.1:8787";

/// Prints the file for Strapi's `src`; what to do with it goes to a person only.
pub fn run(args: &StrapiBootstrapArgs) -> anyhow::Result<()> {
    let snippet = snippet(args)?;
    let mut stdout = std::io::stdout().lock();
    stdout
        .write_all(snippet.as_bytes())
        .and_then(|()| stdout.flush())
        .context("could not write the file to stdout")?;
    let mut stderr = std::io::stderr().lock();
    if stderr.is_terminal() {
        let end = if args.typescript { "ts" } else { "js" };
        writeln!(
            stderr,
            "\nThis is for Strapi's src/index.{end}. If that has code of its own, save this as src/strapi-qstash.{end}\n\
             and call it from there: its first lines show how, and what can be set. Then restart Strapi."
        )
        .ok(); // the file is out, and the hint is for whoever still reads
    }
    Ok(())
}

fn snippet(args: &StrapiBootstrapArgs) -> Result<Cow<'static, str>, Mistakes> {
    let file = if args.typescript {
        TYPESCRIPT
    } else {
        JAVASCRIPT
    };
    // Strapi needs one address that reaches the sidecar; the first is as good as any.
    let Some(text) = args.listen.iter().find(|text| !text.is_empty()) else {
        return Ok(Cow::Borrowed(file));
    };
    let mut mistakes = Mistakes::default();
    let address = mistakes.check("--listen", config::address(text).and_then(reachable));
    let address = address.ok_or(mistakes)?;
    Ok(Cow::Owned(
        file.replace(DEFAULT_ADDRESS, &address.to_string()),
    ))
}

/// Where Strapi on the same machine posts to a sidecar that listens on `address`.
fn reachable(mut address: SocketAddr) -> Result<SocketAddr, String> {
    if address.port() == 0 {
        return Err(format!(
            "{address} is a port that nobody knows beforehand: write the sidecar's"
        ));
    }
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn printed(typescript: bool, listen: &[&str]) -> Result<String, Mistakes> {
        let listen = listen.iter().map(|text| (*text).to_owned()).collect();
        snippet(&StrapiBootstrapArgs { typescript, listen }).map(Cow::into_owned)
    }

    #[test]
    fn without_an_address_it_is_exactly_the_file() {
        assert_eq!(printed(false, &[]).unwrap(), JAVASCRIPT);
        assert_eq!(printed(true, &[]).unwrap(), TYPESCRIPT);
        assert_eq!(printed(false, &[""]).unwrap(), JAVASCRIPT);
        assert_eq!(printed(true, &[DEFAULT_ADDRESS]).unwrap(), TYPESCRIPT);
    }

    #[test]
    fn an_address_replaces_the_default_everywhere_and_nothing_else() {
        for (listen, host) in [
            ("127.0.0.1:9000", "127.0.0.1:9000"),
            (":9000", "127.0.0.1:9000"),
            ("0.0.0.0:9000", "127.0.0.1:9000"),
            ("[::]:9000", "[::1]:9000"),
            ("10.0.0.7:8787", "10.0.0.7:8787"),
        ] {
            for (typescript, file) in [(false, JAVASCRIPT), (true, TYPESCRIPT)] {
                let printed = printed(typescript, &[listen, "127.0.0.1:1"]).unwrap();
                assert_eq!(printed.matches(DEFAULT_ADDRESS).count(), 0, "{listen}");
                assert!(
                    printed.contains(&format!("const DEFAULT_URL = 'http://{host}/webhook';")),
                    "{listen}"
                );
                assert_eq!(printed.replace(host, DEFAULT_ADDRESS), file, "{listen}");
            }
        }
    }

    #[test]
    fn an_address_that_cannot_be_posted_to_is_told_with_its_flag() {
        for listen in ["here", "127.0.0.1", "127.0.0.1:0"] {
            let mistakes = printed(false, &[listen]).unwrap_err().to_string();
            assert!(mistakes.starts_with("--listen: "), "{mistakes}");
        }
    }

    /// They differ in types, in imports and exports, and in nothing that runs.
    #[test]
    fn both_files_read_the_same_settings() {
        let settings = |file: &str| {
            let words = file.split(|c: char| !(c.is_ascii_uppercase() || c == '_'));
            let mut names: Vec<_> = words
                .filter(|word| word.starts_with("STRAPI_QSTASH_"))
                .map(str::to_owned)
                .collect();
            names.sort_unstable();
            names
        };
        assert_eq!(settings(JAVASCRIPT), settings(TYPESCRIPT));
        for name in [
            "STRAPI_QSTASH_WEBHOOK_URL",
            "STRAPI_QSTASH_WEBHOOK_SECRET",
            "STRAPI_QSTASH_WEBHOOK_EVENTS",
        ] {
            assert!(settings(JAVASCRIPT).iter().any(|known| known == name));
        }
    }

    #[test]
    fn qstash_s_token_is_not_for_strapi() {
        for file in [JAVASCRIPT, TYPESCRIPT] {
            assert!(!file.contains("QSTASH_TOKEN"));
        }
    }
}

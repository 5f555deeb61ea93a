//! Parts of the settings, for commands that need no more.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Mistakes, admin_address, buffer_settings, given, qstash_settings, router};
use crate::cli::ServeArgs;
use crate::router::Router;
use crate::secret::Secret;
use crate::{buffer, qstash};

/// How QStash is reached, for a command that needs no more.
pub(crate) fn qstash(args: &ServeArgs) -> Result<qstash::Settings, Mistakes> {
    let mut mistakes = Mistakes::default();
    let settings = qstash_settings(args, &mut mistakes, &mut Vec::new());
    settings.filter(|_| mistakes.0.is_empty()).ok_or(mistakes)
}

/// Where events go, for a command that needs no more.
pub(crate) fn routing(args: &ServeArgs) -> Result<Router, Mistakes> {
    let mut mistakes = Mistakes::default();
    let router = router(args, &mut mistakes, &mut Vec::new());
    router.filter(|_| mistakes.0.is_empty()).ok_or(mistakes)
}

/// Where a running sidecar can be asked, from the same machine: what `--admin` says, or else
/// what the sidecar is told with `--admin-listen`.
pub(crate) fn admin_to_ask(
    admin: Option<&str>,
    listen: Option<&str>,
) -> Result<SocketAddr, Mistakes> {
    let (flag, text) = match admin {
        Some(text) => ("--admin", Some(text)),
        None => ("--admin-listen", listen),
    };
    let text = text.map(|text| text.strip_prefix("http://").unwrap_or(text));
    let mut mistakes = Mistakes::default();
    let checked = mistakes.check(
        flag,
        admin_address(text.map(|text| text.trim_end_matches('/'))),
    );
    let mut address = checked.ok_or(mistakes)?;
    // What is listened on everywhere is asked on this machine.
    if address.ip().is_unspecified() {
        address.set_ip(match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(_) => Ipv6Addr::LOCALHOST.into(),
        });
    }
    Ok(address)
}

/// The token that a running sidecar wants to be shown.
pub(crate) fn admin_token(args: &ServeArgs) -> Option<Secret> {
    given(&args.admin_token).and_then(Secret::trimmed)
}

/// The buffer's settings, for a command that needs no more.
pub(crate) fn buffer(args: &ServeArgs) -> Result<buffer::Settings, Mistakes> {
    let mut mistakes = Mistakes::default();
    let settings = buffer_settings(args, &mut mistakes);
    settings.filter(|_| mistakes.0.is_empty()).ok_or(mistakes)
}

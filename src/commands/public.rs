//! Whether QStash, out in the world, can reach a URL.

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use reqwest::Url;

/// A person waits.
const RESOLVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Why QStash cannot deliver to it; `None` where nothing says so from here.
pub(super) async fn unreachable_from_outside(url: &str) -> Option<String> {
    let Ok(parsed) = Url::parse(url) else {
        return Some("it is no URL".to_owned());
    };
    let host = parsed
        .host_str()
        .unwrap_or_default()
        .trim_matches(['[', ']']);
    if let Ok(address) = host.parse::<IpAddr>() {
        return (!is_public(address)).then(|| format!("{address} is no public address"));
    }
    let is_local = ["localhost", "local", "internal", "lan", "home.arpa"]
        .iter()
        .any(|name| host == *name || host.ends_with(&format!(".{name}")));
    if is_local || !host.contains('.') {
        return Some(format!("{host} is a name of this machine or network only"));
    }
    let port = parsed.port_or_known_default().unwrap_or(443);
    let resolved = tokio::time::timeout(RESOLVE_TIMEOUT, tokio::net::lookup_host((host, port)));
    // That it does not resolve from here says nothing of there.
    let addresses: Vec<IpAddr> = resolved
        .await
        .ok()?
        .ok()?
        .map(|address| address.ip())
        .collect();
    let none_is_public = !addresses.is_empty() && !addresses.iter().copied().any(is_public);
    none_is_public.then(|| format!("{host} resolves to addresses that are not public"))
}

fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            let [first, second, ..] = address.octets();
            let is_shared = first == 100 && (64..128).contains(&second);
            !(address.is_loopback()
                || address.is_private()
                || address.is_link_local()
                || address.is_unspecified()
                || address.is_broadcast()
                || address.is_documentation()
                || is_shared)
        }
        IpAddr::V6(address) => match address.to_ipv4_mapped() {
            Some(address) => is_public(address.into()),
            None => {
                !(address == Ipv6Addr::LOCALHOST
                    || address.is_unspecified()
                    || address.is_unique_local()
                    || address.is_unicast_link_local())
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_only_this_machine_or_network_knows_is_told() {
        for url in [
            "http://localhost:3000/hook",
            "http://127.0.0.1",
            "http://[::1]:3000",
            "http://0.0.0.0",
            "https://10.1.2.3/x",
            "https://192.168.1.2",
            "http://[fd00::1]/",
            "http://[::ffff:10.0.0.1]/",
            "http://site",
            "https://nas.local/hook",
            "no url",
        ] {
            assert!(unreachable_from_outside(url).await.is_some(), "{url}");
        }
        for url in ["https://93.184.216.34/hook", "https://[2606:4700::1111]/"] {
            assert_eq!(unreachable_from_outside(url).await, None, "{url}");
        }
    }
}

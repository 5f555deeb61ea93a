//! What can be looked at on this machine: the buffer, the running sidecar, Strapi's side.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use bytesize::ByteSize;
use rustix::fs::{Access, access, statvfs};

use super::Findings;
use crate::buffer::{EventState, Filter, ListFrom, ObserveError, Observer, Seq, Settings};
use crate::cli::CheckArgs;
use crate::clock;
use crate::commands::running::Running;
use crate::config::Config;
use crate::when;

/// Below it a burst of events would fill the disk.
const LITTLE: u64 = 64 << 20;

/// An event that waits longer is worth a look.
const LONG: Duration = Duration::from_secs(600);

pub(super) fn buffer(settings: &Settings, findings: &mut Findings) {
    let path = settings.path.as_path();
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    let folder = folder.unwrap_or(Path::new("."));
    match Observer::open(path) {
        Ok(observer) => {
            let writable =
                access(path, Access::WRITE_OK).and_then(|()| access(folder, Access::WRITE_OK));
            match writable {
                Ok(()) => findings.right("buffer", format!("{} can be written", path.display())),
                Err(_) => findings.wrong(
                    "buffer",
                    format!("{} cannot be written by this user", path.display()),
                    format!("chown -R \"$(id -un)\" '{}'", folder.display()),
                ),
            }
            if let Err(error) = waiting(&observer, findings) {
                findings.wrong("buffer", error.to_string(), "");
            }
        }
        Err(ObserveError::Missing(_)) => {
            match nearest(folder).map(|near| access(near, Access::WRITE_OK)) {
                Some(Ok(())) => findings.right(
                    "buffer",
                    format!("{} will be made at the first start", path.display()),
                ),
                _ => findings.wrong(
                    "buffer",
                    format!(
                        "{} cannot be made: its folder is not writable by this user",
                        path.display()
                    ),
                    format!(
                        "mkdir -p '{0}' && chown \"$(id -un)\" '{0}'",
                        folder.display()
                    ),
                ),
            }
        }
        Err(error) => {
            let cause = std::error::Error::source(&error)
                .map_or_else(String::new, |cause| format!(": {cause}"));
            let text = format!("{error}{cause}");
            findings.wrong(
                "buffer",
                text,
                "choose another with --buffer, or move the file away",
            );
        }
    }
    if let Some(stat) = nearest(folder).and_then(|near| statvfs(near).ok()) {
        let free = stat.f_bavail.saturating_mul(stat.f_frsize);
        let used = std::fs::metadata(path).map_or(0, |meta| meta.len());
        let wanted = settings.max_bytes.saturating_sub(used);
        let text = format!("{} are free", ByteSize(free));
        match free {
            free if free < LITTLE => findings.wrong(
                "disk",
                format!("only {text}: when it is full, events are published before the answer, and lost if QStash is away"),
                "make room, or choose another disk with --data-dir",
            ),
            free if free < wanted => findings.note(
                "disk",
                format!("{text}, the buffer may grow by {}: lower --buffer-max or make room", ByteSize(wanted)),
            ),
            _ => findings.right("disk", text),
        }
    }
}

/// What waits for QStash, and what waits for a person.
fn waiting(observer: &Observer, findings: &mut Findings) -> Result<(), ObserveError> {
    let tally = observer.tally()?;
    if tally.dead > 0 {
        let text = match tally.dead {
            1 => "1 dead letter waits for a person".to_owned(),
            dead => format!("{dead} dead letters wait for a person"),
        };
        findings.note_with("events", text, "strapi-qstash events list --state dead");
    }
    let pending = Filter {
        state: Some(EventState::Pending),
        ..Filter::default()
    };
    let oldest = observer
        .list(&pending, ListFrom::Oldest(Seq::START), 1)?
        .events
        .pop();
    if let Some(oldest) = oldest {
        let age = clock::now().since(oldest.received_at);
        let text = format!(
            "{} wait for QStash, the oldest for {}",
            tally.pending,
            when::short(age)
        );
        match age > LONG {
            true => findings.wrong(
                "events",
                text,
                format!("strapi-qstash events show {}", oldest.id),
            ),
            false => findings.note("events", text),
        }
    }
    Ok(())
}

/// The folder itself, or the first above it that is there; `None` where a file is in its way.
fn nearest(folder: &Path) -> Option<&Path> {
    let of_empty = |folder: &Path| folder.as_os_str().is_empty();
    let mut all = folder.ancestors().map(|folder| match of_empty(folder) {
        true => Path::new("."),
        false => folder,
    });
    all.find(|folder| folder.exists() || folder.is_symlink())
        .filter(|folder| folder.is_dir())
}

/// The sidecar, if one runs.
pub(super) async fn sidecar(args: &CheckArgs, findings: &mut Findings) {
    if args.serve.no_admin {
        return;
    }
    let running = match Running::new(args.admin.as_deref(), &args.serve) {
        Ok(running) => running,
        Err(_) => return, // told among the settings
    };
    let address = running.address();
    match running.ready().await {
        None => findings.note(
            "sidecar",
            format!("none answers at its admin address {address}"),
        ),
        Some((200, _)) => findings.right(
            "sidecar",
            format!("one runs (admin address {address}), and takes events"),
        ),
        Some((_, text)) => findings.wrong(
            "sidecar",
            format!(
                "the one at {address} cannot make events durable: {}",
                text.trim()
            ),
            "look at its log, and at the disk of its buffer",
        ),
    }
}

/// What Strapi takes as a webhook's URL.
pub(super) fn strapi(config: &Config, findings: &mut Findings) {
    let Some(address) = config.inbound.listen.first() else {
        return;
    };
    let is_local =
        |address: &SocketAddr| address.ip().is_loopback() || address.ip().is_unspecified();
    if is_local(address) {
        findings.note_with(
            "strapi",
            format!(
                "Strapi 4 and 5 take http://{address}/webhook in their panel in development; with NODE_ENV=production they refuse \
                 local and private addresses there, and code registers it"
            ),
            "strapi-qstash strapi-bootstrap > src/index.js",
        );
    }
    if address.is_ipv6() && !address.ip().is_unspecified() {
        findings.wrong(
            "strapi",
            format!("Strapi takes no IPv6 address in a webhook's URL, and {address} is one"),
            "add --listen 127.0.0.1:8787",
        );
    }
}

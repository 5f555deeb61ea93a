//! `events export`: each event as two files, its body and what curl needs to post it.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, bail};
use serde_json::json;

use super::{count, observe, select};
use crate::buffer::{Listed, Whole};
use crate::cli::ExportArgs;
use crate::commands::terminal::{Progress, hint, say};

pub(super) fn run(args: &ExportArgs) -> anyhow::Result<()> {
    let observer = observe(&args.serve)?;
    let events = select(&observer, &args.ids, &args.filter)?;
    if events.is_empty() {
        bail!("nothing to do: no event is meant by that");
    }
    let folder = Path::new(&args.out);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(folder)
        .with_context(|| format!("could not make the folder {}", folder.display()))?;
    let mut progress = Progress::new("Exporting", events.len());
    let mut written = 0;
    for event in &events {
        // It may have gone meanwhile.
        if let Some(payload) = observer.payload(event.seq)? {
            write_event(folder, event, &payload, args.url.as_deref())?;
            written += 1;
        }
        progress.add(1);
    }
    progress.end();
    if args.json {
        say(json!({ "written": written, "gone": events.len() - written }).to_string())?;
        return Ok(());
    }
    say(format!("Wrote {} to {}.", count(written), folder.display()))?;
    let url = if args.url.is_some() { "" } else { " URL" };
    hint(format!(
        "Post one, in that folder:  curl -K ID.curl{url}\nPost all, in order:        for f in *.curl; do curl -K $f{url}; done"
    ));
    Ok(())
}

fn write_event(
    folder: &Path,
    event: &Listed,
    payload: &Whole,
    url: Option<&str>,
) -> anyhow::Result<()> {
    let body = format!("{}.json", event.id);
    write(&folder.join(&body), &payload.body)?;
    let mut config = format!(
        "# {} received {}\n",
        printable(&event.facts.kind),
        event.received_at
    )
    .into_bytes();
    if let Some(url) = url {
        setting(&mut config, "url", url.as_bytes());
    }
    setting(&mut config, "request", b"POST");
    for (name, value) in payload.headers.iter() {
        // curl takes a header without a value for one to leave out, unless it ends so.
        let header = match value.is_empty() {
            true => format!("{name};").into_bytes(),
            false => [name.as_bytes(), b": ", value].concat(),
        };
        setting(&mut config, "header", &header);
    }
    setting(&mut config, "data-binary", format!("@{body}").as_bytes());
    write(&folder.join(format!("{}.curl", event.id)), &config)
}

/// A line of a file for `curl -K`.
fn setting(config: &mut Vec<u8>, name: &str, value: &[u8]) {
    config.extend_from_slice(format!("{name} = \"").as_bytes());
    for byte in value {
        match byte {
            b'"' | b'\\' => config.extend_from_slice(&[b'\\', *byte]),
            byte => config.push(*byte),
        }
    }
    config.extend_from_slice(b"\"\n");
}

fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).collect()
}

/// Readable by its owner only: bodies hold what is not public.
fn write(path: &Path, bytes: &[u8]) -> anyhow::Result<()> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path);
    file.and_then(|mut file| file.write_all(bytes))
        .with_context(|| format!("could not write {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_something_to_curl_is_written_so_that_it_does_not() {
        let mut config = Vec::new();
        setting(&mut config, "header", b"x-a: say \"hi\" \\ \xfc");
        assert_eq!(config, b"header = \"x-a: say \\\"hi\\\" \\\\ \xfc\"\n");
    }
}

//! What commands print, and how they ask: on a terminal for a person, elsewhere for a script.

use std::io::{IsTerminal, Write};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use indicatif::{ProgressBar, ProgressStyle};

/// Elsewhere than on a terminal, how often progress is told.
const TELL_EVERY: Duration = Duration::from_secs(5);

/// Less than this is over before anybody looks.
const WORTH_A_BAR: usize = 100;

/// Narrower than this, breaking lines helps nobody.
const LEAST_WIDTH: usize = 20;

/// Prints a line. An error is nearly always that nobody reads any more: it goes up as it is, so
/// that `head` ends a command quietly.
pub(super) fn say(line: impl AsRef<str>) -> std::io::Result<()> {
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(line.as_ref().as_bytes())?;
    stdout.write_all(b"\n")?;
    stdout.flush()
}

/// Prints a paragraph: on a terminal it is broken between words, with what follows the first line
/// behind `indent` columns.
pub(super) fn say_paragraph(text: &str, indent: usize) -> std::io::Result<()> {
    let Some(width) = width().filter(|width| *width > indent + LEAST_WIDTH) else {
        return say(text);
    };
    let indent = " ".repeat(indent);
    let options = textwrap::Options::new(width)
        .break_words(false)
        .subsequent_indent(&indent);
    say(textwrap::fill(text, options))
}

/// Tells a person what is no result.
pub(super) fn hint(line: impl AsRef<str>) {
    writeln!(std::io::stderr(), "{}", line.as_ref()).ok(); // nobody may be there to be told
}

/// The columns that a table may have; `None`: as many as it wants.
pub(super) fn width() -> Option<usize> {
    if !std::io::stdout().is_terminal() {
        return None;
    }
    terminal_size::terminal_size().map(|(terminal_size::Width(width), _)| usize::from(width))
}

/// Whether a person says yes. Where none can be asked, nothing is done.
pub(super) fn confirm(question: &str) -> anyhow::Result<()> {
    if !std::io::stdin().is_terminal() {
        bail!("{question} Nothing was done, since there is no terminal to ask: add --yes");
    }
    let mut stderr = std::io::stderr().lock();
    write!(stderr, "{question} [y/N] ").and_then(|()| stderr.flush())?;
    let mut answer = String::new();
    std::io::stdin()
        .read_line(&mut answer)
        .context("could not read the answer")?;
    match answer.trim().to_ascii_lowercase().as_str() {
        "y" | "yes" => Ok(()),
        _ => bail!("nothing was done"),
    }
}

/// Tells how far long work is, on stderr: a bar on a terminal, lines elsewhere.
pub(super) struct Progress {
    what: &'static str,
    total: usize,
    done: usize,
    bar: Option<ProgressBar>,
    told: Instant,
}

impl Progress {
    pub(super) fn new(what: &'static str, total: usize) -> Self {
        let bar = (std::io::stderr().is_terminal() && total >= WORTH_A_BAR).then(|| {
            let style = ProgressStyle::with_template(
                "{msg} {wide_bar} {human_pos} of {human_len}, {eta} left",
            );
            let bar = ProgressBar::new(total as u64).with_message(what);
            bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
        });
        Self {
            what,
            total,
            done: 0,
            bar,
            told: Instant::now(),
        }
    }

    pub(super) fn add(&mut self, count: usize) {
        self.done += count;
        match &self.bar {
            Some(bar) => bar.inc(count as u64),
            None if self.told.elapsed() >= TELL_EVERY => {
                self.told = Instant::now();
                hint(format!("{}: {} of {}", self.what, self.done, self.total));
            }
            None => {}
        }
    }

    pub(super) fn end(self) {
        if let Some(bar) = self.bar {
            bar.finish_and_clear();
        }
    }
}

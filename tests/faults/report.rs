//! How long a fault is tried, and what came of it.

use std::fmt;
use std::time::Duration;

/// How much of a fault is tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scale {
    /// In each `cargo test`: some seconds a fault.
    Short,
    /// Long enough to mean something: some minutes a fault.
    Long,
}

impl Scale {
    pub(crate) fn from_environment() -> Self {
        match std::env::var("STRAPI_QSTASH_FAULTS").as_deref() {
            Ok("long") => Self::Long,
            Ok("short" | "") | Err(_) => Self::Short,
            Ok(other) => panic!("STRAPI_QSTASH_FAULTS is short or long, not {other}"),
        }
    }

    /// The one or the other.
    pub(crate) fn pick<T>(self, short: T, long: T) -> T {
        match self {
            Self::Short => short,
            Self::Long => long,
        }
    }
}

/// What came of a fault.
#[derive(Debug, Default)]
pub(crate) struct Report {
    /// How often it was tried.
    pub(crate) tries: usize,
    /// Events that were answered with success, over all tries.
    pub(crate) accepted: usize,
    /// Those of them that are neither delivered nor in the buffer.
    pub(crate) lost: usize,
    /// Those that were delivered twice, after QStash's deduplication.
    pub(crate) duplicated: usize,
    /// The longest time from the end of the fault until the sidecar took events and QStash
    /// had one again; zero where the fault never kept it from that.
    pub(crate) worst_recovery: Duration,
    /// What else went wrong, such as an order that was not kept.
    pub(crate) wrong: Vec<String>,
    /// Why it was not tried, on a machine that cannot.
    pub(crate) skipped: Option<String>,
}

impl Report {
    pub(crate) fn recovered_in(&mut self, took: Duration) {
        self.worst_recovery = self.worst_recovery.max(took);
    }

    /// This machine cannot try it. CI's must be able to.
    pub(crate) fn skip(&mut self, why: String) {
        match std::env::var_os("CI") {
            Some(_) => self.wrong.push(why),
            None => self.skipped = Some(why),
        }
    }

    pub(crate) fn verdict(&self) -> Result<(), String> {
        let mut wrong = self.wrong.clone();
        if self.skipped.is_some() && wrong.is_empty() {
            return Ok(());
        }
        if self.tries == 0 || self.accepted == 0 {
            wrong.push("nothing was tried".to_owned());
        }
        if self.lost > 0 {
            wrong.push(format!(
                "{} of {} events are lost",
                self.lost, self.accepted
            ));
        }
        if self.duplicated > 0 {
            wrong.push(format!("{} events were delivered twice", self.duplicated));
        }
        if wrong.is_empty() {
            return Ok(());
        }
        Err(wrong.join("\n"))
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(why) = &self.skipped {
            return write!(f, "skipped: {why}");
        }
        write!(
            f,
            "{} tries, {} accepted, {} lost, {} twice, worst recovery {} ms",
            self.tries,
            self.accepted,
            self.lost,
            self.duplicated,
            self.worst_recovery.as_millis()
        )
    }
}

/// All reports, as a Markdown table.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<String>);

impl Table {
    pub(crate) fn add(&mut self, name: &str, report: &Report) {
        if report.skipped.is_some() {
            self.0.push(format!("| {name} | skipped | | | | |"));
            return;
        }
        self.0.push(format!(
            "| {name} | {} | {} | {} | {} | {:.1} s |",
            report.tries,
            report.accepted,
            report.lost,
            report.duplicated,
            report.worst_recovery.as_secs_f64()
        ));
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "| fault | tries | accepted | lost | twice | worst recovery |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|")?;
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

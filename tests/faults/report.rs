//! How long a fault is tried, and what came of it.

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use crate::stored::Stored;

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
    /// What else was measured.
    pub(crate) notes: Vec<String>,
    /// Why it was not tried, on a machine that cannot.
    pub(crate) skipped: Option<String>,
}

impl Report {
    pub(crate) fn recovered_in(&mut self, took: Duration) {
        self.worst_recovery = self.worst_recovery.max(took);
    }

    /// Counts what became of events: `accepted` were answered with success, `arrived` is what
    /// QStash has without repeats, in the order it came in, and `stored` what is still here.
    pub(crate) fn judge(&mut self, accepted: &BTreeSet<usize>, arrived: &[usize], stored: &Stored) {
        let there: BTreeSet<usize> = arrived.iter().copied().collect();
        let dead: BTreeSet<usize> = stored
            .dead
            .iter()
            .filter_map(|(number, _)| *number)
            .collect();
        let kept = |number: &&usize| {
            there.contains(number) || stored.pending.contains(number) || dead.contains(number)
        };
        self.accepted += accepted.len();
        self.lost += accepted.iter().filter(|number| !kept(number)).count();
        self.duplicated += arrived.len() - there.len();
        for document in 0..10 {
            if !arrived.iter().filter(|n| *n % 10 == document).is_sorted() {
                let text = format!("the events of document {document} are out of order");
                self.wrong.push(text);
            }
        }
        self.wrong.extend(stored.damage.iter().cloned());
    }

    /// This machine cannot try it. CI's must be able to.
    pub(crate) fn skip(&mut self, why: String) {
        match std::env::var_os("CI") {
            Some(_) => self.wrong.push(why),
            None => self.skipped = Some(why),
        }
    }

    /// Adds another report of the same fault.
    pub(crate) fn add(&mut self, other: Self) {
        self.tries += other.tries;
        self.accepted += other.accepted;
        self.lost += other.lost;
        self.duplicated += other.duplicated;
        self.recovered_in(other.worst_recovery);
        self.wrong.extend(other.wrong);
        self.notes.extend(other.notes);
        self.skipped = self.skipped.take().or(other.skipped);
    }

    /// Where QStash refuses nothing, no event may be a dead letter.
    pub(crate) fn no_dead_letters(&mut self, stored: &Stored) {
        if let Some((number, reason)) = stored.dead.first() {
            self.wrong.push(format!(
                "{} events are dead letters, such as {number:?}: {reason}",
                stored.dead.len()
            ));
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
        )?;
        self.notes
            .iter()
            .try_for_each(|note| write!(f, "\n    {note}"))
    }
}

/// All reports, as a Markdown table.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<String>);

impl Table {
    pub(crate) fn add(&mut self, name: &str, report: &Report) {
        if report.skipped.is_some() {
            self.0.push(format!("| {name} | skipped | | | | | |"));
            return;
        }
        self.0.push(format!(
            "| {name} | {} | {} | {} | {} | {:.1} s | {} |",
            report.tries,
            report.accepted,
            report.lost,
            report.duplicated,
            report.worst_recovery.as_secs_f64(),
            report.notes.join("; ")
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
            "| fault | tries | accepted | lost | twice | worst recovery | |"
        )?;
        writeln!(f, "|---|---|---|---|---|---|---|")?;
        self.0.iter().try_for_each(|row| writeln!(f, "{row}"))
    }
}

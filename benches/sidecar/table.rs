use std::fmt;
use std::time::Duration;

/// The result, as Markdown.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

#[derive(Debug)]
struct Row {
    what: String,
    measured: String,
    target: String,
    verdict: &'static str,
}

impl Table {
    /// A line that is held to a target.
    pub(crate) fn check(
        &mut self,
        what: impl Into<String>,
        measured: impl Into<String>,
        target: impl Into<String>,
        is_met: bool,
    ) {
        let verdict = if is_met { "ok" } else { "MISSED" };
        self.push(what.into(), measured.into(), target.into(), verdict);
    }

    /// A line to know, without a target.
    pub(crate) fn note(&mut self, what: impl Into<String>, measured: impl Into<String>) {
        self.push(what.into(), measured.into(), String::new(), "");
    }

    fn push(&mut self, what: String, measured: String, target: String, verdict: &'static str) {
        eprintln!("{what}: {measured} {verdict}");
        self.0.push(Row {
            what,
            measured,
            target,
            verdict,
        });
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "| | measured | target | |")?;
        writeln!(f, "|---|---|---|---|")?;
        self.0.iter().try_for_each(|row| {
            let Row {
                what,
                measured,
                target,
                verdict,
            } = row;
            writeln!(f, "| {what} | {measured} | {target} | {verdict} |")
        })
    }
}

/// The middle one.
pub(crate) fn median(numbers: &[f64]) -> f64 {
    let mut sorted = numbers.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// As people read it.
pub(crate) fn ms(time: Duration) -> String {
    let ms = time.as_secs_f64() * 1e3;
    match ms {
        0.0..10.0 => format!("{ms:.2} ms"),
        _ => format!("{ms:.0} ms"),
    }
}

/// So many connections.
pub(crate) fn plural(connections: usize) -> String {
    match connections {
        1 => "1 connection".to_owned(),
        _ => format!("{connections} connections"),
    }
}

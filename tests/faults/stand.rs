//! A sidecar as most faults want it.

use crate::harness::{Process, Sink};
use crate::load::Sent;
use crate::proxy::Proxy;
use crate::report::Report;
use crate::stored::{Check, Stored};
use crate::usage::{self, MEMORY_BOUND};

/// The sidecar as a process, with a light QStash behind a door.
pub(crate) struct Stand {
    pub(crate) sink: Sink,
    pub(crate) proxy: Proxy,
    pub(crate) dir: tempfile::TempDir,
    pub(crate) process: Process,
}

impl Stand {
    pub(crate) async fn start() -> Self {
        let sink = Sink::start().await;
        let proxy = Proxy::start(sink.address()).await;
        let dir = tempfile::tempdir().unwrap();
        let flags = ["--listen", "127.0.0.1:0", "--buffer-max", "8GiB"];
        let mut command = Process::command_to(&dir, &proxy.url(), &flags);
        // A line for each of a million events would be kept by this process.
        command.args(["--log", "warn,strapi_qstash::commands=info"]);
        let process = Process::spawn(command).await;
        Self {
            sink,
            proxy,
            dir,
            process,
        }
    }

    /// Notes the peak since the last one, and whether it is within the bound.
    pub(crate) fn note_peak(&self, report: &mut Report, when: &str) {
        let pid = self.process.pid();
        let peak = usage::peak_memory(pid);
        let note = format!("at most {peak} {when}, {} after", usage::memory(pid));
        if peak > MEMORY_BOUND {
            report.wrong.push(format!("{note}, above {MEMORY_BOUND}"));
        }
        report.notes.push(note);
        usage::forget_peak(pid);
    }

    /// Stops the sidecar, and looks for every event.
    pub(crate) async fn judge(self, report: &mut Report, sent: &Sent) {
        self.judge_with_dead(report, sent, 0).await;
    }

    /// The same where some that are no events were sent too, and are kept as dead letters.
    pub(crate) async fn judge_with_dead(mut self, report: &mut Report, sent: &Sent, dead: usize) {
        self.process.signal("TERM");
        assert_eq!(self.process.exit_code().await, Some(0));
        let stored = Stored::read(self.dir.path(), Check::Quick);
        report.judge(&sent.accepted, &self.sink.ledger().numbers, &stored);
        let is_no_event = |(_, reason): &&(_, String)| reason.starts_with("not a JSON object");
        if stored.dead.iter().filter(is_no_event).count() != dead || stored.dead.len() != dead {
            let dead_letters = &stored.dead;
            let text = format!("{dead} dead letters were to be there, not {dead_letters:?}");
            report.wrong.push(text);
        }
    }
}

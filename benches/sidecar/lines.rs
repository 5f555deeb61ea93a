use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::bare::{self, Log};
use crate::client::{Client, Run, Times, Until};
use crate::events::{body, fill};
use crate::process::{Bare, Sidecar, binary};
use crate::sink::Running;
use crate::table::{Table, median, ms, plural};
use crate::{Line, Role};

/// What QStash takes for an answer, over the internet.
const FAR: Duration = Duration::from_millis(80);

/// The connections of a Strapi.
const STRAPIS: usize = 5;

/// Room for any backlog.
const BUFFER_MAX: &str = "--buffer-max=100GiB";

/// How much is measured, and what came of it.
pub(crate) struct Bench {
    /// Events that wait at the start of a drain.
    events: u64,
    /// How often what is compared takes turns: other work on the machine hits both sides.
    rounds: usize,
    /// How long a side's turn is.
    turn: Duration,
    /// Appends of the bare log in its turn.
    appends: usize,
    /// Events of a bulk publish.
    bulk: u64,
    /// How long an idle sidecar is watched.
    idle: Duration,
    /// Starts with a backlog.
    starts: usize,
    table: Table,
}

impl Bench {
    pub(crate) fn new(events: Option<u64>, quick: bool) -> Self {
        let pick = |quickly, fully| if quick { quickly } else { fully };
        Self {
            events: events.unwrap_or(pick(20_000, 200_000) as u64),
            rounds: pick(1, 5),
            turn: Duration::from_secs(pick(2, 6) as u64),
            appends: pick(500, 2_000),
            bulk: pick(500, 5_000) as u64,
            idle: Duration::from_secs(pick(2, 10) as u64),
            starts: pick(2, 5),
            table: Table::default(),
        }
    }

    /// Measures these lines, or all.
    pub(crate) async fn run(mut self, lines: &[Line]) -> Table {
        let is_wanted = |line| lines.is_empty() || lines.contains(&line);
        if is_wanted(Line::Ack) {
            self.ack().await;
        }
        if is_wanted(Line::Connections) {
            self.connections().await;
        }
        if is_wanted(Line::Drain) {
            self.drain().await;
        }
        if is_wanted(Line::Idle) {
            self.idle().await;
        }
        if is_wanted(Line::Size) {
            self.size();
        }
        if is_wanted(Line::Strapi) {
            self.strapi().await;
        }
        self.table
    }

    /// The time of an answer beside the bare log's.
    async fn ack(&mut self) {
        let (folder, sink) = (folder(), Running::start().await);
        let sidecar = Sidecar::start(folder.path(), sink.address(), &[BUFFER_MAX]).await;
        for (connections, most) in [(1, 2.0), (STRAPIS, 3.0)] {
            let acks = self
                .acks(&sidecar, folder.path(), connections, self.rounds)
                .await;
            self.tell_acks(&format!("ack, {}", plural(connections)), &acks, most);
        }
        sidecar.drained().await;
        sidecar.stop().await;

        // All that was delivered so far is old now: the purge begins with the start.
        let flags = [BUFFER_MAX, "--keep-delivered", "1ms"];
        let sidecar = Sidecar::start(folder.path(), sink.address(), &flags).await;
        let history = "strapi_qstash_buffer_events{state=\"delivered\"}";
        let before = sidecar.metric(history).await;
        let acks = self.acks(&sidecar, folder.path(), STRAPIS, 1).await;
        let purged = before.saturating_sub(sidecar.metric(history).await);
        let what = format!(
            "ack, {}, while {purged} of {before} are purged",
            plural(STRAPIS)
        );
        self.tell_acks(&what, &acks, 3.0);
    }

    /// Takes turns with the bare log, on the same disk.
    async fn acks(
        &self,
        sidecar: &Sidecar,
        folder: &Path,
        connections: usize,
        rounds: usize,
    ) -> Acks {
        let client = Client::new(sidecar.webhook, "/webhook");
        let record = body(0);
        let mut acks = Acks::default();
        // The first file of the log is written anew, the first events find caches empty.
        client.drive(connections, Until::After(self.turn / 4)).await;
        let passes = checkpoints(folder);
        for _ in 0..rounds {
            sidecar.drained().await;
            let growing = bare::log(folder, Log::Growing, &record, self.appends);
            let least = bare::log(folder, Log::Preallocated, &record, self.appends);
            let run = client.drive(connections, Until::After(self.turn)).await;
            acks.add_round(growing, least, run);
        }
        acks.checkpoints = checkpoints(folder).wrapping_sub(passes);
        acks
    }

    fn tell_acks(&mut self, what: &str, acks: &Acks, most: f64) {
        let ratio = median(&acks.ratios);
        self.table.check(
            format!("{what}, p50"),
            format!(
                "{ratio:.2} × ({}; the log {}) of {} events, {:.0}/s",
                ms(acks.times.median()),
                ms(acks.growing.median()),
                acks.times.len(),
                acks.times.len() as f64 / acks.took.as_secs_f64(),
            ),
            format!("{most} × the bare log"),
            ratio <= most,
        );
        self.table.note(
            format!("{what}, p50 to a preallocated log"),
            format!(
                "{:.2} × (the log {})",
                median(&acks.least_ratios),
                ms(acks.least.median())
            ),
        );
        let p99 = acks.times.quantile(0.99);
        self.table.check(
            format!("{what}, p99"),
            format!(
                "{} with {} checkpoints (the log {}; p99.9 {}, longest {})",
                ms(p99),
                acks.checkpoints,
                ms(acks.growing.quantile(0.99)),
                ms(acks.times.quantile(0.999)),
                ms(acks.times.quantile(1.0)),
            ),
            "5 ms",
            p99 <= Duration::from_millis(5),
        );
    }

    /// Requests a second beside the bare server's.
    async fn connections(&mut self) {
        const CONNECTIONS: usize = 64;
        let (folder, sink) = (folder(), Running::start().await);
        let sidecar = Sidecar::start(folder.path(), sink.address(), &[BUFFER_MAX]).await;
        let server = Bare::start(Role::Server).await;
        let bare = Client::new(server.address, "/webhook");
        let full = Client::new(sidecar.webhook, "/webhook");
        let (mut ratios, mut rates, mut bare_rates) = (Vec::new(), Vec::new(), Vec::new());
        let mut times = Times::default();
        for _ in 0..self.rounds {
            let run = bare.drive(CONNECTIONS, Until::After(self.turn)).await;
            let bare_rate = run.per_second();
            let run = full.drive(CONNECTIONS, Until::After(self.turn)).await;
            ratios.push(run.per_second() / bare_rate);
            rates.push(run.per_second());
            bare_rates.push(bare_rate);
            times.add(run.times);
            sidecar.drained().await;
        }
        let ratio = median(&ratios);
        self.table.check(
            format!("{CONNECTIONS} connections, publishing meanwhile"),
            format!(
                "{ratio:.2} ({:.0}/s; the server {:.0}/s; p99 {})",
                median(&rates),
                median(&bare_rates),
                ms(times.quantile(0.99)),
            ),
            "0.3 of the bare server's requests (aim 0.5)",
            ratio >= 0.3,
        );
    }

    /// A backlog: starting with it, draining it, memory, and new events meanwhile.
    async fn drain(&mut self) {
        let sink = Running::start().await;
        for (delay, least) in [(Duration::ZERO, 20_000.0), (FAR, 5_000.0)] {
            let folder = folder();
            eprintln!("filling a buffer with {} events", self.events);
            fill(folder.path(), self.events).await;
            if delay.is_zero() {
                self.starts(folder.path(), &sink).await;
            }
            sink.refuse(false).await;
            sink.delay(delay).await;
            self.drain_into(folder.path(), &sink, delay, least).await;
        }
    }

    async fn starts(&mut self, folder: &Path, sink: &Running) {
        sink.refuse(true).await;
        let mut times = Vec::new();
        for _ in 0..self.starts {
            let sidecar = Sidecar::start(folder, sink.address(), &[BUFFER_MAX]).await;
            times.push(sidecar.ready_after);
            sidecar.stop().await;
        }
        let times = Times::from_iter(times);
        self.table.check(
            format!("ready with {} waiting", self.events),
            format!(
                "{} (longest {})",
                ms(times.median()),
                ms(times.quantile(1.0))
            ),
            "50 ms",
            times.median() <= Duration::from_millis(50),
        );
    }

    async fn drain_into(&mut self, folder: &Path, sink: &Running, delay: Duration, least: f64) {
        let answers = match delay {
            Duration::ZERO => "QStash answers at once".to_owned(),
            delay => format!("QStash answers after {}", ms(delay)),
        };
        let what = format!("drain of {}, {answers}", self.events);
        let log = bare::log(folder, Log::Growing, &body(0), self.appends);
        let delivered = "strapi_qstash_delivered_events_total";
        let started = Instant::now();
        let sidecar = Sidecar::start(folder, sink.address(), &[BUFFER_MAX]).await;
        let half = self.events / 2;
        sidecar.wait_until(delivered, |count| count >= half).await;
        let rate = sidecar.delivered().await as f64 / started.elapsed().as_secs_f64();
        self.table.check(
            &what,
            format!("{rate:.0}/s"),
            format!("{least:.0}/s"),
            rate >= least,
        );

        let client = Client::new(sidecar.webhook, "/webhook");
        let (before, since) = (sidecar.delivered().await, Instant::now());
        let mut times = Times::default();
        // In short turns: the backlog is at its end before the last of the new ones.
        while sidecar.delivered().await < self.events {
            let run = client
                .drive(STRAPIS, Until::After(Duration::from_millis(250)))
                .await;
            times.add(run.times);
        }
        let meanwhile = (sidecar.delivered().await - before) as f64 / since.elapsed().as_secs_f64();
        let ratio = times.median().as_secs_f64() / log.median().as_secs_f64();
        let p99 = times.quantile(0.99);
        self.table.check(
            format!("{what}, new events meanwhile"),
            format!(
                "{ratio:.2} × ({}), p99 {}, {:.0}/s beside {meanwhile:.0}/s published",
                ms(times.median()),
                ms(p99),
                times.len() as f64 / since.elapsed().as_secs_f64(),
            ),
            "3 × the bare log, 5 ms",
            ratio <= 3.0 && p99 <= Duration::from_millis(5),
        );
        sidecar.drained().await;
        let memory = sidecar.peak_memory();
        self.table.check(
            format!("{what}, most memory"),
            format!("{memory:.1} MB"),
            "48 MB",
            memory <= 48.0,
        );
        sidecar.stop().await;
    }

    async fn idle(&mut self) {
        let (folder, sink) = (folder(), Running::start().await);
        let sidecar = Sidecar::start(folder.path(), sink.address(), &[]).await;
        let fresh = sidecar.memory();
        // What an idle sidecar is in practice: one that has had events.
        let client = Client::new(sidecar.webhook, "/webhook");
        client.drive(STRAPIS, Until::Answered(100)).await;
        sidecar.drained().await;
        tokio::time::sleep(self.idle / 5).await;
        let (cpu, wakeups) = (sidecar.cpu(), sidecar.wakeups());
        tokio::time::sleep(self.idle).await;
        let (cpu, wakeups) = (sidecar.cpu() - cpu, sidecar.wakeups() - wakeups);
        let memory = sidecar.memory();
        self.table.check(
            "memory when idle",
            format!("{memory:.1} MB after 100 events ({fresh:.1} MB before)"),
            "12 MB",
            memory <= 12.0,
        );
        let wakeups = wakeups as f64 / self.idle.as_secs_f64();
        self.table.check(
            "CPU when idle",
            format!(
                "{} and {wakeups:.1} wakeups a second in {:?}",
                ms(cpu),
                self.idle
            ),
            "none (less than one wakeup a second)",
            cpu.is_zero() && wakeups < 1.0,
        );
    }

    fn size(&mut self) {
        let size = std::fs::metadata(binary()).unwrap().len() as f64 / 1e6;
        self.table.check(
            "stripped binary",
            format!("{size:.2} MB"),
            "10 MB",
            size <= 10.0,
        );
    }

    /// A bulk publish: how long events wait in Strapi's memory, where a crash loses them.
    async fn strapi(&mut self) {
        let (folder, sink) = (folder(), Running::start().await);
        sink.delay(FAR).await;
        let sidecar = Sidecar::start(folder.path(), sink.address(), &[]).await;
        let bulk = Until::Answered(self.bulk);
        let straight = Client::new(sink.address(), "/v2/publish/news");
        let straight: Run = straight.drive(STRAPIS, bulk).await;
        let before = sink.messages().await;
        let (client, started) = (Client::new(sidecar.webhook, "/webhook"), Instant::now());
        let through: Run = client.drive(STRAPIS, bulk).await;
        sidecar.drained().await;
        let there = started.elapsed();
        assert_eq!(
            sink.messages().await - before,
            self.bulk,
            "each event arrives once"
        );
        self.table.note(
            format!("{} events from Strapi, {} to QStash", self.bulk, ms(FAR)),
            format!(
                "Strapi is rid of them after {:.2} s; {:.1} s straight to QStash: {:.0} times sooner",
                through.took.as_secs_f64(),
                straight.took.as_secs_f64(),
                straight.took.as_secs_f64() / through.took.as_secs_f64(),
            ),
        );
        self.table.note(
            "all of them at QStash",
            format!("after {:.2} s", there.as_secs_f64()),
        );
    }
}

/// The rounds of one number of connections.
#[derive(Default)]
struct Acks {
    times: Times,
    growing: Times,
    least: Times,
    /// Of the medians of each round.
    ratios: Vec<f64>,
    least_ratios: Vec<f64>,
    took: Duration,
    checkpoints: u32,
}

impl Acks {
    fn add_round(&mut self, growing: Times, least: Times, run: Run) {
        let median = run.times.median().as_secs_f64();
        self.ratios.push(median / growing.median().as_secs_f64());
        self.least_ratios
            .push(median / least.median().as_secs_f64());
        self.times.add(run.times);
        self.growing.add(growing);
        self.least.add(least);
        self.took += run.took;
    }
}

/// A folder on the disk that the project is on: memory would make fdatasync free.
fn folder() -> TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// How often the log was begun anew after a checkpoint, as its header counts it.
/// <https://www.sqlite.org/fileformat2.html#the_write_ahead_log>
fn checkpoints(folder: &Path) -> u32 {
    let mut log = std::fs::File::open(folder.join("strapi-qstash.db-wal")).unwrap();
    let mut sequence = [0; 4];
    log.seek(SeekFrom::Start(12)).unwrap();
    log.read_exact(&mut sequence).unwrap();
    u32::from_be_bytes(sequence)
}

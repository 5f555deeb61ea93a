mod forms;

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::harness::{LONG, fixtures, wait_until};
use crate::load::{self, Load};
use crate::report::{Report, Scale};
use crate::stand::Stand;
use crate::usage;

use forms::{Fate, Form};

/// Between the events of a connection of the load.
const PAUSE: Duration = Duration::from_millis(10);

/// What a sidecar has open when nobody is connected.
const FEW_FILES: usize = 50;

/// An answer that takes longer is none.
const QUIET: Duration = Duration::from_secs(2);

const HEAD: &str = "POST /webhook HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n";

/// Every malformed request, all of them at once, and many good ones in one go.
pub(crate) fn malformed(scale: Scale) -> Report {
    crate::block_on(async {
        let mut siege = Siege::start().await;
        for _ in 0..scale.pick(1, 10) {
            let address = siege.address();
            let forms: JoinSet<_> = forms::all()
                .into_iter()
                .map(|form| async move {
                    let answers = exchange(address, &form.bytes).await;
                    (form, answers)
                })
                .collect();
            for (form, answers) in forms.join_all().await {
                siege.expect(&form, &answers);
            }
            siege.pipelined(scale.pick(300, 1_000)).await;
            siege.continued().await;
        }
        siege.end().await
    })
}

/// Sends bytes; everything that comes back until nothing more does.
async fn exchange(address: SocketAddr, bytes: &[u8]) -> String {
    let (mut reading, mut writing) = TcpStream::connect(address).await.unwrap().into_split();
    let mut answers = Vec::new();
    let reading = async {
        let mut piece = [0; 4096];
        // It is not closed before it is quiet: a client that goes is a fault of its own.
        while let Ok(Ok(read @ 1..)) = timeout(QUIET, reading.read(&mut piece)).await {
            answers.extend_from_slice(&piece[..read]);
        }
    };
    // The sidecar may have had enough before the end.
    let writing = async {
        writing.write_all(bytes).await.ok();
    };
    tokio::join!(reading, writing);
    String::from_utf8_lossy(&answers).into_owned()
}

/// Clients that hang up after each byte of a captured webhook.
pub(crate) fn hang_ups(scale: Scale) -> Report {
    crate::block_on(async {
        let mut siege = Siege::start().await;
        for name in fixtures::names() {
            let (request, body) = fixtures::captured(&name);
            let is_test = name.contains("trigger-test");
            // All of one, and some of each other.
            let step = match name.as_str() {
                "entry.publish.null-entry.http" => 1,
                _ => scale.pick(29, 1),
            };
            let mut hanging_up = JoinSet::new();
            for end in (0..request.len()).step_by(step) {
                siege.report.tries += 1;
                let part = request[..end].to_vec();
                hanging_up.spawn(hang_up(siege.address(), part, end % 2 == 0));
                if hanging_up.len() >= 16 {
                    hanging_up.join_next().await.unwrap().unwrap();
                }
            }
            hanging_up.join_all().await;
            siege.wait_until_closed().await;
            siege.expect_none(&format!("part of {name}"));
            // The whole of it may be taken, though nobody waits for the answer.
            if !is_test {
                hang_up(siege.address(), request, true).await;
                siege.unanswered.push(body);
            }
        }
        siege.end().await
    })
}

async fn hang_up(address: SocketAddr, part: Vec<u8>, reset: bool) {
    let mut stream = TcpStream::connect(address).await.unwrap();
    stream.write_all(&part).await.ok(); // the sidecar may have hung up first
    if reset {
        stream.set_zero_linger().unwrap();
    }
}

/// Heads and bodies that come byte by byte, and bodies that stop.
pub(crate) fn slow_senders(scale: Scale) -> Report {
    crate::block_on(async {
        let mut siege = Siege::start().await;
        let address = siege.address();
        let lasting = Duration::from_secs(scale.pick(4, 100));
        let body = forms::event(&"slow".repeat(50));
        let head = format!("{HEAD}content-length: {}\r\n\r\n", body.len());
        let count = scale.pick(100, 600);
        let mut streams = load::connect(address, 3 * count).await.into_iter();
        let mut slow = JoinSet::new();
        let mut send = |at_once: String, slowly: String| {
            slow.spawn(trickle(streams.next().unwrap(), at_once, slowly, lasting));
        };
        for _ in 0..count {
            send(String::new(), format!("{head}{body}"));
            send(head.clone(), body.clone());
            send(format!("{head}{}", &body[..20]), String::new());
        }
        siege.report.tries = slow.len();
        let ends = slow.join_all().await;
        let closed = ends.iter().flatten().count();
        let told = ends.iter().flatten().filter(|told| told.contains(" 408 "));
        let (in_body, told) = (2 * count, told.count());
        let note = format!("{closed} were closed, {told} of {in_body} in their bodies with 408");
        siege.report.notes.push(note);
        // Heads have 75 s, and a body 30 s, whether it stops or comes byte by byte.
        if scale == Scale::Long && (closed, told) != (3 * count, in_body) {
            siege
                .report
                .wrong
                .push("slow senders are not cut off".to_owned());
        }
        siege.wait_until_closed().await;
        siege.expect_none("a slow part");
        siege.end().await
    })
}

/// Sends the second part at a byte a second and never all of it, then waits; what it was told
/// if the other end closed.
async fn trickle(
    stream: TcpStream,
    at_once: String,
    slowly: String,
    lasting: Duration,
) -> Option<String> {
    let (mut reading, mut writing) = stream.into_split();
    let sending = async move {
        writing.write_all(at_once.as_bytes()).await.ok();
        for byte in slowly.bytes().skip(1) {
            writing.write_all(&[byte]).await.ok(); // the other end tells when it has closed
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        std::future::pending::<()>().await
    };
    let mut told = Vec::new();
    let ended = timeout(lasting, async {
        tokio::select! {
            () = sending => {}
            _ = reading.read_to_end(&mut told) => {}
        }
    });
    let ended = ended.await.is_ok();
    ended.then(|| String::from_utf8_lossy(&told).into_owned())
}

/// Bodies of 2 GB, announced, and in chunks without an end.
pub(crate) fn endless_bodies(scale: Scale) -> Report {
    crate::block_on(async {
        let mut siege = Siege::start().await;
        usage::forget_peak(siege.stand.process.pid());
        let address = siege.address();
        let sending: JoinSet<_> = (0..scale.pick(2, 8))
            .map(|n| pour(address, n % 2 == 0))
            .collect();
        siege.report.tries = sending.len();
        let answers = sending.join_all().await;
        let told = answers.iter().filter(|answer| answer.contains(" 413 "));
        let note = format!("{} of {} were told 413", told.count(), answers.len());
        siege.report.notes.push(note);
        siege.wait_until_closed().await;
        siege.expect_none("an endless body");
        siege.end().await
    })
}

/// Sends until the other end has enough; what it answered.
async fn pour(address: SocketAddr, announced: bool) -> String {
    const LENGTH: usize = 2 << 30;
    let piece = " ".repeat(64 << 10);
    let (head, piece) = match announced {
        true => (format!("{HEAD}content-length: {LENGTH}\r\n\r\n"), piece),
        false => (
            format!("{HEAD}transfer-encoding: chunked\r\n\r\n"),
            format!("{:x}\r\n{piece}\r\n", piece.len()),
        ),
    };
    let (mut reading, mut writing) = TcpStream::connect(address).await.unwrap().into_split();
    let writing = async move {
        writing.write_all(head.as_bytes()).await?;
        let mut sent = 0;
        while sent < LENGTH {
            writing.write_all(piece.as_bytes()).await?;
            sent += piece.len();
        }
        io::Result::Ok(())
    };
    let reading = async move {
        let mut answer = Vec::new();
        reading.read_to_end(&mut answer).await.ok(); // a reset may follow the answer
        String::from_utf8_lossy(&answer).into_owned()
    };
    timeout(LONG, async { tokio::join!(writing, reading).1 })
        .await
        .unwrap_or_else(|_elapsed| "nobody stopped it".to_owned())
}

/// A sidecar with five honest senders, and whoever else there is.
struct Siege {
    stand: Stand,
    load: Load,
    report: Report,
    /// Events that are no update and may be taken, each once.
    allowed: Vec<Vec<u8>>,
    /// Those of them that have to be in this order.
    pipelined: Vec<Vec<u8>>,
    /// Events that nobody had an answer for: they may be there.
    unanswered: Vec<Vec<u8>>,
    /// Dead letters that are right.
    dead: usize,
}

impl Siege {
    async fn start() -> Self {
        let stand = Stand::start().await;
        let load = Load::start(stand.process.webhook, 0, PAUSE);
        Self {
            stand,
            load,
            report: Report::default(),
            allowed: Vec::new(),
            pipelined: Vec::new(),
            unanswered: Vec::new(),
            dead: 0,
        }
    }

    fn address(&self) -> SocketAddr {
        self.stand.process.webhook
    }

    /// Has a form come to what it may?
    fn expect(&mut self, form: &Form, answers: &str) {
        self.report.tries += 1;
        let with = |status: &str| {
            let versions = ["HTTP/1.1", "HTTP/1.0"];
            let counts =
                versions.map(|version| answers.matches(&format!("{version} {status} ")).count());
            counts.iter().sum::<usize>()
        };
        let (taken, dead) = (with("202"), with("422"));
        let is_right = match form.fate {
            Fate::Taken => (taken, dead) == (1, 0),
            Fate::Refused => (taken, dead) == (0, 0),
            Fate::Either => taken <= 1 && dead == 0,
            Fate::Dead => (taken, dead) == (0, 1),
        };
        if !is_right {
            let text = format!(
                "{}: should be {:?}, was answered {answers:?}",
                form.name, form.fate
            );
            self.report.wrong.push(text);
        }
        self.dead += dead;
        let event = forms::event(form.name).into_bytes();
        self.allowed.extend(std::iter::repeat_n(event, taken));
    }

    /// Nothing but the load's events is there.
    fn expect_none(&mut self, what: &str) {
        let ledger = self.stand.sink.ledger();
        if ledger.others.len() > self.allowed.len() + self.unanswered.len() {
            self.report
                .wrong
                .push(format!("{what} was taken as an event"));
        }
    }

    /// Many requests in one go: each is taken, in order.
    async fn pipelined(&mut self, count: usize) {
        self.report.tries += 1;
        let bodies: Vec<String> = (0..count)
            .map(|k| format!(r#"{{"event":"pipelined","uid":"api::p.p","entry":{{"documentId":"p","k":{k}}}}}"#))
            .collect();
        let requests = bodies
            .iter()
            .map(|body| format!("{HEAD}content-length: {}\r\n\r\n{body}", body.len()));
        let requests: String = requests.collect();
        let answers = exchange(self.address(), requests.as_bytes()).await;
        let taken = answers.matches("HTTP/1.1 202 ").count();
        if taken != count {
            let text = format!("{taken} of {count} pipelined requests were answered 202");
            self.report.wrong.push(text);
        }
        let bodies = bodies.into_iter().take(taken).map(String::into_bytes);
        self.pipelined.extend(bodies.clone());
        self.allowed.extend(bodies);
    }

    /// A client that waits for `100 Continue`, and one that hangs up instead.
    async fn continued(&mut self) {
        self.report.tries += 2;
        let body = forms::event("continued");
        let head = format!(
            "{HEAD}expect: 100-continue\r\ncontent-length: {}\r\n\r\n",
            body.len()
        );
        let mut stream = TcpStream::connect(self.address()).await.unwrap();
        stream.write_all(head.as_bytes()).await.unwrap();
        let mut answer = vec![0; 1024];
        let reading = timeout(LONG, stream.read(&mut answer)).await;
        let read = reading.unwrap().unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 100 "));
        stream.write_all(body.as_bytes()).await.unwrap();
        let read = stream.read(&mut answer).await.unwrap();
        assert!(answer[..read].starts_with(b"HTTP/1.1 202 "));
        self.allowed.push(body.into_bytes());
        drop(
            TcpStream::connect(self.address())
                .await
                .unwrap()
                .write_all(head.as_bytes())
                .await,
        );
    }

    /// Waits until the sidecar has noticed that the others have gone.
    async fn wait_until_closed(&mut self) {
        let pid = self.stand.process.pid();
        if !wait_until(LONG, || usage::open_files(pid) < FEW_FILES).await {
            let text = format!("{} connections stay open", usage::open_files(pid));
            self.report.wrong.push(text);
        }
    }

    /// Each event of the load is there, and of the others what was taken, whole.
    async fn end(mut self) -> Report {
        let before = self.load.accepted();
        let goes_on = || self.load.accepted() > before + 20;
        if !wait_until(LONG, goes_on).await {
            self.report
                .wrong
                .push("no more events are taken".to_owned());
        }
        self.wait_until_closed().await;
        let sent = self.load.stop().await;
        let (stand, mut report) = (self.stand, self.report);
        sent.check(&mut report);
        report.notes.push(format!(
            "slowest answer to Strapi {} ms",
            sent.slowest.as_millis()
        ));
        stand.note_peak(&mut report, "meanwhile");
        let all = sent.accepted.len() + self.allowed.len();
        stand.sink.wait_for(all, LONG).await;
        let others = stand.sink.ledger().others.clone();
        let is_pipelined = |other: &&Vec<u8>| other.starts_with(br#"{"event":"pipelined""#);
        if !others.iter().filter(is_pipelined).eq(&self.pipelined) {
            report
                .wrong
                .push("pipelined events are not all there in order".to_owned());
        }
        let mut missing = self.allowed;
        for other in &others {
            let of = |events: &mut Vec<Vec<u8>>| {
                let at = events.iter().position(|event| event == other)?;
                Some(events.swap_remove(at))
            };
            if of(&mut missing)
                .or_else(|| of(&mut self.unanswered))
                .is_none()
            {
                let event = String::from_utf8_lossy(other);
                report
                    .wrong
                    .push(format!("an event that nobody sent: {event}"));
            }
        }
        report.accepted += others.len();
        report.lost += missing.len();
        stand.judge_with_dead(&mut report, &sent, self.dead).await;
        report
    }
}

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::events::{BODY_BYTES, CAPTURED, body};

/// A request as Strapi sends it; its document's number is written over for each event.
#[derive(Clone)]
struct Template {
    bytes: Vec<u8>,
    number_at: usize,
}

impl Template {
    fn new(path: &str) -> Self {
        let (head, _) = CAPTURED.split_once("\r\n\r\n").unwrap();
        let (_, headers) = head.split_once("\r\n").unwrap();
        let kept = headers
            .split("\r\n")
            .filter(|header| !header.starts_with("content-length"));
        let mut bytes = format!("POST {path} HTTP/1.1\r\n").into_bytes();
        for header in kept {
            write!(bytes, "{header}\r\n").unwrap();
        }
        write!(bytes, "content-length: {BODY_BYTES}\r\n\r\n").unwrap();
        let head = bytes.len();
        bytes.extend(body(0));
        let number = format!("{:024}", 0).into_bytes();
        let in_body = bytes[head..]
            .windows(number.len())
            .position(|window| window == number)
            .unwrap();
        Self {
            bytes,
            number_at: head + in_body,
        }
    }

    fn of_document(&mut self, number: u64) -> &[u8] {
        let mut place = &mut self.bytes[self.number_at..];
        write!(place, "{number:024}").unwrap();
        &self.bytes
    }
}

/// When a load ends.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Until {
    After(Duration),
    Answered(u64),
}

/// What a load brought.
#[derive(Debug, Default)]
pub(crate) struct Run {
    pub(crate) times: Times,
    pub(crate) took: Duration,
}

impl Run {
    pub(crate) fn per_second(&self) -> f64 {
        self.times.0.len() as f64 / self.took.as_secs_f64()
    }
}

/// Connections to one server; each posts an event, waits for the answer, and posts the next.
pub(crate) struct Client {
    address: SocketAddr,
    template: Template,
    next_document: Arc<AtomicU64>,
}

impl Client {
    pub(crate) fn new(address: SocketAddr, path: &str) -> Self {
        Self {
            address,
            template: Template::new(path),
            next_document: Arc::default(),
        }
    }

    /// Posts until it is over; whatever is out then is waited for. Anything but a success is
    /// a panic.
    pub(crate) async fn drive(&self, connections: usize, until: Until) -> Run {
        let mut posting = JoinSet::new();
        let mut open = Vec::new();
        for _ in 0..connections {
            open.push(connect(self.address).await);
        }
        let started = Instant::now();
        let offered = Arc::new(AtomicU64::new(0));
        for mut stream in open {
            let mut template = self.template.clone();
            let (next, offered) = (Arc::clone(&self.next_document), Arc::clone(&offered));
            posting.spawn(async move {
                let mut times = Vec::new();
                loop {
                    let is_over = match until {
                        Until::After(time) => started.elapsed() >= time,
                        Until::Answered(count) => offered.fetch_add(1, Ordering::Relaxed) >= count,
                    };
                    if is_over {
                        return times;
                    }
                    let request = template.of_document(next.fetch_add(1, Ordering::Relaxed));
                    let sent = Instant::now();
                    let status = post(&mut stream, request).await;
                    times.push(sent.elapsed());
                    assert!((200..300).contains(&status), "it answered {status}");
                }
            });
        }
        let times = Times::from_iter(posting.join_all().await.into_iter().flatten());
        Run {
            times,
            took: started.elapsed(),
        }
    }
}

async fn connect(address: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The status of the answer, of which nothing else is read than where it ends.
async fn post(stream: &mut TcpStream, request: &[u8]) -> u16 {
    stream.write_all(request).await.unwrap();
    let mut answer = [0; 2048];
    let mut read = 0;
    loop {
        let more = stream.read(&mut answer[read..]).await.unwrap();
        assert!(more > 0, "the connection ended within an answer");
        read += more;
        let answer = &answer[..read];
        if let Some(head) = find(answer, b"\r\n\r\n")
            && read >= head + 4 + content_length(&answer[..head])
        {
            return std::str::from_utf8(&answer[9..12])
                .unwrap()
                .parse()
                .unwrap();
        }
    }
}

fn content_length(head: &[u8]) -> usize {
    let name = b"content-length: ";
    let Some(at) = find(head, name) else {
        return 0;
    };
    let digits = head[at + name.len()..]
        .iter()
        .take_while(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| 10 * number + usize::from(digit - b'0'))
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack
        .windows(needle.len())
        .position(|window| window == needle)
}

/// The answer to a GET.
pub(crate) async fn get(address: SocketAddr, path: &str) -> std::io::Result<(u16, String)> {
    ask(address, "GET", path).await
}

pub(crate) async fn ask(
    address: SocketAddr,
    method: &str,
    path: &str,
) -> std::io::Result<(u16, String)> {
    let mut stream = TcpStream::connect(address).await?;
    let request = format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .ok_or(std::io::ErrorKind::UnexpectedEof)?;
    Ok((head[9..12].parse().unwrap(), body.to_owned()))
}

/// How long things took, the shortest first.
#[derive(Debug, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    /// The time within which this share (0 to 1) of all was done.
    pub(crate) fn quantile(&self, share: f64) -> Duration {
        let last = self.0.len() - 1;
        self.0[(share * last as f64).round() as usize]
    }

    pub(crate) fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.0.extend(other.0);
        self.0.sort_unstable();
    }
}

impl FromIterator<Duration> for Times {
    fn from_iter<I: IntoIterator<Item = Duration>>(times: I) -> Self {
        let mut times = Vec::from_iter(times);
        times.sort_unstable();
        Self(times)
    }
}

use std::net::SocketAddr;
use std::process::Stdio;

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::TcpStream;
use tokio::process::{Child, ChildStdout, Command};

use crate::harness::{Client, LONG, binary};

/// `dev` as a process, with its page.
struct Dev {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    page: SocketAddr,
}

fn command(flags: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.arg("dev").env_clear().kill_on_drop(true);
    for flag in [
        "--listen",
        "--admin-listen",
        "--qstash-listen",
        "--catcher-listen",
        "--page-listen",
    ] {
        if !flags.contains(&flag) {
            command.args([flag, "127.0.0.1:0"]);
        }
    }
    command.args(flags);
    command
}

impl Dev {
    async fn start() -> Self {
        let mut child = command(&[]).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next_line().await.unwrap().unwrap();
        let page = first.strip_prefix("Open http://").unwrap();
        let page = page.split('/').next().unwrap().parse().unwrap();
        let mut dev = Self { child, lines, page };
        dev.line("Waiting for webhooks").await;
        dev
    }

    /// The next line that begins like this.
    async fn line(&mut self, start: &str) -> String {
        let waiting = async {
            loop {
                let line = self.lines.next_line().await.unwrap().unwrap();
                if line.starts_with(start) {
                    return line;
                }
            }
        };
        tokio::time::timeout(LONG, waiting).await.unwrap()
    }

    async fn post(&self, path: &str, headers: &[&str], body: &str) -> u16 {
        let page = self.page;
        let mut request = format!(
            "POST {path} HTTP/1.1\r\nhost: {page}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n",
            body.len()
        );
        for header in headers {
            request.push_str(&format!("{header}\r\n"));
        }
        request.push_str(&format!("\r\n{body}"));
        let mut client = Client::connect(page).await;
        client.send(request.as_bytes()).await.status
    }

    /// What the page is told from now on.
    async fn live(&self) -> BufReader<TcpStream> {
        let mut stream = TcpStream::connect(self.page).await.unwrap();
        let request = format!("GET /live HTTP/1.1\r\nhost: {}\r\n\r\n", self.page);
        stream.write_all(request.as_bytes()).await.unwrap();
        BufReader::new(stream)
    }

    async fn stop(mut self) {
        let pid = self.child.id().unwrap().to_string();
        let status = Command::new("kill").args(["-INT", &pid]).status().await;
        assert!(status.unwrap().success());
        let ended = tokio::time::timeout(LONG, self.child.wait()).await.unwrap();
        assert_eq!(ended.unwrap().code(), Some(0));
    }
}

/// Reads until a line has all these texts.
async fn told(live: &mut BufReader<TcpStream>, texts: &[&str]) -> String {
    let reading = async {
        let mut line = String::new();
        loop {
            line.clear();
            let read = live.read_line(&mut line).await.unwrap();
            assert!(read > 0, "it ended before {texts:?}");
            if texts.iter().all(|text| line.contains(text)) {
                return line.clone();
            }
        }
    };
    tokio::time::timeout(LONG, reading).await.unwrap()
}

#[tokio::test]
async fn the_page_is_told_what_happens_to_a_sample() {
    let mut dev = Dev::start().await;
    let mut live = dev.live().await;
    told(&mut live, &["HTTP/1.1 200"]).await;
    told(&mut live, &["data: ", r#""pending":0"#]).await;
    assert_eq!(dev.post("/sample", &[], r#"{"count":1}"#).await, 200);
    let delivered = [r#""state":"delivered""#, r#""isVerified":true"#];
    let way = told(&mut live, &delivered).await;
    let way: serde_json::Value =
        serde_json::from_str(way.strip_prefix("data: ").unwrap().trim()).unwrap();
    assert_eq!(way["kind"], "entry.publish");
    // The terminal tells it too.
    let line = dev.line("QStash → catcher").await;
    assert!(line.contains("signature verified, answered 200"), "{line}");
    // An open page does not hold back the end.
    dev.stop().await;
    let mut rest = Vec::new();
    live.read_to_end(&mut rest).await.unwrap();
}

#[tokio::test]
async fn the_page_takes_qstash_away_and_gives_it_back() {
    let dev = Dev::start().await;
    let mut live = dev.live().await;
    assert_eq!(dev.post("/qstash", &[], r#"{"away":"refuse"}"#).await, 200);
    assert_eq!(dev.post("/sample", &[], r#"{"count":3}"#).await, 200);
    told(&mut live, &[r#""pending":3"#, r#""qstash":"refuse""#]).await;
    assert_eq!(dev.post("/qstash", &[], r#"{"away":"none"}"#).await, 200);
    told(&mut live, &[r#""pending":0"#, r#""delivered":3"#]).await;
    for (path, body) in [
        ("/sample", r#"{"count":0}"#),
        ("/sample", r#"{"count":101}"#),
        ("/catcher", r#"{"status":99,"delayMs":0,"every":1}"#),
        ("/catcher", r#"{"status":200,"delayMs":0,"every":0}"#),
        ("/catcher", r#"{"status":200,"delayMs":3600001,"every":1}"#),
        ("/speed", r#"{"timeScale":0}"#),
        ("/speed", r#"{"timeScale":1e300}"#),
        ("/qstash", r#"{"away":"lost"}"#),
    ] {
        assert_eq!(dev.post(path, &[], body).await, 400, "{path} {body}");
    }
    let foreign = ["origin: http://127.0.0.1:3000"];
    assert_eq!(dev.post("/qstash", &foreign, "{}").await, 403);
    assert_eq!(dev.post("/", &[], "{}").await, 405);
    dev.stop().await;
}

#[tokio::test]
async fn a_port_in_use_is_named_with_its_flag() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for flag in [
        "--listen",
        "--admin-listen",
        "--qstash-listen",
        "--catcher-listen",
        "--page-listen",
    ] {
        let output = command(&[flag, &address]).output();
        let output = tokio::time::timeout(LONG, output).await.unwrap().unwrap();
        assert_eq!(output.status.code(), Some(1), "{flag}");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(told.contains(&address) && told.contains(flag), "{told}");
    }
}

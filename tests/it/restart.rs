use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use command_fds::{CommandFdExt, FdMapping};
use tempfile::TempDir;
use tokio::process::Command;
use tokio::task::JoinHandle;

use crate::harness::{Client, LONG, Process, QStash, binary, number, update, wait_until};

const RESTARTS: usize = 10;

/// Sends as Strapi does: five connections, each reused until it is told to close, one event
/// after the other, and what fails is never repeated.
struct Strapi {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicUsize>,
    senders: Vec<JoinHandle<Sent>>,
}

#[derive(Debug, Default)]
struct Sent {
    answered: Vec<usize>,
    failed: Vec<usize>,
}

impl Strapi {
    fn start(address: SocketAddr) -> Self {
        let (stop, sent) = (
            Arc::new(AtomicBool::new(false)),
            Arc::new(AtomicUsize::new(0)),
        );
        let senders = (0..5)
            .map(|sender| {
                let (stop, sent) = (Arc::clone(&stop), Arc::clone(&sent));
                tokio::spawn(async move {
                    let mut done = Sent::default();
                    let mut client = None;
                    for n in (sender..).step_by(5) {
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                        let mut open = match client.take() {
                            Some(open) => open,
                            None => Client::connect(address).await,
                        };
                        let headers = ["Content-Type: application/json"];
                        match open
                            .try_post("/webhook", &headers, update(n).as_bytes())
                            .await
                        {
                            Ok(answer) if answer.status == 202 => {
                                done.answered.push(n);
                                if answer.header("connection") != Some("close") {
                                    client = Some(open);
                                }
                            }
                            _ => done.failed.push(n),
                        }
                        sent.fetch_add(1, Ordering::Relaxed);
                    }
                    done
                })
            })
            .collect();
        Self {
            stop,
            sent,
            senders,
        }
    }

    /// Until so many more events were sent.
    async fn go_on(&self, count: usize) {
        let goal = self.sent.load(Ordering::Relaxed) + count;
        assert!(
            wait_until(LONG, || self.sent.load(Ordering::Relaxed) >= goal).await,
            "sending came to a halt"
        );
    }

    async fn stop(self) -> Sent {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Sent::default();
        for sender in self.senders {
            let sent = sender.await.unwrap();
            all.answered.extend(sent.answered);
            all.failed.extend(sent.failed);
        }
        all
    }
}

async fn assert_all_arrive(qstash: &QStash, answered: &[usize]) {
    let arrived = || -> std::collections::HashSet<usize> {
        qstash
            .accepted()
            .iter()
            .map(|message| number(&message.body))
            .collect()
    };
    let all = qstash
        .server
        .wait_until(LONG, |_| answered.iter().all(|n| arrived().contains(n)))
        .await;
    let arrived = arrived();
    let missing: Vec<_> = answered.iter().filter(|n| !arrived.contains(n)).collect();
    assert!(all, "{} events are missing: {missing:?}", missing.len());
    assert_eq!(qstash.accepted().len(), arrived.len(), "none arrives twice");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_takes_over_and_no_event_is_lost() {
    let (qstash, dir) = (QStash::start().await, tempfile::tempdir().unwrap());
    let mut first = Process::start(&dir, &qstash, None, &[]).await;
    let strapi = Strapi::start(first.webhook);
    strapi.go_on(50).await;
    first.signal("USR2");
    for n in 1..=RESTARTS {
        // A successor writes to the same stderr as all before it.
        let up = || {
            first.pids("handing over").len() == n
                && first.log().matches("Sidecar is ready").count() == n + 1
        };
        assert!(wait_until(LONG, up).await, "{}", first.log());
        strapi.go_on(50).await;
        if n < RESTARTS {
            signal(first.pids("handing over")[n - 1], "USR2");
        }
    }
    assert_eq!(first.exit_code().await, Some(0));
    let sent = strapi.stop().await;
    assert_all_arrive(&qstash, &sent.answered).await;
    println!(
        "{RESTARTS} successors: {} sent, {} failed",
        sent.answered.len() + sent.failed.len(),
        sent.failed.len()
    );
    assert!(sent.failed.is_empty(), "{:?}\n{}", sent.failed, first.log());
    signal(*first.pids("handing over").last().unwrap(), "TERM");
    assert!(
        wait_until(LONG, || first.log().matches("Stopped").count()
            == RESTARTS + 1)
        .await
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_that_does_not_come_up_changes_nothing() {
    let (qstash, dir) = (QStash::start().await, tempfile::tempdir().unwrap());
    let copy = dir.path().join("sidecar");
    std::fs::copy(binary(), &copy).unwrap();
    let listen = ["--listen", "127.0.0.1:0"];
    let mut command = Command::new(&copy);
    command.args(Process::command(&dir, &qstash, &listen).as_std().get_args());
    command.env("QSTASH_TOKEN", strapi_qstash::dev_server::DEVELOPMENT_TOKEN);
    let process = Process::spawn(command).await;
    // The new binary is a broken one.
    std::fs::remove_file(&copy).unwrap();
    std::fs::write(&copy, "#!/bin/sh\nexit 3\n").unwrap();
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    process.signal("USR2");
    assert!(
        wait_until(LONG, || process.log().contains("No successor")).await,
        "{}",
        process.log()
    );
    let mut client = Client::connect(process.webhook).await;
    assert_eq!(client.post("/webhook", &update(1)).await.status, 202);
    qstash.wait_for(1, LONG).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_supervisor_renews_its_worker_and_no_event_is_lost() {
    let (qstash, dir) = (QStash::start().await, tempfile::tempdir().unwrap());
    let mut supervisor = Process::start(&dir, &qstash, None, &["--supervise"]).await;
    let strapi = Strapi::start(supervisor.webhook);
    for n in 1..=RESTARTS {
        strapi.go_on(50).await;
        supervisor.signal("USR2");
        let up = || supervisor.log().matches("Sidecar is ready").count() == n + 1;
        assert!(wait_until(LONG, up).await, "{}", supervisor.log());
    }
    strapi.go_on(50).await;
    let sent = strapi.stop().await;
    assert_all_arrive(&qstash, &sent.answered).await;
    println!(
        "{RESTARTS} renewals: {} sent, {} failed",
        sent.answered.len() + sent.failed.len(),
        sent.failed.len()
    );
    assert!(
        sent.failed.is_empty(),
        "{:?}\n{}",
        sent.failed,
        supervisor.log()
    );
    supervisor.signal("TERM");
    assert_eq!(supervisor.exit_code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_that_is_killed_loses_at_most_what_it_had_not_answered() {
    let (qstash, dir) = (QStash::start().await, tempfile::tempdir().unwrap());
    let mut supervisor = Process::start(&dir, &qstash, None, &["--supervise"]).await;
    let strapi = Strapi::start(supervisor.webhook);
    for n in 1..=RESTARTS {
        strapi.go_on(50).await;
        signal(*supervisor.pids("Worker is ready").last().unwrap(), "KILL");
        let up = || supervisor.log().matches("Sidecar is ready").count() == n + 1;
        assert!(wait_until(LONG, up).await, "{}", supervisor.log());
    }
    strapi.go_on(50).await;
    let sent = strapi.stop().await;
    assert_all_arrive(&qstash, &sent.answered).await;
    println!(
        "{RESTARTS} kills under --supervise: {} answered 202 and arrived, {} were in flight at a kill",
        sent.answered.len(),
        sent.failed.len()
    );
    // One on each of the five connections, at each kill; all others found the port open.
    assert!(sent.failed.len() <= 5 * RESTARTS, "{:?}", sent.failed);
    supervisor.signal("TERM");
    assert_eq!(supervisor.exit_code().await, Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_ends_with_its_supervisor() {
    let (qstash, dir) = (QStash::start().await, tempfile::tempdir().unwrap());
    let supervisor = Process::start(&dir, &qstash, None, &["--supervise"]).await;
    let address = supervisor.webhook;
    supervisor.kill().await;
    // The buffer is free again, and so is the port.
    let free = || std::net::TcpStream::connect(address).is_err();
    assert!(wait_until(LONG, free).await);
    Process::start(&dir, &qstash, Some(address), &[]).await;
}

#[test]
fn a_supervisor_whose_flags_are_wrong_ends_with_the_mistakes() {
    let output = std::process::Command::new(binary())
        .args(["--supervise", "--max-body", "1"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
}

/// Starts the sidecar as systemd does: the socket is descriptor 3, and `LISTEN_PID` is the
/// process itself.
async fn activate(socket: &std::net::TcpListener, dir: &TempDir, qstash: &QStash) -> Process {
    let flags = Process::command(dir, qstash, &[]);
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
        .arg(binary())
        .args(flags.as_std().get_args())
        .env("QSTASH_TOKEN", strapi_qstash::dev_server::DEVELOPMENT_TOKEN)
        .env("LISTEN_FDS", "1")
        .env("LISTEN_FDNAMES", "webhook");
    let parent_fd: OwnedFd = socket.try_clone().unwrap().into();
    command
        .fd_mappings(vec![FdMapping {
            parent_fd,
            child_fd: 3,
        }])
        .unwrap();
    Process::spawn(command).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_socket_of_systemd_outlives_restarts_and_no_event_is_lost() {
    let (qstash, dir) = (QStash::start().await, tempfile::tempdir().unwrap());
    let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let mut process = activate(&socket, &dir, &qstash).await;
    assert_eq!(process.webhook, address);
    let strapi = Strapi::start(address);
    for _ in 0..RESTARTS {
        strapi.go_on(50).await;
        process.signal("TERM");
        assert_eq!(process.exit_code().await, Some(0), "{}", process.log());
        process = activate(&socket, &dir, &qstash).await;
    }
    strapi.go_on(50).await;
    let sent = strapi.stop().await;
    assert_all_arrive(&qstash, &sent.answered).await;
    println!(
        "{RESTARTS} restarts by systemd: {} sent, {} failed",
        sent.answered.len() + sent.failed.len(),
        sent.failed.len()
    );
    assert!(sent.failed.is_empty(), "{:?}", sent.failed);
}

#[tokio::test]
async fn a_socket_open_to_others_wants_a_secret_whoever_bound_it() {
    let (qstash, dir) = (QStash::start().await, tempfile::tempdir().unwrap());
    let socket = std::net::TcpListener::bind("0.0.0.0:0").unwrap();
    let mut command = Process::command(&dir, &qstash, &[]);
    command
        .env("LISTEN_FDS", "1")
        .stderr(std::process::Stdio::piped());
    command
        .fd_mappings(vec![FdMapping {
            parent_fd: socket.into(),
            child_fd: 3,
        }])
        .unwrap();
    let output = tokio::time::timeout(Duration::from_secs(10), command.output())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("can be reached from other machines"));
}

fn signal(pid: u32, signal: &str) {
    let sent = std::process::Command::new("kill")
        .args(["-s", signal, &pid.to_string()])
        .status();
    assert!(sent.unwrap().success());
}

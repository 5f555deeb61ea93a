//! The development server and the catcher, over real sockets.

mod dead_letters;
mod delivering;
mod faults;
mod flowing;
mod managing;
mod publishing;
mod queueing;

use std::time::Duration;

use serde_json::Value;

use super::*;
use crate::clock::Timestamp;

const SOON: Duration = Duration::from_secs(10);

/// One of each, on this machine.
struct World {
    qstash: DevServer,
    catcher: Catcher,
    client: reqwest::Client,
    tasks: TaskTracker,
    shutdown: CancellationToken,
}

/// An answer that was read.
struct Answered {
    status: u16,
    headers: reqwest::header::HeaderMap,
    body: String,
}

impl Answered {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap()
    }

    /// The id of the message that was published.
    fn id(&self) -> String {
        self.json()["messageId"].as_str().unwrap().to_owned()
    }

    fn error(&self) -> String {
        self.json()["error"].as_str().unwrap().to_owned()
    }
}

impl World {
    async fn new() -> Self {
        Self::with(Settings {
            // The first retry after 12 ms.
            time_scale: 1_000.0,
            ..Settings::default()
        })
        .await
    }

    async fn with(settings: Settings) -> Self {
        let (tasks, shutdown) = (TaskTracker::new(), CancellationToken::new());
        let listen = || TcpListener::bind("127.0.0.1:0");
        let catcher = Catcher::start(
            listen().await.unwrap(),
            CatcherSettings::default(),
            tasks.clone(),
            shutdown.clone(),
        );
        let qstash = DevServer::start(
            listen().await.unwrap(),
            settings,
            tasks.clone(),
            shutdown.clone(),
        );
        Self {
            qstash,
            catcher,
            client: delivery::client(),
            tasks,
            shutdown,
        }
    }

    async fn try_send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Result<Answered, reqwest::Error> {
        let method = method.parse().unwrap();
        let url = format!("{}{path}", self.qstash.url());
        let mut request = self.client.request(method, url).body(body);
        if !headers.iter().any(|(name, _)| *name == "authorization") {
            request = request.bearer_auth(DEVELOPMENT_TOKEN);
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = request.timeout(SOON).send().await?;
        Ok(Answered {
            status: response.status().as_u16(),
            headers: response.headers().clone(),
            body: String::from_utf8_lossy(&response.bytes().await?).into_owned(),
        })
    }

    async fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<reqwest::Body>,
    ) -> Answered {
        self.try_send(method, path, headers, body).await.unwrap()
    }

    /// The JSON of an answer that must be a good one.
    async fn get(&self, path: &str) -> Value {
        let answer = self.send("GET", path, &[], "").await;
        assert_eq!(answer.status, 200, "{path}: {}", answer.body);
        answer.json()
    }

    /// The states of a message, oldest first, as the log has them.
    async fn states(&self, id: &str) -> Vec<String> {
        let log = self.get(&format!("/v2/logs?messageId={id}")).await;
        let lines = log["logs"].as_array().unwrap().iter().rev();
        let state = |line: &Value| line["state"].as_str().unwrap().to_owned();
        lines.map(state).collect()
    }

    /// Publishes a body to the catcher.
    async fn publish(&self, headers: &[(&str, &str)], body: &'static str) -> Answered {
        let path = format!("/v2/publish/{}", self.catcher.url("/hook"));
        self.send("POST", &path, headers, body).await
    }

    async fn try_publish(&self) -> Result<Answered, reqwest::Error> {
        let path = format!("/v2/publish/{}", self.catcher.url("/hook"));
        self.try_send("POST", &path, &[], "x").await
    }

    async fn arrived(&self, n: u64) -> Vec<Arc<Received>> {
        self.catcher.wait_for(n, SOON).await.unwrap()
    }

    async fn wait_until(&self, condition: impl Fn(Counts) -> bool + Send) {
        let holds = move |qstash: &DevServer| condition(qstash.counts());
        assert!(
            self.qstash.wait_until(SOON, holds).await,
            "{:?}",
            self.qstash.counts()
        );
    }

    /// Ends everything; all tasks must go.
    async fn end(self) {
        self.shutdown.cancel();
        self.tasks.close();
        tokio::time::timeout(SOON, self.tasks.wait()).await.unwrap();
    }
}

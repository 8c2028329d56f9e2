//! OTLP over HTTP with JSON bodies, as far as sending spans needs it.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Finished, Value};

/// Most spans of one request: some hundred kilobytes.
const BATCH_MAX: usize = 512;

/// Longest time that a finished span waits for others to be sent with.
const GATHER: Duration = Duration::from_secs(1);

/// Longest time for one request to the collector, which should be on this host or near it.
const SEND_MAX: Duration = Duration::from_secs(5);

/// Bytes of an answer that are read: its first line says all.
const ANSWER_BYTES_MAX: usize = 1024;

/// Shortest time between two complaints about a collector.
const COMPLAIN_EVERY: Duration = Duration::from_mins(1);

/// Where a collector listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    host: String,
    port: u16,
    path: String,
}

/// Port of OTLP over HTTP.
const PORT: u16 = 4318;

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "`{text}` is not an address of a collector such as `http://127.0.0.1:4318`; spans \
                 are sent without TLS, so name one on this host"
            )
        };
        let rest = text.strip_prefix("http://").ok_or_else(wrong)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, port.parse().map_err(|_| wrong())?)
            }
            _ => (authority, PORT),
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
        let plain_path = |c: char| c.is_ascii_alphanumeric() || "-._/".contains(c);
        if host.is_empty() || !host.chars().all(plain) || !path.chars().all(plain_path) {
            return Err(wrong());
        }
        let path = path.trim_end_matches('/');
        Ok(Self {
            host: host.to_owned(),
            port,
            path: if path.is_empty() {
                "/v1/traces".to_owned()
            } else {
                format!("/{path}")
            },
        })
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}{}", self.host, self.port, self.path)
    }
}

/// Sends what is collected.
#[derive(Debug)]
pub(crate) struct Exporter {
    endpoint: Endpoint,
    finished: mpsc::Receiver<Finished>,
    complained: Option<Instant>,
}

impl Exporter {
    pub(super) const fn new(endpoint: Endpoint, finished: mpsc::Receiver<Finished>) -> Self {
        Self {
            endpoint,
            finished,
            complained: None,
        }
    }

    /// Sends spans until `stop`, and then what is left, once.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut batch = Vec::new();
        loop {
            let gathered = tokio::select! {
                count = self.finished.recv_many(&mut batch, BATCH_MAX) => count > 0,
                () = stop.cancelled() => false,
            };
            if !gathered {
                break;
            }
            // More may come with it.
            tokio::select! {
                () = tokio::time::sleep(GATHER) => {}
                () = stop.cancelled() => {}
            }
            while batch.len() < BATCH_MAX
                && let Ok(next) = self.finished.try_recv()
            {
                batch.push(next);
            }
            self.send(&mut batch).await;
        }
        while let Ok(next) = self.finished.try_recv() {
            batch.push(next);
        }
        for mut part in batch.chunks(BATCH_MAX).map(<[Finished]>::to_vec) {
            self.send(&mut part).await;
        }
    }

    /// Sends spans; what the collector does not take is gone.
    async fn send(&mut self, batch: &mut Vec<Finished>) {
        let count = batch.len();
        let body = request(batch).to_string();
        batch.clear();
        let sent = tokio::time::timeout(SEND_MAX, post(&self.endpoint, &body)).await;
        let why = match sent {
            Ok(Ok(200..=299)) => return,
            Ok(Ok(status)) => format!("it answers {status}"),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it does not answer".to_owned(),
        };
        let due = self
            .complained
            .is_none_or(|at| at.elapsed() >= COMPLAIN_EVERY);
        if due {
            self.complained = Some(Instant::now());
            let endpoint = &self.endpoint;
            tracing::warn!(%endpoint, why, spans = count, "the collector took no spans; they are lost");
        }
    }
}

/// Sends a body and answers the status.
async fn post(endpoint: &Endpoint, body: &str) -> std::io::Result<u16> {
    let Endpoint { host, port, path } = endpoint;
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    let mut stream = TcpStream::connect((bare, *port)).await?;
    let head = format!(
        "POST {path} HTTP/1.1\r\nhost: {host}:{port}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    let mut answer = Vec::new();
    let mut limited = stream.take(ANSWER_BYTES_MAX as u64);
    while !answer.contains(&b'\n') && limited.read_buf(&mut answer).await? > 0 {}
    let status = answer
        .strip_prefix(b"HTTP/1.")
        .and_then(|rest| rest.get(2..5));
    let status = status.and_then(|digits| std::str::from_utf8(digits).ok()?.parse().ok());
    status.ok_or_else(|| std::io::Error::other("its answer is not HTTP"))
}

fn request(spans: &[Finished]) -> Json {
    let spans: Vec<Json> = spans.iter().map(span).collect();
    let version = env!("CARGO_PKG_VERSION");
    json!({ "resourceSpans": [{
        "resource": { "attributes": [
            attribute("service.name", &Value::Text("pinfold".to_owned())),
            attribute("service.version", &Value::Text(version.to_owned())),
            attribute("process.pid", &Value::Number(i64::from(std::process::id()))),
        ] },
        "scopeSpans": [{ "scope": { "name": "pinfold", "version": version }, "spans": spans }],
    }] })
}

fn span(span: &Finished) -> Json {
    let attributes: Vec<Json> = span
        .attributes
        .iter()
        .map(|(name, value)| attribute(name, value))
        .collect();
    let mut json = json!({
        "traceId": format!("{:032x}", span.context.trace),
        "spanId": format!("{:016x}", span.context.span),
        "name": span.name,
        "kind": span.kind as u8,
        "startTimeUnixNano": nanoseconds(span.began),
        "endTimeUnixNano": nanoseconds(span.ended),
        "attributes": attributes,
        // 2 is an error, 0 nothing said.
        "status": { "code": if span.failed { 2 } else { 0 } },
    });
    if let Some(parent) = span.parent {
        json["parentSpanId"] = format!("{parent:016x}").into();
    }
    json
}

fn attribute(name: &str, value: &Value) -> Json {
    let value = match value {
        Value::Text(text) => json!({ "stringValue": text }),
        // 64 bits are text in the JSON of protocol buffers.
        Value::Number(number) => json!({ "intValue": number.to_string() }),
        Value::Truth(truth) => json!({ "boolValue": truth }),
    };
    json!({ "key": name, "value": value })
}

fn nanoseconds(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    since.as_nanos().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_is_named_by_its_base() {
        let check = |text: &str, expected: &str| {
            let endpoint: Endpoint = text.parse().unwrap();
            assert_eq!(endpoint.to_string(), expected);
        };
        check("http://127.0.0.1:4318", "http://127.0.0.1:4318/v1/traces");
        check("http://collector/", "http://collector:4318/v1/traces");
        check("http://[::1]:9/in/here", "http://[::1]:9/in/here");
        check("http://[::1]", "http://[::1]:4318/v1/traces");
        for bad in [
            "",
            "127.0.0.1:4318",
            "https://collector",
            "http://",
            "http://a:b",
            "http://a b",
            "http://a/\r\nx: y",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
    }
}

//! What the server counts and times, and `GET /metrics`, which shows it with the engine's numbers.
//!
//! A route is named by its template and a method by one of nine words, so no caller makes a series.

use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderValue, Method, StatusCode};
use axum::response::{IntoResponse as _, Response};
use pinfold_engine::Engine;
use pinfold_types::ErrorCode;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Registry, Unit};

use crate::error::ApiError;
use crate::router::Api;

/// What a scraper is told that it gets.
const TEXT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Stands for requests that no route matches.
const NO_ROUTE: &str = "(none)";

/// Microseconds of a clock tick in `/proc/self/stat`: Linux has shown hundredths for ever.
const TICK_SECONDS: f64 = 0.01;

type Labels<const N: usize> = [(&'static str, &'static str); N];
type Times<L> = Family<L, Histogram, fn() -> Histogram>;
type Seconds = Gauge<f64, AtomicU64>;

/// What was asked, and how it was answered.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    method: &'static str,
    route: &'static str,
    status: u16,
}

/// Times from a tenth of a millisecond to a bit less than a minute.
fn answers() -> Histogram {
    Histogram::new(exponential_buckets(0.000_1, 2.5, 15))
}

/// A kind of stream.
#[derive(Debug, Clone, Copy)]
pub(crate) enum StreamKind {
    /// An exec's events as JSON over WebSocket.
    Events,
    /// An exec's frames over WebSocket.
    Attach,
    /// Server-sent events of any source.
    ServerSent,
}

impl StreamKind {
    const ALL: [Self; 3] = [Self::Events, Self::Attach, Self::ServerSent];

    const fn labels(self) -> Labels<1> {
        let name = match self {
            Self::Events => "events",
            Self::Attach => "attach",
            Self::ServerSent => "sse",
        };
        [("kind", name)]
    }
}

/// What the server counts and times.
#[derive(Debug)]
pub(crate) struct Meters {
    registry: Registry,
    requests: Family<Answered, Counter>,
    seconds: Times<Labels<2>>,
    in_flight: Gauge,
    streams: Family<Labels<1>, Gauge>,
    events: Family<Labels<1>, Counter>,
    bytes: Family<Labels<1>, Counter>,
    dropped: Counter,
    process: Process,
}

impl Meters {
    pub(crate) fn new(engine: &Engine) -> Self {
        let mut meters = Self {
            registry: Registry::default(),
            requests: Family::default(),
            seconds: Times::new_with_constructor(answers),
            in_flight: Gauge::default(),
            streams: Family::default(),
            events: Family::default(),
            bytes: Family::default(),
            dropped: Counter::default(),
            process: Process::default(),
        };
        for kind in StreamKind::ALL {
            let labels = kind.labels();
            drop(meters.streams.get_or_create(&labels));
            drop(meters.events.get_or_create(&labels));
            drop(meters.bytes.get_or_create(&labels));
        }
        let mut registry = Registry::default();
        let ours = registry.sub_registry_with_prefix("pinfold");
        let version = Info::new([("version", env!("CARGO_PKG_VERSION"))]);
        ours.register("build", "The daemon's version", version);
        engine.describe_meters(ours);
        meters.describe(ours);
        meters.process.describe(&mut registry);
        meters.registry = registry;
        meters
    }

    fn describe(&self, registry: &mut Registry) {
        registry.register(
            "http_requests",
            "Requests that were answered",
            self.requests.clone(),
        );
        registry.register_with_unit(
            "http_request",
            "Time from a request's head to its answer's head",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register(
            "http_in_flight",
            "Requests whose answer has not begun",
            self.in_flight.clone(),
        );
        registry.register(
            "streams_open",
            "Streams that are open",
            self.streams.clone(),
        );
        registry.register(
            "stream_events",
            "Events that were sent on streams",
            self.events.clone(),
        );
        registry.register_with_unit(
            "stream_sent",
            "Content that was sent on streams",
            Unit::Bytes,
            self.bytes.clone(),
        );
        registry.register(
            "stream_dropped_ranges",
            "Times that a slow reader was told that it missed a range of events",
            self.dropped.clone(),
        );
    }

    /// Counts a request until its answer has begun.
    pub(crate) fn request(self: &Arc<Self>) -> InFlight {
        self.in_flight.inc();
        InFlight {
            meters: Arc::clone(self),
            began: Instant::now(),
        }
    }

    /// Counts a stream for as long as it is open.
    pub(crate) fn stream(self: &Arc<Self>, kind: StreamKind) -> OpenStream {
        let labels = kind.labels();
        let open = self.streams.get_or_create_owned(&labels);
        open.inc();
        OpenStream {
            open,
            events: self.events.get_or_create_owned(&labels),
            bytes: self.bytes.get_or_create_owned(&labels),
            dropped: self.dropped.clone(),
        }
    }
}

/// One request whose answer has not begun.
#[derive(Debug)]
pub(crate) struct InFlight {
    meters: Arc<Meters>,
    began: Instant,
}

impl InFlight {
    /// Notes what was answered. `route` is the route's template, when there is one.
    pub(crate) fn answered(
        &self,
        method: &Method,
        route: Option<&'static str>,
        status: StatusCode,
    ) {
        let (method, route) = (method_name(method), route.unwrap_or(NO_ROUTE));
        let labels = Answered {
            method,
            route,
            status: status.as_u16(),
        };
        self.meters.requests.get_or_create(&labels).inc();
        let times = [("method", method), ("route", route)];
        let seconds = self.meters.seconds.get_or_create(&times);
        seconds.observe(self.began.elapsed().as_secs_f64());
    }

    pub(crate) fn elapsed(&self) -> Duration {
        self.began.elapsed()
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.meters.in_flight.dec();
    }
}

/// One open stream.
#[derive(Debug)]
pub(crate) struct OpenStream {
    open: Gauge,
    events: Counter,
    bytes: Counter,
    dropped: Counter,
}

impl OpenStream {
    /// Notes an event that is sent.
    pub(crate) fn sent(&self, bytes: usize) {
        self.events.inc();
        self.bytes.inc_by(bytes as u64);
    }

    /// Notes that the reader is told of a range that it missed.
    pub(crate) fn dropped(&self) {
        self.dropped.inc();
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.open.dec();
    }
}

fn method_name(method: &Method) -> &'static str {
    for known in [
        Method::GET,
        Method::HEAD,
        Method::POST,
        Method::PUT,
        Method::PATCH,
        Method::DELETE,
        Method::OPTIONS,
        Method::CONNECT,
    ] {
        if *method == known {
            return match known {
                Method::GET => "GET",
                Method::HEAD => "HEAD",
                Method::POST => "POST",
                Method::PUT => "PUT",
                Method::PATCH => "PATCH",
                Method::DELETE => "DELETE",
                Method::OPTIONS => "OPTIONS",
                _ => "CONNECT",
            };
        }
    }
    "other"
}

/// The daemon's own process, as the kernel accounts for it.
#[derive(Debug)]
struct Process {
    resident: Gauge,
    descriptors: Gauge,
    threads: Gauge,
    processor: Seconds,
    uptime: Seconds,
    began: Instant,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            resident: Gauge::default(),
            descriptors: Gauge::default(),
            threads: Gauge::default(),
            processor: Seconds::default(),
            uptime: Seconds::default(),
            began: Instant::now(),
        }
    }
}

impl Process {
    fn describe(&self, registry: &mut Registry) {
        registry.register_with_unit(
            "process_resident_memory",
            "Memory of the daemon",
            Unit::Bytes,
            self.resident.clone(),
        );
        registry.register(
            "process_open_fds",
            "Descriptors that the daemon has open",
            self.descriptors.clone(),
        );
        registry.register(
            "process_threads",
            "Threads of the daemon",
            self.threads.clone(),
        );
        registry.register_with_unit(
            "process_cpu_time",
            "Processor time of the daemon",
            Unit::Seconds,
            self.processor.clone(),
        );
        registry.register_with_unit(
            "process_uptime",
            "Time since the daemon began to serve",
            Unit::Seconds,
            self.uptime.clone(),
        );
    }

    /// Reads a few small files of the kernel's, which does not block.
    fn look(&self) {
        let count = std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
        // The look itself has the directory open.
        let descriptors = i64::try_from(count).unwrap_or(i64::MAX).saturating_sub(1);
        self.descriptors.set(descriptors);
        self.uptime.set(self.began.elapsed().as_secs_f64());
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let line = |name: &str| -> i64 {
            let rest = status.lines().find_map(|line| line.strip_prefix(name));
            let number = rest.and_then(|rest| rest.split_whitespace().next());
            number.and_then(|number| number.parse().ok()).unwrap_or(0)
        };
        self.resident.set(line("VmRSS:").saturating_mul(1024));
        self.threads.set(line("Threads:"));
        let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        // The name before it may hold anything.
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
        let field =
            |index: usize| -> Option<u32> { fields.split_whitespace().nth(index)?.parse().ok() };
        let ticks = field(11)
            .unwrap_or(0)
            .saturating_add(field(12).unwrap_or(0));
        self.processor.set(f64::from(ticks) * TICK_SECONDS);
    }
}

/// Shows what the daemon counts and times, as `OpenMetrics` text for Prometheus.
///
/// Every number is of the whole daemon, and none is named after a sandbox or a caller. With the
/// setting `metrics_open` programs of the daemon's own machine need no key for it.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = crate::openapi::DAEMON_TAG,
    operation_id = "getMetrics",
    responses(
        (status = 200, description = "Text of version 1.0.0", body = String, content_type = "application/openmetrics-text")
    )
)]
pub(crate) async fn show(State(api): State<Api>) -> Result<Response, ApiError> {
    api.engine.look_at_meters().await;
    api.meters.process.look();
    let mut page = String::new();
    text::encode(&mut page, &api.meters.registry).map_err(|error| {
        ApiError::new(ErrorCode::Internal, "the numbers cannot be written").caused_by(error)
    })?;
    let mut response = page.into_response();
    let text = HeaderValue::from_static(TEXT_TYPE);
    response.headers_mut().insert(CONTENT_TYPE, text);
    Ok(response)
}

/// Returns the reference page of what `text`, an answer of `GET /metrics`, shows.
///
/// It is made from the answer, so that it cannot say of a number what is not so.
pub fn metrics_page(text: &str) -> String {
    let mut page = String::from(
        "# Metrics\n\n\
         `GET /metrics` answers OpenMetrics text. Every number is of the whole daemon; no label is named\n\
         after a sandbox, a caller or anything that a guest chooses, and the only names among them are\n\
         those of the pools in the configuration. [The guide](../guide/observability.md) says who may\n\
         ask.\n\n\
         This page is written by `cargo xtask openapi` from an answer of the daemon.\n\n\
         | name | type | labels | meaning |\n|---|---|---|---|\n",
    );
    for block in text.split("# HELP ").skip(1) {
        let mut lines = block.lines();
        let (name, help) = lines
            .next()
            .and_then(|line| line.split_once(' '))
            .unwrap_or_default();
        let kind = lines
            .next()
            .and_then(|line| line.rsplit(' ').next())
            .unwrap_or_default();
        let mut labels: Vec<&str> = Vec::new();
        for line in lines.filter(|line| !line.starts_with('#')) {
            let Some((_, rest)) = line.split_once('{') else {
                continue;
            };
            let names = rest
                .split("\",")
                .filter_map(|label| label.split_once("=\""));
            for (label, _) in names {
                if label != "le" && !labels.contains(&label) {
                    labels.push(label);
                }
            }
        }
        let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
        let help = help.trim_end_matches('.');
        // Writing to a string cannot fail.
        let _infallible = writeln!(
            page,
            "| `{name}` | {kind} | {} | {help} |",
            labels.join(", ")
        );
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_method_of_a_callers_making_is_a_label() {
        assert_eq!(method_name(&Method::PATCH), "PATCH");
        assert_eq!(method_name(&Method::CONNECT), "CONNECT");
        let odd = Method::from_bytes(b"STEAL").unwrap();
        assert_eq!(method_name(&odd), "other");
    }

    #[test]
    fn the_process_is_seen() {
        let process = Process::default();
        process.look();
        assert!(process.resident.get() > 1 << 20, "{process:?}");
        assert!(process.descriptors.get() >= 3, "{process:?}");
        assert!(process.threads.get() >= 1, "{process:?}");
    }
}

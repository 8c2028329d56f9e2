//! Spans, collected and sent to a collector by OTLP.
//!
//! Spans for traces have a target of their own ([`TRACE_SPANS`]): without a collector nobody is
//! interested in them and they cost nothing, and the log never shows them. A queue with a bound lies
//! between what is done and what is sent, so a collector that is slow or gone costs spans and nothing
//! else.

mod otlp;

use std::fmt;
use std::time::SystemTime;

use pinfold_types::{TRACE_SPANS, TraceContext};
use tokio::sync::mpsc;
use tracing::field::{Field, Visit};
use tracing::{Dispatch, Subscriber, span};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::{LookupSpan, Registry};

pub(crate) use otlp::{Endpoint, Exporter};

/// Finished spans that wait to be sent: seconds of a busy daemon, and some megabytes.
const QUEUE_MAX: usize = 4096;

/// Most attributes of a span.
const ATTRIBUTES_MAX: usize = 16;

/// Most bytes of an attribute.
const VALUE_BYTES_MAX: usize = 256;

/// What a finished span is sent as.
#[derive(Debug, Clone)]
pub(crate) struct Finished {
    context: TraceContext,
    parent: Option<u64>,
    name: String,
    kind: Kind,
    began: SystemTime,
    ended: SystemTime,
    attributes: Vec<(&'static str, Value)>,
    failed: bool,
}

/// Which side of a call a span is, as OTLP numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Internal = 1,
    Server = 2,
    Client = 3,
}

#[derive(Debug, Clone, PartialEq)]
enum Value {
    Text(String),
    Number(i64),
    Truth(bool),
}

/// What is kept of a span until it ends.
#[derive(Debug)]
struct Open {
    context: TraceContext,
    parent: Option<u64>,
    began: SystemTime,
    said: Said,
}

/// What a span says of itself.
#[derive(Debug)]
struct Said {
    name: Option<String>,
    kind: Kind,
    parent: Option<TraceContext>,
    attributes: Vec<(&'static str, Value)>,
    failed: bool,
}

impl Default for Said {
    fn default() -> Self {
        Self {
            name: None,
            kind: Kind::Internal,
            parent: None,
            attributes: Vec::new(),
            failed: false,
        }
    }
}

impl Said {
    fn add(&mut self, field: &Field, value: Value) {
        match (field.name(), value) {
            ("otel.name", Value::Text(name)) => self.name = Some(name),
            ("otel.kind", Value::Text(kind)) => {
                self.kind = match kind.as_str() {
                    "server" => Kind::Server,
                    "client" => Kind::Client,
                    _ => Kind::Internal,
                };
            }
            ("traceparent", Value::Text(text)) => self.parent = text.parse().ok(),
            ("failed", Value::Truth(failed)) => self.failed = failed,
            (name, value) => {
                self.attributes.retain(|(known, _)| *known != name);
                if self.attributes.len() < ATTRIBUTES_MAX {
                    self.attributes.push((name, value));
                }
            }
        }
    }
}

impl Visit for Said {
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, Value::Number(value));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(
            field,
            Value::Number(i64::try_from(value).unwrap_or(i64::MAX)),
        );
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, Value::Truth(value));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        let end = value.floor_char_boundary(VALUE_BYTES_MAX);
        let text = value.get(..end).unwrap_or_default();
        self.add(field, Value::Text(text.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

/// Collects spans for an exporter.
#[derive(Debug)]
pub(crate) struct Traces {
    queue: mpsc::Sender<Finished>,
}

impl Traces {
    /// Makes the collecting layer and what sends what it collects.
    pub(crate) fn new(endpoint: Endpoint) -> (Self, Exporter) {
        let (queue, finished) = mpsc::channel(QUEUE_MAX);
        pinfold_driver::trace::find_with(context_of);
        (Self { queue }, Exporter::new(endpoint, finished))
    }
}

/// Returns the place of a span that is collected.
fn context_of(dispatch: &Dispatch, id: &span::Id) -> Option<TraceContext> {
    let registry = dispatch.downcast_ref::<Registry>()?;
    let span = registry.span(id)?;
    let extensions = span.extensions();
    extensions.get::<Open>().map(|open| open.context)
}

impl<S> Layer<S> for Traces
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(
        &self,
        attributes: &span::Attributes<'_>,
        id: &span::Id,
        context: Context<'_, S>,
    ) {
        let Some(span) = context
            .span(id)
            .filter(|span| is_ours(span.metadata().target()))
        else {
            return;
        };
        let mut said = Said::default();
        attributes.record(&mut said);
        let inside = || {
            // Spans of the log may lie between.
            span.scope().skip(1).find_map(|above| {
                let extensions = above.extensions();
                extensions.get::<Open>().map(|open| open.context)
            })
        };
        let parent = said.parent.or_else(inside);
        let place = TraceContext {
            trace: parent.map_or_else(|| random().max(1), |parent| parent.trace),
            span: u64::try_from(random() >> 64).unwrap_or(1).max(1),
            sampled: parent.is_none_or(|parent| parent.sampled),
        };
        span.extensions_mut().insert(Open {
            context: place,
            parent: parent.map(|parent| parent.span),
            began: SystemTime::now(),
            said,
        });
    }

    fn on_record(&self, id: &span::Id, values: &span::Record<'_>, context: Context<'_, S>) {
        if let Some(span) = context.span(id)
            && let Some(open) = span.extensions_mut().get_mut::<Open>()
        {
            values.record(&mut open.said);
        }
    }

    fn on_close(&self, id: span::Id, context: Context<'_, S>) {
        let Some(span) = context.span(&id) else {
            return;
        };
        let Some(open) = span.extensions_mut().remove::<Open>() else {
            return;
        };
        if !open.context.sampled {
            return;
        }
        let name = open.said.name;
        let finished = Finished {
            context: open.context,
            parent: open.parent,
            name: name.unwrap_or_else(|| span.metadata().name().to_owned()),
            kind: open.said.kind,
            began: open.began,
            ended: SystemTime::now(),
            attributes: open.said.attributes,
            failed: open.said.failed,
        };
        // A full queue is the collector's fault; the exporter says that it does not keep up.
        drop(self.queue.try_send(finished));
    }
}

/// Returns a number that nobody can guess, so that no other span has it.
fn random() -> u128 {
    let mut bytes = [0u8; 16];
    // Without randomness spans would be taken for others; that does no harm beyond the trace.
    let _always_there_after_boot = getrandom::fill(&mut bytes);
    u128::from_ne_bytes(bytes)
}

fn is_ours(target: &str) -> bool {
    target == TRACE_SPANS
}

//! Where in a trace a request is, as the header `traceparent` of W3C Trace Context has it.

use std::fmt;
use std::str::FromStr;

/// Target of the spans that traces are made of; no module is called so. The log leaves them out, and without a collector nobody
/// is interested in them.
pub const TRACE_SPANS: &str = "pinfold-trace";

/// Length of the header: version, trace, parent and flags with dashes between.
const LENGTH: usize = 55;

/// The place of a span among all spans.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The trace; never 0.
    pub trace: u128,
    /// The span; never 0.
    pub span: u64,
    /// Whoever began the trace wants it recorded.
    pub sampled: bool,
}

/// Why a text is no `traceparent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it is no W3C trace context")]
pub struct TraceContextError;

impl FromStr for TraceContext {
    type Err = TraceContextError;

    /// Reads what has the form of version 00, of later versions what they have in common with it.
    fn from_str(text: &str) -> Result<Self, TraceContextError> {
        let fields = || {
            let head = text.get(..LENGTH)?;
            let rest = text.get(LENGTH..)?;
            let mut parts = head.split('-');
            let version = hex(parts.next()?, 2)?;
            let trace = hex(parts.next()?, 32)?;
            let span = u64::try_from(hex(parts.next()?, 16)?).ok()?;
            let flags = hex(parts.next()?, 2)?;
            let later = version != 0 && version != 0xff;
            let ends = rest.is_empty() && version == 0
                || later && (rest.is_empty() || rest.starts_with('-'));
            (parts.next().is_none() && ends && trace != 0 && span != 0).then_some(Self {
                trace,
                span,
                sampled: flags & 1 == 1,
            })
        };
        fields().ok_or(TraceContextError)
    }
}

/// Reads lower-case digits, exactly as many as there should be.
fn hex(text: &str, length: usize) -> Option<u128> {
    let digit = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    let good = text.len() == length && text.bytes().all(digit);
    good.then(|| u128::from_str_radix(text, 16).ok()).flatten()
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flags = u8::from(self.sampled);
        write!(f, "00-{:032x}-{:016x}-{flags:02x}", self.trace, self.span)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    #[test]
    fn the_specifications_own_example_is_read_and_written() {
        let context: TraceContext = GOOD.parse().unwrap();
        assert_eq!(context.trace, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!(context.span, 0x00f0_67aa_0ba9_02b7);
        assert!(context.sampled);
        assert_eq!(context.to_string(), GOOD);
        let later = GOOD.replacen("00-", "cc-", 1) + "-more";
        assert_eq!(later.parse(), Ok(context));
    }

    #[test]
    fn what_is_none_is_refused() {
        for bad in [
            "",
            "00",
            &GOOD[1..],
            &format!("{GOOD}-more"),
            &format!("{GOOD}x"),
            &GOOD.replacen("00-", "ff-", 1),
            &GOOD.replace("4bf92f3577b34da6a3ce929d0e0e4736", &"0".repeat(32)),
            &GOOD.replace("00f067aa0ba902b7", &"0".repeat(16)),
            &GOOD.to_uppercase(),
            &GOOD.replace('-', "_"),
            &"ä".repeat(LENGTH),
        ] {
            assert!(bad.parse::<TraceContext>().is_err(), "{bad}");
        }
    }
}

//! Quantities that carry their unit.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a quantity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {what}: {expected}")]
pub struct QuantityError {
    /// The refused text, cut to a printable length.
    pub text: String,
    /// What was wanted.
    pub what: &'static str,
    /// The accepted form, with an example.
    pub expected: &'static str,
}

/// Digits after the point of a size that count: with all of them a tebibyte is told to a byte.
const FRACTION_DIGITS_MAX: usize = 12;

/// A number of bytes.
///
/// Parses `512`, `64k`, `256m`, `1.5g`, `2t` with an optional `b`, `i` or `ib` (all powers of 1024).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// Makes a size from mebibytes.
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// Returns the whole mebibytes.
    pub const fn mib(self) -> u64 {
        self.0 >> 20
    }
}

impl FromStr for ByteSize {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError {
            text: text.chars().take(64).collect(),
            what: "a size",
            expected: "write a number with k, m, g or t, as in `256m` or `1.5g`",
        };
        let lower = text.trim().to_ascii_lowercase();
        let split = lower
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(lower.len());
        let (number, unit) = lower.split_at(split);
        let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
            "" if !unit.starts_with('i') => 0,
            "k" => 10,
            "m" => 20,
            "g" => 30,
            "t" => 40,
            _ => return Err(error()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if (whole.is_empty() && fraction.is_empty()) || fraction.contains('.') {
            return Err(error());
        }
        let fraction = fraction.get(..FRACTION_DIGITS_MAX).unwrap_or(fraction);
        let digits = |text: &str| match text {
            "" => Ok(0),
            text => text.parse::<u64>().map_err(|_| error()),
        };
        let parts = 10u128.pow(u32::try_from(fraction.len()).unwrap_or(0));
        let number = u128::from(digits(whole)?) * parts + u128::from(digits(fraction)?);
        let bytes = number.checked_mul(1 << shift).ok_or_else(error)? / parts;
        u64::try_from(bytes).map(Self).map_err(|_| error())
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
        for (unit, shift) in units {
            if self.0 >= 1 << shift {
                let tenths = (u128::from(self.0) * 10) >> shift;
                return if tenths % 10 == 0 {
                    f.pad(&format!("{}{unit}", tenths / 10))
                } else {
                    f.pad(&format!("{}.{}{unit}", tenths / 10, tenths % 10))
                };
            }
        }
        f.pad(&format!("{}B", self.0))
    }
}

/// Least and most thousandths of a CPU: the kernel's smallest quota is 1 ms in a period of 100 ms, and
/// four million CPUs are more than any machine has.
const MILLI_MIN: u32 = 10;
const MILLI_MAX: u32 = 4_000_000_000;

/// Thousandths of a CPU. Parses `0.5`, `2` and `250m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[serde(transparent)]
pub struct MilliCpu(pub u32);

impl FromStr for MilliCpu {
    type Err = QuantityError;

    fn from_str(text: &str) -> Result<Self, QuantityError> {
        let error = || QuantityError {
            text: text.chars().take(64).collect(),
            what: "a number of CPUs",
            expected: "write CPUs as `0.5` or `2`, or thousandths as `250m`; at least 10m",
        };
        let milli = if let Some(number) = text.trim().strip_suffix('m') {
            number.parse::<u32>().map_err(|_| error())?
        } else {
            let cpus: f64 = text.trim().parse().map_err(|_| error())?;
            if !(0.0..=f64::from(MILLI_MAX / 1000)).contains(&cpus) {
                return Err(error());
            }
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "the range was checked above"
            )]
            let milli = (cpus * 1000.0).round() as u32;
            milli
        };
        match milli {
            MILLI_MIN..=MILLI_MAX => Ok(Self(milli)),
            _ => Err(error()),
        }
    }
}

impl fmt::Display for MilliCpu {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_multiple_of(1000) {
            f.pad(&format!("{}", self.0 / 1000))
        } else {
            f.pad(&format!("{}m", self.0))
        }
    }
}

/// Longest duration: 136 years, and in milliseconds still far from what any clock overflows at.
const SECONDS_MAX: u64 = u32::MAX as u64;

/// Parses a duration such as `500ms`, `30`, `30s`, `15m`, `2h`, `1h30m` or `7d`; a bare number is seconds.
///
/// # Errors
///
/// Returns [`QuantityError`] naming the accepted form.
pub fn parse_duration(text: &str) -> Result<std::time::Duration, QuantityError> {
    let error = || QuantityError {
        text: text.chars().take(64).collect(),
        what: "a duration",
        expected: "write `30s`, `15m`, `1h30m` or `7d`; a bare number is seconds",
    };
    let mut rest = text.trim();
    if let Ok(seconds) = rest.parse::<u64>() {
        // Refused as it would be with its unit, and not shortened in silence.
        return match seconds {
            0..=SECONDS_MAX => Ok(std::time::Duration::from_secs(seconds)),
            _ => Err(error()),
        };
    }
    let mut total_ms: u64 = 0;
    while !rest.is_empty() {
        let split = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(error)?;
        let (number, tail) = rest.split_at(split);
        let number: u64 = number.parse().map_err(|_| error())?;
        let unit_end = tail
            .find(|c: char| c.is_ascii_digit())
            .unwrap_or(tail.len());
        let (unit, next) = tail.split_at(unit_end);
        let factor = match unit {
            "ms" => 1,
            "s" => 1000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err(error()),
        };
        total_ms = number
            .checked_mul(factor)
            .and_then(|ms| total_ms.checked_add(ms))
            .filter(|ms| *ms <= SECONDS_MAX * 1000)
            .ok_or_else(error)?;
        rest = next;
    }
    if text.trim().is_empty() {
        Err(error())
    } else {
        Ok(std::time::Duration::from_millis(total_ms))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_parse_and_print() {
        let cases = [
            ("0", 0, "0B"),
            ("64k", 65_536, "64KiB"),
            ("256m", 268_435_456, "256MiB"),
            ("256MiB", 268_435_456, "256MiB"),
            ("1.5g", 1_610_612_736, "1.5GiB"),
            ("2T", 2 << 40, "2TiB"),
            ("16777215.5t", u64::MAX - (1 << 39) + 1, "16777215.5TiB"),
            (".5k", 512, "512B"),
            ("1.0000000000005k", 1024, "1KiB"),
        ];
        for (text, bytes, shown) in cases {
            let size = text.parse::<ByteSize>().unwrap();
            assert_eq!(
                (size.0, size.to_string().as_str()),
                (bytes, shown),
                "{text}"
            );
        }
        for bad in [
            "",
            "m",
            "-1",
            "1x",
            "1.2.3g",
            "1.000000000000.3g",
            ".",
            "18446744073709551615t",
            "99999999999t",
            "16777216.0t",
            "nan",
            "1e3",
            "i",
        ] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad}");
        }
    }

    #[test]
    fn cpus_parse_and_print() {
        for (text, milli, shown) in [
            ("1", 1000, "1"),
            ("0.5", 500, "500m"),
            ("250m", 250, "250m"),
        ] {
            let cpu = text.parse::<MilliCpu>().unwrap();
            assert_eq!((cpu.0, cpu.to_string().as_str()), (milli, shown));
        }
        for bad in [
            "",
            "0",
            "-1",
            "x",
            "inf",
            "nan",
            "5m",
            "4000001",
            "4000000001m",
        ] {
            assert!(bad.parse::<MilliCpu>().is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_parse() {
        for (text, ms) in [
            ("500ms", 500),
            ("30", 30_000),
            ("15m", 900_000),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(parse_duration(text).unwrap().as_millis(), ms, "{text}");
        }
        let longest = SECONDS_MAX.to_string();
        assert_eq!(parse_duration(&longest).unwrap().as_secs(), SECONDS_MAX);
        let bad = [
            "",
            "m",
            "1x",
            "1h30",
            "-5s",
            "99999999999999d",
            "4294967296",
        ];
        for bad in bad {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }
}

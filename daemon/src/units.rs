//! Quantities as people write them: `300ms`, `10min`, `512MiB`, `500mbit`.
//!
//! Parsed once, at the edge, into plain numbers whose unit is in the name of what holds them.

use std::fmt;
use std::time::Duration;

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum UnitError {
    #[error("\"{0}\" is not a duration: write a number and ms, s, min or h, as in 300ms or 10min")]
    Duration(String),
    #[error("\"{0}\" is not a size: write a number and KiB, MiB, GiB (or kB, MB, GB), as in 256MiB")]
    Bytes(String),
    #[error("\"{0}\" is not a rate: write a number and kbit, mbit or gbit (per second), as in 500mbit")]
    Rate(String),
    #[error(
        "\"{0}\" is too low a limit: at least 2mbit, or a stopped guest would wait too long for a single chunk"
    )]
    LowRate(String),
}

/// A chunk of 288 KiB has to cross within a stopped guest's patience (`guest.closing_timeout`, 2 s).
pub const LIMIT_BYTES_PER_S_MIN: u64 = 250_000;

/// A limit, in bytes per second.
pub fn parse_limit(text: &str) -> Result<u64, UnitError> {
    let bad = || UnitError::Rate(text.to_owned());
    let (number, unit) = split(text).ok_or_else(bad)?;
    let bits = match unit.to_ascii_lowercase().as_str() {
        "kbit" => 1e3,
        "mbit" => 1e6,
        "gbit" => 1e9,
        _ => return Err(bad()),
    };
    let bytes_per_s = number * bits / 8.0;
    if !bytes_per_s.is_finite() || bytes_per_s > 1e15 {
        return Err(bad());
    }
    if bytes_per_s < LIMIT_BYTES_PER_S_MIN as f64 {
        return Err(UnitError::LowRate(text.to_owned()));
    }
    Ok(bytes_per_s as u64)
}

pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let bad = || UnitError::Duration(text.to_owned());
    let (number, unit) = split(text).ok_or_else(bad)?;
    let seconds = match unit {
        "us" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "min" | "m" => 60.0,
        "h" => 3600.0,
        _ => return Err(bad()),
    };
    Duration::try_from_secs_f64(number * seconds).map_err(|_| bad())
}

pub fn parse_bytes(text: &str) -> Result<u64, UnitError> {
    let bad = || UnitError::Bytes(text.to_owned());
    let (number, unit) = split(text).ok_or_else(bad)?;
    let factor: u64 = match unit.to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kib" | "k" => 1 << 10,
        "mib" | "m" => 1 << 20,
        "gib" | "g" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(bad()),
    };
    let bytes = number * factor as f64;
    if bytes.is_finite() && (0.0..9e18).contains(&bytes) { Ok(bytes as u64) } else { Err(bad()) }
}

/// `1.5 GiB`, `12.0 MiB`, `900 B`.
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let b = self.0 as f64;
        match self.0 {
            0..1024 => write!(f, "{} B", self.0),
            1024..1_048_576 => write!(f, "{:.1} KiB", b / 1024.0),
            1_048_576..1_073_741_824 => write!(f, "{:.1} MiB", b / 1_048_576.0),
            _ => write!(f, "{:.2} GiB", b / 1_073_741_824.0),
        }
    }
}

/// A rate in bits, as networks are spoken of: `942 Mbit/s`.
pub struct BitRate(pub f64);

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = self.0 * 8.0;
        if bits >= 1e9 {
            write!(f, "{:.2} Gbit/s", bits / 1e9)
        } else if bits >= 1e6 {
            write!(f, "{:.0} Mbit/s", bits / 1e6)
        } else {
            write!(f, "{:.0} kbit/s", bits / 1e3)
        }
    }
}

/// `85 ms`, `4.2 s`, `3 min 10 s`.
pub struct Span(pub Duration);

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        match ms {
            0..1_000 => write!(f, "{ms} ms"),
            1_000..120_000 => write!(f, "{:.1} s", self.0.as_secs_f64()),
            _ => write!(f, "{} min {} s", ms / 60_000, ms / 1_000 % 60),
        }
    }
}

fn split(text: &str) -> Option<(f64, &str)> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_and_sizes_are_read_as_people_write_them() {
        assert_eq!(parse_duration("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(parse_duration("10 min"), Ok(Duration::from_secs(600)));
        assert_eq!(parse_duration("1.5s"), Ok(Duration::from_millis(1500)));
        assert_eq!(parse_bytes("256MiB"), Ok(256 << 20));
        assert_eq!(parse_bytes("1000"), Ok(1000));
        assert_eq!(parse_bytes("1.5 GB"), Ok(1_500_000_000));
    }

    #[test]
    fn limits_are_in_bits_and_not_too_low() {
        assert_eq!(parse_limit("500mbit"), Ok(62_500_000));
        assert_eq!(parse_limit("1.5 Gbit"), Ok(187_500_000));
        assert_eq!(parse_limit("2000kbit"), Ok(LIMIT_BYTES_PER_S_MIN));
        for text in ["", "500", "500MB", "-1mbit", "mbit", "1e9gbit", "99999999999999gbit"] {
            assert!(matches!(parse_limit(text), Err(UnitError::Rate(_))), "{text}");
        }
        assert!(parse_limit("1mbit").unwrap_err().to_string().contains("2mbit"));
    }

    #[test]
    fn what_is_not_a_quantity_is_refused_with_an_example() {
        for text in ["", "ms", "-3s", "3", "3 parsecs", "1e400s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        for text in ["", "MiB", "-1", "1 furlong", "99999999999999999999GiB"] {
            assert!(parse_bytes(text).is_err(), "{text}");
        }
        assert!(parse_duration("3").unwrap_err().to_string().contains("300ms"));
    }
}

//! What a link is: rate, round trip, queue, loss; the named links; how they are written on a command line.

use std::fmt;
use std::time::Duration;

use super::{LINK_OVERHEAD_BYTES, MTU_BYTES, TCP_PAYLOAD_BYTES};

/// A rate in bits per second on the wire, link overhead included.
///
/// Links are asked for by what TCP's *payload* gets out of them ([`Rate::payload`]): full IPv4 packets of 1500 bytes
/// carry 1448 bytes of payload and cost 1526. Over IPv6 the payload is 1.4 % less.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate {
    line_bit_per_s: u64,
}

impl Rate {
    /// The link over which TCP's payload moves at `bit_per_s`.
    pub const fn payload(bit_per_s: u64) -> Self {
        let wire = (MTU_BYTES + LINK_OVERHEAD_BYTES) as u128;
        let line = (bit_per_s as u128 * wire).div_ceil(TCP_PAYLOAD_BYTES as u128);
        Self { line_bit_per_s: if line > u64::MAX as u128 { u64::MAX } else { line as u64 } }
    }

    /// The link that moves `bit_per_s` of frames, headers and link overhead included.
    pub const fn line(bit_per_s: u64) -> Self {
        Self { line_bit_per_s: bit_per_s }
    }

    /// Bits per second on the wire.
    pub const fn line_bit_per_s(self) -> u64 {
        self.line_bit_per_s
    }

    /// Bits per second of TCP payload in full IPv4 packets.
    pub const fn payload_bit_per_s(self) -> u64 {
        let wire = (MTU_BYTES + LINK_OVERHEAD_BYTES) as u128;
        // Rounded down, as `payload` rounds up: what was asked for reads back the same.
        (self.line_bit_per_s as u128 * TCP_PAYLOAD_BYTES as u128 / wire) as u64
    }
}

/// How much a direction's drop-tail queue holds. Without a rate there is no queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queue {
    /// What the rate carries in this time.
    Time(Duration),
    /// Bytes on the wire, link overhead included.
    Bytes(u64),
}

/// One direction of a link.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Direction {
    /// `None`: as fast as the machine forwards.
    pub rate: Option<Rate>,
    /// One way, beside serialisation and queueing.
    pub delay: Duration,
    pub queue: Queue,
    /// Probability in `0.0..=1.0` that an MTU-sized packet is lost behind the bottleneck.
    pub loss: f64,
}

/// A link that is the same both ways.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Profile {
    /// `None`: as fast as the machine forwards.
    pub rate: Option<Rate>,
    /// Round trip of an empty link; half of it each way.
    pub rtt: Duration,
    pub queue: Queue,
    /// Probability in `0.0..=1.0`, each way, per MTU-sized packet.
    pub loss: f64,
}

const MBIT: u64 = 1_000_000;
const GBIT: u64 = 1_000_000_000;
/// The named links: payload rate, round trip in µs, loss, queue in ms at the rate, what they stand for.
const NAMED: [(&str, u64, u64, f64, u64, &str); 7] = [
    ("lan", 10 * GBIT, 200, 0.0, 5, "a campus: 10 Gbit/s, 0.2 ms"),
    ("jgn", GBIT, 40_000, 0.0, 100, "Tokyo-Fukuoka: 1 Gbit/s, 40 ms"),
    ("jgn-10g", 10 * GBIT, 40_000, 0.0, 100, "the same path with today's cards: 10 Gbit/s, 40 ms"),
    ("cloudnet", 100 * MBIT, 20_000, 0.0, 100, "CloudNet's lab: 100 Mbit/s, 20 ms"),
    ("us", GBIT, 120_000, 0.0, 100, "Tokyo-US west coast: 1 Gbit/s, 120 ms"),
    ("eu", GBIT, 200_000, 0.0, 100, "Tokyo-Europe: 1 Gbit/s, 200 ms"),
    ("lossy", GBIT, 120_000, 0.0001, 100, "a path that is not clean: 1 Gbit/s, 120 ms, 0.01 % loss"),
];

impl Profile {
    /// No rate, no delay, no loss.
    pub const UNLIMITED: Self =
        Self { rate: None, rtt: Duration::ZERO, queue: Queue::Time(Duration::from_millis(100)), loss: 0.0 };

    /// The link of this name: see [`Profile::names`].
    pub fn named(name: &str) -> Option<Self> {
        if name == "unlimited" {
            return Some(Self::UNLIMITED);
        }
        let (_, rate, rtt_us, loss, queue_ms, _) = NAMED.into_iter().find(|link| link.0 == name)?;
        Some(Self {
            rate: Some(Rate::payload(rate)),
            rtt: Duration::from_micros(rtt_us),
            queue: Queue::Time(Duration::from_millis(queue_ms)),
            loss,
        })
    }

    /// Every name and what it stands for.
    pub fn names() -> impl Iterator<Item = (&'static str, &'static str)> {
        NAMED.into_iter().map(|link| (link.0, link.5)).chain([("unlimited", "no rate, no delay")])
    }

    /// One direction of it.
    pub fn direction(&self) -> Direction {
        Direction { rate: self.rate, delay: self.rtt / 2, queue: self.queue, loss: self.loss }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.rate {
            Some(rate) => write!(f, "{:.1} Mbit/s of TCP payload", rate.payload_bit_per_s() as f64 / 1e6)?,
            None => write!(f, "unlimited rate")?,
        }
        write!(f, ", round trip {:?}", self.rtt)?;
        match self.queue {
            _ if self.rate.is_none() => {}
            Queue::Time(time) => write!(f, ", queue {time:?}")?,
            Queue::Bytes(bytes) => write!(f, ", queue {bytes} bytes")?,
        }
        if self.loss > 0.0 {
            write!(f, ", loss {} %", self.loss * 100.0)?;
        }
        Ok(())
    }
}

/// A quantity on the command line that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {what}")]
pub struct ParseError {
    text: String,
    what: &'static str,
}

/// `100mbit`, `1gbit`, `64kbit`, `9600bit`: decimal multiples of bits per second.
pub fn parse_rate(text: &str) -> Result<u64, ParseError> {
    let units = [("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1.0)];
    let rate = number_with_unit(text, &units).filter(|&rate| (1.0..=1e15).contains(&rate));
    rate.map(|rate| rate as u64).ok_or_else(|| error(text, "a rate, such as 100mbit or 1gbit"))
}

/// `120ms`, `0.2ms`, `50us`, `5s`.
pub fn parse_duration(text: &str) -> Result<Duration, ParseError> {
    let units = [("ms", 1e-3), ("us", 1e-6), ("s", 1.0), ("min", 60.0)];
    let seconds = number_with_unit(text, &units).filter(|&seconds| (0.0..=86_400.0).contains(&seconds));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| error(text, "a time, such as 120ms, 50us or 5s"))
}

/// `2GiB`, `512MiB`, `64KiB`, `1GB`, `100B`.
pub fn parse_bytes(text: &str) -> Result<u64, ParseError> {
    let binary =
        [("gib", 1u64 << 30), ("mib", 1 << 20), ("kib", 1 << 10)].map(|(name, unit)| (name, unit as f64));
    let decimal = [("gb", 1e9), ("mb", 1e6), ("kb", 1e3), ("b", 1.0)];
    let units: Vec<_> = binary.into_iter().chain(decimal).collect();
    let bytes = number_with_unit(text, &units).filter(|&bytes| (0.0..=1e15).contains(&bytes));
    bytes.map(|bytes| bytes as u64).ok_or_else(|| error(text, "a size, such as 512MiB or 2GiB"))
}

/// `0.01%`, or `0`.
pub fn parse_loss(text: &str) -> Result<f64, ParseError> {
    let loss = match text.trim() {
        "0" => Some(0.0),
        text => number_with_unit(text, &[("%", 0.01)]),
    };
    loss.filter(|loss| (0.0..=1.0).contains(loss)).ok_or_else(|| error(text, "a loss, such as 0.01%"))
}

fn error(text: &str, what: &'static str) -> ParseError {
    ParseError { text: text.to_owned(), what }
}

/// The first unit that fits wins, so a unit that ends like another comes before it.
fn number_with_unit(text: &str, units: &[(&str, f64)]) -> Option<f64> {
    let text = text.trim().to_ascii_lowercase();
    let (number, unit) = units.iter().find_map(|&(name, unit)| Some((text.strip_suffix(name)?, unit)))?;
    number.trim().parse::<f64>().ok().map(|number| number * unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_with_their_units() {
        assert_eq!(parse_rate("1gbit"), Ok(1_000_000_000));
        assert_eq!(parse_rate("2.5 Mbit"), Ok(2_500_000));
        assert_eq!(parse_duration("0.2ms"), Ok(Duration::from_micros(200)));
        assert_eq!(parse_duration("5s"), Ok(Duration::from_secs(5)));
        assert_eq!(parse_duration("5min"), Ok(Duration::from_secs(300)));
        assert_eq!(parse_bytes("2GiB"), Ok(2 << 30));
        assert_eq!(parse_bytes("1.5 kb"), Ok(1500));
        assert!((parse_loss("0.01%").unwrap() - 0.0001).abs() < 1e-12);
        assert_eq!(parse_loss("0"), Ok(0.0));
    }

    #[test]
    fn what_is_not_a_quantity_is_refused() {
        for text in ["", "1", "gbit", "-1gbit", "nangbit", "infgbit", "0bit", "1tbit"] {
            assert!(parse_rate(text).is_err(), "{text:?}");
        }
        for text in ["", "1", "-1ms", "nans", "1m", "1e9s"] {
            assert!(parse_duration(text).is_err(), "{text:?}");
        }
        for text in ["", "1", "-1MiB", "infGB", "nanB", "1TiB"] {
            assert!(parse_bytes(text).is_err(), "{text:?}");
        }
        for text in ["", "1", "101%", "-1%", "nan%"] {
            assert!(parse_loss(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn a_payload_rate_reads_back() {
        for asked in [100_000, 100_000_000, 1_000_000_000, 10_000_000_000] {
            assert_eq!(Rate::payload(asked).payload_bit_per_s(), asked);
        }
        assert_eq!(Rate::payload(1_448_000).line_bit_per_s(), 1_526_000);
    }

    #[test]
    fn every_name_has_a_link() {
        for (name, _) in Profile::names() {
            assert!(Profile::named(name).is_some(), "{name}");
        }
        assert_eq!(Profile::named("moon"), None);
        let us = Profile::named("us").unwrap();
        assert_eq!((us.rtt, us.loss), (Duration::from_millis(120), 0.0));
        assert_eq!(us.rate.unwrap().payload_bit_per_s(), 1_000_000_000);
    }
}

//! The daemon's configuration file: read once, checked whole, every knob in one place.
//!
//! Unknown keys are errors with their line. What is parsed here is never validated again.

use crate::hooks::Hook;
use crate::libvirt::landing::{self, Landing};
use crate::standing::Standing;
use crate::units;
use hikyaku_engine::PAGE_BYTES;
use hikyaku_transport::PublicKey;
use serde::{Deserialize, Deserializer};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("cannot read {path}: {source}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path}: {message}")]
    Parse { path: PathBuf, message: String },
    #[error("{path}: {message}")]
    Invalid { path: PathBuf, message: String },
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where peers reach this daemon. Default `[::]:4707`, IPv4 included.
    #[serde(default = "default_listen")]
    pub listen: OneOrMany<SocketAddr>,
    /// Unix socket for the command, hooks and orchestrators.
    #[serde(default = "default_api")]
    pub api: PathBuf,
    /// This daemon's private key, made by `hikyaku keygen`.
    #[serde(default = "default_key")]
    pub key: PathBuf,
    /// Ownership records. Losing this directory while a move is in doubt means deciding by hand.
    #[serde(default = "default_state")]
    pub state: PathBuf,
    /// How long moves under way may take to end when the daemon is told to end; then they are given back. Default 60 s.
    #[serde(default = "default_drain", deserialize_with = "duration")]
    pub drain: Duration,
    /// How sockets are driven: `auto` takes io_uring where the kernel allows it.
    #[serde(default)]
    pub io: Io,
    #[serde(default, rename = "peer")]
    pub peers: Vec<Peer>,
    #[serde(default)]
    pub memory: Memory,
    #[serde(default)]
    pub link: Link,
    #[serde(default)]
    pub guest: Guest,
    #[serde(default)]
    pub hooks: Hooks,
    #[serde(default)]
    pub libvirt: Libvirt,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Io {
    #[default]
    Auto,
    Uring,
    Plain,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    pub name: String,
    /// `host:port`, tried in order.
    #[serde(default)]
    pub addresses: Vec<String>,
    #[serde(deserialize_with = "public_key")]
    pub public_key: PublicKey,
    /// What this peer may do with us. Default: nothing.
    #[serde(default)]
    pub allow: Vec<Allow>,
    /// What all migrations to this peer send together at most, bytes per second on the wire. Default: no limit.
    #[serde(default, rename = "limit", deserialize_with = "limit")]
    pub limit_bytes_per_s: Option<u64>,
    /// Where guests land there that libvirt moves without being told of our sockets. Default: nowhere.
    pub landing: Option<Landing>,
}

impl Peer {
    pub fn may_be_sent_to(&self) -> bool {
        self.allow.contains(&Allow::Send)
    }

    pub fn may_be_received_from(&self) -> bool {
        self.allow.contains(&Allow::Receive)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allow {
    /// Guests may be sent to this peer.
    Send,
    /// Guests may come from this peer.
    Receive,
    /// This peer's libvirt may talk to ours, by which it can do anything to this host.
    Libvirt,
}

/// Budgets per migration. The daemon's resident size stays below 256 MiB plus these.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Memory {
    /// Page contents taken from QEMU and not yet sent. More lets a rewritten page be sent once; it costs nothing in
    /// downtime, because the policy counts it. Default 256 MiB: 2 s of a 1 Gbit/s link.
    #[serde(deserialize_with = "bytes")]
    pub staging: u64,
    /// What the destination holds of chunks that have arrived and are not yet in QEMU: the credit it grants.
    /// Must cover rate x RTT. Default 128 MiB: 5 Gbit/s at 200 ms.
    #[serde(deserialize_with = "bytes")]
    pub credit: u64,
    /// Device state, held at the destination until the source has let go of the guest. Default 128 MiB.
    #[serde(deserialize_with = "bytes")]
    pub tail: u64,
    /// What was sent, kept as the base of deltas. Default "auto", which is `None`: a quarter of the guest's memory, at most 1 GiB.
    #[serde(deserialize_with = "bytes_or_auto")]
    pub bases: Option<u64>,
    /// Contents that occur on many pages, kept at both ends: the smaller of both ends' holds. Default 16 MiB: what many pages
    /// share is most often one of a few.
    #[serde(deserialize_with = "bytes")]
    pub dictionary: u64,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Link {
    /// TCP connections per peer and direction: a number, always; or `None`, as many as it takes, which is "auto" and the default: 8
    /// to begin with, and up to 32 where losses or the kernel's bounds on buffers keep each small.
    #[serde(deserialize_with = "lanes")]
    pub lanes: Option<u16>,
    /// Congestion control of the lanes, by kernel name. Default "auto": `bbr` where the kernel has it, else the host's.
    pub congestion: Option<String>,
    /// Differentiated services code point of everything that goes to and comes from peers, 0 to 63. Default: the host's.
    pub dscp: Option<u8>,
    /// How long connecting and the handshake may take. Default 10 s.
    #[serde(deserialize_with = "duration")]
    pub connect_timeout: Duration,
    /// Silence on the control connection after which the link is down and the peer is dialled again. Must exceed 2 s.
    /// Default 4 s: forty missing pings.
    #[serde(deserialize_with = "duration")]
    pub dead_after: Duration,
    /// Links without a migration: `off`, `up` from the daemon's start on, or `warm`: up, and filled once. Default `warm`: a guest waits for
    /// one round trip instead of a dozen.
    pub standing: Standing,
    /// What this host sends at most, all migrations together, bytes per second on the wire. Default: no limit.
    #[serde(rename = "limit", deserialize_with = "limit")]
    pub limit_bytes_per_s: Option<u64>,
    /// How long a link that is down is sought before what travels on it is given up: guests run on at the source
    /// meanwhile. 0: a link that is down is lost. Default 10 min: longer than a router's reboot.
    #[serde(deserialize_with = "duration_or_off")]
    pub timeout: Duration,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Guest {
    /// How long one QMP command may take. QEMU answers in milliseconds except while it completes a migration.
    /// Default 10 s.
    #[serde(deserialize_with = "duration")]
    pub qmp_timeout: Duration,
    /// How long a stopped guest may wait for the link before it is continued here. Default 2 s.
    #[serde(deserialize_with = "duration")]
    pub closing_timeout: Duration,
    /// How long the destination QEMU may take to load the device state, and the source QEMU to write it. Default 60 s.
    #[serde(deserialize_with = "duration")]
    pub load_timeout: Duration,
    /// Pause of the intake after QEMU found nothing dirty: longer costs a slightly larger residual, shorter makes QEMU
    /// sync its dirty bitmap more often and the guest fault more. Default 50 ms.
    #[serde(deserialize_with = "duration")]
    pub sync_interval: Duration,
    /// End the QEMU whose guest has moved away. Default: who started it ends it.
    pub quit_moved: bool,
    /// End the QEMU that was given a part of a guest, or all of one, and runs none: it can take no other. Default true.
    pub quit_refused: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Hooks {
    /// Programs named like what they are called for. Default `/etc/hikyaku/hooks.d`.
    pub directory: PathBuf,
    /// How long each may take. Default 10 s.
    #[serde(deserialize_with = "duration")]
    pub timeout: Duration,
    /// At the destination: what has to be done before the guest may run. It stands meanwhile. Default: nothing.
    pub hold: Vec<Hook>,
}

/// Guests that libvirt moves.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Libvirt {
    /// libvirt's socket at this host. Default `/run/libvirt/libvirt-sock`, which its modular daemons have, too.
    pub socket: PathBuf,
    /// Where the sockets of each migration are made; the same at both hosts. Default `/run/hikyaku/m`.
    pub directory: PathBuf,
    /// As whom libvirt's QEMUs run. Default: `libvirt-qemu` or `qemu`, whichever there is.
    pub qemu_user: Option<String>,
    /// Memory that is to be left here by a guest that comes: libvirt's hook refuses one that would leave less. Default 0: not looked at.
    #[serde(deserialize_with = "bytes")]
    pub room: u64,
    /// libvirt's hook refuses guests whose calls are not carried by hikyaku. Default: no.
    pub only_carried: bool,
    /// Where guests land here that other hosts' libvirts move without being told of our sockets. Default: nowhere.
    pub landing: Option<Landing>,
}

impl Default for Libvirt {
    fn default() -> Self {
        Libvirt {
            socket: PathBuf::from("/run/libvirt/libvirt-sock"),
            directory: PathBuf::from("/run/hikyaku/m"),
            qemu_user: None,
            room: 0,
            only_carried: false,
            landing: None,
        }
    }
}

impl Default for Hooks {
    fn default() -> Self {
        let directory = PathBuf::from("/etc/hikyaku/hooks.d");
        Hooks { directory, timeout: Duration::from_secs(10), hold: Vec::new() }
    }
}

impl Memory {
    /// Contents the dictionary of a guest holds.
    pub fn dictionary_slots(&self) -> u16 {
        u16::try_from(self.dictionary / PAGE_BYTES as u64).unwrap_or(u16::MAX)
    }
}

impl Default for Memory {
    fn default() -> Self {
        Memory { staging: 256 << 20, credit: 128 << 20, tail: 128 << 20, bases: None, dictionary: 16 << 20 }
    }
}

impl Default for Link {
    fn default() -> Self {
        Link {
            lanes: None,
            congestion: None,
            dscp: None,
            connect_timeout: Duration::from_secs(10),
            dead_after: Duration::from_secs(4),
            timeout: Duration::from_secs(600),
            standing: Standing::default(),
            limit_bytes_per_s: None,
        }
    }
}

impl Default for Guest {
    fn default() -> Self {
        Guest {
            qmp_timeout: Duration::from_secs(10),
            closing_timeout: Duration::from_secs(2),
            load_timeout: Duration::from_secs(60),
            sync_interval: Duration::from_millis(50),
            quit_moved: false,
            quit_refused: true,
        }
    }
}

impl Config {
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Config::parse(path, &text)
    }

    pub fn parse(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let config: Config = toml::from_str(text)
            .map_err(|e| ConfigError::Parse { path: path.to_owned(), message: e.to_string() })?;
        config.check().map_err(|message| ConfigError::Invalid { path: path.to_owned(), message })?;
        Ok(config)
    }

    pub fn peer(&self, name: &str) -> Option<&Peer> {
        self.peers.iter().find(|p| p.name == name)
    }

    fn check(&self) -> Result<(), String> {
        for (i, peer) in self.peers.iter().enumerate() {
            if peer.name.is_empty() || peer.name.len() > 64 {
                return Err("a peer's name must have 1 to 64 characters".into());
            }
            for other in &self.peers[..i] {
                if other.name == peer.name {
                    return Err(format!("peer \"{}\" stands here twice", peer.name));
                }
                if other.public_key == peer.public_key {
                    return Err(format!("peers \"{}\" and \"{}\" have the same key", other.name, peer.name));
                }
            }
            if peer.may_be_sent_to() && peer.addresses.is_empty() {
                return Err(format!(
                    "peer \"{}\": guests may be sent to it, but it has no addresses",
                    peer.name
                ));
            }
        }
        let default = hikyaku_transport::Timeouts::default();
        if self.link.dead_after <= default.ping_idle {
            return Err(format!("link.dead_after must be longer than {} s", default.ping_idle.as_secs()));
        }
        for (what, time) in [
            ("link.connect_timeout", self.link.connect_timeout),
            ("guest.qmp_timeout", self.guest.qmp_timeout),
            ("guest.closing_timeout", self.guest.closing_timeout),
            ("guest.load_timeout", self.guest.load_timeout),
            ("guest.sync_interval", self.guest.sync_interval),
        ] {
            if time.is_zero() {
                return Err(format!("{what} must not be 0: nothing would ever be in time"));
            }
        }
        for (peer, address) in self.peers.iter().flat_map(|p| p.addresses.iter().map(move |a| (p, a))) {
            let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() {
                return Err(format!(
                    "peer \"{}\": the address \"{address}\" has no port; write \"{address}:4707\"",
                    peer.name
                ));
            }
        }
        if self.link.lanes.is_some_and(|lanes| !(1..=64).contains(&lanes)) {
            return Err("link.lanes must be 1 to 64, or \"auto\"".into());
        }
        if !crate::libvirt::directory::fits(&self.libvirt.directory) {
            return Err(
                "libvirt.directory must be an absolute path of at most 86 bytes: sockets are made below it"
                    .into(),
            );
        }
        let landings =
            self.peers.iter().filter_map(|peer| Some((peer.name.as_str(), peer.landing.as_ref()?)));
        landing::check(self.libvirt.landing.as_ref(), landings)?;
        for peer in &self.peers {
            let Some(landing) = &peer.landing else { continue };
            if !peer.may_be_sent_to() {
                return Err(format!(
                    "peer \"{}\" has a landing, and nothing may be sent to it: allow \"send\"",
                    peer.name
                ));
            }
            // That name will mean this host.
            let hosts = self.peers.iter().flat_map(|peer| &peer.addresses);
            let mut hosts = hosts.filter_map(|address| Some(address.rsplit_once(':')?.0));
            if hosts.any(|host| host.eq_ignore_ascii_case(&landing.alias)) {
                return Err(format!(
                    "the landing of {}: alias \"{}\" is how a peer is reached, and would mean this host; it is to be a name of its own, such as \"{0}.hikyaku\"",
                    peer.name, landing.alias
                ));
            }
        }
        if self.link.dscp.is_some_and(|dscp| dscp > 63) {
            return Err("link.dscp must be 0 to 63".into());
        }
        for (what, bytes) in
            [("staging", self.memory.staging), ("credit", self.memory.credit), ("tail", self.memory.tail)]
        {
            if bytes < 8 << 20 {
                return Err(format!("memory.{what} must be at least 8MiB"));
            }
        }
        Ok(())
    }
}

/// One value, or a list of them.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged, expecting = "not an address with a port, such as \"[::]:4707\", or a list of them")]
pub enum OneOrMany<T> {
    One(T),
    Many(Vec<T>),
}

impl<T: Clone> OneOrMany<T> {
    pub fn to_vec(&self) -> Vec<T> {
        match self {
            OneOrMany::One(one) => vec![one.clone()],
            OneOrMany::Many(many) => many.clone(),
        }
    }
}

fn default_listen() -> OneOrMany<SocketAddr> {
    OneOrMany::One(SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, 4707)))
}

fn default_api() -> PathBuf {
    PathBuf::from(crate::DEFAULT_API)
}

fn default_key() -> PathBuf {
    "/etc/hikyaku/key".into()
}

fn default_state() -> PathBuf {
    "/var/lib/hikyaku".into()
}

fn default_drain() -> Duration {
    Duration::from_secs(60)
}

fn bytes<'de, D: Deserializer<'de>>(d: D) -> Result<u64, D::Error> {
    let text = String::deserialize(d)?;
    units::parse_bytes(&text).map_err(serde::de::Error::custom)
}

/// `None`: "auto".
fn bytes_or_auto<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(d)?;
    if text == "auto" {
        return Ok(None);
    }
    units::parse_bytes(&text).map(Some).map_err(serde::de::Error::custom)
}

fn limit<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u64>, D::Error> {
    let text = String::deserialize(d)?;
    units::parse_limit(&text).map(Some).map_err(serde::de::Error::custom)
}

/// `None`: "auto".
fn lanes<'de, D: Deserializer<'de>>(d: D) -> Result<Option<u16>, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "lowercase")]
    enum Word {
        Auto,
    }
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "not a number of lanes from 1 to 64, and not \"auto\"")]
    enum Lanes {
        Number(u16),
        Word(Word),
    }
    Ok(match Lanes::deserialize(d)? {
        Lanes::Number(lanes) => Some(lanes),
        Lanes::Word(Word::Auto) => None,
    })
}

fn duration<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(d)?;
    units::parse_duration(&text).map_err(serde::de::Error::custom)
}

/// As [`duration`]; a plain `"0"` needs no unit.
fn duration_or_off<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
    let text = String::deserialize(d)?;
    if text.trim() == "0" {
        return Ok(Duration::ZERO);
    }
    units::parse_duration(&text).map_err(serde::de::Error::custom)
}

fn public_key<'de, D: Deserializer<'de>>(d: D) -> Result<PublicKey, D::Error> {
    let text = String::deserialize(d)?;
    text.parse().map_err(serde::de::Error::custom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hikyaku_transport::StaticKey;

    fn parse(text: &str) -> Result<Config, String> {
        Config::parse(Path::new("config.toml"), text).map_err(|e| e.to_string())
    }

    fn peer(name: &str) -> String {
        let key = StaticKey::generate().unwrap().public();
        format!(
            "[[peer]]\nname = \"{name}\"\naddresses = [\"192.0.2.7:4707\"]\npublic_key = \"{key}\"\nallow = [\"send\"]\n"
        )
    }

    #[test]
    fn an_empty_file_is_a_daemon_with_no_peers() {
        let config = parse("").unwrap();
        assert_eq!(config.listen.to_vec()[0].port(), 4707);
        assert_eq!(config.memory.staging, 256 << 20);
    }

    #[test]
    fn an_unknown_key_is_an_error_with_its_line() {
        let error = parse("listen = \"[::]:1\"\nlisten_to = 3\n").unwrap_err();
        assert!(error.contains("line 2") && error.contains("listen_to"), "{error}");
    }

    #[test]
    fn quantities_are_parsed_and_peers_must_differ() {
        let config = parse("[memory]\nstaging = \"64MiB\"\n[guest]\nclosing_timeout = \"500ms\"\n").unwrap();
        assert_eq!(config.memory.staging, 64 << 20);
        assert_eq!(config.guest.closing_timeout, Duration::from_millis(500));
        let config = parse("[link]\ntimeout = \"90s\"\n").unwrap();
        assert_eq!(config.link.timeout, Duration::from_secs(90));
        assert_eq!(parse("[link]\ntimeout = \"0\"\n").unwrap().link.timeout, Duration::ZERO);
        let error = parse(&(peer("osaka") + &peer("osaka"))).unwrap_err();
        assert!(error.contains("twice"), "{error}");
    }

    #[test]
    fn limits_are_of_the_host_and_of_peers_and_a_wrong_one_is_an_error_with_its_line() {
        let text = format!("[link]\nlimit = \"1gbit\"\n{}limit = \"500mbit\"\n", peer("osaka"));
        let config = parse(&text).unwrap();
        assert_eq!(config.link.limit_bytes_per_s, Some(125_000_000));
        assert_eq!(config.peers[0].limit_bytes_per_s, Some(62_500_000));
        for wrong in ["500", "500 parsecs", "1kbit"] {
            let error = parse(&format!("[link]\nlanes = 4\nlimit = \"{wrong}\"\n")).unwrap_err();
            assert!(error.contains("line 3") && error.contains("mbit"), "{error}");
        }
    }

    #[test]
    fn bases_are_a_size_or_fit_the_guest() {
        assert_eq!(parse("").unwrap().memory.bases, None);
        assert_eq!(parse("[memory]\nbases = \"auto\"\n").unwrap().memory.bases, None);
        assert_eq!(parse("[memory]\nbases = \"64MiB\"\n").unwrap().memory.bases, Some(64 << 20));
        assert!(parse("[memory]\nbases = \"some\"\n").unwrap_err().contains("bases"));
        assert_eq!(parse("[memory]\ndictionary = \"1MiB\"\n").unwrap().memory.dictionary_slots(), 256);
        assert_eq!(parse("[memory]\ndictionary = \"1GiB\"\n").unwrap().memory.dictionary_slots(), u16::MAX);
    }

    #[test]
    fn lanes_are_a_number_or_as_many_as_it_takes() {
        assert_eq!(parse("").unwrap().link.lanes, None);
        assert_eq!(parse("[link]\nlanes = \"auto\"\n").unwrap().link.lanes, None);
        assert_eq!(parse("[link]\nlanes = 12\ndscp = 10\n").unwrap().link.lanes, Some(12));
        assert_eq!(parse("[link]\ndscp = 10\n").unwrap().link.dscp, Some(10));
        for wrong in
            ["lanes = 0", "lanes = 65", "lanes = -1", "lanes = \"many\"", "dscp = 64", "dscp = \"ef\""]
        {
            let error = parse(&format!("[link]\n{wrong}\n")).unwrap_err();
            assert!(error.contains(wrong.split(' ').next().unwrap()), "{wrong}: {error}");
        }
    }

    #[test]
    fn links_stand_warm_unless_told_otherwise() {
        assert_eq!(parse("").unwrap().link.standing, Standing::Warm);
        for (text, standing) in [("off", Standing::Off), ("up", Standing::Up), ("warm", Standing::Warm)] {
            let config = parse(&format!("[link]\nstanding = \"{text}\"\n")).unwrap();
            assert_eq!(config.link.standing, standing);
        }
        assert!(parse("[link]\nstanding = \"hot\"\n").unwrap_err().contains("warm"));
    }

    #[test]
    fn what_could_never_work_is_said_when_it_is_checked() {
        let peer = peer("osaka");
        for (text, word) in [
            (format!("[link]\ndead_after = \"1s\"\n{peer}"), "dead_after"),
            (format!("[guest]\nqmp_timeout = \"0s\"\n{peer}"), "qmp_timeout"),
            (format!("[guest]\nsync_interval = \"0s\"\n{peer}"), "sync_interval"),
            (format!("[memory]\ntail = \"1MiB\"\n{peer}"), "memory.tail"),
            (peer.replace(":4707", ""), "192.0.2.7:4707"),
            (format!("listen = \"localhost:4707\"\n{peer}"), "[::]:4707"),
        ] {
            let error = parse(&text).unwrap_err();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_peer_that_may_be_sent_to_needs_an_address() {
        let text = peer("osaka").replace("addresses = [\"192.0.2.7:4707\"]\n", "");
        assert!(parse(&text).unwrap_err().contains("no addresses"));
    }
}

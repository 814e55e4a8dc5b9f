//! Building a network, changing its links while it runs, reading its counters, taking it down.

use std::hash::{BuildHasher, Hasher};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use super::forward::{Forwarder, Out, Shared};
use super::hosts::{self, Host, HostSettings, MAX_HOSTS};
use super::path::{Emulation, Path};
use super::profile::{Direction, Profile, Rate};
use super::reset::Resets;

/// Why there is no network.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    #[error("a network has 2 to {MAX_HOSTS} hosts, not {0}")]
    HostCount(usize),
    #[error("two hosts are named {0:?}")]
    SameName(String),
    #[error("no host is named {0:?}")]
    NoSuchHost(String),
    #[error("a loss of {0} is not a probability")]
    Loss(f64),
    #[error("{0:?} is not the name of a kernel setting")]
    Sysctl(String),
    #[error(
        "cannot make a network namespace: {0}; run as root, or where unprivileged user namespaces are allowed"
    )]
    NoNamespace(io::Error),
    #[error(
        "cannot open /dev/net/tun: {0}; the kernel must have TUN and this user must be allowed to open it"
    )]
    NoTun(io::Error),
    #[error("cannot set {name} in a host: {error}; not in this kernel, or root must allow it first")]
    HostSetting { name: String, error: io::Error },
    #[error("cannot {what} of a host: {error}")]
    Host { what: &'static str, error: io::Error },
    #[error("cannot start the link's threads: {0}")]
    Threads(io::Error),
}

/// What crossed one direction, and what did not, in MTU-sized packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counters {
    /// Delivered to the other host: IP bytes and [`LINK_OVERHEAD_BYTES`](super::LINK_OVERHEAD_BYTES) for each packet.
    pub bytes: u64,
    /// Delivered to the other host.
    pub packets: u64,
    /// Came to a full queue.
    pub dropped_queue: u64,
    /// Lost at random.
    pub dropped_loss: u64,
    /// Entered or would have left while the link was out.
    pub dropped_outage: u64,
    /// Of a connection that was reset.
    pub dropped_reset: u64,
    /// Not taken by the other host's interface, because it was down or gone.
    pub refused: u64,
}

/// The way to a [`Network`].
#[derive(Debug)]
pub struct Link;

impl Link {
    /// Two hosts, `a` and `b`, with no limit between them, unless told otherwise.
    pub fn builder() -> Builder {
        Builder {
            hosts: vec!["a".to_owned(), "b".to_owned()],
            profile: Profile::UNLIMITED,
            directions: Vec::new(),
            settings: HostSettings::default(),
            emulation: Emulation::default(),
        }
    }
}

#[derive(Debug, Clone)]
pub struct Builder {
    hosts: Vec<String>,
    profile: Profile,
    directions: Vec<(String, String, Direction)>,
    settings: HostSettings,
    emulation: Emulation,
}

impl Builder {
    /// Names of the hosts. Each pair has a link of its own.
    pub fn hosts<N: Into<String>>(mut self, names: impl IntoIterator<Item = N>) -> Self {
        self.hosts = names.into_iter().map(Into::into).collect();
        self
    }

    /// Of every pair, both ways.
    pub fn profile(mut self, profile: Profile) -> Self {
        self.profile = profile;
        self
    }

    /// Of one direction of one pair, instead of the profile's.
    pub fn direction(mut self, from: &str, to: &str, direction: Direction) -> Self {
        self.directions.push((from.to_owned(), to.to_owned(), direction));
        self
    }

    pub fn host_settings(mut self, settings: HostSettings) -> Self {
        self.settings = settings;
        self
    }

    pub fn emulation(mut self, emulation: Emulation) -> Self {
        self.emulation = emulation;
        self
    }

    /// Makes the hosts and starts the link. On `Err` nothing is left behind.
    pub fn build(self) -> Result<Network, BuildError> {
        self.check()?;
        let clock = Instant::now();
        let made = hosts::make(&self.hosts, &self.settings)?;
        let seed =
            self.emulation.seed.unwrap_or_else(|| std::hash::RandomState::new().build_hasher().finish());
        let (hosts, tuns): (Vec<Host>, Vec<_>) =
            made.into_iter().map(|(host, tun)| (host, Arc::new(tun))).unzip();

        let wake = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK);
        let wake = Arc::new(wake.map_err(|error| BuildError::Threads(error.into()))?);
        let stop = Arc::new(AtomicBool::new(false));
        // Threads that are started are stopped by its `Drop` if a later one cannot be.
        let resets = Arc::new(Resets::default());
        let mut network = Network { ways: Vec::new(), threads: Vec::new(), stop, wake, hosts, resets };
        for (from, tun) in tuns.iter().enumerate() {
            let mut outs = Vec::new();
            for (to, other) in tuns.iter().enumerate().filter(|&(to, _)| to != from) {
                let direction = self.direction_between(from, to);
                let seed = seed ^ ((from as u64) << 32 | to as u64);
                let path = Path::new(&direction, self.emulation, seed);
                let shared = Arc::new(Shared::new(direction));
                let addresses = hosts::addresses(&network.hosts[to]);
                outs.push(Out::new(addresses, Arc::clone(other), path, Arc::clone(&shared)));
                network.ways.push(Way { from, to, shared });
            }
            let forwarder = Forwarder {
                tun: Arc::clone(tun),
                outs,
                resets: Arc::clone(&network.resets),
                emulation: self.emulation,
                stop: Arc::clone(&network.stop),
                wake: Arc::clone(&network.wake),
                clock,
            };
            let thread = thread::Builder::new().name(format!("link {}", network.hosts[from].name()));
            let thread = thread.spawn(move || forwarder.run()).map_err(BuildError::Threads)?;
            network.threads.push(thread);
        }
        Ok(network)
    }

    fn check(&self) -> Result<(), BuildError> {
        if !(2..=MAX_HOSTS).contains(&self.hosts.len()) {
            return Err(BuildError::HostCount(self.hosts.len()));
        }
        for (index, name) in self.hosts.iter().enumerate() {
            if self.hosts[..index].contains(name) {
                return Err(BuildError::SameName(name.clone()));
            }
        }
        let named = self.directions.iter().flat_map(|(from, to, _)| [from, to]);
        if let Some(unknown) = named.into_iter().find(|name| !self.hosts.contains(name)) {
            return Err(BuildError::NoSuchHost(unknown.clone()));
        }
        let losses =
            self.directions.iter().map(|(_, _, direction)| direction.loss).chain([self.profile.loss]);
        match losses.into_iter().find(|loss| !(0.0..=1.0).contains(loss)) {
            Some(loss) => Err(BuildError::Loss(loss)),
            None => Ok(()),
        }
    }

    fn direction_between(&self, from: usize, to: usize) -> Direction {
        let (from, to) = (&self.hosts[from], &self.hosts[to]);
        let own = self.directions.iter().rev().find(|(a, b, _)| a == from && b == to);
        own.map_or_else(|| self.profile.direction(), |(_, _, direction)| *direction)
    }
}

/// Hosts and the links between them. Dropping it switches the hosts off: what runs inside them is killed.
///
/// Its methods that take a host's name panic when there is no such host.
#[derive(Debug)]
pub struct Network {
    ways: Vec<Way>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    wake: Arc<EventFd>,
    hosts: Vec<Host>,
    resets: Arc<Resets>,
}

#[derive(Debug)]
struct Way {
    from: usize,
    to: usize,
    shared: Arc<Shared>,
}

impl Network {
    pub fn host(&self, name: &str) -> &Host {
        &self.hosts[self.index(name)]
    }

    pub fn hosts(&self) -> &[Host] {
        &self.hosts
    }

    /// Of each direction: from, to, what crossed it since the start.
    pub fn counters(&self) -> Vec<(&str, &str, Counters)> {
        let of = |way: &Way| (self.hosts[way.from].name(), self.hosts[way.to].name(), way.shared.counters());
        self.ways.iter().map(of).collect()
    }

    /// What crossed this direction since the start.
    pub fn counters_of(&self, from: &str, to: &str) -> Counters {
        self.way(from, to).shared.counters()
    }

    /// The most bytes that crossed this direction in any [`WINDOW`](super::WINDOW) since this was asked last, headers
    /// included.
    pub fn take_peak(&self, from: &str, to: &str) -> u64 {
        self.way(from, to).shared.take_peak()
    }

    /// The longest queue of this direction since this was asked last.
    pub fn take_longest_queue(&self, from: &str, to: &str) -> Duration {
        self.way(from, to).shared.take_longest_queue()
    }

    /// Bytes that crossed the network in any direction, headers included.
    pub fn wire_bytes(&self) -> u64 {
        self.ways.iter().map(|way| way.shared.counters().bytes).sum()
    }

    /// What this direction is asked to be now.
    pub fn direction(&self, from: &str, to: &str) -> Direction {
        self.way(from, to).shared.wanted().direction
    }

    /// Changes this direction: see [`Emulation`] and the module for what holds for packets under way.
    pub fn change(&self, from: &str, to: &str, change: impl FnOnce(&mut Direction)) {
        self.way(from, to).shared.change(|wanted| change(&mut wanted.direction));
    }

    /// Cuts all links, or mends them.
    pub fn set_outage(&self, out: bool) {
        for way in &self.ways {
            way.shared.change(|wanted| wanted.out = out);
        }
    }

    /// Cuts this direction only, or mends it.
    pub fn set_outage_of(&self, from: &str, to: &str, out: bool) {
        self.way(from, to).shared.change(|wanted| wanted.out = out);
    }

    /// Carries this TCP connection no more: both of its ends see it reset as soon as a packet of it is under way. One
    /// that is opened anew between the same ends is carried.
    pub fn reset_connection(&self, ends: [SocketAddr; 2]) {
        self.resets.add(ends);
    }

    /// All links, both ways.
    pub fn set_profile(&self, profile: &Profile) {
        self.change_all(|direction| *direction = profile.direction());
    }

    /// All links, both ways.
    pub fn set_rate(&self, rate: Option<Rate>) {
        self.change_all(|direction| direction.rate = rate);
    }

    /// All links; half of it each way.
    pub fn set_rtt(&self, rtt: Duration) {
        self.change_all(|direction| direction.delay = rtt / 2);
    }

    /// All links, both ways. Panics when it is not a probability.
    pub fn set_loss(&self, loss: f64) {
        assert!((0.0..=1.0).contains(&loss), "a loss of {loss} is not a probability");
        self.change_all(|direction| direction.loss = loss);
    }

    fn change_all(&self, change: impl Fn(&mut Direction)) {
        for way in &self.ways {
            way.shared.change(|wanted| change(&mut wanted.direction));
        }
    }

    fn index(&self, name: &str) -> usize {
        let index = self.hosts.iter().position(|host| host.name() == name);
        index.unwrap_or_else(|| panic!("no host is named {name:?}"))
    }

    fn way(&self, from: &str, to: &str) -> &Way {
        let (from, to) = (self.index(from), self.index(to));
        let way = self.ways.iter().find(|way| way.from == from && way.to == to);
        way.unwrap_or_else(|| panic!("a host has no link to itself"))
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // It stays readable, so every thread sees it.
        let _ = self.wake.write(1);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
        let namespaces: Vec<_> = self.hosts.iter().flat_map(hosts::namespace_name).collect();
        hosts::power_off(&namespaces);
    }
}

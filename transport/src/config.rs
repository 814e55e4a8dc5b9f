//! Every knob of the transport, in one place: unit, default and why.

use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::time::Duration;

use crate::key::{PublicKey, StaticKey};
use crate::names::PeerName;
use crate::suite::{self, Suite, SuiteSet};

/// What a [`Node`](crate::Node) is started with. Make one with [`NodeConfig::new`] and change what must differ.
#[derive(Clone)]
pub struct NodeConfig {
    /// Addresses on which peers reach this node. Empty: this node only sends.
    pub listen: Vec<SocketAddr>,
    /// This node's own key pair; peers know it by its public half.
    pub key: StaticKey,
    /// The peers that may open links to this node or be sent to. Nobody else can do either.
    pub peers: Vec<Peer>,
    /// TCP connections per link that carry chunks, to begin with. Default 4: what two of them do for throughput one can do where its
    /// buffers may be long enough, a loss halves only one of them, and the more there are the smaller are the pieces in which each sends
    /// and is served: with eight, two cores that also encode move a guest over 1 Gbit/s x 120 ms 4 % more slowly. Where four do not hold what the
    /// path does, more are made once that is known. Twice as many, up to `lanes_most`, where the kernel decides how long send buffers are.
    pub lanes: u16,
    /// As many as it may become where losses or buffers, not queues, keep lanes small. Default 32: with cubic, one loss in ten
    /// thousand packets and 120 ms a lane gets about 20 Mbit/s. `lanes` or less: never more than those. Each costs 0.5 MiB at
    /// the sender, and what it has in flight.
    pub lanes_most: u16,
    /// While a session is being opened, idle lanes of a path longer than 3 ms send padding until a chunk is queued, or
    /// the windows fill the path: less than two times bandwidth × round trip. Default on: a migration does not begin in TCP's slow
    /// start. Off where the bytes on the wire are paid for.
    pub warm_up: bool,
    /// Threads that seal, send, receive and open. 0 (default): half of the machine's CPUs, at least 1, at most 4. One
    /// does about 1 GB/s, more than most WANs.
    pub lane_threads: usize,
    /// How lanes reach the kernel.
    pub io: Io,
    /// How lanes are sealed.
    pub suites: Suites,
    pub timeouts: Timeouts,
    pub limits: Limits,
    pub sockets: Sockets,
}

impl NodeConfig {
    /// Defaults for everything but the key: nothing listens, nobody is a peer.
    pub fn new(key: StaticKey) -> Self {
        Self {
            listen: Vec::new(),
            key,
            peers: Vec::new(),
            lanes: 4,
            lanes_most: 32,
            warm_up: true,
            lane_threads: 0,
            io: Io::Auto,
            suites: Suites::Auto,
            timeouts: Timeouts::default(),
            limits: Limits::default(),
            sockets: Sockets::default(),
        }
    }
}

/// One peer: where it is, which key it must prove to hold, and what it may do.
#[derive(Clone, Debug)]
pub struct Peer {
    pub name: PeerName,
    /// `host:port`, tried in order. Host names are resolved when a link is opened.
    pub addresses: Vec<String>,
    pub public_key: PublicKey,
    /// The peer may send to us: it may open links to this node.
    pub may_send: bool,
    /// The peer may receive from us: this node may open links to it.
    pub may_receive: bool,
}

/// The way from lanes to sockets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Io {
    /// io_uring where the kernel allows it, plain sockets elsewhere (said once in the log).
    #[default]
    Auto,
    /// io_uring, or the node does not start.
    Uring,
    /// `epoll`, `send` and `recv`.
    Plain,
}

/// The cipher suites that a node offers its peers; a link takes one that both of its ends offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Suites {
    /// ChaCha20-Poly1305, and AES-256-GCM where the CPU has instructions for it and it is the faster one, as measured
    /// when the first node of the process starts. The default: it is never slower than either alone.
    #[default]
    Auto,
    /// This one, whatever it costs here. A link to a peer that does not offer it does not come about.
    Only(Suite),
}

impl Suites {
    pub(crate) fn offered(self) -> SuiteSet {
        match self {
            Suites::Auto => suite::best_here(),
            Suites::Only(suite) => [suite].into_iter().collect(),
        }
    }
}

/// Bounds on every wait.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// TCP connect to one address. Default 5 s: a lost SYN is repeated after 1 s and 3 s.
    pub connect: Duration,
    /// From accepting a connection to its peer being authenticated, and the same on the connecting side. Default 10 s:
    /// three round trips of the worst path and some losses. It is what a slow-loris gets.
    pub handshake: Duration,
    /// From `Link::open` to the peer's answer; the peer may be asking a VMM in between. Default 30 s.
    pub open: Duration,
    /// A control connection from which nothing came for so long is dead, and the link down. Default 4 s: forty missing
    /// pings; TCP left to itself notices an outage's end up to as much later as the outage was long. Must exceed
    /// `ping_idle`.
    pub dead_after: Duration,
    /// How long a link that is down keeps its sessions. Default 10 min: longer than a router's reboot or a change of
    /// path takes. 0: a link that is down is lost.
    pub link: Duration,
    /// Between two attempts to reach the peer again, at first. Default 50 ms. Each pause is 1.5 times the one before, and
    /// up to a quarter longer or shorter by chance.
    pub redial_first: Duration,
    /// The longest of these pauses. Default 500 ms: two packets per second, for a link that is back half a second sooner.
    pub redial_most: Duration,
    /// Time between pings while a session is open: the rate at which the round trip is measured. Default 100 ms.
    pub ping_active: Duration,
    /// Time between pings of an idle link. Default 2 s.
    pub ping_idle: Duration,
    /// Longest wait before an acknowledgement. Default 10 ms: small beside a WAN's round trip, 100 messages per second.
    pub ack: Duration,
    /// The rest of a frame that has begun to arrive must go on coming within this, or the lane is given up. Default 30 s:
    /// the sender's TCP has given up long before. (A frame whose length was changed on the way never ends.)
    pub frame: Duration,
    /// How long a sender whose lane broke waits for the peer to say why. Default 500 ms, more than a round trip.
    pub last_words: Duration,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            handshake: Duration::from_secs(10),
            open: Duration::from_secs(30),
            dead_after: Duration::from_secs(4),
            link: Duration::from_secs(600),
            redial_first: Duration::from_millis(50),
            redial_most: Duration::from_millis(500),
            ping_active: Duration::from_millis(100),
            ping_idle: Duration::from_secs(2),
            ack: Duration::from_millis(10),
            frame: Duration::from_secs(30),
            last_words: Duration::from_millis(500),
        }
    }
}

/// Bounds on memory and counts.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Longest payload of one chunk, bytes. Default 288 KiB: 256 KiB of pages plus records that did not compress.
    /// The smaller of the two peers' values holds on a link. Worst-case memory: twice this per lane.
    pub chunk_bytes: u32,
    /// Longest session message, hello or reply, bytes; at most [`MESSAGE_BYTES_CEILING`]. Default 32 KiB.
    pub message_bytes: usize,
    /// Session messages that wait to be written on one link, bytes. Default 4 MiB.
    pub outbox_bytes: usize,
    /// Sessions open at once on one link. Default 256.
    pub sessions: usize,
    /// Lanes a peer may open on one link. Default 64.
    pub lanes: u16,
    /// Gaps in the numbers of one session's applied chunks. Default 65536 (about 2 MiB): more means a peer that
    /// leaves out numbers on purpose.
    pub gaps: usize,
    /// Connections that have not authenticated, over all addresses; one more takes the place of the oldest. Default 256, with
    /// some KiB of memory each: of 10,000 that come in a second, each has 25 ms for its first bytes.
    pub pending: usize,
    /// The same from one IPv4 address or IPv6 /64. Default 64: one link being opened has 9.
    pub pending_per_address: usize,
    /// When a session has less than this unsent, `TxEvents::room` is called as lanes take chunks. Default 1 MiB.
    pub unsent_low_bytes: u64,
    /// What a peer may send of sessions that are not answered yet, of all of a link together; a session that is accepted has at
    /// least as much credit. Default 0: it waits for the answer.
    pub early_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            chunk_bytes: 288 * 1024,
            message_bytes: 32 * 1024,
            outbox_bytes: 4 * 1024 * 1024,
            sessions: 256,
            lanes: 64,
            gaps: 65_536,
            pending: 256,
            pending_per_address: 64,
            unsent_low_bytes: 1024 * 1024,
            early_bytes: 0,
        }
    }
}

/// The most that [`Limits::message_bytes`] may be: a control message is one Noise record (65535 bytes, tag included).
pub const MESSAGE_BYTES_CEILING: usize = 60 * 1024;

/// The most that [`Limits::chunk_bytes`] may be, whatever is configured.
pub const CHUNK_BYTES_CEILING: u32 = 4 * 1024 * 1024;

/// Socket options of the lanes.
#[derive(Clone, Debug)]
pub struct Sockets {
    /// Send buffer per lane, bytes, from and to: as long as bandwidth x round trip wants it, by what is found of the path. It is set past
    /// `wmem_max` where the process may (`SO_SNDBUFFORCE`); where it may not, and with `None`, the kernel's autotuning decides.
    /// Default 1 to 8 MiB: 32 lanes of 8 hold 10 Gbit/s x 200 ms. The kernel doubles it, and uses that much only while a path stalls.
    pub send_buffer_bytes: Option<RangeInclusive<u32>>,
    /// Receive buffer per lane, bytes (`SO_RCVBUFFORCE`). Default 8 MiB, what a lane's window can be where `tcp_rmem` is as Linux has
    /// it: the window opens at once instead of growing by autotuning, which costs seconds at 200 ms. It fills only when packets
    /// are missing, for lanes are always read, and with no more than the peer's send buffers hold.
    pub receive_buffer_bytes: Option<u32>,
    /// `TCP_NOTSENT_LOWAT`, bytes. Default 128 KiB: a lane takes its next chunk only when its socket has less than
    /// this that was never sent, so that pages can be superseded until late.
    pub notsent_low_bytes: u32,
    /// Unacknowledged for so long, TCP gives the connection up. Default 5 s: what it carried goes by another then.
    pub user_timeout: Duration,
    pub congestion: Congestion,
    /// Differentiated services code point of all packets of a link, 0 to 63. Default none: the host's (0).
    pub dscp: Option<u8>,
}

impl Default for Sockets {
    fn default() -> Self {
        Self {
            send_buffer_bytes: Some(1 << 20..=8 << 20),
            receive_buffer_bytes: Some(8 << 20),
            notsent_low_bytes: 128 * 1024,
            user_timeout: Duration::from_secs(5),
            congestion: Congestion::Auto,
            dscp: None,
        }
    }
}

/// Congestion control of the lanes.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub enum Congestion {
    /// `bbr` where the kernel has it and lets us, with a ceiling that keeps it off the path's queue; else what the host uses for
    /// everybody. The default.
    #[default]
    Auto,
    /// This one, or the link does not open.
    Named(String),
}

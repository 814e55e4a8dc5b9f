//! The link does what was asked of it, measured from inside its hosts over IPv4 and IPv6.
//!
//! Each test that measures time has the machine's network to itself among the tests of this file, and may measure
//! again when somebody else's work on the machine got in between; what it must show stays the same.

#![allow(clippy::unwrap_used, reason = "a test's helper may fail the test")]

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, Shutdown, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use hikyaku_lab::link::measure::{Family, Measure};
use hikyaku_lab::link::{
    BuildError, Direction, Emulation, HostSettings, Link, Network, Profile, Queue, Rate,
};
use hikyaku_lab::steady::{asserted, within};
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

const LAB: &str = env!("CARGO_BIN_EXE_lab");
const FAMILIES: [Family; 2] = [Family::Ip4, Family::Ip6];
const ATTEMPTS: usize = 4;
const RTT_TOLERANCE: Duration = Duration::from_millis(1);

fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn network(profile: Profile) -> Network {
    Link::builder().profile(profile).build().unwrap()
}

fn measure(network: &Network, family: Family) -> Measure<'_> {
    Measure::new(LAB, network, "a", "b", family)
}

fn ms(ms: u64) -> Duration {
    Duration::from_millis(ms)
}

/// Measures until it is right, at most `ATTEMPTS` times.
#[track_caller]
fn eventually<T: std::fmt::Debug>(what: &str, measure: impl Fn() -> T, right: impl Fn(&T) -> bool) {
    within(ATTEMPTS, what, || {
        let value = measure();
        if right(&value) { Ok(()) } else { Err(format!("{value:?}")) }
    });
}

fn median_round_trip(network: &Network, family: Family) -> Duration {
    let all = measure(network, family).round_trips(40).unwrap();
    assert_eq!(all.len(), 40, "every datagram comes back");
    all[all.len() / 2]
}

#[test]
fn the_round_trip_is_what_was_asked_within_a_millisecond() {
    let _alone = alone();
    for family in FAMILIES {
        for rtt_us in [200, 1_000, 20_000, 40_000, 120_000, 200_000] {
            let rtt = Duration::from_micros(rtt_us);
            let network = network(Profile { rtt, ..Profile::UNLIMITED });
            eventually(
                &format!("{family:?} {rtt:?}"),
                || median_round_trip(&network, family),
                |median| *median >= rtt && *median - rtt < RTT_TOLERANCE,
            );
        }
    }
}

/// Eight streams keep the queue filled; after three seconds, what slow start sent too much has been repaired.
#[test]
fn tcp_payload_moves_at_the_rate_that_was_asked() {
    let _alone = alone();
    for family in FAMILIES {
        for asked in [100_000_000, 1_000_000_000] {
            let rate = Some(Rate::payload(asked));
            let network = network(Profile { rate, rtt: ms(20), ..Profile::UNLIMITED });
            eventually(
                &format!("{family:?} {asked} bit/s"),
                || measure(&network, family).tcp_rate(8, ms(3000), ms(2000)).unwrap() / asked as f64,
                |ratio| (0.97..=1.03).contains(ratio),
            );
        }
    }
}

#[test]
fn without_a_limit_tcp_gets_three_gigabits_per_second() {
    let _alone = alone();
    for family in FAMILIES {
        let network = network(Profile::UNLIMITED);
        eventually(
            &format!("{family:?}"),
            || measure(&network, family).tcp_rate(2, ms(500), ms(1500)).unwrap(),
            |bit_per_s| *bit_per_s >= 3e9,
        );
    }
}

#[test]
fn packets_are_lost_as_often_as_asked_also_within_super_packets() {
    let _alone = alone();
    for (family, seed) in FAMILIES.into_iter().zip([1, 2]) {
        let emulation = Emulation { seed: Some(seed), ..Emulation::default() };
        let profile = Profile { loss: 0.01, ..Profile::UNLIMITED };
        let network = Link::builder().profile(profile).emulation(emulation).build().unwrap();
        let seen = measure(&network, family).datagrams(160_000, 60_000).unwrap();
        assert_eq!(seen.wrong, 0, "what is left of a super-packet is what was sent, in order");
        assert!((0.009..=0.011).contains(&seen.loss()), "{family:?}: {seen:?}");
        let counted = network.counters_of("a", "b");
        let lost = seen.sent - seen.arrived;
        assert_eq!(counted.dropped_loss, lost, "the counter says what the receiver saw");
        assert_eq!((counted.dropped_queue, counted.refused), (0, 0));
    }
}

#[test]
fn tcp_arrives_unharmed_over_a_link_that_loses_packets_and_cuts_super_packets() {
    let _alone = alone();
    for family in FAMILIES {
        // A rate, so that super-packets are cut for it too.
        let rate = Some(Rate::payload(1_000_000_000));
        let network = network(Profile { rate, rtt: ms(1), loss: 0.01, ..Profile::UNLIMITED });
        let (streams, bytes) = (4, 40 << 20);
        let seen = measure(&network, family).tcp_transfer(streams, bytes).unwrap();
        assert_eq!((seen.bytes, seen.wrong_words), (streams as u64 * bytes, 0));
        let counted = network.counters_of("a", "b");
        let loss = counted.dropped_loss as f64 / (counted.packets + counted.dropped_loss) as f64;
        assert!((0.009..=0.011).contains(&loss), "{family:?}: {counted:?}");
        // Every lost segment has to be sent again, and some are though they were not lost.
        assert!(seen.retransmitted > 0.9 * loss && seen.retransmitted < 2.0 * loss, "{seen:?} {loss}");
    }
}

#[test]
fn the_queue_fills_to_its_limit_and_no_further() {
    let _alone = alone();
    asserted(2, "the queue", fill_a_queue);
}

fn fill_a_queue() {
    let rate = Some(Rate::payload(100_000_000));
    let network = network(Profile { rate, rtt: ms(20), queue: Queue::Time(ms(100)), loss: 0.0 });
    thread::scope(|scope| {
        let load = scope.spawn(|| measure(&network, Family::Ip4).tcp_rate(8, ms(1000), ms(2000)).unwrap());
        thread::sleep(ms(1500));
        let seen = measure(&network, Family::Ip4).round_trips(60).unwrap();
        load.join().unwrap();
        assert!(!seen.is_empty());
        let (median, longest) = (seen[seen.len() / 2], seen[seen.len() - 1]);
        assert!(median > ms(60), "eight streams keep the queue filled: {median:?}");
        assert!(longest < ms(120 + 15), "no packet waits longer than the queue is: {longest:?}");
    });
    assert!(network.counters_of("a", "b").dropped_queue > 0);
}

#[test]
fn counters_count_every_packet_with_its_headers() {
    let network = network(Profile::UNLIMITED);
    let before = network.counters_of("a", "b");
    send_datagrams(&network, "a", "b", 10, 100);
    let sent = network.counters_of("a", "b");
    // UDP 8, IPv4 20, link 26.
    assert_eq!(sent.packets - before.packets, 10);
    assert_eq!(sent.bytes - before.bytes, 10 * (100 + 8 + 20 + 26));
    assert_eq!(network.wire_bytes(), network.counters().iter().map(|way| way.2.bytes).sum::<u64>());
    // Who has received a packet finds it counted.
    let receiver = network.host("b").within(|| UdpSocket::bind(("0.0.0.0", 9)).unwrap()).unwrap();
    let sender = network.host("a").within(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap()).unwrap();
    for n in 1..=1000 {
        sender.send_to(&[7; 100], (network.host("b").ip4(), 9)).unwrap();
        receiver.recv(&mut [0; 200]).unwrap();
        assert_eq!(network.counters_of("a", "b").packets - sent.packets, n);
    }
}

/// Sends so many datagrams, waits until they came or 300 ms passed without one, and says how many came.
fn send_datagrams(network: &Network, from: &str, to: &str, count: usize, bytes: usize) -> usize {
    let target = (network.host(to).ip4(), 9);
    let receiver = network.host(to).within(|| UdpSocket::bind(("0.0.0.0", 9)).unwrap()).unwrap();
    receiver.set_read_timeout(Some(ms(300))).unwrap();
    let sender = network.host(from).within(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap()).unwrap();
    for _ in 0..count {
        sender.send_to(&vec![7; bytes], target).unwrap();
    }
    let mut datagram = [0; 2048];
    (0..count).take_while(|_| receiver.recv(&mut datagram).is_ok()).count()
}

#[test]
fn a_link_that_is_out_carries_nothing_and_loses_what_is_on_it() {
    let network = network(Profile { rtt: ms(100), ..Profile::UNLIMITED });
    assert_eq!(send_datagrams(&network, "a", "b", 5, 100), 5);
    network.set_outage(true);
    assert_eq!(send_datagrams(&network, "a", "b", 5, 100), 0);
    network.set_outage(false);
    assert_eq!(send_datagrams(&network, "a", "b", 5, 100), 5);

    network.set_outage_of("a", "b", true);
    assert_eq!(send_datagrams(&network, "a", "b", 5, 100), 0);
    assert_eq!(send_datagrams(&network, "b", "a", 5, 100), 5, "the other direction is not out");
    network.set_outage_of("a", "b", false);

    // Under way when the link is cut.
    let target = (network.host("b").ip4(), 9);
    let sender = network.host("a").within(|| UdpSocket::bind(("0.0.0.0", 0)).unwrap()).unwrap();
    let before = network.counters_of("a", "b");
    sender.send_to(&[0; 100], target).unwrap();
    thread::sleep(ms(10));
    network.set_outage(true);
    wait_until("the packet is lost", || {
        network.counters_of("a", "b").dropped_outage == before.dropped_outage + 1
    });
    assert_eq!(network.counters_of("a", "b").packets, before.packets);
}

/// Whether something is missing to the receiver at that moment or not: over a link that loses packets it often is.
#[test]
fn a_connection_is_reset_at_both_ends_while_another_goes_on() {
    let mut under_way = 0;
    for (family, loss) in [(Family::Ip4, 0.0), (Family::Ip6, 0.0), (Family::Ip4, 0.01)] {
        let rate = Some(Rate::payload(500_000_000));
        let network = network(Profile { rate, rtt: ms(10), loss, ..Profile::UNLIMITED });
        let (a, b) = (network.host("a"), network.host("b"));
        let (ip, any): (IpAddr, IpAddr) = match family {
            Family::Ip4 => (b.ip4().into(), Ipv4Addr::UNSPECIFIED.into()),
            Family::Ip6 => (b.ip6().into(), Ipv6Addr::UNSPECIFIED.into()),
        };
        let listener = b.within(|| TcpListener::bind((any, 7)).unwrap()).unwrap();
        let mut connections = Vec::new();
        for _ in 0..2 {
            let connecting = a.within(|| TcpStream::connect((ip, 7)).unwrap()).unwrap();
            connections.push((connecting, listener.accept().unwrap().0));
        }
        let (reset, other) = (connections.remove(0), connections.remove(0));
        let ends = [reset.0.local_addr().unwrap(), reset.0.peer_addr().unwrap()];

        thread::scope(|scope| {
            for stream in [&reset.0, &other.0] {
                let mut stream = stream.try_clone().unwrap();
                scope.spawn(move || while stream.write(&[7; 1 << 16]).is_ok_and(|bytes| bytes > 0) {});
            }
            // Also if the test fails here: the scope waits for who writes.
            let _ends = [Ends(&reset.0), Ends(&other.0)];
            let other_read = scope.spawn(|| read_for(&other.1, ms(1500)));
            assert!(read_for(&reset.1, ms(500)).unwrap() > 0);
            network.reset_connection(ends);
            let error = ended(&reset.1);
            assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{family:?} {loss}: the receiver");
            wait_until("the sender has it too", || {
                reset.0.take_error().unwrap().is_some() || {
                    // Whoever wrote has taken the error: then there is no peer any more.
                    reset.0.peer_addr().is_err()
                }
            });
            assert!(other_read.join().unwrap().unwrap() > 1 << 20, "the other goes on");
        });
        under_way += network.counters_of("a", "b").dropped_reset;
    }
    assert!(under_way > 0, "what was under way is gone");
}

/// Why the connection ends. Who only reads is told by what is under way, if anything is; who uses it is told in any case.
fn ended(mut stream: &TcpStream) -> std::io::Error {
    stream.set_read_timeout(Some(ms(200))).unwrap();
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(10) {
        let read = match stream.read(&mut [0; 1 << 16]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => stream.write(&[7]),
            read => read,
        };
        if let Err(error) = read {
            return error;
        }
    }
    panic!("it does not end");
}

/// A connection that ends with this.
struct Ends<'a>(&'a TcpStream);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

/// How many bytes came in this time.
fn read_for(mut stream: &TcpStream, time: Duration) -> std::io::Result<usize> {
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let (start, mut total) = (Instant::now(), 0);
    while start.elapsed() < time {
        total += stream.read(&mut [0; 1 << 16])?;
    }
    Ok(total)
}

#[test]
fn a_link_changes_while_it_runs() {
    let _alone = alone();
    let network = network(Profile { rtt: ms(5), ..Profile::UNLIMITED });
    let near = |rtt| move |median: &Duration| *median >= rtt && *median - rtt < RTT_TOLERANCE;
    eventually("5 ms", || median_round_trip(&network, Family::Ip4), near(ms(5)));
    network.set_rtt(ms(50));
    eventually("50 ms", || median_round_trip(&network, Family::Ip4), near(ms(50)));
    network.change("a", "b", |direction| direction.delay = ms(5));
    eventually("30 ms", || median_round_trip(&network, Family::Ip4), near(ms(30)));

    network.set_rate(Some(Rate::payload(50_000_000)));
    eventually(
        "50 Mbit/s",
        || measure(&network, Family::Ip4).tcp_rate(4, ms(1000), ms(1000)).unwrap(),
        |bit_per_s| (48.5e6..51.5e6).contains(bit_per_s),
    );
    network.set_rate(None);
    network.set_loss(1.0);
    assert_eq!(send_datagrams(&network, "a", "b", 5, 100), 0);
    network.set_profile(&Profile::UNLIMITED);
    assert_eq!(send_datagrams(&network, "a", "b", 5, 100), 5);
}

#[test]
fn every_pair_of_hosts_has_its_own_link_and_each_direction_its_own_settings() {
    let lossy = Direction { loss: 1.0, ..Profile::UNLIMITED.direction() };
    let network = Link::builder()
        .hosts(["tokyo", "osaka", "fukuoka"])
        .direction("tokyo", "osaka", lossy)
        .build()
        .unwrap();
    assert_eq!(send_datagrams(&network, "tokyo", "osaka", 3, 100), 0);
    assert_eq!(send_datagrams(&network, "osaka", "tokyo", 3, 100), 3);
    assert_eq!(send_datagrams(&network, "tokyo", "fukuoka", 3, 100), 3);
    assert_eq!(send_datagrams(&network, "osaka", "fukuoka", 3, 100), 3);
    assert_eq!(network.counters_of("tokyo", "osaka").dropped_loss, 3);
    assert_eq!(network.counters_of("tokyo", "fukuoka").packets, 3);
    assert_eq!(network.counters().len(), 6);
}

#[test]
fn a_host_has_the_settings_of_an_untuned_one_unless_told_otherwise() {
    let read = |network: &Network, name: &str| {
        let path = format!("/proc/sys/net/ipv4/{name}");
        let output = network.host("b").command("cat").arg(path).output().unwrap();
        String::from_utf8(output.stdout).unwrap().split_whitespace().collect::<Vec<_>>().join(" ")
    };
    let plain = network(Profile::UNLIMITED);
    assert_eq!(read(&plain, "tcp_congestion_control"), "cubic");
    assert_eq!(read(&plain, "tcp_wmem"), "4096 16384 4194304");
    assert_eq!(read(&plain, "tcp_rmem"), "4096 131072 6291456");
    let settings = HostSettings {
        congestion_control: "reno".to_owned(),
        tcp_rmem_bytes: [4096, 131_072, 64 << 20],
        sysctls: vec![("net.ipv4.tcp_slow_start_after_idle".to_owned(), "0".to_owned())],
        ..HostSettings::default()
    };
    let tuned = Link::builder().host_settings(settings).build().unwrap();
    assert_eq!(read(&tuned, "tcp_congestion_control"), "reno");
    assert_eq!(read(&tuned, "tcp_rmem"), "4096 131072 67108864");
    assert_eq!(read(&tuned, "tcp_slow_start_after_idle"), "0");
}

#[test]
fn what_cannot_be_built_is_refused_with_its_reason() {
    let error = |builder: hikyaku_lab::link::Builder| builder.build().unwrap_err();
    let builder = Link::builder;
    assert!(matches!(error(builder().hosts(["a"])), BuildError::HostCount(1)));
    assert!(matches!(error(builder().hosts(["a", "b", "a"])), BuildError::SameName(name) if name == "a"));
    let direction = Profile::UNLIMITED.direction();
    assert!(matches!(error(builder().direction("a", "c", direction)), BuildError::NoSuchHost(_)));
    let loss = Profile { loss: f64::NAN, ..Profile::UNLIMITED };
    assert!(matches!(error(builder().profile(loss)), BuildError::Loss(_)));
    let settings = HostSettings { congestion_control: "no-such".to_owned(), ..HostSettings::default() };
    let message = error(builder().host_settings(settings)).to_string();
    assert!(message.contains("net.ipv4.tcp_congestion_control"), "{message}");
}

#[test]
fn a_killed_link_leaves_no_process_and_no_namespace() {
    let mut lab = Command::new(LAB)
        .args(["link", "unlimited", "--on", "a", "sleep 600 & echo $!; wait"])
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(lab.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let inside: i32 = line.trim().parse().unwrap();
    let namespace = net_namespace_of(&format!("/proc/{inside}/ns/net")).unwrap();
    let ours = net_namespace_of("/proc/self/ns/net").unwrap();
    assert_ne!(namespace, ours);
    assert!(somebody_is_in(namespace));

    kill(Pid::from_raw(lab.id() as i32), Signal::SIGKILL).unwrap();
    lab.wait().unwrap();
    wait_until("the command inside has ended", || !somebody_is_in(namespace));
    let devices = fs::read_to_string("/proc/net/dev").unwrap();
    assert!(!devices.contains("wan0"), "{devices}");
}

fn net_namespace_of(path: &str) -> Option<u64> {
    fs::metadata(path).ok().map(|found| found.ino())
}

/// Whether a process runs in the namespace or holds it open.
fn somebody_is_in(namespace: u64) -> bool {
    let processes = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().bytes().all(|byte| byte.is_ascii_digit()));
    processes.into_iter().any(|process| {
        let path = process.path();
        let runs = net_namespace_of(&path.join("ns/net").to_string_lossy()) == Some(namespace);
        let link = format!("net:[{namespace}]");
        let descriptors = fs::read_dir(path.join("fd")).into_iter().flatten().flatten();
        runs || descriptors
            .into_iter()
            .any(|fd| fs::read_link(fd.path()).is_ok_and(|target| target.to_string_lossy() == link))
    })
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(5), "not within 5 s: {what}");
        thread::sleep(ms(10));
    }
}

#[test]
fn commands_run_inside_the_hosts_with_the_addresses_in_their_environment() {
    let output =
        lab(&["link", "--rtt", "10ms", "--on", "a", "sleep 60", "--on", "b", "echo $A $B $A6 $B6; exit 7"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "198.18.0.1 198.18.0.2 2001:2::1 2001:2::2");
    assert_eq!(output.status.code(), Some(7), "the last command's code");
    assert!(String::from_utf8_lossy(&output.stderr).contains("a -> b"), "the counters are printed");
}

#[test]
fn nonsense_on_the_command_line_is_refused() {
    for arguments in [&["link", "moon"][..], &["link", "--rate", "fast"], &["link", "--on", "c", "true"]] {
        let output = lab(arguments);
        assert!(!output.status.success(), "{arguments:?}");
        assert!(!output.stderr.is_empty(), "{arguments:?}");
    }
}

fn lab(arguments: &[&str]) -> Output {
    Command::new(LAB).args(arguments).output().unwrap()
}

#[test]
fn it_works_without_root_where_the_kernel_allows_it() {
    let lab = LabForAll::new();
    // Nobody, and a TUN device as distributions have it.
    let output = lab.as_nobody("link --rtt 20ms --on a 'sleep 60' --on b 'id -u; exec PROBE'");
    assert!(output.status.success(), "{output:?}");
    let said = String::from_utf8_lossy(&output.stdout);
    let (user, round_trips) = said.trim().split_once('\n').unwrap();
    assert_eq!(user, "0", "root of its own namespace");
    assert_eq!(round_trips, r#"{"ns":[]}"#, "nothing echoes there");
    assert!(String::from_utf8_lossy(&output.stderr).contains("b -> a"), "{output:?}");
}

#[test]
fn where_it_cannot_work_it_says_so_in_one_line() {
    let in_own_namespaces = |what: &str| {
        let script = format!("{what} \"$0\" link --on a true");
        let flags = ["--user", "--map-root-user", "--mount", "sh", "-c"];
        Command::new("unshare").args(flags).args([&script, LAB]).output().unwrap()
    };
    let no_namespaces = in_own_namespaces(
        "echo 0 >/proc/sys/user/max_user_namespaces && exec setpriv --bounding-set -all --inh-caps -all",
    );
    assert_one_line(&no_namespaces, "cannot make a network namespace");
    let no_tun = in_own_namespaces("mount -t tmpfs tmpfs /dev/net && exec");
    assert_one_line(&no_tun, "cannot open /dev/net/tun");
}

fn assert_one_line(output: &Output, what: &str) {
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains(what) && said.trim().lines().count() == 1, "{said}");
}

/// The program where a user without rights can run it.
struct LabForAll {
    _directory: tempfile::TempDir,
    program: PathBuf,
}

impl LabForAll {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.path().join("lab");
        fs::copy(LAB, &program).unwrap();
        Self { _directory: directory, program }
    }

    /// Runs the program as nobody; a test run by somebody else than root runs it as that user. In the arguments,
    /// `PROBE` stands for a measurement from b to a.
    fn as_nobody(&self, arguments: &str) -> Output {
        let program = self.program.display();
        let probe = format!("{program} link probe udp-ping --to $A:5301 --count 1 --interval-ms 1");
        let run = format!("{program} {}", arguments.replace("PROBE", &probe));
        if !geteuid().is_root() {
            return Command::new("sh").args(["-c", &run]).output().unwrap();
        }
        // A mount namespace of its own, so that the machine's device keeps its mode.
        let setup = "mount -t tmpfs -o dev tmpfs /dev/net && mknod -m 0666 /dev/net/tun c 10 200 && cd / && \
             exec setpriv --reuid 65534 --regid 65534 --clear-groups sh -c \"$RUN\"";
        assert!(Path::new("/dev/net/tun").exists(), "the kernel has no TUN");
        Command::new("unshare").args(["--mount", "sh", "-c", setup]).env("RUN", run).output().unwrap()
    }
}

//! A host with a daemon on it, and the pair of them on either side of an emulated link.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use hikyaku_lab::link::{self, Host, Link, Network, Profile};
use tempfile::TempDir;

use crate::binaries;
use crate::command::{self, Output, Running};
use crate::keeper::Keeper;
use crate::proxy::Fault;

/// The port daemons listen on.
pub const PORT: u16 = 4707;
/// The port a proxy in front of a daemon listens on.
pub const PROXY_PORT: u16 = 4708;

const START_LIMIT: Duration = Duration::from_secs(15);
const STOP_LIMIT: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
/// Lines of a daemon's log that are shown when a test fails.
const LOG_TAIL_LINES: usize = 60;

/// Two hosts, `a` and `b`, on either side of the link of this name (see BENCH's table of links).
///
/// Panics when the machine cannot make one: there is no test without a link.
pub fn network(link: &str) -> Network {
    let profile = Profile::named(link).unwrap_or_else(|| panic!("no link is called {link}"));
    Link::builder().hosts(["a", "b"]).profile(profile).build().unwrap_or_else(|e| panic!("{e}"))
}

/// What a daemon's configuration file will say. A test changes what it is about.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The site's name, which is also the host's.
    pub name: String,
    pub listen: String,
    pub peers: Vec<PeerSettings>,
    /// What moves under way may take when the daemon is told to end; None: its own default.
    pub drain: Option<&'static str>,
    /// The daemon is started in this mount namespace.
    pub enter: Option<PathBuf>,
    /// With this library the daemon's clock can be made to jump ([`Site::jump_clock`]).
    pub fake_clock: Option<PathBuf>,
    /// A service manager keeps sockets for it.
    pub kept: bool,
    /// More TOML: whole tables.
    pub more: String,
}

#[derive(Debug, Clone)]
pub struct PeerSettings {
    pub name: String,
    pub addresses: Vec<String>,
    pub public_key: String,
    pub allow: Vec<&'static str>,
    /// More lines of its table.
    pub more: String,
}

impl Settings {
    fn to_toml(&self, directory: &Path) -> String {
        let file = |name| directory.join(name).display().to_string();
        let mut text = format!(
            "listen = {:?}\napi = {:?}\nkey = {:?}\nstate = {:?}\n",
            self.listen,
            file(API),
            file(KEY),
            file(STATE)
        );
        if let Some(drain) = self.drain {
            let _ = writeln!(text, "drain = {drain:?}");
        }
        for peer in &self.peers {
            let _ = write!(
                text,
                "\n[[peer]]\nname = {:?}\naddresses = {:?}\npublic_key = {:?}\nallow = {:?}\n{}\n",
                peer.name, peer.addresses, peer.public_key, peer.allow, peer.more
            );
        }
        text + "\n" + &self.more
    }
}

const API: &str = "api.sock";
const KEY: &str = "key";
const STATE: &str = "state";
const CONFIG: &str = "config.toml";
const LOG: &str = "log";
const NOTIFY: &str = "notify";
const FAKE_CLOCK: &str = "fake-clock";
const CLOCK: &str = "clock";

#[derive(Debug, Clone, Copy)]
pub struct Held {
    pub descriptors: usize,
    pub threads: usize,
    pub records: usize,
}

impl Held {
    /// In anything.
    pub fn exceeds(&self, other: &Held) -> bool {
        self.descriptors > other.descriptors || self.threads > other.threads || self.records > other.records
    }
}

/// A daemon inside a host, with directories of its own. Killed on drop; its log is shown if the test is failing.
#[derive(Debug)]
pub struct Site {
    name: String,
    directory: TempDir,
    enter: Option<PathBuf>,
    keeper: Option<Keeper>,
    daemon: Child,
}

impl Site {
    /// Starts `hikyakud` inside `host` and waits until its API answers.
    fn start(host: &Host, settings: &Settings, directory: TempDir) -> Site {
        let path = directory.path();
        fs::write(path.join(CONFIG), settings.to_toml(path)).expect("the configuration can be written");
        if let Some(library) = &settings.fake_clock {
            std::os::unix::fs::symlink(library, path.join(FAKE_CLOCK)).expect("a link can be made");
        }
        let enter = settings.enter.clone();
        let keeper = settings.kept.then(|| Keeper::start(&path.join(NOTIFY)));
        let daemon = spawn(host, path, enter.as_deref(), keeper.as_ref(), "");
        let mut site = Site { name: settings.name.clone(), directory, enter, keeper, daemon };
        site.wait_for_api();
        site
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn api(&self) -> PathBuf {
        self.directory.path().join(API)
    }

    /// A directory that lives as long as the site: for QMP sockets and the like.
    pub fn config(&self) -> PathBuf {
        self.directory.path().join(CONFIG)
    }

    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// `hikyaku ARGS…` to its end.
    #[track_caller]
    pub fn hikyaku<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>, limit: Duration) -> Output {
        self.hikyaku_beside(args).wait(limit)
    }

    /// `hikyaku ARGS…` beside the test.
    pub fn hikyaku_beside<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Running {
        command::hikyaku(&self.api(), args)
    }

    /// What the daemon has said so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.directory.path().join(LOG)).unwrap_or_default()
    }

    /// The largest resident size the daemon has had, in bytes.
    pub fn rss_peak_bytes(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon.id())).unwrap_or_default();
        let kib = status
            .lines()
            .find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse().ok());
        let kib: u64 =
            kib.unwrap_or_else(|| panic!("the daemon of {} has no resident size: is it dead?", self.name));
        kib << 10
    }

    /// The daemon's time of day is another from now on: `+30d` or `-1h` away from the true one. Its timers' clock is what it was.
    pub fn jump_clock(&self, by: &str) {
        fs::write(self.directory.path().join(CLOCK), by).expect("a file can be written");
    }

    pub fn pid(&self) -> u32 {
        self.daemon.id()
    }

    pub fn is_running(&mut self) -> bool {
        matches!(self.daemon.try_wait(), Ok(None))
    }

    /// To the daemon, and to nothing else.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        let pid = nix::unistd::Pid::from_raw(self.daemon.id() as i32);
        nix::sys::signal::kill(pid, signal).expect("the daemon is there");
    }

    /// Ends the daemon as a crash would.
    pub fn kill(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }

    /// Starts the daemon again, after [`kill`](Site::kill), with the same configuration and state.
    pub fn restart(&mut self, host: &Host) {
        self.restart_failing(host, "");
    }

    /// The same, to fail where `points` says: `POINT:WHAT,…` as in the daemon's `fail.rs`.
    pub fn restart_failing(&mut self, host: &Host, points: &str) {
        self.kill();
        let (directory, enter) = (self.directory.path(), self.enter.as_deref());
        self.daemon = spawn(host, directory, enter, self.keeper.as_ref(), points);
        self.wait_for_api();
    }

    /// It was stopped (SIGSTOP), and stands.
    pub fn stands(&self) -> bool {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.daemon.id())).unwrap_or_default();
        // The name may hold anything but is in brackets.
        stat.rsplit(") ").next().is_some_and(|rest| rest.starts_with('T'))
    }

    /// What the daemon holds just now.
    pub fn held(&self) -> Held {
        let count = |what: &str| {
            fs::read_dir(format!("/proc/{}/{what}", self.daemon.id())).map_or(0, Iterator::count)
        };
        Held { descriptors: count("fd"), threads: count("task"), records: self.records() }
    }

    /// Records that are kept, of migrations in hand or over.
    pub fn records(&self) -> usize {
        fs::read_dir(self.directory.path().join(STATE).join("migrations")).map_or(0, Iterator::count)
    }

    /// Tells the daemon to end, as a service manager does; returns when it has heard it, and lets its moves come to an end.
    pub fn tell_to_end(&self) {
        self.signal(nix::sys::signal::Signal::SIGTERM);
        let deadline = Instant::now() + STOP_LIMIT;
        while !self.log().contains("told once more") {
            assert!(
                Instant::now() < deadline,
                "the daemon of {} has no move under way:\n{}",
                self.name,
                self.log()
            );
            std::thread::sleep(POLL);
        }
    }

    /// What a service manager keeps for the daemon.
    pub fn kept(&self) -> Vec<String> {
        self.keeper.as_ref().map(Keeper::names).unwrap_or_default()
    }

    /// Records, by the names of their files.
    pub fn read_records(&self) -> Vec<(std::ffi::OsString, Vec<u8>)> {
        let files = fs::read_dir(self.directory.path().join(STATE).join("migrations"))
            .into_iter()
            .flatten()
            .flatten();
        files.map(|file| (file.file_name(), fs::read(file.path()).expect("a record"))).collect()
    }

    pub fn write_records(&self, records: &[(std::ffi::OsString, Vec<u8>)]) {
        let directory = self.directory.path().join(STATE).join("migrations");
        for (name, bytes) in records {
            fs::write(directory.join(name), bytes).expect("a record can be written");
        }
    }

    /// Ends the daemon as a service manager would; its exit code, or `None` if it had to be killed.
    pub fn stop(&mut self) -> Option<i32> {
        let pid = nix::unistd::Pid::from_raw(self.daemon.id() as i32);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let deadline = Instant::now() + STOP_LIMIT;
        while self.is_running() {
            if Instant::now() > deadline {
                self.kill();
                return None;
            }
            std::thread::sleep(POLL);
        }
        self.daemon.wait().ok().and_then(|status| status.code())
    }

    fn wait_for_api(&mut self) {
        let deadline = Instant::now() + START_LIMIT;
        while UnixStream::connect(self.api()).is_err() {
            let running = self.is_running();
            assert!(running, "the daemon of {} ended at its start:\n{}", self.name, self.log());
            assert!(Instant::now() < deadline, "the daemon of {} opens no API:\n{}", self.name, self.log());
            std::thread::sleep(POLL);
        }
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            let log = self.log();
            let skip = log.lines().count().saturating_sub(LOG_TAIL_LINES);
            eprintln!("--- the daemon of {}, last lines:", self.name);
            log.lines().skip(skip).for_each(|line| eprintln!("{line}"));
        }
    }
}

fn spawn(
    host: &Host,
    directory: &Path,
    enter: Option<&Path>,
    keeper: Option<&Keeper>,
    fail_points: &str,
) -> Child {
    let log =
        File::options().append(true).create(true).open(directory.join(LOG)).expect("the log can be made");
    let daemon = binaries::product("hikyakud");
    let copies = keeper.map(Keeper::copies).unwrap_or_default();
    let mut command = match enter {
        Some(namespace) => {
            let mut command = host.command("nsenter");
            command.arg(format!("--mount={}", namespace.display())).arg("--");
            if keeper.is_some() {
                // Whoever is passed sockets is told that they are for it.
                command.args(["sh", "-c", "export LISTEN_PID=$$; exec \"$0\" \"$@\""]);
            }
            command.arg(daemon);
            command
        }
        None => host.command(daemon),
    };
    command.arg("--config").arg(directory.join(CONFIG)).stdin(std::process::Stdio::null());
    if !fail_points.is_empty() {
        command.env("HIKYAKU_FAIL", fail_points);
    }
    let fake_clock = directory.join(FAKE_CLOCK);
    if fake_clock.exists() {
        command.env("LD_PRELOAD", fake_clock).env("FAKETIME_TIMESTAMP_FILE", directory.join(CLOCK));
        command.env("FAKETIME_CACHE_DURATION", "1").env("FAKETIME_DONT_FAKE_MONOTONIC", "1");
    }
    command.stdout(log.try_clone().expect("a descriptor")).stderr(log);
    if let Some(keeper) = keeper {
        command.env("NOTIFY_SOCKET", keeper.path());
        let (names, fds): (Vec<_>, Vec<_>) = copies.into_iter().unzip();
        command.env("LISTEN_FDS", fds.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        link::pass_from_3(&mut command, fds);
    }
    link::die_with_parent(&mut command);
    command.spawn().expect("hikyakud starts")
}

/// Two sites that know each other: `a` and `b`, each allowed to send to and receive from the other.
#[derive(Debug)]
pub struct Pair {
    pub a: Site,
    pub b: Site,
}

impl Pair {
    pub fn start(network: &Network) -> Pair {
        Pair::start_with(network, |_| {})
    }

    /// `adjust` is called with the settings of either site, before anything is started. `a` has the larger key: of two that
    /// would fill their links it is the one that waits, in each run.
    pub fn start_with(network: &Network, mut adjust: impl FnMut(&mut Settings)) -> Pair {
        let mut sites = [(); 2].map(|()| {
            let directory =
                tempfile::Builder::new().prefix("hikyaku-site.").tempdir().expect("a temporary directory");
            (make_key(&directory.path().join(KEY)), directory)
        });
        sites.sort_by(|(one, _), (other, _)| other.cmp(one));
        let [(key_a, directory_a), (key_b, directory_b)] = sites;
        let mut a = settings(network, "a", "b", key_b);
        let mut b = settings(network, "b", "a", key_a);
        adjust(&mut a);
        adjust(&mut b);
        Pair {
            a: Site::start(network.host("a"), &a, directory_a),
            b: Site::start(network.host("b"), &b, directory_b),
        }
    }

    pub fn site(&self, name: &str) -> &Site {
        if name == self.a.name { &self.a } else { &self.b }
    }
}

fn settings(network: &Network, name: &str, peer: &str, peer_key: String) -> Settings {
    let peer = PeerSettings {
        name: peer.to_owned(),
        addresses: vec![SocketAddr::from((network.host(peer).ip4(), PORT)).to_string()],
        public_key: peer_key,
        allow: vec!["send", "receive"],
        more: String::new(),
    };
    let (listen, more) = (format!("[::]:{PORT}"), String::new());
    Settings {
        name: name.to_owned(),
        listen,
        peers: vec![peer],
        drain: None,
        enter: None,
        fake_clock: None,
        kept: false,
        more,
    }
}

/// Makes a private key and returns its public half.
pub fn make_key(file: &Path) -> String {
    let mut command = Command::new(binaries::product("hikyaku"));
    command.arg("keygen").arg("--out").arg(file);
    let output = Running::start(&mut command).wait(Duration::from_secs(10)).expect_code(0);
    output.stdout.trim().to_owned()
}

/// A proxy in front of `b`'s daemon that damages what `a` sends. `a` must be told to go there: see [`through_proxy`].
pub fn faulty_proxy(network: &Network, fault: Fault) -> Running {
    let host = network.host("b");
    let mut command = host.command(binaries::helper("faulty-proxy"));
    command.arg(SocketAddr::from((host.ip4(), PROXY_PORT)).to_string());
    command.arg(SocketAddr::from((host.ip4(), PORT)).to_string());
    command.args(fault.arguments());
    Running::start(&mut command)
}

/// An adjustment for [`Pair::start_with`]: `a` finds `b` at the proxy's port.
pub fn through_proxy(network: &Network) -> impl FnMut(&mut Settings) + use<> {
    let proxy = SocketAddr::from((network.host("b").ip4(), PROXY_PORT)).to_string();
    move |settings| {
        if settings.name == "a" {
            settings.peers[0].addresses = vec![proxy.clone()];
        }
    }
}

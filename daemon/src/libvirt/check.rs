//! Whether a host is ready for guests that libvirt moves, as far as that can be seen without moving one.

use super::directory::qemu_user;
use super::landing::Landing;
use super::{setup, sockets};
use crate::config::{Allow, Config};
use crate::daemon::Daemon;
use crate::id::Id;
use crate::libvirt::watch::{AskError, ask_peer};
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::protocol::libvirt::{Examine, Examined};
use crate::protocol::{self, Hello, PROTOCOL, Refusal};
use bincode::{Decode, Encode};
use hikyaku_transport::{SessionId, Share};
use serde::{Deserialize, Serialize};
use std::fs;
use std::net::{IpAddr, ToSocketAddrs};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Nobody waits longer for a peer.
const PEER_TIMEOUT: Duration = Duration::from_secs(5);
/// What stands in a file is known at once.
const NAME_TIMEOUT: Duration = Duration::from_secs(1);
/// The programs of libvirt that read `qemu.conf`.
const LIBVIRTS: [&str; 2] = ["libvirtd", "virtqemud"];

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    Right,
    /// Guests can be moved, and would be better off otherwise.
    Advice,
    Wrong,
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Encode, Decode)]
pub struct Finding {
    pub verdict: Verdict,
    pub what: String,
    /// What to do about it; empty where nothing is to be done.
    pub advice: String,
}

impl Finding {
    fn right(what: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Right, what: what.into(), advice: String::new() }
    }

    fn wrong(what: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Wrong, what: what.into(), advice: advice.into() }
    }

    fn advice(what: impl Into<String>, advice: impl Into<String>) -> Finding {
        Finding { verdict: Verdict::Advice, what: what.into(), advice: advice.into() }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    pub peer: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Report {
    pub here: Vec<Finding>,
    /// What the peer finds at itself, and what does not fit what is said of it here.
    pub there: Option<Vec<Finding>>,
}

pub async fn report(daemon: &Daemon, arguments: Arguments) -> Result<Report, Outcome> {
    let fails = |ending: Ending, desc: String| Outcome::new(ending, Whereabouts::AsItWas, desc);
    let config = daemon.config.clone();
    let here = tokio::task::spawn_blocking(move || here(&config)).await;
    let here = here.map_err(|error| fails(Ending::Other, error.to_string()))?;
    let Some(peer) = arguments.peer else { return Ok(Report { here, there: None }) };
    let Some(known) = daemon.config.peer(&peer) else {
        return Err(fails(Ending::Usage, format!("no peer \"{peer}\" in the configuration")));
    };
    let examined = tokio::time::timeout(PEER_TIMEOUT, ask(daemon, &peer)).await.unwrap_or_else(|_| {
        let desc = format!("{peer} did not answer within {} s", PEER_TIMEOUT.as_secs());
        Err(fails(Ending::Unreachable, desc))
    })?;
    let mut there = examined.findings;
    there.extend(fits(&daemon.config, &peer, known.landing.as_ref(), &examined.directory, &examined.landing));
    Ok(Report { here, there: Some(there) })
}

async fn ask(daemon: &Daemon, peer: &str) -> Result<Examined, Outcome> {
    let fails = |ending: Ending, desc: String| Outcome::new(ending, Whereabouts::AsItWas, desc);
    let hello = protocol::encode(&Hello::Examine(Examine { protocol: PROTOCOL }));
    let hello = hello.map_err(|error| fails(Ending::Other, error.to_string()))?;
    let asked = ask_peer(daemon, peer, SessionId(Id::random().0), hello, Share::default()).await;
    let (session, reply, _) = asked.map_err(|error| match error {
        AskError::Link(error) => fails(Ending::Unreachable, error.to_string()),
        AskError::Open(error) => fails(Ending::Incompatible, format!("{peer}: {error}")),
    })?;
    session.close(Refusal::Done as u16, "answered");
    protocol::decode(&reply).map_err(|error| fails(Ending::Incompatible, format!("{peer}: {error}")))
}

/// At the peer that is asked.
pub async fn answer(config: &Config, peer: &str) -> Result<Vec<u8>, String> {
    let examined = config.clone();
    let findings = tokio::task::spawn_blocking(move || here(&examined)).await;
    let mut findings = findings.map_err(|error| error.to_string())?;
    let allowed = config.peer(peer).is_some_and(|peer| peer.allow.contains(&Allow::Libvirt));
    findings.push(match allowed {
        true => Finding::right("libvirt of the other host is let in"),
        false => Finding::advice(
            "libvirt of the other host is not let in: hikyaku virsh-migrate cannot be used, landings can",
            "add \"libvirt\" to what that peer is allowed, if it may do to this host what root can",
        ),
    });
    let landing = config.libvirt.landing.as_ref().map(setup::in_configuration);
    let directory = config.libvirt.directory.display().to_string();
    protocol::encode(&Examined { findings, directory, landing }).map_err(|error| error.to_string())
}

/// What the peer says of itself, and what the configuration here says of it.
fn fits(
    config: &Config,
    peer: &str,
    known: Option<&Landing>,
    directory: &str,
    landing: &Option<String>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    let ours = config.libvirt.directory.display().to_string();
    if ours != directory {
        findings.push(Finding::wrong(
            format!("sockets are made in {directory} there, and in {ours} here"),
            "give both daemons the same [libvirt] directory",
        ));
    }
    let known = known.map(setup::in_configuration);
    match (known, landing) {
        (None, None) => {}
        (Some(known), Some(landing)) if known == *landing => {
            findings.push(Finding::right("guests leave from here for where they land there"));
        }
        (Some(known), Some(landing)) => findings.push(Finding::wrong(
            format!("there it is {landing}; here, of [[peer]] {peer}, {known}"),
            "make them the same",
        )),
        (Some(_), None) => findings.push(Finding::wrong(
            "guests land nowhere there, though the configuration here says where",
            "there: hikyaku libvirt setup --alias NAME",
        )),
        (None, Some(landing)) => findings.push(Finding::advice(
            "guests land there, and leave here only by hikyaku virsh-migrate",
            format!("into [[peer]] {peer} here, for virsh migrate without it: {landing}"),
        )),
    }
    findings
}

/// At this host. Reads files, and waits for nobody.
fn here(config: &Config) -> Vec<Finding> {
    let libvirt = &config.libvirt;
    let socket = libvirt.socket.display();
    let mut findings = vec![match UnixStream::connect(&libvirt.socket) {
        Ok(_) => Finding::right(format!("libvirt answers at {socket}")),
        Err(error) => Finding::wrong(
            format!("libvirt does not answer at {socket}: {error}"),
            "start libvirtd (or virtqemud and virtproxyd), or say where it is: [libvirt] socket",
        ),
    }];
    if let Err(error) = qemu_user(libvirt.qemu_user.as_deref()) {
        findings.push(Finding::wrong(error.to_string(), "say as whom QEMUs run: [libvirt] qemu_user"));
    }
    if (libvirt.room > 0 || libvirt.only_carried) && !has_hook(Path::new(HOOKS)) {
        findings.push(Finding::wrong(
            format!("nobody is turned away, though the configuration says when: hikyaku-libvirt-hook is not in {HOOKS}"),
            "put it there, and restart libvirtd (or virtqemud)",
        ));
    }
    if let Some(landing) = &libvirt.landing {
        findings.extend(lands(landing, Path::new(setup::QEMU_CONF)));
    }
    for peer in &config.peers {
        if let Some(landing) = &peer.landing {
            findings.extend(leaves(&peer.name, landing));
        }
    }
    findings
}

const HOOKS: &str = "/etc/libvirt/hooks/qemu.d";

fn has_hook(directory: &Path) -> bool {
    let all = fs::read_dir(directory).into_iter().flatten().flatten();
    all.into_iter().any(|entry| entry.file_name().to_string_lossy().contains("hikyaku"))
}

const SET_UP: &str = "hikyaku libvirt setup --apply, and restart libvirtd (or virtqemud)";

fn lands(landing: &Landing, conf: &Path) -> Vec<Finding> {
    let path = conf.display();
    let text = match fs::read_to_string(conf) {
        Ok(text) => text,
        Err(error) => return vec![Finding::wrong(format!("{path}: {error}"), SET_UP)],
    };
    let mut findings = Vec::new();
    for (key, wanted) in setup::qemu_conf(landing) {
        let there = setup::value(&text, key);
        if there == Some(wanted.trim_matches('"')) {
            continue;
        }
        let what = format!("{path}: {key} is {}, not {wanted}", there.unwrap_or("not said"));
        findings.push(match key {
            "keepalive_interval" => Finding::advice(
                format!("{what}: a link that is down for 30 s ends migrations that libvirt's own connections control"),
                SET_UP,
            ),
            _ => Finding::wrong(what, SET_UP),
        });
    }
    let changed = fs::metadata(conf).and_then(|meta| meta.modified()).ok();
    if let Some(name) = changed.and_then(started_before) {
        findings.push(Finding::wrong(
            format!("{name} was started before {path} was last changed, and has not read that"),
            format!("restart {name}: guests run on meanwhile"),
        ));
    }
    if findings.iter().all(|finding| finding.verdict != Verdict::Wrong) {
        findings.insert(0, Finding::right(format!("guests land at {}, as {path} says", landing.alias)));
    }
    findings
}

fn leaves(peer: &str, landing: &Landing) -> Vec<Finding> {
    let (alias, address) = (&landing.alias, landing.address);
    let found = resolved(alias);
    let is_it = !found.is_empty() && found.iter().all(|at| *at == IpAddr::V4(address));
    let mut findings = Vec::new();
    if !is_it {
        let found: Vec<_> = found.iter().map(IpAddr::to_string).collect();
        let found = if found.is_empty() { "nothing".to_owned() } else { found.join(", ") };
        findings.push(Finding::wrong(
            format!("{alias} means {found} at this host, not {address}"),
            format!("hikyaku libvirt setup --apply, or the line in {}", setup::HOSTS),
        ));
    }
    let deaf = sockets::not_listened_at(address, landing.ports.all());
    match deaf.first() {
        Some(first) => findings.push(Finding::wrong(
            format!("hikyakud does not listen at {} of the ports {} of {peer}'s landing ({address}:{first})", deaf.len(), landing.ports),
            "its log says why: another program may have them, or libvirt here the same ports (migration_port_min)",
        )),
        None if is_it => findings.push(Finding::right(format!("guests leave for {peer} by {alias}"))),
        None => {}
    }
    findings
}

/// A name that nobody knows is sought far away, and may be for long.
fn resolved(name: &str) -> Vec<IpAddr> {
    let (tell, told) = std::sync::mpsc::channel();
    let name = name.to_owned();
    std::thread::spawn(move || {
        let found = (name.as_str(), 0).to_socket_addrs().map(|all| all.map(|at| at.ip()).collect());
        tell.send(found.unwrap_or_default())
    });
    told.recv_timeout(NAME_TIMEOUT).unwrap_or_default()
}

/// The first of libvirt's programs that runs since before `changed`.
fn started_before(changed: SystemTime) -> Option<String> {
    let changed = changed.duration_since(UNIX_EPOCH).ok()?;
    let booted = fs::read_to_string("/proc/stat").ok()?;
    let booted: u64 = booted.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()?;
    let ticks = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten()? as u64;
    sockets::processes().find_map(|pid| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        let name = name.trim();
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let started: u64 = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        // To the second, as both are known.
        let since = Duration::from_secs(booted + started / ticks + 2);
        (LIBVIRTS.contains(&name) && since < changed && shares_our_files(pid)).then(|| name.to_owned())
    })
}

/// It reads the files that we do: not one in a container.
fn shares_our_files(pid: i32) -> bool {
    let files = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    files(&pid.to_string()) == files("self")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn landing() -> Landing {
        toml::from_str("alias = \"osaka.hikyaku\"\naddress = \"127.77.0.2\"\nports = \"49168-49183\"")
            .unwrap()
    }

    fn wrongs(findings: &[Finding]) -> Vec<&str> {
        findings.iter().filter(|f| f.verdict == Verdict::Wrong).map(|f| f.what.as_str()).collect()
    }

    #[test]
    fn a_file_that_says_something_else_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let conf = directory.path().join("qemu.conf");
        assert_eq!(wrongs(&lands(&landing(), &conf)).len(), 1, "there is none");
        let lines = setup::qemu_conf(&landing());
        let text: String = lines.iter().map(|(key, value)| format!("{key} = {value}\n")).collect();
        fs::write(&conf, &text).unwrap();
        let findings = lands(&landing(), &conf);
        assert_eq!(wrongs(&findings), [""; 0]);
        assert_eq!(findings[0].verdict, Verdict::Right);
        fs::write(&conf, text.replace("49168", "49152").replace("keepalive", "#keepalive")).unwrap();
        let findings = lands(&landing(), &conf);
        assert_eq!(wrongs(&findings).len(), 1);
        assert!(wrongs(&findings)[0].contains("migration_port_min is 49152, not 49168"));
        assert_eq!(findings.iter().filter(|f| f.verdict == Verdict::Advice).count(), 1);
    }

    #[test]
    fn a_name_that_means_nothing_and_a_port_that_nobody_has_are_told() {
        let findings = leaves("osaka", &Landing { alias: "no-such-name.invalid".into(), ..landing() });
        let wrongs = wrongs(&findings);
        assert!(wrongs[0].contains("means nothing at this host"), "{wrongs:?}");
        assert!(wrongs[1].contains("does not listen at 16 of the ports"), "{wrongs:?}");
    }
}

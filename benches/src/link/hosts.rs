//! Hosts: network namespaces without a name, and commands inside them.

use std::ffi::{CString, OsStr};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use super::MTU_BYTES;
use super::network::BuildError;
use super::sys::{self, HostPlan, Step, StepError, UserMaps};

/// Most hosts of one network: the last octet of an IPv4 address, with some to spare.
pub(super) const MAX_HOSTS: usize = 200;
const INTERFACE: &str = "wan0";
/// A host that sends a whole window of small packets at once must not lose them before the emulated queue.
const TUN_QUEUE_PACKETS: u32 = 8192;

/// What a host's TCP is like. The default is that of a host nobody has tuned, whatever this machine's own is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostSettings {
    pub congestion_control: String,
    /// Minimum, default, maximum of a socket's send buffer.
    pub tcp_wmem_bytes: [u64; 3],
    /// Minimum, default, maximum of a socket's receive buffer.
    pub tcp_rmem_bytes: [u64; 3],
    /// More settings, as `sysctl` names them: `("net.ipv4.tcp_slow_start_after_idle", "0")`.
    pub sysctls: Vec<(String, String)>,
}

impl Default for HostSettings {
    fn default() -> Self {
        Self {
            congestion_control: "cubic".to_owned(),
            tcp_wmem_bytes: [4096, 16_384, 4 << 20],
            tcp_rmem_bytes: [4096, 131_072, 6 << 20],
            sysctls: Vec::new(),
        }
    }
}

/// Rounds in which everything in a host is killed: what is killed may just have started another process.
const POWER_OFF_ROUNDS: usize = 100;

/// A host: a network namespace with one interface, which leads to the link.
#[derive(Debug)]
pub struct Host {
    name: String,
    ip4: Ipv4Addr,
    ip6: Ipv6Addr,
    user: Option<Arc<OwnedFd>>,
    net: Arc<OwnedFd>,
}

impl Host {
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Of the range for benchmarks (RFC 2544), so never one that the machine itself uses.
    pub fn ip4(&self) -> Ipv4Addr {
        self.ip4
    }

    /// Of the range for benchmarks (RFC 5180).
    pub fn ip6(&self) -> Ipv6Addr {
        self.ip6
    }

    /// A command that will run inside the host. It is killed with the [`Network`](super::Network),
    /// and where that is not enough, since this process may be, by [`die_with_parent`](super::die_with_parent).
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        sys::enter_on_exec(&mut command, self.user.clone(), Arc::clone(&self.net));
        command
    }

    /// Runs `work` on a thread inside the host: sockets it makes are the host's and stay so.
    ///
    /// Fails where the network was made without root: a thread cannot enter a user namespace.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                sys::enter_net(&self.net)?;
                Ok(work())
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Where another process can enter, as long as this one lives: `nsenter --net=PATH`.
    pub fn net_namespace(&self) -> PathBuf {
        namespace_path(&self.net)
    }

    /// The user namespace to enter first, where the network was made without root: `nsenter --user=PATH`.
    pub fn user_namespace(&self) -> Option<PathBuf> {
        self.user.as_deref().map(namespace_path)
    }
}

/// A namespace as `/proc/PID/ns/net` shows it: `net:[4026532281]`.
pub(super) fn namespace_name(host: &Host) -> io::Result<PathBuf> {
    std::fs::read_link(format!("/proc/self/fd/{}", host.net.as_raw_fd()))
}

/// Kills everything that runs in these namespaces, as named by [`namespace_name`].
pub(super) fn power_off(namespaces: &[PathBuf]) {
    let is_inside = |pid: i32| {
        // Of the process, not of one of its threads: this one's may be inside for a while.
        let namespace = std::fs::read_link(format!("/proc/{pid}/ns/net"));
        namespace.is_ok_and(|namespace| namespaces.contains(&namespace))
    };
    for _ in 0..POWER_OFF_ROUNDS {
        let Ok(processes) = std::fs::read_dir("/proc") else { return };
        let pids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        if sys::kill_if(pids, is_inside) == 0 {
            return;
        }
        thread::sleep(Duration::from_millis(1));
    }
}

fn namespace_path(fd: &OwnedFd) -> PathBuf {
    format!("/proc/{}/fd/{}", std::process::id(), fd.as_raw_fd()).into()
}

/// Makes the hosts and the devices that their packets come from and go to.
pub(super) fn make(names: &[String], settings: &HostSettings) -> Result<Vec<(Host, OwnedFd)>, BuildError> {
    allow_congestion_control(&settings.congestion_control);
    let plans = plans(names.len(), settings)?;
    let made = match sys::make_hosts(&plans, None) {
        Err(error) if error.step == Step::NetNamespace && is_denied(&error.error) => {
            sys::make_hosts(&plans, Some(&user_maps()))
        }
        made => made,
    };
    let made = made.map_err(|error| explain(&plans, error))?;
    let hosts = names.iter().zip(&plans).zip(made).map(|((name, plan), fds)| {
        let (user, net) = (fds.user.map(Arc::new), Arc::new(fds.net));
        (Host { name: name.clone(), ip4: plan.ip4, ip6: plan.ip6, user, net }, fds.tun)
    });
    Ok(hosts.collect())
}

pub(super) fn addresses(host: &Host) -> [IpAddr; 2] {
    [host.ip4.into(), host.ip6.into()]
}

fn plans(count: usize, settings: &HostSettings) -> Result<Vec<HostPlan>, BuildError> {
    let triple = |bytes: [u64; 3]| format!("{} {} {}", bytes[0], bytes[1], bytes[2]);
    let own = [
        ("net.ipv6.conf.all.disable_ipv6", "0".to_owned()),
        ("net.ipv4.tcp_congestion_control", settings.congestion_control.clone()),
        ("net.ipv4.tcp_wmem", triple(settings.tcp_wmem_bytes)),
        ("net.ipv4.tcp_rmem", triple(settings.tcp_rmem_bytes)),
        // One run must not start where the last one left off.
        ("net.ipv4.tcp_no_metrics_save", "1".to_owned()),
    ];
    let more = settings.sysctls.iter().map(|(name, value)| (name.as_str(), value.clone()));
    let all: Vec<_> = own.into_iter().chain(more).collect();
    (0..count)
        .map(|index| {
            let sysctls = all.iter().map(|(name, value)| {
                let path = format!("/proc/sys/{}", name.replace('.', "/"));
                let path = CString::new(path).map_err(|_| BuildError::Sysctl((*name).to_owned()))?;
                Ok((path, value.clone().into_bytes()))
            });
            Ok(HostPlan {
                interface: CString::new(INTERFACE).unwrap_or_default(),
                mtu: MTU_BYTES as i32,
                queue_packets: TUN_QUEUE_PACKETS,
                ip4: Ipv4Addr::new(198, 18, 0, index as u8 + 1),
                netmask: Ipv4Addr::new(255, 255, 255, 0),
                ip6: Ipv6Addr::new(0x2001, 2, 0, 0, 0, 0, 0, index as u16 + 1),
                prefix6: 64,
                sysctls: sysctls.collect::<Result<_, BuildError>>()?,
            })
        })
        .collect()
}

/// Root of the new namespace is whoever runs this.
fn user_maps() -> UserMaps {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    UserMaps { uid_map: format!("0 {uid} 1").into_bytes(), gid_map: format!("0 {gid} 1").into_bytes() }
}

/// A namespace may default only to what the machine allows everybody. That is one setting for the whole machine,
/// which only root can extend; who cannot, learns it when the namespace refuses the setting.
fn allow_congestion_control(name: &str) {
    const ALLOWED: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    let Ok(allowed) = std::fs::read_to_string(ALLOWED) else { return };
    if !allowed.split_whitespace().any(|one| one == name) {
        let _ = std::fs::write(ALLOWED, format!("{} {name}", allowed.trim()));
    }
}

fn is_denied(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::EPERM)
}

fn explain(plans: &[HostPlan], failed: StepError) -> BuildError {
    let StepError { step, index, error } = failed;
    match step {
        Step::UserNamespace | Step::UidMap | Step::NetNamespace => BuildError::NoNamespace(error),
        Step::OpenTun => BuildError::NoTun(error),
        Step::Sysctl => {
            let path = plans.first().and_then(|plan| plan.sysctls.get(index)).map(|(path, _)| path);
            let name = path.map(|path| path.to_string_lossy().replace("/proc/sys/", "").replace('/', "."));
            BuildError::HostSetting { name: name.unwrap_or_default(), error }
        }
        Step::Fork => BuildError::Host { what: "start a process", error },
        Step::MakeTun => BuildError::Host { what: "make a TUN device with offloads", error },
        Step::Interface => BuildError::Host { what: "set up the interface", error },
        Step::Ip4 => BuildError::Host { what: "set the IPv4 address", error },
        Step::Ip6 => BuildError::Host { what: "set the IPv6 address", error },
        Step::HandOver => BuildError::Host { what: "receive the host's descriptors", error },
    }
}

//! TCP sockets of this host: whose they are, from `/proc`.

use crate::process::ProcessId;
use hikyaku_qemu::command_line::{guest_name, guest_uuid};
use nix::unistd::Uid;
use std::fs;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::ops::RangeInclusive;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;
use tokio::net::{TcpStream, UnixStream};

/// A line of `/proc/net/tcp`.
#[derive(Debug, PartialEq, Eq)]
struct Row {
    local: SocketAddrV4,
    remote: SocketAddrV4,
    listens: bool,
    /// Both ends are there, and this one is somebody's.
    is_open: bool,
    uid: u32,
    inode: u64,
}

/// In hexadecimal, the address as a word of this machine's.
fn address(text: &str) -> Option<SocketAddrV4> {
    let (address, port) = text.split_once(':')?;
    // The bytes of the address, read as a number of this machine's.
    let address = u32::from_be(u32::from_str_radix(address, 16).ok()?);
    Some(SocketAddrV4::new(Ipv4Addr::from(address), u16::from_str_radix(port, 16).ok()?))
}

fn row(line: &str) -> Option<Row> {
    let words: Vec<_> = line.split_whitespace().collect();
    let &[_, local, remote, state, _, _, _, uid, _, inode, ..] = words.as_slice() else { return None };
    Some(Row {
        local: address(local)?,
        remote: address(remote)?,
        listens: state == "0A",
        is_open: state == "01" && inode != "0",
        uid: uid.parse().ok()?,
        inode: inode.parse().ok()?,
    })
}

/// The kernel shows a page of its list at a time; of one that changes meanwhile a line may be missing.
const LOOKS: u32 = 4;
const LOOK_AGAIN: Duration = Duration::from_millis(5);

fn find(is_it: impl Fn(&Row) -> bool) -> Option<Row> {
    (0..LOOKS).find_map(|look| {
        std::thread::sleep(LOOK_AGAIN * look);
        rows().find(&is_it)
    })
}

fn rows() -> impl Iterator<Item = Row> {
    let list = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    list.lines().filter_map(row).collect::<Vec<_>>().into_iter()
}

/// As whom `from` is connected to `to`, both at this host. Of one that was closed nobody knows: the kernel says that it is root's.
pub fn who_connected(from: SocketAddrV4, to: SocketAddrV4) -> Option<u32> {
    find(|row| row.local == from && row.remote == to && row.is_open).map(|row| row.uid)
}

/// A QEMU that listens.
#[derive(Debug, PartialEq, Eq)]
pub struct Listener {
    pub guest: String,
    /// At none of these ports that is lower: libvirt gives the first one to the guest's memory.
    pub first: bool,
}

/// Whose QEMU listens there. It is not connected to: it would take that for its guest.
pub fn who_listens(at: SocketAddrV4, ports: &RangeInclusive<u16>) -> Option<Listener> {
    let is_ours = |row: &Row| row.listens && (row.local.ip() == at.ip() || row.local.ip().is_unspecified());
    let inode = find(|row| is_ours(row) && row.local.port() == at.port())?.inode;
    processes().find_map(|pid| {
        let guest = guest_of(pid).filter(|_| holds(&pid.to_string(), inode))?;
        let lower = |row: &Row| {
            let port = row.local.port();
            is_ours(row) && port < at.port() && ports.contains(&port) && holds(&pid.to_string(), row.inode)
        };
        Some(Listener { guest, first: !rows().any(|row| lower(&row)) })
    })
}

/// The QEMU here whose guest has this name, or this UUID, of root's and this user's.
pub fn qemu_of(guest: &str, uuid: Option<&str>, user: Option<Uid>) -> Option<ProcessId> {
    let is_guest = |pid: i32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        guest_name(&line).as_deref() == Some(guest) || uuid.is_some() && guest_uuid(&line) == uuid
    };
    let is_its = |pid: &i32| {
        let owner = fs::metadata(format!("/proc/{pid}")).ok().map(|meta| Uid::from_raw(meta.uid()));
        let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
        let is_qemu = program.file_name().is_some_and(|name| name.to_string_lossy().starts_with("qemu"));
        // One in a network of its own is another host's.
        let network = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/net")).ok();
        let is_here = network(&pid.to_string()) == network("self");
        is_qemu && is_here && owner.is_some_and(|owner| owner.is_root() || Some(owner) == user)
    };
    processes().find(|pid| is_guest(*pid) && is_its(pid)).and_then(ProcessId::of)
}

/// Of these ports those at which this process does not listen.
pub fn not_listened_at(address: Ipv4Addr, ports: RangeInclusive<u16>) -> Vec<u16> {
    let rows: Vec<_> = rows().filter(|row| row.listens && *row.local.ip() == address).collect();
    let ours = std::process::id().to_string();
    let listens = |port| rows.iter().any(|row| row.local.port() == port && holds(&ours, row.inode));
    ports.filter(|port| !listens(*port)).collect()
}

/// Whether it has the socket open.
fn holds(pid: &str, inode: u64) -> bool {
    let socket = format!("socket:[{inode}]");
    let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    files.filter_map(|file| fs::read_link(file.path()).ok()).any(|file| file.as_os_str() == socket.as_str())
}

/// Of whatever kind: it is read, written and shut down, as a socket in a directory is, and nothing else.
pub fn connection(stream: TcpStream) -> io::Result<UnixStream> {
    stream.set_nodelay(true)?;
    UnixStream::from_std(OwnedFd::from(stream.into_std()?).into())
}

/// All that are there.
pub fn processes() -> impl Iterator<Item = i32> {
    let all = fs::read_dir("/proc").into_iter().flatten().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn guest_of(pid: i32) -> Option<String> {
    guest_name(&fs::read(format!("/proc/{pid}/cmdline")).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::{SocketAddr, TcpListener};
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    fn v4(address: SocketAddr) -> SocketAddrV4 {
        let SocketAddr::V4(address) = address else { panic!("{address}") };
        address
    }

    #[test]
    fn who_connected_is_known() {
        let listener = TcpListener::bind((Ipv4Addr::new(127, 77, 0, 9), 0)).unwrap();
        let to = v4(listener.local_addr().unwrap());
        let stream = std::net::TcpStream::connect(to).unwrap();
        let from = v4(stream.local_addr().unwrap());
        assert_eq!(who_connected(from, to), Some(nix::unistd::getuid().as_raw()));
        assert_eq!(who_connected(SocketAddrV4::new(*from.ip(), 1), to), None);
        let (_there, _) = listener.accept().unwrap();
        drop(stream);
        assert_eq!(who_connected(from, to), None, "he has gone, and the kernel says that it was root");
    }

    #[test]
    fn whose_guest_is_awaited_is_read_off_the_process_that_listens() {
        let bind = || TcpListener::bind((Ipv4Addr::new(127, 77, 0, 9), 0)).unwrap();
        let mut listeners = [bind(), bind()];
        listeners.sort_by_key(|listener| listener.local_addr().unwrap().port());
        let [memory, disks] = listeners.each_ref().map(|listener| v4(listener.local_addr().unwrap()));
        let all = 1..=u16::MAX;
        assert_eq!(who_listens(memory, &all), None, "no QEMU's");
        // It is called like a QEMU, and has the sockets: by these names nobody else gets them, who may be begun meanwhile.
        let [out, error] = listeners.map(std::os::fd::OwnedFd::from);
        let words = ["-c", "read wait", "-name", "guest=landing-test,debug-threads=on"];
        let mut command = Command::new("sh");
        command.arg0("qemu").args(words).stdin(std::process::Stdio::piped()).stdout(out).stderr(error);
        let mut child = command.spawn().unwrap();
        drop(command);
        // The kernel shows its command line a moment after it has let go of ours.
        while guest_of(child.id() as i32).is_none() {
            std::thread::sleep(LOOK_AGAIN);
        }
        let found = [memory, disks].map(|at| who_listens(at, &all));
        let beside = who_listens(disks, &(disks.port()..=u16::MAX));
        let elsewhere = who_listens(SocketAddrV4::new(Ipv4Addr::new(127, 77, 0, 8), disks.port()), &all);
        let by_name = qemu_of("landing-test", None, None);
        drop(child.stdin.take());
        child.wait().unwrap();
        let listener = |first| Some(Listener { guest: "landing-test".to_owned(), first });
        assert_eq!(found, [listener(true), listener(false)]);
        assert_eq!(beside, listener(true), "the other one is not of the landing");
        assert_eq!(elsewhere, None);
        assert_eq!(by_name, None, "a shell is no QEMU");
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        assert_eq!(
            row(
                "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode"
            ),
            None
        );
        assert_eq!(row(""), None);
        assert_eq!(row("0: 0100007F:XX 0 0A 0 0 0 0 0 1"), None);
    }
}

//! The system calls that have no safe wrapper: making hosts, entering them, scheduling.
//!
//! [`make_hosts`] works in a forked child, since a process with threads may not enter a user namespace, and hands
//! the descriptors over a socket. After the fork the child makes system calls only: it neither allocates nor
//! takes a lock that another thread of the parent might have held. Everything it needs is in a [`HostPlan`].
#![allow(unsafe_code)]

use std::ffi::{CStr, CString};
use std::io;
use std::mem::{size_of, size_of_val, zeroed};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::Arc;

use libc::{c_int, c_ulong, c_void};

const TUN_DEVICE: &CStr = c"/dev/net/tun";
const TUNSETIFF: c_ulong = 0x4004_54ca;
const TUNSETOFFLOAD: c_ulong = 0x4004_54d0;
const TUNSETVNETLE: c_ulong = 0x4004_54dc;
const TUN_F_CSUM: c_ulong = 0x01;
const TUN_F_TSO4: c_ulong = 0x02;
const TUN_F_TSO6: c_ulong = 0x04;
const TUN_F_USO4: c_ulong = 0x20;
const TUN_F_USO6: c_ulong = 0x40;

/// What a host is made of.
#[derive(Debug)]
pub(super) struct HostPlan {
    pub interface: CString,
    pub mtu: c_int,
    /// Packets the device holds until the emulator reads them.
    pub queue_packets: u32,
    pub ip4: Ipv4Addr,
    pub netmask: Ipv4Addr,
    pub ip6: Ipv6Addr,
    pub prefix6: u32,
    /// Paths below /proc/sys and what is written to them.
    pub sysctls: Vec<(CString, Vec<u8>)>,
}

/// How a process without privileges becomes root of a namespace of its own.
#[derive(Debug)]
pub(super) struct UserMaps {
    pub uid_map: Vec<u8>,
    pub gid_map: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct HostFds {
    pub user: Option<OwnedFd>,
    pub net: OwnedFd,
    pub tun: OwnedFd,
}

/// What could not be done, in words that follow "cannot".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Step {
    Fork,
    UserNamespace,
    UidMap,
    NetNamespace,
    OpenTun,
    MakeTun,
    Interface,
    Ip4,
    Ip6,
    Sysctl,
    HandOver,
}

#[derive(Debug)]
pub(super) struct StepError {
    pub step: Step,
    /// Which of the plan's sysctls.
    pub index: usize,
    pub error: io::Error,
}

type Raw = Result<(), (Step, usize)>;

/// Makes a host for each plan. On `Err` nothing is left behind.
pub(super) fn make_hosts(plans: &[HostPlan], user: Option<&UserMaps>) -> Result<Vec<HostFds>, StepError> {
    let failed = |step| move |error| StepError { step, index: 0, error };
    let mut ends = [-1; 2];
    // SAFETY: `ends` has room for the two descriptors.
    let made = unsafe {
        libc::socketpair(libc::AF_UNIX, libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC, 0, ends.as_mut_ptr())
    };
    check(made).map_err(failed(Step::HandOver))?;
    // SAFETY: both were just made and belong to nobody else.
    let (ours, theirs) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };

    // SAFETY: the child calls `child`, which makes system calls only and does not return.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        child(plans, user, theirs.as_raw_fd());
    }
    check(pid).map_err(failed(Step::Fork))?;
    drop(theirs);
    let hosts = (0..plans.len()).map(|_| receive_host(&ours, user.is_some())).collect();
    let mut status = 0;
    // SAFETY: `pid` is a child of this process that nobody else waits for.
    while unsafe { libc::waitpid(pid, &mut status, 0) } < 0 && last_is_eintr() {}
    hosts
}

fn child(plans: &[HostPlan], user: Option<&UserMaps>, socket: RawFd) -> ! {
    let done = make_all(plans, user, socket);
    if let Err((step, index)) = done {
        let message = [step as i32, index as i32, errno()];
        // SAFETY: the message lives on this stack; a failure shows to the parent as the end of the socket.
        unsafe { libc::send(socket, message.as_ptr().cast(), size_of_val(&message), libc::MSG_NOSIGNAL) };
    }
    // SAFETY: ends the forked child without running what the parent registered for its own end.
    unsafe { libc::_exit(0) }
}

fn make_all(plans: &[HostPlan], user: Option<&UserMaps>, socket: RawFd) -> Raw {
    if let Some(maps) = user {
        // SAFETY: no memory is involved.
        step(Step::UserNamespace, unsafe { libc::unshare(libc::CLONE_NEWUSER) })?;
        write_file(c"/proc/self/setgroups", b"deny", (Step::UidMap, 0))?;
        write_file(c"/proc/self/uid_map", &maps.uid_map, (Step::UidMap, 0))?;
        write_file(c"/proc/self/gid_map", &maps.gid_map, (Step::UidMap, 0))?;
    }
    for plan in plans {
        // SAFETY: no memory is involved.
        step(Step::NetNamespace, unsafe { libc::unshare(libc::CLONE_NEWNET) })?;
        let tun = make_tun(plan)?;
        for (index, (path, value)) in plan.sysctls.iter().enumerate() {
            write_file(path, value, (Step::Sysctl, index))?;
        }
        configure(plan)?;
        let net = open(c"/proc/self/ns/net", libc::O_RDONLY, Step::NetNamespace)?;
        match user {
            Some(_) => {
                let user = open(c"/proc/self/ns/user", libc::O_RDONLY, Step::UserNamespace)?;
                send_host(socket, &[net, tun, user])?;
            }
            None => send_host(socket, &[net, tun])?,
        }
    }
    Ok(())
}

fn make_tun(plan: &HostPlan) -> Result<RawFd, (Step, usize)> {
    let tun = open(TUN_DEVICE, libc::O_RDWR | libc::O_NONBLOCK, Step::OpenTun)?;
    let mut request = request_for(plan);
    request.ifr_ifru.ifru_flags = (libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as i16;
    let little_endian: c_int = 1;
    let with_uso = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_USO4 | TUN_F_USO6;
    let without_uso = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6;
    // SAFETY: each request takes what it is given: an ifreq, a pointer to an int, a mask by value.
    unsafe {
        step(Step::MakeTun, libc::ioctl(tun, TUNSETIFF as _, &request))?;
        step(Step::MakeTun, libc::ioctl(tun, TUNSETVNETLE as _, &little_endian))?;
        if libc::ioctl(tun, TUNSETOFFLOAD as _, with_uso) < 0 {
            step(Step::MakeTun, libc::ioctl(tun, TUNSETOFFLOAD as _, without_uso))?;
        }
    }
    Ok(tun)
}

fn configure(plan: &HostPlan) -> Raw {
    // SAFETY: no memory is involved.
    let socket4 = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    step(Step::Interface, socket4)?;
    // SAFETY: as above.
    let socket6 = unsafe { libc::socket(libc::AF_INET6, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    step(Step::Ip6, socket6)?;

    let mut loopback = named(c"lo");
    loopback.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    let mut mtu = request_for(plan);
    mtu.ifr_ifru.ifru_mtu = plan.mtu;
    let mut address = request_for(plan);
    address.ifr_ifru.ifru_addr = socket_address(plan.ip4);
    let mut netmask = request_for(plan);
    netmask.ifr_ifru.ifru_netmask = socket_address(plan.netmask);
    let mut up = request_for(plan);
    up.ifr_ifru.ifru_flags = libc::IFF_UP as i16;
    let mut index = request_for(plan);
    // SAFETY: each request reads or fills the ifreq it is given; the index is read after it was filled.
    unsafe {
        step(Step::Interface, libc::ioctl(socket4, libc::SIOCSIFFLAGS as _, &loopback))?;
        step(Step::Interface, libc::ioctl(socket4, libc::SIOCSIFMTU as _, &mtu))?;
        step(Step::Ip4, libc::ioctl(socket4, libc::SIOCSIFADDR as _, &address))?;
        step(Step::Ip4, libc::ioctl(socket4, libc::SIOCSIFNETMASK as _, &netmask))?;
        step(Step::Interface, libc::ioctl(socket4, libc::SIOCSIFFLAGS as _, &up))?;
        step(Step::Ip6, libc::ioctl(socket4, libc::SIOCGIFINDEX as _, &mut index))?;
        let address6 = libc::in6_ifreq {
            ifr6_addr: libc::in6_addr { s6_addr: plan.ip6.octets() },
            ifr6_prefixlen: plan.prefix6,
            ifr6_ifindex: index.ifr_ifru.ifru_ifindex,
        };
        step(Step::Ip6, libc::ioctl(socket6, libc::SIOCSIFADDR as _, &address6))?;
        libc::close(socket4);
        libc::close(socket6);
        set_queue(index.ifr_ifru.ifru_ifindex, plan.queue_packets)
    }
}

/// The only setting that takes a netlink message: its ioctl is for root of the machine alone.
fn set_queue(interface: c_int, packets: u32) -> Raw {
    #[repr(C)]
    struct Message {
        header: libc::nlmsghdr,
        interface: libc::ifinfomsg,
        attribute: libc::nlattr,
        packets: u32,
    }
    #[repr(C)]
    struct Answer {
        header: libc::nlmsghdr,
        error: libc::nlmsgerr,
    }
    // SAFETY: all of it is plain data, for which zeroes are valid.
    let (mut message, mut answer): (Message, Answer) = unsafe { (zeroed(), zeroed()) };
    message.header.nlmsg_len = size_of::<Message>() as u32;
    message.header.nlmsg_type = libc::RTM_NEWLINK;
    message.header.nlmsg_flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    message.interface.ifi_index = interface;
    message.attribute.nla_len = (size_of::<libc::nlattr>() + size_of::<u32>()) as u16;
    message.attribute.nla_type = libc::IFLA_TXQLEN;
    message.packets = packets;
    // SAFETY: what is sent and received lives on this stack, with its size; a shorter answer leaves zeroes.
    let error = unsafe {
        let socket = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
        step(Step::Interface, socket)?;
        let sent = libc::send(socket, (&raw const message).cast(), size_of::<Message>(), 0);
        step(Step::Interface, sent as c_int)?;
        let received = libc::recv(socket, (&raw mut answer).cast(), size_of::<Answer>(), 0);
        step(Step::Interface, received as c_int)?;
        libc::close(socket);
        *libc::__errno_location() = -answer.error.error;
        answer.error.error
    };
    step(Step::Interface, error)
}

fn request_for(plan: &HostPlan) -> libc::ifreq {
    named(&plan.interface)
}

fn named(interface: &CStr) -> libc::ifreq {
    // SAFETY: an ifreq is plain data, for which zeroes are valid.
    let mut request: libc::ifreq = unsafe { zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.to_bytes()) {
        *to = *from as libc::c_char;
    }
    request
}

fn socket_address(ip: Ipv4Addr) -> libc::sockaddr {
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: 0,
        sin_addr: libc::in_addr { s_addr: u32::from(ip).to_be() },
        sin_zero: [0; 8],
    };
    // SAFETY: both are 16 bytes of plain data, and the family says which of them it is.
    unsafe { std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(address) }
}

fn write_file(path: &CStr, value: &[u8], what: (Step, usize)) -> Raw {
    // SAFETY: the path ends with a NUL, the bytes outlive the call.
    let written = unsafe {
        let file = libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if file < 0 {
            return Err(what);
        }
        let written = libc::write(file, value.as_ptr().cast(), value.len());
        let kept = errno();
        libc::close(file);
        *libc::__errno_location() = kept;
        written
    };
    if written == value.len() as isize { Ok(()) } else { Err(what) }
}

fn open(path: &CStr, flags: c_int, what: Step) -> Result<RawFd, (Step, usize)> {
    // SAFETY: the path ends with a NUL.
    let file = unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC) };
    step(what, file)?;
    Ok(file)
}

/// Room for the descriptors of a host, aligned as control messages must be.
#[repr(C, align(8))]
struct Control([u8; 64]);

fn send_host(socket: RawFd, fds: &[RawFd]) -> Raw {
    let mut no_error = [-1_i32, 0, 0];
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: no_error.as_mut_ptr().cast(), iov_len: size_of_val(&no_error) };
    let bytes = size_of_val(fds) as u32;
    // SAFETY: the message's parts live on this stack; three descriptors and their header fit into `control`.
    let sent = unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(bytes) as _;
        std::ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), bytes as usize);
        libc::sendmsg(socket, &message, libc::MSG_NOSIGNAL)
    };
    step(Step::HandOver, sent as c_int)?;
    for &fd in fds {
        // SAFETY: they are this process's, and the message holds them now.
        unsafe { libc::close(fd) };
    }
    Ok(())
}

fn receive_host(socket: &OwnedFd, with_user: bool) -> Result<HostFds, StepError> {
    let mut answer = [0_i32; 3];
    let mut control = Control([0; 64]);
    let mut part = libc::iovec { iov_base: answer.as_mut_ptr().cast(), iov_len: size_of_val(&answer) };
    let mut fds = Vec::new();
    // SAFETY: the buffers outlive the call; the control header is read within the length the kernel reports, and
    // each descriptor received belongs to nobody else.
    let received = unsafe {
        let mut message: libc::msghdr = zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut control).cast();
        message.msg_controllen = size_of::<Control>() as _;
        let received = loop {
            let received = libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC);
            if received >= 0 || !last_is_eintr() {
                break received;
            }
        };
        let header = libc::CMSG_FIRSTHDR(&message);
        if received > 0 && !header.is_null() && (*header).cmsg_type == libc::SCM_RIGHTS {
            let count = ((*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / size_of::<RawFd>();
            let data: *const c_void = libc::CMSG_DATA(header).cast();
            for index in 0..count {
                let fd = data.cast::<RawFd>().add(index).read_unaligned();
                fds.push(OwnedFd::from_raw_fd(fd));
            }
        }
        received
    };
    let failed = |step, index, error| StepError { step, index, error };
    if received != size_of_val(&answer) as isize {
        let error = if received < 0 { io::Error::last_os_error() } else { io::ErrorKind::BrokenPipe.into() };
        return Err(failed(Step::HandOver, 0, error));
    }
    if answer[0] >= 0 {
        let error = io::Error::from_raw_os_error(answer[2]);
        return Err(failed(Step::from_number(answer[0]), answer[1] as usize, error));
    }
    let mut fds = fds.into_iter();
    match (fds.next(), fds.next(), fds.next(), with_user) {
        (Some(net), Some(tun), user @ Some(_), true) => Ok(HostFds { user, net, tun }),
        (Some(net), Some(tun), None, false) => Ok(HostFds { user: None, net, tun }),
        _ => Err(failed(Step::HandOver, 0, io::ErrorKind::InvalidData.into())),
    }
}

impl Step {
    const ALL: [Self; 11] = [
        Self::Fork,
        Self::UserNamespace,
        Self::UidMap,
        Self::NetNamespace,
        Self::OpenTun,
        Self::MakeTun,
        Self::Interface,
        Self::Ip4,
        Self::Ip6,
        Self::Sysctl,
        Self::HandOver,
    ];

    fn from_number(number: i32) -> Self {
        Self::ALL.into_iter().find(|&step| step as i32 == number).unwrap_or(Self::HandOver)
    }
}

/// Makes `command` run inside a host.
pub(super) fn enter_on_exec(command: &mut Command, user: Option<Arc<OwnedFd>>, net: Arc<OwnedFd>) {
    let enter = move || {
        // The user namespace first: it gives the right to the other.
        if let Some(user) = &user {
            enter_namespace(user, libc::CLONE_NEWUSER)?;
        }
        enter_namespace(&net, libc::CLONE_NEWNET)
    };
    // SAFETY: between fork and exec `enter` makes system calls only.
    unsafe { command.pre_exec(enter) };
}

/// Moves the calling thread into a network namespace.
pub(super) fn enter_net(net: &OwnedFd) -> io::Result<()> {
    enter_namespace(net, libc::CLONE_NEWNET)
}

fn enter_namespace(namespace: &OwnedFd, kind: c_int) -> io::Result<()> {
    // SAFETY: no memory is involved, the descriptor is open.
    check(unsafe { libc::setns(namespace.as_raw_fd(), kind) })
}

/// Has the kernel kill the command when the *thread* that starts it ends, be it by a crash or a SIGKILL.
///
/// To be called after [`Host::command`](super::Host::command) has made the command: entering a namespace forgets it.
pub fn die_with_parent(command: &mut Command) {
    let parent = std::process::id();
    let bind = move || {
        // SAFETY: no memory is involved.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) })?;
        // SAFETY: as above.
        let orphaned = unsafe { libc::getppid() } as u32 != parent;
        if orphaned { Err(io::Error::from_raw_os_error(libc::ESRCH)) } else { Ok(()) }
    };
    // SAFETY: between fork and exec `bind` makes system calls only.
    unsafe { command.pre_exec(bind) };
}

/// The most that [`pass_from_3`] passes.
const PASSED_MOST: usize = 16;

/// The command has these open from 3 on, as a service manager passes them.
pub fn pass_from_3(command: &mut Command, fds: Vec<OwnedFd>) {
    assert!(fds.len() <= PASSED_MOST, "{} descriptors to be passed", fds.len());
    let pass = move || {
        let mut high = [0; PASSED_MOST];
        for (fd, high) in fds.iter().zip(&mut high) {
            // Out of the way first: one of them may be where another one is to go.
            // SAFETY: no memory is involved.
            *high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, 64) };
            check(*high)?;
        }
        for (to, high) in (3..).zip(&high[..fds.len()]) {
            // SAFETY: as above.
            check(unsafe { libc::dup2(*high, to) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec `pass` makes system calls only.
    unsafe { command.pre_exec(pass) };
}

/// Gives the calling thread timers without slack, and a low real-time priority where it may have one.
pub(crate) fn be_punctual(realtime: bool) {
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter outlives the call. Both are requests: what is not granted costs accuracy only.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as c_ulong);
        if realtime {
            libc::sched_setscheduler(0, libc::SCHED_RR | libc::SCHED_RESET_ON_FORK, &priority);
        }
    }
}

fn step(step: Step, result: c_int) -> Raw {
    if result < 0 { Err((step, 0)) } else { Ok(()) }
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn errno() -> c_int {
    // SAFETY: the location is this thread's and always valid.
    unsafe { *libc::__errno_location() }
}

fn last_is_eintr() -> bool {
    errno() == libc::EINTR
}

/// Kills the processes for which `is_meant` is true of their id, and says how many there were.
///
/// The process is pinned before it is looked at, so that it is that one which is killed, not a later one of that id.
pub(super) fn kill_if(pids: impl Iterator<Item = i32>, is_meant: impl Fn(i32) -> bool) -> usize {
    let mut killed = 0;
    for pid in pids {
        // SAFETY: no memory is involved.
        let pinned = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as RawFd;
        if pinned < 0 {
            continue;
        }
        // SAFETY: it was just opened and belongs to nobody else.
        let pinned = unsafe { OwnedFd::from_raw_fd(pinned) };
        if is_meant(pid) {
            let no_info = std::ptr::null::<libc::siginfo_t>();
            // SAFETY: the descriptor is open, and without a siginfo no memory is involved.
            unsafe {
                libc::syscall(libc::SYS_pidfd_send_signal, pinned.as_raw_fd(), libc::SIGKILL, no_info, 0);
            }
            killed += 1;
        }
    }
    killed
}

/// Packets this connection has sent again.
pub(super) fn tcp_retransmitted(stream: &std::net::TcpStream) -> io::Result<u32> {
    // SAFETY: tcp_info is plain data, for which zeroes are valid; the kernel writes no more than `len` bytes.
    unsafe {
        let mut info: libc::tcp_info = zeroed();
        let mut len = size_of::<libc::tcp_info>() as libc::socklen_t;
        let into = (&raw mut info).cast();
        check(libc::getsockopt(stream.as_raw_fd(), libc::IPPROTO_TCP, libc::TCP_INFO, into, &mut len))?;
        Ok(info.tcpi_total_retrans)
    }
}

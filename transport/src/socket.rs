//! Socket options. What the host forbids is left as it is, and said at debug level.

use std::io;
use std::os::fd::AsFd;
use std::sync::OnceLock;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, setsockopt, socket, sockopt};

use crate::config::{Congestion, Sockets};
use crate::fit::before_first;
use crate::sys::set_notsent_low;

/// For a lane, before it connects or as soon as it was accepted.
pub fn prepare_lane(socket: &impl AsFd, config: &Sockets) -> io::Result<()> {
    setsockopt(socket, sockopt::TcpNoDelay, &true)?;
    set_dscp(socket, config);
    set_notsent_low(socket.as_fd(), config.notsent_low_bytes)?;
    set_user_timeout(socket, config)?;
    if let Some(bounds) = &config.send_buffer_bytes {
        allowed("send buffer", setsockopt(socket, sockopt::SndBufForce, &(*bounds.start() as usize)));
    }
    if let Some(bytes) = config.receive_buffer_bytes {
        allowed("receive buffer", setsockopt(socket, sockopt::RcvBufForce, &(bytes as usize)));
    }
    if let Congestion::Named(name) = &config.congestion {
        setsockopt(socket, sockopt::TcpCongestion, &name.into())?;
    }
    before_first(socket);
    Ok(())
}

/// Whether this process may make send buffers longer than the kernel's limit.
pub fn sets_send_buffers() -> bool {
    static MAY: OnceLock<bool> = OnceLock::new();
    *MAY.get_or_init(|| {
        let socket = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
            .or_else(|_| socket(AddressFamily::Inet6, SockType::Stream, SockFlag::SOCK_CLOEXEC, None));
        socket.is_ok_and(|socket| setsockopt(&socket, sockopt::SndBufForce, &LEAST_BYTES).is_ok())
    })
}

/// The kernel makes no send buffer shorter.
const LEAST_BYTES: usize = 4608;

/// For a control connection.
pub fn prepare_control(socket: &impl AsFd, config: &Sockets) -> io::Result<()> {
    setsockopt(socket, sockopt::TcpNoDelay, &true)?;
    set_dscp(socket, config);
    set_user_timeout(socket, config)
}

/// One of the two is refused, as the socket is of the other family.
pub fn set_dscp(socket: &impl AsFd, config: &Sockets) {
    let Some(dscp) = config.dscp else { return };
    let field = i32::from(dscp & 63) << 2;
    let v4 = setsockopt(socket, sockopt::Ipv4Tos, &field);
    let v6 = setsockopt(socket, sockopt::Ipv6TClass, &field);
    if v4.is_err() {
        allowed("dscp", v6);
    }
}

fn set_user_timeout(socket: &impl AsFd, config: &Sockets) -> io::Result<()> {
    let ms = u32::try_from(config.user_timeout.as_millis()).unwrap_or(u32::MAX);
    Ok(setsockopt(socket, sockopt::TcpUserTimeout, &ms)?)
}

pub fn allowed(what: &str, result: nix::Result<()>) {
    if let Err(error) = result {
        tracing::debug!(%error, what, "the host does not allow this socket option; left as it is");
    }
}

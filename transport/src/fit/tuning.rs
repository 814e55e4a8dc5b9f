//! What the sockets of a bond's lanes are set to while they live. What is found of the path decides it, and a connection that
//! comes later gets the same.

use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};

use nix::sys::socket::{setsockopt, sockopt};

use crate::link::lock;
use crate::socket::allowed;

#[derive(Default)]
pub struct Tuning(Mutex<Settings>);

#[derive(Default)]
struct Settings {
    send_buffer_bytes: u32,
    congestion: Option<String>,
    /// Whether the host refused this one.
    refused: Option<String>,
}

impl Tuning {
    /// For a connection that just came.
    pub fn apply(&self, socket: &OwnedFd) {
        let mut settings = lock(&self.0);
        if settings.send_buffer_bytes > 0 {
            set_send_buffer(socket, settings.send_buffer_bytes);
        }
        if let Some(name) = settings.congestion.take_if(|name| !set_congestion(socket, name)) {
            settings.refused = Some(name);
        }
    }

    /// Longer send buffers for all, and those that will come. They do not shrink.
    ///
    /// What `sockets` gives is not complete before the settings are locked: one that comes just now would be neither told nor told of.
    pub fn raise_send_buffers(&self, bytes: u32, sockets: impl FnOnce() -> Vec<Arc<OwnedFd>>) {
        let mut settings = lock(&self.0);
        if bytes > settings.send_buffer_bytes {
            settings.send_buffer_bytes = bytes;
            sockets().iter().for_each(|socket| set_send_buffer(socket, bytes));
        }
    }

    /// Another congestion control for all, and those that will come. False: the host refuses it, or there is none yet to ask it for.
    pub fn set_congestion(&self, name: &str, sockets: impl FnOnce() -> Vec<Arc<OwnedFd>>) -> bool {
        let mut settings = lock(&self.0);
        if settings.refused.as_deref() == Some(name) {
            return false;
        }
        if settings.congestion.as_deref() == Some(name) {
            return true;
        }
        let sockets = sockets();
        if sockets.is_empty() {
            return false;
        }
        for socket in sockets {
            if !set_congestion(&socket, name) {
                settings.refused = Some(name.to_owned());
                return false;
            }
        }
        settings.congestion = Some(name.to_owned());
        true
    }

    /// Makes these forget what their congestion control noted, all but their windows; `by` is another one. If one is left
    /// with that, none is taken to be set.
    pub fn renew(&self, sockets: &[Arc<OwnedFd>], by: &str) {
        let mut settings = lock(&self.0);
        let Some(name) = settings.congestion.clone() else { return };
        for socket in sockets {
            if set_congestion(socket, by) && !set_congestion(socket, &name) {
                settings.congestion = None;
            }
        }
    }
}

fn set_send_buffer(socket: &OwnedFd, bytes: u32) {
    allowed("send buffer", setsockopt(socket, sockopt::SndBufForce, &(bytes as usize)));
}

fn set_congestion(socket: &OwnedFd, name: &str) -> bool {
    let result = setsockopt(socket, sockopt::TcpCongestion, &name.into());
    allowed("congestion control", result);
    result.is_ok()
}

#[cfg(test)]
mod tests {
    use nix::sys::socket::getsockopt;

    use super::*;

    fn socket() -> Arc<OwnedFd> {
        Arc::new(std::net::TcpListener::bind("127.0.0.1:0").unwrap().into())
    }

    fn congestion(socket: &OwnedFd) -> String {
        let name = getsockopt(socket, sockopt::TcpCongestion).unwrap();
        name.to_string_lossy().trim_end_matches('\0').to_owned()
    }

    #[test]
    fn what_comes_later_is_set_as_the_others_are() {
        let (tuning, first, second) = (Tuning::default(), socket(), socket());
        let before = congestion(&first);
        tuning.apply(&first);
        assert_eq!(congestion(&first), before);
        assert!(tuning.set_congestion("reno", || vec![first.clone()]));
        tuning.apply(&second);
        assert_eq!((congestion(&first), congestion(&second)), ("reno".into(), "reno".into()));
        tuning.renew(std::slice::from_ref(&first), "cubic");
        tuning.renew(std::slice::from_ref(&second), "none-such");
        assert_eq!((congestion(&first), congestion(&second)), ("reno".into(), "reno".into()));
        assert!(!tuning.set_congestion("none-such", Vec::new), "nobody was asked");
        assert!(!tuning.set_congestion("none-such", || vec![first.clone()]));
        tuning.apply(&second);
        assert_eq!((congestion(&first), congestion(&second)), ("reno".into(), "reno".into()));
    }

    #[test]
    fn a_socket_that_stays_with_another_control_is_asked_for_its_own_again() {
        let (tuning, socket) = (Tuning::default(), socket());
        assert!(tuning.set_congestion("reno", || vec![socket.clone()]));
        lock(&tuning.0).congestion = Some("none-such".into());
        tuning.renew(std::slice::from_ref(&socket), "cubic");
        assert_eq!(congestion(&socket), "cubic");
        assert!(!tuning.set_congestion("none-such", || vec![socket.clone()]), "it is not what is set");
        assert!(tuning.set_congestion("reno", || vec![socket.clone()]));
        assert_eq!(congestion(&socket), "reno");
    }

    #[test]
    fn send_buffers_grow_where_the_process_may_and_do_not_shrink() {
        let (tuning, socket) = (Tuning::default(), socket());
        let length = || getsockopt(&socket, sockopt::SndBuf).unwrap();
        let before = length();
        let set = |bytes| tuning.raise_send_buffers(bytes, || vec![socket.clone()]);
        set(3 << 20);
        let grown = length();
        assert!(grown == 6 << 20 || grown == before, "{grown}");
        set(1 << 20);
        assert_eq!(length(), grown);
    }
}

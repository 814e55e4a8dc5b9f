//! The daemon's local interface: newline-delimited JSON over a unix socket, in QMP's manner.
//!
//! ```text
//! ◀ {"hikyaku": {"version": "0.1.0", "capabilities": [...]}}
//! ▶ {"execute": "migrate", "arguments": {"guest": "web", "qmp": "/run/web.qmp", "to": "osaka"}, "id": 1}
//! ◀ {"return": {"id": "4f0c…"}, "id": 1}
//! ▶ {"execute": "subscribe", "id": 2}
//! ◀ {"event": "progress", "v": 1, "data": {…}}
//! ```
//!
//! Access is the socket's mode and group; the caller's uid is logged with every command that changes something.

pub mod check;
pub mod client;
pub mod link;
pub mod server;
pub mod wire;

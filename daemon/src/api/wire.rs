//! The API's words. Fields are only ever added; a changed meaning raises [`SCHEMA`].

use super::check::CheckArguments;
use super::link::LinkArguments;
use crate::hooks::Hook;
use crate::id::Id;
use crate::outcome::{Ending, Outcome, Whereabouts};
use crate::ownership::Phase;
use crate::report::Report;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::PathBuf;

pub const SCHEMA: u32 = 1;

/// Longer request lines are refused.
pub const MAX_LINE_BYTES: usize = 64 << 10;

#[derive(Debug, Serialize, Deserialize)]
pub struct Greeting {
    pub hikyaku: GreetingBody,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct GreetingBody {
    pub version: String,
    pub schema: u32,
    #[serde(default)]
    pub capabilities: Vec<String>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Request {
    #[serde(flatten)]
    pub command: Command,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "execute", content = "arguments", rename_all = "kebab-case")]
pub enum Command {
    Migrate(MigrateArguments),
    Receive(ReceiveArguments),
    List,
    Status(Which),
    Cancel(Which),
    Resolve(ResolveArguments),
    Set(SetArguments),
    Link(LinkArguments),
    Check(CheckArguments),
    Carry(CarryArguments),
    LibvirtCheck(crate::libvirt::check::Arguments),
    LibvirtHook(crate::libvirt::hook::Arguments),
    Subscribe,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MigrateArguments {
    pub guest: String,
    pub qmp: PathBuf,
    pub to: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    /// Left out: 10 minutes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_ms: Option<u64>,
    #[serde(default)]
    pub on_deadline: OnDeadline,
    /// Of the guest's CPU time, at most, with [`OnDeadline::Throttle`]. Left out: 80.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub throttle_max_percent: Option<u8>,
    /// By name. Left out: `adaptive`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    #[serde(default)]
    pub switchover: Switchover,
    /// Relay QEMU's stream as it is.
    #[serde(default)]
    pub raw: bool,
    #[serde(default)]
    pub delta: Delta,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes_per_s: Option<u64>,
    #[serde(default)]
    pub priority: Priority,
}

/// A guest that libvirt is to move.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CarryArguments {
    pub guest: String,
    pub to: String,
    /// The stop aimed at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub downtime_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes_per_s: Option<u64>,
    #[serde(default)]
    pub priority: Priority,
}

/// Sockets are there, at both hosts: `DIRECTORY/ctl` for libvirt, `ram` for the guest's memory, `nbd` for its disks.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Carrying {
    pub id: Id,
    pub directory: PathBuf,
    /// The peer lets this host's libvirt talk to its own by `ctl`.
    pub rpc: bool,
}

/// How a migration shares the link with others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sharing {
    /// On the wire; `None`: only the peer's and the host's limits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit_bytes_per_s: Option<u64>,
    #[serde(default)]
    pub priority: Priority,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Priority {
    /// A quarter of what a normal one gets.
    Low,
    #[default]
    Normal,
    /// Four times what a normal one gets.
    High,
}

/// What is left out stays as it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SetArguments {
    /// As in [`Which`].
    pub id: String,
    /// `null`: no limit.
    #[serde(default, deserialize_with = "given", skip_serializing_if = "Option::is_none")]
    pub limit_bytes_per_s: Option<Option<u64>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub priority: Option<Priority>,
}

/// Tells `null` from what is left out.
fn given<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<Option<u64>>, D::Error> {
    Option::deserialize(d).map(Some)
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum OnDeadline {
    /// Stop the guest, however long the rest takes.
    Force,
    /// Take more and more of its CPU time, as much as --throttle-max allows; give up if that does not help either.
    Throttle,
    /// Give up; the guest runs on at the source.
    #[default]
    Abort,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Switchover {
    /// Half a round trip: the guest is let go as soon as its state is on the way.
    #[default]
    Fast,
    /// One and a half round trips: the destination confirms that it has loaded everything first.
    Safe,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Delta {
    /// Where what was sent is still at hand and the delta is smaller.
    #[default]
    Auto,
    Off,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReceiveArguments {
    pub guest: String,
    pub qmp: PathBuf,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Leave the guest stopped after its arrival.
    #[serde(default)]
    pub paused: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Which {
    /// The id, or any unique beginning of it, or a guest's name.
    pub id: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ResolveArguments {
    /// As in [`Which`].
    pub id: String,
    pub guest_is: Resolution,
    /// The other host cannot run the guest: somebody has made sure of it.
    pub fenced: bool,
}

/// Where a guest that is in doubt goes on, as a person says who knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Resolution {
    /// On the host that is told.
    Here,
    /// On the other one.
    There,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Reply {
    #[serde(rename = "return", default, skip_serializing_if = "Option::is_none")]
    pub value: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorBody>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<Value>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ErrorBody {
    pub class: Ending,
    pub desc: String,
    pub guest: Whereabouts,
}

impl From<Outcome> for ErrorBody {
    fn from(outcome: Outcome) -> ErrorBody {
        let desc = match outcome.advice.as_str() {
            "" => outcome.desc,
            advice => format!("{}. {advice}", outcome.desc),
        };
        ErrorBody { class: outcome.ending, desc, guest: outcome.guest }
    }
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Started {
    pub id: Id,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    pub event: EventKind,
    pub v: u32,
    pub data: Status,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventKind {
    Progress,
    Phase,
    /// The peer is not reached any more; it is being sought. `link` says why.
    LinkDown,
    /// It is reached again.
    LinkUp,
    Finished,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    Source,
    Destination,
}

/// A migration as one side sees it now. Byte counts are of payload; the wire adds headers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub id: Id,
    pub guest: String,
    pub role: Role,
    pub peer: Option<String>,
    pub phase: Phase,
    pub elapsed_ms: u64,
    #[serde(default)]
    pub numbers: Numbers,
    /// The outage that is on, or the last one; not there if there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<Outage>,
    /// A hook that the move waits for just now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hook: Option<HookWait>,
    /// How the stop was spent; there once the guest has been stopped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop: Option<StopTimes>,
    /// At the destination: the last source whose guest was refused before anything was touched, and why. The guest is awaited on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub turned_away: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<Outcome>,
    /// At the source, of a move that was made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub report: Option<Report>,
    /// At the source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sharing: Option<Sharing>,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct HookWait {
    pub name: Hook,
    /// So far.
    pub for_ms: u64,
    /// It is ended when it has taken so long.
    pub timeout_ms: u64,
}

/// A time in which the peer could not be reached.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outage {
    /// It lasts.
    pub down: bool,
    pub why: String,
    /// So far, or in all.
    pub for_ms: u64,
    /// The migration is given up when it has lasted so long.
    pub timeout_ms: u64,
    /// Of this migration, this one included.
    pub count: u32,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Numbers {
    /// Bitmap syncs of the guest's QEMU so far.
    pub pass: u64,
    pub pages_total: u64,
    /// Pages of the guest that have crossed at least once (source), or arrived (destination).
    pub pages_done: u64,
    /// Page contents waiting here to be sent.
    pub staged_bytes: u64,
    /// Encoded bytes given to the link so far.
    pub sent_bytes: u64,
    /// Of which the other side has them in its QEMU.
    pub acked_bytes: u64,
    /// What those bytes were before encoding.
    pub raw_bytes: u64,
    /// Contents that were replaced by newer ones before they were sent.
    pub superseded_pages: u64,
    pub goodput_bytes_per_s: u64,
    pub rtt_us: u64,
    /// How long the guest would stand still if it were stopped now; 0 = not known yet.
    pub predicted_stop_ms: u64,
    pub dirty_bytes_per_s: u64,
    /// Pages that went as a delta to what was sent before.
    pub delta_pages: u64,
    /// Of the guest's CPU time, what its QEMU takes from it now so that it dirties less.
    pub throttle_percent: u64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct StopTimes {
    /// From the order to stop until QEMU had obeyed.
    pub pause_ms: f64,
    /// Until a sync found nothing dirty.
    pub drain_ms: f64,
    /// Until QEMU had given its device state, and the rest of the pages had been sent.
    pub tail_ms: f64,
    /// Of it, until QEMU had given its device state.
    pub save_ms: f64,
    /// Until GO had left.
    pub go_ms: f64,
    /// Until the verdict was here.
    pub verdict_ms: f64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_read_as_people_write_it() {
        let line =
            r#"{"execute": "migrate", "arguments": {"guest": "web", "qmp": "/q", "to": "osaka"}, "id": 1}"#;
        let request: Request = serde_json::from_str(line).unwrap();
        let Command::Migrate(arguments) = request.command else { panic!("{request:?}") };
        assert_eq!((arguments.policy, arguments.switchover), (None, Switchover::Fast));
        assert_eq!((arguments.deadline_ms, arguments.on_deadline), (None, OnDeadline::Abort));
        assert_eq!(request.id, Some(Value::from(1)));
        let list: Request = serde_json::from_str(r#"{"execute": "list"}"#).unwrap();
        assert!(matches!(list.command, Command::List));
    }

    #[test]
    fn no_limit_is_told_from_a_limit_that_stays() {
        let set = |arguments: &str| {
            let line = format!(r#"{{"execute": "set", "arguments": {arguments}}}"#);
            let request: Request = serde_json::from_str(&line).unwrap();
            // And as the command writes it.
            let again = serde_json::from_str(&serde_json::to_string(&request).unwrap()).unwrap();
            let Request { command: Command::Set(set), .. } = again else { panic!("{request:?}") };
            (set.limit_bytes_per_s, set.priority)
        };
        assert_eq!(set(r#"{"id": "w", "priority": "low"}"#), (None, Some(Priority::Low)));
        assert_eq!(set(r#"{"id": "w", "limit_bytes_per_s": null}"#), (Some(None), None));
        assert_eq!(set(r#"{"id": "w", "limit_bytes_per_s": 9000000}"#), (Some(Some(9_000_000)), None));
    }

    #[test]
    fn a_misspelt_argument_is_refused() {
        let line =
            r#"{"execute": "migrate", "arguments": {"guest": "w", "qmp": "/q", "to": "o", "downtim_ms": 3}}"#;
        assert!(serde_json::from_str::<Request>(line).unwrap_err().to_string().contains("downtim_ms"));
    }
}

//! What libvirt says through its hook for QEMU, and when a guest is turned away there: that is the only place before anything moves.
//!
//! ```text
//!  libvirtd ─▶ hooks/qemu.d/… GUEST migrate begin, XML ─▶ hikyaku-libvirt-hook ─▶ hikyakud: does it fit, may it come?
//!           ◀── not 0: libvirt refuses the guest, with these words ──┘ (0 as well if the daemon does not answer within a second)
//! ```

use crate::api::client::{Client, ClientError};
use crate::api::wire::{Command, Role};
use crate::config;
use crate::daemon::Daemon;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::mpsc::channel;
use std::time::Duration;

/// libvirt waits for its hook, and the guest with it.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
/// Of a guest's description. One that is longer is not looked into.
const XML_BYTES_MOST: u64 = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    pub guest: String,
    /// As libvirt has them: `migrate begin -`, `release end migrated`.
    pub operation: String,
    pub sub_operation: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub extra: Option<String>,
    /// What the guest's description says that it takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_bytes: Option<u64>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct Answer {
    /// It is not to come, for this reason.
    pub veto: Option<String>,
}

/// At the daemon.
pub fn told(daemon: &Daemon, arguments: &Arguments) -> Answer {
    let Arguments { guest, operation, sub_operation, extra, .. } = arguments;
    tracing::info!(%guest, %operation, %sub_operation, ?extra, "libvirt's hook");
    if (operation.as_str(), sub_operation.as_str()) != ("migrate", "begin") {
        return Answer { veto: None };
    }
    let comes_by_us = daemon.registry.unfinished().iter().any(|entry| {
        let status = entry.status();
        status.guest == *guest && matches!(status.role, Role::Destination)
    });
    let veto = turned_away(&daemon.config.libvirt, arguments.memory_bytes, available(), comes_by_us);
    if let Some(why) = &veto {
        tracing::warn!(%guest, %why, "libvirt is told to refuse it");
    }
    Answer { veto }
}

fn turned_away(
    config: &config::Libvirt,
    takes: Option<u64>,
    available: Option<u64>,
    comes_by_us: bool,
) -> Option<String> {
    if config.only_carried && !comes_by_us {
        return Some(
            "hikyaku: it does not come by hikyaku, and nothing else is let in here ([libvirt] only_carried)"
                .into(),
        );
    }
    let (takes, available) = takes.zip(available).filter(|_| config.room > 0)?;
    let mib = |bytes: u64| bytes >> 20;
    (available < takes.saturating_add(config.room)).then(|| {
        format!(
            "hikyaku: it takes {} MiB, {} MiB of memory are available here, and {} MiB are to be left ([libvirt] room)",
            mib(takes),
            mib(available),
            mib(config.room)
        )
    })
}

/// Memory that this host could give to a guest.
fn available() -> Option<u64> {
    let info = std::fs::read_to_string("/proc/meminfo").ok()?;
    let kib = info.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(kib.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

/// Of a guest's description, in which libvirt writes it in KiB.
fn memory_bytes(xml: &str) -> Option<u64> {
    // Those are set apart from what is available.
    if xml.contains("<hugepages") {
        return None;
    }
    let (_, rest) =
        xml.split_once("<memory unit='KiB'>").or_else(|| xml.split_once("<memory unit=\"KiB\">"))?;
    rest.split_once('<')?.0.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The program. It calls no libvirt, and what goes wrong with it stops no guest.
pub fn main() -> ExitCode {
    let mut words = std::env::args().skip(1);
    let Some(((guest, operation), sub_operation)) = words.next().zip(words.next()).zip(words.next()) else {
        eprintln!(
            "usage: hikyaku-libvirt-hook GUEST OPERATION SUB-OPERATION EXTRA, by libvirt: put it into /etc/libvirt/hooks/qemu.d"
        );
        return ExitCode::SUCCESS;
    };
    // libvirt waits until it is read.
    let mut xml = Vec::new();
    let _ = std::io::stdin().take(XML_BYTES_MOST).read_to_end(&mut xml);
    let arguments = Arguments {
        guest,
        operation,
        sub_operation,
        extra: words.next(),
        memory_bytes: memory_bytes(&String::from_utf8_lossy(&xml)),
    };
    let api =
        std::env::var_os("HIKYAKU_API").map_or_else(|| PathBuf::from(crate::DEFAULT_API), PathBuf::from);
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let asked =
            Client::connect(&api).and_then(|mut client| client.execute(Command::LibvirtHook(arguments)));
        let _ = tell.send(asked);
    });
    let answer: Result<Answer, ClientError> = match told.recv_timeout(ANSWER_WITHIN) {
        Ok(answer) => answer,
        Err(_) => return ExitCode::SUCCESS,
    };
    match answer {
        Ok(Answer { veto: Some(why) }) => {
            eprintln!("{why}");
            ExitCode::FAILURE
        }
        Ok(Answer { veto: None }) | Err(_) => ExitCode::SUCCESS,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn a_guest_that_does_not_fit_is_turned_away() {
        let config = config::Libvirt { room: 2 * GIB, ..config::Libvirt::default() };
        let why = |takes, available| turned_away(&config, takes, available, false);
        assert_eq!(why(Some(4 * GIB), Some(6 * GIB)), None);
        let veto = why(Some(4 * GIB), Some(6 * GIB - 1)).unwrap();
        assert!(
            veto.contains("4096 MiB") && veto.contains("6143 MiB") && veto.contains("2048 MiB"),
            "{veto}"
        );
        assert_eq!(why(None, Some(0)), None, "what is not known stops nobody");
        let any = config::Libvirt::default();
        assert_eq!(turned_away(&any, Some(4 * GIB), Some(0), false), None);
    }

    #[test]
    fn only_those_that_we_carry_are_let_in_where_that_is_said() {
        let config = config::Libvirt { only_carried: true, ..config::Libvirt::default() };
        assert!(turned_away(&config, None, None, false).is_some());
        assert_eq!(turned_away(&config, None, None, true), None);
    }

    #[test]
    fn a_description_says_what_its_guest_takes() {
        assert_eq!(memory_bytes("<domain>\n  <memory unit='KiB'>4194304</memory>"), Some(4 * GIB));
        assert_eq!(memory_bytes("<memory unit='KiB'>x</memory>"), None);
        assert_eq!(memory_bytes("<memory unit='KiB'>18446744073709551615</memory>"), None);
        assert_eq!(memory_bytes(""), None);
        let huge = "<memory unit='KiB'>4194304</memory><memoryBacking><hugepages/></memoryBacking>";
        assert_eq!(memory_bytes(huge), None);
    }
}

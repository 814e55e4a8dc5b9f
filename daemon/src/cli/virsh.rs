//! `hikyaku virsh-migrate`: libvirt moves the guest, and what its two sides say to each other is carried.

use super::follow::follow;
use super::{CliError, subscribe};
use crate::api::client::Client;
use crate::api::wire::{CarryArguments, Carrying, Command, Which};
use crate::outcome::{Ending, Whereabouts};
use crate::sys;
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::process::{self, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

/// From virsh's end until the daemon has seen what that means.
const SEEN_WITHIN: Duration = Duration::from_secs(2);
/// From the end of the migration until virsh has.
const VIRSH_ENDS_WITHIN: Duration = Duration::from_secs(10);
/// Of what virsh says, the last.
const WORDS_BYTES: u64 = 4096;

#[derive(Debug, thiserror::Error)]
pub enum VirshError {
    #[error("virsh could not be run: {0}; {guest}", guest = Whereabouts::Untouched)]
    Start(std::io::Error),
    #[error(
        "{0} does not let this host's libvirt talk to its own; {guest}. Allow it there: add \"libvirt\" to what this peer is allowed (hikyakud's configuration)",
        guest = Whereabouts::Untouched
    )]
    NotAllowed(String),
    #[error("{0} is hikyaku's own: give it before virsh's options; {guest}", guest = Whereabouts::Untouched)]
    Misplaced(&'static str),
}

impl VirshError {
    pub fn ending(&self) -> Ending {
        match self {
            VirshError::Start(_) => Ending::Other,
            VirshError::NotAllowed(_) => Ending::NotAllowed,
            VirshError::Misplaced(_) => Ending::Usage,
        }
    }
}

/// Not to be given behind virsh's, which would take them for its own and has none of that name.
const OURS: [&str; 5] = ["--to", "--disks", "--downtime", "--limit", "--priority"];
/// With one of them the guest's memory is not looked into.
const UNREAD: [&str; 4] = ["--parallel", "--tls", "--postcopy", "--tunnelled"];

/// What virsh is to do besides.
pub struct Wish<'a> {
    pub p2p: bool,
    pub disks: bool,
    pub options: &'a [OsString],
}

impl Wish<'_> {
    fn has(&self, option: &str) -> bool {
        self.options.iter().filter_map(|word| word.to_str()).any(|word| {
            word.strip_prefix(option).is_some_and(|value| value.is_empty() || value.starts_with('='))
        })
    }
}

pub fn migrate(cli: &super::Cli, arguments: CarryArguments, wish: &Wish<'_>) -> Result<Ending, CliError> {
    if let Some(ours) = OURS.into_iter().find(|option| wish.has(option)) {
        return Err(VirshError::Misplaced(ours).into());
    }
    for option in UNREAD.into_iter().filter(|option| wish.has(option)) {
        eprintln!(
            "hikyaku: {}: with {option} its memory is carried as it is: no deltas, and when it is stopped is QEMU's to say",
            arguments.guest
        );
    }
    let mut events = subscribe(cli)?;
    let carrying: Carrying = Client::connect(&cli.api)?.execute(Command::Carry(arguments.clone()))?;
    let end = || {
        let cancel = Command::Cancel(Which { id: carrying.id.to_string() });
        // One that has ended cannot be.
        let _ = Client::connect(&cli.api).and_then(|mut client| client.execute::<serde_json::Value>(cancel));
    };
    if !carrying.rpc {
        end();
        return Err(VirshError::NotAllowed(arguments.to).into());
    }
    let mut command = process::Command::new("virsh");
    command.args(words(&arguments.guest, &carrying.directory, wish));
    let virsh = match start(command) {
        Ok(virsh) => virsh,
        Err(error) => {
            end();
            return Err(VirshError::Start(error).into());
        }
    };
    // virsh ends its job when it is interrupted, and the daemon tells what came of that. Not before it has been started: it would inherit that.
    sys::ignore_interrupts();
    let (ended, api, id) = (virsh.ended, cli.api.clone(), carrying.id);
    let (tell, told) = channel();
    std::thread::spawn(move || {
        let Ok((status, words)) = ended.recv() else { return };
        if !status.success() {
            std::thread::sleep(SEEN_WITHIN);
            let cancel = Command::Cancel(Which { id: id.to_string() });
            let _ = Client::connect(&api).and_then(|mut client| client.execute::<serde_json::Value>(cancel));
        }
        let _ = tell.send((status, words));
    });
    let ending = match follow(&mut events, carrying.id, None, cli.json) {
        Ok(ending) => ending,
        Err(error) => {
            eprintln!("hikyaku: {error}; virsh goes on, and is waited for");
            if let Ok((status, words)) = told.recv() {
                eprintln!("hikyaku: virsh says: {}", said(&words, status));
            }
            return Err(error);
        }
    };
    if ending == Ending::InDoubt {
        return Ok(ending);
    }
    match told.recv_timeout(VIRSH_ENDS_WITHIN) {
        Ok((status, _)) if status.success() => Ok(ending),
        Ok((status, words)) => {
            eprintln!("hikyaku: virsh says: {}", said(&words, status));
            Ok(if ending == Ending::Moved { Ending::Other } else { ending })
        }
        Err(_) => {
            eprintln!("hikyaku: virsh has not ended yet (it is left to itself)");
            Ok(ending)
        }
    }
}

/// virsh's command line.
pub fn words(guest: &str, directory: &Path, wish: &Wish<'_>) -> Vec<OsString> {
    let at = |name: &str| format!("unix://{}", directory.join(name).display());
    let mut words: Vec<OsString> = Vec::new();
    if std::env::var_os("LIBVIRT_DEFAULT_URI").is_none() {
        words.extend(["-c", "qemu:///system"].map(OsString::from));
    }
    words.extend(["migrate", "--live"].map(OsString::from));
    if wish.p2p {
        words.push("--p2p".into());
    }
    let to = format!("qemu+unix:///system?socket={}", directory.join("ctl").display());
    words.extend(["--domain".into(), guest.into(), "--desturi".into(), to.into()]);
    words.extend(["--migrateuri".into(), at("ram").into()]);
    if wish.disks {
        words.extend(["--copy-storage-all".into(), "--disks-uri".into(), at("nbd").into()]);
    }
    words.extend(wish.options.iter().cloned());
    words
}

/// For whoever runs it himself.
pub fn show(guest: &str, carrying: &Carrying, json: bool) -> std::io::Result<()> {
    use std::io::Write;
    let mut out = std::io::stdout().lock();
    if json {
        serde_json::to_writer(&mut out, carrying)?;
        return writeln!(out);
    }
    let line = |disks| {
        let words = words(guest, &carrying.directory, &Wish { p2p: false, disks, options: &[] });
        let quoted: Vec<_> = words.iter().map(|word| quote(&word.to_string_lossy())).collect();
        quoted.join(" ")
    };
    writeln!(out, "{guest} can be moved by libvirt now, once, within 10 minutes:")?;
    writeln!(out, "  virsh {}", line(false))?;
    writeln!(out, "with its disks:")?;
    writeln!(out, "  virsh {}", line(true))?;
    if !carrying.rpc {
        writeln!(
            out,
            "the peer does not let this host's libvirt talk to its own by {}/ctl: give another --desturi, by which virsh reaches it",
            carrying.directory.display()
        )?;
    }
    writeln!(out, "See how it goes with: hikyaku watch {}", carrying.id.short())
}

/// As a shell reads it.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

struct Virsh {
    ended: Receiver<(ExitStatus, String)>,
}

fn start(mut command: process::Command) -> std::io::Result<Virsh> {
    // No pipe: virsh would end, in the middle of its calls, when it says something and this command has ended.
    let mut words = File::from(memfd_create(c"virsh", MFdFlags::MFD_CLOEXEC)?);
    let mut child = command.stdout(Stdio::null()).stderr(words.try_clone()?).spawn()?;
    let (tell, ended) = channel();
    std::thread::spawn(move || {
        let Ok(status) = child.wait() else { return };
        let length = words.metadata().map_or(0, |meta| meta.len());
        let mut last = Vec::new();
        let _ = words.seek(SeekFrom::Start(length.saturating_sub(WORDS_BYTES)));
        let _ = words.read_to_end(&mut last);
        let _ = tell.send((status, String::from_utf8_lossy(&last).into_owned()));
    });
    Ok(Virsh { ended })
}

fn said(words: &str, status: ExitStatus) -> String {
    let words: Vec<_> = words.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    match words.is_empty() {
        true => format!("nothing, and ends with {status}"),
        false => words.join("; ").replace(|c: char| c.is_control(), " "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn virsh_is_told_where_everything_is() {
        let options = ["--verbose", "--unsafe"].map(OsString::from);
        let directory = Path::new("/run/hikyaku/m/0123");
        let line = |p2p, disks| {
            let words = words("web", directory, &Wish { p2p, disks, options: &options });
            words
                .iter()
                .map(|word| word.to_str().unwrap())
                .skip_while(|word| *word != "migrate")
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(
            line(false, false),
            "migrate --live --domain web --desturi qemu+unix:///system?socket=/run/hikyaku/m/0123/ctl \
             --migrateuri unix:///run/hikyaku/m/0123/ram --verbose --unsafe"
        );
        assert_eq!(
            line(true, true),
            "migrate --live --p2p --domain web --desturi qemu+unix:///system?socket=/run/hikyaku/m/0123/ctl \
             --migrateuri unix:///run/hikyaku/m/0123/ram --copy-storage-all \
             --disks-uri unix:///run/hikyaku/m/0123/nbd --verbose --unsafe"
        );
    }

    #[test]
    fn an_option_of_ours_is_found_among_virshs() {
        let options = ["--timeout", "3", "--limit=60mbit", "--priorityx"].map(OsString::from);
        let wish = Wish { p2p: false, disks: false, options: &options };
        assert_eq!(OURS.into_iter().filter(|option| wish.has(option)).collect::<Vec<_>>(), ["--limit"]);
    }

    #[test]
    fn what_virsh_says_is_one_line() {
        let status = process::Command::new("false").status().unwrap();
        assert_eq!(said("error: one\n\nerror: two\n", status), "error: one; error: two");
        assert!(said("\n", status).starts_with("nothing"));
    }
}

//! What `/etc/hosts` and libvirt's `qemu.conf` are to say for guests to leave and to land: one block of lines in each, which is ours.

use super::landing::Landing;
use crate::config::Config;
use std::fs;
use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

pub const HOSTS: &str = "/etc/hosts";
pub const QEMU_CONF: &str = "/etc/libvirt/qemu.conf";
const BEGIN: &str = "# hikyaku: begin (written by: hikyaku libvirt setup --apply)";
const END: &str = "# hikyaku: end";
/// Ports that a host is given which has none yet.
const FIRST_PORT: u16 = 49152;
const PORTS: u16 = 16;

/// Each peer's alias is this host itself.
pub fn hosts(config: &Config) -> Vec<String> {
    let landings = config.peers.iter().filter_map(|peer| peer.landing.as_ref());
    landings.map(|landing| format!("{} {}", landing.address, landing.alias)).collect()
}

/// What of libvirt's configuration says where guests land, and that a connection is not dead because the link is down for a while.
pub fn qemu_conf(landing: &Landing) -> Vec<(&'static str, String)> {
    vec![
        ("migration_host", format!("\"{}\"", landing.alias)),
        ("migration_address", format!("\"{}\"", landing.address)),
        ("migration_port_min", landing.ports.first().to_string()),
        ("migration_port_max", landing.ports.last().to_string()),
        ("keepalive_interval", "-1".to_owned()),
    ]
}

/// A landing for a host that has none: nobody else's ports.
pub fn landing_for(alias: &str, config: &Config) -> Result<Landing, String> {
    let taken: Vec<&Landing> = config.peers.iter().filter_map(|peer| peer.landing.as_ref()).collect();
    (0..)
        .map(|n: u16| (Ipv4Addr::new(127, 77, 0, 1 + n as u8), FIRST_PORT.checked_add(n * PORTS)))
        .take(128)
        .filter_map(|(address, first)| Some((address, first?)))
        .find_map(|(address, first)| {
            let ports = format!("{first}-{}", first.checked_add(PORTS - 1)?);
            let text = format!("alias = \"{alias}\"\naddress = \"{address}\"\nports = \"{ports}\"\n");
            let landing: Landing = toml::from_str(&text).ok()?;
            let free = taken.iter().all(|other| {
                other.address != landing.address
                    && !other.ports.all().any(|port| landing.ports.contains(port))
            });
            free.then_some(landing)
        })
        .ok_or_else(|| "all ports above 49152 are taken by peers' landings".to_owned())
}

/// As the configuration has it.
pub fn in_configuration(landing: &Landing) -> String {
    format!(
        "landing = {{ alias = \"{}\", address = \"{}\", ports = \"{}\" }}",
        landing.alias, landing.address, landing.ports
    )
}

/// The value of `key` in a file of libvirt's, without quotes: of several the first, as libvirt takes it.
pub fn value<'a>(text: &'a str, key: &str) -> Option<&'a str> {
    assignments(text).find(|(_, its, _)| *its == key).map(|(_, _, value)| value)
}

/// Number of the line, key, value.
fn assignments(text: &str) -> impl Iterator<Item = (usize, &str, &str)> {
    text.lines().enumerate().filter_map(|(n, line)| {
        let line = line.trim();
        if line.starts_with('#') {
            return None;
        }
        let (key, value) = line.split_once('=')?;
        let value = value.trim();
        let quoted = |quote| value.strip_prefix(quote).and_then(|rest| rest.split(quote).next());
        let plain = || value.split('#').next().unwrap_or_default().trim();
        Some((n + 1, key.trim(), quoted('"').or_else(|| quoted('\'')).unwrap_or_else(plain)))
    })
}

#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("{path}: {source}")]
    File { path: PathBuf, source: io::Error },
    #[error(
        "{path}, line {line}, says what {key} is, and of two lines libvirt takes the first: remove it there. Nothing was changed"
    )]
    Said { path: PathBuf, line: usize, key: String },
    #[error("{path}: a block of ours begins there and does not end. Nothing was changed")]
    Block { path: PathBuf },
}

/// What a file becomes: with our block in place of the one that it has, or at its end. No lines: without.
fn with_block(text: &str, lines: &[String]) -> Option<String> {
    let mut out = String::new();
    let (mut within, mut written) = (false, lines.is_empty());
    let mut write = |out: &mut String| {
        if !std::mem::replace(&mut written, true) {
            for line in [BEGIN].into_iter().chain(lines.iter().map(String::as_str)).chain([END]) {
                out.push_str(line);
                out.push('\n');
            }
        }
    };
    for line in text.lines() {
        match line {
            BEGIN => within = true,
            END if within => {
                within = false;
                write(&mut out);
            }
            _ if within => {}
            line => {
                out.push_str(line);
                out.push('\n');
            }
        }
    }
    write(&mut out);
    (!within).then_some(out)
}

/// The first line outside of our block that says what one of these is: a key of libvirt's, or a host's name.
fn said(text: &str, keys: &[&str]) -> Option<(usize, String)> {
    let mut within = false;
    text.lines().enumerate().find_map(|(n, line)| {
        within = line == BEGIN || within && line != END;
        if within {
            return None;
        }
        let plain = line.split('#').next().unwrap_or_default();
        let names = || plain.split_whitespace().skip(1).filter(|_| !plain.contains('='));
        let its = assignments(line).map(|(_, key, _)| key).chain(names());
        let key = its.into_iter().find(|its| keys.iter().any(|key| key.eq_ignore_ascii_case(its)))?;
        Some((n + 1, key.to_owned()))
    })
}

/// One file and what is to be in it.
pub struct Change {
    path: PathBuf,
    text: String,
    /// It is that already.
    pub is_there: bool,
}

impl Change {
    /// Reads the file, and sees whether the lines may stand there. `keys` may not be said outside of the block.
    pub fn of(path: &Path, lines: &[String], keys: &[&str]) -> Result<Change, SetupError> {
        let there = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            Err(source) => return Err(SetupError::File { path: path.to_owned(), source }),
        };
        let block = || SetupError::Block { path: path.to_owned() };
        with_block(&there, &[]).ok_or_else(block)?;
        if let Some((line, key)) = said(&there, keys) {
            return Err(SetupError::Said { path: path.to_owned(), line, key });
        }
        let text = with_block(&there, lines).ok_or_else(block)?;
        Ok(Change { path: path.to_owned(), is_there: text == there, text })
    }

    /// Whole, or not at all.
    pub fn write(&self) -> Result<(), SetupError> {
        let fails = |source| SetupError::File { path: self.path.clone(), source };
        match self.replace() {
            // A file that is mounted over another cannot be replaced.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EBUSY | libc::EXDEV)) => {
                fs::write(&self.path, &self.text).map_err(fails)
            }
            done => done.map_err(fails),
        }
    }

    fn replace(&self) -> io::Result<()> {
        // Through a link, to what it means.
        let path = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let mut new = path.clone().into_os_string();
        new.push(".hikyaku");
        let _ = fs::remove_file(&new);
        // Nobody else reads it before it is like the one that it replaces: there may be passwords in it.
        let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
        let mut replace = || {
            file.write_all(self.text.as_bytes())?;
            match fs::metadata(&path) {
                Ok(meta) => {
                    std::os::unix::fs::fchown(&file, Some(meta.uid()), Some(meta.gid()))?;
                    file.set_permissions(fs::Permissions::from_mode(meta.mode() & 0o7777))?;
                }
                Err(_) => file.set_permissions(fs::Permissions::from_mode(0o644))?,
            }
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        replace().inspect_err(|_| drop(fs::remove_file(&new)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(lines: &[&str]) -> Vec<String> {
        lines.iter().map(|line| (*line).to_owned()).collect()
    }

    #[test]
    fn the_block_is_written_once_and_taken_out() {
        let before = "127.0.0.1 localhost\n";
        let once = with_block(before, &lines(&["127.77.0.2 osaka.hikyaku"])).unwrap();
        assert_eq!(once, format!("127.0.0.1 localhost\n{BEGIN}\n127.77.0.2 osaka.hikyaku\n{END}\n"));
        assert_eq!(with_block(&once, &lines(&["127.77.0.2 osaka.hikyaku"])).unwrap(), once);
        let more = format!("{once}10.0.0.1 other\n");
        let other = with_block(&more, &lines(&["127.77.0.3 nagoya.hikyaku"])).unwrap();
        assert_eq!(other, more.replace("127.77.0.2 osaka", "127.77.0.3 nagoya"));
        assert_eq!(with_block(&once, &[]).unwrap(), before);
        assert_eq!(with_block(&format!("{BEGIN}\nx\n"), &[]), None, "who knows where it ends");
    }

    #[test]
    fn of_two_lines_libvirt_takes_the_first() {
        let text =
            "#user = \"root\"\n user = \"qemu\" # whom\nmigration_port_min = 49152 # x\nuser='other'\n";
        assert_eq!(value(text, "user"), Some("qemu"));
        assert_eq!(value(text, "migration_port_min"), Some("49152"));
        assert_eq!(value(text, "group"), None);
    }

    #[test]
    fn what_is_said_already_is_left_to_who_said_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("qemu.conf");
        fs::write(&path, "# one\nmigration_host = \"here\"\n").unwrap();
        let change = Change::of(&path, &lines(&["migration_host = \"x\""]), &["migration_host"]);
        assert!(matches!(change, Err(SetupError::Said { line: 2, .. })));
        fs::write(&path, "# one\nuser = \"qemu\"\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        let wanted = lines(&["migration_host = \"x\""]);
        let change = Change::of(&path, &wanted, &["migration_host"]).unwrap();
        assert!(!change.is_there);
        change.write().unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        assert_eq!(value(&fs::read_to_string(&path).unwrap(), "migration_host"), Some("x"));
        assert!(Change::of(&path, &wanted, &["migration_host"]).unwrap().is_there);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_name_that_means_something_else_already_is_left_to_who_said_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        let wanted = lines(&["127.77.0.2 osaka.hikyaku"]);
        let ours = with_block("", &wanted).unwrap();
        fs::write(&path, format!("{ours}# osaka.hikyaku\n10.0.0.2 osaka Osaka.Hikyaku # there\n")).unwrap();
        let change = Change::of(&path, &wanted, &["osaka.hikyaku"]);
        assert!(matches!(change, Err(SetupError::Said { line: 5, .. })));
        fs::write(&path, format!("10.0.0.2 osaka\n{ours}")).unwrap();
        assert!(Change::of(&path, &wanted, &["osaka.hikyaku"]).unwrap().is_there);
    }

    #[test]
    fn a_file_that_is_not_there_is_made() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hosts");
        Change::of(&path, &lines(&["127.77.0.2 osaka.hikyaku"]), &[]).unwrap().write().unwrap();
        assert!(fs::read_to_string(&path).unwrap().contains("\n127.77.0.2 osaka.hikyaku\n"));
    }
}

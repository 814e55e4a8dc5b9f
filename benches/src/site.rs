//! Daemons at the ends of an emulated link, for the laboratory's own runs.
//!
//! A [`Site`] is a host with a `hikyakud` on it that has a directory of its own; both end with their handle. It knows the
//! daemon only as an operator does: a configuration file, a socket, exit codes.

use crate::link::{self, Host, Network};
use anyhow::{Context, bail};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PORT: u16 = 4707;
const START_LIMIT: Duration = Duration::from_secs(15);
const POLL: Duration = Duration::from_millis(5);
/// Lines of a daemon's log that an error shows.
const LOG_TAIL_LINES: usize = 20;

/// The daemon and the command, as built from this checkout.
#[derive(Debug, Clone)]
pub struct Programs {
    directory: PathBuf,
}

impl Programs {
    /// Builds them beside this program, in its profile; `$HIKYAKU_BIN_DIR` names a directory to take them from instead.
    pub fn build() -> anyhow::Result<Programs> {
        if let Some(directory) = std::env::var_os("HIKYAKU_BIN_DIR") {
            return Ok(Programs { directory: directory.into() });
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let program = std::env::current_exe()?;
        // A test's program lies one deeper.
        let mut directories = program.ancestors().skip(1);
        let directory = directories.find(|directory| !directory.ends_with("deps"));
        let directory = directory.context("this program lies in no directory")?;
        let target = directory.parent().context("this program lies in no target directory")?;
        // The test profile's programs lie where those of `dev` do.
        let profile = match directory.file_name().and_then(OsStr::to_str) {
            Some("debug") | None => "dev",
            Some(other) => other,
        };
        let mut build = Command::new(cargo);
        // Where *this* package's build script wrote: others' would run again for it.
        build.env_remove("OUT_DIR");
        // What cargo says of *this* package would make build scripts of others run again, and be wrong for them.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("CARGO_")
                && name != "CARGO_HOME"
                && name != "CARGO_TARGET_DIR"
            {
                build.env_remove(name);
            }
        }
        let status = build
            .args(["build", "--bins", "--package", "hikyaku-daemon", "--profile", profile, "--target-dir"])
            .arg(target)
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .status()
            .context("cargo")?;
        if !status.success() {
            bail!("hikyakud does not build");
        }
        Ok(Programs { directory: directory.to_owned() })
    }

    fn daemon(&self) -> PathBuf {
        self.directory.join("hikyakud")
    }

    pub fn command(&self) -> PathBuf {
        self.directory.join("hikyaku")
    }
}

/// A host with a daemon on it.
#[derive(Debug)]
pub struct Site {
    name: String,
    programs: Programs,
    directory: TempDir,
    daemon: Child,
}

/// What a daemon holds, and must not hold more of with every guest that has passed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Held {
    pub descriptors: usize,
    pub threads: usize,
    /// In its state directory.
    pub files: usize,
}

impl Held {
    /// By name.
    pub fn counts(self) -> [(&'static str, usize); 3] {
        [("descriptors", self.descriptors), ("threads", self.threads), ("files", self.files)]
    }
}

impl Site {
    /// Two daemons that may send to and receive from each other, on the two hosts named. `more` is added to both
    /// configuration files.
    pub fn pair(
        network: &Network,
        names: [&str; 2],
        programs: &Programs,
        more: &str,
    ) -> anyhow::Result<[Site; 2]> {
        let directories = [temporary(names[0])?, temporary(names[1])?];
        let keys = [make_key(programs, directories[0].path())?, make_key(programs, directories[1].path())?];
        let start = |own: usize, directory: TempDir| {
            let peer = 1 - own;
            let address = SocketAddr::from((network.host(names[peer]).ip4(), PORT));
            let path = directory.path().display();
            let config = format!(
                "listen = \"[::]:{PORT}\"\napi = \"{path}/api\"\nkey = \"{path}/key\"\nstate = \"{path}/state\"\n\n\
                 [[peer]]\nname = \"{}\"\naddresses = [\"{address}\"]\npublic_key = \"{}\"\n\
                 allow = [\"send\", \"receive\"]\n\n{more}",
                names[peer], keys[peer]
            );
            Site::start(network.host(names[own]), names[own], programs.clone(), directory, &config)
        };
        let [first, second] = directories;
        Ok([start(0, first)?, start(1, second)?])
    }

    fn start(
        host: &Host,
        name: &str,
        programs: Programs,
        directory: TempDir,
        config: &str,
    ) -> anyhow::Result<Site> {
        let file = directory.path().join("config.toml");
        fs::write(&file, config)?;
        let log = File::create(directory.path().join("log"))?;
        let mut command = host.command(programs.daemon());
        command.arg("--config").arg(&file).stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        link::die_with_parent(&mut command);
        let daemon = command.spawn().context("hikyakud does not start")?;
        let mut site = Site { name: name.to_owned(), programs, directory, daemon };
        site.wait_for_api()?;
        Ok(site)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// `hikyaku ARGS…`, asking this site's daemon; not started yet.
    pub fn hikyaku<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Command {
        let mut command = Command::new(self.programs.command());
        command.arg("--api").arg(self.directory.path().join("api")).args(args).stdin(Stdio::null());
        link::die_with_parent(&mut command);
        command
    }

    /// The same to its end, in silence; an error shows what it said.
    pub fn hikyaku_quietly<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> anyhow::Result<()> {
        let output = self.hikyaku(args).output()?;
        if !output.status.success() {
            bail!("{}{}", String::from_utf8_lossy(&output.stderr), self.last_words(output.status));
        }
        Ok(())
    }

    /// What to add to an error: how a command ended and the end of the daemon's log.
    pub fn last_words(&self, status: ExitStatus) -> String {
        let log = fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let skip = log.lines().count().saturating_sub(LOG_TAIL_LINES);
        let tail: Vec<_> = log.lines().skip(skip).collect();
        format!("({status}); the daemon of {} said:\n{}", self.name, tail.join("\n"))
    }

    /// The largest resident size the daemon has had, in bytes.
    pub fn rss_peak_bytes(&self) -> anyhow::Result<u64> {
        self.status_bytes("VmHWM:")
    }

    /// What the daemon holds now, other than memory.
    pub fn held(&self) -> anyhow::Result<Held> {
        let process = PathBuf::from(format!("/proc/{}", self.daemon.id()));
        let count = |directory: PathBuf| -> anyhow::Result<usize> {
            Ok(fs::read_dir(&directory).with_context(|| directory.display().to_string())?.count())
        };
        Ok(Held {
            descriptors: count(process.join("fd"))?,
            threads: count(process.join("task"))?,
            files: count(self.directory.path().join("state/migrations"))?,
        })
    }

    /// The daemon's resident size now, in bytes.
    pub fn rss_bytes(&self) -> anyhow::Result<u64> {
        self.status_bytes("VmRSS:")
    }

    fn status_bytes(&self, line: &str) -> anyhow::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.daemon.id()))?;
        let kib =
            status.lines().find_map(|text| text.strip_prefix(line)?.trim().strip_suffix(" kB")?.parse().ok());
        let kib: u64 = kib.with_context(|| format!("the daemon of {} is gone", self.name))?;
        Ok(kib << 10)
    }

    /// CPU time of the daemon so far.
    pub fn cpu_time(&self) -> anyhow::Result<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.daemon.id()))?;
        let fields: Vec<_> = stat.rsplit(") ").next().unwrap_or_default().split(' ').collect();
        let ticks = |n: usize| fields.get(n).and_then(|t| t.parse::<u64>().ok()).unwrap_or(0);
        // User and system time are the 14th and 15th field; Linux' unit for them is 10 ms on every platform.
        Ok(Duration::from_millis((ticks(11) + ticks(12)) * 10))
    }

    fn wait_for_api(&mut self) -> anyhow::Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while UnixStream::connect(self.directory.path().join("api")).is_err() {
            if let Some(status) = self.daemon.try_wait()? {
                bail!("hikyakud ended at its start {}", self.last_words(status));
            }
            if Instant::now() > deadline {
                bail!("the daemon of {} opens no API within {START_LIMIT:?}", self.name);
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

fn temporary(name: &str) -> anyhow::Result<TempDir> {
    Ok(tempfile::Builder::new().prefix(&format!("hikyaku-{name}.")).tempdir()?)
}

/// Makes a private key and returns its public half.
fn make_key(programs: &Programs, directory: &Path) -> anyhow::Result<String> {
    let output =
        Command::new(programs.command()).arg("keygen").arg("--out").arg(directory.join("key")).output()?;
    if !output.status.success() {
        bail!("hikyaku keygen: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

//! Ours: a daemon on each host, and the command that an operator types.

use std::fs::File;
use std::io::{Read, Seek};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde_json::Value;

use super::peer::{Carried, Carrier, DOWNTIME, HOSTS, Peer, Whereabouts};
use crate::child::Tied;
use crate::guest::Qemu;
use crate::link::Network;
use crate::site::{Programs, Site};
use crate::travel::{self, GUEST, Manner};

/// Daemons of operators have been there for longer. With the time that a guest takes to start and to fill its memory it is enough for their links
/// to stand, and for each to have been filled once.
const THERE_BEFORE: Duration = Duration::from_secs(5);
/// A move that was called off has to end within this.
const CANCEL_LIMIT: Duration = Duration::from_secs(30);
/// Exit codes of the command that leave the guest, whole, at the source: it did not converge, it was cancelled.
const STAYED: [i32; 2] = [7, 8];

#[derive(Debug, Clone)]
pub struct Ours {
    name: String,
    policy: String,
    downtime: Duration,
    /// Of the command, besides.
    flags: Vec<String>,
    /// Besides what a daemon must be told, in its configuration file.
    configuration: String,
    programs: Programs,
}

impl Ours {
    pub fn new(name: &str, policy: &str, programs: Programs) -> Ours {
        Ours {
            name: name.to_owned(),
            policy: policy.to_owned(),
            downtime: DOWNTIME,
            flags: Vec::new(),
            configuration: String::new(),
            programs,
        }
    }

    /// The stop that is asked for, if it is not everybody's.
    pub fn downtime(self, downtime: Duration) -> Ours {
        Ours { downtime, ..self }
    }

    /// What the command is told besides.
    pub fn flags(self, flags: &[&str]) -> Ours {
        Ours { flags: flags.iter().map(|flag| (*flag).to_owned()).collect(), ..self }
    }

    /// What both daemons are told besides.
    pub fn configured(self, configuration: &str) -> Ours {
        Ours { configuration: configuration.to_owned(), ..self }
    }
}

impl Peer for Ours {
    fn name(&self) -> &str {
        &self.name
    }

    fn set_up(&self, network: &Network) -> anyhow::Result<Box<dyn Carrier>> {
        let sites = Site::pair(network, HOSTS, &self.programs, &self.configuration)?;
        std::thread::sleep(THERE_BEFORE);
        let downtime = format!("{}ms", self.downtime.as_millis());
        let mut flags = vec!["--downtime".to_owned(), downtime, "--json".to_owned()];
        flags.extend(self.flags.iter().cloned());
        let manner = Manner { policy: self.policy.clone(), flags, ..Manner::default() };
        Ok(Box::new(Daemons { sites, manner }))
    }
}

#[derive(Debug)]
struct Daemons {
    sites: [Site; 2],
    manner: Manner,
}

impl Carrier for Daemons {
    fn prepare(&mut self, _here: &mut Qemu, there: &mut Qemu) -> anyhow::Result<()> {
        let [from, to] = &self.sites;
        travel::await_guest(there, from, to)
    }

    fn carry(&mut self, here: &mut Qemu, _there: &mut Qemu, limit: Duration) -> anyhow::Result<Carried> {
        let [from, to] = &self.sites;
        let mut words = tempfile::tempfile()?;
        let mut command = travel::migrate(here, from, to, &self.manner);
        command.stdout(words.try_clone()?).stderr(words.try_clone()?);
        let begun = Instant::now();
        let mut migrate = Tied::spawn(&mut command).context("hikyaku")?;
        let mut refused = String::new();
        let status = match migrate.wait_until(begun + limit)? {
            Some(status) => status,
            None => {
                // A guest that is being handed over cannot be called back: it arrives, if late.
                if let Err(error) = from.hikyaku_quietly(["cancel", GUEST]) {
                    refused = format!("{error:#}\n");
                }
                migrate.wait_within(CANCEL_LIMIT).with_context(|| refused.clone())?
            }
        };
        let ended = Instant::now();
        let guest = match status.code() {
            Some(0) => Whereabouts::There,
            Some(code) if STAYED.contains(&code) => Whereabouts::Here,
            _ => bail!("{refused}{}{}", last_line(&mut words)?, from.last_words(status)),
        };
        let said = serde_json::from_str(&last_line(&mut words)?).ok();
        Ok(Carried { begun, ended, guest, said })
    }

    fn cpu_time(&self) -> anyhow::Result<Option<[Duration; 2]>> {
        let [from, to] = &self.sites;
        Ok(Some([from.cpu_time()?, to.cpu_time()?]))
    }

    fn congestion(&self, _: &Network) -> anyhow::Result<String> {
        let [from, to] = &self.sites;
        let output = from.hikyaku(["--json", "link", to.name()]).output()?;
        let report: Value = serde_json::from_slice(&output.stdout).context("what `hikyaku link` said")?;
        congestion(&report).context("`hikyaku link` names no lane")
    }
}

/// Of all lanes, each name once: `bbr`, or `bbr+cubic`.
fn congestion(report: &Value) -> Option<String> {
    let mut names: Vec<_> =
        report["lanes"].as_array()?.iter().filter_map(|lane| lane["congestion"].as_str()).collect();
    names.sort_unstable();
    names.dedup();
    (!names.is_empty()).then(|| names.join("+"))
}

/// The command says an event a line; the last one is how it ended.
fn last_line(words: &mut File) -> anyhow::Result<String> {
    let mut said = String::new();
    words.rewind()?;
    words.read_to_string(&mut said)?;
    Ok(said.trim_end().lines().next_back().unwrap_or_default().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lanes_with_one_congestion_control_name_it_once() {
        let lanes = |names: &[&str]| {
            let lanes: Vec<_> = names.iter().map(|name| json!({ "congestion": name })).collect();
            congestion(&json!({ "lanes": lanes }))
        };
        assert_eq!(lanes(&["bbr", "bbr"]).as_deref(), Some("bbr"));
        assert_eq!(lanes(&["cubic", "bbr", "cubic"]).as_deref(), Some("bbr+cubic"));
        assert_eq!(lanes(&[]), None);
        assert_eq!(congestion(&json!({ "error": "no" })), None);
    }
}

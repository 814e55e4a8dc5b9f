//! `hikyaku libvirt setup` and `check`: what libvirt and the name of a host have to know, and whether they do.

use crate::config::Config;
use crate::libvirt::check::{Finding, Report, Verdict};
use crate::libvirt::landing;
use crate::libvirt::setup::{self, Change, HOSTS, QEMU_CONF, SetupError};
use crate::outcome::Ending;
use std::path::Path;

/// Prints what is to be in which file, or writes it there.
pub fn setup(file: &Path, alias: Option<&str>, apply: bool) -> Result<Ending, super::CliError> {
    let config = Config::read(file)?;
    let landing = match (&config.libvirt.landing, alias) {
        (Some(landing), None) => Some(landing),
        (Some(landing), Some(alias)) if landing.alias == alias => Some(landing),
        (Some(landing), Some(alias)) => {
            let there = &landing.alias;
            say!("{} calls this host {there}, not {alias}: change it there first", file.display());
            return Ok(Ending::Usage);
        }
        (None, Some(alias)) => {
            suggest(file, alias, &config)?;
            return Ok(Ending::Configuration);
        }
        (None, None) => None,
    };
    let hosts = setup::hosts(&config);
    let qemu = landing.map(setup::qemu_conf).unwrap_or_default();
    let lines: Vec<String> = qemu.iter().map(|(key, value)| format!("{key} = {value}")).collect();
    let keys: Vec<&str> = qemu.iter().map(|(key, _)| *key).collect();
    let names: Vec<&str> = hosts.iter().filter_map(|line| line.split(' ').nth(1)).collect();
    // All of them are looked at before the first is written. Where there is nothing to be said what was said before goes.
    let changes: Result<Vec<Wanted>, SetupError> = [(HOSTS, &hosts, &names), (QEMU_CONF, &lines, &keys)]
        .into_iter()
        .map(|(path, lines, keys)| {
            let change = Change::of(Path::new(path), lines, keys)?;
            Ok(Wanted { path, goes: lines.is_empty(), change })
        })
        .filter(|wanted| !wanted.as_ref().is_ok_and(|wanted| wanted.goes && wanted.change.is_there))
        .collect();
    let changes = match changes {
        // To be shown what is to be there nobody needs to read what is.
        Err(_) if !apply => Vec::new(),
        changes => changes?,
    };
    if changes.is_empty() && landing.is_none() && hosts.is_empty() {
        say!("guests land nowhere: neither this host nor a peer has a landing in {}.", file.display());
        say!("For one here: hikyaku libvirt setup --alias NAME, such as {}", "tokyo.hikyaku");
        return Ok(Ending::Configuration);
    }
    if !apply {
        show(HOSTS, &hosts);
        show(QEMU_CONF, &lines);
        for Wanted { path, .. } in changes.iter().filter(|wanted| wanted.goes) {
            say!("{path}: without the lines of ours");
        }
        say!("hikyaku libvirt setup --apply writes these lines. Then:");
        next(changes.iter().any(|wanted| wanted.path == QEMU_CONF));
        return Ok(Ending::Moved);
    }
    for Wanted { path, goes, change } in &changes {
        if change.is_there {
            say!("{path} is as it should be");
            continue;
        }
        change.write()?;
        say!("{path} is written{}", if *goes { ", without the lines of ours" } else { "" });
    }
    say!("Then:");
    next(changes.iter().any(|wanted| wanted.path == QEMU_CONF));
    Ok(Ending::Moved)
}

/// Of one file.
struct Wanted {
    path: &'static str,
    /// Nothing of ours is to be there.
    goes: bool,
    change: Change,
}

fn show(path: &str, lines: &[String]) {
    if !lines.is_empty() {
        say!("{path}:");
        lines.iter().for_each(|line| say!("  {line}"));
    }
}

fn next(lands: bool) {
    if lands {
        say!("  systemctl restart libvirtd      (or virtqemud; its guests run on meanwhile)");
    }
    say!("  systemctl restart hikyakud      (if its configuration was changed)");
    say!("  hikyaku libvirt check PEER");
}

fn suggest(file: &Path, alias: &str, config: &Config) -> Result<(), super::CliError> {
    let landing = setup::landing_for(alias, config).and_then(|landing| {
        landing::check(Some(&landing), std::iter::empty())?;
        Ok(landing)
    });
    let landing = match landing {
        Ok(landing) => setup::in_configuration(&landing),
        Err(why) => {
            say!("{why}");
            return Ok(());
        }
    };
    say!("{} does not say yet where guests land at this host. Into it, here:", file.display());
    say!("  [libvirt]");
    say!("  {landing}");
    say!(
        "and the same line at every host that guests come from, into the [[peer]] that is this host. Then here, and there:"
    );
    say!("  systemctl restart hikyakud");
    say!("  hikyaku libvirt setup");
    Ok(())
}

/// True: nothing is wrong.
pub fn show_report(report: &Report, peer: Option<&str>, json: bool) -> Result<Ending, super::CliError> {
    if json {
        say!("{}", serde_json::to_string(report).map_err(crate::api::client::ClientError::Answer)?);
    } else {
        findings("here", &report.here);
        if let (Some(peer), Some(there)) = (peer, &report.there) {
            findings(peer, there);
        }
    }
    let all = report.here.iter().chain(report.there.iter().flatten());
    let wrong = all.filter(|finding| finding.verdict == Verdict::Wrong).count();
    Ok(if wrong == 0 { Ending::Moved } else { Ending::Incompatible })
}

fn findings(at: &str, findings: &[Finding]) {
    say!("{at}:");
    for finding in findings {
        let verdict = match finding.verdict {
            Verdict::Right => "ok    ",
            Verdict::Advice => "advice",
            Verdict::Wrong => "wrong ",
        };
        // A peer's words, too.
        let plain = |words: &str| words.replace(char::is_control, " ");
        say!("  {verdict}  {}", plain(&finding.what));
        if !finding.advice.is_empty() {
            say!("          → {}", plain(&finding.advice));
        }
    }
}

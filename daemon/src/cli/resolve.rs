//! `hikyaku resolve`: a person says where a guest is. Asked twice, for a mistake here is two guests.

use super::{Cli, CliError, table};
use crate::api::client::Client;
use crate::api::wire::{Command, Resolution, ResolveArguments, Status, Which};
use crate::outcome::Ending;
use std::io::{IsTerminal, Write, stdin, stdout};

pub fn resolve(cli: &Cli, id: &str, guest_is: Resolution, fenced: bool) -> Result<Ending, CliError> {
    let mut client = Client::connect(&cli.api)?;
    let status: Status = client.execute(Command::Status(Which { id: id.to_owned() }))?;
    let arguments = ResolveArguments {
        id: status.id.to_string(),
        guest_is,
        fenced: fenced || confirmed(&status, guest_is)?,
    };
    let status: Status = client.execute(Command::Resolve(arguments))?;
    table::status(&status, cli.json)?;
    // What it was told may not be so, as far as this host can see.
    let unsettled = status.outcome.map_or(Ending::InDoubt, |outcome| outcome.ending);
    Ok(if status.phase.is_final() { Ending::Moved } else { unsettled })
}

fn at_stake(guest: &str, peer: &str, guest_is: Resolution) -> String {
    let doubt = format!("The guest {guest} is in doubt between this host and {peer}.");
    match guest_is {
        Resolution::Here => format!(
            "{doubt} It goes on HERE.\n\
             If {peer} runs it, or can still run it, there will be two, and its disks are destroyed: switch {peer} off first, or cut it from them."
        ),
        Resolution::There => format!(
            "{doubt} It is {peer}'s, and its copy HERE is given up.\n\
             If {peer} does not have it, it is lost: look there first, and do not switch {peer} off."
        ),
    }
}

/// The guest's name, typed by somebody who reads what is at stake.
fn confirmed(status: &Status, guest_is: Resolution) -> Result<bool, CliError> {
    if !stdin().is_terminal() {
        return Ok(false);
    }
    let peer = status.peer.as_deref().unwrap_or("the other host");
    write!(stdout(), "{}\nType the guest's name to go on: ", at_stake(&status.guest, peer, guest_is))?;
    stdout().flush()?;
    let mut typed = String::new();
    stdin().read_line(&mut typed)?;
    Ok(typed.trim() == status.guest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_that_is_to_have_the_guest_is_not_to_be_switched_off() {
        assert!(at_stake("web", "osaka", Resolution::Here).contains("switch osaka off first"));
        let there = at_stake("web", "osaka", Resolution::There);
        assert!(there.contains("do not switch osaka off") && !there.contains("first, or cut"), "{there}");
    }
}

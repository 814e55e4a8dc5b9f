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
    Ok(Ending::Moved)
}

/// The guest's name, typed by somebody who reads what is at stake.
fn confirmed(status: &Status, guest_is: Resolution) -> Result<bool, CliError> {
    if !stdin().is_terminal() {
        return Ok(false);
    }
    let peer = status.peer.as_deref().unwrap_or("the other host");
    let consequence = match guest_is {
        Resolution::Here => "It goes on HERE",
        Resolution::There => "Its copy here is given up",
    };
    write!(
        stdout(),
        "The guest {guest} is in doubt between this host and {peer}. {consequence}.\n\
         If {peer} can still run it, two copies may run and its disks be destroyed: switch that host off first, or cut it from them.\n\
         Type the guest's name to go on: ",
        guest = status.guest,
    )?;
    stdout().flush()?;
    let mut typed = String::new();
    stdin().read_line(&mut typed)?;
    Ok(typed.trim() == status.guest)
}

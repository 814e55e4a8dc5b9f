//! The API's client, as the command uses it: blocking, one request at a time.

use super::wire::{Command, ErrorBody, Event, Greeting, Reply, Request};
use crate::outcome::Whereabouts;
use serde::de::DeserializeOwned;
use serde_json::Value;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error(
        "no hikyakud answers on {path}: {source}. Is the daemon running? Another socket is given with --api PATH"
    )]
    Connect { path: PathBuf, source: io::Error },
    #[error("hikyakud went away: {0}; {guest}", guest = Whereabouts::Unknown)]
    Io(#[from] io::Error),
    #[error("hikyakud closed the connection; {guest}", guest = Whereabouts::Unknown)]
    Closed,
    #[error("hikyakud's answer is not understood: {0}")]
    Answer(#[from] serde_json::Error),
    #[error("{}; {}", .0.desc, .0.guest)]
    Refused(ErrorBody),
}

impl ClientError {
    pub fn guest(&self) -> Whereabouts {
        match self {
            ClientError::Connect { .. } => Whereabouts::AsItWas,
            ClientError::Refused(body) => body.guest.clone(),
            ClientError::Io(_) | ClientError::Closed | ClientError::Answer(_) => Whereabouts::Unknown,
        }
    }
}

#[derive(Debug)]
pub struct Client {
    read: BufReader<UnixStream>,
    write: UnixStream,
}

impl Client {
    pub fn connect(path: &Path) -> Result<Client, ClientError> {
        let write = UnixStream::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        let mut client = Client { read: BufReader::new(write.try_clone()?), write };
        let _: Greeting = serde_json::from_str(&client.line()?)?;
        Ok(client)
    }

    pub fn execute<T: DeserializeOwned>(&mut self, command: Command) -> Result<T, ClientError> {
        let mut line = serde_json::to_vec(&Request { command, id: None })?;
        line.push(b'\n');
        self.write.write_all(&line)?;
        let reply: Reply = serde_json::from_str(&self.line()?)?;
        match reply.error {
            Some(error) => Err(ClientError::Refused(error)),
            None => Ok(serde_json::from_value(reply.value.unwrap_or(Value::Null))?),
        }
    }

    /// After `subscribe`: the next event, with the line it came in.
    pub fn event(&mut self) -> Result<(Event, String), ClientError> {
        let line = self.line()?;
        Ok((serde_json::from_str(&line)?, line))
    }

    fn line(&mut self) -> Result<String, ClientError> {
        let mut line = String::new();
        match self.read.read_line(&mut line)? {
            0 => Err(ClientError::Closed),
            _ => Ok(line),
        }
    }
}

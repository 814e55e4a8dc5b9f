//! `hikyaku keygen` and `hikyaku fingerprint`.

use crate::keyfile::{self, KeyFileError};
use crate::outcome::Ending;
use std::path::Path;

pub fn generate(out: &Path, json: bool) -> Result<Ending, KeyFileError> {
    let key = keyfile::generate(out)?;
    print(&key.public().to_string(), out, json);
    Ok(Ending::Moved)
}

pub fn show(path: &Path, json: bool) -> Result<Ending, KeyFileError> {
    let key = keyfile::read(path)?;
    print(&key.public().to_string(), path, json);
    Ok(Ending::Moved)
}

fn print(public: &str, path: &Path, json: bool) {
    if json {
        say!("{}", serde_json::json!({ "public_key": public, "file": path }));
    } else {
        say!("{public}");
    }
}

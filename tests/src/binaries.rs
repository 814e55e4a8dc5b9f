//! The programs under test, as built from this checkout, in the profile and target directory of the running test.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// `hikyakud` or `hikyaku`. Built on first use, so that no test meets a stale one; `$HIKYAKU_BIN_DIR` names a
/// directory to take them from instead.
pub fn product(name: &str) -> PathBuf {
    static DIRECTORY: LazyLock<PathBuf> =
        LazyLock::new(|| directory_of("hikyaku-daemon", &["--features", "fail-points"]));
    existing(DIRECTORY.join(name))
}

/// A helper program of the tests' own, built or taken like those.
pub fn helper(name: &str) -> PathBuf {
    static DIRECTORY: LazyLock<PathBuf> = LazyLock::new(|| directory_of("hikyaku-tests", &[]));
    existing(DIRECTORY.join(name))
}

fn directory_of(package: &str, features: &[&str]) -> PathBuf {
    std::env::var_os("HIKYAKU_BIN_DIR").map_or_else(|| build(package, features), PathBuf::from)
}

fn existing(program: PathBuf) -> PathBuf {
    assert!(program.exists(), "{} is not there", program.display());
    program
}

/// Builds a package's programs and returns where they are.
fn build(package: &str, features: &[&str]) -> PathBuf {
    let (target, profile) = layout();
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    // Where *this* package's build script wrote: others' would run again for it.
    build.env_remove("OUT_DIR");
    // What cargo says of *this* package would make build scripts of others run again, and be wrong for them.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_") && name != "CARGO_HOME" && name != "CARGO_TARGET_DIR"
        {
            build.env_remove(name);
        }
    }
    let status = build
        .args(["build", "--quiet", "--bins", "--package", package])
        .args(features)
        .arg("--profile")
        .arg(match profile.as_str() {
            "debug" => "dev",
            other => other,
        })
        .arg("--target-dir")
        .arg(&target)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .status()
        .expect("cargo runs");
    assert!(status.success(), "{package} does not build");
    target.join(profile)
}

/// The target directory and the profile of the running test: `TARGET/PROFILE/deps/TEST`.
fn layout() -> (PathBuf, String) {
    let test = std::env::current_exe().expect("the test knows its own program");
    let profile = test
        .ancestors()
        .skip(1)
        .find(|dir| dir.file_name().is_some_and(|name| name != "deps" && name != "examples"))
        .expect("a test lies in a profile's directory");
    let target = profile.parent().map_or_else(|| Path::new("/").to_owned(), Path::to_owned);
    (target, profile.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

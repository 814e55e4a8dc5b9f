//! What `deny.toml` says of licences and pins holds for every dependency.
//!
//! A stand-in for `cargo deny check licenses` that needs nothing installed. Advisories and duplicates are
//! left to cargo-deny.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

#[test]
fn every_dependency_has_an_allowed_licence() {
    let allowed = allowed_licences();
    let mut refused = Vec::new();
    let packages = packages();
    assert!(packages.len() > 50, "only {} packages seen: the listing is wrong", packages.len());
    for package in packages {
        let name = format!("{} {}", package.name, package.version);
        match package.licence {
            Some(expression) if Licence::parse(&expression).is_allowed(&allowed) => {}
            Some(expression) => refused.push(format!("{name}: {expression}")),
            None => refused.push(format!("{name}: no licence stated")),
        }
    }
    assert!(refused.is_empty(), "not allowed by deny.toml:\n{}", refused.join("\n"));
}

#[test]
fn bincode_stays_at_the_last_real_release() {
    let versions: Vec<_> =
        packages().into_iter().filter(|p| p.name == "bincode").map(|p| p.version).collect();
    assert_eq!(versions, ["2.0.1"]);
}

#[test]
fn licence_expressions_are_read_as_spdx() {
    let allowed =
        BTreeSet::from(["MIT".to_owned(), "ISC".to_owned(), "Apache-2.0 WITH LLVM-exception".to_owned()]);
    for (expression, expected) in [
        ("MIT", true),
        ("GPL-3.0", false),
        ("GPL-3.0 OR MIT", true),
        ("GPL-3.0/MIT", true),
        ("GPL-3.0 AND MIT", false),
        ("(GPL-3.0 OR MIT) AND ISC", true),
        ("GPL-3.0 OR MIT AND ISC", true),
        ("GPL-3.0 OR MIT AND Zlib", false),
        ("Apache-2.0", false),
        ("Apache-2.0 WITH LLVM-exception OR GPL-3.0", true),
    ] {
        assert_eq!(Licence::parse(expression).is_allowed(&allowed), expected, "{expression}");
    }
}

struct Package {
    name: String,
    version: String,
    licence: Option<String>,
}

fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in a workspace")
}

/// Every package that is built for Linux, the workspace's own included.
fn packages() -> Vec<Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version=1", "--locked", "--filter-platform=x86_64-unknown-linux-gnu"])
        .current_dir(workspace())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("cargo metadata prints JSON");
    let text = |package: &Value, key: &str| package[key].as_str().map(str::to_owned);
    metadata["packages"]
        .as_array()
        .expect("a list of packages")
        .iter()
        .map(|package| Package {
            name: text(package, "name").expect("a name"),
            version: text(package, "version").expect("a version"),
            licence: text(package, "license"),
        })
        .collect()
}

fn allowed_licences() -> BTreeSet<String> {
    let text = std::fs::read_to_string(workspace().join("deny.toml")).expect("deny.toml is there");
    let deny: toml::Table = text.parse().expect("deny.toml is TOML");
    let allowed = deny["licenses"]["allow"].as_array().expect("a list of licences");
    allowed.iter().map(|licence| licence.as_str().expect("a licence is a string").to_owned()).collect()
}

/// An SPDX licence expression: `AND` binds closer than `OR`; crates of old write `/` for `OR`.
enum Licence {
    Id(String),
    All(Vec<Licence>),
    Any(Vec<Licence>),
}

impl Licence {
    fn parse(expression: &str) -> Licence {
        let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
        let mut words = spaced.split_whitespace().peekable();
        let licence = Licence::any(&mut words);
        assert_eq!(words.next(), None, "{expression:?} is no licence expression");
        licence
    }

    fn any<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> Licence {
        let mut choices = vec![Licence::all(words)];
        while words.next_if_eq(&"OR").is_some() {
            choices.push(Licence::all(words));
        }
        Licence::Any(choices)
    }

    fn all<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> Licence {
        let mut parts = vec![Licence::one(words)];
        while words.next_if_eq(&"AND").is_some() {
            parts.push(Licence::one(words));
        }
        Licence::All(parts)
    }

    fn one<'a>(words: &mut std::iter::Peekable<impl Iterator<Item = &'a str>>) -> Licence {
        let word = words.next().expect("a licence expression does not end in an operator");
        if word == "(" {
            let inside = Licence::any(words);
            assert_eq!(words.next(), Some(")"), "an unclosed parenthesis");
            return inside;
        }
        match words.next_if_eq(&"WITH") {
            Some(_) => {
                Licence::Id(format!("{word} WITH {}", words.next().expect("an exception follows WITH")))
            }
            None => Licence::Id(word.to_owned()),
        }
    }

    fn is_allowed(&self, allowed: &BTreeSet<String>) -> bool {
        match self {
            Licence::Id(id) => allowed.contains(id),
            Licence::All(parts) => parts.iter().all(|part| part.is_allowed(allowed)),
            Licence::Any(choices) => choices.iter().any(|choice| choice.is_allowed(allowed)),
        }
    }
}

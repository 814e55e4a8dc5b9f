//! Which guests move over which links.

use std::fmt;

use crate::guest::Load;
use crate::link::Profile;
use crate::link::cli::named;

/// The guests that are compared unless others are asked for.
pub const LOADS: [&str; 10] = [
    "seq@20", "seq@100", "rand@20", "rand@100", "hot@20", "hot@100", "oltp@5", "oltp@20", "build@5",
    "build@20",
];

/// A guest on a link.
#[derive(Debug, Clone)]
pub struct Cell {
    link: String,
    profile: Profile,
    load_name: String,
    load: Load,
}

impl Cell {
    pub fn link(&self) -> &str {
        &self.link
    }

    pub fn profile(&self) -> &Profile {
        &self.profile
    }

    pub fn load_name(&self) -> &str {
        &self.load_name
    }

    pub fn load(&self) -> &Load {
        &self.load
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.link, self.load_name)
    }
}

/// Every load on every link, all of one link together.
pub fn cells(links: &[String], loads: &[String]) -> anyhow::Result<Vec<Cell>> {
    let mut cells = Vec::with_capacity(links.len() * loads.len());
    for link in links {
        let profile = named(link).map_err(anyhow::Error::msg)?;
        anyhow::ensure!(
            profile.rate.is_some(),
            "{link}: a link without a rate has no floor to be compared with"
        );
        for load_name in loads {
            let load = Load::preset(load_name)?;
            cells.push(Cell { link: link.clone(), profile, load_name: load_name.clone(), load });
        }
    }
    Ok(cells)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn every_load_is_compared_on_every_link() {
        let cells = cells(&names(&["us", "jgn"]), &names(&LOADS)).unwrap();
        assert_eq!(cells.len(), 20);
        assert_eq!(
            (cells[0].to_string().as_str(), cells[19].to_string().as_str()),
            ("us seq@20", "jgn build@20")
        );
    }

    #[test]
    fn what_is_misspelt_is_noticed_before_anything_runs() {
        assert!(cells(&names(&["moon"]), &names(&["seq"])).is_err());
        assert!(cells(&names(&["unlimited"]), &names(&["seq"])).is_err());
        assert!(cells(&names(&["us"]), &names(&["dance"])).is_err());
    }
}

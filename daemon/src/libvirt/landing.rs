//! Where libvirt's guests land at a host when nobody tells libvirt of any socket: a name, an address, and ports.
//!
//! ```text
//!  source host                                                    destination host
//!  /etc/hosts: osaka.hikyaku is 127.77.0.2                         qemu.conf: migration_host = "osaka.hikyaku"
//!  libvirtd, QEMU ─▶ 127.77.0.2:49168  near ══ link ══ far ─▶ 127.77.0.2:49168   migration_address, migration_port_min …
//! ```
//! The libvirt that a guest goes to tells the one that it comes from where: `osaka.hikyaku`, at a port. There that is this host itself, where
//! the daemon listens. No two hosts have ports in common, for a libvirt gives none to a waiting QEMU at which anybody listens.

use serde::{Deserialize, Deserializer, Serialize};
use std::net::Ipv4Addr;
use std::ops::RangeInclusive;

/// The same at every host that knows of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Landing {
    /// What the host's libvirt calls it to other libvirts.
    pub alias: String,
    /// Where its QEMUs wait, and where other hosts' daemons listen for what is to go there: one of this machine's own.
    pub address: Ipv4Addr,
    pub ports: Ports,
}

/// `49152-49167`. A guest takes one, and its disks together another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ports(RangeInclusive<u16>);

/// Each is listened at.
const PORTS_MOST: usize = 128;
/// What no line of `/etc/hosts` may hold is not to be read as two names.
const ALIAS_BYTES_MOST: usize = 253;

impl Ports {
    pub fn all(&self) -> RangeInclusive<u16> {
        self.0.clone()
    }

    pub fn contains(&self, port: u16) -> bool {
        self.0.contains(&port)
    }

    pub fn first(&self) -> u16 {
        *self.0.start()
    }

    pub fn last(&self) -> u16 {
        *self.0.end()
    }

    fn meets(&self, other: &Ports) -> bool {
        self.first() <= other.last() && other.first() <= self.last()
    }

    fn parse(text: &str) -> Result<Ports, String> {
        let wrong = || format!("{text:?} is no range of ports, such as \"49152-49167\"");
        let (first, last) = text.split_once('-').ok_or_else(wrong)?;
        let parse = |port: &str| port.trim().parse::<u16>().map_err(|_| wrong());
        let ports = Ports(parse(first)?..=parse(last)?);
        match ports.0.clone().count() {
            _ if ports.first() < 1024 => Err(format!("ports {text}: those below 1024 are others'")),
            2..=PORTS_MOST => Ok(ports),
            count => Err(format!("ports {text} are {count}; it takes 2 to {PORTS_MOST}")),
        }
    }
}

impl std::fmt::Display for Ports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}-{}", self.first(), self.last())
    }
}

impl Serialize for Ports {
    fn serialize<S: serde::Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Ports {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Ports, D::Error> {
        Ports::parse(&String::deserialize(from)?).map_err(serde::de::Error::custom)
    }
}

/// What is wrong with those of a configuration: `here`, and those of its peers, with their names.
pub fn check<'a>(
    here: Option<&'a Landing>,
    peers: impl Iterator<Item = (&'a str, &'a Landing)>,
) -> Result<(), String> {
    let all: Vec<_> = here.map(|here| ("this host", here)).into_iter().chain(peers).collect();
    for (n, (name, landing)) in all.iter().enumerate() {
        check_one(name, landing)?;
        for (other, its) in &all[..n] {
            if landing.ports.meets(&its.ports) {
                return Err(format!(
                    "the landings of {other} and {name} have ports in common ({} and {}): libvirt gives a waiting QEMU none at which anybody listens",
                    its.ports, landing.ports
                ));
            }
            if landing.alias.eq_ignore_ascii_case(&its.alias) {
                return Err(format!("the landings of {other} and {name} have one alias: {}", landing.alias));
            }
        }
    }
    Ok(())
}

fn check_one(name: &str, landing: &Landing) -> Result<(), String> {
    let alias = &landing.alias;
    let fits = |c: char| c.is_ascii_alphanumeric() || "-.".contains(c);
    if !(1..=ALIAS_BYTES_MOST).contains(&alias.len()) || !alias.chars().all(fits) {
        return Err(format!("the landing of {name}: alias {alias:?} is no name of a host"));
    }
    if alias.parse::<Ipv4Addr>().is_ok() || alias.to_ascii_lowercase().starts_with("localhost") {
        return Err(format!(
            "the landing of {name}: alias {alias:?} would mean the same at every host; it is to be a name of its own, such as \"osaka.hikyaku\""
        ));
    }
    if !landing.address.is_loopback() || landing.address == Ipv4Addr::LOCALHOST {
        return Err(format!(
            "the landing of {name}: address {} is to be one of 127.0.0.0/8, and not 127.0.0.1, which libvirt refuses",
            landing.address
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn landing(alias: &str, address: &str, ports: &str) -> Landing {
        Landing {
            alias: alias.into(),
            address: address.parse().unwrap(),
            ports: Ports::parse(ports).unwrap(),
        }
    }

    fn fault(here: &Landing, peer: &Landing) -> String {
        check(Some(here), [("osaka", peer)].into_iter()).unwrap_err()
    }

    #[test]
    fn ports_are_a_range_of_few() {
        assert_eq!(Ports::parse("49152-49167").unwrap().to_string(), "49152-49167");
        for wrong in ["", "49152", "49152-", "49167-49152", "49152-49152", "a-b", "80-90", "2000-60000"] {
            assert!(Ports::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn landings_have_nothing_in_common() {
        let tokyo = landing("tokyo.hikyaku", "127.77.0.1", "49152-49167");
        let osaka = landing("osaka.hikyaku", "127.77.0.2", "49168-49183");
        check(Some(&tokyo), [("osaka", &osaka)].into_iter()).unwrap();
        check(None, [("tokyo", &tokyo), ("osaka", &osaka)].into_iter()).unwrap();
        let meets = landing("osaka.hikyaku", "127.77.0.2", "49160-49175");
        assert!(fault(&tokyo, &meets).contains("this host and osaka have ports in common"));
        let same = landing("tokyo.hikyaku", "127.77.0.2", "49168-49183");
        assert!(fault(&tokyo, &same).contains("one alias"));
        let equal = tokyo.clone();
        assert!(fault(&tokyo, &equal).contains("ports in common"));
    }

    #[test]
    fn what_libvirt_or_the_hosts_file_would_not_take_is_told_before() {
        let tokyo = landing("tokyo.hikyaku", "127.77.0.1", "49152-49167");
        for alias in ["", "a b", "a\nb", "127.0.0.5", "localhost", "a#b"] {
            assert!(fault(&tokyo, &landing(alias, "127.77.0.2", "49168-49183")).contains("alias"), "{alias}");
        }
        for address in ["127.0.0.1", "10.0.0.1", "0.0.0.0"] {
            let wrong = landing("osaka.hikyaku", address, "49168-49183");
            assert!(fault(&tokyo, &wrong).contains("127.0.0.0/8"), "{address}");
        }
    }
}

//! The ways to open a repository: adding, replacing and removing key slots.
//!
//! The `check_*` functions tell from a configuration alone whether a change is allowed, so that a
//! caller can ask before it makes somebody type a passphrase; the changes ask them again.

use super::Repo;
use super::keys::Secret;
use crate::error::{Error, Result};
use crate::format::config::{Config, Slot};

/// More slots are refused: a wrong passphrase is tried on each, 0.1 s a time.
const SLOTS_MAX: usize = 32;
/// The longest name of a slot, in bytes.
const NAME_LEN_MAX: usize = 64;

impl Repo {
    /// Adds a slot; for the holder of the exclusive lock, like all that change slots.
    pub fn add_slot(&mut self, name: &str, secret: &Secret) -> Result<()> {
        check_add(&self.config, name)?;
        let slot = self.new_slot(name, secret)?;
        self.change_config(|config| config.slots.push(slot))
    }

    /// Makes a slot anew with another secret; the old one opens it no more.
    pub fn replace_slot(&mut self, name: &str, secret: &Secret) -> Result<()> {
        check_replace(&self.config, name)?;
        let slot = self.new_slot(name, secret)?;
        self.change_config(|config| {
            for old in config.slots.iter_mut().filter(|old| old.name == name) {
                *old = slot.clone();
            }
        })
    }

    /// Removes a slot.
    pub fn remove_slot(&mut self, name: &str) -> Result<()> {
        check_remove(&self.config, name)?;
        self.change_config(|config| config.slots.retain(|slot| slot.name != name))
    }
}

/// Whether a slot of this name may be added.
pub fn check_add(config: &Config, name: &str) -> Result<()> {
    check_encrypted(config)?;
    check_name(name)?;
    if find(config, name).is_some() {
        return Err(Error::Refused(format!("there is a slot '{name}' already: choose another name")));
    }
    if config.slots.len() >= SLOTS_MAX {
        return Err(Error::Refused(format!("a repository has at most {SLOTS_MAX} slots")));
    }
    Ok(())
}

/// Whether the slot of this name may be made anew.
pub fn check_replace(config: &Config, name: &str) -> Result<()> {
    check_encrypted(config)?;
    check_exists(config, name)
}

/// Whether the slot of this name may go.
pub fn check_remove(config: &Config, name: &str) -> Result<()> {
    check_exists(config, name)?;
    if config.slots.len() == 1 {
        return Err(Error::Refused(format!(
            "'{name}' is the last slot: without it nothing could open the repository"
        )));
    }
    Ok(())
}

/// A name for a new slot: `base`, or the first of `base-2`, `base-3` … that is free.
pub fn free_name(config: &Config, base: &str) -> String {
    let mut name = base.to_string();
    let mut number = 2;
    while find(config, &name).is_some() {
        name = format!("{base}-{number}");
        number += 1;
    }
    name
}

fn find<'c>(config: &'c Config, name: &str) -> Option<&'c Slot> {
    config.slots.iter().find(|slot| slot.name == name)
}

fn check_exists(config: &Config, name: &str) -> Result<()> {
    if find(config, name).is_some() {
        return Ok(());
    }
    let names: Vec<&str> = config.slots.iter().map(|slot| slot.name.as_str()).collect();
    Err(Error::Refused(format!("there is no slot '{name}': the slots are {}", names.join(", "))))
}

fn check_encrypted(config: &Config) -> Result<()> {
    if config.encrypted {
        return Ok(());
    }
    Err(Error::Refused(
        "the repository is not encrypted: a key would protect nothing, since all data lies open; \
         make an encrypted repository and back up to it"
            .into(),
    ))
}

/// No white space: a list of names stays readable, and no name is that of a recovery code.
fn check_name(name: &str) -> Result<()> {
    let is_wrong = |c: char| c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > NAME_LEN_MAX || name.contains(is_wrong) {
        return Err(Error::Refused(format!(
            "a slot's name has 1 to {NAME_LEN_MAX} bytes and no white space or control characters"
        )));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::config::{Sizes, SlotKind, WrappedKeys};

    fn config(names: &[&str]) -> Config {
        let none = String::new;
        let slot = |name: &&str| Slot {
            name: (*name).into(),
            created: none(),
            kind: SlotKind::KeyFile { salt: none() },
            keys: WrappedKeys { master: none(), ids: none(), metadata: none(), data: none() },
        };
        Config {
            id: none(),
            created: none(),
            generation: 1,
            chunker: none(),
            encrypted: true,
            tiers: Default::default(),
            sizes: Sizes::default(),
            slots: names.iter().map(slot).collect(),
        }
    }

    #[test]
    fn names_are_unique_and_plain() {
        let config = config(&["a"]);
        for name in ["a", "", "recovery code", "x\ty", "x\u{1b}y", &"x".repeat(65)] {
            assert!(matches!(check_add(&config, name), Err(Error::Refused(_))), "{name:?}");
        }
        for name in ["b", "büro", &"x".repeat(64)] {
            assert!(check_add(&config, name).is_ok(), "{name:?}");
        }
    }

    #[test]
    fn the_last_slot_stays() {
        assert!(check_remove(&config(&["a"]), "a").is_err());
        assert!(check_remove(&config(&["a", "b"]), "a").is_ok());
        assert!(check_remove(&config(&["a", "b"]), "c").is_err());
    }

    #[test]
    fn slots_are_counted_and_named() {
        let names: Vec<String> = (0..SLOTS_MAX).map(|n| n.to_string()).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        assert!(check_add(&config(&names), "more").is_err());
        assert!(check_add(&config(&names[1..]), "more").is_ok());
        assert_eq!(free_name(&config(&["k"]), "other"), "other");
        assert_eq!(free_name(&config(&["k", "k-2"]), "k"), "k-3");
    }

    #[test]
    fn without_encryption_nothing_is_added_or_changed() {
        let open = Config { encrypted: false, ..config(&["open"]) };
        assert!(check_add(&open, "b").is_err());
        assert!(check_replace(&open, "open").is_err());
    }
}

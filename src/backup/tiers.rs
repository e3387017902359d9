//! How hard to compress what: the run's tier, and rules by name and length.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use globset::{Glob, GlobMatcher};

use crate::format::config::{Config, Tier};
use crate::text::parse_size;

/// What `*.mp4`, `>1G` or `*.log<64K` asks for.
#[derive(Debug, Clone)]
pub struct TierRule {
    /// What the last part of the path is like.
    glob: Option<GlobMatcher>,
    /// What its length is more, or less, than.
    bound: Option<Bound>,
    tier: Tier,
}

#[derive(Debug, Clone, Copy)]
enum Bound {
    Above(u64),
    Below(u64),
}

impl TierRule {
    /// From `[GLOB][>SIZE|<SIZE]=TIER`; an error says what is wrong.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is no rule: write it as '*.mp4=store', '>1G=warm' or '*.log>64K=cold'");
        let (what, tier) = text.rsplit_once('=').filter(|(what, _)| !what.is_empty()).ok_or_else(wrong)?;
        let tier = Tier::parse(tier)?;
        let (glob, bound) = match what.rfind(['<', '>']) {
            Some(at) => {
                let size = parse_size(&what[at + 1..], 1)?;
                let bound = if what[at..].starts_with('>') { Bound::Above(size) } else { Bound::Below(size) };
                (&what[..at], Some(bound))
            }
            None => (what, None),
        };
        let glob = match glob {
            "" => None,
            glob => Some(Glob::new(glob).map_err(|e| format!("'{glob}' is no pattern: {}", e.kind()))?),
        };
        Ok(Self { glob: glob.map(|glob| glob.compile_matcher()), bound, tier })
    }

    fn fits(&self, name: &OsStr, len: u64) -> bool {
        let glob = self.glob.as_ref().is_none_or(|glob| glob.is_match(name));
        let bound = self.bound.is_none_or(|bound| match bound {
            Bound::Above(size) => len > size,
            Bound::Below(size) => len < size,
        });
        glob && bound
    }
}

/// zstd levels of files and volumes.
pub struct Levels<'a> {
    /// What the tiers stand for.
    pub config: &'a Config,
    /// What no rule fits, and all metadata.
    pub tier: Tier,
    /// The first one that fits counts.
    pub rules: &'a [TierRule],
}

impl Levels<'_> {
    /// Of what no rule fits.
    pub fn usual(&self) -> i8 {
        self.config.level(self.tier)
    }

    /// Of the content of this path or name, `len` bytes long; 0 if that is not known yet.
    pub fn of(&self, path: &[u8], len: u64) -> i8 {
        let name = OsStr::from_bytes(path.rsplit(|byte| *byte == b'/').next().unwrap_or(path));
        let rule = self.rules.iter().find(|rule| rule.fits(name, len));
        self.config.level(rule.map_or(self.tier, |rule| rule.tier))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tier(rules: &[&str], path: &str, len: u64) -> Option<&'static str> {
        let rules: Vec<TierRule> = rules.iter().map(|rule| TierRule::parse(rule).unwrap()).collect();
        let name = path.rsplit('/').next().unwrap();
        rules.iter().find(|rule| rule.fits(OsStr::new(name), len)).map(|rule| rule.tier.name())
    }

    #[test]
    fn the_first_rule_that_fits_counts() {
        let rules = ["*.mp4=store", "*.log>64K=cold", ">1G=warm", "<10=archive"];
        assert_eq!(tier(&rules, "/home/a.mp4", 2 << 30), Some("store"));
        assert_eq!(tier(&rules, "x.log", 65537), Some("cold"));
        assert_eq!(tier(&rules, "x.log", 65536), None);
        assert_eq!(tier(&rules, "image", (1 << 30) + 1), Some("warm"));
        assert_eq!(tier(&rules, "small", 9), Some("archive"));
        assert_eq!(tier(&["a=b=cold"], "a=b", 1), Some("cold"));
    }

    #[test]
    fn wrong_rules_are_told() {
        for (text, why) in [
            ("*.mp4", "is no rule"),
            ("=cold", "is no rule"),
            ("*.mp4=tepid", "no tier 'tepid'"),
            (">much=cold", "much"),
            ("[=cold", "is no pattern"),
        ] {
            let error = TierRule::parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}

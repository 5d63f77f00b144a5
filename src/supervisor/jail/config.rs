//! The `[isolation]` section.

use std::time::Duration;

use serde::Deserialize;
use serde::Deserializer;
use serde::de::Error as _;

/// The `[isolation]` section of the configuration; `config/default.toml` documents every key.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "each key is documented where users read it: config/default.toml")]
pub struct Config {
    pub level: Wanted,
    pub require: u8,
    pub uid_base: u32,
    pub uid_count: u32,
    #[serde(with = "humantime_serde")]
    pub network_check: Duration,
    pub memory_bytes: u64,
    pub cpu_percent: u32,
    pub pids: u32,
}

/// The level that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted {
    /// The highest that works without changing anything of the machine's: 2, or what is required.
    Auto,
    /// This one, or the highest below it that works.
    Level(u8),
}

/// Processes run without a sandbox only where the kernel leaves no choice, and in the suite that shows what that means.
const LOWEST: u8 = if cfg!(feature = "testing") { 0 } else { 1 };

impl<'de> Deserialize<'de> for Wanted {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Number(u8),
            Text(String),
        }
        let allowed = || D::Error::custom("write \"auto\", 1, 2 or 3");
        match Written::deserialize(deserializer).map_err(|_| allowed())? {
            Written::Text(text) if text == "auto" => Ok(Self::Auto),
            Written::Text(text) => {
                text.parse().ok().filter(|level| is_level(*level)).map(Self::Level).ok_or_else(allowed)
            }
            Written::Number(level) => Some(level).filter(|level| is_level(*level)).map(Self::Level).ok_or_else(allowed),
        }
    }
}

fn is_level(level: u8) -> bool {
    (LOWEST..=3).contains(&level)
}

impl Config {
    /// The level to try for.
    pub fn wanted_level(&self) -> u8 {
        match self.level {
            Wanted::Auto => self.require.max(2),
            Wanted::Level(level) => level,
        }
    }

    /// Whether there are limits that take a control group.
    pub fn has_group_limits(&self) -> bool {
        self.memory_bytes > 0 || self.cpu_percent > 0 || self.pids > 0
    }

    /// The rules that cross keys; the text names the key and what is allowed.
    pub fn validate(&self) -> Result<(), String> {
        if self.require > 3 {
            return Err(format!("isolation.require = {}: 0 to 3", self.require));
        }
        if let Wanted::Level(level) = self.level
            && level < self.require
        {
            return Err(format!("isolation.require = {}: not above isolation.level = {level}", self.require));
        }
        if self.uid_base < 1000 {
            let base = self.uid_base;
            return Err(format!("isolation.uid_base = {base}: at least 1000, and of users that do not exist"));
        }
        let last = u64::from(self.uid_base) + u64::from(self.uid_count);
        if self.uid_count < 2 || last > u64::from(i32::MAX.unsigned_abs()) {
            let count = self.uid_count;
            return Err(format!("isolation.uid_count = {count}: at least 2, and no id above 2147483647"));
        }
        if self.network_check < Duration::from_millis(100) || self.network_check > Duration::from_hours(1) {
            let every = humantime_serde::re::humantime::format_duration(self.network_check);
            return Err(format!("isolation.network_check = {every}: \"100ms\" to \"1h\""));
        }
        if self.memory_bytes > 0 && self.memory_bytes < 64 << 20 {
            let bytes = self.memory_bytes;
            return Err(format!("isolation.memory_bytes = {bytes}: 0 (not set) or at least 67108864 (64 MiB)"));
        }
        if self.pids > 0 && self.pids < 16 {
            let pids = self.pids;
            return Err(format!(
                "isolation.pids = {pids}: 0 (not set) or at least 16, which PocketBase's threads need"
            ));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_is_a_word_or_a_number() {
        let read = |text: &str| serde_json::from_str::<Wanted>(text);
        assert_eq!(read("\"auto\"").unwrap(), Wanted::Auto);
        assert_eq!(read("2").unwrap(), Wanted::Level(2));
        assert_eq!(read("\"3\"").unwrap(), Wanted::Level(3));
        for wrong in ["4", "\"most\"", "-1", "true"] {
            let error = read(wrong).unwrap_err().to_string();
            assert!(error.contains("\"auto\", 1, 2 or 3"), "{wrong}: {error}");
        }
    }
}

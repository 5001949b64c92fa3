//! Platforms: which of an index's images runs here. Pure.
//!
//! The rules are those of containerd's `platforms` package: names are normalised, and a machine also runs what older
//! ones of its kind run, the newest first.

use std::{fmt, str::FromStr};

/// `linux/arm64`, `linux/arm/v7`; normalised.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    /// Empty where there is but one.
    variant: String,
}

/// Text that is no platform.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a platform: write OS/ARCH or OS/ARCH/VARIANT, such as linux/arm64 or linux/arm/v7")]
pub struct NoPlatform;

impl Platform {
    /// Normalises (containerd's `platforms/database.go`).
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let os = if os.is_empty() { "linux".to_owned() } else { os.to_ascii_lowercase() };
        let (architecture, variant) = (architecture.to_ascii_lowercase(), variant.to_ascii_lowercase());
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1") => ("amd64", ""),
            ("x86_64" | "x86-64" | "amd64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8") => ("arm64", ""),
            ("aarch64" | "arm64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            other => other,
        };
        Self { os, architecture: architecture.to_owned(), variant: variant.to_owned() }
    }

    /// What this machine is, in the names of images.
    pub fn of_this_machine() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "loongarch64" => "loong64",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            other => other,
        };
        Self::new("linux", architecture, "")
    }

    /// How well an image of `other` runs here: 0 best, none not at all.
    pub fn rank(&self, other: &Self) -> Option<usize> {
        self.also_runs().iter().position(|runs| runs == other)
    }

    /// Itself, then what it also runs, the best first (containerd's `platformVector`).
    fn also_runs(&self) -> Vec<Self> {
        let with = |architecture: &str, variant: &str| Self::new(&self.os, architecture, variant);
        let number = |variant: &str| variant.strip_prefix('v').and_then(|n| n.parse::<u8>().ok()).filter(|n| *n < 100);
        let older = |architecture: &str, variant: &str, oldest: u8| {
            let newest = number(variant).unwrap_or(oldest);
            (oldest..newest).rev().map(|n| with(architecture, &format!("v{n}"))).collect::<Vec<_>>()
        };
        let mut all = vec![self.clone()];
        match self.architecture.as_str() {
            "amd64" => {
                all.extend(older("amd64", &self.variant, 1));
                all.push(with("386", ""));
            }
            "arm" => all.extend(older("arm", &self.variant, 5)),
            "arm64" => {
                let variant = if self.variant.is_empty() { "v8" } else { &self.variant };
                all.push(with("arm", variant));
                all.extend(older("arm", variant, 5));
            }
            _ => {}
        }
        all
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if self.variant.is_empty() { Ok(()) } else { write!(f, "/{}", self.variant) }
    }
}

impl FromStr for Platform {
    type Err = NoPlatform;

    fn from_str(text: &str) -> Result<Self, NoPlatform> {
        let parts: Vec<_> = text.split('/').collect();
        let word = |part: &&str| {
            !part.is_empty() && part.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-' | b'.'))
        };
        match parts[..] {
            _ if !parts.iter().all(word) => Err(NoPlatform),
            [os, architecture] => Ok(Self::new(os, architecture, "")),
            [os, architecture, variant] => Ok(Self::new(os, architecture, variant)),
            _ => Err(NoPlatform),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_normalised() {
        for (given, normal) in [
            ("Linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/aarch64/v8", "linux/arm64"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/riscv64", "linux/riscv64"),
        ] {
            assert_eq!(platform(given).to_string(), normal);
        }
        for bad in ["", "linux", "linux/", "/amd64", "a/b/c/d", "linux/am d64"] {
            assert_eq!(bad.parse::<Platform>(), Err(NoPlatform), "{bad}");
        }
    }

    #[test]
    fn a_machine_runs_what_older_ones_run() {
        fn order<'a>(here: &str, offered: &[&'a str]) -> Vec<&'a str> {
            let here = platform(here);
            let mut ranked: Vec<_> = offered.iter().filter_map(|o| Some((here.rank(&platform(o))?, *o))).collect();
            ranked.sort_unstable();
            ranked.into_iter().map(|(_, o)| o).collect()
        }
        let arms = ["linux/arm/v5", "linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/amd64"];
        assert_eq!(order("linux/arm64", &arms), ["linux/arm64", "linux/arm/v7", "linux/arm/v6", "linux/arm/v5"]);
        assert_eq!(order("linux/arm/v6", &arms), ["linux/arm/v6", "linux/arm/v5"]);
        let pcs = ["linux/386", "linux/amd64", "linux/amd64/v2", "windows/amd64", "unknown/unknown"];
        assert_eq!(order("linux/amd64/v3", &pcs), ["linux/amd64/v2", "linux/amd64", "linux/386"]);
        assert_eq!(order("linux/amd64", &pcs), ["linux/amd64", "linux/386"]);
        assert_eq!(order("linux/s390x", &pcs), Vec::<&str>::new());
    }

    #[test]
    fn hostile_variants_cost_nothing() {
        assert_eq!(Platform::new("linux", "arm", "v250").also_runs().len(), 1);
    }
}

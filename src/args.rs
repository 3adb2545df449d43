//! What the command lines of the three programs share: sizes, durations, address lists, logging, the memory default.
//!
//! Drivers only; the cores are given numbers. Parsers answer with a sentence that tells what to write instead.

use std::fs::OpenOptions;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::types::Address;

/// Where a node is found when nothing else is said.
pub const DEFAULT_ADDRESS: &str = "127.0.0.1:7400";

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line, for programs.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(format!("'{text}' is no log format; write text or json")),
        }
    }
}

/// A number of bytes as people write it, for clap's value parsers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse_size(text).map(Size)
    }
}

/// Parses `4096`, `512MiB`, `2G` (powers of 1024) or `500MB` (powers of 1000). Case does not matter, fractions are allowed.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = || format!("'{text}' is not a size; write for example 4096, 512MiB or 2G");
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let (base, power): (u64, u32) = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => (1024, 0),
        "k" | "ki" | "kib" => (1024, 1),
        "m" | "mi" | "mib" => (1024, 2),
        "g" | "gi" | "gib" => (1024, 3),
        "t" | "ti" | "tib" => (1024, 4),
        "kb" => (1000, 1),
        "mb" => (1000, 2),
        "gb" => (1000, 3),
        "tb" => (1000, 4),
        _ => return Err(wrong()),
    };
    let factor = base.pow(power);
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or_else(wrong);
    }
    let fraction = number.parse::<f64>().map_err(|_| wrong())? * factor as f64;
    if !(0.0..1e18).contains(&fraction) {
        return Err(wrong());
    }
    Ok(fraction as u64)
}

/// Parses `10s`, `500ms`, `2m`, `1h`, or plain seconds; fractions are allowed.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is not a duration; write for example 10s or 500ms");
    let trimmed = text.trim();
    let split = trimmed.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(split);
    let factor = match unit.trim() {
        "" | "s" => 1.0,
        "ms" => 1e-3,
        "us" => 1e-6,
        "m" | "min" => 60.0,
        "h" => 3600.0,
        _ => return Err(wrong()),
    };
    let seconds = number.parse::<f64>().map_err(|_| wrong())? * factor;
    if !(0.0..1e9).contains(&seconds) {
        return Err(wrong());
    }
    Ok(Duration::from_secs_f64(seconds))
}

/// Parses a comma-separated list of addresses; at least one.
pub fn parse_addresses(text: &str) -> Result<Vec<Address>, String> {
    text.split(',').map(|part| part.trim().parse()).collect()
}

/// Sends log lines to stderr, or to `file`. `RUST_LOG` overrules `level`. For `main`s only; call it once.
pub fn init_logging(level: &str, format: LogFormat, file: Option<&Path>) -> Result<(), String> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text).map_err(|error| format!("RUST_LOG='{text}': {error}"))?,
        _ => EnvFilter::try_new(level).map_err(|error| format!("--log '{level}': {error}; write for example info or debug"))?,
    };
    let writer = match file {
        Some(path) => {
            let open = OpenOptions::new().create(true).append(true).open(path);
            let file = open.map_err(|error| format!("cannot write the log file {}: {error}", path.display()))?;
            BoxMakeWriter::new(std::sync::Mutex::new(file))
        }
        None => BoxMakeWriter::new(std::io::stderr),
    };
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    let done = match format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
    done.map_err(|error| format!("cannot start logging: {error}"))
}

/// What a node may use unless told: a quarter of the memory that this process may use (the machine's, or its cgroup's limit).
pub fn memory_default() -> u64 {
    let read = |path: &str| std::fs::read_to_string(path).ok();
    let machine = read("/proc/meminfo").and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        Some(line.split_whitespace().nth(1)?.parse::<u64>().ok()? * 1024)
    });
    let own_group = read("/proc/self/cgroup")
        .and_then(|text| Some(text.lines().find_map(|line| line.strip_prefix("0::"))?.to_string()))
        .and_then(|group| read(&format!("/sys/fs/cgroup{group}/memory.max")));
    let limits = [own_group, read("/sys/fs/cgroup/memory.max"), read("/sys/fs/cgroup/memory/memory.limit_in_bytes")];
    let limit = limits.into_iter().flatten().filter_map(|text| text.trim().parse::<u64>().ok()).min();
    machine.unwrap_or(1 << 30).min(limit.unwrap_or(u64::MAX)) / 4
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_in_every_usual_spelling() {
        for (text, bytes) in
            [("0", 0), ("4096", 4096), ("4096B", 4096), ("512MiB", 512 << 20), ("2g", 2 << 30), ("1.5K", 1536), ("3MB", 3_000_000)]
        {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "MiB", "-1", "1X", "1e3", "99999999999T", "1.2.3M"] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_in_every_usual_spelling() {
        for (text, millis) in [("10s", 10_000), ("500ms", 500), ("3", 3000), ("0.5s", 500), ("2m", 120_000)] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "s", "-1s", "1w"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_default_memory_is_sane() {
        assert!((1 << 20..1 << 50).contains(&memory_default()));
    }
}

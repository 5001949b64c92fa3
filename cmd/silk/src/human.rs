//! Sizes, rates and times for people, and sizes from people. Pure.

use std::{fmt::Write as _, time::Duration};

/// Decimal units, as docker and registries print them.
const UNITS: [&str; 6] = ["B", "kB", "MB", "GB", "TB", "PB"];

/// `512 B`, `237.1 MB`.
pub fn bytes(count: u64) -> String {
    if count < 1000 {
        return format!("{count} B");
    }
    let (mut value, mut unit) = (count as f64, 0);
    // 999.95 would be printed as 1000.0.
    while value >= 999.95 && unit < UNITS.len() - 1 {
        value /= 1000.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `45.1 MB/s`; empty where nothing is known.
pub fn rate(bytes_a_second: f64) -> String {
    if bytes_a_second >= 1.0 { format!("{}/s", bytes(bytes_a_second as u64)) } else { String::new() }
}

/// `70 ms`, `2.41 s`, `3 min 5 s`, `1 h 4 min`.
pub fn duration(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0 if time < Duration::from_millis(100) => format!("{} ms", time.as_millis()),
        // 59.995 would be printed as 60.00.
        _ if time < Duration::from_millis(59_995) => format!("{:.2} s", time.as_secs_f64()),
        0..3600 => format!("{} min {} s", seconds.max(60) / 60, seconds.max(60) % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// `1 layer`, `3 layers`.
pub fn count(number: usize, thing: &str) -> String {
    if number == 1 { format!("1 {thing}") } else { format!("{number} {thing}s") }
}

/// Text that is no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a size: a number of bytes, or with a unit, such as 500MB or 10GiB")]
pub struct NoSize;

/// `10GiB`, `1.5 GB`, `4096`: bytes. kB, MB, GB, TB are powers of 1000; KiB, MiB, GiB, TiB of 1024.
///
/// A bare `G` is refused: half of all tools mean one by it, half the other.
pub fn parse_bytes(text: &str) -> Result<u64, NoSize> {
    let text = text.trim();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = (text[..split].trim(), text[split..].to_ascii_lowercase());
    let factor: u64 = match unit.as_str() {
        "" | "b" => 1,
        "kb" => 1000,
        "mb" => 1000_u64.pow(2),
        "gb" => 1000_u64.pow(3),
        "tb" => 1000_u64.pow(4),
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return Err(NoSize),
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).ok_or(NoSize);
    }
    let plain = !number.is_empty() && number.bytes().all(|c| c.is_ascii_digit() || c == b'.');
    let value = number.parse::<f64>().map_err(|_| NoSize)? * factor as f64;
    if plain && factor > 1 && value < u64::MAX as f64 { Ok(value as u64) } else { Err(NoSize) }
}

/// Text of others for a terminal: control characters, which could move the cursor or worse, are shown as escapes.
pub fn clean(text: &str) -> String {
    let mut cleaned = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() && c != '\n' {
            let _ = write!(cleaned, "{}", c.escape_default());
        } else {
            cleaned.push(c);
        }
    }
    cleaned
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (count, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1000, "1.0 kB"),
            (999_949, "999.9 kB"),
            (999_950, "1.0 MB"),
            (237_100_000, "237.1 MB"),
            (u64::MAX, "18446.7 PB"),
        ] {
            assert_eq!(bytes(count), text);
        }
        assert_eq!((rate(45_100_000.4).as_str(), rate(0.0).as_str(), rate(f64::NAN).as_str()), ("45.1 MB/s", "", ""));
    }

    #[test]
    fn times() {
        for (millis, text) in [
            (0, "0 ms"),
            (99, "99 ms"),
            (100, "0.10 s"),
            (2_414, "2.41 s"),
            (59_994, "59.99 s"),
            (59_996, "1 min 0 s"),
            (185_000, "3 min 5 s"),
            (3_599_999, "59 min 59 s"),
            (3_840_000, "1 h 4 min"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn sizes_from_people() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("10GiB", 10 << 30),
            ("10 gib", 10 << 30),
            ("1.5GB", 1_500_000_000),
            ("500MB", 500_000_000),
            ("7b", 7),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
        for bad in
            ["", "GB", "10G", "-1", "1.5", "1e3MB", "nan", "inf GB", "1..2GB", "99999999999999999999", "20000000TiB"]
        {
            assert_eq!(parse_bytes(bad), Err(NoSize), "{bad}");
        }
    }

    #[test]
    fn what_others_wrote_cannot_steer_the_terminal() {
        assert_eq!(clean("a\u{1b}[2Jb\r\nü\u{9b}"), "a\\u{1b}[2Jb\\r\nü\\u{9b}");
    }
}

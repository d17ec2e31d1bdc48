// SPDX-License-Identifier: Apache-2.0 OR MIT
//! The little languages in the manifest's strings: sizes, times, lists of cores, control keys, names.
#![forbid(unsafe_code)]

use cofferdam::plan::{CPUS_MAX, NAME_MAX};

/// Why a string is not a value, and what to write instead.
#[derive(PartialEq, Eq, Debug)]
pub struct Malformed {
    /// What is wrong.
    pub why: String,
    /// What was meant, where that can be guessed.
    pub instead: Option<String>,
}

fn malformed<T>(why: impl Into<String>, instead: Option<String>) -> Result<T, Malformed> {
    Err(Malformed { why: why.into(), instead })
}

/// Reads a size in bytes: a number and K, M or G, binary.
///
/// # Errors
/// Says what is wrong; a bare number is refused.
pub fn size(text: &str) -> Result<u64, Malformed> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let Ok(count) = number.parse::<u64>() else {
        return malformed("a size is a whole number and K, M or G", None);
    };
    let shift = match unit {
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "" => {
            let guess = if count < 1 << 16 { format!("{count}M") } else { guess_size(count) };
            return malformed("a bare number is refused: add K, M or G", Some(guess));
        }
        _ => {
            let first = unit.chars().next().unwrap_or(' ').to_ascii_uppercase();
            let guess = matches!(first, 'K' | 'M' | 'G').then(|| format!("{count}{first}"));
            return malformed("a size ends with K, M or G", guess);
        }
    };
    match count.checked_mul(1 << shift) {
        Some(0) => malformed("a size is not 0", None),
        Some(bytes) => Ok(bytes),
        None => malformed("that many bytes do not fit into 64 bits", None),
    }
}

/// Guesses that a large bare number is in bytes.
fn guess_size(count: u64) -> String {
    format!("{}M", count.div_ceil(1 << 20))
}

/// Reads a time in milliseconds: a number and ms, s or min.
///
/// # Errors
/// Says what is wrong; a bare number is refused.
pub fn duration_ms(text: &str) -> Result<u32, Malformed> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let Ok(count) = number.parse::<u32>() else {
        return malformed("a time is a whole number and ms, s or min", None);
    };
    let factor = match unit {
        "ms" => 1,
        "s" => 1_000,
        "min" => 60_000,
        "" => {
            let text = "a bare number is refused: add ms, s or min";
            return malformed(text, Some(format!("{count}ms")));
        }
        _ => {
            let guess = match unit.to_ascii_lowercase().as_str() {
                "ms" | "msec" => Some("ms"),
                "s" | "sec" | "second" | "seconds" => Some("s"),
                "m" | "min" | "minute" | "minutes" => Some("min"),
                _ => None,
            };
            let guess = guess.map(|unit| format!("{count}{unit}"));
            return malformed("a time ends with ms, s or min", guess);
        }
    };
    match count.checked_mul(factor) {
        Some(0) => malformed("a time is not 0", None),
        Some(milliseconds) => Ok(milliseconds),
        None => malformed("that is more than 49 days", None),
    }
}

/// Reads a list of cores as Linux writes it: `0-3,5`.
///
/// # Errors
/// Says what is wrong: also a core named twice and more cores than a VM can have.
pub fn cpulist(text: &str) -> Result<Vec<u32>, Malformed> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let (Some(first), Some(last)) = (core(first), core(last)) else {
            return malformed("a list of cores looks like \"0-3,5\"", None);
        };
        if last < first {
            let turned = format!("{last}-{first}");
            return malformed("the range ends before it starts", Some(text.replace(part, &turned)));
        }
        for core in first..=last {
            if cores.len() == CPUS_MAX {
                return malformed(format!("a VM has at most {CPUS_MAX} cores"), None);
            }
            if cores.contains(&core) {
                return malformed(format!("core {core} is in the list twice"), None);
            }
            cores.push(core);
        }
    }
    Ok(cores)
}

fn core(text: &str) -> Option<u32> {
    let text = text.trim();
    let plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    plain.then(|| text.parse().ok()).flatten()
}

/// Reads a control key as `^]` and returns its byte.
///
/// # Errors
/// Says what is wrong.
pub fn control_key(text: &str) -> Result<u8, Malformed> {
    match text.as_bytes() {
        [b'^', key @ (b'@'..=b'_' | b'a'..=b'z')] => Ok(key & 0x1f),
        _ => malformed("a control key is ^ and a letter or one of @[\\]^_", Some("^]".into())),
    }
}

/// Checks a VM's name, as EL2 checks it again.
///
/// # Errors
/// Says what is wrong.
pub fn name(text: &str) -> Result<(), Malformed> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let instead = || {
        let replaced = text.bytes().map(|byte| if allowed(byte) { char::from(byte) } else { '-' });
        let replaced: String = replaced.collect::<String>().trim_matches('-').into();
        replaced.chars().take(NAME_MAX).collect::<String>()
    };
    let instead = || Some(instead()).filter(|name| !name.is_empty());
    if text.is_empty() {
        return malformed("a VM's name is empty", None);
    }
    if text.len() > NAME_MAX {
        return malformed(format!("a VM's name has at most {NAME_MAX} characters"), instead());
    }
    if !text.bytes().all(allowed) {
        return malformed("a VM's name has ASCII letters, digits, - and _ only", instead());
    }
    if !text.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return malformed("a VM's name starts with a letter or a digit", instead());
    }
    Ok(())
}

/// Reads a kernel's command line.
///
/// # Errors
/// It is too long, or not one line.
pub fn cmdline(text: &str) -> Result<String, Malformed> {
    /// Linux's COMMAND_LINE_SIZE on arm64, with the zero at the end.
    const BYTES_MAX: usize = 2048;
    // What coffer adds has room as well.
    if text.len() + super::CONSOLE_ARGUMENT.len() + 2 > BYTES_MAX {
        let why = format!("a kernel reads {BYTES_MAX} bytes of command line at most");
        return malformed(why, None);
    }
    if text.chars().any(char::is_control) {
        return malformed("a command line is one line without control characters", None);
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_need_a_unit() {
        assert_eq!(size("64K"), Ok(64 << 10));
        assert_eq!(size("512M"), Ok(512 << 20));
        assert_eq!(size("4G"), Ok(4 << 30));
        assert_eq!(size("512").unwrap_err().instead.as_deref(), Some("512M"));
        assert_eq!(size("536870912").unwrap_err().instead.as_deref(), Some("512M"));
        assert_eq!(size("512MiB").unwrap_err().instead.as_deref(), Some("512M"));
        assert_eq!(size("512m").unwrap_err().instead.as_deref(), Some("512M"));
        for bad in ["", "M", "-1M", "0M", "1.5G", " 1G", "0x10M", "18446744073709551616", "1é"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_size_past_64_bits_is_refused() {
        assert_eq!(size("17179869183G"), Ok(17_179_869_183 << 30));
        assert!(size("17179869184G").is_err());
    }

    #[test]
    fn times_need_a_unit() {
        assert_eq!(duration_ms("200ms"), Ok(200));
        assert_eq!(duration_ms("1s"), Ok(1_000));
        assert_eq!(duration_ms("2min"), Ok(120_000));
        assert_eq!(duration_ms("4294967s"), Ok(4_294_967_000));
        for (text, instead) in [("200", "200ms"), ("3m", "3min"), ("5 S", ""), ("5S", "5s")] {
            let expected = Some(instead).filter(|instead| !instead.is_empty());
            assert_eq!(duration_ms(text).unwrap_err().instead.as_deref(), expected, "{text}");
        }
        for bad in ["", "s", "-1s", "0s", "0ms", "1.5s", " 1s", "4294968s", "4294967296ms", "1h"] {
            assert!(duration_ms(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn cores_are_listed_as_linux_lists_them() {
        assert_eq!(cpulist("0"), Ok(vec![0]));
        assert_eq!(cpulist("0-3,5"), Ok(vec![0, 1, 2, 3, 5]));
        assert_eq!(cpulist("7, 2-3"), Ok(vec![7, 2, 3]));
        for bad in ["", ",", "0,", "a", "-1", "0-", "1-2-3", "+1", "99999999999", "0-64", "0,0-1"] {
            assert!(cpulist(bad).is_err(), "{bad}");
        }
        assert_eq!(cpulist("0,3-1").unwrap_err().instead.as_deref(), Some("0,1-3"));
        // A range that would take for ever to count through.
        assert!(cpulist("0-4294967295").is_err());
    }

    #[test]
    fn control_keys_are_bytes() {
        assert_eq!(control_key("^]"), Ok(0x1d));
        assert_eq!(control_key("^a"), Ok(1));
        assert_eq!(control_key("^A"), Ok(1));
        for bad in ["", "^", "]", "^1", "^]]", "^é"] {
            assert!(control_key(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_are_short_and_plain() {
        assert_eq!(name("linux-a_1"), Ok(()));
        assert_eq!(name(&"x".repeat(31)), Ok(()));
        for bad in ["", "-a", "a b", "a\n", "é", "a/b", &"x".repeat(32)] {
            assert!(name(bad).is_err(), "{bad}");
        }
        assert_eq!(name("my vm").unwrap_err().instead.as_deref(), Some("my-vm"));
    }
}

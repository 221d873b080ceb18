//! Numbers, moments and foreign texts for people.

use crate::schema::Unit;

/// Characters of a foreign text that are shown.
const MAX_CHARS: usize = 512;

/// A text from a black box, fit for a terminal: control characters and those that change the
/// direction of a line or do not show are written as `\u{1b}`; what is longer than 512 characters
/// is cut.
pub fn clean(text: &str) -> String {
    let mut out = String::new();
    for (index, c) in text.chars().enumerate() {
        if index >= MAX_CHARS {
            out.push_str("...");
            break;
        }
        if is_harmful(c) {
            out.extend(c.escape_unicode());
        } else {
            out.push(c);
        }
    }
    out
}

/// Control characters, line separators, and Unicode's invisible and direction marks.
fn is_harmful(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// A span of time: `850 ns`, `4.56 ms`, `1.204 s`, `3 h 12 min`.
pub fn span(ns: u64) -> String {
    const MINUTE: u64 = 60;
    const HOUR: u64 = 60 * MINUTE;
    const DAY: u64 = 24 * HOUR;
    let float = ns as f64;
    let seconds = ns / 1_000_000_000;
    match ns {
        0..1_000 => format!("{ns} ns"),
        1_000..1_000_000 => format!("{:.1} us", float / 1e3),
        1_000_000..1_000_000_000 => format!("{:.2} ms", float / 1e6),
        _ if seconds < MINUTE => format!("{:.3} s", float / 1e9),
        _ if seconds < HOUR => format!("{} min {:02} s", seconds / MINUTE, seconds % MINUTE),
        _ if seconds < DAY => format!("{} h {:02} min", seconds / HOUR, seconds % HOUR / MINUTE),
        _ => format!("{} d {:02} h", seconds / DAY, seconds % DAY / HOUR),
    }
}

/// A number of bytes: `512 B`, `1.5 MiB`.
pub fn bytes(bytes: u64) -> String {
    let mut number = bytes as f64;
    let units = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    for unit in units {
        number /= 1024.0;
        if number < 1024.0 {
            return format!("{number:.1} {unit}");
        }
    }
    format!("{number:.0} EiB")
}

/// A share of a whole, in percent: `12.3 %`; nothing of no whole.
pub fn percent(part: u64, whole: u64) -> String {
    if whole == 0 {
        return String::new();
    }
    format!("{:.1} %", part as f64 * 100.0 / whole as f64)
}

/// So many a second.
pub fn rate(count: u64, ns: u64) -> String {
    if ns == 0 {
        return String::new();
    }
    let rate = count as f64 * 1e9 / ns as f64;
    if rate < 10.0 {
        format!("{rate:.1}")
    } else {
        format!("{rate:.0}")
    }
}

/// A number in its unit. Ticks have to be made nanoseconds before.
pub fn amount(value: u64, unit: Unit) -> String {
    match unit {
        Unit::None => value.to_string(),
        Unit::Nanoseconds | Unit::Ticks => span(value),
        Unit::Bytes => bytes(value),
        Unit::Pages => bytes(value.saturating_mul(4096)),
    }
}

/// How often: `once`, `3 times`.
pub fn times(count: u64) -> String {
    match count {
        0 => "never".to_owned(),
        1 => "once".to_owned(),
        _ => format!("{count} times"),
    }
}

/// An error number of the host's kernel, in words.
pub fn errno(number: u64) -> String {
    match i32::try_from(number) {
        Ok(number) => std::io::Error::from_raw_os_error(number).to_string(),
        Err(_) => format!("error {number}"),
    }
}

/// Nanoseconds since 1970 as a date, in UTC: `2026-11-21 07:16:54.123`.
pub fn date(realtime_ns: u64) -> String {
    let ms = realtime_ns / 1_000_000 % 1000;
    let seconds = realtime_ns / 1_000_000_000;
    let (year, month, day) = civil(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}.{ms:03}")
}

/// How far `at_ns` is from `end_ns`: `-1.204 s`, `+0.031 s`.
pub fn relative(at_ns: u64, end_ns: u64) -> String {
    let far = at_ns.abs_diff(end_ns);
    let sign = if at_ns > end_ns { '+' } else { '-' };
    format!(
        "{sign}{}.{:06} s",
        far / 1_000_000_000,
        far / 1000 % 1_000_000
    )
}

/// Year, month and day of a day since 1970: the Gregorian calendar counts from 1 March in years of
/// the 400-year era, which has 146097 days.
fn civil(day: u64) -> (u64, u64, u64) {
    let day = day.saturating_add(719_468);
    let (era, of_era) = (day / 146_097, day % 146_097);
    let leaps = (of_era / 1460).saturating_add(of_era / 146_096);
    let year_of_era = of_era.saturating_sub(leaps).saturating_add(of_era / 36_524) / 365;
    let before = (year_of_era.saturating_mul(365))
        .saturating_add(year_of_era / 4)
        .saturating_sub(year_of_era / 100);
    let of_year = of_era.saturating_sub(before);
    let shifted = of_year.saturating_mul(5).saturating_add(2) / 153;
    let first = shifted.saturating_mul(153).saturating_add(2) / 5;
    let day = of_year.saturating_sub(first).saturating_add(1);
    let month = match shifted {
        0..10 => shifted.saturating_add(3),
        _ => shifted.saturating_sub(9),
    };
    let year = year_of_era.saturating_add(era.saturating_mul(400));
    (year.saturating_add(u64::from(month <= 2)), month, day)
}

#[cfg(test)]
#[allow(clippy::arithmetic_side_effects)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01 00:00:00.000"),
            (951_782_399, "2000-02-28 23:59:59.000"),
            (951_782_400, "2000-02-29 00:00:00.000"),
            (951_868_800, "2000-03-01 00:00:00.000"),
            (1_735_689_599, "2024-12-31 23:59:59.000"),
            (4_107_542_400, "2100-03-01 00:00:00.000"),
        ] {
            assert_eq!(date(seconds * 1_000_000_000), text);
        }
        assert_eq!(date(1_500_000), "1970-01-01 00:00:00.001");
        assert_eq!(date(u64::MAX), "2554-07-21 23:34:33.709");
    }

    #[test]
    fn numbers_have_a_fit_unit() {
        assert_eq!(span(0), "0 ns");
        assert_eq!(span(12_345), "12.3 us");
        assert_eq!(span(4_560_000), "4.56 ms");
        assert_eq!(span(1_204_000_000), "1.204 s");
        assert_eq!(span(61_000_000_000), "1 min 01 s");
        assert_eq!(span(3_600_000_000_000 * 27), "1 d 03 h");
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(1536 << 10), "1.5 MiB");
        assert_eq!(bytes(u64::MAX), "16.0 EiB");
        assert_eq!(amount(2, Unit::Pages), "8.0 KiB");
        assert_eq!(percent(1, 8), "12.5 %");
        assert_eq!(percent(1, 0), "");
        assert_eq!(rate(3, 2_000_000_000), "1.5");
        assert_eq!(relative(1_000_000_000, 2_204_000_000), "-1.204000 s");
        assert_eq!(relative(2_031_000_000, 2_000_000_000), "+0.031000 s");
        assert!(errno(5).contains("Input/output"));
        assert_eq!(errno(u64::MAX), format!("error {}", u64::MAX));
    }

    #[test]
    fn no_character_acts_on_the_terminal() {
        assert_eq!(clean("\u{1b}[2J\n\u{9b}x"), "\\u{1b}[2J\\u{a}\\u{9b}x");
        assert_eq!(clean("a\u{202e}b"), "a\\u{202e}b");
        assert_eq!(clean("Überlauf 3 %"), "Überlauf 3 %");
        let long = clean(&"x".repeat(10_000));
        assert_eq!(long.len(), 515);
    }
}

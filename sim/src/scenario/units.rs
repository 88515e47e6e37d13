//! Lengths, amounts, rates and shares as people write them in a scenario.

use feiqian_protocol::money::Fen;

const UNITS: [(&str, u64); 5] =
    [("ms", 1), ("s", 1_000), ("min", 60_000), ("h", 3_600_000), ("d", 86_400_000)];

/// A length of time: `250ms`, `90s`, `1h30min`, `3d`; in milliseconds.
///
/// # Errors
/// What is wrong, for a person.
pub(super) fn length(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no length of time (expected e.g. 90s, 250ms, 1h30min, 3d)");
    if text.starts_with('-') {
        return Err(format!("{text:?}: a length of time cannot be negative"));
    }
    let mut rest = text;
    let mut total = 0_u64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let (_, ms) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        let number: u64 = number.parse().map_err(|_| wrong())?;
        total = number.checked_mul(*ms).and_then(|ms| total.checked_add(ms)).ok_or_else(wrong)?;
        rest = after;
    }
    // A year is far more than any run; beyond it timestamps would leave their range.
    if text.is_empty() || total > 366 * 86_400_000 { Err(wrong()) } else { Ok(total) }
}

/// The shortest text for a length.
pub(super) fn length_text(ms: u64) -> String {
    if ms == 0 {
        return "0s".to_owned();
    }
    let exact = UNITS.iter().rev().find(|(_, unit)| ms.is_multiple_of(*unit));
    exact.map_or_else(|| format!("{ms}ms"), |(name, unit)| format!("{}{name}", ms / unit))
}

/// A rate: `64kbit/s`, `10Mbit/s`, `9600bit/s`; in bits per second.
pub(super) fn rate(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no rate (expected e.g. 64kbit/s or 10Mbit/s)");
    let number = text.strip_suffix("bit/s").ok_or_else(wrong)?;
    let (number, factor) = match number.strip_suffix(['k', 'M']) {
        Some(inner) if number.ends_with('k') => (inner, 1_000),
        Some(inner) => (inner, 1_000_000),
        None => (number, 1),
    };
    let bits: u64 = number.trim().parse().map_err(|_| wrong())?;
    bits.checked_mul(factor)
        .filter(|bits| *bits >= 1_000)
        .ok_or_else(|| format!("{text:?}: at least 1kbit/s"))
}

/// Yuan with at most two decimals.
pub(super) fn yuan(text: &str) -> Result<Fen, String> {
    let fen = Fen::parse_yuan(text).map_err(|error| error.to_string())?;
    let allowed = Fen::ZERO..=feiqian_protocol::limits::AMOUNT_FEN_MAX;
    if allowed.contains(&fen) {
        Ok(fen)
    } else {
        Err(format!("{text:?} must be from 0 to {}", allowed.end()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_read_and_written_alike() {
        for (text, ms) in [("250ms", 250), ("90s", 90_000), ("3d", 259_200_000), ("0s", 0), ("2h", 7_200_000)]
        {
            assert_eq!(length(text), Ok(ms));
            assert_eq!(length(&length_text(ms)), Ok(ms));
        }
        assert_eq!(length("1h30min"), Ok(5_400_000));
        assert_eq!(length_text(90_500), "90500ms");
        for bad in ["", "5", "s", "5 s", "-5s", "5weeks", "1000d", "99999999999999999999s"] {
            assert!(length(bad).is_err(), "{bad:?}");
        }
        assert!(length("-5s").is_err_and(|why| why.contains("negative")));
    }

    #[test]
    fn rates_and_amounts_are_read() {
        assert_eq!(rate("64kbit/s"), Ok(64_000));
        assert_eq!(rate("10Mbit/s"), Ok(10_000_000));
        assert_eq!(rate("9600bit/s"), Ok(9_600));
        assert!(rate("64").is_err() && rate("0kbit/s").is_err() && rate("xkbit/s").is_err());
        assert_eq!(yuan("5.5"), Ok(Fen::new(550)));
        assert!(yuan("-1").is_err() && yuan("5.555").is_err());
    }
}

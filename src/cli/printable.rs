//! Text for a terminal: what a user or a file chose cannot move the cursor, and no number fills the
//! screen.

/// `text` with control characters, line breaks and changes of direction escaped.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(escape).collect()
}

fn escape(c: char) -> String {
    let changes_direction =
        matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    if c.is_control() || changes_direction || matches!(c, '\u{2028}' | '\u{2029}') {
        c.escape_default().to_string()
    } else {
        c.to_string()
    }
}

/// `value` with `decimals`, or in scientific notation where that would be long.
pub(super) fn fixed(value: f64, decimals: usize) -> String {
    if value.abs() < 1e12 || !value.is_finite() {
        format!("{value:.decimals$}")
    } else {
        format!("{value:.decimals$e}")
    }
}

/// `value` with all its digits, in scientific notation where zeros would pad them.
pub(super) fn exact(value: f64) -> String {
    if value == 0.0 || !value.is_finite() || (1e-9..1e12).contains(&value.abs()) {
        format!("{value}")
    } else {
        format!("{value:e}")
    }
}

#[cfg(test)]
mod tests {
    use super::{exact, fixed, printable};

    #[test]
    fn what_moves_a_cursor_is_escaped() {
        assert_eq!(printable("a\nb\r\u{1b}[2J"), "a\\nb\\r\\u{1b}[2J");
        assert_eq!(printable("x\u{202e}y\u{9b}\t"), "x\\u{202e}y\\u{9b}\\t");
        assert_eq!(printable("größe 模型"), "größe 模型");
    }

    #[test]
    fn numbers_of_any_size_are_short() {
        assert_eq!(fixed(-0.25, 3), "-0.250");
        assert_eq!(fixed(1e308, 3), "1.000e308");
        assert_eq!(fixed(f64::NAN, 3), "NaN");
        assert_eq!(exact(0.28), "0.28");
        assert_eq!(exact(-1e308), "-1e308");
        assert_eq!(exact(5e-324), "5e-324");
        assert_eq!(exact(f64::INFINITY), "inf");
    }
}

//! One record is one line: whatever a name, a path or a user agent holds.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Replaces what could end a line, steer a terminal or turn the reading direction by `\u00XX`, the
/// form that JSON strings have too.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(is_dangerous) {
        return Cow::Borrowed(text);
    }
    let mut escaped = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        if is_dangerous(c) {
            // Infallible for a String.
            let _infallible = write!(escaped, "\\u{:04x}", u32::from(c));
        } else {
            escaped.push(c);
        }
    }
    Cow::Owned(escaped)
}

/// Control characters (C0, DEL, C1), line and paragraph separators, and the bidirectional controls
/// of Unicode's UAX #9. All lie in the basic plane, so four digits name them.
fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{2028}' | '\u{2029}'
            | '\u{061c}' | '\u{200e}' | '\u{200f}'
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}'
            | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_a_line_or_steers_a_terminal_is_escaped() {
        assert_eq!(escape("plain: größe 価格"), "plain: größe 価格");
        assert_eq!(escape("a\nb\r\t\0"), "a\\u000ab\\u000d\\u0009\\u0000");
        assert_eq!(
            escape("\u{1b}[2J\u{9b}31m\u{7f}"),
            "\\u001b[2J\\u009b31m\\u007f"
        );
        assert_eq!(escape("x\u{2028}y\u{202e}z"), "x\\u2028y\\u202ez");
    }
}

//! A program's output as it is shown on a terminal that it must not steer.
//!
//! Colours pass. Everything else that a terminal would obey, as sequences that move the cursor,
//! set its title or have it type for us, is made visible instead.

use crate::printer::turns_around;

/// Longest sequence of colours that passes.
const COLOUR_CHARACTERS_MAX: usize = 32;
/// Takes every colour back.
const PLAIN: &str = "\u{1b}[0m";

/// What has been read of one stream.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    /// Bytes of a character whose rest is still to come.
    cut: Vec<u8>,
    /// A sequence whose end is still to come.
    sequence: String,
    /// The last character was a carriage return.
    returned: bool,
    /// A colour has passed.
    coloured: bool,
}

impl Shown {
    /// Takes output and returns what is shown of it.
    pub(crate) fn take(&mut self, data: &[u8]) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.cut);
        bytes.extend_from_slice(data);
        let mut text = String::with_capacity(bytes.len());
        let mut seen = 0;
        for chunk in bytes.utf8_chunks() {
            seen += chunk.valid().len() + chunk.invalid().len();
            for character in chunk.valid().chars() {
                self.character(character, &mut text);
            }
            if chunk.invalid().is_empty() {
                continue;
            }
            // What may be the beginning of a character waits for its rest.
            let incomplete = std::str::from_utf8(chunk.invalid())
                .err()
                .is_some_and(|error| error.error_len().is_none());
            if seen == bytes.len() && incomplete {
                self.cut = chunk.invalid().to_vec();
            } else {
                self.character(char::REPLACEMENT_CHARACTER, &mut text);
            }
        }
        text.into_bytes()
    }

    /// Returns what has to be shown last.
    pub(crate) fn end(self) -> Vec<u8> {
        if self.coloured {
            PLAIN.into()
        } else {
            Vec::new()
        }
    }

    fn character(&mut self, character: char, text: &mut String) {
        // A lone carriage return would let a line be written over.
        if std::mem::take(&mut self.returned) && character != '\n' {
            text.push('\n');
        }
        if !self.sequence.is_empty() {
            return self.of_sequence(character, text);
        }
        match character {
            '\u{1b}' => self.sequence.push(character),
            '\r' => self.returned = true,
            '\n' | '\t' => text.push(character),
            _ if character.is_control() || turns_around(character) => {
                text.extend(character.escape_default());
            }
            _ => text.push(character),
        }
    }

    fn of_sequence(&mut self, character: char, text: &mut String) {
        let begins = self.sequence.len() == 1 && character == '[';
        let goes_on = self.sequence.len() > 1
            && self.sequence.len() < COLOUR_CHARACTERS_MAX
            && (character.is_ascii_digit() || matches!(character, ';' | ':'));
        if begins || goes_on {
            self.sequence.push(character);
            return;
        }
        let sequence = std::mem::take(&mut self.sequence);
        if character == 'm' && sequence.len() > 1 && !hides(&sequence) {
            text.push_str(&sequence);
            text.push(character);
            self.coloured = true;
            return;
        }
        for held in sequence.chars() {
            if held.is_control() {
                text.extend(held.escape_default());
            } else {
                text.push(held);
            }
        }
        self.character(character, text);
    }
}

/// Returns whether a sequence makes text invisible.
fn hides(sequence: &str) -> bool {
    let numbers = sequence.trim_start_matches("\u{1b}[");
    numbers
        .split([';', ':'])
        .any(|number| number.trim_start_matches('0') == "8")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(text: &str) -> String {
        let mut shown = Shown::default();
        let whole = String::from_utf8(shown.take(text.as_bytes())).unwrap();
        // In pieces it is the same.
        let mut pieces = Shown::default();
        let parts: Vec<u8> = text.bytes().flat_map(|byte| pieces.take(&[byte])).collect();
        assert_eq!(String::from_utf8(parts).unwrap(), whole);
        whole
    }

    #[test]
    fn text_and_colours_pass() {
        for text in [
            "höflich 日本\n",
            "a\tb",
            "\u{1b}[1;31mred\u{1b}[0m",
            "\u{1b}[m",
        ] {
            assert_eq!(shown(text), text);
        }
        assert_eq!(shown("one\r\ntwo"), "one\ntwo");
        let mut coloured = Shown::default();
        coloured.take(b"\x1b[31mred");
        assert_eq!(coloured.end(), PLAIN.as_bytes());
        assert!(Shown::default().end().is_empty());
    }

    #[test]
    fn what_steers_a_terminal_is_visible() {
        assert_eq!(shown("\u{1b}]0;x\u{7}"), "\\u{1b}]0;x\\u{7}");
        assert_eq!(shown("\u{1b}[2J"), "\\u{1b}[2J");
        assert_eq!(shown("\u{1b}[31\u{1b}[2J"), "\\u{1b}[31\\u{1b}[2J");
        assert_eq!(shown("\u{1b}[8mhidden"), "\\u{1b}[8mhidden");
        assert_eq!(shown("\u{1b}c\u{9b}31m"), "\\u{1b}c\\u{9b}31m");
        assert_eq!(shown("safe\rrm -rf"), "safe\nrm -rf");
        assert_eq!(shown("\u{202e}txt"), "\\u{202e}txt");
        let long = format!("\u{1b}[{}m", "1;".repeat(40));
        assert!(!shown(&long).contains('\u{1b}'));
    }

    #[test]
    fn bytes_that_are_no_text_are_marked() {
        let mut shown = Shown::default();
        assert_eq!(shown.take(b"a\xffb\xc3"), "a\u{fffd}b".as_bytes());
        assert_eq!(shown.take(b"\xbc"), "ü".as_bytes());
    }
}

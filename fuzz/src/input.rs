//! Takes the engine's bytes apart.

/// Bytes from which choices are taken first, and content last.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    /// Takes the whole.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    /// Takes one byte; 0 when there is none.
    pub(crate) fn byte(&mut self) -> u8 {
        match self.0.split_first() {
            Some((byte, rest)) => {
                self.0 = rest;
                *byte
            }
            None => 0,
        }
    }

    /// Takes what comes before a separator, or all.
    pub(crate) fn until(&mut self, separator: u8) -> &'a [u8] {
        let end = self.0.iter().position(|byte| *byte == separator);
        let (part, rest) = match end {
            Some(end) => (
                self.0.get(..end).unwrap_or_default(),
                self.0.get(end + 1..).unwrap_or_default(),
            ),
            None => (self.0, &[][..]),
        };
        self.0 = rest;
        part
    }

    /// Takes a text that ends with a line feed; what is no UTF-8 is replaced.
    pub(crate) fn line(&mut self) -> String {
        String::from_utf8_lossy(self.until(b'\n')).into_owned()
    }

    /// Takes a part whose length stands before it, in two bytes.
    pub(crate) fn part(&mut self) -> &'a [u8] {
        let length = usize::from(self.byte()) << 8 | usize::from(self.byte());
        let (part, rest) = self.0.split_at(length.min(self.0.len()));
        self.0 = rest;
        part
    }

    /// Returns whether nothing is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Takes what is left.
    pub(crate) fn rest(self) -> &'a [u8] {
        self.0
    }
}

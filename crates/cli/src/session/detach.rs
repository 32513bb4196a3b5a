//! How a person leaves a terminal without ending it: `~.` at the beginning of a line, as of ssh. `~~`
//! there is one `~`; any other key behind `~` goes through together with it.

/// Reads the keys as they are typed, in whatever pieces they come.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Detach {
    /// At the beginning of a line.
    #[default]
    LineStart,
    /// Behind a `~` at the beginning of a line, which is held back.
    Tilde,
    /// Anywhere else.
    Within,
}

impl Detach {
    /// What of these keys is to be sent, and whether the person leaves behind it.
    pub(crate) fn take(&mut self, keys: &[u8]) -> (Vec<u8>, bool) {
        let mut sent = Vec::with_capacity(keys.len() + 1);
        for key in keys {
            match (*self, key) {
                (Self::LineStart, b'~') => {
                    *self = Self::Tilde;
                    continue;
                }
                (Self::Tilde, b'.') => return (sent, true),
                (Self::Tilde, b'~') => {}
                (Self::Tilde, _) => sent.push(b'~'),
                (Self::LineStart | Self::Within, _) => {}
            }
            sent.push(*key);
            *self = if matches!(key, b'\r' | b'\n') { Self::LineStart } else { Self::Within };
        }
        (sent, false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is sent of keys that come in these pieces, and whether the person left.
    fn typed(pieces: &[&str]) -> (String, bool) {
        let mut detach = Detach::default();
        let mut sent = Vec::new();
        for piece in pieces {
            let (keys, left) = detach.take(piece.as_bytes());
            sent.extend(keys);
            if left {
                return (String::from_utf8(sent).unwrap(), true);
            }
        }
        (String::from_utf8(sent).unwrap(), false)
    }

    #[test]
    fn only_tilde_and_dot_at_the_beginning_of_a_line_leave() {
        for (pieces, sent, left) in [
            (&["~.ls"][..], "", true),
            (&["ls\r", "~", ".", "x"], "ls\r", true),
            (&["ls ~.\r"], "ls ~.\r", false),
            (&["~~.\r"], "~.\r", false),
            (&["~", "/x\r~."], "~/x\r", true),
            (&["~\r~."], "~\r", true),
            (&["a\n~."], "a\n", true),
            (&["a~."], "a~.", false),
        ] {
            assert_eq!(typed(pieces), (sent.to_owned(), left), "{pieces:?}");
        }
    }
}

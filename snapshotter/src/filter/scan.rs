//! Reads fields, operators and values off a filter.

/// The rest of a filter.
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    /// Where the scanner stands, in bytes from the start.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    pub(super) fn at_end(&mut self) -> bool {
        self.skip_space();
        self.rest().is_empty()
    }

    pub(super) fn sees(&mut self, token: &str) -> bool {
        self.skip_space();
        self.rest().starts_with(token)
    }

    pub(super) fn eat(&mut self, token: &str) -> bool {
        let seen = self.sees(token);
        if seen {
            self.at += token.len();
        }
        seen
    }

    /// A quoted or plain part of a field path.
    pub(super) fn field(&mut self) -> Result<String, &'static str> {
        if self.sees("\"") {
            return self.quoted();
        }
        let rest = self.rest();
        let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
        if end == 0 {
            return Err("expected a field");
        }
        self.at += end;
        Ok(rest[..end].to_owned())
    }

    /// A quoted or plain value.
    pub(super) fn value(&mut self, other_quotes: bool) -> Result<String, &'static str> {
        if self.sees("\"") || (other_quotes && (self.sees("/") || self.sees("|"))) {
            return self.quoted();
        }
        let rest = self.rest();
        let end = rest.find(|c: char| c == ',' || c.is_whitespace()).unwrap_or(rest.len());
        if end == 0 {
            return Err("expected a value");
        }
        self.at += end;
        Ok(rest[..end].to_owned())
    }

    /// A Go string literal in whatever quote comes next.
    fn quoted(&mut self) -> Result<String, &'static str> {
        let mut chars = self.rest().char_indices();
        let quote = chars.next().map(|(_, c)| c);
        let mut value = Vec::new();
        while let Some((at, c)) = chars.next() {
            match c {
                c if Some(c) == quote => {
                    self.at += at + c.len_utf8();
                    return String::from_utf8(value).map_err(|_| "the quoted text is not UTF-8");
                }
                '\n' => break,
                '\\' => escape(&mut chars, quote, &mut value)?,
                c => push(&mut value, c),
            }
        }
        Err("the quoted text does not end")
    }
}

fn push(value: &mut Vec<u8>, c: char) {
    value.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

/// What follows a backslash in a Go string literal.
fn escape(chars: &mut std::str::CharIndices<'_>, quote: Option<char>, value: &mut Vec<u8>) -> Result<(), &'static str> {
    let bad = "unknown escape in the quoted text";
    let (_, c) = chars.next().ok_or(bad)?;
    match c {
        'a' => value.push(7),
        'b' => value.push(8),
        'f' => value.push(12),
        'n' => value.push(b'\n'),
        'r' => value.push(b'\r'),
        't' => value.push(b'\t'),
        'v' => value.push(11),
        '\\' => value.push(b'\\'),
        c if Some(c) == quote => push(value, c),
        'x' => value.push(u8::try_from(number(chars, 0, 2, 16).ok_or(bad)?).map_err(|_| bad)?),
        'u' => push(value, number(chars, 0, 4, 16).and_then(char::from_u32).ok_or(bad)?),
        'U' => push(value, number(chars, 0, 8, 16).and_then(char::from_u32).ok_or(bad)?),
        '0'..='7' => {
            let first = c.to_digit(8).ok_or(bad)?;
            value.push(u8::try_from(number(chars, first, 2, 8).ok_or(bad)?).map_err(|_| bad)?);
        }
        _ => return Err(bad),
    }
    Ok(())
}

/// `digits` more digits after what was read.
fn number(chars: &mut std::str::CharIndices<'_>, read: u32, digits: usize, radix: u32) -> Option<u32> {
    (0..digits).try_fold(read, |n, _| n.checked_mul(radix)?.checked_add(chars.next()?.1.to_digit(radix)?))
}

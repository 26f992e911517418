//! A line of JSON as slices of itself: the fields that are wanted, everything else skipped over.
//!
//! Rollout lines are mostly text and token lists that nobody asks for here, so that nothing is
//! decoded or copied and the search for the end of a skipped value runs at the speed of `memchr`.
//! What is skipped is not validated beyond its end: the brackets of a nested value must match, but
//! `[1,,2 foo]` passes, as does the wrong escape of `"a\qb"` in a text that nobody decodes. Numbers may be `NaN`, `Infinity` and `-Infinity`, which Python's `json` writes.

#[cfg(test)]
mod tests;

use memchr::{memchr, memchr2, memchr3};

/// Deeper nesting than this is no rollout.
const MAX_DEPTH: usize = 512;

/// A JSON value, as it stands in the line.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Json<'a> {
    Null,
    Bool(bool),
    /// Its digits; see [`number`].
    Number(&'a [u8]),
    /// Between the quotes, escapes untouched.
    String(&'a [u8]),
    /// With its brackets.
    Array(&'a [u8]),
    /// With its braces.
    Object(&'a [u8]),
}

impl<'a> Json<'a> {
    /// What it is, for messages.
    pub(super) fn kind(self) -> &'static str {
        match self {
            Self::Null => "null",
            Self::Bool(_) => "a boolean",
            Self::Number(_) => "a number",
            Self::String(_) => "a string",
            Self::Array(_) => "a list",
            Self::Object(_) => "an object",
        }
    }
}

/// Calls `visit` with the key (escapes untouched) and the value of every field of the object that
/// is all of `line`.
pub(super) fn fields<'a>(
    line: &'a [u8],
    mut visit: impl FnMut(&'a [u8], Json<'a>) -> Result<(), String>,
) -> Result<(), String> {
    let mut cursor = Cursor { line, at: 0 };
    cursor.space();
    cursor.expect(b'{', "an object")?;
    cursor.space();
    if cursor.peek() == Some(b'}') {
        cursor.at += 1;
    } else {
        loop {
            cursor.space();
            cursor.expect(b'"', "a key")?;
            let key = cursor.string()?;
            cursor.space();
            cursor.expect(b':', "a colon")?;
            cursor.space();
            visit(key, cursor.value()?)?;
            cursor.space();
            match cursor.next() {
                Some(b',') => {}
                Some(b'}') => break,
                _ => return Err(cursor.broken("a comma or the end of the object", 1)),
            }
        }
    }
    cursor.end()
}

/// Calls `visit` with every element of the array that is all of `array`.
pub(super) fn elements<'a>(
    array: &'a [u8],
    mut visit: impl FnMut(Json<'a>) -> Result<(), String>,
) -> Result<(), String> {
    let mut cursor = Cursor { line: array, at: 0 };
    cursor.expect(b'[', "a list")?;
    cursor.space();
    if cursor.peek() == Some(b']') {
        cursor.at += 1;
        return cursor.end();
    }
    loop {
        cursor.space();
        visit(cursor.value()?)?;
        cursor.space();
        match cursor.next() {
            Some(b',') => {}
            Some(b']') => return cursor.end(),
            _ => return Err(cursor.broken("a comma or the end of the list", 1)),
        }
    }
}

/// The text of a key or string, escapes decoded; `None` if it has wrong ones.
pub(super) fn decode(raw: &[u8]) -> Option<String> {
    if memchr(b'\\', raw).is_none() {
        return std::str::from_utf8(raw).ok().map(str::to_owned);
    }
    let quoted = [b"\"", raw, b"\""].concat();
    serde_json::from_slice(&quoted).ok()
}

/// Bytes of the text of a string, in UTF-8. Half of a surrogate pair counts 3, as U+FFFD, which
/// decoders put in its place; what follows the backslash of a wrong escape counts as it stands.
pub(super) fn text_length(raw: &[u8]) -> u64 {
    let mut length = raw.len();
    let mut rest = raw;
    while let Some(at) = memchr(b'\\', rest) {
        let escape = &rest[at..];
        let (escaped, decoded) = match unit(escape) {
            None => (2.min(escape.len()), 1),
            Some(0..0x80) => (6, 1),
            Some(0x80..0x800) => (6, 2),
            Some(0xd800..0xdc00) if matches!(unit(&escape[6..]), Some(0xdc00..0xe000)) => (12, 4),
            Some(_) => (6, 3),
        };
        length = length - escaped + decoded;
        rest = &escape[escaped..];
    }
    length as u64
}

/// The number of an escape `\uXXXX`.
fn unit(escape: &[u8]) -> Option<u32> {
    let digits = escape.strip_prefix(b"\\u")?.get(..4)?;
    let is_hex = digits.iter().all(u8::is_ascii_hexdigit);
    let digits = std::str::from_utf8(digits).ok().filter(|_| is_hex)?;
    u32::from_str_radix(digits, 16).ok()
}

struct Cursor<'a> {
    line: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    fn peek(&self) -> Option<u8> {
        self.line.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek();
        self.at += 1;
        byte
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\r' | b'\n')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8, what: &str) -> Result<(), String> {
        if self.next() == Some(byte) {
            Ok(())
        } else {
            Err(self.broken(what, 1))
        }
    }

    fn end(&mut self) -> Result<(), String> {
        self.space();
        if self.at == self.line.len() {
            Ok(())
        } else {
            Err(self.broken("the end of the line", 0))
        }
    }

    /// Says what stands `back` bytes before the cursor instead of `expected`.
    fn broken(&self, expected: &str, back: usize) -> String {
        let at = self.at.saturating_sub(back);
        let Some(rest) = self.line.get(at..).filter(|rest| !rest.is_empty()) else {
            return format!("expected {expected}, found the end of the line (cut off?)");
        };
        let shown = String::from_utf8_lossy(&rest[..rest.len().min(16)]);
        format!("expected {expected} at column {}, found `{shown}`", at + 1)
    }

    /// The rest of a string whose opening quote is behind the cursor.
    fn string(&mut self) -> Result<&'a [u8], String> {
        let start = self.at;
        self.skip_string()?;
        Ok(&self.line[start..self.at - 1])
    }

    fn skip_string(&mut self) -> Result<(), String> {
        let start = self.at;
        loop {
            let Some(length) = memchr(b'"', &self.line[self.at..]) else {
                self.at = self.line.len();
                return Err(self.broken("the end of a string", 0));
            };
            self.at += length + 1;
            // Quotes are rarer than backslashes in model output, hence the look back.
            let before = &self.line[start..self.at - 1];
            let escapes = before.iter().rev().take_while(|&&b| b == b'\\').count();
            if escapes % 2 == 0 {
                return Ok(());
            }
        }
    }

    fn value(&mut self) -> Result<Json<'a>, String> {
        let start = self.at;
        match self.next() {
            Some(b'"') => Ok(Json::String(self.string()?)),
            Some(b'[') => {
                self.skip_array()?;
                Ok(Json::Array(&self.line[start..self.at]))
            }
            Some(b'{') => {
                self.skip_nested(b'}')?;
                Ok(Json::Object(&self.line[start..self.at]))
            }
            _ => {
                self.at = start;
                self.scalar()
            }
        }
    }

    fn scalar(&mut self) -> Result<Json<'a>, String> {
        let rest = &self.line[self.at..];
        let is_end = |byte: &u8| matches!(byte, b',' | b'}' | b']' | b' ' | b'\t' | b'\r' | b'\n');
        let length = rest.iter().position(is_end).unwrap_or(rest.len());
        let value = match &rest[..length] {
            b"null" => Json::Null,
            b"true" => Json::Bool(true),
            b"false" => Json::Bool(false),
            text if is_number(text) => Json::Number(text),
            _ => return Err(self.broken("a value", 0)),
        };
        self.at += length;
        Ok(value)
    }

    /// The rest of a list. Lists of numbers, which token ids and log-probs are, have brackets at
    /// their ends only.
    fn skip_array(&mut self) -> Result<(), String> {
        let start = self.at;
        let rest = &self.line[start..];
        if let Some(length) = memchr3(b']', b'[', b'"', rest)
            && rest[length] == b']'
            && memchr2(b'{', b'}', &rest[..length]).is_none()
        {
            self.at += length + 1;
            return Ok(());
        }
        self.skip_nested(b']')
    }

    /// The rest of a list or an object that `closer` ends.
    fn skip_nested(&mut self, closer: u8) -> Result<(), String> {
        let mut closers = vec![closer];
        while let Some(&closer) = closers.last() {
            let rest = &self.line[self.at..];
            let Some(length) = rest.iter().position(|&byte| STRUCTURAL[byte as usize]) else {
                self.at = self.line.len();
                return Err(self.broken("the end of a list or object", 0));
            };
            self.at += length + 1;
            match rest[length] {
                b'"' => self.skip_string()?,
                b'{' => closers.push(b'}'),
                b'[' => {
                    let here = &self.line[self.at..];
                    match memchr3(b']', b'[', b'"', here) {
                        Some(end) if here[end] == b']' && is_flat(&here[..end]) => {
                            self.at += end + 1;
                        }
                        _ => closers.push(b']'),
                    }
                }
                byte if byte == closer => drop(closers.pop()),
                _ => return Err(self.broken(&format!("`{}`", char::from(closer)), 1)),
            }
            if closers.len() > MAX_DEPTH {
                return Err(format!("expected at most {MAX_DEPTH} levels of nesting"));
            }
        }
        Ok(())
    }
}

fn is_flat(items: &[u8]) -> bool {
    memchr2(b'{', b'}', items).is_none()
}

const STRUCTURAL: [bool; 256] = {
    let mut table = [false; 256];
    table[b'"' as usize] = true;
    table[b'{' as usize] = true;
    table[b'}' as usize] = true;
    table[b'[' as usize] = true;
    table[b']' as usize] = true;
    table
};

/// The value of a number. One too large for f64 is infinite.
pub(super) fn number(text: &[u8]) -> Option<f64> {
    match text {
        b"NaN" => Some(f64::NAN),
        b"Infinity" => Some(f64::INFINITY),
        b"-Infinity" => Some(f64::NEG_INFINITY),
        _ if is_number(text) => std::str::from_utf8(text).ok()?.parse().ok(),
        _ => None,
    }
}

/// JSON's grammar, and what Python writes beyond it.
fn is_number(text: &[u8]) -> bool {
    if matches!(text, b"NaN" | b"Infinity" | b"-Infinity") {
        return true;
    }
    let num_digits = |text: &[u8]| text.iter().take_while(|b| b.is_ascii_digit()).count();
    let text = text.strip_prefix(b"-").unwrap_or(text);
    let integer = num_digits(text);
    if integer == 0 || (integer > 1 && text[0] == b'0') {
        return false;
    }
    let mut rest = &text[integer..];
    if let [b'.', fraction @ ..] = rest {
        let length = num_digits(fraction);
        if length == 0 {
            return false;
        }
        rest = &fraction[length..];
    }
    if let [b'e' | b'E', exponent @ ..] = rest {
        let exponent = match exponent {
            [b'+' | b'-', digits @ ..] => digits,
            digits => digits,
        };
        return !exponent.is_empty() && num_digits(exponent) == exponent.len();
    }
    rest.is_empty()
}

/// The bytes of a value that can name something.
pub(super) fn bytes(value: Json<'_>) -> Option<&[u8]> {
    match value {
        Json::Number(bytes) | Json::String(bytes) | Json::Array(bytes) | Json::Object(bytes) => {
            Some(bytes)
        }
        Json::Null | Json::Bool(_) => None,
    }
}

/// Bytes of a text, or of any other value as it stands.
pub(super) fn size(value: Json<'_>) -> u64 {
    match value {
        Json::String(raw) => text_length(raw),
        value => bytes(value).map_or(0, <[u8]>::len) as u64,
    }
}

/// The value at a path of keys.
pub(super) fn at<'a>(value: Option<Json<'a>>, path: &[&str]) -> Result<Option<Json<'a>>, String> {
    let Some((name, path)) = path.split_first() else {
        return Ok(value);
    };
    let Some(Json::Object(object)) = value else {
        return Ok(None);
    };
    let mut found = None;
    fields(object, |key, value| {
        if key == name.as_bytes() {
            found = Some(value);
        }
        Ok(())
    })?;
    at(found, path)
}

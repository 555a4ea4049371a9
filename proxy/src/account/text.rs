//! The text form of access-log lines: `name=value` for each fact, made of the JSON form by the thread
//! that writes, so that whoever ends a connection does the same for both.

use std::borrow::Cow;
use std::fmt;
use std::io::{self, Write};

use serde::Deserializer as _;
use serde::de::{MapAccess, Visitor};
use serde_json::Value;

/// What is written in one go.
const CHUNK_BYTES: usize = 64 * 1024;

/// Writes whole lines of JSON objects as text.
///
/// # Errors
/// What `out` meets.
pub(super) fn write(lines: &[u8], out: &mut dyn Write) -> io::Result<()> {
    let mut text = Vec::with_capacity(CHUNK_BYTES);
    for line in lines.split(|byte| *byte == b'\n') {
        if line.is_empty() {
            continue;
        }
        let facts = serde_json::Deserializer::from_slice(line).deserialize_map(Facts(&mut text));
        debug_assert!(facts.is_ok(), "{facts:?}");
        text.push(b'\n');
        if text.len() >= CHUNK_BYTES {
            out.write_all(&text)?;
            text.clear();
        }
    }
    out.write_all(&text)
}

/// Adds what it reads to a line.
struct Facts<'a>(&'a mut Vec<u8>);

impl<'de> Visitor<'de> for Facts<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a flat object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut before = "";
        while let Some((name, value)) = map.next_entry::<Cow<'_, str>, Value>()? {
            self.0.extend_from_slice(before.as_bytes());
            self.0.extend_from_slice(name.as_bytes());
            self.0.push(b'=');
            match value {
                Value::String(text) => push_value(self.0, &text),
                other @ (Value::Null
                | Value::Bool(_)
                | Value::Number(_)
                | Value::Array(_)
                | Value::Object(_)) => push_value(self.0, &other.to_string()),
            }
            before = " ";
        }
        Ok(())
    }
}

/// Text that reads as one value: in quotes where it has to be, with the escapes of JSON strings, and
/// nothing but visible ASCII and spaces in any case.
fn push_value(line: &mut Vec<u8>, text: &str) {
    let is_plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\\' | b'=');
    if !text.is_empty() && text.bytes().all(is_plain) {
        line.extend_from_slice(text.as_bytes());
        return;
    }
    line.push(b'"');
    for c in text.chars() {
        match c {
            '"' | '\\' => line.extend([b'\\', c as u8]),
            ' '..='~' => line.push(c as u8),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // A `Vec` takes everything.
                    write!(line, "\\u{unit:04x}").ok();
                }
            }
        }
    }
    line.push(b'"');
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn text_of(lines: &str) -> String {
        let mut out = Vec::new();
        write(lines.as_bytes(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    /// A line read as programs read such lines: names, and values bare or as JSON strings.
    fn read(line: &str) -> BTreeMap<String, String> {
        let mut facts = BTreeMap::new();
        let mut rest = line;
        while let Some((name, after)) = rest.split_once('=') {
            let (value, after) = if after.starts_with('"') {
                let mut values = serde_json::Deserializer::from_str(after).into_iter::<String>();
                let value = values.next().unwrap().unwrap();
                (value, &after[values.byte_offset()..])
            } else {
                let end = after.find(' ').unwrap_or(after.len());
                (after[..end].to_owned(), &after[end..])
            };
            facts.insert(name.to_owned(), value);
            rest = after.strip_prefix(' ').unwrap_or(after);
        }
        assert_eq!(rest, "", "{line}");
        facts
    }

    #[test]
    fn each_fact_stands_in_its_order_and_numbers_as_they_are() {
        let lines = "{\"time\":\"1970\",\"error\":\"no such host\",\"level\":2,\"flags\":\"-\"}\n\
                     {\"sni\":\"\",\"http.path\":\"/a=b\"}\n";
        assert_eq!(
            text_of(lines),
            "time=1970 error=\"no such host\" level=2 flags=-\nsni=\"\" http.path=\"/a=b\"\n"
        );
    }

    #[test]
    fn what_moves_a_cursor_or_turns_text_around_is_escaped() {
        let hostile = "a\u{1b}[2J\r\n\u{9b}\u{202e}\u{7f}\u{10ffff} verdict=completed\"\\";
        let text = text_of(&format!("{}\n", json!({ "sni": hostile })));
        let expected =
            r#"sni="a\u001b[2J\u000d\u000a\u009b\u202e\u007f\udbff\udfff verdict=completed\"\\""#;
        assert_eq!(text, format!("{expected}\n"));
        assert_eq!(read(text.trim_end())["sni"], hostile);
    }

    #[test]
    fn many_lines_are_written_in_chunks_and_whole() {
        struct Largest(usize, usize);
        impl Write for Largest {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.max(bytes.len());
                self.1 += bytes.iter().filter(|byte| **byte == b'\n').count();
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let line = format!("{}\n", json!({ "http.path": "/".repeat(1000) }));
        let mut out = Largest(0, 0);
        write(line.repeat(1000).as_bytes(), &mut out).unwrap();
        assert_eq!(out.1, 1000);
        assert!(out.0 < CHUNK_BYTES + 2 * line.len(), "{}", out.0);
    }

    proptest! {
        #[test]
        fn whatever_is_in_a_line_is_read_back(
            facts in proptest::collection::btree_map("[a-z.]{1,9}", any::<String>(), 0..6),
        ) {
            let text = text_of(&format!("{}\n", json!(facts)));
            let line = text.strip_suffix('\n').unwrap();
            prop_assert!(line.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()));
            prop_assert_eq!(read(line), facts);
        }
    }
}

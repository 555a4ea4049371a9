//! How long a value is as a `google.protobuf.Struct`, which is not made for it.

use serde::ser::Serialize;

use super::say::{Form, say};

/// The length of a field whose number is below 16 and whose content is this long.
pub(super) fn field(len: usize) -> usize {
    1 + prost::length_delimiter_len(len) + len
}

/// The same of a text that a message leaves out where it is empty.
pub(super) fn text_field(text: &str) -> usize {
    if text.is_empty() {
        0
    } else {
        field(text.len())
    }
}

/// The length of the struct; 0 for what is no struct.
pub(super) fn of_struct<T: Serialize>(value: &T) -> usize {
    match say(value) {
        Ok(Len::Struct(len)) => len,
        Ok(Len::Other(_)) | Err(_) => 0,
    }
}

/// The length of a `google.protobuf.Value`, or of the struct within one.
enum Len {
    Struct(usize),
    Other(usize),
}

impl Len {
    fn of_value(self) -> usize {
        match self {
            Self::Struct(len) => field(len),
            Self::Other(len) => len,
        }
    }
}

/// What a bool or a null takes: the number of its field and one byte.
const SMALL: usize = 2;
/// What a number takes, which is a double.
const NUMBER: usize = 9;

impl Form for Len {
    type List = usize;
    type Fields = usize;

    fn null() -> Self {
        Self::Other(SMALL)
    }

    fn truth(_: bool) -> Self {
        Self::Other(SMALL)
    }

    fn number(_: f64) -> Self {
        Self::Other(NUMBER)
    }

    fn text(text: &str) -> Self {
        Self::Other(field(text.len()))
    }

    fn begin_list(_: usize) -> usize {
        0
    }

    fn add(list: &mut usize, one: Self) {
        *list += field(one.of_value());
    }

    fn list(list: usize) -> Self {
        Self::Other(field(list))
    }

    fn begin_fields(_: usize) -> usize {
        0
    }

    fn set(fields: &mut usize, key: &str, value: Self) {
        *fields += field(text_field(key) + field(value.of_value()));
    }

    fn fields(fields: usize) -> Self {
        Self::Struct(fields)
    }
}

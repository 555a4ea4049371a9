//! How long a value is as a `google.protobuf.Struct`, which is not made for it.

use std::fmt::Display;

use serde::ser::{self, Serialize, Serializer};

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
    match value.serialize(Len) {
        Ok(Value::Struct(len)) => len,
        Ok(Value::Other(_)) | Err(Unsaid) => 0,
    }
}

/// The length of a `google.protobuf.Value`, or of the struct within one.
enum Value {
    Struct(usize),
    Other(usize),
}

impl Value {
    fn len(self) -> usize {
        match self {
            Self::Struct(len) => field(len),
            Self::Other(len) => len,
        }
    }
}

/// A value that JSON could not say either.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the value has no form in JSON")]
pub(super) struct Unsaid;

impl ser::Error for Unsaid {
    fn custom<T: Display>(_: T) -> Self {
        Self
    }
}

struct Len;

/// What a bool or a null takes: the number of its field and one byte.
const SMALL: usize = 2;
/// What a number takes, which is a double.
const NUMBER: usize = 9;

macro_rules! numbers {
    ($($name:ident: $number:ty),*) => {$(
        fn $name(self, _: $number) -> Result<Value, Unsaid> {
            Ok(Value::Other(NUMBER))
        }
    )*};
}

impl Serializer for Len {
    type Ok = Value;
    type Error = Unsaid;
    type SerializeSeq = List;
    type SerializeTuple = List;
    type SerializeTupleStruct = List;
    type SerializeTupleVariant = ser::Impossible<Value, Unsaid>;
    type SerializeMap = ser::Impossible<Value, Unsaid>;
    type SerializeStruct = Fields;
    type SerializeStructVariant = ser::Impossible<Value, Unsaid>;

    numbers! {
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_u64: u64,
        serialize_f32: f32, serialize_f64: f64
    }

    fn serialize_bool(self, _: bool) -> Result<Value, Unsaid> {
        Ok(Value::Other(SMALL))
    }

    fn serialize_char(self, c: char) -> Result<Value, Unsaid> {
        Ok(Value::Other(field(c.len_utf8())))
    }

    fn serialize_str(self, text: &str) -> Result<Value, Unsaid> {
        Ok(Value::Other(field(text.len())))
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<Value, Unsaid> {
        Err(Unsaid)
    }

    fn serialize_none(self) -> Result<Value, Unsaid> {
        Ok(Value::Other(SMALL))
    }

    fn serialize_some<T: ?Sized + Serialize>(self, value: &T) -> Result<Value, Unsaid> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<Value, Unsaid> {
        Ok(Value::Other(SMALL))
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<Value, Unsaid> {
        Ok(Value::Other(SMALL))
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<Value, Unsaid> {
        self.serialize_str(variant)
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        value: &T,
    ) -> Result<Value, Unsaid> {
        value.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<Value, Unsaid> {
        let mut fields = Fields(0);
        fields.add(variant, value)?;
        Ok(Value::Struct(fields.0))
    }

    fn serialize_seq(self, _: Option<usize>) -> Result<List, Unsaid> {
        Ok(List(0))
    }

    fn serialize_tuple(self, _: usize) -> Result<List, Unsaid> {
        Ok(List(0))
    }

    fn serialize_tuple_struct(self, _: &'static str, _: usize) -> Result<List, Unsaid> {
        Ok(List(0))
    }

    fn serialize_tuple_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeTupleVariant, Unsaid> {
        Err(Unsaid)
    }

    fn serialize_map(self, _: Option<usize>) -> Result<Self::SerializeMap, Unsaid> {
        Err(Unsaid)
    }

    fn serialize_struct(self, _: &'static str, _: usize) -> Result<Fields, Unsaid> {
        Ok(Fields(0))
    }

    fn serialize_struct_variant(
        self,
        _: &'static str,
        _: u32,
        _: &'static str,
        _: usize,
    ) -> Result<Self::SerializeStructVariant, Unsaid> {
        Err(Unsaid)
    }
}

struct List(usize);

impl List {
    fn add<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Unsaid> {
        self.0 += field(value.serialize(Len)?.len());
        Ok(())
    }

    fn value(self) -> Value {
        Value::Other(field(self.0))
    }
}

macro_rules! lists {
    ($($name:ident: $add:ident),*) => {$(
        impl ser::$name for List {
            type Ok = Value;
            type Error = Unsaid;

            fn $add<T: ?Sized + Serialize>(&mut self, value: &T) -> Result<(), Unsaid> {
                self.add(value)
            }

            fn end(self) -> Result<Value, Unsaid> {
                Ok(self.value())
            }
        }
    )*};
}

lists!(SerializeSeq: serialize_element, SerializeTuple: serialize_element, SerializeTupleStruct: serialize_field);

struct Fields(usize);

impl Fields {
    fn add<T: ?Sized + Serialize>(&mut self, key: &str, value: &T) -> Result<(), Unsaid> {
        let entry = text_field(key) + field(value.serialize(Len)?.len());
        self.0 += field(entry);
        Ok(())
    }
}

impl ser::SerializeStruct for Fields {
    type Ok = Value;
    type Error = Unsaid;

    fn serialize_field<T: ?Sized + Serialize>(
        &mut self,
        key: &'static str,
        value: &T,
    ) -> Result<(), Unsaid> {
        self.add(key, value)
    }

    fn end(self) -> Result<Value, Unsaid> {
        Ok(Value::Struct(self.0))
    }
}

//! A value as a `google.protobuf.Struct`, as JSON would say it.

use std::collections::HashMap;

use serde::ser::{self, Serialize, Serializer};

use super::len::Unsaid;
use super::{Kind, ListValue, PbValue, Struct};

/// The struct of a value; `None` for what is no struct.
pub(super) fn to_struct<T: Serialize>(value: &T) -> Option<Struct> {
    match value.serialize(Write).ok()?.kind? {
        Kind::StructValue(fields) => Some(fields),
        Kind::NullValue(_)
        | Kind::BoolValue(_)
        | Kind::NumberValue(_)
        | Kind::StringValue(_)
        | Kind::ListValue(_) => None,
    }
}

const fn value(kind: Kind) -> PbValue {
    PbValue { kind: Some(kind) }
}

fn text(text: &str) -> PbValue {
    value(Kind::StringValue(text.to_owned()))
}

struct Write;

macro_rules! numbers {
    ($($name:ident: $number:ty),*) => {$(
        fn $name(self, number: $number) -> Result<PbValue, Unsaid> {
            self.serialize_f64(number.into())
        }
    )*};
}

impl Serializer for Write {
    type Ok = PbValue;
    type Error = Unsaid;
    type SerializeSeq = List;
    type SerializeTuple = List;
    type SerializeTupleStruct = List;
    type SerializeTupleVariant = ser::Impossible<PbValue, Unsaid>;
    type SerializeMap = ser::Impossible<PbValue, Unsaid>;
    type SerializeStruct = Fields;
    type SerializeStructVariant = ser::Impossible<PbValue, Unsaid>;

    numbers! {
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_f32: f32
    }

    fn serialize_i64(self, number: i64) -> Result<PbValue, Unsaid> {
        // The nearest double, which is all that protobuf has.
        self.serialize_f64(number as f64)
    }

    fn serialize_u64(self, number: u64) -> Result<PbValue, Unsaid> {
        self.serialize_f64(number as f64)
    }

    fn serialize_f64(self, number: f64) -> Result<PbValue, Unsaid> {
        if number.is_finite() {
            Ok(value(Kind::NumberValue(number)))
        } else {
            self.serialize_unit()
        }
    }

    fn serialize_bool(self, is_true: bool) -> Result<PbValue, Unsaid> {
        Ok(value(Kind::BoolValue(is_true)))
    }

    fn serialize_char(self, c: char) -> Result<PbValue, Unsaid> {
        Ok(value(Kind::StringValue(c.into())))
    }

    fn serialize_str(self, said: &str) -> Result<PbValue, Unsaid> {
        Ok(text(said))
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<PbValue, Unsaid> {
        Err(Unsaid)
    }

    fn serialize_none(self) -> Result<PbValue, Unsaid> {
        self.serialize_unit()
    }

    fn serialize_some<T: ?Sized + Serialize>(self, some: &T) -> Result<PbValue, Unsaid> {
        some.serialize(self)
    }

    fn serialize_unit(self) -> Result<PbValue, Unsaid> {
        Ok(value(Kind::NullValue(0)))
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<PbValue, Unsaid> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<PbValue, Unsaid> {
        Ok(text(variant))
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        inner: &T,
    ) -> Result<PbValue, Unsaid> {
        inner.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        inner: &T,
    ) -> Result<PbValue, Unsaid> {
        let mut fields = Fields(HashMap::with_capacity(1));
        ser::SerializeStruct::serialize_field(&mut fields, variant, inner)?;
        ser::SerializeStruct::end(fields)
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<List, Unsaid> {
        Ok(List(Vec::with_capacity(len.unwrap_or_default())))
    }

    fn serialize_tuple(self, len: usize) -> Result<List, Unsaid> {
        self.serialize_seq(Some(len))
    }

    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<List, Unsaid> {
        self.serialize_seq(Some(len))
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

    fn serialize_struct(self, _: &'static str, len: usize) -> Result<Fields, Unsaid> {
        Ok(Fields(HashMap::with_capacity(len)))
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

struct List(Vec<PbValue>);

macro_rules! lists {
    ($($name:ident: $add:ident),*) => {$(
        impl ser::$name for List {
            type Ok = PbValue;
            type Error = Unsaid;

            fn $add<T: ?Sized + Serialize>(&mut self, one: &T) -> Result<(), Unsaid> {
                self.0.push(one.serialize(Write)?);
                Ok(())
            }

            fn end(self) -> Result<PbValue, Unsaid> {
                Ok(value(Kind::ListValue(ListValue { values: self.0 })))
            }
        }
    )*};
}

lists!(SerializeSeq: serialize_element, SerializeTuple: serialize_element, SerializeTupleStruct: serialize_field);

struct Fields(HashMap<String, PbValue>);

impl ser::SerializeStruct for Fields {
    type Ok = PbValue;
    type Error = Unsaid;

    fn serialize_field<T: ?Sized + Serialize>(
        &mut self,
        key: &'static str,
        inner: &T,
    ) -> Result<(), Unsaid> {
        self.0.insert(key.to_owned(), inner.serialize(Write)?);
        Ok(())
    }

    fn end(self) -> Result<PbValue, Unsaid> {
        Ok(value(Kind::StructValue(Struct { fields: self.0 })))
    }
}

//! What serde says of a value, in any form that a `google.protobuf.Struct` has: the message itself, or how
//! long it is.

use std::fmt::Display;
use std::marker::PhantomData;

use serde::ser::{self, Serialize, Serializer};

/// A form of a `google.protobuf.Value`.
pub(super) trait Form: Sized {
    type List;
    type Fields;

    fn null() -> Self;
    fn truth(is_true: bool) -> Self;
    /// Of a finite number.
    fn number(number: f64) -> Self;
    fn text(text: &str) -> Self;
    fn begin_list(len: usize) -> Self::List;
    fn add(list: &mut Self::List, one: Self);
    fn list(list: Self::List) -> Self;
    fn begin_fields(len: usize) -> Self::Fields;
    fn set(fields: &mut Self::Fields, key: &str, value: Self);
    fn fields(fields: Self::Fields) -> Self;
}

/// The form of a value.
///
/// # Errors
/// [`Unsaid`].
pub(super) fn say<F: Form, T: ?Sized + Serialize>(value: &T) -> Result<F, Unsaid> {
    value.serialize(Say(PhantomData))
}

/// A value that has no form here: bytes, maps, and variants of several fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the value has no form in a struct of protobuf")]
pub(super) struct Unsaid;

impl ser::Error for Unsaid {
    fn custom<T: Display>(_: T) -> Self {
        Self
    }
}

struct Say<F>(PhantomData<F>);

macro_rules! numbers {
    ($($name:ident: $number:ty),*) => {$(
        fn $name(self, number: $number) -> Result<F, Unsaid> {
            self.serialize_f64(number.into())
        }
    )*};
}

impl<F: Form> Serializer for Say<F> {
    type Ok = F;
    type Error = Unsaid;
    type SerializeSeq = List<F>;
    type SerializeTuple = List<F>;
    type SerializeTupleStruct = List<F>;
    type SerializeTupleVariant = ser::Impossible<F, Unsaid>;
    type SerializeMap = ser::Impossible<F, Unsaid>;
    type SerializeStruct = Fields<F>;
    type SerializeStructVariant = ser::Impossible<F, Unsaid>;

    numbers! {
        serialize_i8: i8, serialize_i16: i16, serialize_i32: i32,
        serialize_u8: u8, serialize_u16: u16, serialize_u32: u32, serialize_f32: f32
    }

    fn serialize_i64(self, number: i64) -> Result<F, Unsaid> {
        // The nearest double, which is all that protobuf has.
        self.serialize_f64(number as f64)
    }

    fn serialize_u64(self, number: u64) -> Result<F, Unsaid> {
        self.serialize_f64(number as f64)
    }

    fn serialize_f64(self, number: f64) -> Result<F, Unsaid> {
        // As JSON has it.
        Ok(if number.is_finite() {
            F::number(number)
        } else {
            F::null()
        })
    }

    fn serialize_bool(self, is_true: bool) -> Result<F, Unsaid> {
        Ok(F::truth(is_true))
    }

    fn serialize_char(self, c: char) -> Result<F, Unsaid> {
        Ok(F::text(c.encode_utf8(&mut [0; 4])))
    }

    fn serialize_str(self, text: &str) -> Result<F, Unsaid> {
        Ok(F::text(text))
    }

    fn serialize_bytes(self, _: &[u8]) -> Result<F, Unsaid> {
        Err(Unsaid)
    }

    fn serialize_none(self) -> Result<F, Unsaid> {
        Ok(F::null())
    }

    fn serialize_some<T: ?Sized + Serialize>(self, some: &T) -> Result<F, Unsaid> {
        some.serialize(self)
    }

    fn serialize_unit(self) -> Result<F, Unsaid> {
        Ok(F::null())
    }

    fn serialize_unit_struct(self, _: &'static str) -> Result<F, Unsaid> {
        Ok(F::null())
    }

    fn serialize_unit_variant(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
    ) -> Result<F, Unsaid> {
        Ok(F::text(variant))
    }

    fn serialize_newtype_struct<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        inner: &T,
    ) -> Result<F, Unsaid> {
        inner.serialize(self)
    }

    fn serialize_newtype_variant<T: ?Sized + Serialize>(
        self,
        _: &'static str,
        _: u32,
        variant: &'static str,
        inner: &T,
    ) -> Result<F, Unsaid> {
        let mut fields = F::begin_fields(1);
        F::set(&mut fields, variant, say(inner)?);
        Ok(F::fields(fields))
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<List<F>, Unsaid> {
        Ok(List(F::begin_list(len.unwrap_or_default())))
    }

    fn serialize_tuple(self, len: usize) -> Result<List<F>, Unsaid> {
        self.serialize_seq(Some(len))
    }

    fn serialize_tuple_struct(self, _: &'static str, len: usize) -> Result<List<F>, Unsaid> {
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

    fn serialize_struct(self, _: &'static str, len: usize) -> Result<Fields<F>, Unsaid> {
        Ok(Fields(F::begin_fields(len)))
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

struct List<F: Form>(F::List);

macro_rules! lists {
    ($($name:ident: $add:ident),*) => {$(
        impl<F: Form> ser::$name for List<F> {
            type Ok = F;
            type Error = Unsaid;

            fn $add<T: ?Sized + Serialize>(&mut self, one: &T) -> Result<(), Unsaid> {
                F::add(&mut self.0, say(one)?);
                Ok(())
            }

            fn end(self) -> Result<F, Unsaid> {
                Ok(F::list(self.0))
            }
        }
    )*};
}

lists!(SerializeSeq: serialize_element, SerializeTuple: serialize_element, SerializeTupleStruct: serialize_field);

struct Fields<F: Form>(F::Fields);

impl<F: Form> ser::SerializeStruct for Fields<F> {
    type Ok = F;
    type Error = Unsaid;

    fn serialize_field<T: ?Sized + Serialize>(
        &mut self,
        key: &'static str,
        inner: &T,
    ) -> Result<(), Unsaid> {
        F::set(&mut self.0, key, say(inner)?);
        Ok(())
    }

    fn end(self) -> Result<F, Unsaid> {
        Ok(F::fields(self.0))
    }
}

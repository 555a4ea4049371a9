//! Any value from a `google.protobuf.Struct`, as from the JSON that it stands for.

use std::fmt::Display;

use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{
    Deserialize, Deserializer, Error as _, Expected, IntoDeserializer, Unexpected, Visitor,
};
use serde::forward_to_deserialize_any;

use super::{Kind, PbValue, Struct, whole};

/// What is wrong, in the words of JSON.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Error(String);

impl serde::de::Error for Error {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }

    fn invalid_type(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self(format!(
            "invalid type: {}, expected {expected}",
            in_json(found)
        ))
    }

    fn invalid_value(found: Unexpected<'_>, expected: &dyn Expected) -> Self {
        Self(format!(
            "invalid value: {}, expected {expected}",
            in_json(found)
        ))
    }
}

fn in_json(found: Unexpected<'_>) -> String {
    if found == Unexpected::Unit {
        "null".to_owned()
    } else {
        found.to_string()
    }
}

/// Reads it.
///
/// # Errors
/// What is missing, not known or of another kind.
pub(super) fn from_struct<'de, T: Deserialize<'de>>(fields: &'de Struct) -> Result<T, Error> {
    T::deserialize(Fields(fields))
}

/// Its fields by name, since protobuf's map has no order: of several errors it is always the same.
fn sorted(fields: &Struct) -> impl Iterator<Item = (&str, Of<'_>)> {
    let mut entries: Vec<_> = fields.fields.iter().collect();
    entries.sort_unstable_by_key(|(key, _)| key.as_str());
    entries
        .into_iter()
        .map(|(key, value)| (key.as_str(), Of(value)))
}

struct Fields<'de>(&'de Struct);

impl<'de> Deserializer<'de> for Fields<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        let mut fields = MapDeserializer::new(sorted(self.0));
        let value = visitor.visit_map(&mut fields)?;
        fields.end()?;
        Ok(value)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        if self.0.fields.len() != 1 {
            return Err(Error::invalid_value(
                Unexpected::Map,
                &"map with a single key",
            ));
        }
        let mut fields = MapDeserializer::new(sorted(self.0));
        let value = visitor.visit_enum(MapAccessDeserializer::new(&mut fields))?;
        fields.end()?;
        Ok(value)
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

#[derive(Clone, Copy)]
struct Of<'de>(&'de PbValue);

impl<'de> Of<'de> {
    /// `None` for null, and for a number that JSON has none of and writes as null.
    fn kind(self) -> Option<&'de Kind> {
        self.0.kind.as_ref().filter(|kind| match kind {
            Kind::NullValue(_) => false,
            Kind::NumberValue(value) => value.is_finite(),
            Kind::BoolValue(_)
            | Kind::StringValue(_)
            | Kind::ListValue(_)
            | Kind::StructValue(_) => true,
        })
    }

    fn unexpected(self) -> Unexpected<'de> {
        match self.kind() {
            None | Some(Kind::NullValue(_)) => Unexpected::Unit,
            Some(Kind::BoolValue(value)) => Unexpected::Bool(*value),
            Some(Kind::NumberValue(value)) => {
                whole(*value).map_or(Unexpected::Float(*value), Unexpected::Unsigned)
            }
            Some(Kind::StringValue(value)) => Unexpected::Str(value),
            Some(Kind::ListValue(_)) => Unexpected::Seq,
            Some(Kind::StructValue(_)) => Unexpected::Map,
        }
    }
}

impl<'de> IntoDeserializer<'de, Error> for Of<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

impl<'de> Deserializer<'de> for Of<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.kind() {
            None | Some(Kind::NullValue(_)) => visitor.visit_unit(),
            Some(Kind::BoolValue(value)) => visitor.visit_bool(*value),
            Some(Kind::NumberValue(value)) => match whole(*value) {
                Some(value) => visitor.visit_u64(value),
                None => visitor.visit_f64(*value),
            },
            Some(Kind::StringValue(value)) => visitor.visit_borrowed_str(value),
            Some(Kind::ListValue(list)) => {
                let mut values = SeqDeserializer::new(list.values.iter().map(Of));
                let value = visitor.visit_seq(&mut values)?;
                values.end()?;
                Ok(value)
            }
            Some(Kind::StructValue(fields)) => Fields(fields).deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Error> {
        match self.kind() {
            None | Some(Kind::NullValue(_)) => visitor.visit_none(),
            Some(_) => visitor.visit_some(self),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        visitor: V,
    ) -> Result<V::Value, Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Error> {
        match self.kind() {
            Some(Kind::StringValue(value)) => {
                visitor.visit_enum(value.as_str().into_deserializer())
            }
            Some(Kind::StructValue(fields)) => {
                Fields(fields).deserialize_enum(name, variants, visitor)
            }
            _ => Err(Error::invalid_type(self.unexpected(), &"string or map")),
        }
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit
        unit_struct seq tuple tuple_struct map struct identifier ignored_any
    }
}

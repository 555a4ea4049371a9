//! A value as a `google.protobuf.Struct`, as JSON would say it.

use std::collections::HashMap;

use serde::ser::Serialize;

use super::say::{Form, say};
use super::{Kind, ListValue, PbValue, Struct};

/// The struct of a value; `None` for what is no struct.
pub(super) fn to_struct<T: Serialize>(value: &T) -> Option<Struct> {
    match say::<Kind, T>(value).ok()? {
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

impl Form for Kind {
    type List = Vec<PbValue>;
    type Fields = HashMap<String, PbValue>;

    fn null() -> Self {
        Self::NullValue(0)
    }

    fn truth(is_true: bool) -> Self {
        Self::BoolValue(is_true)
    }

    fn number(number: f64) -> Self {
        Self::NumberValue(number)
    }

    fn text(text: &str) -> Self {
        Self::StringValue(text.to_owned())
    }

    fn begin_list(len: usize) -> Self::List {
        Vec::with_capacity(len)
    }

    fn add(list: &mut Self::List, one: Self) {
        list.push(value(one));
    }

    fn list(values: Self::List) -> Self {
        Self::ListValue(ListValue { values })
    }

    fn begin_fields(len: usize) -> Self::Fields {
        HashMap::with_capacity(len)
    }

    fn set(fields: &mut Self::Fields, key: &str, inner: Self) {
        fields.insert(key.to_owned(), value(inner));
    }

    fn fields(fields: Self::Fields) -> Self {
        Self::StructValue(Struct { fields })
    }
}

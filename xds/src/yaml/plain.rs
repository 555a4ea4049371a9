//! Plain documents: from the parser's events straight into their type.
//!
//! What the general reader does for each value, that there may be aliases, tags, merge keys and comments
//! and that an error may have to tell of its place, takes as much as the parsing itself, and hardly a
//! document has any of it. So a document is tried here first. This reader gives up wherever it is in
//! doubt, for [`read`](super::read) has the verdict then; what it reads it reads as that one does.

use std::borrow::Cow;
use std::fmt;

use granit_parser::{Event, Options, Parser, ScalarStyle, StrInput};
use serde::de::{
    self, Deserialize, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess,
    SeqAccess, VariantAccess, Visitor,
};

/// Bytes of a document; in longer ones there might be more values than one may have
/// ([`NODES_MAX`](super::NODES_MAX)), which are not counted here.
const TEXT_MAX: usize = 1_000_000;

/// The name by which a type asks for the line of its value with it: it is visited as a sequence of both.
pub(super) const PLACED: &str = "zeugma::yaml::Placed";

/// Reads a document; `None` is no verdict.
pub(super) fn read<'de, T: Deserialize<'de>>(text: &'de str) -> Option<T> {
    if text.len() > TEXT_MAX {
        return None;
    }
    Reader::new(text).document().ok()
}

/// The general reader has to look at it.
#[derive(Debug)]
struct InDoubt;

impl fmt::Display for InDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not a plain document")
    }
}

impl std::error::Error for InDoubt {}

impl de::Error for InDoubt {
    fn custom<M: fmt::Display>(_: M) -> Self {
        Self
    }
}

enum Node<'de> {
    Scalar(Scalar<'de>),
    List,
    ListEnd,
    Map,
    MapEnd,
}

struct Scalar<'de> {
    text: Cow<'de, str>,
    is_quoted: bool,
}

impl<'de> Scalar<'de> {
    /// Whether it says that there is nothing (YAML 1.2.2, section 10.2.1.1, and what is empty).
    fn is_null(&self) -> bool {
        !self.is_quoted && matches!(&*self.text, "" | "~" | "null" | "Null" | "NULL")
    }

    /// Whether it is text to one who takes whatever there is.
    fn is_text(&self) -> bool {
        if self.is_quoted {
            return true;
        }
        let text = &*self.text;
        // No number has a colon or two dots. What begins with a letter is a word, if none of these.
        let words = ["true", "false", "null", "nan", "inf", "infinity"];
        text.contains(':')
            || text.bytes().filter(|byte| *byte == b'.').count() > 1
            || text.starts_with(|first: char| first.is_ascii_alphabetic())
                && !words.iter().any(|word| text.eq_ignore_ascii_case(word))
    }

    fn visit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InDoubt> {
        match self.text {
            Cow::Borrowed(text) => visitor.visit_borrowed_str(text),
            Cow::Owned(text) => visitor.visit_string(text),
        }
    }
}

struct Reader<'de> {
    parser: Parser<'de, StrInput<'de>>,
    /// What was looked at and not yet taken.
    ahead: Option<Node<'de>>,
    /// Where the node stands that was parsed last, from 1.
    line: u32,
}

impl<'de> Reader<'de> {
    fn new(text: &'de str) -> Self {
        let mut options = Options::default();
        options.set_emit_comments(false);
        Self {
            parser: Parser::new_from_str_with_options(text, options),
            ahead: None,
            line: 1,
        }
    }

    fn document<T: Deserialize<'de>>(&mut self) -> Result<T, InDoubt> {
        let Event::StreamStart = self.event()? else {
            return Err(InDoubt);
        };
        let Event::DocumentStart(_, None) = self.event()? else {
            return Err(InDoubt);
        };
        let value = T::deserialize(&mut *self)?;
        let Event::DocumentEnd = self.event()? else {
            return Err(InDoubt);
        };
        let Event::StreamEnd = self.event()? else {
            return Err(InDoubt);
        };
        Ok(value)
    }

    fn event(&mut self) -> Result<Event<'de>, InDoubt> {
        let Some(Ok((event, span))) = self.parser.next_event() else {
            return Err(InDoubt);
        };
        self.line = u32::try_from(span.start.line()).map_err(|_| InDoubt)?;
        Ok(event)
    }

    fn peek(&mut self) -> Result<&Node<'de>, InDoubt> {
        if self.ahead.is_none() {
            self.ahead = Some(self.parse()?);
        }
        self.ahead.as_ref().ok_or(InDoubt)
    }

    fn take(&mut self) -> Result<Node<'de>, InDoubt> {
        match self.ahead.take() {
            Some(node) => Ok(node),
            None => self.parse(),
        }
    }

    fn parse(&mut self) -> Result<Node<'de>, InDoubt> {
        // Of a node that has an anchor the number is not 0.
        #[expect(
            clippy::wildcard_enum_match_arm,
            reason = "whatever else the parser tells, or may tell later, is not plain"
        )]
        match self.event()? {
            Event::Scalar(text, style, 0, None) => Ok(Node::Scalar(Scalar {
                text,
                is_quoted: style != ScalarStyle::Plain,
            })),
            Event::SequenceStart(_, 0, None) => Ok(Node::List),
            Event::SequenceEnd => Ok(Node::ListEnd),
            Event::MappingStart(_, 0, None) => Ok(Node::Map),
            Event::MappingEnd => Ok(Node::MapEnd),
            _ => Err(InDoubt),
        }
    }

    fn scalar(&mut self) -> Result<Scalar<'de>, InDoubt> {
        match self.take()? {
            Node::Scalar(scalar) => Ok(scalar),
            Node::List | Node::ListEnd | Node::Map | Node::MapEnd => Err(InDoubt),
        }
    }

    /// The name of a field, an entry or a variant. Numbers as names are the same where they are worth the
    /// same, which is not looked into.
    fn name(&mut self) -> Result<Cow<'de, str>, InDoubt> {
        let scalar = self.scalar()?;
        let may_be_number = |text: &str| {
            text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first))
        };
        let is_number = !scalar.is_quoted && may_be_number(&scalar.text);
        if scalar.is_null() || is_number || scalar.text == "<<" {
            return Err(InDoubt);
        }
        Ok(scalar.text)
    }

    fn end_list(&mut self) -> Result<(), InDoubt> {
        let Node::ListEnd = self.take()? else {
            return Err(InDoubt);
        };
        Ok(())
    }

    fn end_map(&mut self) -> Result<(), InDoubt> {
        let Node::MapEnd = self.take()? else {
            return Err(InDoubt);
        };
        Ok(())
    }
}

/// What no field of a plain document is: the general reader may know what becomes of it.
macro_rules! in_doubt {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, _: V) -> Result<V::Value, InDoubt> {
            Err(InDoubt)
        }
    )*};
}

impl<'de> Deserializer<'de> for &mut Reader<'de> {
    type Error = InDoubt;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InDoubt> {
        match self.peek()? {
            Node::Scalar(scalar) if scalar.is_text() => self.scalar()?.visit(visitor),
            Node::List => self.deserialize_seq(visitor),
            Node::Map => self.deserialize_map(visitor),
            Node::Scalar(_) | Node::ListEnd | Node::MapEnd => Err(InDoubt),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InDoubt> {
        let scalar = self.scalar()?;
        if scalar.is_null() {
            return Err(InDoubt);
        }
        scalar.visit(visitor)
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InDoubt> {
        self.deserialize_str(visitor)
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InDoubt> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InDoubt> {
        let scalar = self.scalar()?;
        match &*scalar.text {
            "true" if !scalar.is_quoted => visitor.visit_bool(true),
            "false" if !scalar.is_quoted => visitor.visit_bool(false),
            _ => Err(InDoubt),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InDoubt> {
        match self.peek()? {
            Node::Scalar(scalar) if scalar.is_null() => {
                self.take()?;
                visitor.visit_none()
            }
            Node::Scalar(_) | Node::List | Node::Map => visitor.visit_some(self),
            Node::ListEnd | Node::MapEnd => Err(InDoubt),
        }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, InDoubt> {
        match name {
            PLACED => {
                self.peek()?;
                let line = Some(self.line);
                visitor.visit_seq(LineAndValue { reader: self, line })
            }
            // What the general reader gives a meaning of its own.
            _ if name.starts_with("__yaml") => Err(InDoubt),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InDoubt> {
        let Node::List = self.take()? else {
            return Err(InDoubt);
        };
        let value = visitor.visit_seq(Items(self))?;
        self.end_list()?;
        Ok(value)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, InDoubt> {
        let Node::Map = self.take()? else {
            return Err(InDoubt);
        };
        let value = visitor.visit_map(Entries(self))?;
        self.end_map()?;
        Ok(value)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, InDoubt> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, InDoubt> {
        match self.take()? {
            Node::Scalar(scalar) => visitor.visit_enum(scalar.text.into_deserializer()),
            Node::Map => {
                let value = visitor.visit_enum(Variant(self))?;
                self.end_map()?;
                Ok(value)
            }
            Node::List | Node::ListEnd | Node::MapEnd => Err(InDoubt),
        }
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: V,
    ) -> Result<V::Value, InDoubt> {
        Err(InDoubt)
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, InDoubt> {
        Err(InDoubt)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        _: usize,
        _: V,
    ) -> Result<V::Value, InDoubt> {
        Err(InDoubt)
    }

    in_doubt! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128
        deserialize_f32 deserialize_f64 deserialize_char deserialize_bytes deserialize_byte_buf
        deserialize_unit deserialize_ignored_any
    }
}

/// What is in a list, up to its end, which stays ahead.
struct Items<'a, 'de>(&'a mut Reader<'de>);

impl<'de> SeqAccess<'de> for Items<'_, 'de> {
    type Error = InDoubt;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, InDoubt> {
        if let Node::ListEnd = self.0.peek()? {
            return Ok(None);
        }
        seed.deserialize(&mut *self.0).map(Some)
    }
}

/// What is in a map, up to its end, which stays ahead.
struct Entries<'a, 'de>(&'a mut Reader<'de>);

impl<'de> MapAccess<'de> for Entries<'_, 'de> {
    type Error = InDoubt;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, InDoubt> {
        if let Node::MapEnd = self.0.peek()? {
            return Ok(None);
        }
        let name = self.0.name()?;
        seed.deserialize(name.into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value, InDoubt> {
        seed.deserialize(&mut *self.0)
    }
}

/// A variant that has something in it, as a map of one entry, up to its end.
struct Variant<'a, 'de>(&'a mut Reader<'de>);

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = InDoubt;
    type Variant = Self;

    fn variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<(S::Value, Self), InDoubt> {
        let name = self.0.name()?;
        Ok((seed.deserialize(name.into_deserializer())?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = InDoubt;

    fn unit_variant(self) -> Result<(), InDoubt> {
        Err(InDoubt)
    }

    fn newtype_variant_seed<S: DeserializeSeed<'de>>(self, seed: S) -> Result<S::Value, InDoubt> {
        seed.deserialize(self.0)
    }

    fn tuple_variant<V: Visitor<'de>>(self, _: usize, _: V) -> Result<V::Value, InDoubt> {
        Err(InDoubt)
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, InDoubt> {
        self.0.deserialize_map(visitor)
    }
}

/// A value with its line before it.
struct LineAndValue<'a, 'de> {
    reader: &'a mut Reader<'de>,
    line: Option<u32>,
}

impl<'de> SeqAccess<'de> for LineAndValue<'_, 'de> {
    type Error = InDoubt;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> Result<Option<S::Value>, InDoubt> {
        match self.line.take() {
            Some(line) => seed.deserialize(line.into_deserializer()).map(Some),
            None => seed.deserialize(&mut *self.reader).map(Some),
        }
    }
}

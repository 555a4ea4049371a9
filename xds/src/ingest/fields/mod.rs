//! Whether a resource says anything that is not understood here, by the bytes that it came in.
//!
//! What decodes them drops the fields that it does not know, and what reads a resource looks at those that
//! it understands: a resource that says more would be half-applied. So the bytes are walked once, and each
//! field that is set must be one that the allow-list has. The list is `allowed.rs`; what is walked by is
//! `table.rs`, which a test makes of the list and of the descriptors of the protocol.

#[cfg(test)]
mod allowed;
#[cfg(test)]
mod made;
#[rustfmt::skip]
mod table;
#[cfg(test)]
mod tests;

use std::fmt::Write as _;

use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

use crate::pb::{Any, METADATA, TYPES};
use crate::session::Kind;

/// Fields that a resource is refused for by name; there may be more.
const NAMED_MAX: usize = 8;
/// Messages within messages, whatever holds them.
const DEPTH_MAX: usize = 64;
/// Of a map's key or a type's name, in a path.
const TEXT_CHARS: usize = 120;

/// A message in one place: which fields it has, and which of them are understood there.
#[derive(Debug)]
struct State {
    /// By number.
    fields: &'static [Field],
}

/// A field: its number, its name, how it comes, and what is done about it.
#[derive(Debug)]
struct Field(u32, &'static str, Shape, Step);

/// How a field comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// Not set where it is zero or empty.
    Plain(Wire),
    /// Set wherever it is there.
    Marked(Wire),
    /// Of numbers perhaps packed.
    Many(Wire),
    /// A message.
    One,
    /// Messages, or the entries of a map.
    Ones,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wire {
    Varint,
    Fixed64,
    Bytes,
}

/// What is done about a field that is set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// It is refused.
    No,
    /// It is understood, whatever is in it.
    All,
    /// It is understood as far as this state says.
    Within(usize),
    /// It holds a message of one of these types.
    Any(&'static [(&'static str, Self)]),
    /// A map; what its values are by key, the empty one for all others.
    Map(&'static [(&'static str, Self)]),
}

/// What a resource says that is not understood.
///
/// # Errors
/// The paths of the fields, or what keeps it from being read.
pub(crate) fn check(any: &Any) -> Result<(), String> {
    let mut walk = Walk::new(NAMED_MAX);
    walk.resource(any);
    walk.end()
}

/// Whether a resource has our metadata, and is read by that.
pub(crate) fn is_ours(kind: Kind, any: &Any) -> bool {
    // The numbers of the fields that lead to where ours has some, and of the map's entries.
    let path: &[u32] = match kind {
        Kind::Cluster => &[25, 1],
        Kind::Endpoints => &[2, 2, 3, 1],
        Kind::Listener => &[6, 1],
        Kind::Routes => &[2, 3, 4, 1],
    };
    has_key(&any.value, path)
}

fn has_key(message: &[u8], path: &[u32]) -> bool {
    let [number, path @ ..] = path else {
        return two(message).is_some_and(|[key, _]| key == METADATA.as_bytes());
    };
    let mut rest = message;
    while let Some((of, _, value)) = next(&mut rest) {
        if of == *number && has_key(value, path) {
            return true;
        }
    }
    false
}

/// A walk over one resource.
#[derive(Debug)]
struct Walk {
    named_max: usize,
    /// The paths of what is not understood, each once.
    refused: Vec<String>,
    /// There are more of them.
    are_more: bool,
    /// It cannot be read to its end, and why.
    broken: Option<String>,
}

/// It is not walked further.
#[derive(Debug)]
struct Stop;

/// Where a walk is, for what is said of it.
#[derive(Debug, Clone, Copy)]
struct Place<'a> {
    above: Option<&'a Self>,
    part: Part<'a>,
    depth: usize,
}

#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    /// The resource.
    Root,
    Field(&'static str),
    /// One of many: it is the next of its number after so many bytes of the message.
    Nth(&'static str, u32, &'a [u8], usize),
    /// A field that has no name here.
    Number(u32),
    Key(&'a [u8]),
    Type(&'a str),
}

impl Walk {
    const fn new(named_max: usize) -> Self {
        Self {
            named_max,
            refused: Vec::new(),
            are_more: false,
            broken: None,
        }
    }

    fn resource(&mut self, any: &Any) {
        let root = Place {
            above: None,
            part: Part::Root,
            depth: 0,
        };
        // What stopped it is kept.
        self.held(&table::ROOTS, &any.type_url, &any.value, &root)
            .ok();
    }

    fn end(self) -> Result<(), String> {
        let paths: Vec<String> = (self.refused.iter())
            .map(|path| format!("`{path}`"))
            .collect();
        let mut said = match paths.as_slice() {
            [] => String::new(),
            [one] if !self.are_more => format!("{one} is not supported"),
            some if self.are_more => format!("{} and others are not supported", some.join(", ")),
            some => format!("{} are not supported", some.join(", ")),
        };
        if let Some(broken) = self.broken {
            let stop = if said.is_empty() { "" } else { "; " };
            said = format!("{said}{stop}{broken}");
        }
        if said.is_empty() {
            return Ok(());
        }
        Err(said)
    }

    fn refuse(&mut self, place: &Place<'_>) -> Result<(), Stop> {
        if self.refused.len() >= self.named_max {
            self.are_more = true;
            return Err(Stop);
        }
        self.refused.push(place.path());
        Ok(())
    }

    /// What cannot be read, or would be read in two ways.
    fn fail(&mut self, place: &Place<'_>, why: &str) -> Stop {
        let path = place.path();
        self.broken = Some(if path.is_empty() {
            why.to_owned()
        } else {
            format!("`{path}`: {why}")
        });
        Stop
    }

    fn message(&mut self, state: usize, bytes: &[u8], place: &Place<'_>) -> Result<(), Stop> {
        if place.depth > DEPTH_MAX {
            return Err(self.fail(place, "it is nested too deeply"));
        }
        let fields = table::STATES.get(state).map_or(&[][..], |one| one.fields);
        // Of those that have a name, by place among them, which there were, and the others.
        let mut seen = 0_u128;
        let mut nameless: Vec<u32> = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let start = bytes.len() - rest.len();
            let Some((number, wire, value)) = next(&mut rest) else {
                return Err(self.fail(place, BROKEN));
            };
            let Ok(nth) = fields.binary_search_by_key(&number, |field| field.0) else {
                if !nameless.contains(&number) {
                    nameless.push(number);
                    self.refuse(&place.then(Part::Number(number)))?;
                }
                continue;
            };
            let Some(Field(_, name, shape, step)) = fields.get(nth) else {
                continue;
            };
            let is_again = seen & (1 << nth) != 0;
            if matches!(shape, Shape::Plain(_)) && is_default(wire, value) {
                continue;
            }
            seen |= 1 << nth;
            if *step == Step::No {
                if !is_again {
                    self.refuse(&place.then(Part::Field(name)))?;
                }
                continue;
            }
            let here = match shape {
                Shape::Ones => place.then(Part::Nth(name, number, bytes, start)),
                Shape::Plain(_) | Shape::Marked(_) | Shape::Many(_) | Shape::One => {
                    place.then(Part::Field(name))
                }
            };
            if !shape.comes_as(wire) {
                return Err(self.fail(&here, "it is of another kind than this field"));
            }
            // The two would be one message, which neither of them is.
            if is_again && *shape == Shape::One {
                return Err(self.fail(&here, "it is there twice"));
            }
            self.step(*step, value, place, &here)?;
        }
        Ok(())
    }

    fn step(
        &mut self,
        step: Step,
        value: &[u8],
        place: &Place<'_>,
        here: &Place<'_>,
    ) -> Result<(), Stop> {
        match step {
            Step::No => self.refuse(here),
            Step::All => Ok(()),
            Step::Within(state) => self.message(state, value, here),
            Step::Any(types) => {
                let Some([url, held]) = two(value) else {
                    return Err(self.fail(here, BROKEN));
                };
                let Ok(url) = std::str::from_utf8(url) else {
                    return Err(self.fail(here, BROKEN));
                };
                self.held(types, url, held, here)
            }
            Step::Map(by_key) => {
                let Part::Nth(name, ..) = here.part else {
                    return Ok(());
                };
                let Some([key, value]) = two(value) else {
                    return Err(self.fail(here, BROKEN));
                };
                let map = place.then(Part::Field(name));
                let entry = map.then(Part::Key(key));
                let of_key = |one: &&(&str, Step)| one.0.as_bytes() == key;
                let found = (by_key.iter().find(of_key))
                    .or_else(|| by_key.iter().find(|one| one.0.is_empty()));
                let step = found.map_or(Step::No, |one| one.1);
                self.step(step, value, &map, &entry)
            }
        }
    }

    /// A message that is held by something that may hold any.
    fn held(
        &mut self,
        types: &[(&str, Step)],
        url: &str,
        value: &[u8],
        place: &Place<'_>,
    ) -> Result<(), Stop> {
        let name = url.strip_prefix(TYPES);
        let here = place.then(Part::Type(name.unwrap_or(url)));
        let known = types.iter().find(|one| Some(one.0) == name);
        match known {
            // What the resource itself is need not be said in each path.
            Some((_, step)) if place.depth == 0 => self.step(*step, value, place, place),
            Some((_, step)) => self.step(*step, value, place, &here),
            None => self.refuse(&here),
        }
    }
}

const BROKEN: &str = "it cannot be read";

impl Shape {
    const fn comes_as(self, wire: WireType) -> bool {
        match self {
            Self::Plain(of) | Self::Marked(of) => of.is(wire),
            Self::Many(of) => of.is(wire) || matches!(wire, WireType::LengthDelimited),
            Self::One | Self::Ones => matches!(wire, WireType::LengthDelimited),
        }
    }
}

impl Wire {
    const fn is(self, wire: WireType) -> bool {
        matches!(
            (self, wire),
            (Self::Varint, WireType::Varint)
                | (Self::Fixed64, WireType::SixtyFourBit)
                | (Self::Bytes, WireType::LengthDelimited)
        )
    }
}

impl<'a> Place<'a> {
    fn then<'b>(&'b self, part: Part<'b>) -> Place<'b>
    where
        'a: 'b,
    {
        Place {
            above: Some(self),
            part,
            depth: self.depth + 1,
        }
    }

    /// The names of the fields that lead here.
    fn path(&self) -> String {
        let mut path = self.above.map(Self::path).unwrap_or_default();
        let dot = if path.is_empty() { "" } else { "." };
        // Writing into a String does not fail.
        match self.part {
            Part::Root => Ok(()),
            Part::Field(name) => write!(path, "{dot}{name}"),
            Part::Nth(name, number, message, end) => {
                write!(path, "{dot}{name}[{}]", count(message, number, end))
            }
            Part::Number(number) => write!(path, "{dot}field {number}"),
            Part::Key(key) => write!(path, "[{}]", cut(&String::from_utf8_lossy(key))),
            Part::Type(name) => write!(path, "({})", cut(name)),
        }
        .ok();
        path
    }
}

/// How many fields of a number there are in the beginning of a message.
fn count(message: &[u8], number: u32, end: usize) -> usize {
    let mut rest = message.get(..end).unwrap_or_default();
    let mut count = 0;
    while let Some((of, ..)) = next(&mut rest) {
        count += usize::from(of == number);
    }
    count
}

fn cut(text: &str) -> String {
    let mut cut: String = text.chars().take(TEXT_CHARS).collect();
    if cut.len() < text.len() {
        cut.push_str("...");
    }
    cut
}

/// The next field of a message: its number, how it comes, and what it is without its length.
fn next<'a>(rest: &mut &'a [u8]) -> Option<(u32, WireType, &'a [u8])> {
    let (number, wire) = decode_key(rest).ok()?;
    if wire == WireType::LengthDelimited {
        let len = usize::try_from(decode_varint(rest).ok()?).ok()?;
        let (value, after) = rest.split_at_checked(len)?;
        *rest = after;
        return Some((number, wire, value));
    }
    let before = *rest;
    skip_field(wire, number, rest, DecodeContext::default()).ok()?;
    let (value, _) = before.split_at_checked(before.len() - rest.len())?;
    Some((number, wire, value))
}

/// Whether a value is zero, false or empty.
fn is_default(wire: WireType, value: &[u8]) -> bool {
    // The bytes of a varint that is 0 may be as many as its writer likes.
    let bits = if wire == WireType::Varint { 0x7f } else { 0xff };
    let is_text = wire == WireType::LengthDelimited;
    value.is_empty() || (!is_text && value.iter().all(|byte| byte & bits == 0))
}

/// The fields 1 and 2 of a message that has no others: a map's entry, or what may hold any message.
fn two(message: &[u8]) -> Option<[&[u8]; 2]> {
    let mut found = [&[][..]; 2];
    let mut rest = message;
    while !rest.is_empty() {
        let (number, wire, value) = next(&mut rest)?;
        let at = usize::try_from(number).ok()?.checked_sub(1)?;
        if wire != WireType::LengthDelimited {
            return None;
        }
        *found.get_mut(at)? = value;
    }
    Some(found)
}

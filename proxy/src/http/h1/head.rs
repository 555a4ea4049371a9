//! The head of a message: parsed, and written.

use std::cell::{Cell, RefCell};
use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version, request};
use httparse::Status;
use hyper::ext::ReasonPhrase;

use super::Malformed;

/// Headers of a message, or of its trailers.
pub(super) const HEADERS_MAX: usize = 100;
/// The target of a request: what a `Uri` takes.
const TARGET_BYTES_MAX: usize = 65_534;

/// A head that is under way.
#[derive(Debug, Default)]
pub(super) struct Awaited {
    /// What was looked at without finding its end.
    seen: usize,
}

impl Awaited {
    /// Takes the head of a response, once it is there.
    ///
    /// # Errors
    /// It is none, or longer than `bytes_max`.
    pub(super) fn response(
        &mut self,
        read: &mut BytesMut,
        bytes_max: usize,
    ) -> Result<Option<Response<()>>, Malformed> {
        if !self.may_be_whole(read, bytes_max)? {
            return Ok(None);
        }
        let mut room = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let mut parsed = httparse::Response::new(&mut []);
        let config = httparse::ParserConfig::default();
        let status = config
            .parse_response_with_uninit_headers(&mut parsed, read, &mut room)
            .map_err(refused)?;
        let Status::Complete(length) = status else {
            return self.partial(read, bytes_max).map(|()| None);
        };
        let status = parsed.code.and_then(|code| StatusCode::from_u16(code).ok());
        let status = status.ok_or(Malformed::StartLine)?;
        let reason = parsed.reason.filter(|reason| {
            !reason.is_empty()
                && status
                    .canonical_reason()
                    .is_none_or(|usual| usual != *reason)
        });
        let reason = reason.and_then(|reason| ReasonPhrase::try_from(reason.to_owned()).ok());
        let mut response = Response::new(());
        *response.status_mut() = status;
        *response.version_mut() = version(parsed.version);
        if let Some(reason) = reason {
            response.extensions_mut().insert(reason);
        }
        let places = Places::of(read, parsed.headers);
        *response.headers_mut() = places.into_map(&self.take(read, length, bytes_max)?)?;
        Ok(Some(response))
    }

    /// Takes the head of a request, once it is there.
    ///
    /// # Errors
    /// It is none, or longer than `bytes_max`.
    pub(super) fn request(
        &mut self,
        read: &mut BytesMut,
        bytes_max: usize,
    ) -> Result<Option<request::Parts>, Malformed> {
        if !self.may_be_whole(read, bytes_max)? {
            return Ok(None);
        }
        let mut room = [const { MaybeUninit::uninit() }; HEADERS_MAX];
        let mut parsed = httparse::Request::new(&mut []);
        let status = parsed
            .parse_with_uninit_headers(read, &mut room)
            .map_err(refused)?;
        let Status::Complete(length) = status else {
            return self.partial(read, bytes_max).map(|()| None);
        };
        let (mut head, ()) = Request::new(()).into_parts();
        let method = parsed.method.unwrap_or_default();
        head.method = Method::from_bytes(method.as_bytes()).map_err(|_| Malformed::StartLine)?;
        head.version = version(parsed.version);
        let target = parsed.path.unwrap_or_default();
        if target.len() > TARGET_BYTES_MAX {
            return Err(Malformed::TargetTooLong);
        }
        let target_at = target.as_ptr().addr() - read.as_ptr().addr();
        let target_at = target_at..target_at + target.len();
        let places = Places::of(read, parsed.headers);
        let bytes = self.take(read, length, bytes_max)?;
        head.uri =
            Uri::from_maybe_shared(bytes.slice(target_at)).map_err(|_| Malformed::StartLine)?;
        head.headers = places.into_map(&bytes)?;
        Ok(Some(head))
    }

    /// Whether it is worth to parse it: it is not done anew for each byte that comes.
    fn may_be_whole(&mut self, read: &BytesMut, bytes_max: usize) -> Result<bool, Malformed> {
        if read.is_empty() {
            return Ok(false);
        }
        if self.seen == 0 {
            return Ok(true);
        }
        let new = read.get(self.seen.saturating_sub(2)..).unwrap_or_default();
        if end_of(new).is_some() {
            return Ok(true);
        }
        self.partial(read, bytes_max).map(|()| false)
    }

    fn partial(&mut self, read: &BytesMut, bytes_max: usize) -> Result<(), Malformed> {
        self.seen = read.len();
        if read.len() > bytes_max {
            return Err(Malformed::TooLong);
        }
        Ok(())
    }

    fn take(
        &mut self,
        read: &mut BytesMut,
        length: usize,
        bytes_max: usize,
    ) -> Result<Bytes, Malformed> {
        self.seen = 0;
        if length > bytes_max {
            return Err(Malformed::TooLong);
        }
        let head = read.split_to(length).freeze();
        if !ends_lines_well(&head) {
            return Err(Malformed::LineEnd);
        }
        Ok(head)
    }
}

const fn refused(error: httparse::Error) -> Malformed {
    match error {
        httparse::Error::TooManyHeaders => Malformed::TooMany,
        other @ (httparse::Error::HeaderName
        | httparse::Error::HeaderValue
        | httparse::Error::NewLine
        | httparse::Error::Status
        | httparse::Error::Token
        | httparse::Error::Version) => Malformed::Head(other),
    }
}

const fn version(minor: Option<u8>) -> Version {
    match minor {
        Some(1) => Version::HTTP_11,
        _ => Version::HTTP_10,
    }
}

/// Behind the first empty line that is not the first line: of what ends its lines by LF alone, too,
/// which is to be refused at once and not to be waited for.
pub(super) fn end_of(lines: &[u8]) -> Option<usize> {
    let behind = |end: &[u8]| {
        let at = lines.windows(end.len()).position(|bytes| bytes == end);
        at.map(|at| at + end.len())
    };
    match (behind(b"\n\r\n"), behind(b"\n\n")) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

/// Whether every line ends by CR LF. `httparse` takes LF alone, which RFC 9112 §2.2 allows and others
/// read as part of a line.
pub(super) fn ends_lines_well(head: &[u8]) -> bool {
    let behind = head.get(1..).unwrap_or_default();
    // To the end in any case: so it is done for many bytes at once.
    let pairs = head.iter().zip(behind);
    let bare = pairs.fold(false, |bare, (before, byte)| {
        bare | ((*byte == b'\n') & (*before != b'\r'))
    });
    !bare && head.first() != Some(&b'\n')
}

/// Names that are kept, and how long each may be.
const NAMES_KEPT: usize = 128;
const NAME_BYTES_KEPT: usize = 64;

/// A name as it was written, and which header it is.
type Name = (Box<[u8]>, HeaderName);

thread_local! {
    static NAMES: RefCell<[Option<Name>; NAMES_KEPT]> = const { RefCell::new([const { None }; NAMES_KEPT]) };
    /// Room for [`Places`]: most heads need a hundredth of it, and all of it would be cleared.
    static ROOM: Cell<Vec<[u32; 4]>> = const { Cell::new(Vec::new()) };
}

/// Where headers stand in a head that is still to be split off: name and value, each its begin and its
/// length.
struct Places(Vec<[u32; 4]>);

impl Places {
    fn of(head: &[u8], headers: &[httparse::Header<'_>]) -> Self {
        let base = head.as_ptr().addr();
        let place = |part: &[u8]| {
            [part.as_ptr().addr() - base, part.len()].map(|n| u32::try_from(n).unwrap_or(u32::MAX))
        };
        let mut places = ROOM.take();
        places.clear();
        places.extend(headers.iter().map(|header| {
            let [name, value] = [header.name.as_bytes(), header.value].map(place);
            [name[0], name[1], value[0], value[1]]
        }));
        Self(places)
    }

    fn into_map(self, head: &Bytes) -> Result<HeaderMap, Malformed> {
        let mut map = HeaderMap::with_capacity(self.0.len());
        for place in &self.0 {
            let [name, name_bytes, value, value_bytes] = place.map(|n| n as usize);
            let name = head.get(name..name + name_bytes).unwrap_or_default();
            append(&mut map, name, head.slice(value..value + value_bytes))?;
        }
        ROOM.set(self.0);
        Ok(map)
    }
}

fn append(map: &mut HeaderMap, name: &[u8], value: Bytes) -> Result<(), Malformed> {
    let invalid_name = Malformed::Head(httparse::Error::HeaderName);
    let name = known_name(name).ok_or(invalid_name)?;
    let value = HeaderValue::from_maybe_shared(value)
        .map_err(|_| Malformed::Head(httparse::Error::HeaderValue))?;
    map.try_append(name, value)
        .map_err(|_| Malformed::TooMany)?;
    Ok(())
}

/// The header that is written so. Callers and endpoints send the same few names again and again, and to
/// look at one that was seen before costs a fraction of making it.
fn known_name(written: &[u8]) -> Option<HeaderName> {
    let (first, last) = (written.first()?, written.last()?);
    let place = usize::from(*first) * 5 + usize::from(*last) * 3 + written.len();
    NAMES.with_borrow_mut(|names| {
        let Some(kept) = names.get_mut(place % NAMES_KEPT) else {
            return HeaderName::from_bytes(written).ok();
        };
        if let Some((as_written, name)) = kept
            && **as_written == *written
        {
            return Some(name.clone());
        }
        let name = HeaderName::from_bytes(written).ok()?;
        if written.len() <= NAME_BYTES_KEPT {
            *kept = Some((written.into(), name.clone()));
        }
        Some(name)
    })
}

/// The map of headers that were parsed out of `bytes`.
pub(super) fn to_map(
    bytes: &Bytes,
    headers: &[httparse::Header<'_>],
) -> Result<HeaderMap, Malformed> {
    let mut map = HeaderMap::with_capacity(headers.len());
    for header in headers {
        append(
            &mut map,
            header.name.as_bytes(),
            bytes.slice_ref(header.value),
        )?;
    }
    Ok(map)
}

/// Writes the first line of a request.
pub(in crate::http) fn write_request_line(out: &mut Vec<u8>, method: &Method, target: &Uri) {
    out.extend_from_slice(method.as_str().as_bytes());
    out.push(b' ');
    let path = target.path_and_query().map_or("/", |path| path.as_str());
    // RFC 9112 §3.2.1: an empty path is `/`, a query alone no target.
    if !path.starts_with(['/', '*']) {
        out.push(b'/');
    }
    out.extend_from_slice(path.as_bytes());
    out.extend_from_slice(b" HTTP/1.1\r\n");
}

/// Writes headers; the empty line is to follow.
pub(super) fn write_headers(out: &mut Vec<u8>, headers: &HeaderMap) {
    for (name, value) in headers {
        write_header(out, name.as_str(), value.as_bytes());
    }
}

pub(in crate::http) fn write_header(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + 4);
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

pub(super) fn write_number(out: &mut Vec<u8>, name: &str, number: u64) {
    write_header(out, name, itoa(number, &mut [0; 20]));
}

/// A number in decimal digits.
fn itoa(number: u64, room: &mut [u8; 20]) -> &[u8] {
    let (mut rest, mut from) = (number, room.len());
    for digit in room.iter_mut().rev() {
        *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
        rest /= 10;
        from -= 1;
        if rest == 0 {
            break;
        }
    }
    room.get(from..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// However names are written and whatever came before, they are what they are.
    #[test]
    fn names_that_share_a_place_are_told_apart() {
        let long = "x-".to_owned() + &"a".repeat(NAME_BYTES_KEPT);
        let written = [
            "host",
            "Host",
            "HOST",
            "x-ab",
            "x-ba",
            "X-Ab",
            "te",
            long.as_str(),
        ];
        for _ in 0..3 {
            for name in written {
                let known = known_name(name.as_bytes()).unwrap();
                assert_eq!(
                    known,
                    HeaderName::from_bytes(name.as_bytes()).unwrap(),
                    "{name}"
                );
            }
            for bad in [&b""[..], b" ", b"a b", b"a\0", b"\xff"] {
                assert_eq!(known_name(bad), None);
            }
        }
        // More than are kept.
        for nth in 0..10 * NAMES_KEPT {
            let name = format!("x-{nth}");
            assert_eq!(known_name(name.as_bytes()).unwrap(), *name);
        }
    }
}

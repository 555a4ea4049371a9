//! The messages of `zeugma-peer/1` as bytes: gRPC's framing and protobuf. What comes is another's, and
//! is bounded before it is read.
//!
//! ```text
//! message Message { bool whole = 1; bool draining = 2; bool more = 3; repeated Service services = 4; }
//! message Service { string host = 1; uint32 port = 2; bool gone = 3; uint32 healthy = 4;
//!                   uint32 total = 5; double healthy_weight = 6; double weight = 7;
//!                   optional uint32 capacity = 8; }
//! ```
//!
//! A message changes what was told before; with `whole` that is forgotten first. One with `more` counts
//! together with those behind it. Fields that are not known are left out of account. Without a capacity,
//! or with one of 0, it is not known: gateways of before tell none.

use std::sync::Arc;

use bytes::{Buf as _, Bytes, BytesMut};
use prost::Message as _;
use zeugma_core::admission::Rate;
use zeugma_core::names::HostPattern;
use zeugma_core::report::{Change, Presence, Report, Standing};

/// The longest message.
pub(super) const BYTES_MAX: usize = 256 * 1024;
/// Services in one message: each of them is below 300 bytes.
const SERVICES_MAX: usize = 500;
/// gRPC's: a byte that says whether what follows is compressed, and its length.
const PREFIX: usize = 5;

/// What a message costs beside its bytes, so that empty ones are not free ...
const MESSAGE_COST: usize = 4 * 1024;
/// ... and what it costs to have another report.
const REPORT_COST: usize = 256 * 1024;

/// Why bytes are no message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    /// It is too long.
    #[error("a message of {0} bytes; at most {BYTES_MAX} are read")]
    TooLong(usize),
    /// Nobody asked for that.
    #[error("a compressed message")]
    Compressed,
    /// They are no protobuf.
    #[error("no message: {0}")]
    Protobuf(String),
    /// What is named is no host.
    #[error("a host that is none: {0}")]
    Host(String),
    /// The port is none.
    #[error("port {0} of `{1}`")]
    Port(u32, HostPattern),
    /// The numbers cannot be.
    #[error(
        "{0} of {1} healthy by weights {2} and {3} of `{4}`",
        healthy,
        total,
        healthy_weight,
        weight,
        host
    )]
    Standing {
        /// Healthy endpoints.
        healthy: u32,
        /// All.
        total: u32,
        /// What the healthy ones weigh.
        healthy_weight: String,
        /// What all weigh.
        weight: String,
        /// Of what.
        host: HostPattern,
    },
    /// Nothing is known that it could change.
    #[error("a change before the first whole report")]
    NotWhole,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Message {
    #[prost(bool, tag = "1")]
    whole: bool,
    #[prost(bool, tag = "2")]
    draining: bool,
    #[prost(bool, tag = "3")]
    more: bool,
    #[prost(message, repeated, tag = "4")]
    services: Vec<Service>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Service {
    #[prost(string, tag = "1")]
    host: String,
    #[prost(uint32, tag = "2")]
    port: u32,
    #[prost(bool, tag = "3")]
    gone: bool,
    #[prost(uint32, tag = "4")]
    healthy: u32,
    #[prost(uint32, tag = "5")]
    total: u32,
    #[prost(double, tag = "6")]
    healthy_weight: f64,
    #[prost(double, tag = "7")]
    weight: f64,
    #[prost(uint32, optional, tag = "8")]
    capacity: Option<u32>,
}

/// What `report` is to who was told `before`, as messages; at least one. Who was told nothing gets all
/// of it.
pub(super) fn messages(before: Option<&Report>, report: &Report) -> Vec<Bytes> {
    match before {
        Some(before) => changes(report.presence, &report.since(before), false),
        None => changes(report.presence, &report.since(&Report::default()), true),
    }
}

/// Changes as messages; at least one. With `is_whole` there was nothing before.
pub(super) fn changes(presence: Presence, changes: &[Change], is_whole: bool) -> Vec<Bytes> {
    let mut parts: Vec<&[Change]> = changes.chunks(SERVICES_MAX).collect();
    if parts.is_empty() {
        parts.push(&[]);
    }
    let last = parts.len() - 1;
    let message = |(nth, part): (usize, &&[Change])| {
        framed(&Message {
            whole: is_whole && nth == 0,
            draining: presence != Presence::Serving,
            more: nth < last,
            services: part.iter().map(Service::of).collect(),
        })
    };
    parts.iter().enumerate().map(message).collect()
}

/// The message of who asks: it says nothing.
pub(super) fn question() -> Bytes {
    Bytes::from_static(&[0; PREFIX])
}

fn framed(message: &Message) -> Bytes {
    let bytes = message.encode_to_vec();
    let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
    let mut framed = Vec::with_capacity(PREFIX + bytes.len());
    framed.push(0);
    framed.extend(length.to_be_bytes());
    framed.extend(bytes);
    framed.into()
}

impl Service {
    fn of(change: &Change) -> Self {
        let standing = change.standing.unwrap_or_default();
        Self {
            host: change.host.to_string(),
            port: change.port.into(),
            gone: change.standing.is_none(),
            healthy: standing.healthy(),
            total: standing.total(),
            healthy_weight: standing.healthy_weight(),
            weight: standing.weight(),
            capacity: standing.capacity().map(Rate::get),
        }
    }

    fn change(self) -> Result<Change, Malformed> {
        let host = HostPattern::parse(&self.host);
        let host = host.map_err(|error| Malformed::Host(error.to_string()))?;
        let Ok(port) = u16::try_from(self.port) else {
            return Err(Malformed::Port(self.port, host));
        };
        if self.gone {
            return Ok(Change {
                host,
                port,
                standing: None,
            });
        }
        let Self {
            healthy,
            total,
            healthy_weight,
            weight,
            capacity,
            ..
        } = self;
        match Standing::new(healthy, total, healthy_weight, weight) {
            Some(standing) => Ok(Change {
                host,
                port,
                standing: Some(standing.taking(capacity.and_then(Rate::per_second))),
            }),
            None => Err(Malformed::Standing {
                healthy,
                total,
                healthy_weight: healthy_weight.to_string(),
                weight: weight.to_string(),
                host,
            }),
        }
    }
}

/// Reads messages, and makes of them what is reported at present.
#[derive(Debug, Default)]
pub(super) struct Reading {
    bytes: BytesMut,
    /// What was reported whole last.
    report: Option<Arc<Report>>,
    /// What it becomes with the messages that count together, so far.
    next: Option<Report>,
    /// What has been read since it was last asked for, as if all of it were bytes.
    cost: usize,
}

impl Reading {
    /// Takes bytes as they come.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// What is reported after the next messages that count together; `None` until they have come. It is
    /// the same as before where they only say that it still holds.
    ///
    /// # Errors
    /// Why they are no messages. Nothing behind that is to be read.
    pub(super) fn next(&mut self) -> Result<Option<Arc<Report>>, Malformed> {
        while let Some(message) = self.message()? {
            let is_last = !message.more;
            self.take(message)?;
            if is_last {
                self.cost += REPORT_COST;
                return Ok(self.report.clone());
            }
        }
        Ok(None)
    }

    /// What has been read since this was last asked, as if all of it were bytes.
    pub(super) fn take_cost(&mut self) -> usize {
        std::mem::take(&mut self.cost)
    }

    fn message(&mut self) -> Result<Option<Message>, Malformed> {
        let Some(&[compressed, a, b, c, d]) = self.bytes.first_chunk::<PREFIX>() else {
            return Ok(None);
        };
        if compressed != 0 {
            return Err(Malformed::Compressed);
        }
        let length = u32::from_be_bytes([a, b, c, d]);
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if length > BYTES_MAX {
            return Err(Malformed::TooLong(length));
        }
        if self.bytes.len() < PREFIX + length {
            return Ok(None);
        }
        self.cost += length + MESSAGE_COST;
        self.bytes.advance(PREFIX);
        let message = self.bytes.split_to(length);
        let read = Message::decode(message);
        let read = read.map_err(|error| Malformed::Protobuf(error.to_string()))?;
        Ok(Some(read))
    }

    fn take(&mut self, message: Message) -> Result<(), Malformed> {
        let is_beat = !message.whole && message.services.is_empty() && self.next.is_none();
        let presence = if message.draining {
            Presence::Leaving
        } else {
            Presence::Serving
        };
        let same = (self.report.as_ref()).is_some_and(|of| of.presence == presence);
        if is_beat && same {
            return Ok(());
        }
        let mut next = match (self.next.take(), &self.report) {
            _ if message.whole => Report::default(),
            (Some(next), _) => next,
            (None, Some(report)) => Report::clone(report),
            (None, None) => return Err(Malformed::NotWhole),
        };
        for service in message.services {
            // What finds no room is as if it had not been reported.
            let _has_room: bool = next.apply(&service.change()?);
        }
        next.presence = presence;
        if message.more {
            self.next = Some(next);
            return Ok(());
        }
        let is_same = self.report.as_deref() == Some(&next);
        if !is_same {
            self.report = Some(Arc::new(next));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use zeugma_core::report::ENTRIES_MAX;

    use super::*;

    fn pattern(text: &str) -> HostPattern {
        HostPattern::parse(text).unwrap()
    }

    fn report(services: &[(&str, u16, u32, u32)]) -> Report {
        let mut report = Report::default();
        for (host, port, healthy, total) in services {
            let (healthy, total) = (*healthy, *total);
            let standing = Standing::new(healthy, total, f64::from(healthy) / 2.0, total.into());
            report.set(&pattern(host), *port, standing.unwrap());
        }
        report
    }

    fn read_all(bytes: &[u8]) -> Result<Option<Arc<Report>>, Malformed> {
        let mut reading = Reading::default();
        reading.push(bytes);
        let mut last = None;
        while let Some(report) = reading.next()? {
            last = Some(report);
        }
        Ok(last)
    }

    #[test]
    fn the_bytes_are_those_that_protobuf_and_grpc_say() {
        let mut one = report(&[("a.b", 80, 1, 2)]);
        one.presence = Presence::Leaving;
        // By hand: field 1, 2 and 4; a string, a port, two counts, two doubles (0.5 and 2).
        let service = [
            &b"\x0a\x03a.b\x10\x50\x20\x01\x28\x02"[..],
            b"\x31\0\0\0\0\0\0\xe0\x3f",
            b"\x39\0\0\0\0\0\0\0\x40",
        ]
        .concat();
        let mut bytes = vec![0, 0, 0, 0, 6 + 29];
        bytes.extend(b"\x08\x01\x10\x01\x22\x1d");
        bytes.extend(service);
        assert_eq!(messages(None, &one), [Bytes::from(bytes)]);
        // A beat has no fields at all.
        let calm = report(&[("a.b", 80, 1, 2)]);
        assert_eq!(messages(Some(&calm), &calm), [question()]);
    }

    #[test]
    fn what_is_not_known_is_left_out_of_account() {
        let mut bytes = messages(None, &report(&[("a.b", 80, 1, 2)])).concat();
        // Field 15, of three bytes, and field 16, a number.
        bytes.extend(b"\x7a\x03xyz\x80\x01\x07");
        bytes[4] += 8;
        assert_eq!(
            read_all(&bytes).unwrap().as_deref(),
            Some(&report(&[("a.b", 80, 1, 2)]))
        );
    }

    #[test]
    fn a_long_report_is_several_messages_that_count_together() {
        let mut long = Report::default();
        let one = Standing::new(1, 1, 1.0, 1.0).unwrap();
        let host = format!(
            "{}.{}",
            ["x".repeat(60).as_str(); 3].join("."),
            "y".repeat(60)
        );
        for nth in 0..1200 {
            let host = format!("h{nth}.{host}");
            long.set(&pattern(&host[..host.len().min(253)]), 80, one);
        }
        let parts = messages(None, &long);
        assert_eq!(parts.len(), 3);
        assert!(parts.iter().all(|part| part.len() <= BYTES_MAX));
        let mut reading = Reading::default();
        for part in &parts[..2] {
            reading.push(part);
            assert_eq!(reading.next(), Ok(None));
        }
        reading.push(&parts[2]);
        assert_eq!(reading.next().unwrap().as_deref(), Some(&long));
    }

    #[test]
    fn a_beat_says_that_the_same_report_holds() {
        let one = report(&[("a.b", 80, 1, 2)]);
        let mut reading = Reading::default();
        reading.push(&messages(None, &one).concat());
        let first = reading.next().unwrap().unwrap();
        reading.push(&changes(Presence::Serving, &[], false).concat());
        let again = reading.next().unwrap().unwrap();
        assert!(Arc::ptr_eq(&first, &again));
        assert_eq!(reading.next(), Ok(None));
        // A whole report that says the same is the same.
        reading.push(&messages(None, &one).concat());
        assert!(Arc::ptr_eq(&first, &reading.next().unwrap().unwrap()));
        let mut draining = one.clone();
        draining.presence = Presence::Leaving;
        reading.push(&messages(Some(&one), &draining).concat());
        assert_eq!(reading.next().unwrap().as_deref(), Some(&draining));
    }

    #[test]
    fn what_is_no_message_is_refused_before_it_costs() {
        let service = |service: Service| {
            framed(&Message {
                whole: true,
                services: vec![service],
                ..Message::default()
            })
        };
        let fine = || {
            Service::of(&Change {
                host: pattern("a.b"),
                port: 80,
                standing: Standing::new(1, 1, 1.0, 1.0),
            })
        };
        let refused = |bytes: &[u8]| read_all(bytes).unwrap_err().to_string();
        let too_long = [0, 0, 4, 0, 1];
        assert_eq!(
            refused(&too_long),
            "a message of 262145 bytes; at most 262144 are read"
        );
        assert_eq!(refused(&[1, 0, 0, 0, 0]), "a compressed message");
        assert!(refused(&[0, 0, 0, 0, 1, 0xff]).starts_with("no message: "));
        assert_eq!(refused(&[0; 5]), "a change before the first whole report");
        let host = Service {
            host: "no host".to_owned(),
            ..fine()
        };
        assert!(refused(&service(host)).starts_with("a host that is none: "));
        let port = Service {
            port: 65_536,
            ..fine()
        };
        assert_eq!(refused(&service(port)), "port 65536 of `a.b`");
        let more_than_all = Service {
            healthy: 2,
            ..fine()
        };
        assert_eq!(
            refused(&service(more_than_all)),
            "2 of 1 healthy by weights 1 and 1 of `a.b`"
        );
        let no_number = Service {
            weight: f64::NAN,
            ..fine()
        };
        assert!(refused(&service(no_number)).contains("NaN"));
    }

    #[test]
    fn a_report_of_more_than_there_is_room_for_is_cut() {
        let mut reading = Reading::default();
        let mut read = None;
        let parts = ENTRIES_MAX / SERVICES_MAX + 2;
        for part in 0..parts {
            let services = (0..SERVICES_MAX).map(|nth| Service {
                host: format!("h{part}-{nth}.x"),
                total: 1,
                weight: 1.0,
                ..Service::default()
            });
            let message = Message {
                whole: part == 0,
                more: part + 1 < parts,
                services: services.collect(),
                ..Message::default()
            };
            reading.push(&framed(&message));
            read = reading.next().unwrap();
        }
        assert_eq!(read.unwrap().len(), ENTRIES_MAX);
    }

    /// What gateways of before tell has no capacity, and what they do not know they leave out of account.
    #[test]
    fn a_capacity_is_one_field_more() {
        let standing = Standing::new(1, 1, 1.0, 1.0).unwrap();
        let of = |capacity| {
            let mut report = Report::default();
            report.set(&pattern("a.b"), 80, standing.taking(capacity));
            messages(None, &report).concat()
        };
        let (without, with) = (of(None), of(Rate::per_second(300)));
        // Tag 8, a varint: 300.
        assert_eq!(with[with.len() - 3..], [0x40, 0xac, 0x02]);
        assert_eq!(with.len(), without.len() + 3);
        let read = |bytes: &[u8]| {
            let report = read_all(bytes).unwrap().unwrap();
            let found = report.find(&pattern("a.b"), 80, false).unwrap();
            found.capacity().map(Rate::get)
        };
        assert_eq!((read(&without), read(&with)), (None, Some(300)));
    }

    fn some_report() -> impl Strategy<Value = Report> {
        let entry = (0..8usize, any::<u16>(), 0..4u32, any::<bool>());
        proptest::collection::vec(entry, 0..20).prop_map(|entries| {
            let hosts = ["a.x", "b.x", "*.x", "*.y.x", "c.y.x", "*.z", "d.z", "e"];
            let mut all = Report::default();
            for (host, port, healthy, is_leaving) in entries {
                let standing = Standing::new(healthy, 4, healthy.into(), 4.5).unwrap();
                // 0: it is not known.
                let capacity = Rate::per_second(u32::from(port % 3) * 1000);
                all.set(&pattern(hosts[host]), port, standing.taking(capacity));
                if is_leaving {
                    all.presence = Presence::Leaving;
                }
            }
            all
        })
    }

    proptest! {
        #[test]
        fn what_is_told_is_what_is_read(reports in proptest::collection::vec(some_report(), 1..5), cut in 1..40usize) {
            let mut bytes = Vec::new();
            let mut before = None;
            for report in &reports {
                bytes.extend(messages(before, report).concat());
                before = Some(report);
            }
            let (mut reading, mut read) = (Reading::default(), Vec::new());
            for part in bytes.chunks(cut) {
                reading.push(part);
                while let Some(report) = reading.next().unwrap() {
                    read.push(Report::clone(&report));
                }
            }
            prop_assert_eq!(read, reports);
        }

        #[test]
        fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            drop(read_all(&bytes));
            // As the one message of a frame that is right.
            let mut framed = vec![0];
            framed.extend(u32::try_from(bytes.len()).unwrap().to_be_bytes());
            framed.extend(&bytes);
            drop(read_all(&framed));
        }

        #[test]
        fn messages_that_were_changed_are_read_or_refused(
            report in some_report(),
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
            cut in any::<prop::sample::Index>(),
        ) {
            let mut bytes = messages(None, &report).concat();
            for (at, byte) in changes {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            bytes.truncate(cut.index(bytes.len() + 1));
            let mut reading = Reading::default();
            reading.push(&bytes);
            while let Ok(Some(report)) = reading.next() {
                prop_assert!(report.len() <= ENTRIES_MAX);
            }
        }
    }
}

//! What is let in: the limits that are more than a number to compare with.
//!
//! The counting itself is the gateway's: its counters are shared by threads. What stands here is
//! what a limit means: how fast one source may begin, when memory is short, how many connections
//! the descriptors hold, and how many of a kind a route may have under way.

use std::net::IpAddr;
use std::num::NonZeroU32;

use crate::time::Time;

/// So many a second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rate(NonZeroU32);

impl Rate {
    /// `count` a second; `None` for 0, which would let nothing in.
    #[must_use]
    pub const fn per_second(count: u32) -> Option<Self> {
        match NonZeroU32::new(count) {
            Some(count) => Some(Self(count)),
            None => None,
        }
    }

    /// How many a second.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0.get()
    }
}

/// Who is counted as one: an IPv4 address, or an IPv6 network of 64 bits, since one host has a whole
/// one to choose addresses from (RFC 4291 §2.5.1, RFC 8981 §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Source {
    V4(u32),
    V6(u64),
}

impl Source {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::V4(v4.to_bits()),
            IpAddr::V6(v6) => {
                let [a, b, c, d, ..] = v6.segments();
                let network = [a, b, c, d]
                    .into_iter()
                    .fold(0, |bits, part| (bits << 16) | u64::from(part));
                Self::V6(network)
            }
        }
    }

    /// Where it goes: SplitMix64's finalizer (Steele, Lea, Flood 2014) over a key that callers do
    /// not know, so that nobody can choose addresses that share a set.
    const fn spread(self, seed: u64) -> u64 {
        let bits = match self {
            Self::V4(bits) => bits as u64 | 1 << 63,
            Self::V6(network) => network.rotate_left(1),
        };
        let mut z = bits ^ seed;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

/// Sources that are remembered at once, in sets of eight: 400 KiB.
pub const SOURCES_MAX: usize = 8192;
/// Places that one source may have.
const WAYS: usize = 8;
/// What one connection costs, in units of which a bucket regains its rate each nanosecond.
const TOKEN: u64 = 1_000_000_000;

/// A token bucket for each source: a burst of one second's worth, and the rate after that.
///
/// Its memory is fixed. A source that finds no free place takes that of the one in its set that owes
/// least, so that many sources of few connections never make one of many be forgotten; who is
/// forgotten has its whole burst again, which errs on the side of letting in.
#[derive(Debug, Clone)]
pub struct Sources {
    seed: u64,
    slots: Vec<Option<Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    source: Source,
    /// What was taken and is not regained yet, as of `at`.
    owed: u64,
    at: Time,
}

impl Bucket {
    fn owes(&self, rate: Rate, now: Time) -> u64 {
        let nanos = u64::try_from(now.since(self.at).as_nanos()).unwrap_or(u64::MAX);
        let regained = nanos.saturating_mul(u64::from(rate.get()));
        self.owed.saturating_sub(regained)
    }
}

impl Sources {
    /// Nobody is remembered; `seed` is random and secret.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            // Taken by the first source: most listeners have no rate.
            slots: Vec::new(),
        }
    }

    /// Whether one more of `address` is within `rate`; if so it is counted.
    pub fn admit(&mut self, address: IpAddr, rate: Rate, now: Time) -> bool {
        let source = Source::of(address);
        let burst = u64::from(rate.get()) * TOKEN;
        if self.slots.is_empty() {
            self.slots.resize(SOURCES_MAX, None);
        }
        let slot = self.slot(source, rate, now);
        let owed = match slot {
            Some(bucket) if bucket.source == source => bucket.owes(rate, now),
            Some(_) | None => 0,
        };
        let admitted = owed + TOKEN <= burst;
        if admitted {
            *slot = Some(Bucket {
                source,
                owed: owed + TOKEN,
                at: now,
            });
        }
        admitted
    }

    /// The place of a source: its own, a free one, or that of the one that owes least.
    #[expect(
        clippy::indexing_slicing,
        reason = "the table is not empty, and a set is within it"
    )]
    fn slot(&mut self, source: Source, rate: Rate, now: Time) -> &mut Option<Bucket> {
        let sets = (self.slots.len() / WAYS) as u64;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "below the number of sets, which is a usize"
        )]
        let first = (source.spread(self.seed) % sets) as usize * WAYS;
        let set = &self.slots[first..first + WAYS];
        let is_own = |slot: &Option<Bucket>| slot.is_some_and(|bucket| bucket.source == source);
        let least = |slot: &Option<Bucket>| slot.map_or(0, |bucket| bucket.owes(rate, now));
        let at = set.iter().position(is_own).or_else(|| {
            let mut by_debt = (0..WAYS).map(|at| (least(&set[at]), set[at].is_some(), at));
            let start = by_debt.next()?;
            Some(by_debt.fold(start, Ord::min).2)
        });
        &mut self.slots[first + at.unwrap_or(0)]
    }
}

/// The share of a cgroup's memory at which new work is shed where nothing is written, in percent.
const OF_CGROUP: u64 = 80;
/// The share of a watermark below which memory must fall until new work is let in again, in percent.
const ENOUGH: u64 = 95;

/// When memory is short: above the watermark, until it falls below 95 % of it.
///
/// ```text
/// Enough --used > watermark--> Short --used < 95 % of watermark--> Enough
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Watermark {
    bytes: u64,
    memory: Memory,
}

/// Whether there is memory for new work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// There is.
    Enough,
    /// New connections and requests are shed; those under way go on.
    Short,
}

impl Watermark {
    /// As written, else 80 % of the memory that a cgroup allows, else none.
    #[must_use]
    pub fn choose(written: Option<u64>, cgroup_bytes_max: Option<u64>) -> Option<Self> {
        let bytes = written.or_else(|| {
            // In this order: 80 % of what fits into 64 bits does too.
            cgroup_bytes_max.map(|max| max / 100 * OF_CGROUP + max % 100 * OF_CGROUP / 100)
        })?;
        Some(Self {
            bytes,
            memory: Memory::Enough,
        })
    }

    /// The watermark in bytes.
    #[must_use]
    pub const fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Nothing is known of the memory in use.
    pub const fn forget(&mut self) {
        self.memory = Memory::Enough;
    }

    /// What `used_bytes` mean; the second is whether that is a change.
    pub fn look(&mut self, used_bytes: u64) -> (Memory, bool) {
        let before = self.memory;
        self.memory = match before {
            Memory::Enough if used_bytes > self.bytes => Memory::Short,
            // In 128 bits nothing overflows.
            Memory::Short
                if u128::from(used_bytes) * 100 < u128::from(self.bytes) * u128::from(ENOUGH) =>
            {
                Memory::Enough
            }
            Memory::Enough | Memory::Short => before,
        };
        (self.memory, self.memory != before)
    }
}

/// Descriptors that are not for connections: listeners, event loops, files, probes, the admin
/// interface, name servers, kept connections to endpoints.
pub const DESCRIPTORS_RESERVED: u64 = 128;
/// A connection's own descriptor, and that of the one to its endpoint.
pub const DESCRIPTORS_EACH: u64 = 2;

/// How many of `wanted` connections the process' limit of open files holds; at least one.
///
/// Under a limit that is tighter than twice the reserve, half of it is for connections.
#[must_use]
pub fn connections_within(descriptors_max: u64, wanted: usize) -> usize {
    let reserved = DESCRIPTORS_RESERVED.min(descriptors_max / 2);
    let fits = (descriptors_max - reserved) / DESCRIPTORS_EACH;
    usize::try_from(fits).unwrap_or(usize::MAX).clamp(1, wanted)
}

/// The limit of open files that `connections` need.
#[must_use]
pub fn descriptors_for(connections: usize) -> u64 {
    u64::try_from(connections)
        .unwrap_or(u64::MAX)
        .saturating_mul(DESCRIPTORS_EACH)
        .saturating_add(DESCRIPTORS_RESERVED)
}

/// How much of a route may be under way at once on one gateway; `None`: as much as comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RouteLimits {
    /// TCP connections, passed through or not.
    pub connections: Option<u32>,
    /// HTTP requests that wait for a connection to an endpoint.
    pub pending: Option<u32>,
    /// HTTP requests, until the end of their responses.
    pub requests: Option<u32>,
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn at(nanos: u64) -> Time {
        Time::from_origin(Duration::from_nanos(nanos))
    }

    fn rate(count: u32) -> Rate {
        Rate::per_second(count).unwrap()
    }

    const CALLER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));

    proptest! {
        /// Two bounds that any bucket of this rate and burst keeps, counted by hand: never more than
        /// the burst and the rate give in any window, and never a refusal while fewer than a
        /// second's worth were let in during the last second.
        #[test]
        fn a_source_gets_its_rate_no_more_and_no_less(
            per_second in 1_u32..20,
            gaps in prop::collection::vec(prop_oneof![Just(0_u64), 0..400_000_000_u64, 0..3_000_000_000_u64], 1..120),
        ) {
            let mut sources = Sources::new(7);
            let mut now = 0;
            let mut let_in: Vec<u64> = Vec::new();
            for gap in gaps {
                now += gap;
                if sources.admit(CALLER, rate(per_second), at(now)) {
                    let_in.push(now);
                } else {
                    let recent = let_in.iter().filter(|then| **then + TOKEN > now).count();
                    prop_assert!(recent >= per_second as usize, "refused after {recent}");
                }
            }
            for (nth, from) in let_in.iter().enumerate() {
                for (further, to) in let_in.iter().enumerate().skip(nth) {
                    let count = u128::try_from(further - nth + 1).unwrap();
                    let window = u128::from(to - from);
                    let most = u128::from(per_second) * u128::from(TOKEN)
                        + u128::from(per_second) * window;
                    prop_assert!(count * u128::from(TOKEN) <= most, "{count} within {window} ns");
                }
            }
        }

        /// The same with a table that is far too small for who calls: bounded, and no source that
        /// has kept to its rate is ever refused.
        #[test]
        fn many_sources_never_cost_one_its_place(
            seed in any::<u64>(),
            callers in prop::collection::vec(any::<u32>(), 1..2000),
        ) {
            let mut sources = Sources::new(seed);
            let mut seen = std::collections::BTreeSet::new();
            for caller in callers {
                let admitted = sources.admit(Ipv4Addr::from_bits(caller).into(), rate(1), Time::ZERO);
                prop_assert!(admitted || !seen.insert(caller));
                seen.insert(caller);
                prop_assert!(sources.slots.len() <= SOURCES_MAX);
            }
        }
    }

    #[test]
    fn the_burst_is_one_seconds_worth_and_comes_back_at_the_rate() {
        let mut sources = Sources::new(1);
        let mut admit = |nanos| sources.admit(CALLER, rate(4), at(nanos));
        assert_eq!([(); 5].map(|()| admit(0)), [true, true, true, true, false]);
        // A quarter of a second for each.
        assert!(!admit(249_999_999));
        assert!(admit(250_000_000));
        assert!(!admit(250_000_000));
        let after = 10 * TOKEN;
        assert_eq!(
            [(); 5].map(|()| admit(after)),
            [true, true, true, true, false]
        );
    }

    #[test]
    fn a_flood_from_everywhere_does_not_make_one_that_is_over_its_rate_be_forgotten() {
        let mut sources = Sources::new(99);
        for _ in 0..10 {
            assert!(sources.admit(CALLER, rate(10), Time::ZERO));
        }
        let mut free = 0;
        for n in 0..100_000_u32 {
            free += usize::from(sources.admit(
                Ipv4Addr::from_bits(0x0a00_0000 | n).into(),
                rate(10),
                Time::ZERO,
            ));
            assert!(!sources.admit(CALLER, rate(10), Time::ZERO));
        }
        assert_eq!((free, sources.slots.len()), (100_000, SOURCES_MAX));
        assert!(size_of::<Option<Bucket>>() * SOURCES_MAX <= 400 * 1024);
    }

    #[test]
    fn an_ipv6_network_of_64_bits_is_one_source_and_a_mapped_address_is_ipv4() {
        let mut sources = Sources::new(3);
        let mut admit = |text: &str| sources.admit(text.parse().unwrap(), rate(1), Time::ZERO);
        assert!(admit("2001:db8:0:1::1"));
        assert!(!admit("2001:db8:0:1:ffff::2"));
        assert!(admit("2001:db8:0:2::1"));
        assert!(admit("192.0.2.9"));
        assert!(!admit("::ffff:192.0.2.9"));
        // What looks alike in bits is not alike.
        assert_ne!(
            Source::of(Ipv6Addr::from_bits(0xc000_0209 << 64).into()),
            Source::of("192.0.2.9".parse().unwrap())
        );
    }

    #[test]
    fn memory_is_short_above_the_watermark_until_it_falls_below_95_percent() {
        let mut watermark = Watermark::choose(Some(1000), Some(9)).unwrap();
        let look = |watermark: &mut Watermark, used| watermark.look(used);
        for (used, memory, changed) in [
            (1000, Memory::Enough, false),
            (1001, Memory::Short, true),
            (5000, Memory::Short, false),
            (951, Memory::Short, false),
            (950, Memory::Short, false),
            (949, Memory::Enough, true),
            (1000, Memory::Enough, false),
        ] {
            assert_eq!(look(&mut watermark, used), (memory, changed), "{used}");
        }
    }

    #[test]
    fn the_watermark_is_80_percent_of_the_cgroups_memory_unless_it_is_written() {
        let bytes = |written, cgroup| Watermark::choose(written, cgroup).map(|w| w.bytes());
        assert_eq!(bytes(None, Some(1_000_000_007)), Some(800_000_005));
        assert_eq!(bytes(Some(5), Some(1000)), Some(5));
        assert_eq!(bytes(None, None), None);
        assert_eq!(
            bytes(None, Some(u64::MAX)),
            Some(14_757_395_258_967_641_292)
        );
    }

    #[test]
    fn connections_are_those_that_the_descriptors_hold() {
        // By hand: (20000 - 128) / 2.
        assert_eq!(connections_within(20_000, 50_000), 9936);
        assert_eq!(connections_within(1 << 20, 50_000), 50_000);
        assert_eq!(descriptors_for(50_000), 100_128);
        assert_eq!(connections_within(100_128, 50_000), 50_000);
        assert_eq!(connections_within(100_126, 50_000), 49_999);
        // Half of what is tight.
        assert_eq!(connections_within(100, 50_000), 25);
        assert_eq!(connections_within(0, 50_000), 1);
        assert_eq!(
            connections_within(u64::MAX, usize::MAX),
            usize::try_from((u64::MAX - 128) / 2).unwrap()
        );
    }
}

//! The addresses of the names that peers' gateways and endpoints are given by.
//!
//! Each name is asked by its own clock: again when its answer is too old, sooner and then ever more
//! slowly when there is none. A slow name holds up no other.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::config::LookupIpStrategy;
use hickory_resolver::net::{DnsError, NetError};
use serde_json::{Value, json};
use tokio::sync::{Notify, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use zeugma_core::names::Host;
use zeugma_core::snapshot::{Address, Snapshot};

use crate::runtime::Shared;

/// Answers are asked again no sooner than this, whatever their TTL.
const TTL_MIN: Duration = Duration::from_secs(1);
/// Answers are asked again no later than this, whatever their TTL.
const TTL_MAX: Duration = Duration::from_secs(300);
/// A name that did not resolve is asked again after this, and after twice as long each further time.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// A name that does not resolve is asked again no later than this.
const RETRY_MAX: Duration = Duration::from_secs(30);
/// How long one name may take.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// A question without any answer after this is asked again.
const LOST_AFTER: Duration = Duration::from_secs(10);
/// Questions under way at once.
const LOOKUPS_MAX: usize = 16;
/// Addresses of one name that are used.
const ADDRESSES_MAX: usize = 64;

/// A negative answer is believed once it came so many times in a row: a zone that is being replaced
/// has no names for a moment.
const NEGATIVES: u32 = 2;
/// The code of a name that does not resolve.
pub(crate) const UNRESOLVED: &str = "ZG0601";

/// What each name resolves to at present.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names(BTreeMap<Host, Known>);

/// What is known of a name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Known {
    /// Those of the last answer that had some.
    addresses: Vec<IpAddr>,
    /// Whether it has been answered at all, and what.
    told: Told,
    /// What its last question came to, where that was no answer.
    failing: Option<Failing>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Told {
    /// Nothing, up to now.
    #[default]
    Nothing,
    Addresses,
    /// That it has no addresses.
    Gone,
}

/// Why a name does not resolve.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Failing {
    in_a_row: u32,
    why: String,
}

impl Names {
    /// All addresses to connect, beginning with the one that `draw` falls on; none if the name never
    /// had any. Those of a name that is gone stay: whoever is given by a name is verified, or was
    /// written to be one endpoint.
    pub(crate) fn addresses(&self, address: &Address, draw: usize) -> Vec<SocketAddr> {
        match address {
            Address::Socket(socket) => vec![*socket],
            Address::Name(host, port) => {
                let known = self.0.get(host).map_or(&[][..], |known| &known.addresses);
                let first = draw.checked_rem(known.len()).unwrap_or(0);
                let (before, after) = known.split_at_checked(first).unwrap_or((&[], known));
                let from_first = after.iter().chain(before);
                from_first.map(|ip| SocketAddr::new(*ip, *port)).collect()
            }
            // Once it has addresses they are endpoints themselves.
            Address::Each(..) => Vec::new(),
        }
    }

    /// The addresses of a name that are endpoints; `None` before its first answer.
    pub(crate) fn endpoints(&self, host: &Host) -> Option<&[IpAddr]> {
        let known = self.0.get(host)?;
        match known.told {
            Told::Nothing => None,
            Told::Addresses => Some(&known.addresses),
            Told::Gone => Some(&[]),
        }
    }

    /// What is wrong with names at present, as findings.
    pub(crate) fn findings(&self) -> Vec<Value> {
        let failing = self.0.iter().filter_map(|(host, known)| {
            let failing = known.failing.as_ref()?;
            Some((host, known, failing))
        });
        failing
            .map(|(host, known, failing)| {
                let (held, times) = (known.addresses.len(), failing.in_a_row);
                let what = match (known.told, held) {
                    (Told::Gone, _) => "there are no endpoints of it".to_owned(),
                    (Told::Nothing, _) => "nobody can be connected there".to_owned(),
                    (Told::Addresses, 1) => "its last address stays in use".to_owned(),
                    (Told::Addresses, _) => format!("its last {held} addresses stay in use"),
                };
                let why = &failing.why;
                json!({
                    "code": UNRESOLVED,
                    "severity": "warning",
                    "message": format!("the name `{host}` does not resolve, {times} times in a row: {why}; {what}"),
                    "help": "ask for it on this machine, and look at the name servers in /etc/resolv.conf",
                })
            })
            .collect()
    }
}

/// The names that a snapshot's endpoints are given by.
pub(crate) fn names_of(snapshot: &Snapshot) -> BTreeSet<Host> {
    let endpoints = (snapshot.clusters.iter()).flat_map(|cluster| &cluster.endpoints);
    endpoints
        .filter_map(|endpoint| match &endpoint.address {
            Address::Name(host, _) | Address::Each(host, _) => Some(host.clone()),
            Address::Socket(_) => None,
        })
        .collect()
}

/// Keeps the names that are wanted resolved, for ever; `asked` is told when each of the first ones
/// has been asked once, whatever the answer, and `changed` whenever addresses are others.
pub(crate) async fn run(
    shared: Arc<Shared>,
    wanted: watch::Receiver<BTreeSet<Host>>,
    asked: oneshot::Sender<()>,
    changed: Arc<Notify>,
) {
    // One for all names; made when the first is configured.
    let mut system = None;
    let ask = move |host: &Host| {
        let resolvers = if host.as_str() == "localhost" {
            None
        } else {
            if system.is_none() {
                system = Resolvers::of_system();
            }
            system.clone()
        };
        look_up(host.clone(), resolvers)
    };
    let publish = |names: &Names, what: Changed| {
        shared.metrics.names(
            names.0.len(),
            names
                .0
                .values()
                .filter(|known| known.failing.is_some())
                .count(),
        );
        shared.names.store(Arc::new(names.clone()));
        if what == Changed::Addresses {
            changed.notify_one();
        }
    };
    let count = |result| shared.metrics.name_asked(result);
    keep(wanted, asked, ask, (publish, count)).await;
}

/// The addresses of `host:port`, found as the gateway finds them; waits for the answer.
///
/// The standard library asks the C library, which in a static binary needs files of the very same
/// version beside it.
///
/// # Errors
/// It is no host and port, or the name has no address at present.
pub fn addresses_of(address: &str) -> io::Result<Vec<SocketAddr>> {
    if let Ok(socket) = address.parse() {
        return Ok(vec![socket]);
    }
    let not_an_address = || io::Error::from(io::ErrorKind::InvalidInput);
    let (host, port) = address.rsplit_once(':').ok_or_else(not_an_address)?;
    let host = Host::parse(host).map_err(io::Error::other)?;
    let port: u16 = port.parse().map_err(|_| not_an_address())?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let looking = async { Box::pin(look_up(host, Resolvers::of_system())).await };
    match runtime.block_on(looking) {
        Answer::Addresses(found, _) | Answer::Half { found, .. } => Ok(found
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect()),
        Answer::None(_) | Answer::Failed(_) => {
            let none = "the name has no address at present";
            Err(io::Error::new(io::ErrorKind::NotFound, none))
        }
    }
}

/// The addresses of a host that is asked for once: a name, or an address.
///
/// # Errors
/// Why there is none, in words.
pub(crate) async fn addresses_now(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    if let Ok(ip) = host.parse() {
        return Ok(vec![SocketAddr::new(ip, port)]);
    }
    let name = Host::parse(host).map_err(|error| error.to_string())?;
    match Box::pin(look_up(name, Resolvers::of_system())).await {
        Answer::Addresses(found, _) | Answer::Half { found, .. } => Ok(found
            .into_iter()
            .take(ADDRESSES_MAX)
            .map(|ip| SocketAddr::new(ip, port))
            .collect()),
        Answer::None(_) => Err(format!("the name `{host}` has no addresses")),
        Answer::Failed(why) => Err(format!("the name `{host}` does not resolve: {why}")),
    }
}

/// What asking for a name brought, and for how long it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    /// At least one.
    Addresses(Vec<IpAddr>, Duration),
    /// At least one, of one family; nobody knows of the other, and why.
    Half {
        found: Vec<IpAddr>,
        ttl: Duration,
        unknown: Family,
        why: String,
    },
    /// The name does not exist, or has no addresses.
    None(Duration),
    /// Nobody knows, and why.
    Failed(String),
}

/// A family of addresses, for which a name is asked by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    const fn holds(self, ip: &IpAddr) -> bool {
        match self {
            Self::V4 => ip.is_ipv4(),
            Self::V6 => ip.is_ipv6(),
        }
    }

    /// The type of its records (RFC 1035 §3.2.2, RFC 3596 §2.1).
    const fn records(self) -> &'static str {
        match self {
            Self::V4 => "A",
            Self::V6 => "AAAA",
        }
    }
}

impl Answer {
    /// The word in metrics.
    const fn label(&self) -> &'static str {
        match self {
            Self::Addresses(..) | Self::Half { .. } => "addresses",
            Self::None(_) => "none",
            Self::Failed(_) => "failed",
        }
    }

    /// What both families of addresses were answered, as one: what one has counts where nobody knows
    /// of the other, and there are none where neither has any.
    fn of_both(v4: Self, v6: Self) -> Self {
        let half = |found, ttl, unknown, why| Self::Half {
            found,
            ttl,
            unknown,
            why,
        };
        match (v4, v6) {
            (Self::Addresses(mut all, one), Self::Addresses(more, other)) => {
                all.extend(more);
                Self::Addresses(all, one.min(other))
            }
            (Self::Addresses(found, ttl), Self::Failed(why)) => half(found, ttl, Family::V6, why),
            (Self::Failed(why), Self::Addresses(found, ttl)) => half(found, ttl, Family::V4, why),
            (found @ (Self::Addresses(..) | Self::Half { .. }), _)
            | (_, found @ (Self::Addresses(..) | Self::Half { .. })) => found,
            (Self::Failed(why), _) | (_, Self::Failed(why)) => Self::Failed(why),
            (Self::None(one), Self::None(other)) => Self::None(one.min(other)),
        }
    }
}

/// What an answer changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Changed {
    Nothing,
    /// What is said of the name.
    Told,
    Addresses,
}

/// Asks for what is due, [`LOOKUPS_MAX`] at once, and publishes what changed.
async fn keep<F>(
    mut wanted: watch::Receiver<BTreeSet<Host>>,
    asked: oneshot::Sender<()>,
    mut ask: impl FnMut(&Host) -> F,
    (publish, count): (impl Fn(&Names, Changed), impl Fn(&'static str)),
) where
    F: Future<Output = Answer> + 'static,
{
    let mut questions = Questions::default();
    questions.reconcile(&wanted.borrow_and_update(), Instant::now());
    let mut asked = Some(asked);
    let mut under_way = JoinSet::new();
    loop {
        while under_way.len() < LOOKUPS_MAX
            && let Some(host) = questions.take_due(Instant::now())
        {
            let answer = ask(&host);
            under_way.spawn_local(async move { (host, answer.await) });
        }
        if questions.were_all_asked()
            && let Some(asked) = asked.take()
        {
            // Nobody may be waiting any more.
            asked.send(()).ok();
        }
        let next = questions
            .next_due()
            .filter(|_| under_way.len() < LOOKUPS_MAX);
        // Every arm is cancel-safe: tasks of their own, a fixed moment, and state that is watched.
        tokio::select! {
            Some(ended) = under_way.join_next() => {
                if let Ok((host, answer)) = ended {
                    count(answer.label());
                    let changed = questions.answered(&host, answer, Instant::now());
                    if changed > Changed::Nothing {
                        publish(&questions.names, changed);
                    }
                }
            }
            () = until(next) => {}
            changed = wanted.changed() => match changed {
                Ok(()) => {
                    questions.reconcile(&wanted.borrow_and_update(), Instant::now());
                    publish(&questions.names, Changed::Told);
                }
                Err(_ended) => return,
            },
        }
    }
}

async fn until(moment: Option<Instant>) {
    match moment {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// When each name is asked next, and the last good answers.
#[derive(Debug, Default)]
struct Questions {
    hosts: BTreeMap<Host, Question>,
    names: Names,
}

#[derive(Debug, Clone, Copy)]
struct Question {
    /// While it is under way: when it counts as lost.
    due: Instant,
    failed_in_a_row: u32,
    /// How often one family failed and the other did not.
    half_in_a_row: u32,
    negative_in_a_row: u32,
    was_answered: bool,
}

impl Questions {
    /// Takes up the names that are wanted and forgets the others; what is known of the rest stays,
    /// questions under way included.
    fn reconcile(&mut self, wanted: &BTreeSet<Host>, now: Instant) {
        self.hosts.retain(|host, _| wanted.contains(host));
        self.names.0.retain(|host, _| wanted.contains(host));
        for host in wanted {
            if !self.hosts.contains_key(host) {
                let new = Question {
                    due: now,
                    failed_in_a_row: 0,
                    half_in_a_row: 0,
                    negative_in_a_row: 0,
                    was_answered: false,
                };
                self.hosts.insert(host.clone(), new);
            }
        }
    }

    /// A name that is due, which is under way from here on.
    fn take_due(&mut self, now: Instant) -> Option<Host> {
        let mut due = self
            .hosts
            .iter_mut()
            .filter(|(_, question)| question.due <= now);
        let (host, question) = due.next()?;
        question.due = now + LOST_AFTER;
        Some(host.clone())
    }

    fn next_due(&self) -> Option<Instant> {
        self.hosts.values().map(|question| question.due).min()
    }

    fn were_all_asked(&self) -> bool {
        self.hosts.values().all(|question| question.was_answered)
    }

    /// Takes an answer. One that fails keeps the last good addresses, those of a family where that
    /// one fails, and so does the first that there are none.
    fn answered(&mut self, host: &Host, answer: Answer, now: Instant) -> Changed {
        // A name that is no longer wanted is of no interest.
        let Some(question) = self.hosts.get_mut(host) else {
            return Changed::Nothing;
        };
        question.was_answered = true;
        let known = self.names.0.entry(host.clone()).or_default();
        let before = known.clone();
        match answer {
            Answer::Addresses(addresses, ttl) => {
                question.failed_in_a_row = 0;
                question.half_in_a_row = 0;
                question.negative_in_a_row = 0;
                question.due = now + ttl.clamp(TTL_MIN, TTL_MAX);
                *known = Known::of(addresses, None);
            }
            Answer::Half {
                mut found,
                ttl,
                unknown,
                why,
            } => {
                let retry = retry_after(question.half_in_a_row);
                question.failed_in_a_row = 0;
                question.half_in_a_row = question.half_in_a_row.saturating_add(1);
                question.negative_in_a_row = 0;
                question.due = now + ttl.clamp(TTL_MIN, TTL_MAX).min(retry);
                let count = found.len();
                // A name that was gone comes back with what it has.
                if known.told == Told::Addresses {
                    let last = known.addresses.iter().copied();
                    found.extend(last.filter(|ip| unknown.holds(ip)));
                }
                // Many a name server fails for a family that the name has nothing of.
                let failing = (found.len() > count).then(|| Failing {
                    in_a_row: question.half_in_a_row,
                    why: format!("its {} records: {why}", unknown.records()),
                });
                *known = Known::of(found, failing);
            }
            Answer::None(ttl) => {
                question.negative_in_a_row = question.negative_in_a_row.saturating_add(1);
                let is_believed =
                    question.negative_in_a_row >= NEGATIVES || known.told != Told::Addresses;
                question.due = now
                    + if is_believed {
                        ttl.clamp(RETRY_MIN, RETRY_MAX)
                    } else {
                        RETRY_MIN
                    };
                question.failed_in_a_row = question.failed_in_a_row.saturating_add(1);
                if is_believed {
                    known.told = Told::Gone;
                }
                known.fails(question.failed_in_a_row, "it has no addresses".to_owned());
            }
            Answer::Failed(why) => {
                question.due = now + retry_after(question.failed_in_a_row);
                question.failed_in_a_row = question.failed_in_a_row.saturating_add(1);
                question.negative_in_a_row = 0;
                known.fails(question.failed_in_a_row, why);
            }
        }
        known.tell(host, &before)
    }
}

/// How long to wait before a name is asked again that failed so many times before this one.
fn retry_after(in_a_row: u32) -> Duration {
    let doubled = 1_u32.checked_shl(in_a_row).unwrap_or(u32::MAX);
    RETRY_MIN.saturating_mul(doubled).min(RETRY_MAX)
}

impl Known {
    /// What an answer with addresses makes of it.
    fn of(mut addresses: Vec<IpAddr>, failing: Option<Failing>) -> Self {
        // The same set in another order is the same, and so are the first of many.
        addresses.sort_unstable();
        addresses.dedup();
        addresses.truncate(ADDRESSES_MAX);
        Self {
            addresses,
            told: Told::Addresses,
            failing,
        }
    }

    fn fails(&mut self, in_a_row: u32, why: String) {
        self.failing = Some(Failing { in_a_row, why });
    }

    /// Tells what is new of the name since `before`, once.
    fn tell(&self, host: &Host, before: &Self) -> Changed {
        match (&before.failing, &self.failing) {
            (None, Some(Failing { why, .. })) => {
                let held = self.addresses.len();
                tracing::warn!(
                    code = UNRESOLVED, %host, %why, held,
                    "name not resolved; keeping its last addresses"
                );
            }
            (Some(failing), None) => {
                let times = failing.in_a_row;
                tracing::info!(code = "ZG0603", %host, times, "name resolved again");
            }
            (Some(_), Some(_)) | (None, None) => {}
        }
        if self.told == Told::Gone && before.told == Told::Addresses {
            tracing::warn!(code = "ZG0604", %host, "the name has no addresses any more");
        }
        if (self.told, &self.addresses) != (before.told, &before.addresses) {
            Changed::Addresses
        } else if self != before {
            Changed::Told
        } else {
            Changed::Nothing
        }
    }
}

/// The system's name servers, asked for each family of addresses by itself: of an answer that holds
/// for both nobody could tell whether one of them is not known.
#[derive(Debug, Clone)]
struct Resolvers([TokioResolver; 2]);

impl Resolvers {
    fn of_system() -> Option<Self> {
        let of = |family| {
            let mut builder = TokioResolver::builder_tokio()?;
            let options = builder.options_mut();
            options.ip_strategy = family;
            // When to ask again is decided here: nothing is remembered beyond that.
            options.positive_max_ttl = Some(TTL_MAX);
            options.negative_max_ttl = Some(RETRY_MIN);
            builder.build()
        };
        let both =
            of(LookupIpStrategy::Ipv4Only).and_then(|v4| Ok([v4, of(LookupIpStrategy::Ipv6Only)?]));
        match both {
            Ok(both) => Some(Self(both)),
            Err(error) => {
                tracing::error!(code = "ZG0602", %error, "the system's resolver configuration is not usable");
                None
            }
        }
    }
}

async fn look_up(host: Host, resolvers: Option<Resolvers>) -> Answer {
    if host.as_str() == "localhost" {
        return Answer::Addresses(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)], TTL_MAX);
    }
    let Some(Resolvers([v4, v6])) = resolvers else {
        return Answer::Failed("the system's resolver configuration is not usable".to_owned());
    };
    let (v4, v6) = tokio::join!(ask(&host, &v4), ask(&host, &v6));
    Answer::of_both(v4, v6)
}

async fn ask(host: &Host, resolver: &TokioResolver) -> Answer {
    // The final dot keeps search domains out of it.
    let asking = resolver.lookup_ip(format!("{host}."));
    match tokio::time::timeout(LOOKUP_TIMEOUT, asking).await {
        Ok(Ok(found)) => {
            let ttl = found
                .valid_until()
                .saturating_duration_since(std::time::Instant::now());
            let addresses: Vec<IpAddr> = found.iter().collect();
            if addresses.is_empty() {
                Answer::None(ttl)
            } else {
                Answer::Addresses(addresses, ttl)
            }
        }
        Ok(Err(NetError::Dns(DnsError::NoRecordsFound(none)))) => {
            let ttl = none.negative_ttl.unwrap_or_default();
            Answer::None(Duration::from_secs(ttl.into()))
        }
        Ok(Err(error)) => Answer::Failed(error.to_string()),
        Err(_elapsed) => Answer::Failed(format!("no answer within {LOOKUP_TIMEOUT:?}")),
    }
}

#[cfg(test)]
mod tests {
    use std::cell::{Cell, RefCell};
    use std::rc::Rc;

    use super::*;

    fn host(text: &str) -> Host {
        Host::parse(text).unwrap()
    }

    fn hosts(texts: &[&str]) -> BTreeSet<Host> {
        texts.iter().map(|text| host(text)).collect()
    }

    fn ips(last: &[u8]) -> Vec<IpAddr> {
        let ip = |last: &u8| IpAddr::from([192, 0, 2, *last]);
        last.iter().map(ip).collect()
    }

    #[test]
    fn an_address_is_itself_and_localhost_asks_nobody() {
        let found = |text| addresses_of(text).map_err(|error| error.kind());
        let socket = |text: &str| Ok(vec![text.parse().unwrap()]);
        assert_eq!(found("192.0.2.1:443"), socket("192.0.2.1:443"));
        assert_eq!(found("[2001:db8::1]:443"), socket("[2001:db8::1]:443"));
        assert_eq!(found("localhost:443"), socket("127.0.0.1:443"));
        for bad in ["localhost", "localhost:x", "localhost:65536", ":1"] {
            assert!(addresses_of(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_name_gives_all_its_addresses_from_a_drawn_start() {
        let known = Known {
            addresses: ips(&[1, 2, 3]),
            ..Known::default()
        };
        let names = Names(BTreeMap::from([(host("a.example"), known)]));
        let to = Address::Name(host("a.example"), 7);
        let lasts = |draw| -> Vec<String> {
            let all = names.addresses(&to, draw);
            all.iter().map(ToString::to_string).collect()
        };
        let one_two_three = ["192.0.2.1:7", "192.0.2.2:7", "192.0.2.3:7"];
        assert_eq!(lasts(0), one_two_three);
        assert_eq!(lasts(5), ["192.0.2.3:7", "192.0.2.1:7", "192.0.2.2:7"]);
        assert_eq!(lasts(usize::MAX).len(), 3);
        let unknown = Address::Name(host("b.example"), 7);
        assert_eq!(names.addresses(&unknown, 1), []);
        let socket: SocketAddr = "192.0.2.9:1".parse().unwrap();
        assert_eq!(names.addresses(&Address::Socket(socket), 9), [socket]);
    }

    #[test]
    fn a_failure_is_asked_again_after_1_to_30_seconds_and_keeps_the_last_addresses() {
        let start = Instant::now();
        let mut questions = Questions::default();
        let a = host("a.example");
        questions.reconcile(&hosts(&["a.example"]), start);
        assert_eq!(questions.take_due(start), Some(a.clone()));
        assert_eq!(questions.take_due(start), None, "it is under way");
        assert!(!questions.were_all_asked());
        let good = Answer::Addresses(ips(&[1]), Duration::from_secs(60));
        assert_eq!(
            questions.answered(&a, good.clone(), start),
            Changed::Addresses
        );
        assert!(questions.were_all_asked());
        assert_eq!(questions.answered(&a, good, start), Changed::Nothing);
        assert_eq!(questions.next_due(), Some(start + Duration::from_secs(60)));
        for wait in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(questions.answered(&a, failed(), start), Changed::Told);
            let due = questions.next_due().unwrap();
            assert_eq!(due.duration_since(start), Duration::from_secs(wait));
        }
        for _ in 0..100 {
            questions.answered(&a, failed(), start);
        }
        assert_eq!(questions.next_due(), Some(start + RETRY_MAX));
        assert_eq!(questions.names.endpoints(&a), Some(&*ips(&[1])));
        // A TTL of 0 does not mean without a pause, nor one of a day for ever.
        for (ttl, asked) in [(0, TTL_MIN), (86_400, TTL_MAX)] {
            let answer = Answer::Addresses(ips(&[2]), Duration::from_secs(ttl));
            questions.answered(&a, answer, start);
            assert_eq!(questions.next_due(), Some(start + asked));
        }
    }

    fn failed() -> Answer {
        Answer::Failed("SERVFAIL".to_owned())
    }

    #[test]
    fn an_answer_without_addresses_is_believed_the_second_time_and_at_first() {
        let start = Instant::now();
        let mut questions = Questions::default();
        let (a, new) = (host("a.example"), host("new.example"));
        questions.reconcile(&hosts(&["a.example", "new.example"]), start);
        let none = |seconds| Answer::None(Duration::from_secs(seconds));
        let good = Answer::Addresses(ips(&[2, 1, 2]), Duration::from_secs(60));
        assert_eq!(questions.names.endpoints(&a), None);
        questions.answered(&a, good.clone(), start);
        assert_eq!(questions.names.endpoints(&a), Some(&*ips(&[1, 2])));
        assert!(questions.names.findings().is_empty());
        // Not the first, and not one behind a failure.
        for answer in [none(600), failed(), none(600)] {
            assert_eq!(questions.answered(&a, answer, start), Changed::Told);
            assert_eq!(questions.names.endpoints(&a), Some(&*ips(&[1, 2])));
        }
        let findings = questions.names.findings();
        let message = findings[0]["message"].as_str().unwrap();
        assert_eq!(
            message,
            "the name `a.example` does not resolve, 3 times in a row: it has no addresses; its last 2 addresses stay in use"
        );
        assert_eq!(questions.answered(&a, none(600), start), Changed::Addresses);
        assert_eq!(questions.names.endpoints(&a), Some(&[][..]));
        // It is asked again by the zone's own word, within the bounds.
        for (seconds, asked) in [
            (600, RETRY_MAX),
            (7, Duration::from_secs(7)),
            (0, RETRY_MIN),
        ] {
            questions.answered(&a, none(seconds), start);
            assert_eq!(questions.hosts[&a].due, start + asked);
        }
        // Whoever is given by that name alone keeps its addresses.
        let gateway = Address::Name(a.clone(), 1);
        assert_eq!(questions.names.addresses(&gateway, 0).len(), 2);
        // A failure does not bring back what is gone.
        questions.answered(&a, failed(), start);
        assert_eq!(questions.names.endpoints(&a), Some(&[][..]));
        assert_eq!(questions.answered(&a, good, start), Changed::Addresses);
        assert!(questions.names.findings().is_empty());
        // There is nothing to keep.
        assert_eq!(questions.answered(&new, none(1), start), Changed::Addresses);
        assert_eq!(questions.names.endpoints(&new), Some(&[][..]));
    }

    fn half(found: Vec<IpAddr>, unknown: Family) -> Answer {
        Answer::Half {
            found,
            ttl: Duration::from_secs(60),
            unknown,
            why: "SERVFAIL".to_owned(),
        }
    }

    #[test]
    fn a_family_that_fails_keeps_its_last_addresses_and_is_asked_again_soon() {
        let start = Instant::now();
        let mut questions = Questions::default();
        let a = host("a.example");
        questions.reconcile(&hosts(&["a.example"]), start);
        let six = |last: u16| IpAddr::from([0x2001, 0xdb8, 0, 0, 0, 0, 0, last]);
        let all = |v4: &[u8], v6: &[u16]| -> Vec<IpAddr> {
            let v6 = v6.iter().map(|last| six(*last));
            ips(v4).into_iter().chain(v6).collect()
        };
        let good = |both: Vec<IpAddr>| Answer::Addresses(both, TTL_MAX);
        // Nothing is known of the other family yet, and of many names there is nothing to know.
        let changed = questions.answered(&a, half(ips(&[1]), Family::V6), start);
        assert_eq!(changed, Changed::Addresses);
        assert_eq!(questions.next_due(), Some(start + RETRY_MIN));
        assert!(questions.names.findings().is_empty());

        questions.answered(&a, good(all(&[1, 2], &[1, 2])), start);
        for (wait, changed) in [
            (1, Changed::Addresses),
            (2, Changed::Told),
            (4, Changed::Told),
            (8, Changed::Told),
            (16, Changed::Told),
            (30, Changed::Told),
            (30, Changed::Told),
        ] {
            // What the other one says is used.
            let answer = half(ips(&[3]), Family::V6);
            assert_eq!(questions.answered(&a, answer, start), changed);
            assert_eq!(questions.names.endpoints(&a), Some(&*all(&[3], &[1, 2])));
            let due = questions.next_due().unwrap();
            assert_eq!(due.duration_since(start), Duration::from_secs(wait));
        }
        let findings = questions.names.findings();
        assert_eq!(
            findings[0]["message"].as_str().unwrap(),
            "the name `a.example` does not resolve, 7 times in a row: its AAAA records: SERVFAIL; its last 3 addresses stay in use"
        );
        // The other way round, and no later than the TTL of what was found.
        let answer = Answer::Half {
            found: vec![six(9)],
            ttl: Duration::from_secs(3),
            unknown: Family::V4,
            why: "SERVFAIL".to_owned(),
        };
        questions.answered(&a, answer, start);
        assert_eq!(questions.names.endpoints(&a), Some(&*all(&[3], &[9])));
        assert_eq!(questions.next_due(), Some(start + Duration::from_secs(3)));
        // It is known again that there are none.
        questions.answered(&a, good(ips(&[3])), start);
        assert_eq!(questions.names.endpoints(&a), Some(&*ips(&[3])));
        assert!(questions.names.findings().is_empty());
        // What is gone does not come back by half.
        questions.answered(&a, good(all(&[1], &[1])), start);
        for _ in 0..NEGATIVES {
            questions.answered(&a, Answer::None(TTL_MAX), start);
        }
        questions.answered(&a, half(ips(&[1]), Family::V6), start);
        assert_eq!(questions.names.endpoints(&a), Some(&*ips(&[1])));
        assert_eq!(questions.next_due(), Some(start + RETRY_MIN));
    }

    #[test]
    fn what_one_family_has_counts_and_none_is_none_of_both() {
        let some =
            |last: &[u8], seconds| Answer::Addresses(ips(last), Duration::from_secs(seconds));
        let none = |seconds| Answer::None(Duration::from_secs(seconds));
        for (one, other, both) in [
            (some(&[1], 5), some(&[2], 3), some(&[1, 2], 3)),
            (some(&[1], 5), none(1), some(&[1], 5)),
            (failed(), some(&[1], 60), half(ips(&[1]), Family::V4)),
            (some(&[1], 60), failed(), half(ips(&[1]), Family::V6)),
            (none(4), none(3), none(3)),
            (none(4), failed(), failed()),
            (failed(), none(4), failed()),
        ] {
            assert_eq!(Answer::of_both(one, other), both);
        }
    }

    #[test]
    fn of_many_addresses_the_same_are_used_in_whatever_order_they_come() {
        let start = Instant::now();
        let mut questions = Questions::default();
        let a = host("a.example");
        questions.reconcile(&hosts(&["a.example"]), start);
        let mut many: Vec<u8> = (0..=255).collect();
        let answer = |many: &[u8]| Answer::Addresses(ips(many), TTL_MAX);
        questions.answered(&a, answer(&many), start);
        assert_eq!(questions.names.endpoints(&a).unwrap().len(), ADDRESSES_MAX);
        many.reverse();
        assert_eq!(
            questions.answered(&a, answer(&many), start),
            Changed::Nothing
        );
    }

    #[test]
    fn a_reload_keeps_questions_under_way_and_forgets_names_that_are_gone() {
        let start = Instant::now();
        let mut questions = Questions::default();
        questions.reconcile(&hosts(&["a.example", "b.example"]), start);
        while questions.take_due(start).is_some() {}
        questions.reconcile(&hosts(&["a.example", "c.example"]), start);
        assert_eq!(questions.take_due(start), Some(host("c.example")));
        assert_eq!(questions.take_due(start), None);
        let answer = Answer::Addresses(ips(&[1]), TTL_MAX);
        let gone = questions.answered(&host("b.example"), answer.clone(), start);
        assert_eq!(gone, Changed::Nothing);
        let new = questions.answered(&host("a.example"), answer, start);
        assert_eq!(new, Changed::Addresses);
        assert_eq!(questions.names.0.len(), 1);
        // A question that is never answered is asked again.
        let lost = start + LOST_AFTER;
        assert_eq!(questions.take_due(lost), Some(host("c.example")));
    }

    #[tokio::test(start_paused = true)]
    async fn names_are_asked_beside_each_other_and_all_before_the_first_are_told() {
        let local = tokio::task::LocalSet::new();
        local.run_until(side_by_side()).await;
    }

    async fn side_by_side() {
        let names: BTreeSet<Host> = (0..LOOKUPS_MAX * 2)
            .map(|nth| host(&format!("n{nth}.example")))
            .collect();
        let (want, wanted) = watch::channel(names.clone());
        let (asked, were_asked) = oneshot::channel();
        let (now, most) = (Rc::new(Cell::new(0_usize)), Rc::new(Cell::new(0)));
        let (now_asked, most_asked) = (Rc::clone(&now), Rc::clone(&most));
        let ask = move |_: &Host| {
            now_asked.set(now_asked.get() + 1);
            most_asked.set(most_asked.get().max(now_asked.get()));
            let now = Rc::clone(&now_asked);
            async move {
                tokio::time::sleep(Duration::from_secs(2)).await;
                now.set(now.get() - 1);
                Answer::Addresses(ips(&[1]), TTL_MAX)
            }
        };
        let published = Rc::new(RefCell::new(Names::default()));
        let kept = Rc::clone(&published);
        let publish = move |names: &Names, _| {
            kept.replace(names.clone());
        };
        let keeping = keep(wanted, asked, ask, (publish, |_| {}));
        let began = Instant::now();
        let story = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            // What is under way goes on: a new name is only asked beside it.
            want.send_modify(|names| {
                names.insert(host("late.example"));
            });
            were_asked.await.unwrap();
        };
        tokio::select! {
            () = keeping => panic!("it ended"),
            () = story => {}
        }
        // 16 at once, 2 s each: 33 names take three turns.
        assert_eq!(most.get(), LOOKUPS_MAX);
        assert_eq!(began.elapsed(), Duration::from_secs(6));
        assert_eq!(published.borrow().0.len(), names.len() + 1);
    }
}

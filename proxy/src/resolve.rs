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
use tokio::sync::{oneshot, watch};
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

/// What each name resolves to at present.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Names(BTreeMap<Host, Vec<IpAddr>>);

impl Names {
    /// All addresses to connect, beginning with the one that `draw` falls on; none if the name has
    /// none at present.
    pub(crate) fn addresses(&self, address: &Address, draw: usize) -> Vec<SocketAddr> {
        match address {
            Address::Socket(socket) => vec![*socket],
            Address::Name(host, port) => {
                let known = self.0.get(host).map_or(&[][..], Vec::as_slice);
                let first = draw.checked_rem(known.len()).unwrap_or(0);
                let (before, after) = known.split_at_checked(first).unwrap_or((&[], known));
                let from_first = after.iter().chain(before);
                from_first.map(|ip| SocketAddr::new(*ip, *port)).collect()
            }
        }
    }
}

/// The names that a snapshot's endpoints are given by.
pub(crate) fn names_of(snapshot: &Snapshot) -> BTreeSet<Host> {
    let endpoints = (snapshot.clusters.iter()).flat_map(|cluster| &cluster.endpoints);
    endpoints
        .filter_map(|endpoint| match &endpoint.address {
            Address::Name(host, _) => Some(host.clone()),
            Address::Socket(_) => None,
        })
        .collect()
}

/// Keeps the names that are wanted resolved, for ever; `asked` is told when each of the first ones
/// has been asked once, whatever the answer.
pub(crate) async fn run(
    shared: Arc<Shared>,
    wanted: watch::Receiver<BTreeSet<Host>>,
    asked: oneshot::Sender<()>,
) {
    // One resolver for all; made when the first name is configured.
    let mut system = None;
    let ask = move |host: &Host| {
        let resolver = if host.as_str() == "localhost" {
            None
        } else {
            if system.is_none() {
                system = system_resolver();
            }
            system.clone()
        };
        look_up(host.clone(), resolver)
    };
    let publish = |names| shared.names.store(Arc::new(names));
    keep(wanted, asked, ask, publish).await;
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
    match runtime.block_on(async { look_up(host, system_resolver()).await }) {
        Answer::Addresses(found, _) if !found.is_empty() => Ok(found
            .into_iter()
            .map(|ip| SocketAddr::new(ip, port))
            .collect()),
        Answer::Addresses(..) | Answer::Failed => {
            let none = "the name has no address at present";
            Err(io::Error::new(io::ErrorKind::NotFound, none))
        }
    }
}

/// What asking for a name brought, and for how long it holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Answer {
    Addresses(Vec<IpAddr>, Duration),
    Failed,
}

/// Asks for what is due, [`LOOKUPS_MAX`] at once, and publishes what changed.
async fn keep<F>(
    mut wanted: watch::Receiver<BTreeSet<Host>>,
    asked: oneshot::Sender<()>,
    mut ask: impl FnMut(&Host) -> F,
    publish: impl Fn(Names),
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
                if let Ok((host, answer)) = ended
                    && questions.answered(&host, answer, Instant::now())
                {
                    publish(questions.names.clone());
                }
            }
            () = until(next) => {}
            changed = wanted.changed() => match changed {
                Ok(()) => questions.reconcile(&wanted.borrow_and_update(), Instant::now()),
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

    /// Takes an answer; returns whether any address changed. One that fails keeps the last good
    /// addresses.
    fn answered(&mut self, host: &Host, answer: Answer, now: Instant) -> bool {
        // A name that is no longer wanted is of no interest.
        let Some(question) = self.hosts.get_mut(host) else {
            return false;
        };
        question.was_answered = true;
        match answer {
            Answer::Addresses(addresses, ttl) => {
                question.failed_in_a_row = 0;
                question.due = now + ttl.clamp(TTL_MIN, TTL_MAX);
                let before = self.names.0.insert(host.clone(), addresses);
                before.as_ref() != self.names.0.get(host)
            }
            Answer::Failed => {
                let doubled = 1_u32
                    .checked_shl(question.failed_in_a_row)
                    .unwrap_or(u32::MAX);
                question.due = now + RETRY_MIN.saturating_mul(doubled).min(RETRY_MAX);
                question.failed_in_a_row = question.failed_in_a_row.saturating_add(1);
                false
            }
        }
    }
}

/// A resolver with the system's name servers.
fn system_resolver() -> Option<TokioResolver> {
    let built = TokioResolver::builder_tokio().and_then(|mut builder| {
        // When to ask again is decided here: a failure is not remembered beyond that.
        builder.options_mut().negative_max_ttl = Some(RETRY_MIN);
        builder.build()
    });
    match built {
        Ok(resolver) => Some(resolver),
        Err(error) => {
            tracing::error!(code = "ZG0602", %error, "the system's resolver configuration is not usable");
            None
        }
    }
}

async fn look_up(host: Host, resolver: Option<TokioResolver>) -> Answer {
    if host.as_str() == "localhost" {
        return Answer::Addresses(vec![IpAddr::V4(Ipv4Addr::LOCALHOST)], TTL_MAX);
    }
    let Some(resolver) = resolver else {
        return Answer::Failed;
    };
    // The final dot keeps search domains out of it.
    let asking = resolver.lookup_ip(format!("{host}."));
    match tokio::time::timeout(LOOKUP_TIMEOUT, asking).await {
        Ok(Ok(found)) => {
            let ttl = found
                .valid_until()
                .saturating_duration_since(std::time::Instant::now());
            let mut addresses: Vec<IpAddr> = found.iter().take(ADDRESSES_MAX).collect();
            addresses.sort_unstable();
            Answer::Addresses(addresses, ttl)
        }
        Ok(Err(error)) => {
            tracing::warn!(code = "ZG0601", %host, %error, "name not resolved; keeping its last addresses");
            Answer::Failed
        }
        Err(_elapsed) => {
            tracing::warn!(code = "ZG0601", %host, "name not resolved in time; keeping its last addresses");
            Answer::Failed
        }
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
        let names = Names(BTreeMap::from([(host("a.example"), ips(&[1, 2, 3]))]));
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
        assert!(questions.answered(&a, good.clone(), start));
        assert!(questions.were_all_asked());
        assert!(!questions.answered(&a, good, start), "nothing changed");
        assert_eq!(questions.next_due(), Some(start + Duration::from_secs(60)));
        for wait in [1, 2, 4, 8, 16, 30, 30] {
            assert!(!questions.answered(&a, Answer::Failed, start));
            let due = questions.next_due().unwrap();
            assert_eq!(due.duration_since(start), Duration::from_secs(wait));
        }
        for _ in 0..100 {
            questions.answered(&a, Answer::Failed, start);
        }
        assert_eq!(questions.next_due(), Some(start + RETRY_MAX));
        assert_eq!(questions.names.0.get(&a), Some(&ips(&[1])));
        // A TTL of 0 does not mean without a pause, nor one of a day for ever.
        for (ttl, asked) in [(0, TTL_MIN), (86_400, TTL_MAX)] {
            let answer = Answer::Addresses(ips(&[2]), Duration::from_secs(ttl));
            questions.answered(&a, answer, start);
            assert_eq!(questions.next_due(), Some(start + asked));
        }
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
        assert!(!questions.answered(&host("b.example"), answer.clone(), start));
        assert!(questions.answered(&host("a.example"), answer, start));
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
        let keeping = keep(wanted, asked, ask, move |names| {
            kept.replace(names);
        });
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

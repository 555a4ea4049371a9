//! What the workers carry, for whoever asks through the admin interface.
//!
//! Each worker answers with copies of what it has listed for rechecks, a bounded number of them; the
//! text is made elsewhere, so that connections wait for no table.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::sync::{broadcast, mpsc};
use zeugma_core::identity::SpiffeId;
use zeugma_core::snapshot::Address;

use crate::runtime::{Shared, Worker};
use crate::tls::TlsPeer;

/// Questions on their way to the workers.
pub(crate) const QUESTIONS_MAX: usize = 4;
/// The most workers a gateway has: each answers once.
const WORKERS_MAX: usize = 1024;
/// Entries of one answer.
pub(crate) const ENTRIES_MAX: usize = 10_000;
/// How long an answer may take; a worker that has not answered then is left out.
const DEADLINE: Duration = Duration::from_secs(2);

/// What is asked of every worker.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    wanted: Wanted,
    answers: mpsc::Sender<Answer>,
}

/// What is listed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Wanted {
    /// Of this service alone, `namespace/name`.
    pub(crate) service: Option<String>,
    /// Of this listener alone.
    pub(crate) listener: Option<String>,
    /// The most entries, of all workers together.
    pub(crate) limit: usize,
}

/// What one worker carries.
#[derive(Debug)]
struct Answer {
    carried: Vec<Carrying>,
    /// How many there are, listed or not.
    total: usize,
}

/// A connection or request, as it is listed.
#[derive(Debug)]
pub(crate) struct Carrying {
    pub(crate) kind: &'static str,
    pub(crate) listener: Arc<str>,
    pub(crate) source: SocketAddr,
    pub(crate) service: Option<(Arc<str>, u16)>,
    pub(crate) peer: Option<Arc<TlsPeer>>,
    pub(crate) attested: Option<SpiffeId>,
    pub(crate) sni: Option<Box<str>>,
    pub(crate) request: Option<(String, String)>,
    pub(crate) upstream: Option<(Arc<str>, Address, Arc<TlsPeer>)>,
}

impl Wanted {
    /// Whether something on `listener`, of `service`, is listed.
    pub(crate) fn holds(&self, listener: &str, service: Option<&str>) -> bool {
        (self.listener.as_deref()).is_none_or(|wanted| wanted == listener)
            && (self.service.as_deref()).is_none_or(|wanted| service == Some(wanted))
    }
}

impl Carrying {
    fn to_json(&self) -> Value {
        json!({
            "kind": self.kind,
            "listener": &*self.listener,
            "source": self.source.to_string(),
            "service": self.service.as_ref().map(|(name, _)| &**name),
            "port": self.service.as_ref().map(|(_, port)| port),
            "source_principal": self.peer.as_ref().map(|peer| peer.id.as_str()),
            "source_attested": self.attested.as_ref().map(SpiffeId::as_str),
            "sni": self.sni,
            "method": self.request.as_ref().map(|(method, _)| method),
            "path": self.request.as_ref().map(|(_, path)| path),
            "destination_backend": self.upstream.as_ref().map(|(backend, ..)| &**backend),
            "destination_address": self.upstream.as_ref().map(|(_, at, _)| at.to_string()),
            "destination_principal": self.upstream.as_ref().map(|(.., peer)| peer.id.as_str()),
        })
    }
}

/// What all workers have answered.
#[derive(Debug)]
pub(crate) struct Listed {
    carried: Vec<Carrying>,
    total: usize,
    workers: usize,
    /// Every worker has answered.
    is_whole: bool,
}

impl Listed {
    pub(crate) fn to_json(&self) -> Value {
        let connections: Vec<Value> = self.carried.iter().map(Carrying::to_json).collect();
        json!({
            "total": self.total,
            "listed": connections.len(),
            "workers": self.workers,
            "complete": self.is_whole && self.total == connections.len(),
            "connections": connections,
        })
    }
}

/// Asks every worker.
pub(crate) async fn ask(shared: &Shared, wanted: Wanted) -> Listed {
    let limit = wanted.limit;
    let (answers, mut answered) = mpsc::channel(WORKERS_MAX);
    let question = Question { wanted, answers };
    // Nobody to ask: the gateway ends.
    let asked = shared.admin.questions.send(question).unwrap_or(0);
    let (mut carried, mut total, mut workers) = (Vec::new(), 0, 0);
    let gathering = async {
        // Each worker drops its sender once it has answered.
        while let Some(answer) = answered.recv().await {
            workers += 1;
            total += answer.total;
            let room = limit.saturating_sub(carried.len());
            carried.extend(answer.carried.into_iter().take(room));
        }
    };
    let is_whole = tokio::time::timeout(DEADLINE, gathering).await.is_ok() && workers == asked;
    Listed {
        carried,
        total,
        workers,
        is_whole,
    }
}

/// Answers for one worker, for ever.
pub(crate) async fn answer(worker: Rc<Worker>) {
    let mut questions = worker.shared.admin.questions.subscribe();
    loop {
        let Question { wanted, answers } = match questions.recv().await {
            Ok(question) => question,
            // Whoever asked has given up by its deadline.
            Err(broadcast::error::RecvError::Lagged(_)) => continue,
            Err(broadcast::error::RecvError::Closed) => return,
        };
        let (carried, total) = worker.registry.carried(&wanted);
        // There is room, or nobody waits.
        drop(answers.try_send(Answer { carried, total }));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wanted_is_what_every_written_word_names() {
        let wanted = |service: Option<&str>, listener: Option<&str>| Wanted {
            service: service.map(str::to_owned),
            listener: listener.map(str::to_owned),
            limit: 1,
        };
        assert!(wanted(None, None).holds("mesh", None));
        assert!(wanted(Some("shop/orders"), None).holds("mesh", Some("shop/orders")));
        assert!(!wanted(Some("shop/orders"), None).holds("mesh", None));
        assert!(!wanted(Some("shop/orders"), Some("apps")).holds("mesh", Some("shop/orders")));
    }
}

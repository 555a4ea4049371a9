//! One try: the request goes to one endpoint, anew where a connection had ended before.

use std::rc::Rc;

use http::Response;
use tokio::time::Instant;
use zeugma_core::plan::Attempt;
use zeugma_core::retry::{is_idempotent, is_repeatable};
use zeugma_core::snapshot::{Cluster, Endpoint, Failure, HttpVersion as EndpointVersion};

use super::Exchange;
use super::deadlines::{Deadlines, Late};
use super::outcome::TryError;
use crate::http::body::Source;
use crate::http::h2_client::StreamCount;
use crate::http::pool::{ConnectFailure, Patience, SendError, Wanted, Wire};
use crate::http::stream::Incoming;
use crate::http::unheard::Care;
use crate::http::upgrade::{self, Upgrade};
use crate::http::{Version, headers};
use crate::upstream::Pinned;

/// Times a request is sent anew because a pooled connection turned out to be closed.
const STALE_MAX: u32 = 3;

impl Exchange {
    /// Sends the request to one endpoint, anew where a pooled connection had ended before.
    pub(super) async fn try_endpoint(
        &mut self,
        to: &Pinned,
        attempt: &Attempt,
        (nth, patience): (u32, Patience),
        source: &Source,
    ) -> Result<(Response<Incoming>, Option<StreamCount>), TryError> {
        let worker = Rc::clone(&self.context.worker);
        let cluster = to.cluster();
        let endpoint = cluster.endpoint(attempt.endpoint);
        // The first try begins with the request.
        let began = if nth == 1 {
            Instant::from_std(self.began)
        } else {
            Instant::now()
        };
        if self.upgrade.is_some() && !self.tunnels_on_stream(endpoint) {
            let response = Box::pin(upgrade::try_endpoint(self, to, attempt, nth)).await?;
            return Ok((response, None));
        }
        let mut stale = 0;
        self.asked_at = None;
        loop {
            let now = if stale == 0 { began } else { Instant::now() };
            let wanted = self.wanted(cluster, endpoint, patience, now);
            let lease = match worker.pool.at_once(&worker, to, endpoint, wanted) {
                Some(lease) => lease,
                None => Box::pin(worker.pool.lease(&worker, to, endpoint, wanted))
                    .await
                    .map_err(|failure| self.unleased(to, attempt, nth, failure))?,
            };
            if self.upgrade.is_some() && !lease.takes_extended_connect() {
                drop(lease);
                let response = Box::pin(upgrade::try_endpoint(self, to, attempt, nth)).await?;
                return Ok((response, None));
            }
            self.asked_at = worker.begins(cluster);
            self.arrive(to, attempt, nth, Some(&lease));
            let reused = lease.reused;
            let is_kept = reused && !lease.is_h2();
            let deadlines = self.deadlines(cluster, began);
            let context = &self.context;
            let sent = match lease.into_turn() {
                Ok(mut turn) => {
                    self.begin_turn(endpoint, &mut turn, source);
                    deadlines
                        .hold(context, source, turn.response(&worker))
                        .await
                }
                Err(place) => {
                    let (request, ahead) = self.for_stream(endpoint, source);
                    let sending = Box::pin(place.send(request, ahead));
                    let sent = deadlines.hold(context, source, sending).await;
                    sent.map(|sent| sent.map(|(response, stream)| (response, Some(stream))))
                }
            };
            let unanswered = match sent {
                Ok(Ok(sent)) => return Ok(sent),
                Ok(Err(error)) => Ok(error),
                Err(late) => Err(late),
            };
            if let Some(error) = self.fails_by(unanswered, endpoint, source, (is_kept, stale)) {
                return Err(error);
            }
            stale += 1;
        }
    }

    pub(super) fn deadlines(&self, cluster: &Cluster, began: Instant) -> Deadlines {
        let (response_headers, per_try) = self.timeouts(cluster);
        Deadlines {
            began,
            response_headers,
            per_try,
            idle: cluster.policy.timeouts.idle,
        }
    }

    /// How a try fails that got no answer; not yet, if the request goes to the same endpoint anew, as it
    /// did `stale` times. `is_kept`: over a connection of HTTP/1.1 that had carried others.
    pub(super) fn fails_by(
        &self,
        unanswered: Result<SendError, Late>,
        endpoint: &Endpoint,
        source: &Source,
        (is_kept, stale): (bool, u32),
    ) -> Option<TryError> {
        let SendError { failure, detail } = match unanswered {
            Err(Late::Caller) => return Some(TryError::Caller),
            Ok(_) if source.has_failed() => return Some(TryError::Caller),
            Ok(error) => error,
            Err(Late::Endpoint) => SendError {
                failure: Failure::Timeout,
                detail: format!("no response from {} in time", endpoint.key),
            },
        };
        // RFC 9113 §8.7: it was not processed. A fresh lease knows what the endpoint takes.
        let is_refused =
            failure == Failure::RefusedStream && source.can_repeat() && stale < STALE_MAX;
        if is_refused || (stale == 0 && is_kept && self.met_a_close(failure, source)) {
            return None;
        }
        (self.context.worker).observe(&endpoint.key, Err(failure));
        Some(TryError::untold(failure, detail))
    }

    /// Whether the endpoint may have closed a kept HTTP/1.1 connection before the request reached
    /// it, so that the request may go to it once more (RFC 9112 §9.3.1).
    fn met_a_close(&self, failure: Failure, source: &Source) -> bool {
        failure == Failure::Reset && is_idempotent(self.method().as_str()) && source.can_repeat()
    }

    /// The connection to an endpoint that it wants.
    pub(super) fn wanted(
        &self,
        cluster: &Cluster,
        endpoint: &Endpoint,
        patience: Patience,
        now: Instant,
    ) -> Wanted {
        let is_repeatable = is_repeatable(&self.retries(cluster), self.method().as_str());
        Wanted {
            wire: self.wire(endpoint),
            care: if is_repeatable {
                Care::Repeatable
            } else {
                Care::Once
            },
            patience,
            now: now.into_std(),
        }
    }

    /// Tells of an endpoint to which there is no connection.
    pub(super) fn unleased(
        &mut self,
        to: &Pinned,
        attempt: &Attempt,
        nth: u32,
        failure: ConnectFailure,
    ) -> TryError {
        if let Some(reason) = failure.shed {
            return TryError::Shed(reason);
        }
        if failure.is_quiet {
            if failure.is_first_told {
                let endpoint = to.cluster().endpoint(attempt.endpoint);
                (self.context.worker).observe(&endpoint.key, Err(Failure::Connect));
            }
            return TryError::Quiet;
        }
        self.arrive(to, attempt, nth, None);
        self.note_refused(failure.refused_rule);
        if failure.is_first_told {
            let endpoint = to.cluster().endpoint(attempt.endpoint);
            (self.context.worker).observe(&endpoint.key, Err(Failure::Connect));
        }
        TryError::untold(Failure::Connect, failure.detail)
    }

    /// What is spoken with an endpoint for this request.
    pub(in crate::http) fn wire(&self, endpoint: &Endpoint) -> Wire {
        if endpoint.peer.is_some() {
            return Wire::Negotiated;
        }
        let began_as_h2 = if self.from_gateway {
            headers::began_as_h2(&self.head.headers)
        } else {
            None
        };
        let h2 = match endpoint.version {
            EndpointVersion::H1 => false,
            EndpointVersion::H2 => true,
            EndpointVersion::Same => {
                self.is_grpc || began_as_h2.unwrap_or(self.context.version == Version::H2)
            }
        };
        if h2 { Wire::H2 } else { Wire::H1 }
    }

    /// Whether WebSocket goes on to this endpoint on a stream of HTTP/2: as it came, where the
    /// endpoint speaks it whatever else is asked for (others rarely do so for WebSocket).
    fn tunnels_on_stream(&self, endpoint: &Endpoint) -> bool {
        matches!(self.upgrade, Some(Upgrade::Stream))
            && (endpoint.peer.is_some() || endpoint.version == EndpointVersion::H2)
    }
}

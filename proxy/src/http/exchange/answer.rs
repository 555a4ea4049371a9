//! What the caller gets: the answer of an endpoint, another protocol, or our own word.

use std::time::Duration;

use http::{Method, Response, StatusCode, Version as HttpVersion};
use zeugma_core::engine::nothing_to_try;
use zeugma_core::snapshot::Role;
use zeugma_core::verdict::Reason;

use super::Exchange;
use super::outcome::{Failed, LastAnswer, reason_of};
use crate::http::body::{Held, Outgoing, Source};
use crate::http::expect::Answered;
use crate::http::headers::{self, Present, ZEUGMA_REASON};
use crate::http::record::Record;
use crate::http::reply;
use crate::http::stream::Incoming;
use crate::http::upgrade::{self, Upgrade};
use crate::upstream::Pinned;

impl Exchange {
    /// Gives the endpoint's answer to the caller: a response, or another protocol.
    pub(super) fn hand_over(
        mut self: Box<Self>,
        to: &Pinned,
        response: Response<Incoming>,
        source: &Source,
        mut held: Held,
    ) -> Response<Outgoing> {
        // Only with an answer that the caller gets: another endpoint may still ask.
        held.unasked = source.gate().map(Answered);
        match self.upgrade.take() {
            Some(_)
                if response.status() == StatusCode::SWITCHING_PROTOCOLS
                    && !upgrade::has_read_our_key(&response) =>
            {
                let detail = "the endpoint's sec-websocket-accept is not of our key".to_owned();
                self.refuse(Reason::UpstreamProtocol, Some(detail))
            }
            Some(downstream) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
                let downstream = downstream.into_caller(source);
                upgrade::switch(*self, to, response, downstream, held)
            }
            // RFC 8441 §5: any 2xx would say that the stream is a WebSocket.
            Some(Upgrade::Stream)
                if response.status().is_success() && response.version() != HttpVersion::HTTP_2 =>
            {
                let detail = "the endpoint did not change to WebSocket".to_owned();
                self.refuse(Reason::UpstreamProtocol, Some(detail))
            }
            Some(_) | None => self.pass_on(response, held, to.cluster().policy.timeouts.idle),
        }
    }

    /// Hands the endpoint's response to the caller.
    fn pass_on(
        mut self: Box<Self>,
        response: Response<Incoming>,
        held: Held,
        idle: Duration,
    ) -> Response<Outgoing> {
        let (mut head, incoming) = response.into_parts();
        if let Some(compared) = &mut self.compared {
            compared.begins(&head);
        }
        let present = incoming.present();
        if present.has(Present::HOP_BY_HOP) {
            headers::remove_hop_by_hop(&mut head.headers);
        }
        if present.has(Present::ZEUGMA_REASON) {
            // It is between gateways; ours to the calling one is made by `reply`.
            head.headers.remove(&ZEUGMA_REASON);
        }
        self.change_response(&mut head.headers);
        head.version = self.head.version;
        let status = head.status.as_u16();
        self.note(|_, request| request.status = status);
        let body = Outgoing::response(incoming, self.record, held, idle, self.compared);
        Response::from_parts(head, body)
    }

    /// Tells what came of a request that nobody answered as it should be.
    pub(super) fn give_up(
        mut self: Box<Self>,
        failed: Option<Failed>,
        to: &Pinned,
        role: Role,
        source: &Source,
    ) -> Response<Outgoing> {
        match failed {
            None => {
                let reason = nothing_to_try(to.published.shares_of(to.cluster), role);
                self.refuse(reason, None)
            }
            Some(Failed {
                response: Some(answered),
                ..
            }) => {
                let LastAnswer {
                    response,
                    mut held,
                    destination,
                    ruled,
                } = *answered;
                // Others may have been tried since.
                self.note(|closed, request| {
                    *closed.destination = destination;
                    request.ruled = ruled;
                });
                held.unasked = source.gate().map(Answered);
                self.pass_on(response, held, to.cluster().policy.timeouts.idle)
            }
            Some(Failed {
                failure, detail, ..
            }) => self.refuse(reason_of(failure), Some(detail)),
        }
    }

    /// Answers ourselves.
    pub(in crate::http) fn refuse(
        mut self,
        reason: Reason,
        detail: Option<String>,
    ) -> Response<Outgoing> {
        let mut response = reply::reply(reason, &self.ids.request, self.is_grpc);
        if self.head.method == Method::HEAD {
            reply::drop_body(&mut response);
        }
        if self.from_gateway && reason == Reason::ConnectFailed {
            // No endpoint saw the request either: the calling gateway may try any method elsewhere.
            reply::tell_no_local_endpoint(&mut response);
        } else if self.from_gateway && reason.is_shed() {
            reply::tell(&mut response, reason);
        }
        let status = reply::status(reason).as_u16();
        self.note(|closed, request| {
            request.status = status;
            *closed.reason = reason;
            if detail.is_some() {
                *closed.detail = detail;
            }
        });
        self.record.body_ended(Ok(()));
        response
    }

    /// The record, for an answer that outlives the exchange.
    pub(in crate::http) fn into_record(mut self, status: StatusCode) -> Record {
        self.note(|_, request| request.status = status.as_u16());
        self.record
    }
}

//! The one record of a request, closed when its response body has ended.

use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::Instant;

use http::{Method, Uri};
use zeugma_core::verdict::Reason;

use super::Context;
use super::body::Source;
use crate::account::{Closed, RequestFacts};
use crate::admission::Counted;
use crate::recheck::{Entry, Listed, Open};

/// A request's record under construction; accounted exactly once, at the latest when dropped.
#[derive(Debug)]
pub(crate) struct Record {
    context: Rc<Context>,
    closed: Option<Box<Closed>>,
    source: Option<Source>,
    /// The request as one of its route.
    counted: Option<Counted>,
    began: Instant,
    /// Where a change finds it.
    listed: Listed,
}

impl Record {
    pub(crate) fn new(
        context: &Rc<Context>,
        closed: Box<Closed>,
        asked: Rc<(Method, Uri)>,
        began: Instant,
    ) -> Self {
        let open = Open::Request(asked);
        let origin = &context.origin;
        let registry = &context.worker.registry;
        let listed = registry.list(Arc::clone(&origin.listener), origin.source, open);
        listed.comes_by(context.entry.role());
        if let Some(proxy) = &origin.caller.proxy {
            listed.comes_from(origin.source, **proxy);
        }
        if let Some(peer) = context.entry.peer() {
            listed.is_by(&peer);
            listed.is_called(context.entry.sni());
        }
        context.in_flight.set(context.in_flight.get() + 1);
        context.requests.set(context.requests.get() + 1);
        Self {
            context: Rc::clone(context),
            closed: Some(closed),
            source: None,
            counted: None,
            began,
            listed,
        }
    }

    /// Where a change finds it.
    pub(crate) const fn entry(&self) -> &Rc<Entry> {
        &self.listed.entry
    }

    /// Ready once a change has taken its right to go on.
    pub(crate) fn poll_cut(&self, cx: &mut TaskContext<'_>) -> Poll<()> {
        self.listed.poll_cut(cx)
    }

    /// What is known so far, to be added to.
    pub(crate) fn facts(&mut self) -> Option<&mut Closed> {
        self.closed.as_deref_mut()
    }

    /// What is known of the request so far.
    pub(crate) fn request(&self) -> Option<&RequestFacts> {
        self.closed.as_ref()?.request.as_ref()
    }

    /// Counts no body: what moved is told otherwise.
    pub(crate) fn counts_no_body(&mut self) {
        self.source = None;
    }

    /// Counts the request's body through this source.
    pub(crate) fn counts(&mut self, source: Source) {
        self.source = Some(source);
    }

    /// Holds the request's place in its route until the record is closed.
    pub(crate) fn holds(&mut self, counted: Counted) {
        self.counted = Some(counted);
    }

    /// Counts bytes sent to the caller.
    pub(crate) fn sent(&mut self, bytes: usize) {
        if let Some(closed) = &mut self.closed {
            closed.bytes_sent += bytes as u64;
        }
    }

    /// Bytes of the request's body read from the caller.
    pub(crate) fn received(&self) -> u64 {
        self.source.as_ref().map_or(0, Source::received)
    }

    /// Closes the record of a response whose endpoint fell silent, or that its caller does not read.
    pub(crate) fn body_stalled(&mut self) {
        if let Some(closed) = &mut self.closed {
            closed.reason = Reason::IdleTimeout;
        }
        self.account();
    }

    /// Closes the record with the end of the response body, keeping an earlier reason.
    pub(crate) fn body_ended(&mut self, ended: Result<(), String>) {
        if let (Some(closed), Err(detail)) = (&mut self.closed, ended) {
            closed.reason = Reason::UpstreamReset;
            closed.detail = Some(detail);
        }
        self.account();
    }

    fn account(&mut self) {
        let Some(mut closed) = self.closed.take() else {
            return;
        };
        self.counted = None;
        closed.duration = self.began.elapsed();
        if let Some(ending) = self.listed.ending() {
            closed.reason = ending.reason;
            closed.detail = Some(ending.detail);
            closed.rule = ending.rule.map(Arc::from);
        }
        if let Some(source) = &self.source {
            closed.bytes_received = source.received();
        }
        let context = &self.context;
        (context.worker.shared).account_request(&closed, &context.latest);
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let in_flight = &self.context.in_flight;
        in_flight.set(in_flight.get().saturating_sub(1));
        if let Some(closed) = &mut self.closed {
            if closed.reason == Reason::Completed {
                closed.reason = if std::thread::panicking() {
                    Reason::Internal
                } else if self.context.worker.shared.drain_is_over() {
                    Reason::Drained
                } else {
                    Reason::DownstreamClosed
                };
            }
            self.account();
        }
    }
}

//! The request as it leaves this hop: whose headers go on, which end here, and what is said of ours.

use http::uri::{Authority, PathAndQuery, Scheme};
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Uri, Version as HttpVersion, header,
    request,
};
use zeugma_core::snapshot::Endpoint;

use super::Exchange;
use crate::http::body::{Outgoing, Source};
use crate::http::expect::{Ahead, Passing};
use crate::http::headers::{self, Present, Said, TRACEPARENT};
use crate::http::pool::Turn;
use crate::http::{h1, ruled, upgrade};

/// Room for the headers that are added to a request.
const ADDED: usize = 6;

impl Exchange {
    /// The request as it leaves this hop.
    pub(in crate::http) fn outgoing_head(
        &self,
        endpoint: &Endpoint,
        is_h2: bool,
    ) -> request::Parts {
        let authority = (self.other_host(endpoint))
            .unwrap_or_else(|| headers::authority(&self.head).unwrap_or_default());
        let path = self.head.uri.path_and_query().cloned();
        let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
        let mut parts = http::uri::Parts::default();
        parts.path_and_query = Some(path);
        if is_h2 {
            parts.scheme = Some(Scheme::HTTP);
            parts.authority = match self.head.uri.authority() {
                Some(named) if named.as_str() == authority => Some(named.clone()),
                Some(_) | None => Authority::try_from(authority).ok(),
            };
        }
        let (mut head, ()) = Request::new(()).into_parts();
        head.method = self.method().clone();
        head.uri = Uri::from_parts(parts).unwrap_or_default();
        head.version = if is_h2 {
            HttpVersion::HTTP_2
        } else {
            HttpVersion::HTTP_11
        };
        head.headers = self.outgoing_headers(endpoint, is_h2);
        head
    }

    fn outgoing_headers(&self, endpoint: &Endpoint, is_h2: bool) -> HeaderMap {
        let mut out = HeaderMap::with_capacity(self.head.headers.len() + ADDED);
        self.each_outgoing(endpoint, is_h2, |name, value| {
            let mut value = value.to_value();
            if headers::is_said_once(name) {
                // Never indexed (RFC 7541 §6.2.3): of the two ways past the table the one that can be asked for.
                value.set_sensitive(true);
            }
            out.append(name.clone(), value);
        });
        out
    }

    /// The headers of the request as it leaves this hop, one by one.
    fn each_outgoing(
        &self,
        endpoint: &Endpoint,
        is_h2: bool,
        mut tell: impl FnMut(&HeaderName, Said<'_>),
    ) {
        let headers = &self.head.headers;
        let has = |one| self.present.has(one);
        let named = if has(Present::CONNECTION) {
            headers::named_by_connection(headers)
        } else {
            Vec::new()
        };
        let to_peer = endpoint.peer.is_some();
        let splits_cookies = !is_h2
            && has(Present::COOKIE)
            && headers.get_all(header::COOKIE).iter().nth(1).is_some();
        let trace = Some(&self.ids.trace).filter(|trace| trace.is_said_anew());
        // It was routed by the one host that it names (RFC 9112 §3.2.2: the target's wins).
        let other = self.other_host(endpoint);
        let host_goes_on = !is_h2 && other.is_none() && self.head.uri.authority().is_none();
        // Most of all headers are none of these, which one look at the name tells.
        let passes = |name: &HeaderName| match name.as_str() {
            "host" => host_goes_on,
            // What is said anew below, and what is between gateways.
            "expect" | "x-request-id" | "x-forwarded-client-cert" | headers::REASON => false,
            name if headers::ends_at_hop(name) => false,
            "traceparent" => trace.is_none() && !named.contains(name),
            // Of a trace that goes on, which one that we begin does not: that is never sampled.
            "tracestate" => {
                trace.is_none_or(|trace| headers::is_sampled(trace.parent().as_bytes()))
                    && !named.contains(name)
            }
            headers::MIRROR => self.from_gateway && !named.contains(name),
            "via" => !to_peer && !named.contains(name),
            "cookie" => !splits_cookies && !named.contains(name),
            // Once below: HTTP/1.1 frames the body by it.
            "content-length" => is_h2,
            _ => !named.contains(name),
        };
        if !is_h2 && !host_goes_on {
            let own = || headers::authority(&self.head).unwrap_or_default();
            if let Ok(host) = HeaderValue::try_from(other.unwrap_or_else(own)) {
                tell(&header::HOST, Said::Value(&host));
            }
        }
        let changes = self.request_changes();
        let keeps = |name: &str| changes.is_none_or(|changes| changes.keeps(name));
        for (name, value) in headers {
            if passes(name) && keeps(name.as_str()) {
                tell(name, Said::Value(value));
            }
        }
        if let Some(changes) = changes {
            let more = changes.set.iter().chain(&changes.add);
            for (name, value) in more.filter_map(ruled::header) {
                tell(&name, Said::Value(&value));
            }
        }
        if !is_h2
            && has(Present::CONTENT_LENGTH)
            && headers::content_length(headers).is_some()
            && let Some(length) = headers.get(header::CONTENT_LENGTH)
        {
            tell(&header::CONTENT_LENGTH, Said::Value(length));
        }
        if has(Present::TE) && headers::takes_trailers(headers) {
            // gRPC needs it (RFC 9110 §10.1.4).
            tell(&header::TE, Said::Text(b"trailers"));
        }
        if splits_cookies
            && !named.contains(&header::COOKIE)
            && keeps(header::COOKIE.as_str())
            && let Some(joined) = headers::joined_cookies(headers)
        {
            tell(&header::COOKIE, Said::Value(&joined));
        }
        self.each_of_ours(endpoint, &named, &mut tell);
    }

    /// What the gateway says itself.
    fn each_of_ours(
        &self,
        endpoint: &Endpoint,
        named: &[HeaderName],
        tell: &mut impl FnMut(&HeaderName, Said<'_>),
    ) {
        let trace = Some(&self.ids.trace).filter(|trace| trace.is_said_anew());
        if let Some(trace) = trace {
            tell(&TRACEPARENT, trace.parent().into());
        }
        tell(&headers::REQUEST_ID, (&self.ids.request).into());
        if let Some(caller) = &self.caller {
            // Whatever the caller sent, this is the one element that we vouch for.
            let credentials = self.context.worker.shared.credentials.load();
            let us = credentials.id();
            if let Some(value) = us.and_then(|us| headers::handed_on(us, caller)) {
                tell(&headers::XFCC, Said::Value(&value));
            }
        }
        if endpoint.peer.is_some() {
            // Our word on where the request began is the first one that the peer reads.
            tell(&header::VIA, Said::Value(&headers::via(self.head.version)));
            if !named.contains(&header::VIA) {
                for value in self.head.headers.get_all(header::VIA) {
                    tell(&header::VIA, Said::Value(value));
                }
            }
        }
    }

    /// Begins the request on an HTTP/1.1 connection: written, without a map of its headers.
    pub(super) fn begin_turn(&self, endpoint: &Endpoint, turn: &mut Turn, source: &Source) {
        let gate = source.gate();
        let asks = gate.is_some();
        let headers = &self.head.headers;
        let asked = h1::Asked {
            to_head: self.head.method == Method::HEAD,
            length: if self.present.has(Present::CONTENT_LENGTH) {
                headers::content_length(headers)
            } else {
                None
            },
            headers,
            passing: self.passing.as_ref(),
        };
        turn.begin(asked, source.next_try(), gate, |out| {
            h1::write_request_line(out, self.method(), &self.head.uri);
            self.each_outgoing(endpoint, false, |name, value| {
                h1::write_header(out, name.as_str(), value.as_bytes());
            });
            if asks {
                h1::write_header(out, header::EXPECT.as_str(), b"100-continue");
            }
        });
    }

    /// The request for a stream of HTTP/2, and who is told of what comes before its answer.
    pub(super) fn for_stream(
        &self,
        endpoint: &Endpoint,
        source: &Source,
    ) -> (Request<Outgoing>, Ahead) {
        let head = self.outgoing_head(endpoint, true);
        let mut request = Request::from_parts(head, source.next_try());
        let ahead = Ahead {
            gate: source.gate(),
            passing: self.passing.as_ref().map(Passing::across),
        };
        if ahead.gate.is_some() {
            let expect = HeaderValue::from_static("100-continue");
            request.headers_mut().insert(header::EXPECT, expect);
        }
        if self.upgrade.is_some() {
            upgrade::ask_on_stream(&mut request);
        }
        (request, ahead)
    }
}

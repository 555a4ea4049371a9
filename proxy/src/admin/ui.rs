//! `/ui`: one page for people, made here, so that its tables need no script.
//!
//! The script only asks the page again when something happened. Nothing is loaded from elsewhere and
//! nothing stands in the page that could run (Content-Security-Policy, CSP3 §6).

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use maud::{DOCTYPE, Markup, html};
use serde_json::Value;

use super::api::{
    failovers_json, field, identities_json, list, peers_json, service_json, shares_by_cluster, word,
};
use super::beside;
use crate::runtime::{Published, Shared};

const STYLE: &str = include_str!("ui/style.css");
const SCRIPT: &str = include_str!("ui/script.js");
/// Routes that the page shows; the API has them all.
const ROUTES_MAX: usize = 500;
/// Events of the timeline, the newest.
const EVENTS_SHOWN: usize = 100;
/// Peers that the drawing shows.
const PEERS_DRAWN: usize = 12;

const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
     img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The paths of the page.
pub(super) fn routes(shared: &Arc<Shared>) -> Router {
    Router::new()
        .route("/ui", get(page))
        .route("/ui/style.css", get(async || guarded("text/css", STYLE)))
        .route(
            "/ui/script.js",
            get(async || guarded("text/javascript", SCRIPT)),
        )
        .with_state(Arc::clone(shared))
}

fn guarded(kind: &'static str, body: impl Into<axum::body::Body>) -> Response {
    let headers: [(HeaderName, HeaderValue); 5] = [
        (header::CONTENT_TYPE, HeaderValue::from_static(kind)),
        (
            header::CONTENT_SECURITY_POLICY,
            HeaderValue::from_static(POLICY),
        ),
        (
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        ),
        (
            header::REFERRER_POLICY,
            HeaderValue::from_static("no-referrer"),
        ),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
    ];
    (headers, body.into()).into_response()
}

async fn page(State(shared): State<Arc<Shared>>) -> Response {
    beside(move || {
        let markup = Page::of(&shared).markup();
        guarded("text/html; charset=utf-8", markup.into_string())
    })
    .await
}

/// What the page shows, at one moment.
struct Page {
    published: Arc<Published>,
    peers: Value,
    routes: Vec<Value>,
    failovers: Value,
    identities: Value,
    findings: Value,
    refusals: Vec<(String, u64)>,
}

impl Page {
    fn of(shared: &Shared) -> Self {
        let published = shared.published.load_full();
        let routes = (published.snapshot.services.iter())
            .take(ROUTES_MAX)
            .map(|service| {
                let mut route = service_json(&published, shared, service);
                let cluster = published.snapshot.cluster(service.outbound);
                let shares = published.shares_of(service.outbound);
                if let Some(fields) = route.as_object_mut() {
                    let by = shares_by_cluster(&published, cluster, shares);
                    fields.insert("clusters".to_owned(), by);
                }
                route
            })
            .collect();
        Self {
            peers: peers_json(&published, shared),
            routes,
            failovers: failovers_json(&published, shared),
            identities: identities_json(shared),
            findings: Value::clone(&shared.findings.load()),
            refusals: shared.metrics.refusals(),
            published,
        }
    }

    fn markup(&self) -> Markup {
        let node = &self.published.snapshot.node;
        html! {
            (DOCTYPE)
            html lang="en" {
                head {
                    meta charset="utf-8";
                    meta name="viewport" content="width=device-width, initial-scale=1";
                    title { (node.name) " - Zeugma" }
                    link rel="stylesheet" href="/ui/style.css";
                    link rel="icon" href="data:,";
                    script src="/ui/script.js" defer {}
                }
                body {
                    header {
                        h1 { (node.name) }
                        p {
                            "cluster " b { (node.cluster) } ", " (node.locality) ", trust domain "
                            (node.trust_domain) ", configuration generation "
                            (self.published.generation)
                        }
                    }
                    main {
                        (self.findings())
                        (self.topology())
                        (self.routes())
                        (self.peers())
                        (self.timeline())
                        (self.identities())
                        (self.denials())
                    }
                }
            }
        }
    }

    fn findings(&self) -> Markup {
        let text = self.findings.as_str();
        html! {
            @if !list(&self.findings).is_empty() || text.is_some() {
                section id="findings" class="bad" {
                    h2 { "Findings: the last good configuration serves where files are refused" }
                    ul {
                        @if let Some(text) = text { li { (text) } }
                        @for finding in list(&self.findings) {
                            li {
                                code { (word(finding, "file")) ":" (field(finding, "line")) }
                                " " (word(finding, "message"))
                                @if !word(finding, "help").is_empty() {
                                    " - " (word(finding, "help"))
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// This cluster, and its peers around it; a line is as wide as the routes that use it are many.
    fn topology(&self) -> Markup {
        let own = &*self.published.snapshot.node.cluster;
        let peers = list(&self.peers);
        let drawn = peers.len().min(PEERS_DRAWN);
        let height = 60 * drawn.max(1) + 20;
        let middle = height / 2;
        html! {
            section id="topology" {
                h2 { "Topology" }
                svg viewBox=(format!("0 0 640 {height}")) role="img" aria-label="clusters and peers" {
                    @for (nth, peer) in peers.iter().take(PEERS_DRAWN).enumerate() {
                        @let y = 60 * nth + 40;
                        @let used = self.routes_to(word(peer, "cluster"));
                        line class=(format!("way {}", word(peer, "state")))
                            x1="170" y1=(middle) x2="470" y2=(y)
                            stroke-width=(if used > 0 { "4" } else { "1" }) {}
                        text class="count" x="320" y=((middle + y) / 2 - 7) {
                            (used) " route(s)"
                        }
                        rect class=(word(peer, "state")) x="470" y=(y - 20) width="160" height="40" rx="6" {}
                        text x="550" y=(y + 5) { (word(peer, "name")) " - " (word(peer, "state")) }
                    }
                    rect class="own" x="10" y=(middle - 24) width="160" height="48" rx="6" {}
                    text x="90" y=(middle + 5) { (own) }
                }
                @if peers.len() > PEERS_DRAWN {
                    p { "and " (peers.len() - PEERS_DRAWN) " more peers, in the table below" }
                }
            }
        }
    }

    /// How many of the routes shown send traffic to a cluster now.
    fn routes_to(&self, cluster: &str) -> usize {
        let share = |route: &&Value| {
            let to = field(field(route, "clusters"), cluster);
            to.as_f64().is_some_and(|share| share > 0.0)
        };
        self.routes.iter().filter(share).count()
    }

    fn routes(&self) -> Markup {
        let all = self.published.snapshot.services.len();
        html! {
            section id="routes" {
                h2 { "Routes" }
                @if all > self.routes.len() {
                    p { "the first " (self.routes.len()) " of " (all) "; /api/v1/routes has them all" }
                }
                table {
                    thead { tr {
                        th { "Service" } th { "Port" } th { "Level" } th { "Share" }
                        th { "Healthy" } th { "Why" } th { "Since" } th { "Exported to" }
                    } }
                    tbody { @for route in &self.routes { (route_rows(route)) } }
                }
            }
        }
    }

    fn peers(&self) -> Markup {
        html! {
            section id="peers" {
                h2 { "Peers" }
                table {
                    thead { tr {
                        th { "Peer" } th { "Cluster" } th { "Locality" } th { "State" }
                        th { "Gateways" } th { "Who they must be" }
                    } }
                    tbody { @for peer in list(&self.peers) { tr {
                        td { (word(peer, "name")) }
                        td { (word(peer, "cluster")) }
                        td { (word(peer, "locality")) }
                        td class=(word(peer, "state")) { (word(peer, "state")) }
                        td { @for one in list(field(peer, "gateways")) {
                            (word(one, "address")) " (" (field(one, "healthy")) "/"
                            (field(one, "total")) ", " (word(field(one, "report"), "state")) ") "
                            @for of in list(field(one, "behind")) {
                                @if field(of, "healthy") != field(of, "total") {
                                    br; (word(of, "service")) " " (field(of, "healthy")) "/"
                                    (field(of, "total"))
                                }
                            }
                        } }
                        td { @for id in list(field(peer, "spiffe_ids")) {
                            (id.as_str().unwrap_or_default()) " "
                        } }
                    } } }
                }
            }
        }
    }

    fn timeline(&self) -> Markup {
        let events = list(field(&self.failovers, "timeline"));
        html! {
            section id="failovers" {
                h2 { "Failovers" }
                @if events.is_empty() { p { "nothing moved since the gateway started" } }
                @else {
                    table {
                        thead { tr { th { "When" } th { "What" } th { "Route" } th { "Detail" } th { "Cause" } } }
                        tbody { @for event in events.iter().rev().take(EVENTS_SHOWN) {
                            (event_row(event))
                        } }
                    }
                }
            }
        }
    }

    fn identities(&self) -> Markup {
        let own = field(&self.identities, "own");
        html! {
            section id="identities" {
                h2 { "Identities" }
                table {
                    thead { tr { th { "Trust domain" } th { "What" } th { "Fingerprint" } th { "Not after" } } }
                    tbody {
                        tr {
                            td { (word(own, "spiffe_id")) } td { "own SVID" } td { }
                            td { (word(own, "not_after")) }
                        }
                        @for bundle in list(field(&self.identities, "bundles")) {
                            @for anchor in list(field(bundle, "anchors")) {
                                tr {
                                    td { (word(bundle, "trust_domain")) } td { "anchor" }
                                    td { code { (word(anchor, "fingerprint")) } }
                                    td { (word(anchor, "not_after")) }
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    fn denials(&self) -> Markup {
        html! {
            section id="denials" {
                h2 { "Refused" }
                @if self.refusals.is_empty() { p { "nothing was refused" } }
                @else {
                    table {
                        thead { tr { th { "Reason" } th { "Connections and requests" } } }
                        tbody { @for (reason, count) in &self.refusals {
                            tr { td { (reason) } td { (count) } }
                        } }
                    }
                    p { "each has a line in the access log, with the rule that was nearest" }
                }
            }
        }
    }
}

fn route_rows(route: &Value) -> Markup {
    let outbound = field(route, "outbound");
    let levels = list(field(outbound, "levels"));
    let exported: Vec<&str> = list(field(route, "exported_to"))
        .iter()
        .filter_map(Value::as_str)
        .collect();
    html! {
        @for (nth, level) in levels.iter().enumerate() {
            @let share = field(level, "share").as_f64().unwrap_or_default() * 100.0;
            tr {
                @if nth == 0 {
                    td rowspan=(levels.len()) { (word(route, "service")) }
                    td rowspan=(levels.len()) { (field(route, "port")) }
                }
                td { (word(level, "name")) }
                td { meter min="0" max="100" value=(format!("{share:.0}")) {} " " (format!("{share:.0} %")) }
                td { (field(level, "healthy")) "/" (field(level, "total")) }
                @if nth == 0 {
                    td rowspan=(levels.len()) class=(word(outbound, "why")) { (word(outbound, "why")) }
                    td rowspan=(levels.len()) { (word(outbound, "since")) }
                    td rowspan=(levels.len()) { (exported.join(", ")) }
                }
            }
        }
    }
}

fn event_row(event: &Value) -> Markup {
    let data = field(event, "data");
    let moves: Vec<String> = (list(field(data, "levels")).iter())
        .map(|level| {
            let percent = |name: &str| field(level, name).as_f64().unwrap_or_default() * 100.0;
            let (before, now) = (percent("before"), percent("now"));
            format!("{} {before:.0} % to {now:.0} %", word(level, "name"))
        })
        .collect();
    let causes: Vec<&str> = list(field(data, "causes"))
        .iter()
        .filter_map(Value::as_str)
        .collect();
    html! {
        tr {
            td { (word(event, "at")) }
            td { (word(event, "kind")) }
            // The cluster tells what other clusters see from what the own one does.
            td { @if moves.is_empty() { (word(data, "route")) } @else { (word(data, "cluster")) } }
            td { @if moves.is_empty() { (word(data, "endpoint")) } @else { (moves.join(", ")) } }
            td { @if causes.is_empty() { (word(data, "cause")) } @else { (causes.join("; ")) } }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Alone;
    use crate::runtime::OBSERVATIONS_MAX;

    #[test]
    fn what_others_named_is_text_in_the_page_and_never_markup() {
        let alone = Alone::new(
            "{ apps: { address: '127.0.0.1:0', role: workloads } }",
            "",
            OBSERVATIONS_MAX,
        );
        let finding = serde_json::json!([{
            "file": "a.yaml", "line": 3, "message": "<script>alert(1)</script> & co", "help": null,
        }]);
        alone.shared.findings.store(Arc::new(finding));
        let text = Page::of(&alone.shared).markup().into_string();
        assert!(
            text.contains("&lt;script&gt;alert(1)&lt;/script&gt; &amp; co"),
            "{text}"
        );
        assert!(!text.contains("<script>alert"));
        assert_eq!(text.matches("<script").count(), 1, "our own");
        assert!(!text.contains(" style=") && !text.contains(" onclick="));
    }
}

//! `GET /api/v1/explain`: what would become of a connection or request, and why. Nothing is changed.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;
use serde_json::{Value, json};
use zeugma_core::explain::Question;
use zeugma_core::identity::SpiffeId;
use zeugma_core::verdict::Reason;

use super::api::document;
use super::beside;
use super::levers::refused;
use crate::explain::{self, Health, Unanswered};
use crate::runtime::Shared;

/// The question; unknown words are an error.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    host: String,
    /// What its TLS names, where that is not the host.
    sni: Option<String>,
    method: Option<String>,
    path: Option<String>,
    /// `name=value`, one on each line.
    headers: Option<String>,
    from: Option<String>,
    via: Option<String>,
    source: Option<IpAddr>,
    listener: Option<String>,
    /// The random number, to see again what was told before.
    draw: Option<u64>,
}

impl Asked {
    fn question(self) -> Result<(Question, u64), String> {
        let from = (self.from.as_deref()).map(SpiffeId::parse).transpose();
        let from = from.map_err(|error| format!("from: {error}"))?;
        let question = Question {
            host: self.host,
            sni: self.sni,
            method: self.method.unwrap_or_else(|| "GET".to_owned()),
            path: self.path.unwrap_or_else(|| "/".to_owned()),
            headers: headers(self.headers.as_deref().unwrap_or_default())?,
            from,
            via: self.via,
            source: self.source,
            listener: self.listener,
        };
        Ok((question, self.draw.unwrap_or_else(|| fastrand::u64(..))))
    }
}

fn headers(text: &str) -> Result<Vec<(String, String)>, String> {
    let pairs = text.lines().map(|line| {
        let pair = line.split_once('=').filter(|(name, _)| !name.is_empty());
        let (name, value) = pair.ok_or_else(|| format!("headers: `{line}` is not name=value"))?;
        Ok((name.to_ascii_lowercase(), value.to_owned()))
    });
    pairs.collect()
}

/// Has the control thread explain, and tells it.
pub(super) async fn explain(
    State(shared): State<Arc<Shared>>,
    Query(asked): Query<Asked>,
) -> Response {
    let wrong = |text: String| refused(StatusCode::BAD_REQUEST, "ZG0981", &text);
    let (question, draw) = match asked.question() {
        Ok(question) => question,
        Err(text) => return wrong(text),
    };
    let question = Arc::new(question);
    let told = match explain::ask(&shared, Arc::clone(&question), draw).await {
        Ok(told) => told,
        Err(Unanswered::Question(error)) => return wrong(error.to_string()),
        Err(late @ Unanswered::Late) => {
            return refused(StatusCode::SERVICE_UNAVAILABLE, "ZG0982", &late);
        }
    };
    beside(move || {
        let published = &told.published;
        let mut content = explain::document(
            &published.snapshot,
            &question,
            &told.explanation,
            Health::Live(told.now),
        );
        if told.explanation.refused == Some(Reason::IdentityDenied)
            && let Some(content) = content.as_object_mut()
        {
            let credentials = shared.credentials.load();
            let from = question.from.as_ref();
            let position = from.and_then(|id| credentials.denied().position(id));
            content.insert("deny_list".to_owned(), json!(position));
        }
        if let Some(to) = &told.explanation.to
            && let Some(Value::Object(destination)) = content.get_mut("destination")
        {
            let cluster = published.snapshot.cluster(to.cluster);
            let moved = shared.admin.journal.moved(&cluster.name);
            let since = moved.as_ref().map(|moved| moved.at.as_str());
            let causes = moved.as_ref().map(|moved| moved.causes.as_slice());
            destination.insert("since".to_owned(), json!(since));
            destination.insert("causes".to_owned(), json!(causes.unwrap_or_default()));
        }
        document(published, "explanation", content)
    })
    .await
}

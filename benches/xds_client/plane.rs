//! The control plane: `zeugma xds serve` of a folder.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use serde_json::Value;

use crate::client::get;
use crate::process::Process;
use crate::serving::Serving;

/// Routes in one file.
const EACH: usize = 100;
/// How often the server is asked what it was told, and for how long.
const ASK_EVERY: Duration = Duration::from_millis(20);
const SETTLED_WITHIN: Duration = Duration::from_secs(120);

/// Who the clients are.
pub(crate) const GATEWAY: &str = "east-gw";

/// What it serves: one route for each service.
#[derive(Debug)]
pub(crate) struct Plane {
    pub(crate) listens: SocketAddr,
    admin: SocketAddr,
    config: PathBuf,
    services: usize,
    changed: usize,
    _process: Process,
}

/// What a type stands at, in its one stream: what was sent, if all of it is accepted.
type Settled = Vec<(String, String)>;

impl Plane {
    pub(crate) fn start(folder: &Path, services: usize) -> Result<Self> {
        let config = folder.join("served");
        fs::create_dir_all(&config)?;
        fs::write(
            config.join("gateway.yaml"),
            gateway(
                "",
                "{ certificate: gw.pem, key: gw.key, bundles: bundles/ }",
            ),
        )?;
        for file in 0..services.div_ceil(EACH) {
            let routes = file * EACH..services.min((file + 1) * EACH);
            fs::write(
                config.join(format!("routes-{file}.yaml")),
                documents(routes, None),
            )?;
        }
        let Serving {
            listens,
            admin,
            process,
        } = Serving::start(&config, folder)?;
        Ok(Self {
            listens,
            admin,
            config,
            services,
            changed: 0,
            _process: process,
        })
    }

    /// Waits until its one client has acknowledged all that there is.
    pub(crate) fn wait_settled(&self) -> Result<()> {
        self.settled(|settled| settled.len() >= 3).map(drop)
    }

    /// Changes one endpoint of one service, and waits until its client has acknowledged that.
    pub(crate) fn change(&mut self) -> Result<()> {
        let before = self.settled(|_| true)?;
        self.changed += 1;
        // Services all over the list.
        let service = self.changed * 7919 % self.services;
        let file = service / EACH;
        let routes = file * EACH..self.services.min((file + 1) * EACH);
        let text = documents(routes, Some((service, self.changed)));
        let next = self.config.join(".next");
        fs::write(&next, text)?;
        fs::rename(next, self.config.join(format!("routes-{file}.yaml")))?;
        self.settled(|settled| settled != before.as_slice())
            .map(drop)
    }

    /// What its one client has acknowledged, once that is all, and `is_it`.
    fn settled(&self, is_it: impl Fn(&[(String, String)]) -> bool) -> Result<Settled> {
        let until = Instant::now() + SETTLED_WITHIN;
        while Instant::now() < until {
            let (status, body) = get(self.admin, "/api/v1/nodes")?;
            ensure!(status == 200, "what is told of nodes: {status} {body}");
            let body: Value = serde_json::from_str(&body)?;
            if let Some(settled) = acknowledged(&body)
                && is_it(&settled)
            {
                return Ok(settled);
            }
            thread::sleep(ASK_EVERY);
        }
        bail!("the client has not acknowledged within {SETTLED_WITHIN:?}")
    }
}

/// `None` where something is under way, or there is not one client alone.
fn acknowledged(nodes: &Value) -> Option<Settled> {
    let [node] = nodes.get("nodes")?.as_array()?.as_slice() else {
        return None;
    };
    let types = node.get("types")?.as_array()?;
    let of = |one: &Value| {
        let text = |name| Some(one.get(name)?.as_str()?.to_owned());
        let (sent, accepted) = (text("sent")?, text("accepted")?);
        let is_settled = sent == accepted && one.get("behind")? == false;
        is_settled.then_some((text("type")?, sent))
    };
    types.iter().map(of).collect()
}

/// Our gateway's document.
pub(crate) fn gateway(more: &str, svid: &str) -> String {
    format!(
        "apiVersion: zeugma.dev/v1alpha1
kind: MeshGateway
metadata: {{ name: {GATEWAY} }}
spec:
  trustDomain: east.example
  cluster: east
  locality: eu/eu-1
  svid: {{ files: {svid} }}
  listeners: {{ apps: {{ address: '127.0.0.1:0', role: workloads }} }}
{more}"
    )
}

/// The documents of some routes, of three endpoints each; the first of one of them is another one.
fn documents(routes: std::ops::Range<usize>, changed: Option<(usize, usize)>) -> String {
    let mut text = String::new();
    for at in routes {
        let (namespace, net) = (at % 50, format!("{}.{}", at / 256, at % 256));
        let first = match changed {
            Some((route, nth)) if route == at => 100 + nth % 100,
            Some(_) | None => 1,
        };
        write!(
            text,
            "---
apiVersion: zeugma.dev/v1alpha1
kind: MeshRoute
metadata: {{ name: svc-{at}, namespace: ns-{namespace} }}
spec:
  protocol: http
  backends:
    - {{ endpoints: ['10.{first}.{net}:8080', '10.2.{net}:8080', '10.3.{net}:8080'] }}
  allow: [{{ listeners: [apps] }}]
"
        )
        .ok();
    }
    text
}

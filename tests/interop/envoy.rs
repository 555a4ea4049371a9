//! Envoy, started from a template of `envoy/`.

use std::collections::BTreeMap;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::curl;
use crate::pki::{Svid, Trust};
use crate::support::peers;
use crate::support::process::Process;

/// What stands in a template's `{{name}}`.
pub(crate) type Values = BTreeMap<&'static str, String>;

/// The templates.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Template {
    /// A service: answers every request itself with `body`.
    Backend,
    /// Ends mTLS for `sni`, hands requests to the service at `service_port`.
    Terminate,
    /// Takes plaintext, originates mTLS to `mesh_port` with `sni`, expects `expected_id`.
    Client,
    /// Relays TLS for `sni` to `mesh_port`.
    Passthrough,
    /// Has everything from the control plane at `xds_port`, asked by `api_type`.
    Ads,
    /// The same, asked by what changed; its secrets from the service at `sds_socket`.
    Served,
}

impl Template {
    /// Every template that stands for itself.
    pub(crate) const ALL: [Self; 4] = [
        Self::Backend,
        Self::Terminate,
        Self::Client,
        Self::Passthrough,
    ];

    const fn text(self) -> &'static str {
        match self {
            Self::Backend => include_str!("envoy/backend.yaml"),
            Self::Terminate => include_str!("envoy/terminate.yaml"),
            Self::Client => include_str!("envoy/client.yaml"),
            Self::Passthrough => include_str!("envoy/passthrough.yaml"),
            Self::Ads => include_str!("envoy/ads.yaml"),
            Self::Served => include_str!("envoy/served.yaml"),
        }
    }

    const fn listener(self) -> &'static str {
        match self {
            Self::Backend => "service",
            Self::Terminate | Self::Passthrough => "mesh",
            Self::Client | Self::Ads | Self::Served => "apps",
        }
    }

    fn write(self, name: &str, values: &Values, folder: &Path) -> Result<PathBuf> {
        let mut text = self.text().to_owned();
        for (key, value) in values {
            text = text.replace(&format!("{{{{{key}}}}}"), value);
        }
        if let Some((_, rest)) = text.split_once("{{") {
            let missing = rest.split("}}").next().unwrap_or_default();
            bail!("{name}: the template {self:?} needs a value for `{missing}`");
        }
        let path = folder.join(format!("{name}.yaml"));
        fs::write(&path, text)?;
        Ok(path)
    }

    /// Lets Envoy judge the configuration.
    pub(crate) fn validate(self, values: &Values, folder: &Path) -> Result<()> {
        let path = self.write(&format!("validate-{self:?}"), values, folder)?;
        let output = Command::new(peers::envoy()?)
            .args(["--mode", "validate", "--log-level", "error", "-c"])
            .arg(&path)
            .output()?;
        if !output.status.success() {
            bail!("{self:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

/// A running Envoy.
#[derive(Debug)]
pub(crate) struct Envoy {
    admin: String,
    /// Where its one listener is.
    pub(crate) address: SocketAddr,
    _process: Process,
}

impl Envoy {
    /// Starts one and waits until its workers accept connections.
    pub(crate) fn start(
        name: &str,
        template: Template,
        values: &Values,
        folder: &Path,
    ) -> Result<Self> {
        let config = template.write(name, values, folder)?;
        let (admin, process) = started(name, &config, folder)?;
        let address = listener(&admin, template.listener())?;
        Ok(Self {
            admin,
            address,
            _process: process,
        })
    }

    /// The sum of the counters and gauges whose name ends in `suffix`.
    pub(crate) fn stat(&self, suffix: &str) -> Result<u64> {
        stat(&self.admin, suffix)
    }

    /// The longest of a histogram of times, in milliseconds; `None` until Envoy has summed it up, which it
    /// does every few seconds.
    pub(crate) fn longest(&self, histogram: &str) -> Result<Option<f64>> {
        let of = format!("stats?format=json&filter=^{histogram}$");
        let answer = curl::get(&format!("http://{}/{of}", self.admin))?;
        let stats: Value = serde_json::from_str(&answer.body)?;
        let quantiles = stats.pointer("/stats/0/histograms/computed_quantiles/0/values");
        let last = quantiles
            .and_then(Value::as_array)
            .and_then(|all| all.last());
        Ok(last.and_then(|one| one.pointer("/cumulative")?.as_f64()))
    }

    /// The listeners that it has.
    pub(crate) fn listeners(&self) -> Result<String> {
        let of = "config_dump?resource=dynamic_listeners";
        Ok(curl::get(&format!("http://{}/{of}", self.admin))?.body)
    }
}

/// Starts an Envoy and waits until its workers accept connections; where its admin API is.
fn started(name: &str, config: &Path, folder: &Path) -> Result<(String, Process)> {
    let admin_file = folder.join(format!("{name}.admin"));
    let process = Process::start(
        name,
        Command::new(peers::envoy()?)
            .args(["--disable-hot-restart", "--concurrency", "1"])
            .arg("--admin-address-path")
            .arg(&admin_file)
            .arg("-c")
            .arg(config),
        folder,
    )?;
    process.wait_for_text("all dependencies initialized. starting workers")?;
    let admin = fs::read_to_string(&admin_file).context("envoy's admin address")?;
    Ok((admin, process))
}

/// A running Envoy that reads what one of our gateways was compiled to.
#[derive(Debug)]
pub(crate) struct Compiled {
    admin: String,
    _process: Process,
}

impl Compiled {
    /// Starts one and waits until its workers accept connections.
    pub(crate) fn start(name: &str, bootstrap: &Path, folder: &Path) -> Result<Self> {
        let (admin, process) = started(name, bootstrap, folder)?;
        Ok(Self {
            admin,
            _process: process,
        })
    }

    /// The address of a listener.
    pub(crate) fn listener(&self, name: &str) -> Result<SocketAddr> {
        listener(&self.admin, name)
    }

    /// The sum of the counters and gauges whose name ends in `suffix`.
    pub(crate) fn stat(&self, suffix: &str) -> Result<u64> {
        stat(&self.admin, suffix)
    }

    /// How many updates of any kind it has refused.
    pub(crate) fn rejected(&self) -> Result<u64> {
        stat(&self.admin, "update_rejected")
    }

    /// What it says of its clusters.
    pub(crate) fn clusters(&self) -> Result<Value> {
        let answer = curl::get(&format!("http://{}/clusters?format=json", self.admin))?;
        Ok(serde_json::from_str(&answer.body)?)
    }
}

fn stat(admin: &str, suffix: &str) -> Result<u64> {
    let answer = curl::get(&format!("http://{admin}/stats?format=json"))?;
    let stats: Value = serde_json::from_str(&answer.body)?;
    Ok(stats
        .pointer("/stats")
        .and_then(Value::as_array)
        .context("envoy's stats")?
        .iter()
        .filter(|stat| {
            stat.pointer("/name")
                .and_then(Value::as_str)
                .is_some_and(|name| name.ends_with(suffix))
        })
        .filter_map(|stat| stat.pointer("/value").and_then(Value::as_u64))
        .sum())
}

/// The port was chosen by the kernel; only Envoy knows it.
fn listener(admin: &str, name: &str) -> Result<SocketAddr> {
    let answer = curl::get(&format!("http://{admin}/listeners?format=json"))?;
    let listeners: Value = serde_json::from_str(&answer.body)?;
    let socket = listeners
        .pointer("/listener_statuses")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .find(|listener| listener.pointer("/name").and_then(Value::as_str) == Some(name))
        .and_then(|listener| listener.pointer("/local_address/socket_address"))
        .with_context(|| format!("envoy has no listener {name}: {}", answer.body))?;
    let part = |key: &str| {
        socket
            .get(key)
            .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_owned))
    };
    let address = part("address").context("address")?;
    let port = part("port_value").context("port_value")?;
    Ok(format!("{address}:{port}").parse()?)
}

/// A certificate, and the trust domains whose certificates are taken.
pub(crate) fn identity(svid: &Svid, trusted: &[&Trust]) -> Values {
    let domains: Vec<_> = trusted
        .iter()
        .map(|trust| json!({ "name": trust.name, "trust_bundle": { "filename": trust.anchor } }))
        .collect();
    let mut values = identity_by_bundles(svid, &json!({}));
    values.insert("trust", format!("trust_domains: {}", Value::from(domains)));
    values
}

/// The same, with SPIFFE bundles (JWK Sets) by trust domain.
pub(crate) fn identity_by_bundles(svid: &Svid, bundles: &Value) -> Values {
    let map = json!({ "inline_string": json!({ "trust_domains": bundles }).to_string() });
    Values::from([
        ("certificate", svid.certificate.display().to_string()),
        ("key", svid.key.display().to_string()),
        ("trust", format!("trust_bundles: {map}")),
    ])
}

//! The YAML of the examples, served by `zeugma xds serve` to our gateway, which has no route files, and to
//! an Envoy at once: beside the same services both do the same. Both show their certificates; Envoy has
//! its own by SDS.

use std::collections::BTreeMap;
use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tokio::net::TcpSocket;

use crate::alike::endpoint::answers;
use crate::curl;
use crate::envoy::{Envoy, Template, Values};
use crate::folder;
use crate::foreign;
use crate::gateways::Mesh;
use crate::pki::Svid;
use crate::sds::{Method, Sds};
use crate::support::peers;
use crate::support::process::{Process, READY_WITHIN};
use crate::xds::{ControlPlane, becomes};
use crate::zeugma::{ORDERS, listens};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples");
/// How often it is looked whether something listens.
const ASK_EVERY: Duration = Duration::from_millis(10);
/// Requests for a share, of which the standard deviation is at most 1.2 points then.
const REQUESTS: usize = 2000;
/// How far a share may be from what it should be, in points: the less busy of two is asked, and on a loaded
/// machine one is busy for longer.
const POINTS: f64 = 8.0;

/// Where the services and gateways of an example are, by the port that its files say; whatever is not
/// here takes a free one.
type Ports = BTreeMap<u16, u16>;

/// A file of an example.
fn example(file: &str, ports: &Ports) -> Result<String> {
    const HOST: &str = "127.0.0.1:";
    let written = fs::read_to_string(Path::new(EXAMPLES).join(file)).context(file.to_owned())?;
    let mut parts = written.split(HOST);
    let mut text = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let end = part.find(|c: char| !c.is_ascii_digit());
        let (port, rest) = part.split_at(end.unwrap_or(part.len()));
        let port = ports.get(&port.parse()?).copied().unwrap_or_default();
        text.push_str(&format!("{HOST}{port}{rest}"));
    }
    Ok(text)
}

/// The first of several documents.
fn first(documents: &str) -> &str {
    documents.split("\n---\n").next().unwrap_or_default()
}

/// The document of a gateway with these lines instead of its own for the same fields.
fn with(document: &str, lines: &[String]) -> String {
    let field = |line: &str| line.split(':').next().unwrap_or_default().to_owned();
    let mut text = String::new();
    for line in document.lines() {
        if !lines.iter().any(|new| field(new) == field(line)) {
            text.push_str(&format!("{line}\n"));
        }
    }
    text + &lines.concat()
}

fn svid_line(svid: &Svid, bundles: &Path) -> String {
    format!(
        "  svid: {{ files: {{ certificate: '{}', key: '{}', bundles: '{}' }} }}\n",
        svid.certificate.display(),
        svid.key.display(),
        bundles.display(),
    )
}

/// A service of the examples, which dies when dropped.
struct Service {
    name: &'static str,
    script: &'static str,
    port: u16,
    /// Nobody else is given the port while its process is not there.
    _reserved: Vec<TcpSocket>,
    folder: PathBuf,
    process: Option<Process>,
}

impl Service {
    /// Starts `script` of the examples at a free port.
    fn start(name: &'static str, script: &'static str, folder: &Path) -> Result<Self> {
        let mut reserved = Vec::new();
        let port = foreign::reserve(&mut reserved)?;
        let mut service = Self {
            name,
            script,
            port,
            _reserved: reserved,
            folder: folder.to_owned(),
            process: None,
        };
        service.begin()?;
        Ok(service)
    }

    /// Starts it where it was.
    fn begin(&mut self) -> Result<()> {
        let mut command = Command::new(peers::python()?);
        command.arg(Path::new(EXAMPLES).join(self.script));
        command.args([self.name, &self.port.to_string()]);
        self.process = Some(Process::start(self.name, &mut command, &self.folder)?);
        let until = Instant::now() + READY_WITHIN;
        while TcpStream::connect(("127.0.0.1", self.port)).is_err() {
            ensure!(Instant::now() < until, "{} does not listen", self.name);
            thread::sleep(ASK_EVERY);
        }
        Ok(())
    }

    /// Kills it.
    fn end(&mut self) {
        self.process = None;
    }

    /// One of what `counting.py` counts.
    fn count(&self, what: &str) -> Result<u64> {
        let answer = curl::get(&format!("http://127.0.0.1:{}/counts", self.port))?;
        let counts: Value = serde_json::from_str(&answer.body)?;
        counts.get(what).and_then(Value::as_u64).context("a count")
    }
}

/// One of our gateways.
struct Ours {
    name: &'static str,
    folder: PathBuf,
    process: Process,
}

impl Ours {
    /// Starts one of `document` with `more` fields, the routes behind it and this certificate.
    fn start(
        world: &World,
        (name, document): (&'static str, &str),
        more: &str,
        svid: &Svid,
    ) -> Result<Self> {
        let folder = world.folder.join(name);
        fs::create_dir_all(&folder)?;
        let lines = [
            svid_line(svid, &world.bundles),
            "  admin: unix:admin.sock\n".to_owned(),
            "  stateDir: state\n".to_owned(),
            "  drain: { delay: 0s, timeout: 2s }\n".to_owned(),
        ];
        let (gateway, routes) = document.split_once("\n---\n").unwrap_or((document, ""));
        let gateway = with(gateway, &lines);
        let config = folder.join("gateway.yaml");
        fs::write(config, format!("{gateway}{more}---\n{routes}"))?;
        Ok(Self {
            process: Self::run(name, &folder)?,
            name,
            folder,
        })
    }

    fn run(name: &str, folder: &Path) -> Result<Process> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_zeugma"));
        command.args(["gateway", "--config", "gateway.yaml"]);
        let process = Process::start(name, command.current_dir(folder), folder)?;
        process.wait_for_text("gateway ready")?;
        Ok(process)
    }

    /// Has it begin with what its control plane told it: it says at the start alone at which free ports it
    /// listens, and a listener may come after.
    fn again(self, listener: &str) -> Result<Self> {
        let Self {
            name,
            folder,
            process,
        } = self;
        let kept = folder.join("state").join(name).join("control-plane");
        becomes("kept", || {
            let bytes = fs::read(&kept).unwrap_or_default();
            let mut names = bytes.windows(listener.len());
            let is_kept = names.any(|part| part == listener.as_bytes());
            Ok(if is_kept { "kept" } else { "" }.to_owned())
        })?;
        drop(process);
        Ok(Self {
            process: Self::run(name, &folder)?,
            name,
            folder,
        })
    }

    fn listener(&self, name: &str) -> Result<SocketAddr> {
        self.process
            .wait_for(&format!("where it listens for {name}"), |line| {
                line.contains("gateway ready")
                    .then(|| listens(line, name))
                    .flatten()
            })
    }

    /// How many copies it has sent.
    fn copied(&self) -> Result<u64> {
        let socket = self.folder.join("admin.sock").display().to_string();
        let arguments = ["--unix-socket", socket.as_str()];
        let metrics = curl::run(&arguments, "http://localhost/metrics")?.body;
        let sent = metrics
            .lines()
            .filter(|line| line.starts_with("zeugma_mirrored_total{"))
            .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok());
        Ok(sent.sum())
    }
}

/// What all examples need.
struct World {
    folder: PathBuf,
    mesh: Mesh,
    bundles: PathBuf,
}

impl World {
    fn new(test: &str) -> Result<Self> {
        let folder = folder(test)?;
        let mesh = Mesh::new(&folder)?;
        let bundles = folder.join("bundles");
        fs::create_dir_all(&bundles)?;
        for trust in [&mesh.east.trust, &mesh.west.trust] {
            fs::copy(&trust.anchor, bundles.join(format!("{}.pem", trust.name)))?;
        }
        Ok(Self {
            folder,
            mesh,
            bundles,
        })
    }

    /// West's gateway, of an example's file; it is what both are a neighbour of.
    fn west(&self, file: &str, ports: &Ports) -> Result<Ours> {
        let mut ports = ports.clone();
        // It calls nobody.
        ports.insert(15443, 9);
        let document = example(file, &ports)?;
        Ours::start(self, ("west-gw", &document), "", &self.mesh.west_gateway)
    }
}

/// East's data planes, and the control plane of both.
struct Both {
    plane: ControlPlane,
    ours: Ours,
    envoy: Envoy,
    /// It dies with its only user.
    _sds: Sds,
}

/// The names of both, for messages.
const BOTH: [&str; 2] = ["zeugma", "envoy"];

impl Both {
    /// Serves `documents`, of which the first of the first file is the gateway.
    fn start(world: &World, documents: &[(&str, String)]) -> Result<Self> {
        let config = world.folder.join("served");
        fs::create_dir_all(&config)?;
        for (name, text) in documents {
            fs::write(config.join(format!("{name}.yaml")), text)?;
        }
        let plane = ControlPlane::serve(&world.folder, config)?;
        let svid = &world.mesh.east_gateway;
        let trusted = [&world.mesh.east.trust, &world.mesh.west.trust];
        let sds = Sds::start("sds", &world.folder, Method::Sotw, (svid, &trusted))?;
        let values = Values::from([
            ("xds_port", plane.listens.port().to_string()),
            ("sds_socket", sds.socket.display().to_string()),
        ]);
        let envoy = Envoy::start("envoy", Template::Served, &values, &world.folder)?;
        let gateway = first(documents.first().map_or("", |(_, text)| text));
        let asks = format!(
            "  controlPlane: {{ addresses: ['http://{}'] }}\n",
            plane.listens
        );
        let ours = Ours::start(world, ("east-gw", gateway), &asks, svid)?;
        let ours = ours.again("apps")?;
        let both = Self {
            plane,
            ours,
            envoy,
            _sds: sds,
        };
        assert_eq!(both.plane.rejected()?, Vec::<String>::new());
        Ok(both)
    }

    /// Where workloads connect to one of them.
    fn apps(&self, who: &str) -> Result<SocketAddr> {
        match who {
            "zeugma" => self.ours.listener("apps"),
            _ => Ok(self.envoy.address),
        }
    }

    /// Who answers so many requests, in percent; what is no good answer by its status.
    fn shares(&self, who: &str, requests: usize) -> Result<BTreeMap<String, f64>> {
        let mut shares = BTreeMap::new();
        for (body, count) in answers(self.apps(who)?, ORDERS, requests)? {
            // `service.py` answers with its name, a comma, and who calls.
            let name = body.split(',').next().unwrap_or_default().to_owned();
            *shares.entry(name).or_default() += 100.0 * count as f64 / requests as f64;
        }
        Ok(shares)
    }

    /// Waits until each gives these shares.
    fn give(&self, stage: &str, wanted: &[(&str, f64)]) -> Result<()> {
        for who in BOTH {
            let until = Instant::now() + READY_WITHIN;
            loop {
                let now = self.shares(who, REQUESTS)?;
                if is_close(&now, wanted, POINTS) {
                    break;
                }
                ensure!(
                    Instant::now() < until,
                    "{who}, {stage}: {now:?} and not {wanted:?}"
                );
            }
        }
        Ok(())
    }
}

fn is_close(got: &BTreeMap<String, f64>, wanted: &[(&str, f64)], points: f64) -> bool {
    let wanted: BTreeMap<&str, f64> = wanted.iter().copied().collect();
    let names = got.keys().map(String::as_str).chain(wanted.keys().copied());
    let of = |shares: Option<&f64>| shares.copied().unwrap_or_default();
    let mut apart = names.map(|name| (of(got.get(name)) - of(wanted.get(name))).abs());
    apart.all(|apart| apart <= points)
}

#[test]
fn the_failover_example_fails_over_alike_in_our_gateway_and_in_envoy() -> Result<()> {
    let world = World::new("the_failover_example_fails_over_alike")?;
    let start = |name| Service::start(name, "service.py", &world.folder);
    let (mut first, mut second) = (start("eu-1a")?, start("eu-1b")?);
    let (mut third, far) = (start("eu-2")?, start("us-1")?);
    let mut ports = Ports::from([
        (15081, first.port),
        (15082, second.port),
        (15083, third.port),
        (16081, far.port),
    ]);
    let west = world.west("failover/west.yaml", &ports)?;
    ports.insert(16443, west.listener("mesh")?.port());
    let both = Both::start(&world, &[("east", example("failover/east.yaml", &ports)?)])?;
    both.give("all are well", &[("eu-1a", 50.0), ("eu-1b", 50.0)])?;
    // 50 % healthy of the 70 % that `failover.start` asks for.
    first.end();
    both.give("one of eu-1's is gone", &[("eu-1b", 71.4), ("eu-2", 28.6)])?;
    second.end();
    both.give("eu-1 is gone", &[("eu-2", 100.0)])?;
    third.end();
    both.give("eu is gone", &[("us-1", 100.0)])?;
    first.begin()?;
    second.begin()?;
    both.give("eu-1 is back", &[("eu-1a", 50.0), ("eu-1b", 50.0)])?;
    assert_eq!(both.plane.rejected()?, Vec::<String>::new());
    Ok(())
}

#[test]
fn the_mirroring_example_copies_alike_in_our_gateway_and_in_envoy() -> Result<()> {
    let world = World::new("the_mirroring_example_copies_alike")?;
    let start = |name| Service::start(name, "mirroring/counting.py", &world.folder);
    let (primary, mut canary) = (start("primary")?, start("canary")?);
    let mut ports = Ports::from([(15081, primary.port), (16081, canary.port)]);
    let west = world.west("mirroring/west.yaml", &ports)?;
    ports.insert(16443, west.listener("mesh")?.port());
    let east = example("mirroring/east.yaml", &ports)?;
    // Envoy drops none; ours would where the machine is busy.
    let (limits, none) = ("timeout: 2s, inFlight: 64", "timeout: 60s, inFlight: 10000");
    ensure!(east.contains(limits), "the example has other limits");
    let both = Both::start(&world, &[("east", east.replace(limits, none))])?;
    let requests = u64::try_from(REQUESTS)?;
    let copied = |who: &str| match who {
        "zeugma" => both.ours.copied(),
        _ => both.envoy.stat("orders-canary_80.upstream_rq_total"),
    };
    let served = |who: &str, what: &str| -> Result<()> {
        let before = primary.count("got")?;
        let shares = both.shares(who, REQUESTS)?;
        ensure!(
            is_close(&shares, &[("primary", 100.0)], 0.0),
            "{who}, {what}: {shares:?}"
        );
        // Each request once, and no copy.
        ensure!(primary.count("got")? == before + requests, "{who}, {what}");
        ensure!(primary.count("copies")? == 0, "{who}, {what}");
        Ok(())
    };
    for who in BOTH {
        let before = (copied(who)?, canary.count("got")?);
        served(who, "the canary is well")?;
        let until = Instant::now() + READY_WITHIN;
        let arrived = loop {
            let (sent, arrived) = (copied(who)? - before.0, canary.count("got")? - before.1);
            if sent == arrived {
                break arrived;
            }
            ensure!(
                Instant::now() < until,
                "{who}: of {sent} copies {arrived} have arrived"
            );
        };
        let share = 100.0 * arrived as f64 / requests as f64;
        ensure!(
            (share - 50.0).abs() <= POINTS,
            "{who}: {share} % are copied"
        );
    }
    canary.end();
    for who in BOTH {
        served(who, "the canary is dead")?;
    }
    drop(west);
    for who in BOTH {
        served(who, "the other cluster is gone")?;
    }
    assert_eq!(both.plane.rejected()?, Vec::<String>::new());
    Ok(())
}

/// Who calls what, and whether he is let in once the rules hold: the table of the example's README.
const CALLS: &[(&str, &str, &str, bool)] = &[
    ("cart", "GET", "/v1/items", true),
    ("cart", "POST", "/v1/items", false),
    ("cart", "GET", "/admin", false),
    ("cart", "GET", "/v1/../admin", false),
    ("web", "GET", "/v1/items", false),
    ("oncall", "DELETE", "/v1/items", true),
    ("oncall", "GET", "/admin", true),
    ("oncall", "GET", "/v1/export/all", false),
    ("nobody", "GET", "/v1/items", false),
];

#[test]
fn the_zero_trust_example_lets_in_the_same_callers_in_our_gateway_and_in_envoy() -> Result<()> {
    let world = World::new("the_zero_trust_example_lets_in_the_same")?;
    let orders = Service::start("orders", "service.py", &world.folder)?;
    let ports = Ports::from([(15081, orders.port)]);
    let gateway = example("zero-trust/mesh/gateway.yaml", &ports)?;
    let rules = example("zero-trust/mesh/orders.yaml", &ports)?;
    let bare = rules.split("  # At least one").next().unwrap_or_default();
    let documents = [("gateway", gateway), ("orders", bare.to_owned())];
    let both = Both::start(&world, &documents)?;
    let callers = [
        ("cart", Some(world.mesh.east.svid("/ns/shop/sa/cart")?)),
        ("web", Some(world.mesh.east.svid("/ns/shop/sa/web")?)),
        ("oncall", Some(world.mesh.east.svid("/ns/ops/sa/oncall")?)),
        // In plaintext: a call by TLS needs a certificate.
        ("nobody", None),
    ];
    let status = |who: &str, caller: &str, method: &str, path: &str| {
        let (_, svid) = (callers.iter())
            .find(|(name, _)| *name == caller)
            .context("a caller")?;
        curl::status(both.apps(who)?, svid.as_ref(), ORDERS, method, path)
    };
    let decides = |stage: &str, wanted: &dyn Fn(&str, bool) -> bool| -> Result<()> {
        for (who, (caller, method, path, is_in)) in BOTH
            .into_iter()
            .flat_map(|who| CALLS.iter().map(move |call| (who, call)))
        {
            let wanted = wanted(caller, *is_in);
            let got = status(who, caller, method, path)?;
            if (got == Some(200)) != wanted {
                bail!("{who}, {stage}: {method} {path} by {caller}: {got:?}");
            }
        }
        Ok(())
    };
    let until = |caller: &str, method: &str, path: &str, wanted: &str| -> Result<()> {
        for who in BOTH {
            becomes(wanted, || {
                Ok(format!("{:?}", status(who, caller, method, path)?))
            })?;
        }
        Ok(())
    };
    decides("nothing is written", &|_, _| false)?;
    // Rules are tried before they hold.
    both.plane
        .write("orders", &rules.replace("policy: enforce", "policy: audit"))?;
    until("cart", "GET", "/v1/items", "Some(200)")?;
    decides("all are let in", &|_, _| true)?;
    both.plane.write("orders", &rules)?;
    until("web", "GET", "/v1/items", "Some(403)")?;
    decides("the rules hold", &|_, is_in| is_in)?;
    assert_eq!(both.plane.rejected()?, Vec::<String>::new());
    Ok(())
}

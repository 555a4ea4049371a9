//! `zeugma bug-report`: one file with what somebody else needs to understand a gateway, and no secret.

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde_json::{Map, Value, json};

use crate::admin::{self, Admin, AdminError, Target};
use crate::{ca, exit};

/// What is asked of the gateway.
const PAGES: [&str; 12] = [
    "/server_info",
    "/ready",
    "/listeners",
    "/clusters",
    "/certs",
    "/config_dump",
    "/metrics",
    "/api/v1/routes",
    "/api/v1/peers",
    "/api/v1/failovers",
    "/api/v1/identities",
    "/api/v1/findings",
];

#[derive(Debug, Args)]
pub(crate) struct BugReportArgs {
    #[command(flatten)]
    target: Target,
    /// The file to write; it must not be there yet
    #[arg(long, default_value = "zeugma-bug-report.json", value_name = "FILE")]
    to: PathBuf,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
#[error("the report cannot be written to {0}; choose another file with --to")]
struct WriteError(String, #[source] io::Error);

/// Runs `zeugma bug-report`.
pub(crate) fn run(args: &BugReportArgs) -> ExitCode {
    let admin = match args.target.admin() {
        Ok(admin) => admin,
        Err(error) => return error.fail(),
    };
    let report = json!({
        "apiVersion": "cli.zeugma.dev/v1",
        "kind": "BugReport",
        "command": env!("CARGO_PKG_VERSION"),
        "system": std::fs::read_to_string("/proc/version").unwrap_or_default().trim(),
        "processors": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
        "gateway": pages(&admin),
    });
    if let Err(error) = write_new(&args.to, &format!("{report:#}\n")) {
        let error = WriteError(args.to.display().to_string(), error);
        return ca::fail(&error, "ZG1002", exit::FAILED);
    }
    let text = format!(
        "{} written. It names routes, addresses and identities, and holds no key and no token; read \
         it before you send it.\n",
        args.to.display()
    );
    admin::print(&text).unwrap_or_else(|error| error.fail())
}

/// Each page, or why it is not there: a gateway that does not answer is worth a report as well.
fn pages(admin: &Admin) -> Value {
    let mut all = Map::new();
    for path in PAGES {
        let page = match admin.read(path) {
            Ok(body) => serde_json::from_slice(&body)
                .unwrap_or_else(|_not_json| json!(String::from_utf8_lossy(&body))),
            Err(error) => {
                let is_away = matches!(error, AdminError::Connect(..) | AdminError::Timeout(_));
                all.insert(path.to_owned(), json!({ "error": error.to_string() }));
                if is_away {
                    break;
                }
                continue;
            }
        };
        all.insert(path.to_owned(), page);
    }
    Value::Object(all)
}

/// Nobody's file is replaced, and the report is for its user alone until it is sent.
fn write_new(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(text.as_bytes())
}

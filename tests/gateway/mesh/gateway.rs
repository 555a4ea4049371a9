//! A running `zeugma gateway`, and what it tells.

use std::fs;
use std::io::{BufRead as _, BufReader, Read};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;
use zeugma_core::codes;
use zeugma_core::verdict::Reason;

use super::{Reply, eventually, get, within};

/// A gateway process. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Gateway {
    name: &'static str,
    child: Child,
    access: Lines,
    messages: Lines,
    probes: SocketAddr,
    metrics: SocketAddr,
    admin: SocketAddr,
}

/// What a process has written so far to one of its outputs.
#[derive(Debug, Clone)]
struct Lines {
    lines: Arc<Mutex<Vec<String>>>,
    /// How many, and whether that is all.
    told: watch::Receiver<(usize, bool)>,
}

impl Lines {
    fn read(from: impl Read + Send + 'static) -> Self {
        let (tell, told) = watch::channel((0, false));
        let lines = Arc::<Mutex<Vec<String>>>::default();
        let kept = Arc::clone(&lines);
        thread::spawn(move || {
            for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
                lock(&kept).push(String::from_utf8_lossy(&line).into_owned());
                tell.send_modify(|(count, _)| *count += 1);
            }
            tell.send_modify(|(_, ended)| *ended = true);
        });
        Self { lines, told }
    }

    fn all(&self) -> Vec<String> {
        lock(&self.lines).clone()
    }

    /// The first line, written before or after this call, that `find` makes something of; `None`
    /// if there will be none.
    async fn find<T>(&self, mut find: impl FnMut(&str) -> Option<T>) -> Option<T> {
        let mut told = self.told.clone();
        let mut seen = 0;
        loop {
            let (count, ended) = *told.borrow_and_update();
            for line in lock(&self.lines).iter().take(count).skip(seen) {
                if let Some(found) = find(line) {
                    return Some(found);
                }
            }
            seen = count;
            if ended || told.changed().await.is_err() {
                return None;
            }
        }
    }

    async fn ended(&self) {
        // An error is the end of the thread, which reads to the end.
        drop(self.told.clone().wait_for(|(_, ended)| *ended).await);
    }
}

impl Gateway {
    pub(crate) async fn start(
        name: &'static str,
        command: Command,
        probes: SocketAddr,
        metrics: SocketAddr,
        admin: SocketAddr,
    ) -> Self {
        let this = Self::spawn(name, command, [probes, metrics, admin]);
        this.message("ZG0901 gateway ready").await;
        assert_eq!(this.ready().await, 200);
        this
    }

    /// How one is started; more can be added.
    pub(crate) fn command(config: &Path) -> Command {
        Self::command_under(&[], config)
    }

    /// The same by `wrapper`, a command that replaces itself by the one given to it, such as
    /// `prlimit`, if there is one.
    pub(crate) fn command_under(wrapper: &[&str], config: &Path) -> Command {
        let program = env!("CARGO_BIN_EXE_zeugma");
        let mut command = match wrapper {
            [] => Command::new(program),
            [wrapper, words @ ..] => {
                let mut command = Command::new(wrapper);
                command.args(words).arg(program);
                command
            }
        };
        command
            .args(["gateway", "--config"])
            .arg(config)
            .env_remove("ZEUGMA_LOG")
            .stdin(Stdio::null());
        command
    }

    /// Starts one and waits for nothing; its interfaces are probes, metrics, admin.
    pub(crate) fn spawn(
        name: &'static str,
        mut command: Command,
        [probes, metrics, admin]: [SocketAddr; 3],
    ) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let access = Lines::read(child.stdout.take().unwrap());
        let messages = Lines::read(child.stderr.take().unwrap());
        Self {
            name,
            child,
            access,
            messages,
            probes,
            metrics,
            admin,
        }
    }

    /// Runs a gateway that is expected to end by itself at once.
    pub(crate) fn try_start(config: &Path) -> Output {
        Self::command(config).stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The first access-log line, past or to come, that `wanted` accepts.
    pub(crate) async fn log(&self, mut wanted: impl FnMut(&Value) -> bool) -> Value {
        let found = self.access.find(|line| {
            let line = access_line(line);
            wanted(&line).then_some(line)
        });
        match tokio::time::timeout(super::DEADLINE, found).await {
            Ok(Some(line)) => line,
            Ok(None) | Err(_) => panic!("{}: no such line\n{}", self.name, self.told()),
        }
    }

    /// The line of the connection from `source`.
    pub(crate) async fn connection(&self, source: SocketAddr) -> Value {
        let source = source.to_string();
        self.log(|line| line["kind"] == "connection" && line["src.addr"] == *source)
            .await
    }

    /// Every access-log line so far.
    pub(crate) fn log_so_far(&self) -> Vec<Value> {
        (self.access.all().iter().map(String::as_str))
            .map(access_line)
            .collect()
    }

    /// Every access-log line so far, whatever its form.
    pub(crate) fn access_so_far(&self) -> Vec<String> {
        self.access.all()
    }

    /// The first line on standard error, past or to come, that holds `text`.
    pub(crate) async fn message(&self, text: &str) -> String {
        self.line_of(&self.messages, text, super::DEADLINE).await
    }

    /// As [`message`](Self::message), of what the gateway itself waits for longest.
    pub(crate) async fn late_message(&self, text: &str) -> String {
        self.line_of(&self.messages, text, super::DEADLINE * 2)
            .await
    }

    /// The first access-log line, past or to come, that holds `text`, whatever its form.
    pub(crate) async fn access_text(&self, text: &str) -> String {
        self.line_of(&self.access, text, super::DEADLINE).await
    }

    async fn line_of(&self, lines: &Lines, text: &str, deadline: Duration) -> String {
        let found = lines.find(|line| line.contains(text).then(|| line.to_owned()));
        match tokio::time::timeout(deadline, found).await {
            Ok(Some(line)) => line,
            Ok(None) | Err(_) => panic!("{}: no line {text:?}\n{}", self.name, self.told()),
        }
    }

    /// Every line on standard error so far.
    pub(crate) fn messages_so_far(&self) -> Vec<String> {
        self.messages.all()
    }

    /// Everything it has written, for the message of a test that fails.
    pub(crate) fn told(&self) -> String {
        let mut all = self.access.all();
        all.extend(self.messages.all());
        all.join("\n")
    }

    /// The status of `/ready`.
    pub(crate) async fn ready(&self) -> u16 {
        get(self.probes, "probes", "/ready").await.status
    }

    pub(crate) async fn metrics(&self) -> Metrics {
        let reply = get(self.metrics, "localhost", "/metrics").await;
        assert_eq!(reply.status, 200);
        Metrics(reply.text())
    }

    /// Waits until a metric has a value.
    pub(crate) async fn metric_becomes(&self, name: &str, labels: &[(&str, &str)], value: f64) {
        let mut last = None;
        let what = format!("{name}{labels:?} = {value}");
        eventually(&what, async || {
            last = Some(self.metrics().await);
            last.as_ref().filter(|m| m.value(name, labels) == value)?;
            Some(())
        })
        .await;
    }

    /// A page of the admin interface.
    pub(crate) async fn admin(&self, path: &str) -> Reply {
        get(self.admin, "localhost", path).await
    }

    /// A page of the admin interface, as JSON.
    pub(crate) async fn admin_json(&self, path: &str) -> Value {
        let reply = self.admin(path).await;
        assert_eq!(reply.status, 200, "{path}");
        serde_json::from_slice(&reply.body).unwrap()
    }

    /// The sockets it holds open now.
    pub(crate) fn sockets(&self) -> usize {
        self.descriptors("socket:")
    }

    /// The descriptors it holds open now of what is so called in `/proc`.
    pub(crate) fn descriptors(&self, kind: &str) -> usize {
        let table = fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        table
            .flatten()
            .filter_map(|entry| fs::read_link(entry.path()).ok())
            .filter(|target| target.to_string_lossy().starts_with(kind))
            .count()
    }

    /// Waits until it holds at most `count` sockets.
    pub(crate) async fn sockets_fall_to(&self, count: usize) {
        eventually("open sockets", async || {
            (self.sockets() <= count).then_some(())
        })
        .await;
    }

    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// Stops all of it, without a word to anybody: a signal takes its time to reach every thread.
    pub(crate) async fn freeze(&self) {
        self.signal(Signal::STOP);
        eventually("every thread to stop", async || {
            let mut threads = fs::read_dir(format!("/proc/{}/task", self.pid())).ok()?;
            let is_stopped = |thread: std::io::Result<fs::DirEntry>| {
                // proc_pid_stat(5): the state comes behind the name, which is in parentheses.
                let stat = fs::read_to_string(thread.ok()?.path().join("stat")).ok()?;
                stat.rsplit_once(") ")?.1.starts_with('T').then_some(())
            };
            threads
                .all(|thread| is_stopped(thread).is_some())
                .then_some(())
        })
        .await;
    }

    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> ExitStatus {
        within("the gateway's end", async {
            self.access.ended().await;
            self.messages.ended().await;
        })
        .await;
        // Its outputs are closed, so it is ending or has.
        self.child.wait().unwrap()
    }

    /// Drains it and holds it to what must always be true: exit code 0, no panic, exactly one line
    /// for each connection.
    pub(crate) async fn finish(mut self) {
        let metrics = self.metrics().await;
        assert_eq!(metrics.value("zeugma_panics_total", &[]), 0.0);
        self.signal(Signal::TERM);
        let status = self.ended().await;
        assert!(status.success(), "{status}\n{}", self.told());
        let messages = self.messages_so_far().join("\n");
        assert!(!messages.contains("panicked"), "{messages}");
        messages.lines().for_each(has_a_code);
        self.one_line_for_each_connection();
    }

    /// Two lines of one connection would say that two connections from one port overlapped.
    fn one_line_for_each_connection(&self) {
        let mut lives: Vec<(String, i128, i128)> = self
            .log_so_far()
            .iter()
            .filter(|line| line["kind"] == "connection")
            .map(|line| {
                let end = line["time"].as_str().unwrap();
                let end = OffsetDateTime::parse(end, &Rfc3339).unwrap();
                let end = end.unix_timestamp_nanos() / 1_000_000;
                let lasted = line["duration"].as_str().unwrap();
                let lasted: i128 = lasted.strip_suffix("ms").unwrap().parse().unwrap();
                // The kernel gives one port to connections to several listeners at once.
                let source = format!("{} {}", line["listener"], line["src.addr"]);
                (source, end - lasted, end)
            })
            .collect();
        lives.sort_unstable();
        for pair in lives.windows(2) {
            let ((source, _, end), (other, begin, _)) = (&pair[0], &pair[1]);
            // Both were rounded to a millisecond.
            let apart = source != other || *begin + 2 >= *end;
            assert!(apart, "{source} has two lines\n{}", self.told());
        }
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the output of a test, shown where it fails"
)]
impl Drop for Gateway {
    fn drop(&mut self) {
        // Both fail only where it has ended by itself.
        self.child.kill().ok();
        self.child.wait().ok();
        if thread::panicking() {
            // What a test that fails now and then, on another machine, is understood by.
            let told = self.told();
            let from = told.lines().count().saturating_sub(TOLD_MAX);
            println!("--- the last of what {} wrote:", self.name);
            told.lines().skip(from).for_each(|line| println!("{line}"));
        }
    }
}

/// The most lines of a gateway that are shown where a test fails.
const TOLD_MAX: usize = 60;

/// Holds a message of the log to have a code that is explained.
fn has_a_code(line: &str) {
    let words: Vec<&str> = line.split_whitespace().take(3).collect();
    if let [_time, "INFO" | "WARN" | "ERROR", code] = words[..] {
        assert!(codes::find(code).is_some(), "{line}");
    }
}

/// A line of the access log, held to the code of its verdict.
fn access_line(line: &str) -> Value {
    let line: Value = serde_json::from_str(line).unwrap();
    let mut all = Reason::ALL.iter();
    let reason = all
        .find(|reason| line["verdict"] == reason.label())
        .unwrap();
    assert_eq!(line["code"].as_str(), reason.code(), "{line}");
    line
}

/// One scrape.
#[derive(Debug, Clone)]
pub(crate) struct Metrics(pub(crate) String);

impl Metrics {
    /// The sum of the series of `name` that have all these labels.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let wanted: Vec<String> = labels
            .iter()
            .map(|(key, value)| format!("{key}=\"{value}\""))
            .collect();
        self.0
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| {
                let (series, value) = line.rsplit_once(' ')?;
                let (found, rest) = series.split_once('{').unwrap_or((series, "}"));
                let has: Vec<&str> = rest.trim_end_matches('}').split(',').collect();
                let all = wanted.iter().all(|want| has.contains(&want.as_str()));
                (found == name && all).then(|| value.parse::<f64>().unwrap())
            })
            .sum()
    }
}

/// A poisoned lock here means that another thread failed: what it guards is still text.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

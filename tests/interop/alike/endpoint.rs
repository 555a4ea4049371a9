//! Endpoints in this process, and who of them answers.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};

/// Connections that ask at once.
const CONNECTIONS: usize = 4;
/// No answer takes as long.
const PATIENCE: Duration = Duration::from_secs(20);

/// What an endpoint answers.
#[derive(Debug, Clone, Copy)]
pub(super) enum Answers {
    WithItsName,
    /// 503.
    Unavailable,
}

/// A service that counts requests.
pub(super) struct Endpoint {
    pub(super) address: SocketAddr,
    requests: Arc<AtomicUsize>,
}

impl Endpoint {
    /// Serves as long as the process lives.
    pub(super) fn start(name: &str, answers: Answers) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let address = listener.local_addr()?;
        let status = match answers {
            Answers::WithItsName => "200 OK",
            Answers::Unavailable => "503 Service Unavailable",
        };
        let length = name.len();
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\n\r\n{name}");
        let requests = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&requests);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (answer, counted) = (answer.clone(), Arc::clone(&counted));
                // It ends when the caller leaves.
                thread::spawn(move || serve(stream, &answer, &counted).ok());
            }
        });
        Ok(Self { address, requests })
    }

    /// How many there were.
    pub(super) fn requests(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }
}

fn serve(stream: TcpStream, answer: &str, counted: &AtomicUsize) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while head(&mut reader)?.is_some() {
        counted.fetch_add(1, Ordering::SeqCst);
        writer.write_all(answer.as_bytes())?;
    }
    Ok(())
}

/// Asks `entry` so often for `host`, and counts whose answers come; another status is counted by its
/// number.
pub(crate) fn answers(
    entry: SocketAddr,
    host: &str,
    requests: usize,
) -> Result<BTreeMap<String, usize>> {
    thread::scope(|scope| {
        let each = || ask(entry, host, requests / CONNECTIONS);
        let asking: Vec<_> = (0..CONNECTIONS).map(|_| scope.spawn(each)).collect();
        let mut all = BTreeMap::new();
        for thread in asking {
            let counted = thread.join().ok().context("a thread that asks")??;
            for (name, count) in counted {
                *all.entry(name).or_default() += count;
            }
        }
        Ok(all)
    })
}

fn ask(entry: SocketAddr, host: &str, requests: usize) -> Result<BTreeMap<String, usize>> {
    let mut writer = TcpStream::connect(entry)?;
    writer.set_nodelay(true)?;
    writer.set_read_timeout(Some(PATIENCE))?;
    let mut reader = BufReader::new(writer.try_clone()?);
    let request = format!("GET / HTTP/1.1\r\nhost: {host}\r\n\r\n");
    let mut counted = BTreeMap::new();
    for _ in 0..requests {
        writer.write_all(request.as_bytes())?;
        let (status, length) = head(&mut reader)?.context("the connection ended")?;
        let mut body = vec![0; length];
        reader.read_exact(&mut body)?;
        let name = match &*status {
            "200" => String::from_utf8(body)?,
            _ => status,
        };
        *counted.entry(name).or_default() += 1;
    }
    Ok(counted)
}

/// The second word of a head and the length of its body; `None` at the end.
fn head(reader: &mut BufReader<TcpStream>) -> Result<Option<(String, usize)>> {
    let mut first = String::new();
    if reader.read_line(&mut first)? == 0 {
        return Ok(None);
    }
    let word = first.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let line = line.trim_end().to_ascii_lowercase();
        if line.is_empty() {
            return Ok(Some((word, length)));
        }
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse()?;
        }
    }
}

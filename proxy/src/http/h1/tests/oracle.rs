//! The same bytes to ours and to hyper: what we take, hyper takes, and for the same.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};

use http_body_util::Empty;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;

use super::*;

/// The response that hyper reads.
async fn response_of_hyper(method: Method, script: Script) -> Option<Read> {
    let handshake = hyper::client::conn::http1::Builder::new()
        .max_buf_size(64 * 1024)
        .handshake(TokioIo::new(script))
        .await;
    let (mut sender, connection) = handshake.ok()?;
    let request = Request::builder()
        .method(method)
        .uri("/")
        .header("host", "a.example");
    let asking = async {
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        let (head, body) = sender.send_request(request).await.ok()?.into_parts();
        let body = collected(body).await;
        Some(Read::new(
            head.status.to_string(),
            head.version,
            head.headers,
            body,
        ))
    };
    let driving = async {
        connection.await.ok();
        std::future::pending::<()>().await;
    };
    tokio::select! {
        biased;
        read = asking => read,
        () = driving => None,
    }
}

/// The requests that hyper reads.
async fn requests_of_hyper(script: Script) -> Vec<Read> {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let noting = Arc::clone(&seen);
    let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
        let noting = Arc::clone(&noting);
        async move {
            let (head, body) = request.into_parts();
            let body = collected(body).await;
            let start = format!("{} {}", head.method, head.uri);
            let read = Read::new(start, head.version, head.headers, body);
            noting.lock().unwrap().push(read);
            Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new()))
        }
    });
    hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(script), answer)
        .await
        .ok();
    std::mem::take(&mut *seen.lock().unwrap())
}

/// Lines that say something of lengths and connections, right and wrong.
const LINES: &[&str] = &[
    "content-length: 5\r\n",
    "content-length: 5\r\n",
    "Content-Length: 0\r\n",
    "content-length: 05\r\n",
    "content-length: +5\r\n",
    "content-length: 5, 5\r\n",
    "content-length: 5 \r\n",
    "content-length:\r\n",
    "content-length: 18446744073709551616\r\n",
    "content-length : 5\r\n",
    "transfer-encoding: chunked\r\n",
    "transfer-encoding: chunked\r\n",
    "Transfer-Encoding: Chunked\r\n",
    "transfer-encoding: gzip, chunked\r\n",
    "transfer-encoding: chunked, gzip\r\n",
    "transfer-encoding: identity\r\n",
    "transfer-encoding:\u{b}chunked\r\n",
    "connection: close\r\n",
    "connection: keep-alive\r\n",
    "connection: x, Close\r\n",
    "x: 1\r\n",
    "x: 2\r\n folded\r\n",
    "x: a\u{0}b\r\n",
    "x: \u{e9}\r\n",
    "x 1\r\n",
    ": 1\r\n",
    "x: 1\n",
    "\r: 1\r\n",
];

const BODIES: &[&str] = &[
    "",
    "hello",
    "hello and more",
    "hel",
    "5\r\nhello\r\n0\r\n\r\n",
    "5;x=y\r\nhello\r\n0\r\nt: 1\r\n\r\n",
    "5 ; x\r\nhello\r\n000\r\n\r\n",
    "2\r\nhe\r\n3\r\nllo\r\n0\r\n\r\n",
    "5\r\nhelloX\r\n0\r\n\r\n",
    "5\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\nbad trailer\r\n\r\n",
    "-1\r\nhello\r\n0\r\n\r\n",
    "0x5\r\nhello\r\n0\r\n\r\n",
    "10000000000000005\r\nhello\r\n0\r\n\r\n",
    "5;a\nb\r\nhello\r\n0\r\n\r\n",
    "\r\nhello\r\n0\r\n\r\n",
    "5\r\nhello\r\n0\r\n",
];

/// A byte put in, changed or taken out.
#[derive(Debug, Clone)]
enum Change {
    Insert(u8),
    Replace(u8),
    Remove,
}

/// Messages, and how they come.
#[derive(Debug, Clone)]
struct Hostile {
    bytes: Vec<u8>,
    portions: Vec<usize>,
}

fn hostile(starts: &'static [&'static str], most: usize) -> impl Strategy<Value = Hostile> {
    let lines = prop::collection::vec(prop::sample::select(LINES), 0..3);
    let body = prop::sample::select(BODIES);
    let message = (prop::sample::select(starts), lines, body);
    let special = prop::sample::select(b"\r\n\t :;,0\x00\xff".to_vec());
    let change = prop_oneof![
        special.clone().prop_map(Change::Insert),
        special.prop_map(Change::Replace),
        Just(Change::Remove),
    ];
    let changes = prop_oneof![
        3 => Just(Vec::new()),
        1 => prop::collection::vec((any::<prop::sample::Index>(), change), 1..3),
    ];
    let portions = prop_oneof![
        Just(Vec::new()),
        prop::collection::vec(1..40_usize, 1..5),
        Just(vec![1]),
    ];
    let messages = prop::collection::vec(message, 1..=most);
    (messages, changes, portions).prop_map(|(messages, changes, portions)| {
        let mut bytes = Vec::new();
        for (start, lines, body) in messages {
            let head = format!("{start}\r\nhost: a\r\n{}\r\n{body}", lines.concat());
            bytes.extend(head.chars().map(|one| u8::try_from(one).unwrap()));
        }
        for (at, change) in changes {
            let at = at.index(bytes.len());
            match change {
                Change::Insert(byte) => bytes.insert(at, byte),
                Change::Replace(byte) => bytes[at] = byte,
                Change::Remove => drop(bytes.remove(at)),
            }
        }
        Hostile { bytes, portions }
    })
}

fn run<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(future)
}

/// Whether what we read is what hyper reads, or less of it.
fn is_same_or_stricter(ours: &Read, oracle: &Read) -> bool {
    let same_head = (&ours.start, ours.version, &ours.headers)
        == (&oracle.start, oracle.version, &oracle.headers);
    same_head && (ours.body.is_none() || ours.body == oracle.body)
}

const STATUS_LINES: &[&str] = &[
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200 OK",
    "HTTP/1.1 200",
    "HTTP/1.0 200 OK",
    "HTTP/1.1 204 No Content",
    "HTTP/1.1 304 Not Modified",
    "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK",
    "HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 404 Nothing here",
    "HTTP/2.0 200 OK",
    "HTTP/1.1 2000 OK",
    "HTTP/1.1 099 No",
    "ICY 200 OK",
];

const REQUEST_LINES: &[&str] = &[
    "GET / HTTP/1.1",
    "POST /a?b HTTP/1.1",
    "POST /a HTTP/1.0",
    "GET http://a/b HTTP/1.1",
    "OPTIONS * HTTP/1.1",
    "GET  / HTTP/1.1",
    "GET /a b HTTP/1.1",
    "GET / HTTP/1.2",
    "G\u{e9}T / HTTP/1.1",
    "GET /\u{e9} HTTP/1.1",
    "\r\nGET / HTTP/1.1",
    "GET /",
];

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 1024,
        max_shrink_time: 30_000,
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_response_is_read_as_hyper_does_or_refused(
        hostile in hostile(STATUS_LINES, 1),
        to_head: bool,
    ) {
        let method = || if to_head { Method::HEAD } else { Method::GET };
        let script = || Script::says(&hostile.bytes, &hostile.portions);
        if let Some(ours) = run(response(method(), script())) {
            let oracle = run(response_of_hyper(method(), script()));
            let Some(oracle) = oracle else {
                return Err(TestCaseError::fail(format!("hyper refuses {ours:?}")));
            };
            prop_assert!(is_same_or_stricter(&ours, &oracle), "{ours:?} but {oracle:?}");
        }
    }

    #[test]
    fn requests_are_read_as_hyper_does_or_refused(hostile in hostile(REQUEST_LINES, 3)) {
        let script = || Script::says(&hostile.bytes, &hostile.portions);
        let (ours, _, _) = run(requests(script()));
        let oracle = run(requests_of_hyper(script()));
        // hyper gives up a request whose body breaks off; ours is told so.
        let whole = ours.iter().take_while(|one| one.is_whole());
        prop_assert!(whole.clone().count() <= oracle.len(), "{ours:?} but {oracle:?}");
        for (ours, oracle) in whole.zip(&oracle) {
            prop_assert!(is_same_or_stricter(ours, oracle), "{ours:?} but {oracle:?}");
        }
    }
}

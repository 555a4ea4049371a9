//! Each rule with its source.

use std::collections::VecDeque;
use std::fmt::Write as _;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::http::h1::Malformed;
use crate::http::h1::server::{LINGER_BYTES_MAX, LINGER_MAX};

use super::*;

/// A head of a response, and what is behind it.
fn answers(head: &str, rest: &str) -> Script {
    let bytes = format!("HTTP/1.1 200 OK\r\n{head}\r\n{rest}");
    Script::says(bytes.as_bytes(), &[])
}

/// Why a response is refused.
async fn refusal(script: Script) -> Option<Error> {
    match asked(Method::GET, script).await {
        Err(error) => Some(error),
        Ok((mut connection, _)) => loop {
            match std::future::poll_fn(|cx| connection.poll_frame(cx)).await? {
                Ok(_) => {}
                Err(BodyError::Http1(error)) => return Some(error),
                Err(other) => panic!("{other}"),
            }
        },
    }
}

/// Has each of these responses refused by this rule, however it comes.
async fn refuses(responses: &[(&str, &str, Malformed)]) {
    for (head, rest, rule) in responses {
        for portions in [&[][..], &[1]] {
            let bytes = format!("HTTP/1.1 200 OK\r\n{head}\r\n{rest}");
            let error = refusal(Script::says(bytes.as_bytes(), portions)).await;
            assert!(
                matches!(&error, Some(Error::Malformed(broken)) if broken == rule),
                "{:.60} {:.40}: {error:?}",
                head.escape_debug(),
                rest.escape_debug()
            );
        }
    }
}

#[tokio::test]
async fn what_the_head_of_a_response_breaks_is_named() {
    let many = "x: 1\r\n".repeat(101);
    let long = format!("x: {}\r\n", "1".repeat(HEAD_BYTES_MAX));
    let twice = "transfer-encoding: chunked\r\n".repeat(2);
    let lengths = "content-length: 1\r\n".repeat(2);
    let name = Malformed::Head(httparse::Error::HeaderName);
    let value = Malformed::Head(httparse::Error::HeaderValue);
    refuses(&[
        // RFC 9112 §6.1: of HTTP/1.1 no coding but `chunked`, once.
        (
            "transfer-encoding: gzip, chunked\r\n",
            "",
            Malformed::TransferEncoding,
        ),
        (&twice, "", Malformed::TransferEncoding),
        // RFC 9110 §8.6: `1*DIGIT`, once.
        (&lengths, "a", Malformed::ContentLength),
        ("content-length: 1, 1\r\n", "a", Malformed::ContentLength),
        ("content-length: +1\r\n", "a", Malformed::ContentLength),
        ("content-length: -1\r\n", "a", Malformed::ContentLength),
        ("content-length: 0x1\r\n", "a", Malformed::ContentLength),
        ("content-length:\r\n", "a", Malformed::ContentLength),
        (
            "content-length: 18446744073709551616\r\n",
            "a",
            Malformed::ContentLength,
        ),
        // RFC 9112 §2.2: a line ends by CR LF.
        ("x: 1\ncontent-length: 1\r\n", "a", Malformed::LineEnd),
        // RFC 9112 §5.1, §5.2: no space before the colon, no folding.
        ("x : 1\r\n", "", name),
        ("x: 1\r\n y\r\n", "", name),
        // RFC 9110 §5.5: no CR, LF or NUL in a value.
        ("x: 1\ry\r\n", "", value),
        ("x: 1\0y\r\n", "", value),
        // RFC 9110 §5.4: limits of ours.
        (&many, "", Malformed::TooMany),
        (&long, "", Malformed::TooLong),
    ])
    .await;
}

#[tokio::test]
async fn what_the_chunks_of_a_response_break_is_named() {
    const CHUNKED: &str = "transfer-encoding: chunked\r\n";
    let extension = format!("1;{}\r\n", "x".repeat(17 * 1024));
    let trailers = format!("0\r\nt: {}\r\n\r\n", "x".repeat(17 * 1024));
    refuses(&[
        // RFC 9112 §7.1: `1*HEXDIG`, and what would not fit into 64 bits is no size.
        (CHUNKED, "\r\n", Malformed::Chunk),
        (CHUNKED, "+1\r\na\r\n0\r\n\r\n", Malformed::Chunk),
        (CHUNKED, "0x1\r\na\r\n0\r\n\r\n", Malformed::Chunk),
        (
            CHUNKED,
            "10000000000000001\r\na\r\n0\r\n\r\n",
            Malformed::Chunk,
        ),
        (CHUNKED, "1\na\r\n0\r\n\r\n", Malformed::Chunk),
        (CHUNKED, "1\r\nab\r\n0\r\n\r\n", Malformed::Chunk),
        (CHUNKED, "1\r\na\n0\r\n\r\n", Malformed::Chunk),
        (CHUNKED, "1;a\nb\r\na\r\n0\r\n\r\n", Malformed::Chunk),
        // RFC 9112 §7.1.1: a recipient limits the extensions.
        (CHUNKED, &extension, Malformed::Chunk),
        // RFC 9112 §7.1.2.
        (CHUNKED, &trailers, Malformed::Trailers),
        (CHUNKED, "0\r\nbad trailer\r\n\r\n", Malformed::Trailers),
        (CHUNKED, "0\r\na: 1\nb: 2\r\n\r\n", Malformed::LineEnd),
    ])
    .await;
}

#[tokio::test]
async fn a_message_that_breaks_off_is_incomplete() {
    // RFC 9112 §8.
    for (head, rest) in [
        ("content-length: 5\r\n", "hell"),
        ("transfer-encoding: chunked\r\n", "5\r\nhell"),
        ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n"),
        ("transfer-encoding: chunked\r\n", "5\r\nhello\r\n0\r\n"),
    ] {
        let error = refusal(answers(head, rest)).await;
        assert!(
            matches!(error, Some(Error::Incomplete)),
            "{head} {rest}: {error:?}"
        );
    }
    let error = refusal(Script::says(b"HTTP/1.1 200 OK\r\nx: ", &[])).await;
    assert!(matches!(error, Some(Error::Incomplete)), "{error:?}");
}

/// What is read, and whether the connection is kept behind it.
async fn read(method: Method, head: &str, rest: &str) -> (String, bool) {
    let bytes = format!("{head}\r\n{rest}");
    let mut script = Script::says(bytes.as_bytes(), &[]);
    script.stays = !head.contains("until-close");
    let (mut connection, _) = asked(method, script).await.unwrap();
    let (body, _) = rest_of(&mut connection).await.unwrap();
    (
        String::from_utf8(body.to_vec()).unwrap(),
        connection.is_ready(),
    )
}

#[tokio::test]
async fn the_end_of_a_response_is_found_and_its_connection_kept_where_both_sides_want_it() {
    const CHUNKS: &str = "5\r\nhello\r\n0\r\n\r\n";
    let ok = |lines: &str| format!("HTTP/1.1 200 OK\r\n{lines}");
    let old = |lines: &str| format!("HTTP/1.0 200 OK\r\ncontent-length: 5\r\n{lines}");
    let bare = |status: u16| format!("HTTP/1.1 {status} x\r\ncontent-length: 5\r\n");
    let (get, head) = (Method::GET, Method::HEAD);
    let both = "content-length: 3\r\ntransfer-encoding: chunked\r\n";
    let more = "helloHTTP/1.1 200 OK\r\n\r\n";
    // RFC 9112 §6.3, its rules in their order, and §9.3.
    for (method, head, rest, body, is_kept) in [
        (&head, ok("content-length: 5\r\n"), "", "", true),
        (&head, ok("transfer-encoding: chunked\r\n"), "", "", true),
        (&get, bare(204), "", "", true),
        (&get, bare(304), "", "", true),
        (
            &get,
            ok("transfer-encoding: Chunked\r\n"),
            CHUNKS,
            "hello",
            true,
        ),
        // RFC 9112 §6.1: may be an attempt at smuggling.
        (&get, ok(both), CHUNKS, "hello", false),
        (&get, ok("content-length: 5\r\n"), "hello", "hello", true),
        (&get, ok("content-length: 0\r\n"), "", "", true),
        (&get, ok("x: until-close\r\n"), "hello", "hello", false),
        (
            &get,
            ok("content-length: 5\r\nconnection: x, Close\r\n"),
            "hello",
            "hello",
            false,
        ),
        (&get, old(""), "hello", "hello", false),
        (
            &get,
            old("connection: keep-alive\r\n"),
            "hello",
            "hello",
            true,
        ),
        // RFC 9112 §9.2: what nobody asked for is nobody's answer.
        (&get, ok("content-length: 5\r\n"), more, "hello", false),
    ] {
        let found = read(method.clone(), &head, rest).await;
        assert_eq!(found, (body.to_owned(), is_kept), "{head:?}");
    }
}

#[tokio::test]
async fn interim_responses_are_read_over_and_bounded() {
    // RFC 9110 §15.2.
    let with = |interims: usize| {
        let interims = "HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n".repeat(interims);
        let answer = format!("{interims}HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        Script::says(answer.as_bytes(), &[7])
    };
    let read = response(Method::GET, with(32)).await.unwrap();
    assert_eq!((&*read.start, read.is_whole()), ("200 OK", true));
    let error = refusal(with(33)).await;
    assert!(
        matches!(error, Some(Error::Malformed(Malformed::Interims))),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_protocol_that_was_changed_begins_behind_the_head() {
    // RFC 9110 §15.2.2.
    let script = Script::says(
        b"HTTP/1.1 101 Go\r\nupgrade: websocket\r\n\r\n\x81\x00",
        &[],
    );
    let (connection, head) = asked(Method::GET, script).await.unwrap();
    assert_eq!(head.status(), StatusCode::SWITCHING_PROTOCOLS);
    assert!(connection.has_ended() && !connection.is_done());
    let (_, ahead) = connection.into_parts();
    assert_eq!(&ahead[..], b"\x81\x00");
}

#[tokio::test]
async fn a_body_is_sent_as_its_head_says_however_little_the_other_end_takes() {
    let pieces = |pieces: &[&'static str]| -> Outgoing {
        let bytes: VecDeque<Bytes> = pieces
            .iter()
            .map(|one| Bytes::from_static(one.as_bytes()))
            .collect();
        Outgoing::Bytes(bytes)
    };
    for takes in [None, Some(1), Some(7)] {
        let mut script = answers("content-length: 0\r\n", "");
        (script.takes, script.stays) = (takes, true);
        let mut connection = Connection::new(script, HEAD_BYTES_MAX);
        let request = Request::post("/a").header("host", "a.example");
        connection.begin(request.body(pieces(&["hello ", "world"])).unwrap());
        std::future::poll_fn(|cx| connection.poll_head(cx))
            .await
            .unwrap();
        std::future::poll_fn(|cx| connection.poll_rest(cx))
            .await
            .unwrap();
        assert!(connection.is_ready());
        let expected =
            "POST /a HTTP/1.1\r\nhost: a.example\r\ncontent-length: 11\r\n\r\nhello world";
        assert_eq!(
            String::from_utf8_lossy(&connection.stream().heard),
            expected
        );
    }
    // As TLS does over a full socket: taken at once, sent as it is flushed.
    let mut script = answers("content-length: 0\r\n", "");
    (script.behind, script.stays) = (Some(3), true);
    let mut connection = Connection::new(script, HEAD_BYTES_MAX);
    let request = Request::post("http://a.example?x=1").header("host", "a.example");
    connection.begin(request.body(pieces(&["hello ", "world"])).unwrap());
    let answered = std::future::poll_fn(|cx| connection.poll_head(cx));
    tokio::time::timeout(DEADLINE, answered)
        .await
        .expect("it is flushed to its end")
        .unwrap();
    assert!(connection.is_ready());
    let heard = String::from_utf8_lossy(&connection.stream().heard).into_owned();
    assert!(heard.starts_with("POST /?x=1 HTTP/1.1\r\n"), "{heard}");
    assert!(heard.ends_with("hello world"), "{heard}");
    // RFC 9112 §6.2: neither more nor less than was said.
    for length in [10, 12] {
        let mut connection = Connection::new(
            Script {
                stays: true,
                ..Script::default()
            },
            HEAD_BYTES_MAX,
        );
        let request = Request::post("/a").header("content-length", length);
        connection.begin(request.body(pieces(&["hello ", "world"])).unwrap());
        let error = std::future::poll_fn(|cx| connection.poll_head(cx)).await;
        assert!(matches!(error, Err(Error::Length)), "{length}: {error:?}");
    }
}

#[test]
fn an_idle_connection_is_small() {
    let bytes = size_of::<Connection<crate::transport::Stream>>();
    assert!(bytes <= 512, "{bytes}");
}

#[tokio::test]
async fn an_endpoint_that_closed_an_idle_connection_is_seen_before_a_request_is_sent() {
    let (near, far) = tokio::io::duplex(1024);
    let mut connection = Connection::new(near, HEAD_BYTES_MAX);
    assert!(connection.is_ready());
    drop(far);
    assert!(!connection.is_ready());
    let (near, mut far) = tokio::io::duplex(1024);
    let mut connection = Connection::new(near, HEAD_BYTES_MAX);
    // RFC 9112 §9.2: what comes before a request answers none.
    far.write_all(b"H").await.unwrap();
    assert!(!connection.is_ready());
}

#[tokio::test]
async fn what_an_endpoint_says_before_a_request_is_sent_does_not_answer_it() {
    const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n";
    for says in [Some(ANSWER), None] {
        let (near, mut far) = tokio::io::duplex(1024);
        let mut connection = Connection::new(near, HEAD_BYTES_MAX);
        let ask = || Request::post("/").body(Outgoing::Empty).unwrap();
        connection.begin(ask());
        let first = async {
            assert!(far.read_u8().await.is_ok());
            far.write_all(ANSWER).await.unwrap();
        };
        let (answered, ()) =
            tokio::join!(std::future::poll_fn(|cx| connection.poll_head(cx)), first);
        answered.unwrap();
        // It is free, and taken by a request, which lets others go first.
        assert!(connection.is_ready());
        connection.begin(ask());
        let mut cx = Context::from_waker(std::task::Waker::noop());
        assert!(connection.poll_head(&mut cx).is_pending());
        let mut before = [0; 1024];
        assert!(far.read(&mut before).await.unwrap() > 0);
        // RFC 9112 §9.2: nobody has asked for it; §9.5: or it closes.
        match says {
            Some(answer) => far.write_all(answer).await.unwrap(),
            None => far.shutdown().await.unwrap(),
        }
        let error = std::future::poll_fn(|cx| connection.poll_head(cx)).await;
        assert!(matches!(error, Err(Error::NotQuiet)), "{error:?}");
        assert!(connection.has_sent_nothing() && !connection.is_done());
        drop(connection);
        assert_eq!(
            far.read(&mut before).await.unwrap(),
            0,
            "a request was sent"
        );
    }
}

#[tokio::test]
async fn a_caller_is_told_which_kind_of_rule_it_broke() {
    let many = "x: 1\r\n".repeat(101);
    let long = format!("x: {}\r\n", "1".repeat(HEAD_BYTES_MAX));
    for (request, status) in [
        ("GET / HTTP/1.1\nhost: a\r\n\r\n".to_owned(), "400"),
        ("GET / HTTP/1.1\r\nhost : a\r\n\r\n".to_owned(), "400"),
        (
            "GET / HTTP/1.1\r\nx: 1\r\n folded\r\n\r\n".to_owned(),
            "400",
        ),
        (
            "GET / HTTP/1.1\r\ncontent-length: 1\r\ncontent-length: 1\r\n\r\n".to_owned(),
            "400",
        ),
        (
            "GET / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n".to_owned(),
            "400",
        ),
        (
            "GET / HTTP/1.1\r\ntransfer-encoding: xchunked\r\n\r\n".to_owned(),
            "400",
        ),
        ("GET / HTTP/3.0\r\n\r\n".to_owned(), "400"),
        (format!("GET / HTTP/1.1\r\n{many}\r\n"), "431"),
        (format!("GET / HTTP/1.1\r\n{long}\r\n"), "431"),
    ] {
        let (seen, heard, ended) = requests(Script::says(request.as_bytes(), &[100])).await;
        assert!(
            seen.is_empty() && matches!(ended, Err(Error::Malformed(_))),
            "{request:?}: {ended:?}"
        );
        assert_eq!(statuses(&heard), [status], "{request:?}");
        assert!(heard.contains("connection: close\r\n"), "{heard}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_bare_line_feed_at_the_end_is_refused_as_soon_as_it_is_there() {
    // RFC 9112 §2.2; the other end has nothing more to say, and would wait.
    for (start, line) in [
        ("GET / HTTP/1.1", "a: 1"),
        ("GET / HTTP/1.1\r\na: 1", "b: 2"),
    ] {
        for end in ["\n\r\n", "\n\n", "\r\n\n"] {
            let mut script = Script::says(format!("{start}\r\n{line}{end}").as_bytes(), &[1]);
            script.stays = true;
            let answered = tokio::time::timeout(DEADLINE, requests(script)).await;
            let (seen, heard, _) = answered.unwrap_or_else(|_| panic!("{end:?} was waited for"));
            assert_eq!((seen.len(), statuses(&heard)), (0, vec!["400"]));
        }
    }
    for end in ["\n", "a: 1\n\r\n", "a: 1\n\n", "a: 1\r\n\n"] {
        let chunks = format!("1\r\na\r\n0\r\n{end}");
        let bytes = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{chunks}");
        let mut script = Script::says(bytes.as_bytes(), &[1]);
        script.stays = true;
        let refused = tokio::time::timeout(DEADLINE, refusal(script)).await;
        let error = refused.unwrap_or_else(|_| panic!("{end:?} was waited for"));
        assert!(
            matches!(error, Some(Error::Malformed(Malformed::LineEnd))),
            "{end:?}: {error:?}"
        );
    }
}

#[tokio::test]
async fn requests_are_answered_one_by_one_until_one_says_that_it_is_the_last() {
    let mut all = String::new();
    for (nth, end) in ["", "connection: close\r\n", ""].into_iter().enumerate() {
        write!(
            all,
            "POST /{nth} HTTP/1.1\r\ncontent-length: 2\r\n{end}\r\nok"
        )
        .unwrap();
    }
    for portions in [&[][..], &[1], &[40]] {
        let (seen, heard, ended) = requests(Script::says(all.as_bytes(), portions)).await;
        let starts: Vec<&str> = seen.iter().map(|one| &*one.start).collect();
        assert_eq!(starts, ["POST /0", "POST /1"]);
        assert!(seen.iter().all(|one| one.body.as_ref().unwrap().0 == "ok"));
        assert_eq!(statuses(&heard), ["200", "200"]);
        // RFC 9112 §9.6.
        assert_eq!(heard.matches("connection: close\r\n").count(), 1, "{heard}");
        assert!(ended.is_ok());
    }
    // RFC 9112 §6.1: both lengths in a request are its connection's end.
    let both = "POST /a HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\nGET /b HTTP/1.1\r\n\r\n";
    let (seen, heard, _) = requests(Script::says(both.as_bytes(), &[])).await;
    assert_eq!((seen.len(), statuses(&heard)), (1, vec!["200"]));
    assert!(!seen[0].headers.contains_key("content-length"));
}

#[tokio::test]
async fn a_body_that_still_goes_on_is_not_read_away_by_the_end_of_its_connection() {
    let chunks: String = (0..200).map(|nth| format!("3\r\n{nth:03}\r\n")).collect();
    let all = format!(
        "POST /a HTTP/1.1\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n{chunks}0\r\n\r\n"
    );
    let served = Served::new(Script::says(all.as_bytes(), &[40]), HEAD_BYTES_MAX);
    let held = std::cell::RefCell::new(None);
    let serving = served.serve(async |request| {
        held.replace(Some(request.into_body()));
        Response::new(Outgoing::Empty)
    });
    let reading = async {
        // The answer is given, and whoever forwards the body goes on.
        let body = loop {
            if let Some(body) = held.take() {
                break body;
            }
            tokio::task::yield_now().await;
        };
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        collected(body).await
    };
    let (ended, read) = tokio::join!(serving, reading);
    assert!(ended.is_ok());
    let expected: String = (0..200).map(|nth| format!("{nth:03}")).collect();
    assert_eq!(read.unwrap().0, expected);
}

#[tokio::test]
async fn a_body_that_nobody_reads_is_dropped_within_a_bound() {
    for (bytes, answered) in [(1000, 2), (1024 * 1024, 1)] {
        let head = format!("POST /a HTTP/1.1\r\ncontent-length: {bytes}\r\n\r\n");
        let all = [
            head.into_bytes(),
            vec![b'x'; bytes],
            b"GET /b HTTP/1.1\r\n\r\n".to_vec(),
        ]
        .concat();
        let served = Served::new(Script::says(&all, &[]), HEAD_BYTES_MAX);
        let count = std::cell::Cell::new(0);
        served
            .serve(async |_request| {
                count.set(count.get() + 1);
                Response::new(Outgoing::Empty)
            })
            .await
            .ok();
        assert_eq!(count.get(), answered, "{bytes}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_still_sends_is_listened_to_for_so_long_and_so_much() {
    const BODY: usize = 20 << 20;
    let head = format!("POST /a HTTP/1.1\r\ncontent-length: {BODY}\r\n\r\n");
    for (comes, ends_by_time) in [(1000, true), (BODY, false)] {
        let all = [head.as_bytes(), &vec![b'x'; comes]].concat();
        let mut script = Script::says(&all, &[64 * 1024]);
        script.stays = true;
        let served = Served::new(script, HEAD_BYTES_MAX);
        let began = tokio::time::Instant::now();
        let serving = served.serve(async |_request| Response::new(Outgoing::Empty));
        serving.await.unwrap();
        let lasted = began.elapsed();
        if ends_by_time {
            assert!((LINGER_MAX..LINGER_MAX * 2).contains(&lasted), "{lasted:?}");
        } else {
            assert!(lasted.is_zero(), "{lasted:?}");
        }
        let unread: usize = served.stream().unwrap().says.iter().map(Vec::len).sum();
        let read = all.len() - unread;
        let most = (LINGER_BYTES_MAX + 512 * 1024).min(all.len());
        let least = LINGER_BYTES_MAX.min(all.len());
        assert!((least..=most).contains(&read), "{read} of {}", all.len());
        let heard = String::from_utf8(served.stream().unwrap().heard.clone()).unwrap();
        assert_eq!(statuses(&heard), ["200"]);
    }
}

#[test]
fn a_caller_that_has_sent_all_is_not_listened_to_for_more() {
    let mut script = Script::says(b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n", &[]);
    script.stays = true;
    let served = Served::new(script, HEAD_BYTES_MAX);
    let serving = served.serve(async |_request| Response::new(Outgoing::Empty));
    let mut serving = Box::pin(serving);
    let mut cx = Context::from_waker(std::task::Waker::noop());
    // Without a runtime there are no timers.
    while serving.as_mut().poll(&mut cx).is_pending() {}
}

#[tokio::test]
async fn a_body_is_asked_for_when_it_is_read_and_not_before() {
    // RFC 9110 §10.1.1.
    let head = "POST /a HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n";
    for (reads, expected) in [(true, &["100", "200"][..]), (false, &["200"])] {
        let mut script = Script::says(head.as_bytes(), &[]);
        if reads {
            script.says.push_back(b"ok".to_vec());
        }
        let served = Served::new(script, HEAD_BYTES_MAX);
        served
            .serve(async |request| {
                if reads {
                    assert_eq!(collected(request.into_body()).await.unwrap().0, "ok");
                }
                Response::new(Outgoing::Empty)
            })
            .await
            .ok();
        let heard = String::from_utf8(served.stream().unwrap().heard.clone()).unwrap();
        assert_eq!(statuses(&heard), expected);
        assert_eq!(
            heard.contains("connection: close"),
            !reads,
            "the body may still come"
        );
    }
}

#[tokio::test]
async fn a_caller_is_asked_for_its_body_however_little_it_takes_at_once() {
    let head = "POST /a HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\
                connection: close\r\n\r\n";
    for (takes, behind) in [(Some(1), None), (None, Some(3))] {
        let mut script = Script::says(head.as_bytes(), &[]);
        (script.takes, script.behind, script.stays) = (takes, behind, true);
        script.asked_says = Some((b"100 Continue\r\n\r\n".to_vec(), b"ok".to_vec()));
        let served = Served::new(script, HEAD_BYTES_MAX);
        let serving = served.serve(async |request| {
            assert_eq!(collected(request.into_body()).await.unwrap().0, "ok");
            Response::new(Outgoing::Empty)
        });
        let ended = tokio::time::timeout(DEADLINE, serving).await;
        ended.expect("it is asked to the end").unwrap();
        let heard = String::from_utf8(served.stream().unwrap().heard.clone()).unwrap();
        assert_eq!(statuses(&heard), ["100", "200"]);
    }
}

#[tokio::test]
async fn a_caller_that_goes_takes_its_request_with_it() {
    let script = Script::says(b"GET / HTTP/1.1\r\n\r\n", &[]);
    let served = Served::new(script, HEAD_BYTES_MAX);
    let ended = served
        .serve(async |_request| std::future::pending().await)
        .await;
    assert!(matches!(ended, Err(Error::Incomplete)), "{ended:?}");
}

#[tokio::test]
async fn a_response_states_its_length_once_and_only_where_it_may() {
    // RFC 9110 §8.6.
    for (method, status, stated, expected) in [
        ("GET", 200, &["2"][..], Some("content-length: 2\r\n")),
        ("GET", 200, &["2", "3"], Some("content-length: 2\r\n")),
        ("GET", 200, &[], Some("content-length: 2\r\n")),
        ("HEAD", 200, &["9"], Some("content-length: 9\r\n")),
        ("GET", 304, &["9"], Some("content-length: 9\r\n")),
        ("GET", 204, &["9"], None),
    ] {
        let script = Script::says(format!("{method} / HTTP/1.1\r\n\r\n").as_bytes(), &[]);
        let served = Served::new(script, HEAD_BYTES_MAX);
        served
            .serve(async |_request| {
                let mut response = Response::builder().status(status);
                for length in stated {
                    response = response.header("content-length", *length);
                }
                response.body(Outgoing::text("ok".to_owned())).unwrap()
            })
            .await
            .unwrap();
        let heard = String::from_utf8(served.stream().unwrap().heard.clone()).unwrap();
        let lines = heard.matches("content-length").count();
        assert_eq!(lines, usize::from(expected.is_some()), "{heard}");
        assert!(expected.is_none_or(|line| heard.contains(line)), "{heard}");
        let has_body = method == "GET" && status == 200;
        assert_eq!(heard.ends_with("\r\n\r\nok"), has_body, "{heard}");
    }
}

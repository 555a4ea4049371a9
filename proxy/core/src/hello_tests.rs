use proptest::prelude::*;

use super::*;

/// The ClientHello of RFC 8448 §3 ("Simple 1-RTT Handshake"), server name `server`.
const RFC_8448: &str = "\
    010000c00303cb34ecb1e78163ba1c38c6dacb196a6dffa21a8d9912ec18a2ef6283024dece7000006130113031302\
    010000910000000b0009000006736572766572ff01000100000a00140012001d0017001800190100010101020103\
    010400230000003300260024001d002099381de560e4bd43d23d8e435a7dbafeb3c06e51c13cae4d5413691e529aaf\
    2c002b0003020304000d0020001e040305030603020308040805080604010501060102010402050206020202002d00\
    020101001c00024001";

fn rfc_8448() -> Vec<u8> {
    (0..RFC_8448.len() / 2)
        .map(|at| u8::from_str_radix(&RFC_8448[at * 2..at * 2 + 2], 16).unwrap())
        .collect()
}

fn vec16(content: &[u8]) -> Vec<u8> {
    let mut out = u16::try_from(content.len()).unwrap().to_be_bytes().to_vec();
    out.extend_from_slice(content);
    out
}

fn extension(kind: u16, data: &[u8]) -> Vec<u8> {
    [kind.to_be_bytes().to_vec(), vec16(data)].concat()
}

fn name_list(names: &[(u8, &[u8])]) -> Vec<u8> {
    let inner: Vec<u8> = names
        .iter()
        .flat_map(|(kind, name)| [vec![*kind], vec16(name)].concat())
        .collect();
    extension(EXTENSION_SERVER_NAME, &vec16(&inner))
}

fn alpn_list(protocols: &[&[u8]]) -> Vec<u8> {
    let inner: Vec<u8> = protocols
        .iter()
        .flat_map(|p| [vec![u8::try_from(p.len()).unwrap()], p.to_vec()].concat())
        .collect();
    extension(EXTENSION_ALPN, &vec16(&inner))
}

/// A handshake message by RFC 8446 §4.1.2 with these extensions.
fn message(extensions: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend_from_slice(&[7; 32]);
    body.push(0);
    body.extend_from_slice(&vec16(&[0x13, 0x01]));
    body.extend_from_slice(&[1, 0]);
    body.extend_from_slice(&vec16(&extensions.concat()));
    with_header(&body)
}

fn with_header(body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).unwrap().to_be_bytes();
    [&[1], &length[1..], body].concat()
}

/// Cuts a message into records of `size` bytes.
fn records(message: &[u8], size: usize) -> Vec<u8> {
    message
        .chunks(size)
        .flat_map(|chunk| [vec![22, 3, 1], vec16(chunk)].concat())
        .collect()
}

fn done(bytes: &[u8]) -> ClientHello {
    match parse(bytes) {
        HelloProgress::Done(hello) => hello,
        other @ (HelloProgress::NeedMore | HelloProgress::Malformed(_)) => panic!("{other:?}"),
    }
}

fn error(bytes: &[u8]) -> HelloError {
    match parse(bytes) {
        HelloProgress::Malformed(error) => error,
        other @ (HelloProgress::NeedMore | HelloProgress::Done(_)) => panic!("{other:?}"),
    }
}

fn one_record(extensions: &[Vec<u8>]) -> Vec<u8> {
    records(&message(extensions), FRAGMENT_BYTES_MAX)
}

#[test]
fn the_hello_of_rfc_8448_names_server_and_offers_no_protocol() {
    let bytes = records(&rfc_8448(), FRAGMENT_BYTES_MAX);
    assert_eq!(bytes.len(), 201);
    let hello = done(&bytes);
    assert_eq!(hello.sni.as_deref(), Some("server"));
    assert!(hello.alpn.is_empty());
    assert_eq!(hello.len, 201);
}

#[test]
fn every_record_size_and_every_prefix_of_it_gives_the_same_answer() {
    let message = rfc_8448();
    for size in 1..=message.len() {
        let bytes = records(&message, size);
        assert_eq!(done(&bytes).sni.as_deref(), Some("server"), "{size}");
        assert_eq!(done(&bytes).len, bytes.len());
        for end in 0..bytes.len() {
            assert_eq!(
                parse(&bytes[..end]),
                HelloProgress::NeedMore,
                "{size} {end}"
            );
        }
    }
}

#[test]
fn a_post_quantum_sized_hello_survives_one_byte_records() {
    // rustls's own hello with X25519MLKEM768 is 1,491 bytes; the key share here is larger.
    let bytes = records(
        &message(&[name_list(&[(0, b"a.b")]), extension(51, &[9; 2000])]),
        1,
    );
    assert!(bytes.len() < HELLO_BYTES_MAX);
    assert_eq!(done(&bytes).sni.as_deref(), Some("a.b"));
}

#[test]
fn alpn_keeps_the_clients_order_and_later_bytes_are_not_counted() {
    let mut bytes = one_record(&[alpn_list(&[b"h2", b"http/1.1"]), name_list(&[(0, b"A.b.")])]);
    let len = bytes.len();
    bytes.extend_from_slice(b"\x14\x03\x03\x00\x01\x01early data");
    let hello = done(&bytes);
    assert_eq!(hello.alpn, [b"h2".to_vec(), b"http/1.1".to_vec()]);
    assert_eq!(hello.sni.as_deref(), Some("A.b."));
    assert_eq!(hello.len, len);
}

#[test]
fn a_hello_without_extensions_or_without_a_name_is_whole() {
    let body = [&[3, 3][..], &[7; 32], &[0, 0, 2, 0x13, 1, 1, 0]].concat();
    assert_eq!(done(&records(&with_header(&body), 50)).sni, None);
    assert_eq!(done(&one_record(&[])).sni, None);
}

#[test]
fn what_is_no_client_hello_is_refused_at_the_first_byte_that_shows_it() {
    for (bytes, expected) in [
        (&b"GET / HTTP/1.1"[..], HelloError::NotTls(b'G')),
        (&[0x80], HelloError::NotTls(0x80)),
        (&[22, 2], HelloError::Record(1)),
        (&[22, 3, 1, 0, 0], HelloError::RecordEmpty(1)),
        (&[22, 3, 1, 0x40, 1], HelloError::RecordLength(1)),
        (&[22, 3, 1, 0, 5, 2], HelloError::MessageType(2)),
        (&[22, 3, 1, 0, 1, 1, 21], HelloError::Record(2)),
        (
            &[22, 3, 1, 0, 1, 1, 22, 3, 1, 0, 0],
            HelloError::RecordEmpty(2),
        ),
        (&[22, 3, 1, 0, 9, 1, 0, 0x3f, 0xfd], HelloError::TooLarge),
    ] {
        assert_eq!(error(bytes), expected, "{bytes:?}");
    }
    assert_eq!(HelloError::NotTls(b'G').reason(), Reason::NotTls);
    assert_eq!(HelloError::TooLarge.reason(), Reason::HelloTooLarge);
    assert_eq!(HelloError::ServerNames.reason(), Reason::SniMalformed);
    assert_eq!(HelloError::Trailing.reason(), Reason::HelloMalformed);
}

#[test]
fn the_largest_hello_passes_and_one_byte_more_is_refused() {
    let empty = message(&[extension(51, &[])]).len();
    let room = HELLO_MESSAGE_BYTES_MAX - empty;
    assert_eq!(
        done(&one_record(&[extension(51, &vec![0; room])])).sni,
        None
    );
    assert_eq!(
        error(&one_record(&[extension(51, &vec![0; room + 1])])),
        HelloError::TooLarge
    );
}

#[test]
fn a_hello_cut_so_fine_that_the_bytes_run_out_is_refused() {
    let bytes = records(&message(&[extension(51, &[0; 4000])]), 1);
    assert!(bytes.len() > HELLO_BYTES_MAX);
    assert_eq!(
        parse(&bytes[..HELLO_BYTES_MAX - 1]),
        HelloProgress::NeedMore
    );
    assert_eq!(error(&bytes[..HELLO_BYTES_MAX]), HelloError::TooLarge);
}

#[test]
fn ambiguous_names_and_extensions_are_refused() {
    let host = |name: &[u8]| name_list(&[(0, name)]);
    for (extensions, expected) in [
        (vec![host(b"a"), host(b"a")], HelloError::ExtensionTwice(0)),
        (
            vec![extension(51, &[]), host(b"a"), extension(51, &[])],
            HelloError::ExtensionTwice(51),
        ),
        (
            vec![name_list(&[(0, b"a"), (0, b"b")])],
            HelloError::ServerNames,
        ),
        (vec![name_list(&[(1, b"a")])], HelloError::ServerNames),
        (vec![host(b"a\0b")], HelloError::ServerNameText),
        (vec![host(b"\xff")], HelloError::ServerNameText),
        (vec![host(b"")], HelloError::Shape("server_name")),
        (vec![extension(0, &[])], HelloError::Shape("server_name")),
        (
            vec![extension(0, &[0, 0])],
            HelloError::Shape("server_name"),
        ),
        (
            vec![extension(0, &[0, 4, 0, 0, 1, b'a', 9])],
            HelloError::Shape("server_name"),
        ),
        (vec![alpn_list(&[])], HelloError::Shape("ALPN")),
        (vec![alpn_list(&[b""])], HelloError::Shape("ALPN")),
        (vec![vec![0, 51, 0]], HelloError::Shape("an extension")),
    ] {
        assert_eq!(error(&one_record(&extensions)), expected, "{extensions:?}");
    }
    let mut trailing = message(&[]);
    trailing.push(0);
    assert_eq!(error(&records(&trailing, 999)), HelloError::Trailing);
}

proptest! {
    #[test]
    fn mutated_hellos_never_panic_and_never_consume_more_than_was_sent(
        size in 1usize..300,
        edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bytes = records(&rfc_8448(), size);
        for (at, to) in &edits {
            *at.get_mut(&mut bytes[..]) = *to;
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        if let HelloProgress::Done(hello) = parse(&bytes) {
            prop_assert!(hello.len <= bytes.len());
        }
    }

    #[test]
    fn an_error_never_goes_away_with_more_bytes(
        bytes in prop::collection::vec(any::<u8>(), 0..60),
        start in prop::sample::select(vec![0usize, 1, 2, 5, 6, 9, 12]),
    ) {
        let mut whole = records(&rfc_8448(), 7)[..start].to_vec();
        whole.extend(bytes);
        let mut first = None;
        for end in 0..=whole.len() {
            match (first, parse(&whole[..end])) {
                (None, HelloProgress::Malformed(error)) => first = Some(error),
                (Some(earlier), now) => {
                    prop_assert_eq!(HelloProgress::Malformed(earlier), now);
                }
                (None, _) => {}
            }
        }
    }
}

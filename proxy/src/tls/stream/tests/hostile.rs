//! Peers that stop, lie, and send what they should not.

use std::io;
use std::sync::Arc;

use rustls::{AlertDescription, InvalidMessage, PeerMisbehaved};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::time::timeout;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::super::{HELD_BYTES_MAX, IN_PLACE_BYTES, TlsStream};
use super::carrier::{Tamper, Tampered};
use super::{DEADLINE, SIDES, name, tls_error, with_oracle_client, with_oracle_server};

/// Our server reads what a client of tokio-rustls sends, up to `bytes` of it.
async fn accept_up_to(bytes: usize) -> (io::Result<()>, usize) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let carrier = Tampered::new(near, Tamper::EndAfter(bytes));
    let ours = async {
        let mut stream = TlsStream::accept(Arc::clone(&SIDES.server), carrier)
            .await
            .map_err(|(error, _)| error)?;
        assert_eq!(stream.read(&mut [0; 16]).await?, 0);
        let Tamper::EndAfter(left) = stream.carrier.tamper else {
            unreachable!("as made above");
        };
        Ok(bytes - left)
    };
    let theirs = async {
        let config = Arc::clone(&SIDES.client);
        let mut stream = TlsConnector::from(config).connect(name(), far).await.ok()?;
        // It may be gone already.
        stream.shutdown().await.ok();
        Some(stream)
    };
    let (ours, _theirs) = tokio::join!(ours, theirs);
    let read = *ours.as_ref().unwrap_or(&0);
    (ours.map(|_| ()), read)
}

#[tokio::test]
async fn a_client_that_stops_at_any_byte_is_an_error() {
    let (whole, bytes) = accept_up_to(1 << 20).await;
    whole.unwrap();
    for end in 0..bytes {
        let (result, _) = timeout(DEADLINE, accept_up_to(end)).await.unwrap();
        let error = result.expect_err("truncated");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "after {end}");
    }
}

/// Our client reads what a server of tokio-rustls sends, up to `bytes` of it.
async fn connect_up_to(bytes: usize) -> (io::Result<()>, usize) {
    let (near, far) = tokio::io::duplex(1 << 16);
    let carrier = Tampered::new(near, Tamper::EndAfter(bytes));
    let ours = async {
        let mut stream = TlsStream::connect(Arc::clone(&SIDES.client), name(), carrier)
            .await
            .map_err(|(error, _)| error)?;
        assert_eq!(stream.read(&mut [0; 16]).await?, 0);
        let Tamper::EndAfter(left) = stream.carrier.tamper else {
            unreachable!("as made above");
        };
        Ok(bytes - left)
    };
    let theirs = async {
        let config = Arc::clone(&SIDES.server);
        if let Ok(mut stream) = TlsAcceptor::from(config).accept(far).await {
            stream.shutdown().await.ok();
        }
    };
    let (ours, ()) = tokio::join!(ours, theirs);
    let read = *ours.as_ref().unwrap_or(&0);
    (ours.map(|_| ()), read)
}

#[tokio::test]
async fn a_server_that_stops_at_any_byte_is_an_error() {
    let (whole, bytes) = connect_up_to(1 << 20).await;
    whole.unwrap();
    for end in 0..bytes {
        let (result, _) = timeout(DEADLINE, connect_up_to(end)).await.unwrap();
        let error = result.expect_err("truncated");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof, "after {end}");
    }
}

/// What our server makes of `bytes`, and what it answers.
async fn answer(bytes: &[u8]) -> (io::Error, Vec<u8>) {
    let (near, mut far) = tokio::io::duplex(1 << 21);
    far.write_all(bytes).await.unwrap();
    far.shutdown().await.unwrap();
    let accepted = TlsStream::accept(Arc::clone(&SIDES.server), near).await;
    let (error, carrier) = accepted.expect_err("it is no hello");
    drop(carrier);
    let mut answered = Vec::new();
    far.read_to_end(&mut answered).await.unwrap();
    (error, answered)
}

/// A fatal alert as a plaintext record (RFC 8446 §6).
fn alert(description: AlertDescription) -> Vec<u8> {
    vec![21, 3, 3, 0, 2, 2, u8::from(description)]
}

#[tokio::test]
async fn garbage_is_answered_by_the_alert_of_the_rfc() {
    // RFC 8446 §5.1: no such record type.
    let (error, answered) = answer(b"GET / HTTP/1.1\r\n\r\n").await;
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    assert_eq!(answered, alert(AlertDescription::DecodeError));
    // RFC 8446 §5.1: application data before the handshake.
    let (_, answered) = answer(&[23, 3, 3, 0, 1, 0]).await;
    assert_eq!(answered, alert(AlertDescription::UnexpectedMessage));
    // A Finished that nobody asked for.
    let (_, answered) = answer(&[22, 3, 3, 0, 4, 20, 0, 0, 0]).await;
    assert_eq!(answered, alert(AlertDescription::UnexpectedMessage));
}

#[tokio::test]
async fn a_handshake_message_in_any_number_of_records_is_held_up_to_a_limit() {
    // A ClientHello of 65,000 bytes, one in each record.
    let mut bytes = vec![22, 3, 1, 0, 4, 1, 0, 0xfd, 0xe8];
    for _ in 0..60_000 {
        bytes.extend([22, 3, 1, 0, 1, 0]);
    }
    let (near, mut far) = tokio::io::duplex(HELD_BYTES_MAX * 8);
    far.write_all(&bytes).await.unwrap();
    let accepted = TlsStream::accept(Arc::clone(&SIDES.server), near).await;
    let (error, mut carrier) = accepted.expect_err("it has no end");
    let expected = InvalidMessage::HandshakePayloadTooLarge.into();
    assert_eq!(*tls_error(&error), expected);
    drop(far);
    let mut unread = Vec::new();
    carrier.read_to_end(&mut unread).await.unwrap();
    let read = bytes.len() - unread.len();
    assert!(read < 2 * HELD_BYTES_MAX, "{read} bytes were read");
}

#[tokio::test]
async fn a_record_that_does_not_decrypt_is_told_by_an_alert_after_what_came_before() {
    for room in [64, IN_PLACE_BYTES] {
        forged_record(room).await;
    }
}

async fn forged_record(room: usize) {
    let (mut ours, mut theirs) = with_oracle_server().await;
    theirs.write_all(b"good").await.unwrap();
    theirs.flush().await.unwrap();
    let forged = [&[23, 3, 3, 0, 32][..], &[0; 32]].concat();
    theirs.get_mut().0.write_all(&forged).await.unwrap();
    let mut good = vec![0; room];
    assert_eq!(ours.read(&mut good).await.unwrap(), 4);
    assert_eq!(&good[..4], b"good");
    for _ in 0..2 {
        let error = ours.read(&mut good).await.unwrap_err();
        assert_eq!(*tls_error(&error), rustls::Error::DecryptError);
    }
    let error = ours.write(b"more").await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    ours.shutdown().await.unwrap();
    let error = theirs.read(&mut good).await.unwrap_err();
    let expected = rustls::Error::AlertReceived(AlertDescription::BadRecordMac);
    assert_eq!(*tls_error(&error), expected);
}

#[tokio::test]
async fn keys_do_not_change_without_end() {
    let (mut ours, mut theirs) = with_oracle_client().await;
    for _ in 0..40 {
        theirs.get_mut().1.refresh_traffic_keys().unwrap();
    }
    theirs.flush().await.unwrap();
    let error = ours.read(&mut [0; 16]).await.unwrap_err();
    let expected = PeerMisbehaved::TooManyKeyUpdateRequests.into();
    assert_eq!(*tls_error(&error), expected);
}

#[tokio::test]
async fn bytes_behind_close_notify_are_ignored() {
    for room in [16, IN_PLACE_BYTES] {
        let (mut ours, mut theirs) = with_oracle_client().await;
        theirs.write_all(b"bye").await.unwrap();
        theirs.get_mut().1.send_close_notify();
        theirs.flush().await.unwrap();
        theirs.get_mut().0.write_all(b"not even TLS").await.unwrap();
        let mut read = vec![0; room];
        assert_eq!(ours.read(&mut read).await.unwrap(), 3);
        assert_eq!(&read[..3], b"bye");
        assert_eq!(ours.read(&mut read).await.unwrap(), 0);
        assert_eq!(ours.read(&mut read).await.unwrap(), 0);
        ours.write_all(b"still").await.unwrap();
        ours.shutdown().await.unwrap();
    }
}

/// The bytes that each side sends in a conversation under damage.
const DAMAGED_BYTES: usize = 50_000;

/// Talks until it cannot, and reads into so much room; how often it read from its carrier.
async fn talk(mut stream: Box<TlsStream<Tampered<DuplexStream>>>, room: usize) -> usize {
    let mut buffer = vec![0; room];
    let mut wrote = 0;
    while wrote < DAMAGED_BYTES {
        let (read, written) = {
            let (mut reading, mut writing) = tokio::io::split(&mut stream);
            tokio::join!(reading.read(&mut buffer), async {
                writing.write_all(&[9; 5_000]).await?;
                writing.flush().await
            })
        };
        if !matches!(read, Ok(1..)) || written.is_err() {
            break;
        }
        wrote += 5_000;
    }
    stream.shutdown().await.ok();
    stream.carrier.reads
}

#[tokio::test]
async fn damage_anywhere_neither_panics_nor_hangs_nor_works_without_end() {
    let seed = std::env::var("ZEUGMA_SEED")
        .ok()
        .and_then(|text| text.parse().ok());
    let seed: u64 = seed.unwrap_or_else(|| fastrand::u64(..));
    let mut random = fastrand::Rng::with_seed(seed);
    for round in 0..600 {
        let (near, far) = tokio::io::duplex(1 << 16);
        let one_in = [1, 3, 10][round % 3];
        let room = [5_000, IN_PLACE_BYTES][round / 3 % 2];
        let near = Tampered::new(near, Tamper::Damage(random.fork(), one_in));
        let far = Tampered::new(far, Tamper::Damage(random.fork(), one_in * 2));
        let client = async {
            let config = Arc::clone(&SIDES.client);
            match TlsStream::connect(config, name(), near).await {
                Ok(stream) => talk(stream, room).await,
                Err((_, carrier)) => carrier.reads,
            }
        };
        let server = async {
            let config = Arc::clone(&SIDES.server);
            match TlsStream::accept(config, far).await {
                Ok(stream) => talk(stream, room).await,
                Err((_, carrier)) => carrier.reads,
            }
        };
        // A side that waits for bytes which damage has swallowed waits as it should; the other
        // one's end ends it.
        let talk = async {
            tokio::select! {
                reads = client => reads,
                reads = server => reads,
                () = quiet() => 0,
            }
        };
        let reads = timeout(DEADLINE, talk).await;
        let reads = reads.unwrap_or_else(|_| panic!("ZEUGMA_SEED={seed}, round {round} hangs"));
        assert!(reads < 1_000, "ZEUGMA_SEED={seed}, round {round}: {reads}");
    }
}

/// Returns once both sides have nothing to do: polled last, and as often as they could be woken.
async fn quiet() {
    for _ in 0..1_000 {
        tokio::task::yield_now().await;
    }
}

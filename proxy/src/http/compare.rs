//! What is heard of two answers, to be compared: the one that a caller gets and the one of its copy.
//!
//! Bodies are hashed as they pass by and never kept. What was heard of the primary's is told once, when
//! it is over or was dropped, to copies that may still wait for their own answer or have long had it.

use std::fmt;

use aws_lc_rs::digest;
use http::{HeaderMap, header, response};
use tokio::sync::oneshot;
use zeugma_core::mirror::{Answer, Body};

const GRPC_STATUS: &str = "grpc-status";

/// One answer while it comes.
pub(super) struct Hearing {
    answer: Answer,
    sha256: digest::Context,
    bytes: u64,
    bytes_max: u64,
}

impl fmt::Debug for Hearing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hearing")
            .field("answer", &self.answer)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}

impl Hearing {
    /// An answer with this head, of whose body `bytes_max` bytes are hashed at most.
    pub(super) fn new(head: &response::Parts, bytes_max: usize) -> Self {
        let encoding = head.headers.get(header::CONTENT_ENCODING);
        let mut this = Self {
            answer: Answer {
                status: head.status.as_u16(),
                grpc: None,
                encoding: encoding.map(|coding| coding.as_bytes().into()),
                body: Body::CutShort,
            },
            sha256: digest::Context::new(&digest::SHA256),
            bytes: 0,
            bytes_max: u64::try_from(bytes_max).unwrap_or(u64::MAX),
        };
        // What has nothing but trailers has them in its head.
        this.trailers(&head.headers);
        this
    }

    pub(super) fn data(&mut self, bytes: &[u8]) {
        self.bytes = self.bytes.saturating_add(bytes.len() as u64);
        if self.bytes <= self.bytes_max {
            self.sha256.update(bytes);
        }
    }

    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(status) = trailers.get(GRPC_STATUS) {
            self.answer.grpc = Some(status.as_bytes().into());
        }
    }

    /// It ended in order.
    pub(super) fn whole(mut self) -> Answer {
        let mut sha256 = [0; 32];
        sha256.copy_from_slice(self.sha256.finish().as_ref());
        self.answer.body = Body::Whole {
            bytes: self.bytes,
            sha256,
        };
        self.answer
    }

    /// It did not.
    pub(super) fn cut_short(self) -> Answer {
        self.answer
    }
}

/// The answer that the caller gets, and the copies that are told of it.
///
/// Dropped before its end, it tells them so.
#[derive(Debug, Default)]
pub(super) struct Primary {
    hearing: Option<Hearing>,
    bytes_max: usize,
    copies: Vec<oneshot::Sender<Answer>>,
}

impl Primary {
    /// Tells one copy more; an error comes where no endpoint answers the caller.
    pub(super) fn told_to_one(&mut self, bytes_max: usize) -> oneshot::Receiver<Answer> {
        let (telling, told) = oneshot::channel();
        self.copies.push(telling);
        self.bytes_max = self.bytes_max.max(bytes_max);
        told
    }

    /// An endpoint's answer is handed to the caller.
    pub(super) fn begins(&mut self, head: &response::Parts) {
        self.hearing = Some(Hearing::new(head, self.bytes_max));
    }

    pub(super) fn data(&mut self, bytes: &[u8]) {
        if let Some(hearing) = &mut self.hearing {
            hearing.data(bytes);
        }
    }

    pub(super) fn trailers(&mut self, trailers: &HeaderMap) {
        if let Some(hearing) = &mut self.hearing {
            hearing.trailers(trailers);
        }
    }

    /// All of it was handed to the caller.
    pub(super) fn ends(mut self) {
        if let Some(hearing) = self.hearing.take() {
            self.tell(hearing.whole());
        }
    }

    fn tell(&mut self, answer: Answer) {
        let mut copies = self.copies.drain(..);
        let last = copies.next_back();
        // A copy that was given up hears nothing.
        for copy in copies {
            drop(copy.send(answer.clone()));
        }
        if let Some(copy) = last {
            drop(copy.send(answer));
        }
    }
}

impl Drop for Primary {
    fn drop(&mut self) {
        if let Some(hearing) = self.hearing.take() {
            self.tell(hearing.cut_short());
        }
    }
}

/// The statuses and the length of an answer, for the log.
pub(super) struct Said<'a>(pub(super) &'a Answer);

impl fmt::Display for Said<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.status)?;
        if let Some(grpc) = &self.0.grpc {
            write!(f, " grpc {}", grpc.escape_ascii())?;
        }
        match self.0.body {
            Body::Whole { bytes, .. } => write!(f, ", {bytes} bytes"),
            Body::CutShort => f.write_str(", cut short"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(headers: &[(&'static str, &'static str)]) -> response::Parts {
        let mut response = http::Response::builder().status(200);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        response.body(()).unwrap().into_parts().0
    }

    // FIPS 180-4's example of SHA-256: "abc".
    const ABC: [u8; 4] = [0xba, 0x78, 0x16, 0xbf];

    #[test]
    fn a_body_is_hashed_up_to_the_limit_however_it_comes() {
        let heard = |frames: &[&[u8]], bytes_max| {
            let mut hearing = Hearing::new(&head(&[]), bytes_max);
            for frame in frames {
                hearing.data(frame);
            }
            let Body::Whole { bytes, sha256 } = hearing.whole().body else {
                panic!("it ended in order");
            };
            (bytes, sha256)
        };
        let (bytes, whole) = heard(&[b"abc"], 3);
        assert_eq!((bytes, &whole[..4]), (3, &ABC[..]));
        assert_eq!(heard(&[b"a", b"", b"bc"], 3), (3, whole));
        // Nothing is hashed beyond the limit, and all is counted.
        assert_eq!(heard(&[b"abc", b"d", b"e"], 3), (5, whole));
    }

    #[test]
    fn grpc_says_its_status_in_trailers_or_in_the_head() {
        let alone = Hearing::new(&head(&[("grpc-status", "5")]), 9).whole();
        assert_eq!(alone.grpc.as_deref(), Some(&b"5"[..]));
        let mut behind = Hearing::new(&head(&[("content-encoding", "gzip")]), 9);
        behind.trailers(&head(&[("grpc-status", "0")]).headers);
        let behind = behind.whole();
        assert_eq!(behind.grpc.as_deref(), Some(&b"0"[..]));
        assert_eq!(behind.encoding.as_deref(), Some(&b"gzip"[..]));
        assert_eq!(Said(&behind).to_string(), "200 grpc 0, 0 bytes");
    }

    #[tokio::test]
    async fn copies_are_told_of_an_end_of_a_break_and_of_no_answer() {
        let mut primary = Primary::default();
        let (one, other) = (primary.told_to_one(2), primary.told_to_one(3));
        primary.begins(&head(&[]));
        primary.data(b"abc");
        primary.ends();
        let answer = one.await.unwrap();
        // As much is looked at as the one with the most wants.
        assert!(matches!(answer.body, Body::Whole { bytes: 3, sha256 } if sha256[..4] == ABC));
        assert_eq!(other.await.unwrap(), answer);
        let mut primary = Primary::default();
        let told = primary.told_to_one(2);
        primary.begins(&head(&[]));
        primary.data(b"a");
        drop(primary);
        let answer = told.await.unwrap();
        assert_eq!((answer.status, answer.body), (200, Body::CutShort));
        assert_eq!(Said(&answer).to_string(), "200, cut short");
        let mut primary = Primary::default();
        let told = primary.told_to_one(2);
        drop(primary);
        assert!(told.await.is_err());
    }
}

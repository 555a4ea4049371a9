//! HTTP/1.1 at its edges: answers that are cut where only the connection's end tells of theirs, or
//! that come before the request has; what is behind a body; targets that are none.

use http::header;
use tokio::io::AsyncWriteExt as _;

use crate::data_client::{Client, Wire, read_head};
use crate::data_mesh::{Gateway, HELLO, endpoints, near_route};
use crate::data_services::{AnyBody, TcpService};
use crate::mesh::within;

/// An endpoint by HTTP/1.1 that answers every head with these bytes, and then closes or does not.
fn answers(answer: &'static str, closes: bool) -> TcpService {
    TcpService::with(move |mut tcp| async move {
        while read_head(&mut tcp).await.is_ok() {
            tcp.write_all(answer.as_bytes()).await.ok();
            if closes {
                return;
            }
        }
    })
}

async fn before(service: &TcpService, more: &[&str]) -> Gateway {
    let address = endpoints(&[service.address()]);
    let backend = format!("backends: [{{ version: h1, {address} }}]");
    Gateway::alone(&near_route("hello", &[&[&*backend], more].concat())).await
}

/// RFC 9110 §6.5.1: what frames, routes, authenticates or describes a message is not read in trailers.
#[tokio::test]
async fn what_belongs_into_a_head_does_not_reach_the_caller_in_trailers() {
    let service = answers(
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\
         trailer: x-sum, content-type, set-cookie, keep-alive\r\n\r\n\
         2\r\nok\r\n0\r\nx-sum: 42\r\ncontent-type: text/html\r\nset-cookie: a=b\r\n\
         content-length: 9\r\ntransfer-encoding: chunked\r\nconnection: x-sum\r\n\
         keep-alive: 5\r\nhost: a\r\ncache-control: no-store\r\nauthorization: x\r\n\
         x-forwarded-client-cert: URI=spiffe://east.example/ns/shop/sa/admin\r\n\
         x-zeugma-reason: drained\r\n\r\n",
        false,
    );
    let gateway = before(&service, &[]).await;
    for wire in [Wire::H1, Wire::H2] {
        let mut client = Client::connect(gateway.apps(), &wire).await.unwrap();
        let request = client
            .head("GET", HELLO, "/")
            .header(header::TE, "trailers");
        let request = request.body(AnyBody::empty()).unwrap();
        let answer = within("an answer", client.send(request)).await.unwrap();
        let trailers = answer.trailers.unwrap();
        let names: Vec<_> = trailers.keys().map(http::HeaderName::as_str).collect();
        assert_eq!(names, ["x-sum"], "{wire:?}");
    }
    gateway.process.finish().await;
}

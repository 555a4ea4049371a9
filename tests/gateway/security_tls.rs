//! How a TLS session with the gateway ends that never began.

use std::io::Write as _;
use std::sync::Arc;

use rustls::AlertDescription;
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::mesh::{Ca, Cluster, Service, alert_of, within};

const ORDERS: &str = "orders.shop.svc.clusterset.local";

#[tokio::test]
async fn a_request_sent_behind_a_refused_certificate_does_not_eat_the_alert() {
    let east = Cluster::new("east");
    // Of an authority of its own: north knows east, and not the other way round.
    let mut north = Cluster::of("north", Arc::new(Ca::new()));
    east.ca.write_bundle("east.example", &north.svid().bundles);
    let service = Service::http("orders").await;
    east.route(
        "shop/orders",
        &format!(
            "
            protocol: http
            port: 8080
            inbound: terminate
            backends: [{{ endpoints: ['{}'] }}]
            allow: [{{ from: ['spiffe://east.example/*'] }}]
            export: {{ to: ['*'] }}",
            service.address
        ),
    );
    let gateway = east.start().await;
    let sockets = gateway.sockets();
    let stranger = north.identity("ns/shop/sa/cart");
    for _ in 0..5 {
        let tcp = TcpStream::connect(east.mesh).await.unwrap();
        let source = tcp.local_addr().unwrap();
        let connector = TlsConnector::from(Arc::new(stranger.client(&[b"http/1.1"])));
        let name = ServerName::try_from(ORDERS).unwrap();
        // Goes out in one piece with the certificate.
        let dialled = connector.connect_with(name, tcp, |session| {
            session.writer().write_all(&[b'x'; 48 * 1024]).unwrap();
        });
        let met = within("an alert", async {
            match dialled.await {
                Ok(mut stream) => stream.read_u8().await.map(|_| ()),
                Err(error) => Err(error),
            }
        });
        assert_eq!(
            alert_of(&met.await.unwrap_err()),
            AlertDescription::UnknownCA
        );
        let line = gateway.connection(source).await;
        assert_eq!(line["verdict"], "certificate-refused", "{line}");
        assert_eq!(line["tls.alert"], "unknown_ca", "{line}");
    }
    assert_eq!(service.connections(), 0);
    gateway.sockets_fall_to(sockets).await;
    gateway.finish().await;
}

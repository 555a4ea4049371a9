//! HTTP/2 windows: wide for whoever reads, narrow for whoever does not.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::data_mesh::{Gateway, HELLO, endpoints, http_route, near_route};
use crate::long_way::LongWay;
use crate::mesh::{Cluster, Service, empty, eventually, frames, h1, within};

/// One way between the clusters; a round trip takes twice as long.
const ONE_WAY: Duration = Duration::from_millis(200);
/// 20 MB/s fill a way of 50 ms with this. What is on its way at once is what windows allow, however
/// fast the machine is: here a way four times as long is filled by a fourth of that.
const ON_THE_WAY: usize = 1_000_000;
const CHUNK: usize = 64 * 1024;

/// East, whose workloads call what is in west, a long way off.
async fn far_apart(service: &Service) -> (Gateway, Gateway, LongWay) {
    let (east, west) = (Cluster::new("east"), Cluster::new("west"));
    east.meet(&west);
    let way = LongWay::to(west.mesh, ONE_WAY).await.unwrap();
    let spec = format!(
        "
        cluster: west
        locality: west/west-1
        gateways: ['{}']
        spiffeIDs: ['{}']",
        way.address,
        west.gateway_id()
    );
    east.peer("west", &spec);
    let near = format!("backends: [{{ {} }}]", endpoints(&[service.address]));
    let west = Gateway::of(west, &http_route("hello", &[&near])).await;
    let east = Gateway::of(east, &http_route("hello", &["backends: [{ peer: west }]"])).await;
    (east, west, way)
}

#[tokio::test]
async fn a_long_way_is_filled_by_one_download_and_by_one_upload() {
    // Sends until nobody listens; reads all it gets.
    let service = Service::handling(|request: Request<hyper::body::Incoming>| async {
        let is_upload = request.method() == http::Method::POST;
        let mut incoming = request.into_body();
        if is_upload {
            while let Some(Ok(_frame)) = incoming.frame().await {}
            return Response::new(empty());
        }
        let (send, body) = frames();
        tokio::spawn(
            async move { while send.send(Bytes::from_static(&[7; CHUNK])).await.is_ok() {} },
        );
        Response::new(body)
    })
    .await;
    let (east, west, way) = far_apart(&service).await;
    let [there, back] = &way.most;

    let mut caller = h1(TcpStream::connect(east.apps()).await.unwrap()).await;
    let request = Request::get("/").header("host", HELLO).body(empty());
    let response = caller.send_request(request.unwrap()).await.unwrap();
    let mut body = response.into_body();
    within("a download that fills the way", async {
        while back.load(Ordering::Relaxed) < ON_THE_WAY {
            body.frame().await.unwrap().unwrap();
        }
    })
    .await;
    drop((body, caller));

    let mut caller = h1(TcpStream::connect(east.apps()).await.unwrap()).await;
    let (send, body) = frames();
    let request = Request::post("/").header("host", HELLO).body(body);
    let answered = tokio::spawn(caller.send_request(request.unwrap()));
    within("an upload that fills the way", async {
        while there.load(Ordering::Relaxed) < ON_THE_WAY {
            send.send(Bytes::from_static(&[7; CHUNK])).await.unwrap();
        }
    })
    .await;
    drop(send);
    let response = within("the answer", answered).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    east.process.finish().await;
    west.process.finish().await;
}

/// An endpoint that sends as much as it may, on every stream; tells how much, by path.
#[derive(Debug)]
struct Eager {
    address: SocketAddr,
    sent: Arc<[AtomicUsize; 2]>,
    _tasks: JoinSet<()>,
}

impl Eager {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let sent = Arc::new([(); 2].map(|()| AtomicUsize::new(0)));
        let counted = Arc::clone(&sent);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let (tcp, _) = listener.accept().await.unwrap();
            let mut connection = h2::server::Builder::new()
                .max_send_buffer_size(1 << 30)
                .handshake::<_, Bytes>(tcp)
                .await
                .unwrap();
            let mut streams = JoinSet::new();
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                let nth = usize::from(request.uri().path() == "/fast");
                let counted = Arc::clone(&counted);
                streams.spawn(async move {
                    let mut stream = respond.send_response(Response::new(()), false).unwrap();
                    loop {
                        stream.reserve_capacity(CHUNK);
                        let capacity = std::future::poll_fn(|cx| stream.poll_capacity(cx)).await;
                        let Some(Ok(n)) = capacity else { return };
                        let n = n.min(CHUNK);
                        if stream.send_data(Bytes::from(vec![7; n]), false).is_err() {
                            return;
                        }
                        counted[nth].fetch_add(n, Ordering::SeqCst);
                    }
                });
            }
        });
        Self {
            address,
            sent,
            _tasks: tasks,
        }
    }
}

#[tokio::test]
async fn a_reader_that_stops_holds_little_and_holds_up_nobody_on_its_connections() {
    // Its own window, the stream's buffer and the window here, and a frame or two under way.
    const HELD_MAX: usize = 4 * 65_536;
    const READ: usize = 32 << 20;
    let endpoint = Eager::start().await;
    let backend = endpoints(&[endpoint.address]);
    let backend = format!("backends: [{{ version: h2, {backend} }}]");
    let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
    // One worker has one connection to the endpoint, and both requests come by one connection.
    let tcp = TcpStream::connect(gateway.apps()).await.unwrap();
    let (caller, connection) = h2::client::Builder::new()
        .initial_connection_window_size(1 << 30)
        .handshake::<_, Bytes>(tcp)
        .await
        .unwrap();
    tokio::spawn(connection);
    let ask = |path: &str| {
        let request = Request::get(format!("http://{HELLO}{path}")).body(());
        let mut caller = caller.clone();
        let (response, _) = caller.send_request(request.unwrap(), true).unwrap();
        within("a response", response)
    };
    let stopped = ask("/slow").await.unwrap();
    eventually(
        "a reader that has stopped to be sent a little",
        async || (endpoint.sent[0].load(Ordering::SeqCst) > 65_536).then_some(()),
    )
    .await;
    let mut body = ask("/fast").await.unwrap().into_body();
    let mut read = 0;
    within("what the other stream carries", async {
        while read < READ {
            let bytes = body.data().await.unwrap().unwrap();
            body.flow_control().release_capacity(bytes.len()).unwrap();
            read += bytes.len();
        }
    })
    .await;
    let held = endpoint.sent[0].load(Ordering::SeqCst);
    assert!(
        held <= HELD_MAX,
        "{held} bytes for a reader that has stopped"
    );
    assert!(!stopped.body().is_end_stream());
    drop((stopped, body, caller));
    gateway.process.finish().await;
}

#[tokio::test]
async fn more_than_a_window_holds_ends_the_connection() {
    let service = Service::handling(|request: Request<hyper::body::Incoming>| async {
        // Never reads it.
        let held = request.into_body();
        assert!(!held.is_end_stream());
        std::future::pending().await
    })
    .await;
    let backend = format!("backends: [{{ {} }}]", endpoints(&[service.address]));
    let gateway = Gateway::alone(&near_route("hello", &[&backend])).await;
    let mut tcp = TcpStream::connect(gateway.apps()).await.unwrap();
    let source = tcp.local_addr().unwrap();
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend_from_slice(&frame(0x4, 0, 0, &[]));
    // RFC 7541: :method POST, :scheme http, :path /, :authority as a literal.
    let mut head = vec![0x83, 0x86, 0x84, 0x01, u8::try_from(HELLO.len()).unwrap()];
    head.extend_from_slice(HELLO.as_bytes());
    bytes.extend_from_slice(&frame(0x1, 0x4, 1, &head));
    for _ in 0..64 {
        bytes.extend_from_slice(&frame(0x0, 0, 1, &[7; 16_384]));
    }
    // It may end the connection before it took all.
    within("the bytes to be taken", tcp.write_all(&bytes))
        .await
        .ok();
    let mut rest = Vec::new();
    within("the end", tcp.read_to_end(&mut rest)).await.ok();
    let line = gateway.process.connection(source).await;
    assert_eq!(line["verdict"], "downstream-closed", "{line}");
    assert!(line["error"].to_string().contains("window"), "{line}");
    gateway.process.finish().await;
}

/// RFC 9113 §4.1.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend_from_slice(&[kind, flags]);
    frame.extend_from_slice(&stream.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

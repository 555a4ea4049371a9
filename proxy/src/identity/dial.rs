//! The socket of an agent.

use std::io;
use std::time::Duration;

use tokio::net::{TcpStream, UnixStream};
use tokio_util::either::Either;
use zeugma_xds::WorkloadAddress;

/// How long it may take to be connected.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The bytes of one.
pub(super) type Dialled = Either<UnixStream, TcpStream>;

/// Opens one; bounded by whoever asks.
pub(super) async fn dial(address: &WorkloadAddress) -> io::Result<Dialled> {
    Ok(match address {
        WorkloadAddress::Unix(path) => Either::Left(UnixStream::connect(path).await?),
        WorkloadAddress::Tcp(address) => Either::Right(TcpStream::connect(address).await?),
    })
}

//! The two kinds of rustls connection behind one face.

use std::io::{self, IoSlice};
use std::ops::Deref;
use std::sync::Arc;

use rustls::client::UnbufferedClientConnection;
use rustls::server::UnbufferedServerConnection;
use rustls::unbuffered::{
    ConnectionState, EncodeError, EncodeTlsData, EncryptError, UnbufferedStatus, WriteTraffic,
};
use rustls::{ClientConfig, CommonState, ServerConfig};
use rustls_pki_types::ServerName;
use tokio::io::ReadBuf;

use super::RECORD_BYTES;
use super::backlog::{Backlog, NoRoom};

/// A session of either side, without a buffer of its own.
pub(super) enum Connection {
    Server(UnbufferedServerConnection),
    Client(UnbufferedClientConnection),
}

/// What a step through the bytes received came to.
#[derive(Debug)]
pub(super) enum Step {
    /// There may be more in the bytes.
    Again,
    /// The bytes left are no whole record or no whole handshake message.
    Blocked,
    /// The peer said that it sends nothing more.
    PeerClosed,
    /// The peer broke the protocol, or said that we did.
    Failed(rustls::Error),
}

impl From<NoRoom> for Step {
    fn from(error: NoRoom) -> Self {
        Self::Failed(rustls::Error::General(error.to_string()))
    }
}

/// Where a step leaves what it gives.
pub(super) struct Gains<'a, 'b> {
    /// The reader's own buffer, if there is a reader.
    pub(super) reader: Option<&'a mut ReadBuf<'b>>,
    /// Plaintext the reader has no room for.
    pub(super) plaintext: &'a mut Backlog,
    /// Records of the handshake and alerts, to be sent.
    pub(super) outgoing: &'a mut Backlog,
}

/// What is to be encrypted, where to, and how far it got.
pub(super) struct Sealing<'a> {
    pub(super) slices: &'a [IoSlice<'a>],
    /// At most this much of the slices is taken.
    pub(super) limit: usize,
    /// Collects small slices into whole records.
    pub(super) gathered: &'a mut Vec<u8>,
    /// Has room for `limit`, its records, and what the session has to say besides.
    pub(super) ciphertext: &'a mut [u8],
    /// How much of the slices is encrypted.
    pub(super) taken: usize,
    /// How much of `ciphertext` that is.
    pub(super) len: usize,
}

/// What is sent next.
enum Order<'a, 'b> {
    Seal(&'a mut Sealing<'b>),
    Close(&'a mut Backlog),
}

impl Connection {
    pub(super) fn server(config: Arc<ServerConfig>) -> Result<Self, rustls::Error> {
        UnbufferedServerConnection::new(config).map(Self::Server)
    }

    pub(super) fn client(
        config: Arc<ClientConfig>,
        name: ServerName<'static>,
    ) -> Result<Self, rustls::Error> {
        UnbufferedClientConnection::new(config, name).map(Self::Client)
    }

    /// Processes the next record in `received`, and says how many bytes at its front are used up.
    pub(super) fn step(&mut self, received: &mut [u8], gains: &mut Gains<'_, '_>) -> (usize, Step) {
        match self {
            Self::Server(connection) => step(connection.process_tls_records(received), gains),
            Self::Client(connection) => step(connection.process_tls_records(received), gains),
        }
    }

    /// Appends to `outgoing` the alert that tells the peer of a failure.
    pub(super) fn take_alert(&mut self, outgoing: &mut Backlog) {
        // rustls gives what it has to send before it looks at what was received, and after a
        // failure it is shown nothing more: it would fail again, and want to send another alert.
        while self.wants_write() {
            let mut gains = Gains {
                reader: None,
                plaintext: &mut Backlog::default(),
                outgoing,
            };
            let (_, Step::Again) = self.step(&mut [], &mut gains) else {
                return;
            };
        }
    }

    /// Encrypts as `sealing` says. `held` is what the last step left of the bytes received.
    ///
    /// # Errors
    /// When nothing can be sent any more.
    pub(super) fn seal(&mut self, held: &mut [u8], sealing: &mut Sealing<'_>) -> io::Result<()> {
        self.carry_out(held, &mut Order::Seal(sealing))
    }

    /// Appends to `outgoing` that we send nothing more. `held` as for [`Self::seal`].
    ///
    /// # Errors
    /// When nothing can be sent any more.
    pub(super) fn close(&mut self, held: &mut [u8], outgoing: &mut Backlog) -> io::Result<()> {
        self.carry_out(held, &mut Order::Close(outgoing))
    }

    fn carry_out(&mut self, held: &mut [u8], order: &mut Order<'_, '_>) -> io::Result<()> {
        loop {
            let done = match self {
                Self::Server(connection) => send(connection.process_tls_records(held), order)?,
                Self::Client(connection) => send(connection.process_tls_records(held), order)?,
            };
            if done {
                return Ok(());
            }
        }
    }
}

impl Deref for Connection {
    type Target = CommonState;

    fn deref(&self) -> &CommonState {
        match self {
            Self::Server(connection) => connection,
            Self::Client(connection) => connection,
        }
    }
}

fn step<Data>(status: UnbufferedStatus<'_, '_, Data>, gains: &mut Gains<'_, '_>) -> (usize, Step) {
    let UnbufferedStatus { mut discard, state } = status;
    let step = match state {
        Err(error) => Step::Failed(error),
        Ok(ConnectionState::ReadTraffic(mut traffic)) => {
            let mut step = Step::Again;
            while let Some(record) = traffic.next_record() {
                match record {
                    Ok(record) => {
                        discard += record.discard;
                        gains.gain(record.payload);
                    }
                    Err(error) => {
                        step = Step::Failed(error);
                        break;
                    }
                }
            }
            step
        }
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            let appended = gains.outgoing.append(|room| encode(&mut data, room));
            appended.map_or_else(Step::from, |()| Step::Again)
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            // It is in the queue, which keeps the order.
            transmit.done();
            Step::Again
        }
        Ok(ConnectionState::PeerClosed) => Step::PeerClosed,
        // Early data is refused by our configurations, and a state that is new to us is not one
        // that waits for us.
        Ok(_) => Step::Blocked,
    };
    (discard, step)
}

impl Gains<'_, '_> {
    fn gain(&mut self, plaintext: &[u8]) {
        let mut rest = plaintext;
        if let Some(reader) = &mut self.reader
            && self.plaintext.is_empty()
        {
            let (fits, over) = rest.split_at(rest.len().min(reader.remaining()));
            reader.put_slice(fits);
            rest = over;
        }
        if !rest.is_empty() {
            self.plaintext.push(rest);
        }
    }
}

/// Whether the order is carried out; if not, it is to be tried again.
fn send<Data>(
    status: UnbufferedStatus<'_, '_, Data>,
    order: &mut Order<'_, '_>,
) -> io::Result<bool> {
    match status.state {
        Err(error) => Err(io::Error::new(io::ErrorKind::InvalidData, error)),
        Ok(ConnectionState::WriteTraffic(mut traffic)) => {
            match order {
                Order::Seal(sealing) => sealing.seal(&mut traffic)?,
                Order::Close(outgoing) => queue_close(&mut traffic, outgoing)?,
            }
            Ok(true)
        }
        Ok(ConnectionState::EncodeTlsData(mut data)) => {
            match order {
                Order::Seal(sealing) => sealing.encode(&mut data)?,
                Order::Close(outgoing) => outgoing.append(|room| encode(&mut data, room))?,
            }
            Ok(false)
        }
        Ok(ConnectionState::TransmitTlsData(transmit)) => {
            transmit.done();
            Ok(false)
        }
        // Both sides have closed, or there is no session yet.
        Ok(_) => Err(io::ErrorKind::BrokenPipe.into()),
    }
}

impl Sealing<'_> {
    /// Encrypts whole records as far as the slices go, and the rest in a smaller one.
    fn seal<Data>(&mut self, traffic: &mut WriteTraffic<'_, Data>) -> io::Result<()> {
        self.gathered.clear();
        let slices = self.slices;
        for (nth, slice) in slices.iter().enumerate() {
            let (mut rest, _) = slice.split_at(slice.len().min(self.limit - self.taken));
            self.taken += rest.len();
            let last = nth + 1 == slices.len();
            while !rest.is_empty() {
                let direct = if !self.gathered.is_empty() {
                    0
                } else if last {
                    rest.len()
                } else {
                    rest.len() - rest.len() % RECORD_BYTES
                };
                if direct > 0 {
                    let (whole, over) = rest.split_at(direct);
                    self.encrypt(traffic, whole)?;
                    rest = over;
                } else {
                    let room = RECORD_BYTES - self.gathered.len();
                    let (fits, over) = rest.split_at(rest.len().min(room));
                    self.gathered.extend_from_slice(fits);
                    rest = over;
                    self.flush_gathered(traffic, RECORD_BYTES)?;
                }
            }
        }
        self.flush_gathered(traffic, 1)
    }

    fn flush_gathered<Data>(
        &mut self,
        traffic: &mut WriteTraffic<'_, Data>,
        at_least: usize,
    ) -> io::Result<()> {
        if self.gathered.len() < at_least {
            return Ok(());
        }
        let gathered = std::mem::take(self.gathered);
        let result = self.encrypt(traffic, &gathered);
        *self.gathered = gathered;
        self.gathered.clear();
        result
    }

    fn encrypt<Data>(
        &mut self,
        traffic: &mut WriteTraffic<'_, Data>,
        plaintext: &[u8],
    ) -> io::Result<()> {
        let room = self.ciphertext.get_mut(self.len..).unwrap_or_default();
        self.len += traffic.encrypt(plaintext, room).map_err(io::Error::other)?;
        Ok(())
    }

    /// Puts a record that is ready behind what is encrypted so far.
    fn encode<Data>(&mut self, data: &mut EncodeTlsData<'_, Data>) -> Result<(), NoRoom> {
        let room = self.ciphertext.get_mut(self.len..).unwrap_or_default();
        self.len += encode(data, room).map_err(|_wanted| NoRoom)?;
        Ok(())
    }

    /// Puts records behind what is encrypted so far.
    ///
    /// # Errors
    /// They have no room.
    pub(super) fn append(&mut self, records: &[u8]) -> io::Result<()> {
        let room = self.ciphertext.get_mut(self.len..).unwrap_or_default();
        let place = room.get_mut(..records.len()).ok_or(NoRoom)?;
        place.copy_from_slice(records);
        self.len += records.len();
        Ok(())
    }
}

fn queue_close<Data>(
    traffic: &mut WriteTraffic<'_, Data>,
    outgoing: &mut Backlog,
) -> io::Result<()> {
    let mut record = Vec::new();
    loop {
        match traffic.queue_close_notify(&mut record) {
            Ok(len) => {
                outgoing.push(record.get(..len).unwrap_or_default());
                return Ok(());
            }
            // What it must be stands in the error; it is asked twice at most.
            Err(EncryptError::InsufficientSize(short)) if record.len() < short.required_size => {
                record.resize(short.required_size, 0);
            }
            Err(error) => return Err(io::Error::other(error)),
        }
    }
}

/// Encodes a record that is ready into `room`.
///
/// # Errors
/// How much room it wants.
fn encode<Data>(data: &mut EncodeTlsData<'_, Data>, room: &mut [u8]) -> Result<usize, usize> {
    data.encode(room).map_err(|error| match error {
        EncodeError::InsufficientSize(short) => short.required_size,
        // Not for a record that was just given.
        EncodeError::AlreadyEncoded => 0,
    })
}

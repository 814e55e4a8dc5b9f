//! A TCP proxy that changes, cuts and delays what passes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hikyaku_transport::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::{ACCEPT, Pair, Setup, free_address};

/// What a proxy does to the bytes from the source to the destination.
#[derive(Default)]
pub struct Meddler {
    /// The connection to meddle with: 0 is the control connection, then the lanes as they come.
    pub connection: usize,
    /// All from that one on.
    pub and_later: bool,
    /// Flips a bit of the byte at this offset of it.
    pub flip_at: Option<u64>,
    /// Closes it after so many bytes.
    pub cut_at: Option<u64>,
    /// Adds this to the next read as soon as it is set.
    pub armed: AtomicBool,
    /// Passes nothing on any connection, in either direction.
    pub frozen: AtomicBool,
    pub seen: AtomicUsize,
    /// Takes no connection while set, but ends each as soon as it is there.
    pub refusing: AtomicBool,
    pub refused: AtomicUsize,
    /// Never cut: the control connection.
    pub spares_first: bool,
    /// Connections older than this are closed: see [`Meddler::cut`].
    pub cuts: Watch<usize>,
}

/// A number that tasks can wait for.
pub struct Watch<T>(tokio::sync::watch::Sender<T>);

impl<T: Default> Default for Watch<T> {
    fn default() -> Self {
        Self(tokio::sync::watch::Sender::new(T::default()))
    }
}

impl Meddler {
    /// Closes every connection.
    pub fn cut(&self) {
        self.cut_below(usize::MAX);
    }

    /// Closes the connections up to this number (0: the control connection, then the lanes as they come).
    pub fn cut_below(&self, number: usize) {
        let end = self.seen.load(Ordering::SeqCst).min(number);
        self.cuts.0.send_modify(|cuts| *cuts = (*cuts).max(end));
    }
}

/// A TCP proxy in front of `to`, in the test's own runtime.
pub async fn proxy(to: SocketAddr, meddler: Arc<Meddler>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            if meddler.refusing.load(Ordering::SeqCst) {
                meddler.refused.fetch_add(1, Ordering::SeqCst);
                continue;
            }
            let Ok(far) = TcpStream::connect(to).await else { continue };
            let number = meddler.seen.fetch_add(1, Ordering::SeqCst);
            let mine = number == meddler.connection || meddler.and_later && number > meddler.connection;
            let (near_read, near_write) = near.into_split();
            let (far_read, far_write) = far.into_split();
            let (there, back) = (
                pass(near_read, far_write, meddler.clone(), mine),
                pass(far_read, near_write, meddler.clone(), false),
            );
            let mut cuts = meddler.cuts.0.subscribe();
            let spared = meddler.spares_first && number == 0;
            tokio::spawn(async move {
                tokio::select! {
                    _ = async { tokio::join!(there, back) } => {}
                    _ = cuts.wait_for(|cut| !spared && *cut > number) => {}
                }
            });
        }
    });
    address
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    meddler: Arc<Meddler>,
    meddle: bool,
) {
    let mut buffer = vec![0; 64 * 1024];
    let mut offset = 0;
    loop {
        let got = from.read(&mut buffer).await;
        // The end of a connection does not pass either.
        while meddler.frozen.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let Ok(bytes @ 1..) = got else { return };
        let mut end = bytes;
        if meddle {
            if let Some(at) = meddler.flip_at.filter(|at| (offset..offset + bytes as u64).contains(at)) {
                buffer[(at - offset) as usize] ^= 0x10;
            }
            if meddler.armed.swap(false, Ordering::SeqCst) {
                buffer[bytes - 1] ^= 1;
            }
            if let Some(at) = meddler.cut_at.filter(|at| offset + bytes as u64 > *at) {
                end = (at - offset) as usize;
            }
        }
        if to.write_all(&buffer[..end]).await.is_err() || end < bytes {
            return;
        }
        offset += bytes as u64;
    }
}

/// A pair whose source sees the destination through `meddler`.
pub async fn through(io: Io, meddler: Meddler, change: fn(&mut NodeConfig)) -> (Pair, Arc<Meddler>) {
    // The proxy must know the destination before the source knows the proxy.
    let mut setup = Setup::new(io);
    setup.change = change;
    setup.listen = free_address();
    let meddler = Arc::new(meddler);
    let via = proxy(setup.listen, meddler.clone()).await;
    setup.via = Some(vec![via.to_string()]);
    (setup.pair(ACCEPT), meddler)
}

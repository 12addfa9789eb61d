//! A TCP proxy that fails on purpose: put it before PostgreSQL, Redis or a node.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

/// What happens to every connection, those that are open and those that come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    None,
    /// Each piece of data arrives this much later, in each direction.
    Delay(Duration),
    /// Connections are accepted and stay open; nothing passes until the fault ends.
    Hang,
    /// Connections are accepted and reset.
    Reset,
    /// Open connections are reset, and nobody listens.
    Refuse,
}

impl Fault {
    fn cuts(self) -> bool {
        match self {
            Self::Reset | Self::Refuse => true,
            Self::None | Self::Delay(_) | Self::Hang => false,
        }
    }
}

/// Ends when it is dropped, with all its connections.
pub struct Proxy {
    pub address: SocketAddr,
    wanted: watch::Sender<Fault>,
    in_force: watch::Receiver<Fault>,
    way: Arc<Way>,
}

/// What all connections share.
struct Way {
    upstream: Mutex<SocketAddr>,
    holding: watch::Sender<Holding>,
    /// Changes when those that are open then are lost.
    losses: watch::Sender<()>,
    /// Lost connections that the client has not closed.
    lost: AtomicUsize,
}

/// One answer that is held back.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Holding {
    Nothing,
    /// The next that contains this.
    Awaited(Vec<u8>),
    Held,
}

impl Proxy {
    pub async fn before(upstream: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (wanted, faults) = watch::channel(Fault::None);
        let (acknowledge, in_force) = watch::channel(Fault::None);
        let way = Arc::new(Way {
            upstream: Mutex::new(upstream),
            holding: watch::Sender::new(Holding::Nothing),
            losses: watch::Sender::new(()),
            lost: AtomicUsize::new(0),
        });
        let shared = Arc::clone(&way);
        tokio::spawn(serve(listener, address, shared, faults, acknowledge));
        Self {
            address,
            wanted,
            in_force,
            way,
        }
    }

    /// New connections go there from now on.
    pub fn lead_to(&self, upstream: SocketAddr) {
        let mut there = self
            .way
            .upstream
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *there = upstream;
    }

    /// Will hold back the next answer that contains `text`, with what follows on its connection.
    pub fn hold_answer(&self, text: &str) {
        let awaited = Holding::Awaited(text.as_bytes().to_vec());
        self.way.holding.send_replace(awaited);
    }

    /// Waits until that answer is held.
    pub async fn holds(&self) {
        let mut holding = self.way.holding.subscribe();
        let held = holding.wait_for(|now| *now == Holding::Held);
        let bound = Duration::from_secs(10);
        let held = tokio::time::timeout(bound, held).await;
        held.expect("such an answer came").expect("the proxy runs");
    }

    /// Lets it go.
    pub fn release(&self) {
        self.way.holding.send_replace(Holding::Nothing);
    }

    /// Whatever is sent on connections that are open now is swallowed from now on, in both directions, until a fault
    /// cuts them: neither end ever hears that the other is gone. New ones are as before.
    pub fn lose_open(&self) {
        self.way.losses.send_replace(());
    }

    /// How many of those the client still has.
    pub fn lost(&self) -> usize {
        self.way.lost.load(Ordering::Relaxed)
    }

    /// Answers once new connections meet the fault.
    pub async fn set(&mut self, fault: Fault) {
        self.wanted.send(fault).expect("the proxy runs");
        self.in_force
            .wait_for(|now| *now == fault)
            .await
            .expect("the proxy runs");
    }
}

async fn serve(
    listener: TcpListener,
    address: SocketAddr,
    way: Arc<Way>,
    mut faults: watch::Receiver<Fault>,
    acknowledge: watch::Sender<Fault>,
) {
    let mut listener = Some(listener);
    loop {
        let fault = *faults.borrow_and_update();
        if fault == Fault::Refuse {
            listener = None;
        } else if listener.is_none() {
            listener = Some(TcpListener::bind(address).await.expect("our port is free"));
        }
        acknowledge.send_replace(fault);
        let accepted = async {
            match &listener {
                Some(listener) => listener.accept().await.expect("it listens").0,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            client = accepted => {
                let losses = way.losses.subscribe();
                tokio::spawn(carry(client, Arc::clone(&way), faults.clone(), losses));
            }
            changed = faults.changed() => {
                if changed.is_err() {
                    return;
                }
            }
        }
    }
}

async fn carry(
    mut client: TcpStream,
    way: Arc<Way>,
    mut faults: watch::Receiver<Fault>,
    mut losses: watch::Receiver<()>,
) {
    let mut cut = faults.clone();
    let cut = cut.wait_for(|fault| fault.cuts());
    let carried = async {
        if faults
            .wait_for(|fault| *fault != Fault::Hang)
            .await
            .is_err()
        {
            return;
        }
        let upstream = *way.upstream.lock().unwrap_or_else(PoisonError::into_inner);
        let Ok(mut server) = TcpStream::connect(upstream).await else {
            return;
        };
        // As those on both ends do: small pieces do not wait for each other.
        for stream in [&client, &server] {
            stream.set_nodelay(true).expect("the socket is open");
        }
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let pumped = async {
            tokio::join!(
                pump(from_client, to_server, faults.clone(), None),
                pump(from_server, to_client, faults.clone(), Some(&way)),
            )
        };
        let is_lost = tokio::select! {
            biased;
            lost = losses.changed() => lost.is_ok(),
            _ = pumped => false,
        };
        if is_lost {
            way.lost.fetch_add(1, Ordering::Relaxed);
            let until_closed = async {
                swallow(&mut client).await;
                way.lost.fetch_sub(1, Ordering::Relaxed);
            };
            tokio::join!(until_closed, swallow(&mut server));
        }
    };
    // Cut by a fault, or because the proxy was dropped.
    let was_cut = tokio::select! {
        biased;
        _ = cut => true,
        () = carried => false,
    };
    if was_cut {
        // A close with nothing lingering is a reset.
        client.set_zero_linger().expect("the socket is open");
    }
}

async fn swallow(from: &mut TcpStream) {
    let _closed = tokio::io::copy(from, &mut tokio::io::sink()).await;
}

async fn pump(
    mut from: ReadHalf<'_>,
    mut to: WriteHalf<'_>,
    mut faults: watch::Receiver<Fault>,
    answers: Option<&Way>,
) {
    let mut buffer = vec![0; 16 * 1024];
    loop {
        let read = from.read(&mut buffer).await.unwrap_or(0);
        if faults
            .wait_for(|fault| *fault != Fault::Hang)
            .await
            .is_err()
        {
            return;
        }
        let fault = *faults.borrow();
        if let Fault::Delay(delay) = fault {
            tokio::time::sleep(delay).await;
        }
        if let Some(way) = answers {
            way.hold(&buffer[..read]).await;
        }
        if read == 0 {
            let _ = to.shutdown().await;
            return;
        }
        if to.write_all(&buffer[..read]).await.is_err() {
            return;
        }
    }
}

impl Way {
    /// Waits with an answer that is to be held back.
    async fn hold(&self, answer: &[u8]) {
        let is_held = self.holding.send_if_modified(|holding| {
            let Holding::Awaited(text) = holding else {
                return false;
            };
            let found = answer.windows(text.len()).any(|part| part == text);
            if found {
                *holding = Holding::Held;
            }
            found
        });
        if is_held {
            let mut holding = self.holding.subscribe();
            let _gone_with_the_proxy = holding.wait_for(|now| *now != Holding::Held).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::time::Instant;

    use super::*;

    const BOUND: Duration = Duration::from_secs(5);

    /// A server that says back what it hears, and a proxy before it.
    async fn echo() -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let (mut from, mut to) = stream.split();
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                });
            }
        });
        Proxy::before(address).await
    }

    async fn say(stream: &mut TcpStream) -> std::io::Result<u8> {
        stream.write_all(b"k").await?;
        let heard = tokio::time::timeout(Duration::from_millis(300), stream.read_u8());
        heard.await.map_err(|_elapsed| ErrorKind::TimedOut)?
    }

    async fn fresh(proxy: &Proxy) -> std::io::Result<u8> {
        say(&mut TcpStream::connect(proxy.address).await?).await
    }

    #[tokio::test]
    async fn each_fault_is_met_by_open_and_new_connections_and_ends() {
        let mut proxy = echo().await;
        for (fault, open_kind, new_kind) in [
            (Fault::Hang, ErrorKind::TimedOut, ErrorKind::TimedOut),
            (
                Fault::Reset,
                ErrorKind::ConnectionReset,
                ErrorKind::ConnectionReset,
            ),
            (
                Fault::Refuse,
                ErrorKind::ConnectionReset,
                ErrorKind::ConnectionRefused,
            ),
        ] {
            let mut open = TcpStream::connect(proxy.address).await.unwrap();
            assert_eq!(say(&mut open).await.unwrap(), b'k');
            proxy.set(fault).await;
            assert_eq!(
                say(&mut open).await.unwrap_err().kind(),
                open_kind,
                "{fault:?}"
            );
            assert_eq!(
                fresh(&proxy).await.unwrap_err().kind(),
                new_kind,
                "{fault:?}"
            );
            proxy.set(Fault::None).await;
            assert_eq!(fresh(&proxy).await.unwrap(), b'k', "{fault:?}");
            if fault == Fault::Hang {
                // What was held back arrives.
                let late = tokio::time::timeout(BOUND, open.read_u8()).await.unwrap();
                assert_eq!(late.unwrap(), b'k');
            }
        }
    }

    #[tokio::test]
    async fn a_connection_that_is_lost_stays_so_and_new_ones_pass() {
        let mut proxy = echo().await;
        let mut open = TcpStream::connect(proxy.address).await.unwrap();
        assert_eq!(say(&mut open).await.unwrap(), b'k');
        proxy.lose_open();
        for fault in [Fault::None, Fault::Hang, Fault::None] {
            proxy.set(fault).await;
            let end = say(&mut open).await.unwrap_err().kind();
            assert_eq!(end, ErrorKind::TimedOut, "{fault:?}");
        }
        assert_eq!(fresh(&proxy).await.unwrap(), b'k');
        assert_eq!(proxy.lost(), 1);
        drop(open);
        crate::support::until(BOUND, "its end is seen", async || proxy.lost() == 0).await;
    }

    #[tokio::test]
    #[expect(clippy::disallowed_methods, reason = "the delay is real time")]
    async fn a_delay_is_added_in_each_direction() {
        let mut proxy = echo().await;
        let mut open = TcpStream::connect(proxy.address).await.unwrap();
        say(&mut open).await.unwrap();
        proxy.set(Fault::Delay(Duration::from_millis(60))).await;
        let began = Instant::now();
        say(&mut open).await.unwrap();
        assert!(
            began.elapsed() >= Duration::from_millis(120),
            "{:?}",
            began.elapsed()
        );
    }

    #[tokio::test]
    async fn a_proxy_that_is_dropped_resets_its_connections() {
        let proxy = echo().await;
        let mut open = TcpStream::connect(proxy.address).await.unwrap();
        say(&mut open).await.unwrap();
        drop(proxy);
        let end = tokio::time::timeout(BOUND, open.read_u8()).await.unwrap();
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset);
    }
}

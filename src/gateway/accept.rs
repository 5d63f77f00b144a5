//! The one acceptor: counts connections, refuses those beyond the caps, and hands the others to the least loaded
//! worker.
//!
//! One listener with a hand-over is deliberate: a port that is taken is noticed at once (`SO_REUSEPORT` would share
//! it silently), workers are loaded evenly, and the socket can be handed to a successor.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::time::Duration;
use std::time::Instant;

use tokio::sync::mpsc;

use super::client_addr::TrustedProxies;
use super::client_addr::counted;
use super::config::Config;
use super::reserve::Lent;
use super::reserve::Reserve;
use super::reserve::is_out_of_files;
use crate::shutdown::Shutdown;
use crate::telemetry::Metrics;
use crate::telemetry::ReasonLabels;

/// How long accepting pauses when the process is out of memory, or of file descriptors and of spare ones: long enough not
/// to spin, short enough that nobody in the backlog gives up.
const PAUSE: Duration = Duration::from_millis(100);
/// Descriptors held back for the time when there are no others.
const SPARE: usize = 8;
/// How often it is said at most that accepting fails.
const SAY_EVERY: Duration = Duration::from_secs(10);

/// A connection on its way to a worker.
#[derive(Debug)]
pub(crate) struct Accepted {
    pub(crate) stream: TcpStream,
    pub(crate) peer: IpAddr,
    pub(crate) permit: Permit,
    /// There was no descriptor for it but a spare one: it is told so, or how we are, and closed.
    pub(crate) spare: Option<Lent>,
}

/// One worker as the acceptor sees it.
#[derive(Debug)]
pub(crate) struct Lane {
    pub(crate) connections: mpsc::Sender<Accepted>,
    /// Open connections of this worker.
    pub(crate) load: Arc<AtomicUsize>,
}

/// The counts behind the caps.
#[derive(Debug)]
pub(crate) struct Caps {
    max_total: usize,
    max_per_client: usize,
    total: AtomicUsize,
    per_client: Mutex<HashMap<IpAddr, usize>>,
    metrics: Arc<Metrics>,
}

/// Why a connection is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    Total,
    PerClient,
    Workers,
}

impl Refusal {
    fn label(self) -> &'static str {
        match self {
            Self::Total => "max_connections",
            Self::PerClient => "max_connections_per_ip",
            Self::Workers => "workers_busy",
        }
    }
}

/// A place among all connections, given back when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    caps: Arc<Caps>,
    client: Option<IpAddr>,
    load: Arc<AtomicUsize>,
}

impl Caps {
    pub(crate) fn new(config: &Config, metrics: Arc<Metrics>) -> Arc<Self> {
        Arc::new(Self {
            max_total: config.max_connections,
            max_per_client: config.max_connections_per_ip,
            total: AtomicUsize::new(0),
            per_client: Mutex::new(HashMap::new()),
            metrics,
        })
    }

    /// Counts a connection; `client` is `None` for a trusted proxy, which speaks for many.
    fn admit(self: &Arc<Self>, client: Option<IpAddr>, load: &Arc<AtomicUsize>) -> Result<Permit, Refusal> {
        // Only the one acceptor adds, so the check cannot be overtaken.
        if self.total.load(Ordering::Relaxed) >= self.max_total {
            return Err(Refusal::Total);
        }
        if let Some(client) = client {
            let mut counts = self.per_client.lock().unwrap_or_else(PoisonError::into_inner);
            let count = counts.entry(client).or_default();
            if *count >= self.max_per_client {
                return Err(Refusal::PerClient);
            }
            *count += 1;
        }
        Ok(self.count(client, load))
    }

    /// Counts a connection, whatever the caps say.
    fn count(self: &Arc<Self>, client: Option<IpAddr>, load: &Arc<AtomicUsize>) -> Permit {
        self.total.fetch_add(1, Ordering::Relaxed);
        self.metrics.connections.inc();
        load.fetch_add(1, Ordering::Relaxed);
        Permit { caps: Arc::clone(self), client, load: Arc::clone(load) }
    }

    fn refused(&self, refusal: Refusal) {
        self.metrics.connections_refused.get_or_create(&ReasonLabels { reason: refusal.label() }).inc();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.load.fetch_sub(1, Ordering::Relaxed);
        self.caps.metrics.connections.dec();
        self.caps.total.fetch_sub(1, Ordering::Relaxed);
        let Some(client) = self.client else { return };
        let mut counts = self.caps.per_client.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&client);
            }
        }
    }
}

/// Accepts until nobody new is let in, then closes its handle of the listener.
pub(crate) async fn accept(
    listener: TcpListener,
    lanes: Vec<Lane>,
    caps: Arc<Caps>,
    trusted: TrustedProxies,
    shutdown: &Shutdown,
) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    // The same socket, for an accept without a look at the runtime: with a spare descriptor there is no time for one.
    let at_once = listener.try_clone()?;
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut acceptor = Acceptor { lanes, caps, trusted, next: 0 };
    let (reserve, mut said) = (Reserve::new(SPARE), None::<Instant>);
    loop {
        let outcome = tokio::select! {
            biased;
            () = shutdown.left() => return Ok(()),
            outcome = listener.accept() => {
                // The worker's event loop takes the stream over, so this one must let go of it.
                outcome.and_then(|(stream, address)| Ok((stream.into_std()?, address)))
            }
        };
        let error = match outcome {
            Ok((stream, address)) => {
                reserve.refill();
                acceptor.take(stream, address, None);
                continue;
            }
            Err(error) if concerns_one_connection(&error) => continue,
            Err(error) => error,
        };
        let lent = if is_out_of_files(&error) { reserve.lend() } else { None };
        let spared = lent.map(|lent| (at_once.accept(), lent));
        // Without descriptors accepting fails before it is known whether somebody is there.
        let is_quiet = matches!(&spared, Some((Err(error), _)) if error.kind() == io::ErrorKind::WouldBlock);
        if !is_quiet && said.is_none_or(|said| said.elapsed() >= SAY_EVERY) {
            said = Some(Instant::now());
            tracing::error!(%error, "accept connections; pausing until it works again");
        }
        if let Some((Ok((stream, address)), lent)) = spared
            && stream.set_nonblocking(true).is_ok()
        {
            acceptor.take(stream, address, Some(lent));
            continue;
        }
        tokio::select! {
            () = shutdown.left() => return Ok(()),
            () = tokio::time::sleep(PAUSE) => reserve.refill(),
        }
    }
}

/// The connection failed before it was accepted (accept(2) reports such errors); the next one may be fine.
fn concerns_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::TimedOut
            | io::ErrorKind::HostUnreachable
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::NetworkDown
    )
}

struct Acceptor {
    lanes: Vec<Lane>,
    caps: Arc<Caps>,
    trusted: TrustedProxies,
    /// Where the search for the least loaded worker starts, so that equals take turns.
    next: usize,
}

impl Acceptor {
    fn take(&mut self, stream: TcpStream, address: SocketAddr, spare: Option<Lent>) {
        let peer = address.ip().to_canonical();
        let client = (!self.trusted.contains(peer)).then(|| counted(peer));
        if let Err(refusal) = self.hand_over(stream, peer, client, spare) {
            self.caps.refused(refusal);
        }
    }

    fn hand_over(
        &mut self,
        stream: TcpStream,
        peer: IpAddr,
        client: Option<IpAddr>,
        spare: Option<Lent>,
    ) -> Result<(), Refusal> {
        let count = self.lanes.len();
        self.next = self.next.wrapping_add(1);
        let lane = (0..count)
            .filter_map(|offset| self.lanes.get((self.next % count + offset) % count))
            .filter(|lane| lane.connections.capacity() > 0)
            .min_by_key(|lane| lane.load.load(Ordering::Relaxed))
            .ok_or(Refusal::Workers)?;
        // There are few spare ones, and they are there for whoever asks how we are.
        let permit =
            if spare.is_some() { self.caps.count(None, &lane.load) } else { self.caps.admit(client, &lane.load)? };
        lane.connections.try_send(Accepted { stream, peer, permit, spare }).map_err(|_| Refusal::Workers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::gateway::config::tests::defaults;

    fn caps(total: usize, per_client: usize) -> Arc<Caps> {
        let config = Config { max_connections: total, max_connections_per_ip: per_client, ..defaults() };
        Caps::new(&config, Metrics::new())
    }

    #[test]
    fn places_are_given_back_and_caps_hold() {
        let caps = caps(3, 2);
        let load = Arc::new(AtomicUsize::new(0));
        let ip = |text: &str| Some(text.parse().unwrap());
        let first = caps.admit(ip("192.0.2.1"), &load).unwrap();
        let second = caps.admit(ip("192.0.2.1"), &load).unwrap();
        assert_eq!(caps.admit(ip("192.0.2.1"), &load).unwrap_err(), Refusal::PerClient);
        let third = caps.admit(ip("192.0.2.2"), &load).unwrap();
        assert_eq!(caps.admit(ip("192.0.2.3"), &load).unwrap_err(), Refusal::Total);
        assert_eq!(load.load(Ordering::Relaxed), 3);
        drop((first, third));
        let _again = caps.admit(ip("192.0.2.1"), &load).unwrap();
        drop(second);
        assert_eq!(load.load(Ordering::Relaxed), 1);
        assert_eq!(caps.per_client.lock().unwrap().len(), 1, "no entry stays for a client without connections");
    }

    #[test]
    fn trusted_proxies_count_only_towards_the_total() {
        let caps = caps(5, 1);
        let load = Arc::new(AtomicUsize::new(0));
        let permits: Vec<Permit> = (0..5).map(|_| caps.admit(None, &load).unwrap()).collect();
        assert_eq!(caps.admit(None, &load).unwrap_err(), Refusal::Total);
        drop(permits);
    }
}

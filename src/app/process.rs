//! The process around the server: what it inherits, the signals it hears, and how it ends or becomes the next one.

use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use anyhow::anyhow;
use tokio::signal::unix::Signal;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tokio::task::JoinHandle;

use super::Folders;
use crate::config;
use crate::config::Config;
use crate::gateway;
use crate::reload;
use crate::reload::Handover;
use crate::reload::Inherited;
use crate::reload::Origin;
use crate::reload::Reloads;
use crate::shutdown::Shutdown;
use crate::supervisor;
use crate::telemetry;

/// How long connections are still served after the last one was accepted, so that whoever speaks on them is told to
/// connect anew instead of being cut.
const LINGER: Duration = Duration::from_millis(300);
/// What the end of a runtime may take.
const LAST_TASKS: Duration = Duration::from_secs(5);

/// How a run ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// With everything stopped.
    Stopped,
    /// With another run.
    Reload,
}

/// Runs the server until it is told to stop, or to give way to the program that stands in its place by then.
pub fn serve(config: Config) -> anyhow::Result<()> {
    let inherited = Inherited::take(&config.origin).context("take over what was handed over")?;
    // From here on there may be a program to go back to, whatever fails.
    let back = way_back(&inherited, &config.origin).context("keep the way back")?;
    let mut signals = None;
    match prepare(config, inherited, &mut signals) {
        Ok(ready) => {
            drop(back);
            ready.run(signals.context("hear signals")?)
        }
        Err(error) => {
            let Some(back) = back else { return Err(error) };
            reload::hold_signals(true).context("hold signals back")?;
            signals.map_or(Ok(()), |mut signals: Signals| signals.keep())?;
            let error =
                anyhow!(take_back(back, &error)).context(format!("go back to the program before, because {error:#}"));
            Err(error)
        }
    }
}

/// Executes the program before. Returns only when that does not work.
fn take_back(back: Handover, error: &anyhow::Error) -> std::io::Error {
    let reason = format!("{error:#}");
    tracing::error!(error = reason, "this program does not start; going back to the one before");
    back.go_back(reason)
}

/// What goes back to the program before, if there is one, by descriptors of its own.
fn way_back(inherited: &Inherited, origin: &Origin) -> std::io::Result<Option<Handover>> {
    let Inherited { listener: Some(listener), lock: Some(lock), previous: Some(previous), .. } = inherited else {
        return Ok(None);
    };
    let started = inherited.started.as_ref().unwrap_or(origin).clone();
    let handover = Handover::of(listener, lock.try_clone()?, started, Some(previous.try_clone()?))?;
    Ok(Some(handover.in_generation(&inherited.generation)))
}

/// Everything that a run begins with.
struct Ready {
    config: Config,
    folders: Folders,
    listener: TcpListener,
    handover: Handover,
    runtime: tokio::runtime::Runtime,
}

fn prepare(mut config: Config, inherited: Inherited, signals: &mut Option<Signals>) -> anyhow::Result<Ready> {
    telemetry::install(&config.log)?;
    // What the run before held back comes through once somebody listens for it.
    *signals = Some(Signals::install()?);
    reload::hold_signals(false).context("hear signals")?;
    let Inherited { listener, lock, previous, started, generation } = inherited;
    if lock.is_some() {
        supervisor::process::reap_leftovers();
    }
    if let Some(started) = started {
        config.origin = started;
    }
    supervisor::process::raise_file_limit();
    supervisor::process::forbid_dumps();
    let folders = Folders::make(&config.storage.path)?;
    let lock = match lock {
        Some(lock) => lock,
        None => folders.lock()?,
    };
    let listener = match listener {
        Some(listener) => given(listener, config.server.listen)?,
        None => bind(config.server.listen)?,
    };
    let handover = Handover::of(&listener, lock, config.origin.clone(), previous).context("keep the listener")?;
    let handover = handover.in_generation(&generation);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .thread_name("control")
        .enable_all()
        .build()
        .context("build the control runtime")?;
    Ok(Ready { config, folders, listener, handover, runtime })
}

impl Ready {
    fn run(self, mut signals: Signals) -> anyhow::Result<()> {
        let Self { config, folders, listener, mut handover, runtime } = self;
        let outcome = runtime.block_on(Box::pin(super::run(config, &folders, listener, &mut signals, &mut handover)));
        if matches!(outcome, Ok(End::Stopped)) {
            runtime.shutdown_timeout(LAST_TASKS);
            return Ok(());
        }
        if outcome.is_err() && !handover.can_go_back() {
            runtime.shutdown_timeout(LAST_TASKS);
            return outcome.map(drop);
        }
        reload::hold_signals(true).context("hold signals back")?;
        runtime.shutdown_timeout(LAST_TASKS);
        signals.keep()?;
        let error = match outcome {
            Ok(_) => handover.pass_on(),
            Err(error) => take_back(handover, &error),
        };
        Err(anyhow!(error).context("execute the program"))
    }
}

/// Where there is not even a configuration to run with: goes back to the program before, if there is one.
pub fn cannot_start(origin: &Origin, error: config::Error) -> anyhow::Error {
    let back = Inherited::take(origin).and_then(|inherited| match way_back(&inherited, origin)? {
        Some(back) => Err(back.go_back(error.to_string())),
        None => Ok(()),
    });
    match back {
        Ok(()) => error.into(),
        Err(failed) => anyhow!(failed).context(format!("go back to the program before, because {error}")),
    }
}

/// A socket that somebody else bound. What the configuration says of the address takes effect at the next start.
fn given(listener: TcpListener, configured: SocketAddr) -> anyhow::Result<TcpListener> {
    let listen = listener.local_addr().context("ask the inherited socket for its address")?;
    if configured.port() != 0 && configured != listen {
        tracing::warn!(%listen, %configured, "server.listen is not the address of the inherited socket, which is kept");
    }
    Ok(listener)
}

fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(address).map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => {
            anyhow!("{address} is in use by another program; stop it, or choose another address with --listen")
        }
        std::io::ErrorKind::PermissionDenied => {
            anyhow!("not allowed to listen on {address}; ports below 1024 need CAP_NET_BIND_SERVICE")
        }
        _ => anyhow!("listen on {address}: {error}"),
    })?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Lets nobody new in, and serves who is there for a moment. New connections wait in the kernel for the next run.
pub(super) async fn take_leave(shutdown: &Shutdown) {
    shutdown.leave();
    tokio::time::sleep(LINGER).await;
}

/// SIGINT, SIGTERM and SIGUSR2, from before anything is started.
pub(super) struct Signals {
    interrupt: Signal,
    terminate: Signal,
    reload: Signal,
}

impl Signals {
    fn install() -> anyhow::Result<Self> {
        // The handlers outlive this runtime; what arrives is passed on by whichever runs next.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("build a runtime")?;
        let _inside = runtime.enter();
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            reload: signal(SignalKind::user_defined2())?,
        })
    }

    /// Resolves when the server is to stop.
    pub(super) async fn stop(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    /// Waits for whatever ends this run. Told to reload by a signal, it asks whether that can be.
    pub(super) async fn end(
        &mut self,
        front: &mut JoinHandle<Result<(), gateway::Error>>,
        reloads: &Reloads,
        shutdown: &Shutdown,
    ) -> (End, Option<Result<Result<(), gateway::Error>, tokio::task::JoinError>>) {
        loop {
            tokio::select! {
                _ = self.interrupt.recv() => return (End::Stopped, None),
                _ = self.terminate.recv() => return (End::Stopped, None),
                ended = &mut *front => return (End::Stopped, Some(ended)),
                () = reloads.agreed() => return (End::Reload, None),
                _ = self.reload.recv() => {
                    let (reloads, ended) = (reloads.clone(), shutdown.token());
                    shutdown.spawn(async move {
                        let asked = tokio::select! {
                            asked = reloads.ask() => asked,
                            () = ended.cancelled() => return,
                        };
                        if let Err(refused) = asked {
                            tracing::warn!(reason = %refused, "not reloaded");
                        }
                    });
                }
            }
        }
    }

    /// Has a wish to stop that came too late for this run reach the next one, in which signals are held back now.
    fn keep(&mut self) -> anyhow::Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("build a runtime")?;
        let heard = runtime.block_on(async { tokio::time::timeout(Duration::from_millis(1), self.stop()).await });
        if heard.is_ok() { reload::stop_later().context("keep a wish to stop") } else { Ok(()) }
    }
}

/// Whole or not at all: scripts wait for this file.
pub(super) fn note_address(folder: &Path, listen: SocketAddr) -> std::io::Result<()> {
    let fresh = folder.join("address.new");
    std::fs::write(&fresh, listen.to_string())?;
    std::fs::rename(fresh, folder.join("address"))
}

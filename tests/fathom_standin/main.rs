//! A stand-in for Fathom's API, after its published `OpenAPI` document: for tests, demonstrations and development.
//!
//! Everything the document says is kept to: fixed pages of 10, filters, limits with their headers, downloads that take
//! their time, signed media with ranges, OAuth with rotating tokens, webhooks with signed deliveries. A control API beside it
//! (`/_control/…`) adds meetings, fires webhooks, counts calls, and makes single calls fail in chosen ways.
#![expect(clippy::print_stdout, reason = "the one line that says where it listens")]

mod api;
mod content;
mod control;
mod downloads;
mod faults;
mod hooks;
mod media;
mod oauth;
mod world;

use std::convert::Infallible;
use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;

use clap::Parser;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use hyper_util::rt::TokioTimer;
use tokio::net::TcpListener;
use tokio::signal::unix::SignalKind;
use tokio::signal::unix::signal;
use tower::ServiceExt;

use world::Settings;
use world::World;

/// A stand-in for Fathom's API.
#[derive(Debug, Parser)]
#[command(name = "fathom-standin", version)]
struct Arguments {
    /// Where to listen; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// Meetings of a key that does not say otherwise.
    #[arg(long, default_value_t = 27)]
    meetings: usize,
    /// Bytes of each recording.
    #[arg(long, default_value_t = 2_000_000)]
    media_bytes: u64,
    /// A key, or a key and its number of meetings as KEY=N. May be repeated.
    #[arg(long = "key", default_value = "fathom-demo-key")]
    keys: Vec<String>,
    /// Calls a minute and key.
    #[arg(long, default_value_t = 60)]
    calls_per_minute: usize,
    /// Heavy calls a minute and key.
    #[arg(long, default_value_t = 30)]
    heavy_per_minute: usize,
    /// Requests of downloads a minute and key.
    #[arg(long, default_value_t = 30)]
    downloads_per_minute: usize,
    /// How often a download is asked about before it is completed.
    #[arg(long, default_value_t = 2)]
    download_polls: u32,
    /// How long a download takes at least, in milliseconds.
    #[arg(long, default_value_t = 0)]
    download_ms: u64,
    /// Bytes a second of each recording that is fetched; 0 = as fast as it goes.
    #[arg(long, default_value_t = 0)]
    media_rate: u64,
    /// Ends when its standard input does.
    #[arg(long)]
    with_parent: bool,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let listener = TcpListener::bind(arguments.listen).await?;
    let base = format!("http://{}", listener.local_addr()?);
    let settings = Settings {
        calls_per_minute: arguments.calls_per_minute,
        heavy_per_minute: arguments.heavy_per_minute,
        downloads_per_minute: arguments.downloads_per_minute,
        download_polls: arguments.download_polls,
        download_ms: arguments.download_ms,
        media_bytes: arguments.media_bytes,
        media_rate: arguments.media_rate,
        ..Settings::default()
    };
    let world = Arc::new(World::new(base.clone(), settings)?);
    for key in &arguments.keys {
        let (key, meetings) = match key.split_once('=') {
            Some((key, meetings)) => (key, meetings.parse()?),
            None => (key.as_str(), arguments.meetings),
        };
        world.add_key(key, meetings);
    }
    println!("fathom-standin listens on {base}");
    std::io::stdout().flush()?;
    let router = api::router(Arc::clone(&world));
    tokio::select! {
        () = serve(&listener, router) => {}
        result = end(arguments.with_parent) => result?,
    }
    Ok(())
}

/// Resolves when the program is to end.
async fn end(with_parent: bool) -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let (gone, parent_gone) = tokio::sync::oneshot::channel::<()>();
    // Its end drops `gone`. A thread of its own, because a read cannot be given up.
    let held = if with_parent {
        std::thread::spawn(move || {
            drop(std::io::copy(&mut std::io::stdin(), &mut std::io::sink()));
            drop(gone);
        });
        None
    } else {
        Some(gone)
    };
    tokio::select! {
        _ = terminate.recv() => {}
        result = tokio::signal::ctrl_c() => result?,
        _ = parent_gone => {}
    }
    drop(held);
    Ok(())
}

async fn serve(listener: &TcpListener, router: axum::Router) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            tokio::task::yield_now().await;
            continue;
        };
        let router = router.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: hyper::Request<hyper::body::Incoming>| {
                let router = router.clone();
                async move {
                    let answer = router.oneshot(request.map(axum::body::Body::new)).await;
                    Ok::<_, Infallible>(answer.unwrap_or_default())
                }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            // A client that breaks off is none of our business.
            drop(server.timer(TokioTimer::new()).serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

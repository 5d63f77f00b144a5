//! The plainest axum broadcaster: a task for each socket, one channel, one shared text.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::extract::WebSocketUpgrade;
use axum::extract::ws::Message;
use axum::extract::ws::Utf8Bytes;
use axum::response::Response;
use axum::routing::get;
use axum::routing::post;
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Serves for ever.
pub(crate) fn serve(address: SocketAddr) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let (sender, _) = broadcast::channel::<Utf8Bytes>(1_024);
        let router = Router::new().route("/ws", get(listen)).route("/publish", post(publish)).with_state(sender);
        let listener = tokio::net::TcpListener::bind(address).await.unwrap();
        axum::serve(listener, router).await.unwrap();
    });
}

async fn publish(State(sender): State<broadcast::Sender<Utf8Bytes>>, body: String) -> &'static str {
    // Nobody may be listening.
    let _ = sender.send(body.into());
    "ok"
}

async fn listen(State(sender): State<broadcast::Sender<Utf8Bytes>>, upgrade: WebSocketUpgrade) -> Response {
    let mut messages = sender.subscribe();
    upgrade.read_buffer_size(4_096).on_upgrade(async move |mut socket| {
        loop {
            tokio::select! {
                message = messages.recv() => match message {
                    Ok(text) => if socket.send(Message::Text(text)).await.is_err() { return },
                    Err(RecvError::Lagged(_) | RecvError::Closed) => return,
                },
                message = socket.recv() => if !matches!(message, Some(Ok(_))) { return },
            }
        }
    })
}

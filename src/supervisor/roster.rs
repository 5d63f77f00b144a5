//! Keeping the rows of those who may act in an instance in step with who they are: before it starts, and while it runs.
//!
//! Before a start the rows are compared and written if they differ, so that what changed while the instance slept (a
//! member more or less, a role, a name, an address) counts from its first request on. While it runs the same is done to
//! its file, which it does not cache; the keys that tokens are minted from are exchanged, and then each row is saved
//! once more through the instance's own API without a change, so that whoever is subscribed to `users` hears of it.
//!
//! Limits: subscribers hear of a newcomer as of an update. A failure to write is logged, and the instance goes on with
//! the rows it has: who is let in is decided in front of it, request by request.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::AUTHORIZATION;
use hyper::header::CONNECTION;
use hyper::header::CONTENT_TYPE;
use hyper::header::HOST;
use hyper::header::HeaderValue;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::ids::TenantId;
use crate::pocketbase::database;
use crate::pocketbase::database::Owner;
use crate::pocketbase::database::Signers;
use crate::pocketbase::roster;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;
use crate::supervisor::config::Access;
use crate::supervisor::fleet::Fleet;
use crate::supervisor::slot::Running;

/// How long saving one row may take.
const TOUCH_PATIENCE: Duration = Duration::from_secs(2);

/// The row that a new personal instance is made with. The rows of a workspace follow at its first start.
pub(super) fn owner(fleet: &Fleet, tenant: &Tenant) -> Result<Option<Owner>, &'static str> {
    if tenant.id.is_global() {
        return Ok(None);
    }
    match (fleet.rosters.0)(tenant) {
        Access::Unknown => Err("the owner's account cannot be read"),
        Access::Own => Ok(None),
        Access::Roster(roster) if roster.is_shared => Ok(None),
        Access::Roster(roster) => Ok(roster.rows.into_iter().next().map(|row| row.account)),
    }
}

/// Brings the rows of an instance in step and reads its keys; the changed rows' ids come with them. Nobody's token is
/// ever minted for the global instance, or for one with users of its own, but the control superuser's. Blocks.
pub(super) fn keys(fleet: &Fleet, tenant: &TenantId) -> Result<(Signers, Vec<String>), database::Error> {
    let path = fleet.folder(tenant).join("pb_data").join("data.db");
    let nobody = || {
        Ok((
            Signers { superuser: database::superuser(&path)?, users: HashMap::new(), files: HashMap::new() },
            Vec::new(),
        ))
    };
    let as_it_is = || Ok((database::signers(&path)?, Vec::new()));
    if tenant.is_global() {
        return nobody();
    }
    let Some(record) = fleet.tenants.find(tenant) else { return as_it_is() };
    match (fleet.rosters.0)(&record) {
        Access::Own => nobody(),
        Access::Unknown => as_it_is(),
        Access::Roster(wanted) => roster::enroll(&path, &wanted).or_else(|error| {
            let (mut signers, none) = as_it_is()?;
            tracing::error!(tenant.id = %tenant, %error, "bring the rows of an instance's members in step");
            if wanted.is_shared {
                signers.users.retain(|user, _| wanted.rows.iter().any(|row| row.account.id == *user));
            }
            Ok((signers, none))
        }),
    }
}

/// Brings a running instance in step.
pub(super) async fn follow(fleet: &Arc<Fleet>, tenant: &TenantId, running: &Arc<Running>) {
    let (of, id) = (Arc::clone(fleet), tenant.clone());
    let changed = match tokio::task::spawn_blocking(move || keys(&of, &id)).await {
        Ok(Ok((signers, changed))) => {
            running.renew(signers);
            changed
        }
        Ok(Err(error)) => return tracing::error!(tenant.id = %tenant, %error, "read the keys of a running instance"),
        Err(error) => return tracing::error!(tenant.id = %tenant, %error, "bring a running instance in step"),
    };
    let is_workspace = fleet.tenants.find(tenant).is_some_and(|tenant| tenant.kind == Kind::Workspace);
    if changed.is_empty() || !is_workspace {
        return;
    }
    // Nobody waits for the events, and the instance may go down meanwhile.
    let (running, stopping) = (Arc::clone(running), fleet.stopping.clone());
    fleet.tasks.spawn_on(
        async move {
            for id in changed {
                let touched = touch(running.address, running.superuser_token(), &id);
                let touched = tokio::select! {
                    touched = tokio::time::timeout(TOUCH_PATIENCE, touched) => touched,
                    () = stopping.cancelled() => return,
                };
                if !matches!(touched, Ok(Some(()))) {
                    tracing::debug!("a member's row could not be announced to subscribers");
                }
            }
        },
        &fleet.runtime,
    );
}

/// Saves a row as it is.
async fn touch(address: SocketAddr, authorization: HeaderValue, id: &str) -> Option<()> {
    let stream = TcpStream::connect(address).await.ok()?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.ok()?;
    let request = Request::patch(format!("/api/collections/{}/records/{id}", database::USERS))
        .header(HOST, address.to_string())
        .header(AUTHORIZATION, authorization)
        .header(CONTENT_TYPE, "application/json")
        .header(CONNECTION, "close")
        .body(Full::new(Bytes::from_static(b"{}")))
        .ok()?;
    let exchange = async { sender.send_request(request).await.ok().filter(|answer| answer.status().is_success()) };
    tokio::pin!(exchange, connection);
    // The connection is driven here and not by a task of its own: dropping this future closes it.
    let answer = tokio::select! {
        biased;
        answer = &mut exchange => answer,
        _ = &mut connection => exchange.await,
    };
    answer.map(drop)
}

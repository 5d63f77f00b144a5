//! The composition root: from a configuration to a running server, and down again in order.
//!
//! Start: data directory and its lock, listener, control database, `PocketBase` and templates, adoption, the global
//! instance, the queue, the gateway, the control socket. Stop: no new connections, requests drain, jobs stop, tenants stop, the global
//! instance stops, the control database closes.

mod delivery;
mod isolation;
mod meetings;
mod pool;
mod process;
pub mod services;

use std::collections::HashMap;
use std::fs::File;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::os::fd::AsFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::anyhow;
use rustix::fs::FlockOperation;
use time::OffsetDateTime;
use tokio::sync::broadcast::error::RecvError;

use crate::api;
use crate::api::About;
use crate::api::AccountBodies;
use crate::api::Addresses;
use crate::api::AppState;
use crate::api::Limits;
use crate::api::control_socket;
use crate::api::control_socket::ControlSocket;
use crate::api::oauth2_redirect::Deliver;
use crate::app::process::End;
use crate::app::process::Signals;
use crate::app::services::Ended;
use crate::app::services::Given;
use crate::auth::Verifier;
use crate::auth::accounts;
use crate::auth::accounts::Accounts;
use crate::config::Config;
use crate::gateway;
use crate::gateway::Dashboards;
use crate::gateway::Gateway;
use crate::ids::TenantId;
use crate::ids::UserId;
use crate::pocketbase::database::Owner;
use crate::pocketbase::roster::Roster;
use crate::pocketbase::roster::Row;
use crate::realtime;
use crate::realtime::Hub;
use crate::records::Settle;
use crate::reload::Handover;
use crate::reload::Reloads;
use crate::shutdown::Shutdown;
use crate::spares::Spares;
use crate::store;
use crate::store::Store;
use crate::store::invitations::Invitations;
use crate::store::members::Members;
use crate::store::placements::Placements;
use crate::store::sessions::Sessions;
use crate::store::slugs::Slugs;
use crate::store::sqlite::ControlDatabase;
use crate::store::tenants::Identity;
use crate::store::tenants::Kind;
use crate::store::tenants::Tenant;
use crate::store::tenants::Tenants;
use crate::store::uids::Uids;
use crate::store::versions::Versions;
use crate::supervisor;
use crate::supervisor::Supervisor;
use crate::supervisor::binary;
use crate::supervisor::config::Access;
use crate::supervisor::config::Binaries;
use crate::supervisor::config::Layout;
use crate::supervisor::config::Rosters;
use crate::supervisor::jail::Isolation;
use crate::supervisor::template::Locations;
use crate::supervisor::template::Templates;
use crate::telemetry::Metrics;
use crate::tenancy;
use crate::tenancy::Tenancy;
use crate::vault;

pub use self::process::cannot_start;
pub use self::process::serve;

/// What each part of the way down gets beyond its own limits.
const GRACE: Duration = Duration::from_secs(5);

/// The folders of a data directory.
#[derive(Debug)]
struct Folders {
    root: PathBuf,
    is_new: bool,
}

impl Folders {
    fn make(root: &Path) -> anyhow::Result<Self> {
        anyhow::ensure!(
            !root.join(crate::backup::fleet::RESTORING).exists(),
            "a restore of the fleet into {} was interrupted; run `pocketfleet backup restore-fleet` again",
            root.display()
        );
        let is_new = !root.join("control.db").exists();
        for folder in ["", "run", "golden", "staging", "empty", "instances", "deleted"] {
            let path = root.join(folder);
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&path)
                .with_context(|| format!("make the folder {}", path.display()))?;
        }
        Ok(Self { root: root.to_owned(), is_new })
    }

    fn at(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Takes the data directory for this process, as long as the file stays open.
    fn lock(&self) -> anyhow::Result<File> {
        let path = self.at("lock");
        let file = File::options().create(true).truncate(false).write(true).open(&path)?;
        rustix::fs::flock(file.as_fd(), FlockOperation::NonBlockingLockExclusive).map_err(|_| {
            anyhow!(
                "the data directory {} is in use by another pocketfleet; stop that one, or choose another with --data",
                self.root.display()
            )
        })?;
        Ok(file)
    }
}

/// What runs, in the order in which it is stopped.
struct Running {
    shutdown: Shutdown,
    supervisor: Supervisor,
    database: Arc<ControlDatabase>,
    accounts: Accounts,
    spares: Spares,
    gateway: Gateway,
    state: AppState,
}

async fn run(
    config: Config,
    folders: &Folders,
    listener: TcpListener,
    signals: &mut Signals,
    handover: &mut Handover,
) -> anyhow::Result<End> {
    let begun = Instant::now();
    let listen = listener.local_addr()?;
    let reloads = Reloads::new(config.origin.clone(), handover.generation().clone(), folders.at("run"));
    let is_first = handover.generation().number == 0;
    let running = tokio::select! {
        running = Box::pin(build(&config, folders, listen, reloads.clone())) => running?,
        // What is under way are bakes, which are stopped by dropping them. After a reload there are instances to be
        // stopped, which have to be adopted first.
        () = signals.stop(), if is_first => return Ok(End::Stopped),
    };
    let Running { shutdown, supervisor, database, accounts, spares, gateway, state } = running;
    let events = state.services.events.clone();
    let socket =
        ControlSocket::bind(&control_socket::path_in(&folders.root)).await.context("bind the control socket")?;
    supervisor.adopt().await;
    spares.settle().await;
    state.services.records.begin();
    let queue = state.services.queue.clone();
    queue.start().await.context("start the queue")?;
    let mut front = tokio::spawn(gateway.run(listener, shutdown.clone()));
    let (lifecycle, quotas) = (state.lifecycle.clone(), state.quotas.clone());
    let (audit, vault_made) = (state.services.audit.clone(), state.services.vault.made().map(Path::to_owned));
    let control = tokio::spawn(socket.serve(api::control::router(state), shutdown.clone()));
    supervisor.wake_pinned();
    if let Err(error) = process::note_address(&folders.at("run"), listen) {
        tracing::warn!(%error, "note the address in run/address");
    }
    say_listening(handover, folders, listen, begun);
    shutdown.spawn(lifecycle.run(shutdown.clone()));
    shutdown.spawn(accounts.clone().configure(shutdown.clone()));
    pool::run(spares, quotas, &shutdown);
    shutdown.spawn(first_admin(config.auth.clone(), accounts, supervisor.clone()));
    if is_first {
        welcome(&config, folders, listen, vault_made.as_deref());
    }

    let (end, ended) = signals.end(&mut front, &reloads, &shutdown).await;
    match end {
        End::Stopped => tracing::info!("stopping: requests finish, then the instances, then the global instance"),
        End::Reload => {
            tracing::info!("reloading: requests finish, the instances go on");
            process::take_leave(&shutdown).await;
        }
    }
    shutdown.begin();
    // Whatever failed first is the answer; everything is stopped all the same.
    let mut outcome = Ok(());
    let bound = config.server.drain_timeout + GRACE;
    let ended = match ended {
        Some(ended) => Ok(ended),
        None => tokio::time::timeout(bound, front).await,
    };
    match ended {
        Ok(Ok(served)) => outcome = served.context("serve"),
        Ok(Err(error)) => outcome = Err(error).context("serve"),
        Err(_) => tracing::warn!("connections did not end in time"),
    }
    // Jobs work with instances, so they end first. What came of them is told before the tasks have finished.
    queue.stop().await;
    match end {
        End::Stopped => supervisor.stop(config.server.stop_timeout).await,
        End::Reload => supervisor.leave(config.server.stop_timeout).await,
    }
    if tokio::time::timeout(GRACE, shutdown.finished()).await.is_err() {
        tracing::warn!("background tasks did not end in time");
    }
    match tokio::time::timeout(GRACE, control).await {
        Ok(Ok(served)) => outcome = outcome.and(served.context("serve the control socket")),
        Ok(Err(error)) => outcome = outcome.and(Err(error).context("serve the control socket")),
        Err(_) => tracing::warn!("the control socket did not close in time"),
    }
    // After everybody who could still have something to write down.
    audit.close().await;
    // What the last tasks had to tell is logged too.
    events.close().await;
    database.close().await;
    if end == End::Reload {
        // The next run serves what this one could not end in order.
        if let Err(error) = outcome {
            tracing::error!(error = format!("{error:#}"), "while giving way");
        }
        return Ok(end);
    }
    tracing::info!("stopped");
    outcome.map(|()| end)
}

/// From here on this run serves, and the one before it has ended.
fn say_listening(handover: &mut Handover, folders: &Folders, listen: SocketAddr, begun: Instant) {
    handover.settled();
    let generation = handover.generation();
    tracing::info!(listen = %listen, data = %folders.root.display(), duration_ms = begun.elapsed().as_millis(), generation = generation.number, "listening");
    if let Some(reason) = &generation.refused {
        tracing::error!(%reason, "a reload was taken back");
    }
}

#[expect(clippy::too_many_lines, reason = "one list: what is built on what, in order")]
async fn build(config: &Config, folders: &Folders, listen: SocketAddr, reloads: Reloads) -> anyhow::Result<Running> {
    let shutdown = Shutdown::new();
    let metrics = Metrics::new();
    let database = Arc::new(ControlDatabase::open(&folders.at("control.db")).context("open the control database")?);
    let store: Arc<dyn Store> = Arc::clone(&database) as Arc<dyn Store>;
    // Before anything is written: with a wrong master key this start changes nothing.
    let unlocked = vault::unlock(&config.vault, &folders.root, Arc::clone(&store)).await.context("open the vault")?;
    if let Some(made) = unlocked.made() {
        tracing::info!(file = %made.display(), "made the master key of the vault; without this file stored secrets cannot be read");
    }
    let binaries = find_pocketbase(config, folders).await?;
    let tenants = Tenants::open(Arc::clone(&store)).await?;
    let uids = Uids::open(Arc::clone(&store)).await?;
    let kept_ids = store::spares::Spares::open(Arc::clone(&store)).await?;
    let isolation = isolation::reach(config, &folders.root, &binaries, &uids)?;
    let templates = bake(config, folders, &binaries, &isolation).await?;
    let incarnation = incarnation();
    let placements = Placements::open(Arc::clone(&store), incarnation.clone()).await?;
    let versions = Versions::open(Arc::clone(&store)).await?;
    let sessions = Sessions::open(Arc::clone(&store)).await?;
    tenants.create_or_find(global_tenant()).await?;

    let global_db = pool::accounts_in(&folders.root);
    let tenancy = open_tenancy(config, &store, &tenants).await?;
    let (verifier, keeper) = Verifier::new(&config.auth, global_db, sessions.clone());
    shutdown.spawn(keeper.run(shutdown.clone()));
    let (rostered, accounts) = (tenancy.clone(), verifier.clone());
    let rosters = Rosters(Arc::new(move |tenant| roster(&rostered, &accounts, tenant)));
    let supervisor = Supervisor::new(supervisor::Parts {
        config: config.instances.clone(),
        layout: Layout {
            instances: folders.at("instances"),
            deleted: folders.at("deleted"),
            staging: folders.at("staging"),
            empty: folders.at("empty"),
        },
        binaries,
        templates,
        tenants: tenants.clone(),
        placements,
        rosters,
        versions,
        upgrade: config.pocketbase.upgrade,
        public_url: config.public_url(listen),
        isolation,
        spares: kept_ids.clone(),
        network_check: config.isolation.network_check,
        uids,
        global_outbound: accounts::config::outbound_ports(&config.mail, &config.accounts),
        metrics: Arc::clone(&metrics),
    });
    let spares = pool::open(config, (&folders.root, listen), kept_ids, &supervisor, &tenancy);
    let accounts = Accounts::new(
        &config.auth,
        accounts::Parts {
            supervisor: supervisor.clone(),
            verifier: verifier.clone(),
            sessions: sessions.clone(),
            tenancy: tenancy.clone(),
            spares: spares.clone(),
            metrics: Arc::clone(&metrics),
            shutdown: shutdown.clone(),
            operator: operator(config, listen),
        },
    )?;
    let hub = relay(config, &supervisor, &verifier, &tenancy, &metrics, &shutdown);
    shutdown.spawn(reconnect_upgraded(supervisor.clone(), hub.clone(), shutdown.clone()));
    let services = services::open(Given {
        config,
        data: &folders.root,
        store: Arc::clone(&store),
        unlocked,
        supervisor: supervisor.clone(),
        verifier: verifier.clone(),
        tenancy: tenancy.clone(),
        tenants: tenants.clone(),
        settle: settle(hub.clone()),
        incarnation,
        metrics: Arc::clone(&metrics),
        shutdown: shutdown.clone(),
    })
    .await?;
    let (quotas, sweep) =
        services::quotas(config, &folders.root, tenants.clone(), &supervisor, &services.events, Arc::clone(&metrics));
    shutdown.spawn(sweep.run(shutdown.clone()));
    let ended = Ended {
        config,
        store,
        tenants: tenants.clone(),
        accounts: accounts.clone(),
        supervisor: supervisor.clone(),
        tenancy: tenancy.clone(),
        shutdown: shutdown.clone(),
    };
    let lifecycle = services::lifecycle(ended, &services);
    let dashboards = Dashboards::new(config.server.dashboard, config.server.dashboard_ttl);
    let state = AppState::from(api::Parts {
        dashboards: dashboards.clone(),
        addresses: Addresses::new(&config.public_url(listen), &config.server.domain),
        accounts: accounts.clone(),
        verifier: verifier.clone(),
        supervisor: supervisor.clone(),
        tenancy: tenancy.clone(),
        services,
        quotas: quotas.clone(),
        lifecycle,
        tenants,
        sessions,
        metrics: Arc::clone(&metrics),
        shutdown: shutdown.clone(),
        limits: limits(config)?,
        account_bodies: AccountBodies::default(),
        about: Arc::new(About::new(listen.to_string())),
        reloads,
        oauth2: deliver(hub.clone()),
    });
    let router = api::router::router(state.clone());
    let parts = gateway::Parts {
        config: config.server.clone(),
        supervisor: supervisor.clone(),
        verifier,
        tenancy,
        hub,
        dashboards,
        quotas,
        metrics,
        slow_request: config.log.slow_request,
    };
    let gateway = Gateway::new(parts, router);
    Ok(Running { shutdown, supervisor, database, accounts, spares, gateway, state })
}

fn operator(config: &Config, listen: SocketAddr) -> accounts::Operator {
    accounts::Operator {
        mail: config.mail.clone(),
        accounts: config.accounts.clone(),
        public_url: config.public_url(listen).trim_end_matches('/').to_owned(),
    }
}

fn limits(config: &Config) -> anyhow::Result<Limits> {
    Ok(Limits {
        json: usize::try_from(config.server.max_json_bytes)?,
        account: usize::try_from(config.server.max_account_bytes)?,
    })
}

/// How our own writes to an instance wait until everybody who listens there is attached.
fn settle(hub: Hub) -> Settle {
    Arc::new(move |lease| {
        let hub = hub.clone();
        Box::pin(async move { hub.settle(lease).await })
    })
}

/// How the end of a sign-in in another window reaches the one that waits for it.
fn deliver(hub: Hub) -> Deliver {
    Deliver::new(move |ip, state, code, error| hub.oauth2(ip, state, code, error))
}

/// Ends the streams of instances that were upgraded: what clients know of them may not be true any more.
async fn reconnect_upgraded(supervisor: Supervisor, hub: Hub, shutdown: Shutdown) {
    let (mut upgrades, mut rewritten) = (supervisor.upgrades(), supervisor.rewritten_users());
    let ended = shutdown.token().clone();
    loop {
        let news = tokio::select! {
            news = upgrades.recv() => news,
            Ok(tenant) = rewritten.recv() => {
                hub.reset_users(&tenant);
                continue;
            }
            () = ended.cancelled() => return,
        };
        match news {
            Ok(tenant) => hub.reset(&tenant),
            Err(RecvError::Lagged(_)) => hub.reset_all(),
            Err(RecvError::Closed) => return,
        }
    }
}

/// The hub of event streams.
fn relay(
    config: &Config,
    supervisor: &Supervisor,
    verifier: &Verifier,
    tenancy: &Tenancy,
    metrics: &Arc<Metrics>,
    shutdown: &Shutdown,
) -> Hub {
    let open = |tenancy: &Tenancy, tenant: &TenantId| tenancy.resolve(tenant.as_str()).filter(|found| !found.suspended);
    let (members, visitors) = (tenancy.clone(), tenancy.clone());
    let admits = move |user: &UserId, tenant: &TenantId| {
        let tenant = open(&members, tenant).filter(|tenant| tenant.identity == Identity::Global);
        tenant.is_some_and(|tenant| members.role(&tenant, user).is_some())
    };
    let lets_in = move |tenant: &TenantId, has_token: bool, topics: &[String]| {
        let is_own = |tenant: &Tenant| has_token && tenant.identity == Identity::Own;
        open(&visitors, tenant).is_some_and(|tenant| is_own(&tenant) || Tenancy::are_public(&tenant, topics))
    };
    Hub::new(realtime::Parts {
        config: config.realtime.clone(),
        supervisor: supervisor.clone(),
        verifier: verifier.clone(),
        admits: Arc::new(admits),
        lets_in: Arc::new(lets_in),
        metrics: Arc::clone(metrics),
        shutdown: shutdown.clone(),
    })
}

/// The binaries, found and verified.
async fn find_pocketbase(config: &Config, folders: &Folders) -> anyhow::Result<Binaries> {
    let pocketbase = &config.pocketbase;
    let scratch = folders.at("staging");
    Ok(binary::verify_all(pocketbase.named(), &pocketbase.binaries, &config.search_path, &scratch).await?)
}

/// The templates, baked.
async fn bake(
    config: &Config,
    folders: &Folders,
    binaries: &Binaries,
    isolation: &Isolation,
) -> anyhow::Result<Templates> {
    let Some((newest, older)) = binaries.all().split_first() else { anyhow::bail!("no PocketBase binary") };
    let templates = Templates::open(&Locations {
        templates: config.templates(),
        golden: folders.at("golden"),
        staging: folders.at("staging"),
        binary: newest.path.clone(),
        version: newest.version.clone(),
        older: older.to_vec(),
        isolation: isolation.clone(),
    })
    .await?;
    if !folders.at("instances").join("global").exists() {
        templates.golden("global").context("the global template, without which nobody can sign in")?;
    }
    Ok(templates)
}

/// Who belongs where, with what an earlier run was interrupted in finished.
async fn open_tenancy(config: &Config, store: &Arc<dyn Store>, tenants: &Tenants) -> anyhow::Result<Tenancy> {
    let tenancy = Tenancy::new(tenancy::Parts {
        tenants: tenants.clone(),
        members: Members::open(Arc::clone(store)).await?,
        invitations: Invitations::open(Arc::clone(store)).await?,
        slugs: Slugs::open(Arc::clone(store)).await?,
        config: config.workspaces.clone(),
        personal_template: config.pocketbase.personal_template.clone(),
        can_verify: config.mail.is_on(),
    });
    let repaired = tenancy.repair(OffsetDateTime::now_utc()).await.context("repair the records of workspaces")?;
    if repaired > 0 {
        tracing::info!(records = repaired, "finished what an earlier run was interrupted in");
    }
    Ok(tenancy)
}

/// Who may act in a tenant's instance, as the accounts stand.
fn roster(tenancy: &Tenancy, accounts: &Verifier, tenant: &Tenant) -> Access {
    if tenant.identity == Identity::Own {
        return Access::Own;
    }
    let is_shared = tenant.kind == Kind::Workspace;
    let roles: HashMap<_, _> = tenancy.roster(tenant).into_iter().collect();
    let Ok(found) = accounts.owners(roles.keys()) else { return Access::Unknown };
    if found.is_empty() {
        // Nobody is left who could act in it. Whatever that means, it is no reason to shut anybody out.
        return Access::Unknown;
    }
    let role = |account: &Owner| roles.get(&account.id).filter(|_| is_shared).map_or("", |role| role.as_str());
    let rows = found.into_iter().map(|account| Row { member_role: role(&account), account }).collect();
    Access::Roster(Roster { rows, is_shared })
}

fn incarnation() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn global_tenant() -> Tenant {
    Tenant { pinned: true, ..Tenant::new(TenantId::global(), Kind::Global, "global", None) }
}

/// Makes the admin of the configuration once the global instance answers, unless there is one.
async fn first_admin(config: crate::auth::Config, accounts: Accounts, supervisor: Supervisor) {
    if config.admin_email.is_empty() {
        return;
    }
    if let Err(error) = supervisor.wake(&TenantId::global()).await {
        tracing::error!(%error, "make the first admin: the global instance is away");
        return;
    }
    match accounts.any_admin() {
        Ok(true) => {}
        Ok(false) => match accounts.create_admin(&config.admin_email, &config.admin_password).await {
            Ok(()) => tracing::info!("made the first admin from the configuration"),
            Err(error) => tracing::error!(%error, "make the first admin"),
        },
        Err(error) => tracing::error!(%error, "look for an admin"),
    }
}

/// Tells a person at a terminal what was made and what to try.
fn welcome(config: &Config, folders: &Folders, listen: SocketAddr, vault_key: Option<&Path>) {
    use std::io::IsTerminal;
    use std::io::Write;
    let mut out = std::io::stdout();
    if !out.is_terminal() && !folders.is_new {
        return;
    }
    let url = config.public_url(listen);
    let data = folders.root.display();
    let made = if folders.is_new {
        format!(
            "Made the data directory {data}: control.db (who is who and where), instances/ (one folder per user),\ngolden/ (baked templates). Delete nothing in it by hand; back it up as a whole.\n"
        )
    } else {
        format!("Data directory: {data}\n")
    };
    let key = vault_key.map_or_else(String::new, |file| {
        format!(
            "Made the vault's master key {}: it seals the secrets that users store. Without it they are lost, and\npocketfleet \
             does not start; keep a copy of it apart from the backups of the rest.\n",
            file.display()
        )
    });
    let text = format!(
        "\npocketfleet {version} listens on {url}\nThe page for people is {url}/app\n{made}{key}\n\
         Try:\n  curl -X POST {url}/auth/register -H 'Content-Type: application/json' \\\n    \
         -d '{{\"email\":\"ada@example.com\",\"password\":\"correct horse\",\"name\":\"Ada\"}}'\n  \
         pocketfleet --data {data} tenants list\n  pocketfleet --data {data} admin create --email you@example.com\n  \
         pocketfleet --data {data} doctor\nCtrl-C stops everything in order.\n\n",
        version = env!("CARGO_PKG_VERSION"),
    );
    // A closed standard output is no reason to stop serving.
    let _ = out.write_all(text.as_bytes());
}

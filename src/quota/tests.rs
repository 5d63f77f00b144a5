//! The quotas over a store in a temporary folder, with walks that are counted.

use std::io;
use std::sync::atomic::AtomicU64;

use time::OffsetDateTime;

use super::*;
use crate::store::Store;
use crate::store::sqlite::ControlDatabase;
use crate::store::tenants::Deletion;
use crate::store::tenants::Kind;
use crate::store::tenants::Stage;

/// What the next walk finds.
type Found = Arc<dyn Fn() -> io::Result<u64> + Send + Sync>;

struct World {
    quotas: Quotas,
    tenants: Tenants,
    tenant: Arc<Tenant>,
    walks: Arc<AtomicU64>,
    _dir: tempfile::TempDir,
}

async fn world(found: Found) -> World {
    let dir = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(ControlDatabase::open(&dir.path().join("control.db")).unwrap());
    let tenants = Tenants::open(store).await.unwrap();
    let tenant = Tenant::new(TenantId::parse("ada").unwrap(), Kind::Personal, "core", None);
    let tenant = tenants.create_or_find(tenant).await.unwrap();
    let walks = Arc::new(AtomicU64::new(0));
    let counted = Arc::clone(&walks);
    let measure: Measure = Arc::new(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        found()
    });
    let config = Config {
        disk_soft: 0,
        disk_hard: 1_000,
        file_size: 0,
        memory: 0,
        in_flight: 0,
        requests_per_minute: 0,
        uploads_per_hour: 0,
        reserve: 0,
        sweep_interval: Duration::from_mins(1),
        sweep_per_second: 10,
    };
    let (quotas, _sweep) = Quotas::new(Parts {
        config,
        tenants: tenants.clone(),
        data: dir.path().to_owned(),
        measure,
        of_template: Arc::new(|_| Limits::default()),
        tell: Arc::new(|_, _| {}),
        metrics: Metrics::new(),
    });
    World { quotas, tenants, tenant, walks, _dir: dir }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_again_at_once_learns_what_was_measured() {
    let world = world(Arc::new(|| Ok(70))).await;
    for _ in 0..20 {
        assert_eq!(world.quotas.usage_lately(&world.tenant).used, Some(70));
    }
    assert_eq!(world.walks.load(Ordering::SeqCst), 1);
    world.quotas.usage_now(&world.tenant);
    assert_eq!(world.walks.load(Ordering::SeqCst), 2, "who changes limits is told what is so");
}

#[tokio::test(flavor = "multi_thread")]
async fn while_somebody_walks_nobody_else_does() {
    let (begun, waiting) = std::sync::mpsc::sync_channel::<()>(0);
    let (go, held) = std::sync::mpsc::sync_channel::<()>(0);
    let (begun, held) = (std::sync::Mutex::new(begun), std::sync::Mutex::new(held));
    let found: Found = Arc::new(move || {
        begun.lock().unwrap().send(()).unwrap();
        held.lock().unwrap().recv().unwrap();
        Ok(70)
    });
    let world = world(found).await;
    let (quotas, tenant) = (world.quotas.clone(), Arc::clone(&world.tenant));
    let walk = tokio::task::spawn_blocking(move || quotas.usage_lately(&tenant).used);
    waiting.recv_timeout(Duration::from_mins(1)).unwrap();
    assert_eq!(world.quotas.usage_lately(&world.tenant).used, None, "nothing is known yet, and nobody waits");
    go.send(()).unwrap();
    assert_eq!(walk.await.unwrap(), Some(70));
    assert_eq!(world.walks.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_counted_is_at_the_limit() {
    let beyond = || Err(io::Error::new(io::ErrorKind::QuotaExceeded, "folders lie too deep in each other"));
    let world = world(Arc::new(beyond)).await;
    assert_eq!(world.quotas.usage_now(&world.tenant).level, Level::Hard);
    let weight = Weight { grows: true, is_upload: false, length: None };
    let refused = world.quotas.admit(&world.tenant.id, weight, Instant::now()).unwrap_err();
    assert_eq!(refused.code, Code::QuotaExceeded);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_tenant_counts_no_more() {
    let world = world(Arc::new(|| Ok(5_000))).await;
    world.quotas.usage_now(&world.tenant);
    world.quotas.sum_up();
    assert!(world.quotas.is_tight());
    let now = OffsetDateTime::now_utc();
    let deletion = Deletion {
        at: now,
        by: "operator".to_owned(),
        erase_at: now,
        stage: Stage::Gone,
        was_paused: false,
        erasure: None,
    };
    world.tenants.change(&world.tenant.id, |tenant| tenant.deleted = Some(Box::new(deletion.clone()))).await.unwrap();
    world.quotas.sum_up();
    assert!(!world.quotas.is_tight() && world.quotas.inner.accounts.is_empty());
}

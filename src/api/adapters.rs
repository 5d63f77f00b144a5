//! Lets a handler extract the part of [`AppState`] it needs, so that its signature says what it can touch.

use std::sync::Arc;

use axum::extract::FromRef;

use crate::api::About;
use crate::api::AccountBodies;
use crate::api::Addresses;
use crate::api::AppState;
use crate::api::Limits;
use crate::api::oauth2_redirect::Deliver;
use crate::api::webhooks::HookBodies;
use crate::audit::Audit;
use crate::auth::Verifier;
use crate::auth::accounts::Accounts;
use crate::auth::api_keys::ApiKeys;
use crate::events::Events;
use crate::gateway::Dashboards;
use crate::jobs::destinations::registry::Destinations;
use crate::jobs::intake::Intake;
use crate::meetings::Meetings;
use crate::queue::Queue;
use crate::records::Records;
use crate::reload::Reloads;
use crate::shutdown::Shutdown;
use crate::store::sessions::Sessions;
use crate::store::tenants::Tenants;
use crate::supervisor::Supervisor;
use crate::telemetry::Metrics;
use crate::tenancy::Tenancy;
use crate::vault::Vault;

/// Implements `FromRef` for one field.
macro_rules! part {
    ($field:ident: $part:ty) => {
        impl FromRef<AppState> for $part {
            fn from_ref(state: &AppState) -> Self {
                state.$field.clone()
            }
        }
    };
}

part!(accounts: Accounts);
part!(verifier: Verifier);
part!(dashboards: Dashboards);
part!(addresses: Addresses);
part!(supervisor: Supervisor);
part!(tenancy: Tenancy);
part!(tenants: Tenants);
part!(sessions: Sessions);
part!(metrics: Arc<Metrics>);
part!(shutdown: Shutdown);
part!(limits: Limits);
part!(account_bodies: AccountBodies);
part!(about: Arc<About>);
part!(oauth2: Deliver);
part!(reloads: Reloads);

/// Implements `FromRef` for one service.
macro_rules! service {
    ($field:ident: $part:ty) => {
        impl FromRef<AppState> for $part {
            fn from_ref(state: &AppState) -> Self {
                state.services.$field.clone()
            }
        }
    };
}

service!(records: Records);
service!(meetings: Meetings);
service!(hook_bodies: HookBodies);
service!(audit: Audit);
service!(vault: Vault);
service!(api_keys: ApiKeys);
service!(queue: Queue);
service!(intake: Intake);
service!(destinations: Destinations);
service!(events: Events);

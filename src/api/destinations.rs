//! Where a user's recordings are delivered to. Keys are not here: a destination names one of the vault.

use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde::Serialize;
use serde_json::Value;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::json;
use crate::api::json::invalid_field;
use crate::api::vault::signed_in_at;
use crate::error::Problem;
use crate::ids::TenantId;
use crate::jobs::destinations::Kind;
use crate::jobs::destinations::Settings;
use crate::jobs::destinations::registry::Destinations;
use crate::jobs::destinations::registry::Target;
use crate::records::Instance;
use crate::records::Records;
use crate::supervisor::Priority;
use crate::tenancy::Tenancy;

/// Longest name, in characters.
const MAX_NAME_CHARS: usize = 100;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_destinations, create_destination))
        .routes(routes!(show_destination, change_destination, delete_destination))
        .routes(routes!(check_destination))
}

/// A place that recordings are delivered to.
#[derive(Serialize, ToSchema)]
#[schema(as = Destination)]
struct DestinationView {
    /// What deliveries name it by. The built-in ones are called `folder` and `loom`.
    #[schema(example = "folder")]
    id: String,
    /// What people call it.
    name: String,
    /// `folder`, `s3`, `http_put`, `http_tus` or `loom`.
    #[schema(value_type = String, example = "s3")]
    kind: Kind,
    /// Depends on the kind; without secrets.
    #[schema(value_type = Object)]
    settings: Value,
    /// The `key_id` of its key in the vault, if it has one of its own.
    vault_key: Option<String>,
    /// Whether deliveries go there if nothing else is said.
    is_default: bool,
    /// Whether it is always there.
    is_builtin: bool,
    /// Whether a person has to do the last step.
    needs_human: bool,
}

impl From<Target> for DestinationView {
    fn from(target: Target) -> Self {
        let kind = target.settings.kind();
        Self {
            id: target.id,
            name: target.name,
            kind,
            settings: target.settings.to_value(),
            vault_key: Some(target.vault_key).filter(|key| !key.is_empty()),
            is_default: target.is_default,
            is_builtin: target.is_builtin,
            needs_human: kind == Kind::Loom,
        }
    }
}

/// A user's destinations.
#[derive(Serialize, ToSchema)]
struct DestinationList {
    items: Vec<DestinationView>,
}

/// A destination to be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewDestination {
    /// What people call it; no two have the same.
    #[schema(example = "Archive")]
    name: String,
    /// `folder`, `s3`, `http_put`, `http_tus` or `loom`.
    #[schema(example = "s3")]
    kind: String,
    /// `folder`: `subfolder`. `s3`: `bucket`, `region`, `endpoint`, `prefix`, `path_style`, `link_hours`. `http_put` and
    /// `http_tus`: `url`. `loom`: nothing.
    #[schema(value_type = Option<Object>)]
    #[serde(default)]
    settings: Value,
    /// The `key_id` of a key in the vault: of the service `s3`, or `http`. Without one `s3` uses the service's default
    /// key, and HTTP destinations get none.
    vault_key: Option<String>,
    /// Whether deliveries go there if nothing else is said.
    #[serde(default)]
    is_default: bool,
}

/// What to change of a destination; absent fields stay as they are.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct ChangeDestination {
    name: Option<String>,
    /// All settings of its kind.
    #[schema(value_type = Option<Object>)]
    settings: Option<Value>,
    /// An empty text = none.
    vault_key: Option<String>,
    is_default: Option<bool>,
}

/// What came of trying a destination.
#[derive(Serialize, ToSchema)]
struct CheckResult {
    /// Whether it takes files.
    works: bool,
}

/// The caller's own tenant, made if need be.
pub(super) async fn own_tenant(tenancy: &Tenancy, user: &AuthUser) -> Result<TenantId, Problem> {
    match tenancy.personal(&user.principal.user) {
        Some(tenant) => Ok(tenant),
        None => Ok(tenancy.ensure_personal(&user.principal.user).await?),
    }
}

/// The caller's tenant with its instance.
async fn opened(state: &AppState, user: &AuthUser) -> Result<(TenantId, Instance), Problem> {
    let tenant = own_tenant(&state.tenancy, user).await?;
    let instance = state.services.records.open(&tenant, Priority::Client).await?;
    Ok((tenant, instance))
}

fn check_name(name: &str) -> Result<String, Problem> {
    let name = name.trim();
    if (1..=MAX_NAME_CHARS).contains(&name.chars().count()) && !name.chars().any(char::is_control) {
        return Ok(name.to_owned());
    }
    Err(invalid_field("name", "validation_invalid_name", "Must be 1 to 100 characters in one line."))
}

/// An id that `PocketBase` takes.
fn new_id() -> String {
    const DIGITS: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let random: [u8; 15] = rand::random();
    random.iter().map(|byte| char::from(DIGITS[usize::from(byte & 31)])).collect()
}

/// Lists the destinations, the built-in ones last.
#[utoipa::path(get, path = "/destinations", tag = "deliveries", security(("bearer" = [])),
    responses((status = 200, description = "The destinations.", body = DestinationList)))]
async fn list_destinations(State(state): State<AppState>, user: AuthUser) -> Result<Json<DestinationList>, ApiError> {
    let (_, instance) = opened(&state, &user).await?;
    let targets = state.services.destinations.list(&instance).await?;
    Ok(Json(DestinationList { items: targets.into_iter().map(DestinationView::from).collect() }))
}

/// Whoever may say where a key is sent may see it, so it takes what seeing it takes.
fn check_sign_in(state: &AppState, user: &AuthUser, target: &Target, before: Option<&Target>) -> Result<(), Problem> {
    if !target.shows_key_elsewhere(before) {
        return Ok(());
    }
    let signed_in_at = signed_in_at(&state.sessions, &user.principal);
    Ok(state.services.vault.check_sign_in(signed_in_at, OffsetDateTime::now_utc())?)
}

/// Adds a destination. It is not tried; `check` does that. With a key that is sent to an address (`http_put`,
/// `http_tus`) it needs a sign-in of the last minutes, as showing the key does.
#[utoipa::path(post, path = "/destinations", tag = "deliveries", security(("bearer" = [])), request_body = NewDestination,
    responses((status = 201, description = "The destination.", body = DestinationView)))]
async fn create_destination(
    State(state): State<AppState>,
    user: AuthUser,
    json::Json(body): json::Json<NewDestination>,
) -> Result<(StatusCode, Json<DestinationView>), ApiError> {
    let kind = Kind::parse(&body.kind).ok_or_else(|| {
        invalid_field("kind", "validation_invalid_kind", "Must be folder, s3, http_put, http_tus or loom.")
    })?;
    let target = Target {
        id: new_id(),
        name: check_name(&body.name)?,
        settings: Settings::parse(kind, &body.settings)?,
        vault_key: body.vault_key.unwrap_or_default(),
        is_default: body.is_default,
        is_builtin: false,
    };
    let tenant = own_tenant(&state.tenancy, &user).await?;
    state.services.destinations.check(&tenant, &target.settings, &target.vault_key, OffsetDateTime::now_utc())?;
    check_sign_in(&state, &user, &target, None)?;
    let instance = state.services.records.open(&tenant, Priority::Client).await.map_err(Problem::from)?;
    state.services.destinations.save(&instance, &target).await?;
    Ok((StatusCode::CREATED, Json(target.into())))
}

/// Shows a destination.
#[utoipa::path(get, path = "/destinations/{id}", tag = "deliveries", security(("bearer" = [])),
    params(("id" = String, Path, description = "A destination's id.")),
    responses((status = 200, description = "The destination.", body = DestinationView)))]
async fn show_destination(
    State(state): State<AppState>,
    user: AuthUser,
    Path(id): Path<String>,
) -> Result<Json<DestinationView>, ApiError> {
    let (_, instance) = opened(&state, &user).await?;
    Ok(Json(state.services.destinations.find(&instance, &id).await?.into()))
}

/// Changes a destination that is not built in. Its kind stays. Another key, or another address for the key, needs a
/// sign-in of the last minutes.
#[utoipa::path(patch, path = "/destinations/{id}", tag = "deliveries", security(("bearer" = [])),
    params(("id" = String, Path, description = "A destination's id.")), request_body = ChangeDestination,
    responses((status = 200, description = "The destination as it is now.", body = DestinationView)))]
async fn change_destination(
    State(state): State<AppState>,
    user: AuthUser,
    Path(id): Path<String>,
    json::Json(body): json::Json<ChangeDestination>,
) -> Result<Json<DestinationView>, ApiError> {
    let (tenant, instance) = opened(&state, &user).await?;
    let destinations: &Destinations = &state.services.destinations;
    let mut target = destinations.find(&instance, &id).await?;
    if target.is_builtin {
        let message = "this destination is built in; make one of the same kind to change it";
        return Err(Problem::new(crate::error::Code::Conflict).message(message).into());
    }
    let before = target.clone();
    if let Some(name) = body.name {
        target.name = check_name(&name)?;
    }
    if let Some(settings) = body.settings {
        target.settings = Settings::parse(target.settings.kind(), &settings)?;
    }
    target.vault_key = body.vault_key.unwrap_or(target.vault_key);
    target.is_default = body.is_default.unwrap_or(target.is_default);
    destinations.check(&tenant, &target.settings, &target.vault_key, OffsetDateTime::now_utc())?;
    check_sign_in(&state, &user, &target, Some(&before))?;
    destinations.save(&instance, &target).await?;
    Ok(Json(target.into()))
}

/// Removes a destination. What was delivered there stays, and so does the key.
#[utoipa::path(delete, path = "/destinations/{id}", tag = "deliveries", security(("bearer" = [])),
    params(("id" = String, Path, description = "A destination's id.")),
    responses((status = 204, description = "It is gone.")))]
async fn delete_destination(
    State(state): State<AppState>,
    user: AuthUser,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let (_, instance) = opened(&state, &user).await?;
    state.services.destinations.remove(&instance, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Tries a destination with a tiny file, which is deleted again where that is possible.
#[utoipa::path(post, path = "/destinations/{id}/check", tag = "deliveries", security(("bearer" = [])),
    params(("id" = String, Path, description = "A destination's id.")),
    responses((status = 200, description = "It takes files.", body = CheckResult)))]
async fn check_destination(
    State(destinations): State<Destinations>,
    State(records): State<Records>,
    State(tenancy): State<Tenancy>,
    user: AuthUser,
    Path(id): Path<String>,
) -> Result<Json<CheckResult>, ApiError> {
    let tenant = own_tenant(&tenancy, &user).await?;
    let target = {
        let instance = records.open(&tenant, Priority::Client).await.map_err(Problem::from)?;
        destinations.find(&instance, &id).await?
    };
    destinations.probe(&tenant, &target).await?;
    Ok(Json(CheckResult { works: true }))
}

//! Ways into a workspace. An invitation's token stands in bodies and never in an address: addresses end up in logs.

use axum::Json;
use axum::extract::Path;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde::Serialize;
use time::OffsetDateTime;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::api::AppState;
use crate::api::error::ApiError;
use crate::api::extractors::AuthUser;
use crate::api::json;
use crate::api::json::Params;
use crate::api::members::role;
use crate::api::tenants::Page;
use crate::api::tenants::TenantView;
use crate::api::tenants::follow;
use crate::api::tenants::to_its_end;
use crate::auth::Principal;
use crate::ids::UserId;
use crate::shutdown::Shutdown;
use crate::store::invitations::Invitation;
use crate::supervisor::Supervisor;
use crate::tenancy::Address;
use crate::tenancy::NewInvitation;
use crate::tenancy::Tenancy;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new()
        .routes(routes!(list_invitations, create_invitation))
        .routes(routes!(revoke_invitation))
        .routes(routes!(preview_invitation))
        .routes(routes!(accept_invitation))
        .routes(routes!(decline_invitation))
}

/// Whom to let in.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct CreateInvitation {
    /// `admin`, `member` or `guest`.
    #[schema(example = "member")]
    role: String,
    /// Only the account with this e-mail address may take it.
    #[schema(example = "bob@example.com")]
    email: Option<String>,
}

/// What opens an invitation.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct InvitationToken {
    /// The token, as it was shown to whoever made the invitation.
    token: String,
}

/// An invitation.
#[derive(Serialize, ToSchema)]
#[schema(as = Invitation)]
struct InvitationView {
    /// Names it; opens nothing.
    id: String,
    /// `admin`, `member` or `guest`.
    #[schema(value_type = String, example = "member")]
    role: &'static str,
    /// The only account that may take it.
    #[serde(skip_serializing_if = "Option::is_none")]
    email: Option<String>,
    /// Who made it.
    #[schema(value_type = String)]
    created_by: UserId,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    expires_at: OffsetDateTime,
}

impl InvitationView {
    fn of(invitation: &Invitation) -> Self {
        Self {
            id: invitation.id.as_str().to_owned(),
            role: invitation.role.as_str(),
            email: invitation.email.clone(),
            created_by: invitation.created_by.clone(),
            created_at: invitation.created_at,
            expires_at: invitation.expires_at,
        }
    }
}

/// A fresh invitation.
#[derive(Serialize, ToSchema)]
struct NewInvitationView {
    /// Opens it. Shown here and never again.
    token: String,
    invitation: InvitationView,
}

/// A page of invitations.
#[derive(Serialize, ToSchema)]
struct InvitationList {
    items: Vec<InvitationView>,
    /// Ask again with `after` = this for the next page; absent on the last one.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// Where an invitation leads.
#[derive(Serialize, ToSchema)]
struct InvitationPreview {
    /// The workspace's slug.
    #[serde(skip_serializing_if = "Option::is_none")]
    slug: Option<String>,
    /// What people call it.
    name: String,
    /// What the caller would be there.
    #[schema(value_type = String, example = "member")]
    role: &'static str,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    expires_at: OffsetDateTime,
}

/// Lists the open invitations, newest first, for owners and admins.
#[utoipa::path(get, path = "/tenants/{tenant}/invitations", tag = "workspaces", security(("bearer" = [])),
    params(("tenant" = String, Path, description = "A slug or an id."), Page),
    responses((status = 200, description = "The open invitations.", body = InvitationList)))]
async fn list_invitations(
    State(tenancy): State<Tenancy>,
    user: AuthUser,
    Path(name): Path<String>,
    Params(page): Params<Page>,
) -> Result<Json<InvitationList>, ApiError> {
    let open = tenancy.invitations(&user.principal.user, &name, OffsetDateTime::now_utc())?;
    let begin = page.after.as_deref().and_then(|after| open.iter().position(|found| found.id.as_str() == after));
    let rest = &open[begin.map_or(0, |at| at + 1)..];
    let items: Vec<_> = rest.iter().take(page.size()).map(|found| InvitationView::of(found)).collect();
    let next = items.last().filter(|_| rest.len() > items.len()).map(|last| last.id.clone());
    Ok(Json(InvitationList { items, next }))
}

/// Invites somebody: makes a token for one person, good for the configured time (7 days unless the operator chose).
#[utoipa::path(post, path = "/tenants/{tenant}/invitations", tag = "workspaces", security(("bearer" = [])),
    params(("tenant" = String, Path, description = "A slug or an id.")), request_body = CreateInvitation,
    responses((status = 201, description = "The invitation with its token.", body = NewInvitationView)))]
async fn create_invitation(
    State(tenancy): State<Tenancy>,
    user: AuthUser,
    Path(name): Path<String>,
    json::Json(body): json::Json<CreateInvitation>,
) -> Result<(StatusCode, Json<NewInvitationView>), ApiError> {
    tenancy.workspace(&name, &user.principal.user)?;
    let wanted = NewInvitation { role: role(&body.role)?, email: body.email };
    let made = tenancy.invite(&user.principal.user, &name, wanted, OffsetDateTime::now_utc()).await?;
    let invitation = InvitationView::of(&made.invitation);
    Ok((StatusCode::CREATED, Json(NewInvitationView { token: made.token, invitation })))
}

/// Takes an invitation back.
#[utoipa::path(delete, path = "/tenants/{tenant}/invitations/{invitation}", tag = "workspaces", security(("bearer" = [])),
    params(("tenant" = String, Path, description = "A slug or an id."), ("invitation" = String, Path, description = "Its id.")),
    responses((status = 204, description = "Nobody can take it any more.")))]
async fn revoke_invitation(
    State(tenancy): State<Tenancy>,
    user: AuthUser,
    Path((name, invitation)): Path<(String, String)>,
) -> Result<StatusCode, ApiError> {
    tenancy.revoke_invitation(&user.principal.user, &name, &invitation).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn address(principal: &Principal) -> Address<'_> {
    Address { email: &principal.email, is_verified: principal.is_verified }
}

/// Shows where an invitation leads, without taking it.
#[utoipa::path(post, path = "/invitations/preview", tag = "workspaces", security(("bearer" = [])),
    request_body = InvitationToken, responses((status = 200, description = "Where it leads.", body = InvitationPreview)))]
async fn preview_invitation(
    State(tenancy): State<Tenancy>,
    user: AuthUser,
    json::Json(body): json::Json<InvitationToken>,
) -> Result<Json<InvitationPreview>, ApiError> {
    let (found, tenant) = tenancy.preview(&body.token, address(&user.principal), OffsetDateTime::now_utc())?;
    let (slug, name) = (tenant.slug.clone(), tenant.name.clone());
    Ok(Json(InvitationPreview { slug, name, role: found.role.as_str(), expires_at: found.expires_at }))
}

/// Takes an invitation: the caller becomes a member. Who is one already stays what they are.
#[utoipa::path(post, path = "/invitations/accept", tag = "workspaces", security(("bearer" = [])),
    request_body = InvitationToken, responses((status = 200, description = "The workspace.", body = TenantView)))]
async fn accept_invitation(
    State(tenancy): State<Tenancy>,
    State(supervisor): State<Supervisor>,
    State(shutdown): State<Shutdown>,
    user: AuthUser,
    json::Json(body): json::Json<InvitationToken>,
) -> Result<Json<TenantView>, ApiError> {
    let accepted = to_its_end(&shutdown, async move {
        let (principal, now) = (&user.principal, OffsetDateTime::now_utc());
        let (tenant, role) = tenancy.accept(&body.token, &principal.user, address(principal), now).await?;
        follow(&supervisor, &tenant.id).await;
        Ok(Json(TenantView::of(&tenant, role)))
    });
    accepted.await
}

/// Refuses an invitation that names the caller's e-mail address: nobody can take it any more.
#[utoipa::path(post, path = "/invitations/decline", tag = "workspaces", security(("bearer" = [])),
    request_body = InvitationToken, responses((status = 204, description = "It is closed.")))]
async fn decline_invitation(
    State(tenancy): State<Tenancy>,
    user: AuthUser,
    json::Json(body): json::Json<InvitationToken>,
) -> Result<StatusCode, ApiError> {
    tenancy.decline(&body.token, address(&user.principal), OffsetDateTime::now_utc()).await?;
    Ok(StatusCode::NO_CONTENT)
}

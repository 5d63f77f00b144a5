//! A user's schedules: jobs that are added again and again.

use std::sync::Arc;

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
use crate::api::bearer::JobOwner;
use crate::api::error::ApiError;
use crate::api::json;
use crate::api::json::invalid_field;
use crate::error::Code;
use crate::error::Problem;
use crate::jobs::intake;
use crate::jobs::intake::Intake;
use crate::jobs::intake::Recurring;
use crate::queue::JobId;
use crate::queue::Missed;
use crate::queue::Queue;
use crate::queue::Schedule;

/// Most occurrences that can be made up for, and how many are unless that is said.
const MOST_MADE_UP: u32 = 100;
const MADE_UP: u32 = 10;

/// The routes, relative to where they are mounted.
pub fn router() -> OpenApiRouter<AppState> {
    OpenApiRouter::new().routes(routes!(list_schedules, add_schedule)).routes(routes!(delete_schedule))
}

/// A schedule, as its owner sees it.
#[derive(Serialize, ToSchema)]
#[schema(as = Schedule)]
pub(super) struct ScheduleView {
    #[schema(example = "01k6yq3m9x4v7t2c8w5z0b1n2d")]
    id: String,
    /// Whose it is.
    user_id: String,
    /// Five fields in UTC: minute, hour, day of month, month, day of week.
    #[schema(example = "30 7 * * MON-FRI")]
    cron: String,
    /// The kind of the jobs.
    #[schema(example = "transcode")]
    kind: String,
    /// The jobs' line for people.
    title: String,
    /// What whoever does the jobs needs to know.
    #[schema(value_type = Object)]
    payload: Value,
    /// The jobs' priority among the user's own.
    priority: i8,
    /// What happens to times that passed while pocketfleet did not run: `skip`, `once` or `all`.
    #[schema(example = "skip")]
    missed: &'static str,
    /// Of `all`: how many of them at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    make_up: Option<u32>,
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    created_at: OffsetDateTime,
    /// When the next job is added; none when never again.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    next_run_at: Option<OffsetDateTime>,
}

impl From<&Schedule> for ScheduleView {
    fn from(schedule: &Schedule) -> Self {
        let (missed, make_up) = match schedule.missed {
            Missed::Skip => ("skip", None),
            Missed::Once => ("once", None),
            Missed::All { most } => ("all", Some(most)),
        };
        Self {
            id: schedule.id.as_str().to_owned(),
            user_id: schedule.user.as_str().to_owned(),
            cron: schedule.cron.clone(),
            kind: schedule.kind.clone(),
            title: schedule.title.clone(),
            payload: schedule.payload.clone(),
            priority: schedule.urgency,
            missed,
            make_up,
            created_at: schedule.created_at,
            next_run_at: schedule.next(),
        }
    }
}

/// A user's schedules.
#[derive(Serialize, ToSchema)]
struct ScheduleList {
    items: Vec<ScheduleView>,
}

/// A schedule to be.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct NewSchedule {
    /// Five fields in UTC: minute, hour, day of month, month, day of week. Also `@hourly`, `@daily`, `@weekly`, `@monthly`.
    #[schema(example = "30 7 * * MON-FRI")]
    cron: String,
    /// `deliver_meeting`, or a kind that the operator opened to users.
    #[schema(example = "transcode")]
    kind: String,
    /// A line for people, at most 200 characters.
    #[serde(default)]
    title: String,
    /// What whoever does the jobs needs to know.
    #[serde(default)]
    #[schema(value_type = Object)]
    payload: Value,
    /// Higher goes first among the caller's own.
    priority: Option<i64>,
    /// What happens to times that passed while pocketfleet did not run: `skip` (the default), `once` (one job for all of
    /// them) or `all` (one for each, `make_up` at most).
    #[schema(example = "skip")]
    missed: Option<String>,
    /// With `all`: 1 to 100, 10 unless given.
    make_up: Option<u32>,
}

impl NewSchedule {
    fn missed(&self) -> Result<Missed, Problem> {
        if self.make_up.is_some() && self.missed.as_deref() != Some("all") {
            return Err(invalid_field("make_up", "validation_unexpected", "goes with missed = all only"));
        }
        match self.missed.as_deref() {
            None | Some("skip") => Ok(Missed::Skip),
            Some("once") => Ok(Missed::Once),
            Some("all") => match self.make_up.unwrap_or(MADE_UP) {
                most @ 1..=MOST_MADE_UP => Ok(Missed::All { most }),
                _ => Err(invalid_field("make_up", "validation_range", "1 to 100")),
            },
            Some(_) => Err(invalid_field("missed", "validation_choice", "skip, once or all")),
        }
    }
}

/// Lists the caller's schedules, the oldest first.
#[utoipa::path(get, path = "/schedules", tag = "jobs", security(("bearer" = [])),
    responses((status = 200, description = "The schedules.", body = ScheduleList)))]
async fn list_schedules(State(queue): State<Queue>, owner: JobOwner) -> Json<ScheduleList> {
    let found = queue.schedules(&owner.tenant());
    Json(ScheduleList { items: found.iter().map(|schedule| schedule.as_ref().into()).collect() })
}

/// Makes a schedule: from now on a job is added each time that the pattern names. A user has `queue.max_schedules_per_tenant`
/// at most.
#[utoipa::path(post, path = "/schedules", tag = "jobs", security(("bearer" = [])), request_body = NewSchedule,
    responses((status = 201, description = "The schedule, with the time of its first job.", body = ScheduleView),
        (status = 409, description = "There are as many as there may be.", body = crate::api::error::ErrorBody)))]
async fn add_schedule(
    State(intake): State<Intake>,
    owner: JobOwner,
    json::Bulk(body): json::Bulk<NewSchedule>,
) -> Result<(StatusCode, Json<ScheduleView>), ApiError> {
    let missed = body.missed()?;
    let NewSchedule { cron, kind, title, payload, priority, .. } = body;
    let wish = Recurring { cron, kind, title, payload, priority, missed };
    let made = intake.add_schedule(&owner.user, wish, OffsetDateTime::now_utc()).await.map_err(problem)?;
    Ok((StatusCode::CREATED, Json(made.as_ref().into())))
}

/// There is one wish only, so none is numbered.
fn problem(error: intake::Error) -> Problem {
    match error {
        intake::Error::Field { field, message, .. } => {
            let what = serde_json::json!({ "code": "validation_invalid", "message": message });
            Problem::new(Code::ValidationFailed).details(serde_json::json!({ field: what }))
        }
        intake::Error::Kind { .. } => Problem::new(Code::UnknownKind),
        error => error.into(),
    }
}

/// Ends a schedule. The jobs that it added stay.
#[utoipa::path(delete, path = "/schedules/{id}", tag = "jobs", security(("bearer" = [])),
    params(("id" = String, Path, description = "The schedule's id.")),
    responses((status = 204, description = "It is gone.")))]
async fn delete_schedule(
    State(queue): State<Queue>,
    owner: JobOwner,
    Path(id): Path<String>,
) -> Result<StatusCode, ApiError> {
    let unknown = || Problem::new(Code::NotFound).message("there is no such schedule");
    let id = JobId::parse(&id).map_err(|_| unknown())?;
    let removed = queue.remove_schedule(&owner.tenant(), &id).await;
    removed.map_err(|error| match error {
        crate::queue::Error::NotFound => unknown(),
        error => error.into(),
    })?;
    Ok(StatusCode::NO_CONTENT)
}

/// Of these schedules, as operators see them.
pub(super) fn views(schedules: &[Arc<Schedule>]) -> Vec<ScheduleView> {
    schedules.iter().map(|schedule| schedule.as_ref().into()).collect()
}

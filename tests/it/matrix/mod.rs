//! The isolation matrix: every kind of call × everybody who might make it × one's own, another's and absent ids, at
//! every kind of address. What is expected follows from one small model (`expected`), not from a list of cases.
//!
//! Beside the statuses: where a caller is refused, a tenant that exists answers exactly like one that does not; and
//! nobody who is refused wakes anything.

#![expect(clippy::unwrap_used, reason = "a step that fails fails the test")]

use std::collections::BTreeMap;

use reqwest::Method;
use serde_json::Value;
use serde_json::json;

use crate::support::TestApp;
use crate::workers::KINDS;

mod own;
mod people;

use people::World;

/// Who calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Who {
    Anonymous,
    /// Of the personal tenant and of the workspace.
    Owner,
    /// Somebody else, with an instance of their own.
    Other,
    Member,
    Guest,
    /// An admin of the fleet, who has no more rights to data than anybody.
    Admin,
    Expired,
    Revoked,
    /// A token that the owner's own instance would take.
    OfInstance,
    /// The owner's file token in place of an auth token.
    FileToken,
    /// An API key of the owner's, which is good for jobs and for nothing else.
    ApiKey,
    Garbage,
    /// Somebody whose own instance the operator has suspended. Only our own API is asked.
    Suspended,
}

pub(crate) const EVERYBODY: [Who; 12] = [
    Who::Anonymous,
    Who::Owner,
    Who::Other,
    Who::Member,
    Who::Guest,
    Who::Admin,
    Who::Expired,
    Who::Revoked,
    Who::OfInstance,
    Who::FileToken,
    Who::ApiKey,
    Who::Garbage,
];

impl Who {
    /// Whether the credential is that of an account.
    pub(crate) fn is_somebody(self) -> bool {
        matches!(self, Self::Owner | Self::Other | Self::Member | Self::Guest | Self::Admin | Self::Suspended)
    }
}

/// What the address names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Place {
    /// Nothing: the caller's own instance.
    Home,
    /// The owner's personal tenant.
    Personal,
    Workspace,
    Absent,
}

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    List,
    View,
    Create,
    Update,
    Delete,
    Batch,
    File,
    FileToken,
    Subscribe,
    Users,
    User,
    ChangeUser,
    HookRoute,
    Page,
    Dashboard,
    Sql,
    Settings,
    Schema,
    Superusers,
    Impersonate,
}

const CALLS: [Call; 20] = [
    Call::List,
    Call::View,
    Call::Create,
    Call::Update,
    Call::Delete,
    Call::Batch,
    Call::File,
    Call::FileToken,
    Call::Subscribe,
    Call::Users,
    Call::User,
    Call::ChangeUser,
    Call::HookRoute,
    Call::Page,
    Call::Dashboard,
    Call::Sql,
    Call::Settings,
    Call::Schema,
    Call::Superusers,
    Call::Impersonate,
];

/// Whose record, file or row the call names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Id {
    /// Of the place: the owner's at home and in the personal tenant, the workspace's there.
    Owners,
    Others,
    Absent,
}

/// How far a caller gets at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// No credential that counts.
    Nobody,
    /// A credential, and no place here.
    Outside,
    /// Reads.
    Reader,
    /// Reads and writes.
    Writer,
}

fn reach(who: Who, place: Place) -> Reach {
    match (who.is_somebody(), place, who) {
        (false, ..) => Reach::Nobody,
        (_, Place::Home, _)
        | (_, Place::Personal | Place::Workspace, Who::Owner)
        | (_, Place::Workspace, Who::Member) => Reach::Writer,
        (_, Place::Workspace, Who::Guest) => Reach::Reader,
        _ => Reach::Outside,
    }
}

/// Whether the instance that answers `who` at `place` has what `id` names.
fn is_there(who: Who, place: Place, id: Id) -> bool {
    matches!(
        (place, who, id),
        (Place::Home, Who::Owner, Id::Owners)
            | (Place::Home, Who::Other, Id::Others)
            | (Place::Personal | Place::Workspace, _, Id::Owners)
    )
}

/// The model: the status of a call.
fn expected(who: Who, place: Place, call: Call, id: Id) -> u16 {
    let found = |yes: bool, status: u16| if yes { status } else { 404 };
    let there = is_there(who, place, id);
    // Who asks about their own account is answered at every address, whether or not there is a tenant.
    let is_self = (who == Who::Owner && id == Id::Owners) || (who == Who::Other && id == Id::Others);
    match call {
        Call::HookRoute if place == Place::Home => return 404,
        Call::Page
        | Call::Dashboard
        | Call::Sql
        | Call::Settings
        | Call::Schema
        | Call::Superusers
        | Call::Impersonate => return 404,
        // Public files are public where the address says whose they are.
        Call::File if place != Place::Home => return found(there, 200),
        Call::File => return found(there && who.is_somebody(), 200),
        Call::FileToken => return if who.is_somebody() { 200 } else { 401 },
        Call::ChangeUser if who.is_somebody() => return found(is_self, 200),
        // The accounts' own rules show strangers an empty list.
        Call::Users if place == Place::Home => return 200,
        Call::User if place == Place::Home && who.is_somebody() => return found(is_self, 200),
        _ => {}
    }
    let is_write = matches!(call, Call::Create | Call::Update | Call::Delete | Call::Batch);
    match reach(who, place) {
        Reach::Nobody => 401,
        Reach::Outside => 404,
        Reach::Reader if is_write => 403,
        Reach::Reader | Reach::Writer => match call {
            Call::List | Call::Create | Call::Batch | Call::Users => 200,
            Call::View | Call::Update => found(there, 200),
            // The workspace's own rules let owners delete, and members not.
            Call::Delete => found(there && (who == Who::Owner || place == Place::Home), 204),
            // Members see each other; in a personal tenant there is only oneself.
            Call::User => found(
                match place {
                    Place::Workspace => id == Id::Owners,
                    _ => is_self,
                },
                200,
            ),
            // A client that is not there.
            Call::Subscribe | Call::HookRoute => 404,
            _ => unreachable!("{call:?}"),
        },
    }
}

/// What a caller learns.
type Told = (u16, Value);

/// The same words but for what differs in every answer.
fn told(status: u16, body: &str) -> Told {
    let mut value: Value = serde_json::from_str(body).unwrap_or_else(|_| Value::from(body));
    if let Some(fields) = value.as_object_mut() {
        fields.remove("request_id");
    }
    (status, value)
}

impl World {
    fn prefix(&self, place: Place) -> String {
        match place {
            Place::Home => String::new(),
            Place::Personal => format!("/t/{}", self.owner),
            Place::Workspace => "/t/acme".to_owned(),
            Place::Absent => "/t/acne".to_owned(),
        }
    }

    fn user(&self, id: Id) -> &str {
        match id {
            Id::Owners => &self.owner,
            Id::Others => &self.other,
            Id::Absent => "absentabsentabs",
        }
    }

    /// A record's id and its file's name.
    fn record(&self, place: Place, id: Id) -> (&str, &str) {
        let (record, file) = match (place, id) {
            (Place::Workspace | Place::Absent, Id::Owners) => &self.shared_note,
            (_, Id::Owners) => &self.owners_note,
            (_, Id::Others) => &self.others_note,
            (_, Id::Absent) => return ("absentabsentabs", "absent_absentabse.txt"),
        };
        (record, file)
    }

    /// Makes the call; `doomed` is the record that a deletion names.
    async fn call(&self, who: Who, place: Place, call: Call, id: Id, doomed: &str) -> (u16, Value) {
        let (record, file) = self.record(place, id);
        let user = self.user(id);
        let note = json!({"title": "matrix", "author": self.account(who)});
        let item = json!({"method": "POST", "url": "/api/collections/notes/records", "body": note});
        let (method, path, body) = match call {
            Call::List => (Method::GET, "/api/collections/notes/records".to_owned(), None),
            Call::View => (Method::GET, format!("/api/collections/notes/records/{record}"), None),
            Call::Create => (Method::POST, "/api/collections/notes/records".to_owned(), Some(note)),
            Call::Update => {
                (Method::PATCH, format!("/api/collections/notes/records/{record}"), Some(json!({"title": "new"})))
            }
            Call::Delete => (Method::DELETE, format!("/api/collections/notes/records/{doomed}"), None),
            Call::Batch => (Method::POST, "/api/batch".to_owned(), Some(json!({"requests": [item]}))),
            Call::File => (Method::GET, format!("/api/files/notes/{record}/{file}"), None),
            Call::FileToken => (Method::POST, "/api/files/token".to_owned(), Some(json!({}))),
            Call::Subscribe => {
                let client = json!({"clientId": "nobody", "subscriptions": ["notes/*"]});
                (Method::POST, "/api/realtime".to_owned(), Some(client))
            }
            Call::Users => (Method::GET, "/api/collections/users/records".to_owned(), None),
            Call::User => (Method::GET, format!("/api/collections/users/records/{user}"), None),
            Call::ChangeUser => {
                (Method::PATCH, format!("/api/collections/users/records/{user}"), Some(json!({"name": "New"})))
            }
            Call::HookRoute => (Method::GET, "/api/hello".to_owned(), None),
            Call::Page => (Method::GET, "/index.html".to_owned(), None),
            Call::Dashboard => (Method::GET, "/_/".to_owned(), None),
            Call::Sql => (Method::POST, "/api/sql".to_owned(), Some(json!({"query": "select 1"}))),
            Call::Settings => (Method::GET, "/api/settings".to_owned(), None),
            Call::Schema => (Method::GET, "/api/collections/notes".to_owned(), None),
            Call::Superusers => (Method::GET, "/api/collections/_superusers/records".to_owned(), None),
            Call::Impersonate => {
                (Method::POST, format!("/api/collections/users/impersonate/{user}"), Some(json!({"duration": 60})))
            }
        };
        let (status, body) = self.send(who, method, &format!("{}{path}", self.prefix(place)), body).await;
        told(status, &body)
    }
}

const PLACES: [Place; 4] = [Place::Home, Place::Personal, Place::Workspace, Place::Absent];
const IDS: [Id; 3] = [Id::Owners, Id::Others, Id::Absent];

#[tokio::test(flavor = "multi_thread")]
async fn every_call_by_everybody_on_every_id_ends_as_the_model_says() {
    let mut app = TestApp::with(KINDS).await;
    let world = World::make(&mut app).await;
    let (mut cases, mut wrong) = (0, Vec::new());
    let mut refusals: BTreeMap<(Who, Call, Id), Vec<(Place, Told)>> = BTreeMap::new();
    for (who, place, call, id) in all() {
        let wanted = expected(who, place, call, id);
        let named = world.record(place, id).0;
        // Whoever may delete gets a record of their own for it, so that the others find theirs.
        let spare = if call == Call::Delete && wanted == 204 {
            Some(world.spare(who, &world.prefix(place)).await)
        } else {
            None
        };
        let (status, body) = world.call(who, place, call, id, spare.as_deref().unwrap_or(named)).await;
        cases += 1;
        if status != wanted {
            wrong.push(format!("{who:?} {place:?} {call:?} {id:?}: {status}, not {wanted}: {body}"));
        }
        if place != Place::Home {
            refusals.entry((who, call, id)).or_default().push((place, (status, body)));
        }
    }
    let (own_cases, own_wrong) = own::check(&world).await;
    wrong.extend(own_wrong);
    for ((who, call, id), answers) in refusals {
        let (_, absent) = answers.iter().find(|(place, _)| *place == Place::Absent).unwrap();
        for (place, answer) in &answers {
            let is_refused = matches!(reach(who, *place), Reach::Nobody | Reach::Outside) && answer.0 >= 400;
            if is_refused && answer != absent {
                wrong.push(format!("{who:?} {call:?} {id:?} tells {place:?} from absent: {answer:?}, {absent:?}"));
            }
        }
    }
    eprintln!("isolation matrix: {cases} calls to instances, {own_cases} to our own API");
    assert!(cases > 2_500 && own_cases > 1_700, "{cases} + {own_cases}");
    assert!(wrong.is_empty(), "{} wrong:\n{}", wrong.len(), wrong.join("\n"));
}

fn all() -> impl Iterator<Item = (Who, Place, Call, Id)> {
    EVERYBODY.into_iter().flat_map(|who| {
        PLACES.into_iter().flat_map(move |place| {
            CALLS.into_iter().flat_map(move |call| IDS.into_iter().map(move |id| (who, place, call, id)))
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_refused_wakes_nothing() {
    let mut app = TestApp::with(KINDS).await;
    let world = World::make(&mut app).await;
    for tenant in [&world.owner, &world.workspace] {
        app.put_to_sleep(tenant);
    }
    for (who, place, call, id) in all() {
        let is_refused = place != Place::Home && matches!(reach(who, place), Reach::Nobody | Reach::Outside);
        if is_refused && expected(who, place, call, id) >= 400 {
            world.call(who, place, call, id, world.record(place, id).0).await;
        }
    }
    for tenant in [&world.owner, &world.workspace] {
        assert_eq!(app.tenant(tenant)["state"], "asleep");
    }
}

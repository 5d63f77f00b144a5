//! Workspaces on the control database alone: races, interruptions, limits.

use std::sync::Arc;

use futures_util::future::join_all;
use pocketfleet::config::Config;
use pocketfleet::config::Flags;
use pocketfleet::ids::TenantId;
use pocketfleet::ids::UserId;
use pocketfleet::store::Store;
use pocketfleet::store::invitations::Invitation;
use pocketfleet::store::invitations::InvitationId;
use pocketfleet::store::invitations::InvitationStatus;
use pocketfleet::store::invitations::Invitations;
use pocketfleet::store::members::Member;
use pocketfleet::store::members::Members;
use pocketfleet::store::slugs::Slug;
use pocketfleet::store::slugs::Slugs;
use pocketfleet::store::tenants::Identity;
use pocketfleet::store::tenants::Kind;
use pocketfleet::store::tenants::Tenant;
use pocketfleet::store::tenants::Tenants;
use pocketfleet::tenancy::Address;
use pocketfleet::tenancy::Change;
use pocketfleet::tenancy::Creation;
use pocketfleet::tenancy::Error;
use pocketfleet::tenancy::MemberRole;
use pocketfleet::tenancy::NewInvitation;
use pocketfleet::tenancy::NewWorkspace;
use pocketfleet::tenancy::Parts;
use pocketfleet::tenancy::Tenancy;
use pocketfleet::tenancy::rules;
use pocketfleet::tenancy::rules::Standing;
use tempfile::TempDir;
use time::Duration;
use time::OffsetDateTime;

use crate::store::database;

struct Fixture {
    tenancy: Tenancy,
    tenants: Tenants,
    members: Members,
    invitations: Invitations,
    slugs: Slugs,
    store: Arc<dyn Store>,
    now: OffsetDateTime,
    folder: TempDir,
}

impl Fixture {
    async fn new() -> Self {
        Self::with(|_| ()).await
    }

    async fn with(change: impl FnOnce(&mut pocketfleet::tenancy::Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = database(folder.path());
        Self::over(store, folder, change).await
    }

    /// What a start over the same database finds.
    async fn restart(self) -> Self {
        let Self { store, folder, .. } = self;
        Self::over(store, folder, |_| ()).await
    }

    async fn over(
        store: Arc<dyn Store>,
        folder: TempDir,
        change: impl FnOnce(&mut pocketfleet::tenancy::Config),
    ) -> Self {
        let tenants = Tenants::open(Arc::clone(&store)).await.unwrap();
        let members = Members::open(Arc::clone(&store)).await.unwrap();
        let invitations = Invitations::open(Arc::clone(&store)).await.unwrap();
        let slugs = Slugs::open(Arc::clone(&store)).await.unwrap();
        let mut config = Config::load(&Flags::default()).unwrap().workspaces;
        config.changes_per_minute = 10_000.try_into().unwrap();
        change(&mut config);
        let tenancy = Tenancy::new(Parts {
            tenants: tenants.clone(),
            members: members.clone(),
            invitations: invitations.clone(),
            slugs: slugs.clone(),
            config,
            personal_template: "personal".to_owned(),
            can_verify: true,
        });
        let now = OffsetDateTime::now_utc();
        Self { tenancy, tenants, members, invitations, slugs, store, now, folder }
    }

    async fn make(&self, owner: &str, slug: &str) -> Arc<Tenant> {
        self.tenancy.create_workspace(&user(owner), false, wanted(slug), self.now).await.unwrap()
    }

    async fn join(&self, tenant: &Tenant, who: &str, role: MemberRole) {
        assert!(self.tenancy.add_member(tenant, &user(who), role, None, self.now).await.unwrap());
    }

    fn role(&self, tenant: &Tenant, who: &str) -> Option<MemberRole> {
        self.tenancy.role(&self.tenants.find(&tenant.id).unwrap(), &user(who))
    }

    async fn rename(&self, who: &str, from: &str, to: &str, now: OffsetDateTime) -> Result<Arc<Tenant>, Error> {
        let change = Change { slug: Some(to.to_owned()), ..Change::default() };
        self.tenancy.update(&user(who), from, change, now).await
    }

    async fn invite(&self, who: &str, role: MemberRole, email: Option<&str>) -> String {
        let wanted = NewInvitation { role, email: email.map(str::to_owned) };
        self.tenancy.invite(&user(who), "team", wanted, self.now).await.unwrap().token
    }
}

fn user(text: &str) -> UserId {
    UserId::parse(text).unwrap()
}

fn team_of(it: &Fixture, team: &Tenant) -> Tenant {
    Tenant::clone(&it.tenants.find(&team.id).unwrap())
}

fn proved(email: &str) -> Address<'_> {
    Address { email, is_verified: true }
}

fn wanted(slug: &str) -> NewWorkspace {
    NewWorkspace {
        name: "Team".to_owned(),
        slug: slug.to_owned(),
        template: "workspace".to_owned(),
        identity: Identity::Global,
        public_read: Vec::new(),
    }
}

#[tokio::test]
async fn one_of_many_gets_a_slug() {
    let it = Fixture::new().await;
    let all = (0..20).map(|n| {
        let (tenancy, now) = (it.tenancy.clone(), it.now);
        tokio::spawn(async move { tenancy.create_workspace(&user(&format!("u{n}")), false, wanted("team"), now).await })
    });
    let made = join_all(all).await.into_iter().filter_map(|made| made.unwrap().ok()).collect::<Vec<_>>();
    assert_eq!(made.len(), 1);
    assert_eq!(it.tenancy.resolve("team").unwrap().id, made[0].id);
    assert_eq!((it.tenants.len(), it.members.len(), it.slugs.all().len()), (1, 1, 1), "losers leave nothing behind");
}

#[tokio::test]
async fn an_account_owns_so_many_and_no_more_however_it_asks() {
    let it = Fixture::with(|config| config.max_per_user = 3).await;
    let all = (0..10).map(|n| {
        let (tenancy, now) = (it.tenancy.clone(), it.now);
        tokio::spawn(
            async move { tenancy.create_workspace(&user("ada"), false, wanted(&format!("team-{n}")), now).await },
        )
    });
    let made = join_all(all).await.into_iter().filter(|made| made.as_ref().unwrap().is_ok()).count();
    assert!(made <= 3, "{made}");
    for n in made..3 {
        it.make("ada", &format!("more-{n}")).await;
    }
    let refused = it.tenancy.create_workspace(&user("ada"), false, wanted("one-more"), it.now).await;
    assert!(matches!(refused, Err(Error::Full { most: 3, .. })));
    assert_eq!((it.tenants.len(), it.members.len(), it.slugs.all().len()), (3, 3, 3));
    it.make("bob", "one-more").await;
}

#[tokio::test]
async fn names_lead_to_workspaces_and_never_to_the_global_instance() {
    let it = Fixture::new().await;
    it.tenants.create_or_find(Tenant::new(TenantId::global(), Kind::Global, "global", None)).await.unwrap();
    let personal = it.tenancy.ensure_personal(&user("b5c3xih3gtjb48z")).await.unwrap();
    let team = it.make("ada", "team").await;
    assert_eq!(it.tenancy.resolve("team").unwrap().id, team.id);
    assert_eq!(it.tenancy.resolve(team.id.as_str()).unwrap().id, team.id);
    assert_eq!(it.tenancy.resolve("b5c3xih3gtjb48z").unwrap().id, personal);
    for nobody in ["global", "", "nothing", "Team", "..", "team.", "w-"] {
        assert!(it.tenancy.resolve(nobody).is_none(), "{nobody:?}");
    }
    assert_eq!(it.role(&team, "ada"), Some(MemberRole::Owner));
    assert_eq!(it.role(&team, "eve"), None);
    let own = it.tenants.find(&personal).unwrap();
    assert_eq!(it.tenancy.role(&own, &user("b5c3xih3gtjb48z")), Some(MemberRole::Owner));
    assert_eq!(it.tenancy.role(&own, &user("ada")), None);
    let global = it.tenants.find(&TenantId::global()).unwrap();
    assert_eq!(it.tenancy.role(&global, &user("ada")), None);
}

#[tokio::test]
async fn a_left_slug_is_held_for_its_workspace() {
    let it = Fixture::new().await;
    let team = it.make("ada", "first").await;
    it.rename("ada", "first", "second", it.now).await.unwrap();
    assert_eq!(it.tenancy.resolve("second").unwrap().id, team.id);
    assert_eq!(it.tenancy.resolve("first").unwrap().id, team.id, "old links work");
    let taken = it.tenancy.create_workspace(&user("eve"), false, wanted("first"), it.now).await;
    assert!(matches!(taken, Err(Error::Invalid(_))));
    it.rename("ada", "second", "first", it.now).await.unwrap();
    it.rename("ada", "first", "second", it.now).await.unwrap();

    let later = it.now + Duration::days(91);
    let other = it.tenancy.create_workspace(&user("eve"), false, wanted("first"), later).await.unwrap();
    assert_eq!(it.tenancy.resolve("first").unwrap().id, other.id);
    assert_eq!(it.tenancy.resolve("second").unwrap().id, team.id);

    // As many names as one likes cannot be kept from others.
    let mut name = "second".to_owned();
    for n in 0..5 {
        let next = format!("name-{n}");
        it.rename("ada", &name, &next, later).await.unwrap();
        name = next;
    }
    assert!(matches!(it.rename("ada", &name, "another", later).await, Err(Error::Conflict(_))));
    it.rename("ada", &name, "name-1", later).await.unwrap();
}

#[tokio::test]
async fn two_renames_at_once_leave_one_name() {
    let it = Fixture::new().await;
    let team = it.make("ada", "team").await;
    let all = (0..8).map(|n| {
        let (tenancy, id, now) = (it.tenancy.clone(), team.id.clone(), it.now);
        let change = Change { slug: Some(format!("name-{n}")), ..Change::default() };
        tokio::spawn(async move { tenancy.update(&user("ada"), id.as_str(), change, now).await })
    });
    let won = join_all(all).await.into_iter().filter_map(|done| done.unwrap().ok()).count();
    assert!(won >= 1);
    let slug = it.tenants.find(&team.id).unwrap().slug.clone().unwrap();
    assert_eq!(it.tenancy.resolve(&slug).unwrap().id, team.id);
    for found in it.slugs.of_tenant(&team.id) {
        assert!(*found.slug == slug || found.left_at.is_some(), "{found:?} is neither its name nor was it");
    }
}

#[tokio::test]
async fn a_workspace_keeps_an_owner_whoever_leaves_at_once() {
    for round in 0..20 {
        let it = Fixture::new().await;
        let team = it.make("ada", "team").await;
        it.join(&team, "bob", MemberRole::Owner).await;
        it.join(&team, "cyd", MemberRole::Owner).await;
        let all = ["ada", "bob", "cyd"].map(|who| {
            let (tenancy, now) = (it.tenancy.clone(), it.now);
            tokio::spawn(async move { tenancy.leave(&user(who), "team", |_| true, now).await })
        });
        let left = join_all(all).await.into_iter().filter(|left| left.as_ref().unwrap().is_ok()).count();
        let owners = ["ada", "bob", "cyd"].map(|who| it.role(&team, who)).into_iter().flatten().count();
        assert_eq!((left + owners, owners >= 1), (3, true), "round {round}");
        let owner = it.tenants.find(&team.id).unwrap().owner.clone().unwrap();
        assert_eq!(it.members.find(&team.id, &owner).unwrap().role, MemberRole::Owner);
    }
}

#[tokio::test]
async fn the_last_owner_cannot_go_before_handing_over() {
    let it = Fixture::new().await;
    let team = it.make("ada", "team").await;
    it.join(&team, "bob", MemberRole::Member).await;
    let (ada, bob) = (user("ada"), user("bob"));
    assert!(matches!(it.tenancy.leave(&ada, "team", |_| true, it.now).await, Err(Error::Conflict(_))));
    let demoted = it.tenancy.change_role(&ada, "team", &ada, MemberRole::Guest, it.now).await;
    assert!(matches!(demoted, Err(Error::Conflict(_))));
    it.tenancy.transfer(&ada, "team", &bob, |_| true).await.unwrap();
    assert_eq!((it.role(&team, "ada"), it.role(&team, "bob")), (Some(MemberRole::Owner), Some(MemberRole::Owner)));
    assert!(matches!(it.tenancy.remove_member(&ada, "team", &bob, |_| true, it.now).await, Err(Error::Conflict(_))));
    it.tenancy.leave(&ada, "team", |_| true, it.now).await.unwrap();
    assert_eq!(it.role(&team, "ada"), None);
    assert!(matches!(it.tenancy.members(&ada, "team", None, 9), Err(Error::NotFound(_))));
}

#[tokio::test]
async fn a_workspace_is_handed_to_nobody_whose_account_is_gone() {
    let it = Fixture::new().await;
    let team = it.make("ada", "team").await;
    it.join(&team, "bob", MemberRole::Owner).await;
    it.join(&team, "cyd", MemberRole::Owner).await;
    let (ada, bob) = (user("ada"), user("bob"));
    let handed = it.tenancy.transfer(&ada, "team", &bob, |user| *user != bob).await;
    assert!(matches!(handed, Err(Error::NotFound("account"))));
    assert!(matches!(it.tenancy.leave(&ada, "team", |user| *user == ada, it.now).await, Err(Error::Conflict(_))));
    it.tenancy.leave(&ada, "team", |user| *user != bob, it.now).await.unwrap();
    assert_eq!(it.tenants.find(&team.id).unwrap().owner, Some(user("cyd")));
}

#[tokio::test]
async fn admins_manage_those_below_them_only() {
    let it = Fixture::new().await;
    let team = it.make("ada", "team").await;
    for (who, role) in [("bob", MemberRole::Admin), ("cyd", MemberRole::Admin), ("dan", MemberRole::Member)] {
        it.join(&team, who, role).await;
    }
    let change = async |actor: &str, who: &str, role| {
        it.tenancy.change_role(&user(actor), "team", &user(who), role, it.now).await
    };
    assert!(change("bob", "dan", MemberRole::Guest).await.is_ok());
    for (who, role) in
        [("dan", MemberRole::Admin), ("cyd", MemberRole::Guest), ("ada", MemberRole::Guest), ("bob", MemberRole::Owner)]
    {
        assert!(matches!(change("bob", who, role).await, Err(Error::Forbidden(_))), "{who}");
    }
    assert!(matches!(change("dan", "dan", MemberRole::Member).await, Err(Error::Forbidden(_))));
    assert!(matches!(change("eve", "dan", MemberRole::Member).await, Err(Error::NotFound(_))));
    assert!(matches!(it.rename("bob", "team", "other", it.now).await, Err(Error::Forbidden(_))));
    let named = Change { name: Some("Other".to_owned()), ..Change::default() };
    assert_eq!(it.tenancy.update(&user("bob"), "team", named, it.now).await.unwrap().name, "Other");
}

#[tokio::test]
async fn an_invitation_lets_one_person_in() {
    let it = Fixture::new().await;
    let team = it.make("ada", "team").await;
    let token = it.invite("ada", MemberRole::Member, None).await;
    let all = (0..10).map(|n| {
        let (tenancy, token, now) = (it.tenancy.clone(), token.clone(), it.now);
        tokio::spawn(async move { tenancy.accept(&token, &user(&format!("u{n}")), proved("x@y.z"), now).await })
    });
    let joined = join_all(all).await.into_iter().filter(|joined| joined.as_ref().unwrap().is_ok()).count();
    assert_eq!((joined, it.members.len()), (1, 2));

    // Only whom it is for, and only while it stands.
    let token = it.invite("ada", MemberRole::Guest, Some("Bob@Example.com")).await;
    let accept = async |who: &str, email: &str, now| it.tenancy.accept(&token, &user(who), proved(email), now).await;
    assert!(matches!(accept("eve", "eve@example.com", it.now).await, Err(Error::Forbidden(_))));
    assert!(matches!(accept("bob", "bob@example.com", it.now + Duration::days(8)).await, Err(Error::NotFound(_))));
    let unproved = Address { is_verified: false, ..proved("bob@example.com") };
    assert!(matches!(it.tenancy.accept(&token, &user("eve"), unproved, it.now).await, Err(Error::Forbidden(_))));
    assert!(matches!(it.tenancy.decline(&token, unproved, it.now).await, Err(Error::Forbidden(_))));
    let open = it.invite("ada", MemberRole::Guest, None).await;
    assert!(it.tenancy.preview(&open, unproved, it.now).is_ok(), "it names nobody");
    assert_eq!(accept("bob", "bob@example.com", it.now).await.unwrap().1, MemberRole::Guest);
    assert_eq!(
        accept("bob", "bob@example.com", it.now).await.unwrap().1,
        MemberRole::Guest,
        "asking again changes nothing"
    );
    it.tenancy.remove_member(&user("ada"), "team", &user("bob"), |_| true, it.now).await.unwrap();
    assert!(matches!(accept("bob", "bob@example.com", it.now).await, Err(Error::NotFound(_))), "the removed stay out");
    assert_eq!(it.role(&team, "bob"), None);
}

#[tokio::test]
async fn whoever_may_invite_no_more_leaves_no_open_doors() {
    let it = Fixture::with(|config| config.max_invitations = 2).await;
    let team = it.make("ada", "team").await;
    it.join(&team, "bob", MemberRole::Admin).await;
    let token = it.invite("bob", MemberRole::Member, None).await;
    let second =
        it.tenancy.invite(&user("ada"), "team", NewInvitation { role: MemberRole::Admin, email: None }, it.now).await;
    let second = second.unwrap();
    let third = NewInvitation { role: MemberRole::Guest, email: None };
    assert!(matches!(it.tenancy.invite(&user("ada"), "team", third, it.now).await, Err(Error::Full { most: 2, .. })));
    it.tenancy.change_role(&user("ada"), "team", &user("bob"), MemberRole::Member, it.now).await.unwrap();
    assert!(matches!(it.tenancy.preview(&token, proved("x@y.z"), it.now), Err(Error::NotFound(_))));
    assert!(matches!(it.tenancy.accept(&token, &user("cyd"), proved("x@y.z"), it.now).await, Err(Error::NotFound(_))));
    it.tenancy.revoke_invitation(&user("ada"), "team", second.invitation.id.as_str()).await.unwrap();
    assert!(matches!(
        it.tenancy.accept(&second.token, &user("cyd"), proved("x@y.z"), it.now).await,
        Err(Error::NotFound(_))
    ));
    let refused = NewInvitation { role: MemberRole::Owner, email: None };
    assert!(matches!(it.tenancy.invite(&user("ada"), "team", refused, it.now).await, Err(Error::Invalid(_))));
}

#[tokio::test]
async fn a_workspace_has_so_many_members_and_no_more() {
    let it = Fixture::with(|config| config.max_members = 5).await;
    it.make("ada", "team").await;
    let mut tokens = Vec::new();
    for _ in 0..10 {
        tokens.push(it.invite("ada", MemberRole::Member, None).await);
    }
    let all = tokens.iter().enumerate().map(|(n, token)| {
        let (tenancy, token, now) = (it.tenancy.clone(), token.clone(), it.now);
        tokio::spawn(async move { tenancy.accept(&token, &user(&format!("u{n}")), proved("x@y.z"), now).await })
    });
    let joined = join_all(all).await.into_iter().filter(|joined| joined.as_ref().unwrap().is_ok()).count();
    assert!(joined <= 4, "{joined}");
    assert_eq!(it.members.len(), joined + 1, "whoever found no room is no member");
}

#[tokio::test]
async fn changes_are_counted_and_workspaces_may_be_for_admins() {
    let it = Fixture::with(|config| {
        config.creation = Creation::Admins;
        config.changes_per_minute = 2.try_into().unwrap();
    })
    .await;
    let make = async |slug: &str, admin| it.tenancy.create_workspace(&user("ada"), admin, wanted(slug), it.now).await;
    assert!(matches!(make("team", false).await, Err(Error::Forbidden(_))));
    assert!(make("team-1", true).await.is_ok() && make("team-2", true).await.is_ok());
    assert!(matches!(make("team-3", true).await, Err(Error::RateLimited(_))));
}

#[tokio::test]
async fn the_archived_are_there_for_their_owners_only() {
    let it = Fixture::new().await;
    let team = it.make("ada", "team").await;
    it.join(&team, "bob", MemberRole::Admin).await;
    let archive = |archived| Change { archived: Some(archived), ..Change::default() };
    it.tenancy.update(&user("ada"), "team", archive(true), it.now).await.unwrap();
    assert!(it.tenancy.resolve("team").is_none() && it.tenancy.resolve(team.id.as_str()).is_none());
    assert!(matches!(it.tenancy.workspace("team", &user("bob")), Err(Error::NotFound(_))));
    assert_eq!(it.tenancy.workspaces(&user("bob"), None, 9).len(), 0);
    assert_eq!(it.tenancy.workspaces(&user("ada"), None, 9).len(), 1);
    it.tenancy.update(&user("ada"), "team", archive(false), it.now).await.unwrap();
    assert_eq!(it.tenancy.resolve("team").unwrap().id, team.id);
}

#[tokio::test]
async fn interrupted_changes_are_finished_or_taken_back() {
    let it = Fixture::new().await;
    let team = it.make("ada", "team").await;
    let ghost = TenantId::parse("w-ghost").unwrap();
    let never = |_: &_| false;
    let member = |tenant: &TenantId, who: &str, role| Member {
        tenant: tenant.clone(),
        user: user(who),
        role,
        invited_by: None,
        joined_at: it.now,
    };
    // A workspace whose making stopped before the tenant was written.
    assert!(it.slugs.claim("ghost", &ghost, it.now, never).await.unwrap());
    it.members.add(member(&ghost, "ada", MemberRole::Owner)).await.unwrap();
    // Renames that stopped after the claim, and after the leave.
    assert!(it.slugs.claim("claimed", &team.id, it.now, never).await.unwrap());
    it.slugs.leave("team", &team.id, it.now).await.unwrap();
    // An owner whose membership was lost, an invitation that was taken and not entered.
    it.members.remove(&team.id, &user("ada"), MemberRole::Owner).await.unwrap();
    let taken = Invitation {
        id: InvitationId::of("token"),
        tenant: team.id.clone(),
        role: MemberRole::Guest,
        email: None,
        created_by: user("ada"),
        created_at: it.now,
        expires_at: it.now + Duration::DAY,
        status: InvitationStatus::Taken { by: user("bob") },
    };
    it.invitations.create(taken.clone()).await.unwrap();

    // Nothing of it misleads before it is repaired.
    assert!(it.tenancy.resolve("ghost").is_none() && it.tenancy.resolve("claimed").is_none());
    assert_eq!(it.tenancy.resolve("team").unwrap().id, team.id);
    assert_eq!(it.role(&team, "ada"), Some(MemberRole::Owner), "the tenant's own record says so");
    assert_eq!(it.tenancy.workspaces(&user("ada"), None, 9).len(), 0);
    assert!(it.tenancy.roster(&team).contains(&(user("ada"), MemberRole::Owner)));

    assert_eq!(it.tenancy.repair(it.now).await.unwrap(), 5);
    assert!(it.slugs.find("ghost").is_none() && it.slugs.find("claimed").is_none());
    assert_eq!(it.tenancy.resolve("team").unwrap().id, team.id);
    assert_eq!(it.tenancy.workspaces(&user("ada"), None, 9).len(), 1);
    assert_eq!(it.role(&team, "bob"), Some(MemberRole::Guest));
    assert_eq!(it.invitations.find(&taken.id).unwrap().status, InvitationStatus::Accepted { by: user("bob") });
    assert_eq!(it.tenancy.repair(it.now).await.unwrap(), 0, "once is enough");
    it.make("eve", "ghost").await;
}

#[tokio::test]
async fn a_slug_that_its_workspace_takes_back_after_the_hold_is_its_own_at_once() {
    let it = Fixture::new().await;
    let team = it.make("ada", "team").await;
    it.rename("ada", "team", "crew", it.now).await.unwrap();
    let later = it.now + Duration::days(400);
    // As a rename does it, before the tenant bears the name.
    let own = it.slugs.find("team").unwrap();
    let is_free = |slug: &Slug| rules::standing(slug, Some(&team_of(&it, &team)), later) == Standing::Free;
    assert!(is_free(&own));
    assert!(it.slugs.claim("team", &team.id, later, is_free).await.unwrap());
    let claimed = it.slugs.find("team").unwrap();
    assert_eq!((claimed.claimed_at, claimed.left_at), (later, None));
    let stranger = it.tenancy.create_workspace(&user("eve"), false, wanted("team"), later).await;
    assert!(matches!(stranger, Err(Error::Invalid(_))), "nobody takes it between the claim and the rename");
}

#[tokio::test]
async fn an_acceptance_that_was_interrupted_can_be_finished_only_while_the_door_is_open() {
    let it = Fixture::new().await;
    let team = it.make("ada", "team").await;
    it.join(&team, "cyd", MemberRole::Admin).await;
    let stuck = async |maker: &str, token: &str| {
        let taken = Invitation {
            id: InvitationId::of(token),
            tenant: team.id.clone(),
            role: MemberRole::Guest,
            email: None,
            created_by: user(maker),
            created_at: it.now,
            expires_at: it.now + Duration::DAY,
            status: InvitationStatus::Taken { by: user("bob") },
        };
        it.invitations.create(taken.clone()).await.unwrap();
        taken.id
    };
    let accept = async |token: &str, now| it.tenancy.accept(token, &user("bob"), proved("x@y.z"), now).await;
    let late = it.now + Duration::days(2);
    let (by_ada, by_cyd) = (stuck("ada", "a").await, stuck("cyd", "c").await);
    assert!(matches!(accept("a", late).await, Err(Error::NotFound(_))));
    assert_eq!(it.tenancy.invitations(&user("ada"), "team", it.now).unwrap().len(), 2, "owners see it");
    it.tenancy.change_role(&user("ada"), "team", &user("cyd"), MemberRole::Member, it.now).await.unwrap();
    assert!(matches!(accept("c", it.now).await, Err(Error::NotFound(_))), "its maker may not invite any more");
    it.tenancy.revoke_invitation(&user("ada"), "team", by_ada.as_str()).await.unwrap();
    assert!(matches!(accept("a", it.now).await, Err(Error::NotFound(_))));

    stuck("ada", "late").await;
    assert_eq!(it.tenancy.repair(late).await.unwrap(), 2);
    assert!(it.invitations.find(&by_cyd).is_none() && it.invitations.all().is_empty());
    assert_eq!(it.role(&team, "bob"), None);
    stuck("ada", "fresh").await;
    assert_eq!(accept("fresh", it.now).await.unwrap().1, MemberRole::Guest);
}

#[tokio::test]
async fn what_belongs_to_a_tenant_whose_record_cannot_be_read_is_left_alone() {
    let it = Fixture::new().await;
    let team = it.make("ada", "team").await;
    it.join(&team, "bob", MemberRole::Member).await;
    let token = it.invite("ada", MemberRole::Guest, None).await;
    it.rename("ada", "team", "crew", it.now).await.unwrap();
    let damage = async |key: &str| {
        let entry = it.store.get(key).await.unwrap().unwrap();
        it.store.update(key, "{\"id\":".into(), entry.revision).await.unwrap();
    };
    let key = format!("tenant.{}", team.id);
    let whole = it.store.get(&key).await.unwrap().unwrap().value;
    damage(&key).await;
    let store = Arc::clone(&it.store);
    let it = it.restart().await;
    assert!(it.tenants.find(&team.id).is_none(), "the view hides it");

    let later = it.now + Duration::days(1);
    assert_eq!(it.tenancy.repair(later).await.unwrap(), 0);
    assert_eq!(it.members.len(), 2);
    assert!(it.invitations.find(&InvitationId::of(&token)).is_some());
    for name in ["crew", "team"] {
        let asked = it.tenancy.create_workspace(&user("eve"), false, wanted(name), it.now + Duration::days(400)).await;
        assert!(matches!(asked, Err(Error::Invalid(_))), "{name} was given away");
    }

    let entry = store.get(&key).await.unwrap().unwrap();
    store.update(&key, whole, entry.revision).await.unwrap();
    let it = it.restart().await;
    assert_eq!(it.tenancy.resolve("crew").unwrap().id, team.id);
    assert_eq!(it.role(&team, "bob"), Some(MemberRole::Member));
}

#[tokio::test]
async fn one_damaged_record_does_not_keep_the_others_from_being_repaired() {
    let it = Fixture::new().await;
    let team = it.make("ada", "team").await;
    let key = format!("slug.{}", team.slug.as_deref().unwrap());
    let entry = it.store.get(&key).await.unwrap().unwrap();
    it.store.update(&key, "{".into(), entry.revision).await.unwrap();
    assert!(it.slugs.claim("ghost", &TenantId::parse("w-ghost").unwrap(), it.now, |_| false).await.unwrap());
    let it = it.restart().await;
    assert_eq!(it.tenancy.repair(it.now).await.unwrap(), 1);
    assert!(it.slugs.find("ghost").is_none());
}

#[tokio::test]
async fn lists_are_paged_from_both_sides() {
    let it = Fixture::new().await;
    let mut teams = Vec::new();
    for n in 0..5 {
        let team = it.make("ada", &format!("team-{n}")).await;
        it.join(&team, "bob", MemberRole::Member).await;
        teams.push(team.id.clone());
    }
    teams.sort();
    let page = |after: Option<&TenantId>| {
        it.tenancy.workspaces(&user("bob"), after, 2).iter().map(|(team, _)| team.id.clone()).collect::<Vec<_>>()
    };
    assert_eq!(page(None), teams[..2]);
    assert_eq!(page(Some(&teams[1])), teams[2..4]);
    assert_eq!(page(Some(&teams[3])), teams[4..]);
    let members = it.tenancy.members_of(&teams[0], None, 1);
    assert_eq!(members[0].user, user("ada"));
    assert_eq!(it.tenancy.members_of(&teams[0], Some(&members[0].user), 9)[0].user, user("bob"));
}

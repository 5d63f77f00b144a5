//! One subscription call: whose stream becomes whose, and what follows for its link.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::mpsc;
use tokio::sync::oneshot;
use tokio::time::Instant;

use super::Audience;
use super::Error;
use super::Subscribe;
use super::client::Client;
use super::client::Tally;
use super::hub::Reason;
use super::hub::Shared;
use super::link::Change;
use super::places::network;
use super::subscription;
use super::subscription::Binding;
use super::subscription::Rights;
use crate::ids::TenantId;
use crate::supervisor::Lease;

impl Shared {
    /// Binds and subscribes; runs to its end once begun.
    pub(super) async fn bind(self: Arc<Self>, call: Subscribe) -> Result<(), Error> {
        let Subscribe { client_id, subscriptions, ip, audience } = call;
        subscription::check(&client_id, &subscriptions)?;
        let client = self.clients.get(&*client_id).map(|client| Arc::clone(&client)).ok_or(Error::UnknownClient)?;
        if network(client.ip) != network(ip) {
            return Err(Error::OtherAddress);
        }
        let next = self.binding(audience)?;
        let (topics, oauth2) = subscription::split(subscriptions);
        let _turn = client.turn.lock().await;
        let changed = self.take_seat(&client, next, topics, oauth2)?;
        let tenant = client.seat().binding.tenant().cloned();
        let Some(tenant) = tenant else { return Ok(()) };
        self.join(&tenant, &client);
        if client.seat().has_ended {
            // It ended between the two: nobody else takes it out of the room again.
            self.leave(&tenant, &client);
            return Err(Error::UnknownClient);
        }
        self.follow(&client, &tenant, changed).await
    }

    fn binding(&self, audience: Audience) -> Result<Binding, Error> {
        Ok(match audience {
            Audience::SignIn => Binding::SignIn,
            Audience::Visitor { tenant, authorization } => {
                let authorization = subscription::unexpired(authorization, SystemTime::now());
                Binding::Bound { tenant, rights: Rights::Visitor(authorization) }
            }
            Audience::Member { tenant, token: _, principal } => {
                if !(self.admits)(&principal.user, &tenant) {
                    return Err(Error::NotAdmitted);
                }
                let standing = self.verifier.standing(&principal).map_err(|_| Error::SessionEnded)?;
                Binding::Bound { tenant, rights: Rights::Member(Box::new(standing)) }
            }
        })
    }

    /// Notes the new binding; says whether the instance is asked for something else than before.
    fn take_seat(&self, client: &Arc<Client>, next: Binding, topics: Vec<String>, oauth2: bool) -> Result<bool, Error> {
        let mut seat = client.seat();
        if seat.has_ended {
            return Err(Error::UnknownClient);
        }
        seat.binding.admits(&next)?;
        let waits = next.is_guest() && topics.is_empty();
        match &next {
            Binding::Bound { rights: Rights::Member(standing), .. } if seat.user_place.is_none() => {
                seat.user_place = Some(self.per_user.take(standing.user().clone()).ok_or(Error::TooMany)?);
            }
            _ if waits && seat.sign_in_place.is_none() => {
                seat.sign_in_place = Some(self.sign_ins.take(network(client.ip)).ok_or(Error::TooMany)?);
            }
            _ => {}
        }
        if !waits {
            seat.sign_in_place = None;
        }
        if let (Some(tenant), None) = (next.tenant(), &seat.tenant_place) {
            seat.tenant_place = Some(self.per_tenant.take(tenant.clone()).ok_or(Error::TooMany)?);
        }
        let changed = *seat.topics != *topics || !seat.binding.has_rights_of(&next);
        if seat.link.is_none() {
            let state = if next.tenant().is_some() { "parked" } else { "sign_in" };
            seat.tally = None;
            seat.tally = Some(Tally::new(&self.metrics, state));
        }
        // Nobody who only waits for a sign-in has anything to ask of an instance.
        seat.topics = if next.tenant().is_some() { topics.into() } else { Arc::default() };
        seat.oauth2 = oauth2;
        // Subscribing again does not prolong the wait for a sign-in.
        if !waits || seat.binding.tenant().is_none() && !matches!(seat.binding, Binding::SignIn) {
            seat.bound_at = Instant::now();
        }
        seat.binding = next;
        Ok(changed)
    }

    /// Brings the client's link in line with its seat: attached if the instance is awake, parked if not.
    async fn follow(self: &Arc<Self>, client: &Arc<Client>, tenant: &TenantId, changed: bool) -> Result<(), Error> {
        let linked = client.seat().link.as_ref().map(|link| (link.epoch, link.changes.clone()));
        let outcome = match (self.supervisor.visit(tenant), linked) {
            (Some(lease), Some((epoch, link))) if lease.epoch() == epoch => self.change(client, &lease, link).await,
            (Some(_), _) if client.seat().topics.is_empty() => Ok(()),
            (Some(lease), _) => self.attach(client, &lease).await,
            // The instance is about to stop. Its last events are on their way, but not those newly asked for.
            (None, Some(_)) if changed => Err(Error::Unreachable),
            // What is in flight there may still write, and would not be heard.
            (None, None) if self.supervisor.is_draining(tenant) => Err(Error::Unreachable),
            (None, _) => Ok(()),
        };
        if let Err(error) = &outcome {
            let ended = matches!(error, Error::SessionEnded | Error::NotAdmitted);
            self.end(client, if ended { Reason::Session } else { Reason::Unattached });
        }
        outcome
    }

    async fn change(&self, client: &Client, lease: &Lease, link: mpsc::Sender<Change>) -> Result<(), Error> {
        let (topics, authorization) = self.credentials(client, lease)?;
        let (reply, answer) = oneshot::channel();
        link.send(Change { topics, authorization, reply }).await.map_err(|_| Error::Unreachable)?;
        answer.await.unwrap_or(Err(Error::Unreachable))
    }
}

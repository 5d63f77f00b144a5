//! What bounds the calls beyond passwords: mails that strangers have sent to others, guesses at one-time passwords,
//! and calls that wait for somebody else's server.
//!
//! An address that has no account counts like one that has, so that limits tell nothing. Memory holds digests and has
//! a bound.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use sha2::Digest;
use sha2::Sha256;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::Semaphore;

use super::config::Mail;
use crate::auth::gate::Error;
use crate::auth::gate::bucket;
use crate::limits::Keyed;
use crate::telemetry::Metrics;
use crate::telemetry::ReasonLabels;

const HOUR: Duration = Duration::from_hours(1);

/// Addresses and one-time passwords that are remembered at once.
const MAX_KEYS: usize = 100_000;

/// How many times `mail.requests_per_recipient` one recipient gets of one kind in an hour from all networks together:
/// nobody is bombed, and it takes as many networks to keep somebody from a mail that they wait for.
const NETWORKS: u32 = 5;

/// Guesses at one one-time password, by everybody. Only who asked for it knows its id, so this locks out nobody else.
const GUESSES: u32 = 10;

/// Calls under way that wait for a sign-in service or a mail server. They have places of their own: a slow service
/// must not take those of password checks.
const ABROAD: usize = 16;

/// When a call that found no place should come back.
const RETRY_AFTER: Duration = Duration::from_secs(2);

/// A recipient or a one-time password, as a digest of fixed size.
type Key = [u8; 32];

/// The limits.
#[derive(Debug)]
pub(super) struct Bounds {
    mails_from: Mutex<Keyed<IpAddr>>,
    /// By kind, recipient and network: who asks for mails to somebody else uses up their own share.
    mails_to_from: Mutex<Keyed<Key>>,
    /// By kind and recipient, wherever it is asked for.
    mails_to: Mutex<Keyed<Key>>,
    guesses: Mutex<Keyed<Key>>,
    abroad: Arc<Semaphore>,
    metrics: Arc<Metrics>,
}

impl Bounds {
    pub(super) fn new(mail: &Mail, metrics: Arc<Metrics>) -> Self {
        Self {
            mails_from: Mutex::new(Keyed::new(mail.requests_per_ip.get(), HOUR, MAX_KEYS)),
            mails_to_from: Mutex::new(Keyed::new(mail.requests_per_recipient.get(), HOUR, MAX_KEYS)),
            mails_to: Mutex::new(Keyed::new(in_all(mail), HOUR, MAX_KEYS)),
            guesses: Mutex::new(Keyed::new(GUESSES, HOUR, MAX_KEYS)),
            abroad: Arc::new(Semaphore::new(ABROAD)),
            metrics,
        }
    }

    /// Counts a mail of this kind to `recipient`, asked for from this address. Kinds do not share: who has one sent
    /// again and again keeps nobody from another.
    pub(super) fn mail(&self, kind: &str, from: IpAddr, recipient: &str, now: Instant) -> Result<(), Error> {
        let (from, recipient) = (bucket(from), recipient.trim().to_lowercase());
        self.take(&self.mails_from, &from, "mail", now)?;
        // In this order: whoever has used up their share takes nothing from the recipient's.
        self.take(&self.mails_to_from, &digest(&format!("{kind} {from} {recipient}")), "mail", now)?;
        self.take(&self.mails_to, &digest(&format!("{kind} {recipient}")), "mail", now)
    }

    /// Counts a mail that an account asks for, whoever it goes to.
    pub(super) fn mail_of(&self, account: &str, now: Instant) -> Result<(), Error> {
        // An id has no space: it meets no other count.
        self.take(&self.mails_to_from, &digest(account), "mail", now)
    }

    /// Counts a guess at a one-time password.
    pub(super) fn guess(&self, otp: &str, now: Instant) -> Result<(), Error> {
        self.take(&self.guesses, &digest(otp), "account", now)
    }

    /// A place for a call that waits for a server which is not ours.
    pub(super) fn abroad(&self) -> Result<OwnedSemaphorePermit, Error> {
        Arc::clone(&self.abroad).try_acquire_owned().map_err(|_| {
            self.count("busy");
            Error::Overloaded(RETRY_AFTER)
        })
    }

    fn take<K>(&self, limit: &Mutex<Keyed<K>>, key: &K, reason: &'static str, now: Instant) -> Result<(), Error>
    where
        K: Clone + Eq + std::hash::Hash,
    {
        let checked = limit.lock().unwrap_or_else(PoisonError::into_inner).check(key, now);
        checked.map_err(|wait| {
            self.count(reason);
            Error::RateLimited(wait)
        })
    }

    fn count(&self, reason: &'static str) {
        self.metrics.auth_refused.get_or_create(&ReasonLabels { reason }).inc();
    }
}

/// Mails of one kind to one recipient in an hour.
fn in_all(mail: &Mail) -> u32 {
    mail.requests_per_recipient.get().saturating_mul(NETWORKS)
}

fn digest(text: &str) -> Key {
    Sha256::digest(text.as_bytes()).into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::auth::accounts::config::tests::sections;

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    #[test]
    fn nobody_is_sent_more_than_the_bound_whoever_asks_and_however_it_is_spelled() {
        let (mail, _) = sections(|_, _| {});
        let (bounds, now) = (Bounds::new(&mail, Metrics::new()), Instant::now());
        let sent = (0..100).filter(|n| {
            let spelled = ["eve@example.com", " Eve@Example.com", "EVE@example.com"][usize::from(*n % 3)];
            bounds.mail("otp", address(*n), spelled, now).is_ok()
        });
        assert_eq!(sent.count(), 10);
        assert_eq!(bounds.mail("otp", address(3), "bob@example.com", now), Ok(()));
        assert_eq!(bounds.mail("otp", address(3), "eve@example.com", now + HOUR), Ok(()));
    }

    #[test]
    fn a_stranger_keeps_nobody_from_the_mail_they_wait_for() {
        let (mail, _) = sections(|_, _| {});
        let (bounds, now) = (Bounds::new(&mail, Metrics::new()), Instant::now());
        let sent = (0..20).filter(|_| bounds.mail("otp", address(66), "eve@example.com", now).is_ok()).count();
        assert_eq!(sent, 2, "the stranger's share");
        assert_eq!(bounds.mail("otp", address(1), "eve@example.com", now), Ok(()), "the same from elsewhere");
        let all = (0..100).filter(|n| bounds.mail("otp", address(*n), "eve@example.com", now).is_ok()).count();
        assert_eq!(all, 7, "what is left of everybody's");
        assert_eq!(bounds.mail("reset", address(1), "eve@example.com", now), Ok(()), "another kind");
    }

    #[test]
    fn one_address_cannot_mail_the_world() {
        let (mail, _) = sections(|_, _| {});
        let (bounds, now) = (Bounds::new(&mail, Metrics::new()), Instant::now());
        let sent =
            (0..100).filter(|n| bounds.mail("otp", address(1), &format!("n{n}@example.com"), now).is_ok()).count();
        assert_eq!(sent, 30);
        assert_eq!(bounds.mail("otp", address(2), "n99@example.com", now), Ok(()));
    }

    #[test]
    fn a_one_time_password_is_not_guessed_from_many_places() {
        let (mail, _) = sections(|_, _| {});
        let (bounds, now) = (Bounds::new(&mail, Metrics::new()), Instant::now());
        assert_eq!((0..50).filter(|_| bounds.guess("otp", now).is_ok()).count(), 10);
        assert_eq!(bounds.guess("another", now), Ok(()));
    }

    #[test]
    fn calls_abroad_have_places_of_their_own() {
        let (mail, _) = sections(|_, _| {});
        let bounds = Bounds::new(&mail, Metrics::new());
        let held: Vec<_> = (0..ABROAD).map(|_| bounds.abroad().unwrap()).collect();
        assert_eq!(bounds.abroad().map(drop), Err(Error::Overloaded(RETRY_AFTER)));
        drop(held);
        assert!(bounds.abroad().is_ok());
    }
}

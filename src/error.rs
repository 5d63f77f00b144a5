//! The registry of error codes and the two shapes in which an error leaves pocketfleet.
//!
//! Each domain has its own error enum; `impl From<domain::Error> for Problem` classifies every variant, so that a
//! new one does not compile until somebody decided what the caller sees. Internals (`source` chains) are logged
//! where they are handled and never put into a [`Problem`].

use std::borrow::Cow;
use std::time::Duration;

use serde_json::{Map, Value, json};

/// What went wrong, as a caller must distinguish it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The request itself is wrong; repeating it changes nothing.
    Client,
    /// Too much was asked at once; the same request may work later.
    Limit,
    /// Something on our side of the line, or behind us, is not available.
    Server,
}

macro_rules! codes {
    ($($(#[$doc:meta])* $name:ident = $text:literal, $status:literal, $kind:ident, $message:literal;)*) => {
        /// Every error code that a caller can meet: stable, documented, never reused.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
        pub enum Code {
            $($(#[$doc])* $name,)*
        }

        impl Code {
            /// All codes, in the order of the documentation.
            pub const ALL: &'static [Self] = &[$(Self::$name,)*];

            /// The code as callers see it.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }

            /// The HTTP status it is answered with.
            pub fn status(self) -> u16 {
                match self { $(Self::$name => $status,)* }
            }

            /// Who has to act.
            pub fn kind(self) -> ErrorKind {
                match self { $(Self::$name => ErrorKind::$kind,)* }
            }

            /// The message used when nothing more precise is known.
            pub fn message(self) -> &'static str {
                match self { $(Self::$name => $message,)* }
            }
        }
    };
}

codes! {
    /// A malformed request line, header or path.
    InvalidRequest = "INVALID_REQUEST", 400, Client, "the request is malformed";
    /// A body that is not what the route takes.
    InvalidBody = "INVALID_BODY", 400, Client, "the body is not what this route takes";
    /// Fields that fail validation; `details` names them.
    ValidationFailed = "VALIDATION_FAILED", 400, Client, "some fields are not valid; see details";
    /// E-mail address or password are wrong.
    InvalidCredentials = "INVALID_CREDENTIALS", 400, Client, "the e-mail address or the password is wrong";
    /// The first of two ways to sign in was right; `details.mfaId` goes with the second.
    MfaRequired = "MFA_REQUIRED", 401, Client, "that was right; now sign in another way too, with this mfaId";
    /// No credential, or one that is not valid (any more).
    Unauthorized = "UNAUTHORIZED", 401, Client, "sign in and send the token as `Authorization: Bearer <token>`";
    /// A valid credential without the right.
    Forbidden = "FORBIDDEN", 403, Client, "this account may not do that";
    /// Nothing here, or nothing that the caller may know of.
    NotFound = "NOT_FOUND", 404, Client, "there is nothing at this address";
    /// Showing a secret needs a sign-in of the last minutes; a refreshed token is not one.
    SignInAgain = "SIGN_IN_AGAIN", 403, Client, "sign in again for this; the sign-in is too old";
    /// The path exists, the method does not.
    MethodNotAllowed = "METHOD_NOT_ALLOWED", 405, Client, "this path does not take this method";
    /// The state of the thing does not allow it.
    Conflict = "CONFLICT", 409, Client, "the current state does not allow this";
    /// The secret's time is over.
    SecretExpired = "SECRET_EXPIRED", 409, Client, "this secret has expired; store a new one";
    /// No kind of job that the caller may add.
    UnknownKind = "UNKNOWN_KIND", 400, Client, "there is no kind of job with this name that you may add";
    /// An account with this e-mail address exists.
    EmailTaken = "EMAIL_TAKEN", 400, Client, "an account with this e-mail address exists; sign in instead";
    /// The body is larger than the route takes.
    BodyTooLarge = "BODY_TOO_LARGE", 413, Client, "the body is larger than this route takes";
    /// The request target is too long.
    UriTooLong = "URI_TOO_LONG", 414, Client, "the path and query are too long";
    /// A body in a coding that nobody here decodes.
    UnsupportedMediaType = "UNSUPPORTED_MEDIA_TYPE", 415, Client, "send the body as it is, without Content-Encoding";
    /// An Expect header other than `100-continue`.
    ExpectationFailed = "EXPECTATION_FAILED", 417, Client, "only `Expect: 100-continue` is understood";
    /// A WebSocket's address, and no WebSocket handshake.
    UpgradeRequired = "UPGRADE_REQUIRED", 426, Client, "this address speaks WebSocket, version 13, over HTTP/1.1";
    /// Too many attempts; `Retry-After` says when to come back.
    RateLimited = "RATE_LIMITED", 429, Limit, "too many attempts; wait as long as Retry-After says";
    /// The caller's instance has as many requests waiting as it may.
    TenantBusy = "TENANT_BUSY", 429, Limit, "your instance has too many requests waiting; slow down";
    /// The tenant has as many unfinished jobs as it may.
    TooManyJobs = "TOO_MANY_JOBS", 429, Limit, "too many unfinished jobs; wait until some are done, or cancel some";
    /// The queue as a whole has as many unfinished jobs as it may.
    QueueFull = "QUEUE_FULL", 503, Limit, "the queue is full; try again later";
    /// The idempotency key belongs to a different request.
    IdempotencyKeyReused = "IDEMPOTENCY_KEY_REUSED", 409, Client, "this idempotency key was used for a different request; choose another";
    /// A worker reports on a job that is no longer its own.
    LeaseLost = "LEASE_LOST", 409, Client, "the job is no longer yours: its lease ended, or it was cancelled; drop it";
    /// The request head is larger than allowed.
    HeadersTooLarge = "HEADERS_TOO_LARGE", 431, Client, "the request has too many or too large headers";
    /// An error of ours that nobody planned.
    Internal = "INTERNAL_ERROR", 500, Server, "something went wrong on our side; quote the request id";
    /// A range of bytes beyond the end.
    RangeNotSatisfiable = "RANGE_NOT_SATISFIABLE", 416, Client, "the file has no such range of bytes";
    /// A destination of deliveries that cannot be one; the message says why.
    InvalidDestination = "INVALID_DESTINATION", 400, Client, "this cannot be a destination; the message says why";
    /// The key of a destination is missing or refused there.
    DestinationKey = "DESTINATION_KEY", 409, Client, "the destination's key does not work; store a working one in the vault";
    /// A destination does not do its part.
    DestinationFailed = "DESTINATION_FAILED", 424, Client, "the destination did not take it; see the message";
    /// A stored secret cannot be opened.
    SecretUnreadable = "SECRET_UNREADABLE", 500, Server, "this secret cannot be read any more; store it again";
    /// Not built yet.
    NotImplemented = "NOT_IMPLEMENTED", 501, Server, "this part is not available yet";
    /// Mails cannot be sent, because the operator has not said how.
    MailNotConfigured = "MAIL_NOT_CONFIGURED", 501, Server, "this server sends no mails; ask its operator to configure [mail]";
    /// The instance broke off its answer.
    BadGateway = "BAD_GATEWAY", 502, Server, "the instance broke off; try again";
    /// The waiting room is full.
    Overloaded = "OVERLOADED", 503, Limit, "too many requests are waiting; try again soon";
    /// The instance did not wake in time.
    WakeTimeout = "WAKE_TIMEOUT", 503, Server, "the instance did not wake in time; try again soon";
    /// The instance failed and waits before it is started again.
    TenantBackoff = "TENANT_BACKOFF", 503, Server, "the instance failed and restarts soon";
    /// The instance failed too often; an operator has to release it.
    TenantQuarantined = "TENANT_QUARANTINED", 503, Server, "the instance failed too often and waits for an operator";
    /// The instance cannot start for a reason outside it.
    TenantBlocked = "TENANT_BLOCKED", 503, Server, "the instance cannot be started; an operator has been told why";
    /// Suspended by an operator.
    TenantSuspended = "TENANT_SUSPENDED", 403, Client, "this instance is suspended; ask the operator";
    /// Deleted by its owner or an admin; everything of it is kept for a while.
    TenantDeleted = "TENANT_DELETED", 410, Client, "this was deleted; until it is erased it can be brought back: POST /api/v1/tenants/{id}/undelete";
    /// The tenant has as much on the disk as it may; deleting and reading go on.
    QuotaExceeded = "QUOTA_EXCEEDED", 507, Client, "there is no room left for this; delete something, or ask the operator for more";
    /// The disk of the server is down to its reserve.
    ServerFull = "SERVER_FULL", 507, Server, "the server has no room left; try again later";
    /// As many instances are awake as may be, and none can sleep.
    CapacityReached = "CAPACITY_REACHED", 503, Limit, "no room for another awake instance; try again soon";
    /// Another service had to be asked and did not answer.
    ServiceUnreachable = "SERVICE_UNREACHABLE", 503, Server, "the other service could not be asked; try again, or send `\"verify\": false` to store it unchecked";
    /// The global instance, which holds the accounts, is away.
    AccountsUnavailable = "ACCOUNTS_UNAVAILABLE", 503, Server, "the accounts service is away; try again soon";
    /// Shutting down.
    ShuttingDown = "SHUTTING_DOWN", 503, Server, "the server is shutting down; try again soon";
    /// The user has not stored a key of Fathom's, or it is over.
    FathomKeyMissing = "FATHOM_KEY_MISSING", 409, Client, "store a key of Fathom first: PUT /api/v1/vault with service \"fathom\"";
    /// Fathom does not accept the user's key.
    FathomKeyRefused = "FATHOM_KEY_REFUSED", 409, Client, "Fathom does not accept your key; store a valid one, or connect Fathom again";
    /// Fathom does not let the owner of the key do this.
    FathomRefused = "FATHOM_REFUSED", 409, Client, "Fathom does not let the owner of this key do that";
    /// The limits of the user's key at Fathom are reached.
    FathomBusy = "FATHOM_BUSY", 503, Limit, "Fathom's limit for your key is reached; try again as Retry-After says";
    /// Fathom did not answer, or not with what its document says.
    FathomUnavailable = "FATHOM_UNAVAILABLE", 502, Server, "Fathom did not answer as it should; try again";
    /// Nobody outside can reach this server, as far as it knows.
    WebhooksNotConfigured = "WEBHOOKS_NOT_CONFIGURED", 501, Server, "this server does not know its public URL; ask its operator to set server.public_url";
    /// The operator has not said where backups go.
    BackupsOff = "BACKUPS_OFF", 501, Server, "this server makes no backups; ask its operator to set backup.store";
    /// A backup could not be made, read or put back.
    BackupFailed = "BACKUP_FAILED", 503, Server, "the backup failed; try again later";
    /// No answer in time.
    GatewayTimeout = "GATEWAY_TIMEOUT", 504, Server, "the instance did not answer in time";
}

/// An error as the caller sees it: a code of the registry and a message that says what to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The stable code.
    pub code: Code,
    /// One sentence for a person, lower case, without a full stop.
    pub message: Cow<'static, str>,
    /// Machine-readable particulars; an empty object when there are none.
    pub details: Value,
    /// When it makes sense to try again.
    pub retry_after: Option<Duration>,
}

impl Problem {
    /// The code with its usual message.
    pub fn new(code: Code) -> Self {
        Self { code, message: Cow::Borrowed(code.message()), details: Value::Object(Map::new()), retry_after: None }
    }

    /// Replaces the message by a more precise one.
    #[must_use]
    pub fn message(self, message: impl Into<Cow<'static, str>>) -> Self {
        Self { message: message.into(), ..self }
    }

    /// Adds particulars.
    #[must_use]
    pub fn details(self, details: Value) -> Self {
        Self { details, ..self }
    }

    /// Says when to come back.
    #[must_use]
    pub fn retry_after(self, wait: Duration) -> Self {
        Self { retry_after: Some(wait), ..self }
    }

    /// The value of a `Retry-After` header: whole seconds, rounded up, at least 1.
    pub fn retry_after_seconds(&self) -> Option<u64> {
        self.retry_after.map(|wait| wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1))
    }

    /// The shape of our own routes: `{"error":{"code","type","message","details","request_id"}}`.
    pub fn body(&self, request_id: &str) -> Value {
        json!({ "error": {
            "code": self.code.as_str(),
            "type": self.code.as_str().to_ascii_lowercase(),
            "message": self.message,
            "details": self.details,
            "request_id": request_id,
        }})
    }

    /// The shape of `PocketBase`'s paths, which its SDKs understand: `{"status","message","data"}`, with the code
    /// and the request id beside them.
    pub fn pocketbase_body(&self, request_id: &str) -> Value {
        let mut message = self.message.to_string();
        if let Some(first) = message.get(..1) {
            message = first.to_uppercase() + message.get(1..).unwrap_or_default() + ".";
        }
        json!({
            "status": self.code.status(),
            "message": message,
            "data": self.details,
            "code": self.code.as_str(),
            "request_id": request_id,
        })
    }
}

/// Which of the two shapes a path speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// `{"error":{"code","type","message","details","request_id"}}`
    Own,
    /// `{"status","message","data"}`, which `PocketBase`'s SDKs understand.
    PocketBase,
}

/// Paths under `/api/` that are ours although `PocketBase`'s API lives there too.
const OWN_UNDER_API: [&str; 4] = ["/api/v1", "/api/keys", "/api/queue", "/api/meetings"];

impl Shape {
    /// The shape that callers of this path expect.
    pub fn of(path: &str) -> Self {
        let below =
            |prefix: &str| path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'));
        if below("/_") || (below("/api") && !OWN_UNDER_API.iter().any(|own| below(own))) {
            Self::PocketBase
        } else {
            Self::Own
        }
    }

    /// The body of a problem in this shape.
    pub fn body(self, problem: &Problem, request_id: &str) -> Value {
        match self {
            Self::Own => problem.body(request_id),
            Self::PocketBase => problem.pocketbase_body(request_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_rounded_up_to_whole_seconds() {
        let problem = |ms| Problem::new(Code::Overloaded).retry_after(Duration::from_millis(ms));
        assert_eq!(problem(1).retry_after_seconds(), Some(1));
        assert_eq!(problem(1_000).retry_after_seconds(), Some(1));
        assert_eq!(problem(1_001).retry_after_seconds(), Some(2));
    }

    #[test]
    fn codes_are_unique_and_limits_are_retryable() {
        let mut seen = std::collections::HashSet::new();
        for code in Code::ALL {
            assert!(seen.insert(code.as_str()), "{code:?} twice");
            if code.kind() == ErrorKind::Limit {
                assert!(matches!(code.status(), 429 | 503), "{code:?}");
            }
        }
    }

    #[test]
    fn the_shape_follows_the_path() {
        for path in
            ["/api/health", "/api/collections/users/records", "/api/%73ql", "/api", "/_/", "/api/v1x", "/api/queues"]
        {
            assert_eq!(Shape::of(path), Shape::PocketBase, "{path}");
        }
        for path in ["/", "/auth/login", "/api/v1", "/api/v1/auth/me", "/api/keys", "/api/queue/7", "/apis", "/_x"] {
            assert_eq!(Shape::of(path), Shape::Own, "{path}");
        }
    }
}

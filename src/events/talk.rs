//! What a client says, and what it is answered.

use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use serde_json::Value;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Position;
use super::Topic;
use super::close::CloseCode;
use super::event::rfc3339;
use super::filter::Filter;
use super::floor::Floor;
use super::floor::How;
use super::frame;
use super::frame::Incoming;
use super::log::now_ms;
use super::message;
use super::message::Bad;
use super::message::ClientFrame;
use super::message::Limits;
use super::message::Parsed;
use super::message::Resume;
use super::message::ServerFrame;
use super::message::Subscribed;
use super::message::Wanted;
use super::rights;
use super::socket::Form;
use super::socket::Identity;
use super::socket::Socket;
use crate::error::Code;
use crate::ids::TenantId;
use crate::ids::UserId;

/// Frames that could not be understood before a client is closed.
const MAX_ERRORS: u32 = 10;
/// Frames beyond the rate before it is.
const MAX_STRIKES: u32 = 50;
/// Seconds' worth of frames that may come at once.
const BURST: u32 = 10;

/// A client is there. One that speaks `cp.v1` says `Hello` first; the others listen at once.
pub(super) async fn begin(floor: &Rc<Floor>, socket: &Rc<Socket>, since: Option<Position>, asked: Vec<Topic>) {
    if socket.form.get() == Form::Enveloped {
        *socket.wanted.borrow_mut() = (since, asked);
        return;
    }
    socket.greeted.set(true);
    for topic in implicit(socket) {
        let how = if asked.contains(&topic) { How::Asked } else { How::Implicit };
        subscribe(floor, socket, &topic, since.as_ref(), how).await;
    }
    for topic in asked {
        subscribe(floor, socket, &topic, since.as_ref(), How::Asked).await;
    }
    socket.flush();
}

/// Topics that a client listens to because of where it connected.
fn implicit(socket: &Socket) -> Vec<Topic> {
    let identity = socket.identity.borrow();
    let Some(identity) = identity.as_ref() else { return Vec::new() };
    socket.implicit.iter().filter_map(|name| Topic::parse(name, &identity.principal.user)).collect()
}

/// Subscribes if the client may; none: there is no such topic for it.
async fn subscribe(
    floor: &Rc<Floor>,
    socket: &Rc<Socket>,
    topic: &Topic,
    since: Option<&Position>,
    how: How,
) -> Option<Subscribed> {
    let may = |identity: &Identity| rights::may_listen(&floor.hub, identity, topic);
    if !socket.identity.borrow().as_ref().is_some_and(may) {
        return None;
    }
    let log = floor.hub.log.topic(topic).await.ok()?;
    // The client may have gone while the topic was read from disk.
    socket.is_open().then(|| floor.subscribe(socket, &log, since, how, None))
}

/// One message of a client.
pub(super) async fn incoming(floor: &Rc<Floor>, socket: &Rc<Socket>, message: Incoming) {
    let now = Instant::now();
    socket.pinged.set(None);
    if socket.greeted.get() {
        socket.heard.set(now);
    }
    floor.hub.metrics.ws_messages_in.inc();
    if let Incoming::Close(code) = message {
        return socket.closed(code);
    }
    if !socket.is_open() || matches!(message, Incoming::Pong) {
        return;
    }
    if let Err(wait) = charge(floor, socket, now) {
        return limited(socket, wait, now);
    }
    match message {
        Incoming::Ping(payload) => socket.push(&frame::pong(&payload), now),
        Incoming::Text(text) => said(floor, socket, message::parse(&text)).await,
        Incoming::Pong | Incoming::Close(_) => {}
    }
    socket.flush();
}

/// Takes a frame's worth from the client's bucket.
fn charge(floor: &Floor, socket: &Socket, now: Instant) -> Result<(), Duration> {
    let rate = floor.hub.config.frames_per_second;
    let (interval, tolerance) = (Duration::from_secs(1) / rate, Duration::from_secs(u64::from(BURST)));
    let due = socket.full_at.get().max(now);
    let ahead = due.saturating_duration_since(now);
    if ahead + interval > tolerance {
        return Err((ahead + interval).saturating_sub(tolerance));
    }
    socket.full_at.set(due + interval);
    Ok(())
}

fn limited(socket: &Socket, wait: Duration, now: Instant) {
    socket.strikes.set(socket.strikes.get() + 1);
    if socket.strikes.get() > MAX_STRIKES {
        return socket.close(CloseCode::TooManyFrames, now);
    }
    socket.say(
        &ServerFrame::Error {
            id: None,
            code: Code::RateLimited.as_str().to_owned(),
            message: "too many frames; wait as long as retry_after_ms says".to_owned(),
            retryable: true,
            retry_after_ms: Some(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1)),
        },
        now,
    );
    socket.flush();
}

async fn said(floor: &Rc<Floor>, socket: &Rc<Socket>, parsed: Parsed) {
    let now = Instant::now();
    let Parsed { id, frame } = parsed;
    let frame = match frame {
        Ok(frame) => frame,
        Err(bad) => {
            socket.say(&ServerFrame::error(id, bad.code(), Some(bad.message())), now);
            if bad != Bad::Later {
                socket.errors.set(socket.errors.get() + 1);
            }
            if socket.errors.get() >= MAX_ERRORS {
                socket.close(CloseCode::TooManyErrors, now);
            }
            return;
        }
    };
    if !socket.greeted.get() && !matches!(frame, ClientFrame::Hello { .. }) {
        return socket.say(&ServerFrame::error(id, Code::Unauthorized, Some("say Hello first")), now);
    }
    match frame {
        ClientFrame::Hello { version, token, resume } => hello(floor, socket, id, version, token, resume).await,
        ClientFrame::Auth { token } => match identify(floor, &token) {
            Some(identity) if is_same(socket, &identity) => {
                *socket.identity.borrow_mut() = Some(identity);
                reply(socket, id, None);
            }
            _ => socket
                .say(&ServerFrame::error(id, Code::Unauthorized, Some("the token is not yours or not valid")), now),
        },
        ClientFrame::Subscribe { topics, since, filter } => listen(floor, socket, id, topics, since, filter).await,
        ClientFrame::SubscriptionChange { topics, filter } => refilter(floor, socket, id, &topics, filter),
        ClientFrame::UpdateLastSeen { topic, offset } => seen(floor, socket, id, &topic, offset).await,
        ClientFrame::Unsubscribe { topics } => {
            let me = socket.identity.borrow().as_ref().map(|identity| identity.principal.user.clone());
            for topic in topics.iter().filter_map(|name| Topic::parse(name, me.as_ref()?)) {
                floor.unsubscribe(socket, &topic);
            }
            reply(socket, id, None);
        }
        ClientFrame::Ping {} => socket.say(&ServerFrame::Pong { id }, now),
        ClientFrame::Pong {} => {}
    }
}

fn reply(socket: &Socket, id: Option<Value>, topics: Option<Vec<Subscribed>>) {
    if let Some(id) = id {
        socket.say(&ServerFrame::Reply { id, topics }, Instant::now());
    }
}

fn identify(floor: &Floor, token: &str) -> Option<Identity> {
    let principal = floor.hub.verifier.verify(token, SystemTime::now()).ok()?;
    let standing = floor.hub.verifier.standing(&principal).ok()?;
    Some(Identity { principal, standing })
}

fn is_same(socket: &Socket, identity: &Identity) -> bool {
    socket.identity.borrow().as_ref().is_some_and(|known| known.principal.user == identity.principal.user)
}

async fn hello(
    floor: &Rc<Floor>,
    socket: &Rc<Socket>,
    id: Option<Value>,
    version: Option<u32>,
    token: Option<String>,
    resume: Option<Resume>,
) {
    let now = Instant::now();
    if version.is_some_and(|version| version != message::VERSION) {
        return socket.close(CloseCode::BadVersion, now);
    }
    let has_identity = socket.identity.borrow().is_some();
    match token.map(|token| identify(floor, &token)) {
        None if has_identity => {}
        Some(Some(identity)) if has_identity && is_same(socket, &identity) => {
            *socket.identity.borrow_mut() = Some(identity);
        }
        Some(Some(identity)) if !has_identity => {
            if socket.seat.belongs_to(&identity.principal.user).is_err() {
                return socket.close(CloseCode::TooMany, now);
            }
            *socket.identity.borrow_mut() = Some(identity);
        }
        // The credential that was named decides; there is no second guess.
        _ => return socket.close(CloseCode::Revoked, now),
    }
    socket.form.set(Form::Enveloped);
    socket.greeted.set(true);
    socket.heard.set(now);
    let (since, asked) = std::mem::take(&mut *socket.wanted.borrow_mut());
    let before = std::mem::take(&mut *socket.topics.borrow_mut());
    for topic in &before {
        floor.unsubscribe(socket, topic);
    }
    let mut wanted = implicit(socket);
    let me = socket.identity.borrow().as_ref().map(|identity| identity.principal.user.clone());
    let resumed = resume.iter().flat_map(|resume| resume.topics.keys());
    let resumed = resumed.filter_map(|name| Topic::parse(name, me.as_ref()?));
    let may =
        |topic: &Topic| socket.identity.borrow().as_ref().is_some_and(|me| rights::may_listen(&floor.hub, me, topic));
    for topic in before.into_iter().chain(asked).chain(resumed) {
        // What a client may not hear is not read from the disk for it either.
        if wanted.len() < floor.hub.config.max_topics && !wanted.contains(&topic) && may(&topic) {
            wanted.push(topic);
        }
    }
    // The welcome comes first, whatever has to be replayed.
    let mut topics = Vec::new();
    for topic in &wanted {
        if let Ok(log) = floor.hub.log.topic(topic).await {
            topics.push(log);
        }
    }
    topics.retain(|log| may(&log.topic));
    let epoch = floor.hub.log.epoch();
    let state: Vec<Subscribed> = topics
        .iter()
        .map(|log| Subscribed { topic: log.topic.to_string(), epoch: epoch.to_string(), offset: log.head() })
        .collect();
    let Some(welcome) = welcome(floor, socket, id, state.clone()) else { return };
    socket.say(&welcome, now);
    for (log, told) in topics.iter().zip(state) {
        let own = resume.as_ref().and_then(|resume| {
            let offset = *resume.topics.get(&log.topic.to_string())?;
            Some(Position { epoch: resume.epoch.clone(), offset })
        });
        // Without a wish of the client's, what was logged since the welcome was written counts as new.
        let (since, how) = own.or_else(|| since.clone()).map_or_else(
            || (Position { epoch: told.epoch, offset: told.offset }, How::Continued),
            |since| (since, How::Asked),
        );
        floor.subscribe(socket, log, Some(&since), how, None);
    }
}

fn welcome(floor: &Floor, socket: &Socket, id: Option<Value>, topics: Vec<Subscribed>) -> Option<ServerFrame> {
    let config = &floor.hub.config;
    let identity = socket.identity.borrow();
    let principal = &identity.as_ref()?.principal;
    Some(ServerFrame::Welcome {
        id,
        version: message::VERSION,
        connection_id: socket.seat.connection.id.to_string(),
        // The start of the hash of the token: names the session and is no credential.
        session_id: principal.session.as_str().get(..16).unwrap_or_default().to_owned(),
        user_id: principal.user.to_string(),
        tenant_id: TenantId::personal(&principal.user).to_string(),
        epoch: floor.hub.log.epoch().to_string(),
        ping_ms: u64::try_from(config.ping.as_millis()).unwrap_or(u64::MAX),
        expires_at: OffsetDateTime::from(principal.expires).format(&Rfc3339).unwrap_or_default(),
        limits: Limits {
            max_message_bytes: config.max_message_bytes,
            max_topics: config.max_topics,
            frames_per_second: config.frames_per_second,
        },
        features: ["resume", "reply", "filter", "last_seen"].map(str::to_owned).to_vec(),
        server_time: rfc3339(now_ms()),
        topics,
    })
}

async fn listen(
    floor: &Rc<Floor>,
    socket: &Rc<Socket>,
    id: Option<Value>,
    names: Vec<String>,
    since: Option<Wanted>,
    filter: Option<Filter>,
) {
    let now = Instant::now();
    let filter = match bounded(filter) {
        Ok(filter) => filter,
        Err(why) => return socket.say(&ServerFrame::error(id, Code::InvalidRequest, Some(why)), now),
    };
    let me = socket.identity.borrow().as_ref().map(|identity| identity.principal.user.clone());
    let mut topics: Vec<Topic> = Vec::new();
    for name in &names {
        match me.as_ref().and_then(|me| Topic::parse(name, me)) {
            Some(topic) if !topics.contains(&topic) => topics.push(topic),
            Some(_) => {}
            None => return socket.say(&ServerFrame::error(id, Code::NotFound, Some("there is no such topic")), now),
        }
    }
    let after = {
        let known = socket.topics.borrow();
        known.len() + topics.iter().filter(|topic| !known.contains(topic)).count()
    };
    if after > floor.hub.config.max_topics {
        return socket.say(&ServerFrame::error(id, Code::Conflict, Some("that would be too many topics")), now);
    }
    let may =
        |topic: &Topic| socket.identity.borrow().as_ref().is_some_and(|me| rights::may_listen(&floor.hub, me, topic));
    // All or nothing, so that the one answer is true of every topic.
    if !topics.iter().all(may) {
        return socket.say(&ServerFrame::error(id, Code::NotFound, Some("there is no such topic")), now);
    }
    let mut logs = Vec::new();
    for topic in &topics {
        match floor.hub.log.topic(topic).await {
            Ok(log) => logs.push(log),
            Err(_) => return socket.say(&ServerFrame::error(id, Code::Internal, None), now),
        }
    }
    let Ok(places) = places(floor, me.as_ref(), &topics, since).await else {
        return socket.say(&ServerFrame::error(id, Code::Internal, None), now);
    };
    // The client may have gone while its places were read.
    if !socket.is_open() {
        return;
    }
    let each = logs.iter().zip(&places);
    let state =
        each.map(|(log, since)| floor.subscribe(socket, log, since.as_ref(), How::Asked, filter.as_ref())).collect();
    reply(socket, id, Some(state));
}

/// Where to go on with each topic.
async fn places(
    floor: &Rc<Floor>,
    me: Option<&UserId>,
    topics: &[Topic],
    since: Option<Wanted>,
) -> Result<Vec<Option<Position>>, super::Error> {
    let mut places = Vec::new();
    for topic in topics {
        places.push(match (&since, me) {
            (Some(Wanted::LastSeen(_)), Some(me)) => {
                // From no epoch: whoever has seen nothing is told to read the state anew.
                let nowhere = Position { epoch: String::new(), offset: 0 };
                Some(floor.hub.seen.find(me, topic).await?.unwrap_or(nowhere))
            }
            (Some(Wanted::Since(since)), _) => Some(since.clone().into()),
            _ => None,
        });
    }
    Ok(places)
}

/// A filter that keeps to the bounds; none if every event fits it.
fn bounded(filter: Option<Filter>) -> Result<Option<Rc<Filter>>, &'static str> {
    match filter {
        Some(filter) if !filter.is_valid() => Err("a filter has lists of at most 32 words of 1 to 64 bytes"),
        Some(filter) if !filter.fits_all() => Ok(Some(Rc::new(filter))),
        _ => Ok(None),
    }
}

/// Gives subscriptions another filter: all of them, or none.
fn refilter(floor: &Rc<Floor>, socket: &Rc<Socket>, id: Option<Value>, names: &[String], filter: Option<Filter>) {
    let now = Instant::now();
    let filter = match bounded(filter) {
        Ok(filter) => filter,
        Err(why) => return socket.say(&ServerFrame::error(id, Code::InvalidRequest, Some(why)), now),
    };
    let me = socket.identity.borrow().as_ref().map(|identity| identity.principal.user.clone());
    let topics: Option<Vec<Topic>> = names.iter().map(|name| Topic::parse(name, me.as_ref()?)).collect();
    let is_heard = |topic: &Topic| socket.topics.borrow().contains(topic);
    let Some(topics) = topics.filter(|topics| topics.iter().all(is_heard)) else {
        return socket.say(&ServerFrame::error(id, Code::NotFound, Some("you do not listen to this topic")), now);
    };
    for topic in &topics {
        floor.refilter(socket, topic, filter.as_ref());
    }
    reply(socket, id, None);
}

/// Notes how far a user has read.
async fn seen(floor: &Rc<Floor>, socket: &Rc<Socket>, id: Option<Value>, name: &str, offset: u64) {
    let refuse = |id, code, why| socket.say(&ServerFrame::error(id, code, Some(why)), Instant::now());
    let known = {
        let identity = socket.identity.borrow();
        let identity = identity.as_ref();
        let topic = identity.and_then(|identity| Topic::parse(name, &identity.principal.user));
        let topic = topic.filter(|topic| identity.is_some_and(|me| rights::may_listen(&floor.hub, me, topic)));
        topic.zip(identity.map(|identity| identity.principal.user.clone()))
    };
    let Some((topic, me)) = known else { return refuse(id, Code::NotFound, "there is no such topic") };
    if offset > floor.hub.log.newest() {
        return refuse(id, Code::InvalidRequest, "there is no event with this offset yet");
    }
    let position = Position { epoch: floor.hub.log.epoch().to_string(), offset };
    match floor.hub.seen.note(&me, &topic, &position).await {
        Ok(()) => reply(socket, id, None),
        Err(error) => {
            tracing::debug!(%error, "note how far a user has read");
            refuse(id, Code::Internal, "this could not be noted; try again");
        }
    }
}

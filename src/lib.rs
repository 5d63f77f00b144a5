//! pocketfleet: one private `PocketBase` for every user, behind one URL.
//!
//! `ARCHITECTURE.md` is the map: what each module owns, what it may import, and what must always hold.

pub mod error;
pub mod failpoint;
pub mod ids;
pub mod shutdown;
pub mod telemetry;

pub mod limits;
pub mod outbound;
pub mod pocketbase;
pub mod reload;
pub mod store;

pub mod audit;
pub mod queue;
pub mod quota;
pub mod vault;

pub mod integrations;
pub mod webhooks;

pub mod supervisor;
pub mod tenancy;

pub mod spares;

pub mod auth;
pub mod events;
pub mod realtime;
pub mod records;

pub mod backup;
pub mod meetings;

pub mod jobs;

pub mod lifecycle;

pub mod gateway;

pub mod api;

pub mod app;
pub mod cli;
pub mod config;

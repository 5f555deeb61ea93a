//! strapi-qstash
pub mod admin;
pub mod buffer;
pub mod cli;
pub mod clock;
pub mod commands;
pub mod config;
pub mod destination;
pub mod dev_server;
pub mod event;
pub mod forwarder;
mod http;
pub mod inbound;
pub mod metrics;
pub mod qstash;
pub mod router;
pub mod secret;
pub mod sidecar;

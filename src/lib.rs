//! strapi-qstash
pub mod clock;
pub mod event;
mod http;
pub mod secret;

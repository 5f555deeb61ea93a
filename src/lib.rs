//! strapi-qstash
pub mod buffer;
pub mod clock;
pub mod event;
mod http;
pub mod secret;

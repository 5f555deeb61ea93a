//! What each command does. They alone print.

pub mod check;
pub mod dev;
pub mod events;
pub mod healthcheck;
mod logging;
pub mod manual;
mod public;
mod running;
pub mod serve;
pub mod strapi_bootstrap;
mod successor;
mod supervise;
mod table;
mod terminal;
pub mod topics;
pub mod verify;

use std::process::ExitCode;

use crate::config::Mistakes;

/// Says why a command failed, and what to do about it; gives the exit code.
#[expect(
    clippy::print_stderr,
    reason = "the last word of the program, when the log may not have started"
)]
pub fn report(error: &anyhow::Error) -> ExitCode {
    if let Some(error) = error.downcast_ref::<std::io::Error>()
        && error.kind() == std::io::ErrorKind::BrokenPipe
    {
        return ExitCode::SUCCESS; // whoever read it has had enough
    }
    if let Some(mistakes) = error.downcast_ref::<Mistakes>() {
        eprintln!("{mistakes}");
        return ExitCode::from(2);
    }
    eprintln!("strapi-qstash: {error:#}");
    ExitCode::FAILURE
}

//! The program: reads the command line, runs a command, and turns its result into an exit
//! code. 0: done. 1: failed, with a line on stderr that says what to do. 2: wrong usage.

use std::process::ExitCode;

use strapi_qstash::cli::{Cli, Command};
use strapi_qstash::commands;

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::from_environment();
    let done = match &cli.command {
        None => commands::serve::run(&cli.serve).await,
        Some(Command::Serve(args)) => commands::serve::run(args).await,
        Some(Command::Dev(args)) => commands::dev::run(args).await,
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => commands::report(&error),
    }
}

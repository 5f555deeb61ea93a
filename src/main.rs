//! The program: reads the command line, runs a command, and turns its result into an exit
//! code. 0: done. 1: failed, with a line on stderr that says what to do. 2: wrong usage.

use std::process::ExitCode;

use anyhow::Context;
use strapi_qstash::cli::{Cli, Command, ServeArgs};
use strapi_qstash::commands;
use strapi_qstash::sockets::Inherited;

fn main() -> ExitCode {
    let cli = Cli::from_environment();
    let done = match &cli.command {
        None => serve(&cli.serve),
        Some(Command::Serve(args)) => serve(args),
        Some(Command::Dev(args)) => block_on(commands::dev::run(args)),
        Some(Command::Check(args)) => block_on(commands::check::run(args)),
        Some(Command::Topics(command)) => block_on(commands::topics::run(command)),
        Some(Command::Events(command)) => block_on(commands::events::run(command)),
        Some(Command::Verify(args)) => block_on(commands::verify::run(args)),
        Some(Command::Healthcheck(args)) => commands::healthcheck::run(args),
        Some(Command::Completions(args)) => commands::manual::completions(args),
        Some(Command::Man(args)) => commands::manual::man(args),
        Some(Command::StrapiBootstrap(args)) => commands::strapi_bootstrap::run(args),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => commands::report(&error),
    }
}

fn serve(args: &ServeArgs) -> anyhow::Result<()> {
    // Before the runtime's threads are there, since it changes the environment.
    let inherited = Inherited::take(args.listen_fdnames.as_deref())?;
    block_on(commands::serve::run(args, inherited))
}

fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    // One thread for the network beside those of the buffer: a second made answers later, not
    // sooner, since they woke each other. For what takes long it steps aside.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.context("could not start the runtime")?;
    let done = runtime.block_on(command);
    // Whatever is still blocked, such as a read of stdin, must not hold back the exit.
    runtime.shutdown_background();
    done
}

//! `completions` and `man`: what a package installs beside the program.

use std::io::Write;
use std::path::Path;

use anyhow::Context;
use clap::ValueEnum;
use clap_complete::Shell;

use crate::cli::{Cli, CompletionsArgs, ManArgs};
use crate::config::Mistakes;

/// Prints the completions for a shell.
pub fn completions(args: &CompletionsArgs) -> anyhow::Result<()> {
    let shell = Shell::from_str(&args.shell, true).map_err(|_unknown| {
        let known: Vec<String> = Shell::value_variants()
            .iter()
            .map(ToString::to_string)
            .collect();
        format!("there is no {:?}: write {}", args.shell, known.join(", "))
    });
    let mut mistakes = Mistakes::default();
    let shell = mistakes.check("SHELL", shell).ok_or(mistakes)?;
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::build(), "strapi-qstash", &mut text);
    std::io::stdout().write_all(&text)?;
    Ok(())
}

/// Prints the man page, or writes one for each command into a folder.
pub fn man(args: &ManArgs) -> anyhow::Result<()> {
    match &args.out {
        Some(folder) => {
            std::fs::create_dir_all(folder)
                .with_context(|| format!("could not make the folder {folder}"))?;
            clap_mangen::generate_to(Cli::build(), Path::new(folder))
                .with_context(|| format!("could not write the pages into {folder}"))
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::build()).render(&mut page)?;
            std::io::stdout().write_all(&page)?;
            Ok(())
        }
    }
}

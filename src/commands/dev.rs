//! dev
use crate::cli::DevArgs;
/// Runs.
pub async fn run(_: &DevArgs) -> anyhow::Result<()> {
    Ok(())
}

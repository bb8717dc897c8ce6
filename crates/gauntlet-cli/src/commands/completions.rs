use clap::CommandFactory;

use crate::args::{Cli, Completions};
use crate::failure::Failure;
use crate::output;

/// Prints a completion script.
pub(crate) fn completions(args: Completions) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "gauntlet", &mut script);
    output::print(String::from_utf8_lossy(&script));
    Ok(())
}

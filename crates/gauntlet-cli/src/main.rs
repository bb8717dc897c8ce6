//! The `gauntlet` command.

mod args;
mod commands;
mod config;
mod devices;
mod failure;
mod flags;
mod interrupt;
mod output;
mod panics;
mod program;
mod progress;
mod records;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};
use failure::Status;

/// The CPU backend allocates each result anew; the system allocator hands that memory back to the kernel and asks for it
/// again at every step.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Lets the allocator keep what is free for a minute instead of a second: what a step frees, the next one needs. Clearing pages that
/// had been given back took a tenth of a step of a ResNet. `MIMALLOC_PURGE_DELAY` in the environment is left as it is.
fn keep_memory() {
    const PURGE_DELAY: libmimalloc_sys::mi_option_t = 15;
    const DEFAULT: std::ffi::c_long = 1_000;
    const MINUTE: std::ffi::c_long = 60_000;
    // SAFETY: one number among the allocator's settings is read and written, before there is a second thread. Should a version number its
    // options in another way, what is read there is not the default, and nothing is written.
    #[expect(
        unsafe_code,
        reason = "the allocator has settings, and no safe way to them"
    )]
    unsafe {
        if libmimalloc_sys::mi_option_get(PURGE_DELAY) == DEFAULT {
            libmimalloc_sys::mi_option_set(PURGE_DELAY, MINUTE);
        }
    }
}

fn main() -> ExitCode {
    keep_memory();
    panics::install();
    let arguments: Vec<_> = std::env::args_os().collect();
    let cli = Cli::try_parse_from(&arguments)
        .unwrap_or_else(|error| flags::explain(error, &arguments).exit());
    let result = std::panic::catch_unwind(|| match cli.command {
        Command::Train(args) => commands::train(args, cli.quiet),
        Command::Resume(args) => commands::resume(args, cli.quiet),
        Command::Audit(args) => commands::audit(*args, cli.quiet),
        Command::Experiment(command) => commands::experiment(command, cli.quiet),
        Command::Data(command) => commands::data(command, cli.quiet),
        Command::Predict(args) => commands::predict(args, cli.quiet),
        Command::Model(command) => commands::model(command, cli.quiet),
        Command::Runs(command) => commands::runs(command),
        Command::Config(command) => commands::config(command),
        Command::Bench(command) => commands::bench(command, cli.quiet),
        Command::Devices(args) => commands::devices(args),
        Command::Completions(args) => commands::completions(args),
        Command::Probe { backend, software } => {
            devices::answer_probe(backend, software);
            Ok(())
        }
    });
    let status = match result {
        Ok(Ok(())) => return ExitCode::SUCCESS,
        Ok(Err(failure)) => {
            output::say(failure.to_string());
            failure.status
        }
        // The hook has told it.
        Err(_) => Status::Failed,
    };
    ExitCode::from(status as u8)
}

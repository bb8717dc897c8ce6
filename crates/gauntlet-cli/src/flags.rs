//! What to say of a flag that there is none of.

use std::ffi::OsString;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Error};

use crate::args::Cli;
use crate::config::{places_of, schema};

/// How many keys of that name are told; `eps` and `steps` have more places than help.
const MOST_PLACES: usize = 3;

/// `error`, with a tip where `--epochs 3` was typed for `--set train.epochs=3`. What clap says of flags that are like one of the
/// command's stays.
pub(crate) fn explain(mut error: Error, arguments: &[OsString]) -> Error {
    if error.kind() != ErrorKind::UnknownArgument
        || error.get(ContextKind::SuggestedArg).is_some()
        || !takes_keys(arguments)
    {
        return error;
    }
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else {
        return error;
    };
    let key = flag.trim_start_matches('-').replace('-', "_");
    let places = places_of(schema(), &key);
    if places.is_empty() {
        return error;
    }
    let sets: Vec<_> = places
        .iter()
        .take(MOST_PLACES)
        .map(|place| format!("'--set {place}=VALUE'"))
        .collect();
    let tip = format!("a key of the config is set with {}", sets.join(" or "));
    error.insert(
        ContextKind::Suggested,
        ContextValue::StyledStrs(vec![tip.into()]),
    );
    error
}

/// Whether the command that was called takes `--set`.
fn takes_keys(arguments: &[OsString]) -> bool {
    let root = Cli::command();
    let mut command = &root;
    for argument in arguments.iter().skip(1) {
        command = command.find_subcommand(argument).unwrap_or(command);
    }
    command
        .get_arguments()
        .any(|argument| argument.get_long() == Some("set"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn told(line: &str) -> String {
        let arguments: Vec<_> = line.split(' ').map(OsString::from).collect();
        let error = Cli::try_parse_from(&arguments).unwrap_err();
        explain(error, &arguments).to_string()
    }

    #[test]
    fn a_key_typed_as_a_flag_is_told_how_to_be_set() {
        for line in [
            "gauntlet train a.toml --epochs 3",
            "gauntlet resume runs/a --epochs=3",
        ] {
            let text = told(line);
            assert!(text.contains("unexpected argument '--epochs'"), "{text}");
            assert!(
                text.contains("tip: a key of the config is set with '--set train.epochs=VALUE'\n")
            );
            assert!(!text.contains("as a value"), "{text}");
        }
        let text = told("gauntlet train a.toml --batch-size 64");
        assert!(text.contains("'--set data.batch_size=VALUE'"), "{text}");
    }

    #[test]
    fn other_unknown_flags_are_left_to_clap() {
        let text = told("gauntlet train a.toml --devise cpu");
        assert!(text.contains("'--device'"), "{text}");
        let text = told("gauntlet audit runs/a --epochs 3");
        assert!(!text.contains("--set"), "{text}");
        let text = told("gauntlet train a.toml --colour");
        assert!(!text.contains("--set"), "{text}");
    }
}

use crate::args::ConfigCommand;
use crate::config;
use crate::failure::Failure;
use crate::output;

/// Checks, shows and describes config files.
pub(crate) fn config(command: ConfigCommand) -> Result<(), Failure> {
    match command {
        ConfigCommand::Check { files, sets } => {
            let mut wrong = 0;
            for file in &files {
                match config::check(file, &sets.sets) {
                    Ok(()) => output::print(format!("{}: fine", file.display())),
                    Err(failure) => {
                        wrong += 1;
                        output::say(format!("{failure}\n"));
                    }
                }
            }
            match (wrong, files.len()) {
                (0, _) => Ok(()),
                (wrong, total) => Err(Failure::request(format!(
                    "{wrong} of {total} files cannot be used"
                ))),
            }
        }
        ConfigCommand::Show { file, sets } => {
            let config = config::read(&file, &sets.sets)?;
            output::print(
                toml::to_string_pretty(&config.plan).expect("a plan is plain tables and values"),
            );
            Ok(())
        }
        ConfigCommand::Schema { audit } => {
            output::print_json(if audit {
                config::audit_schema()
            } else {
                config::schema()
            });
            Ok(())
        }
    }
}

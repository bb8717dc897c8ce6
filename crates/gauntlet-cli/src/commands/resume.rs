use gauntlet_train::RunDir;

use super::train::Job;
use crate::args::Resume;
use crate::config::{self, Set};
use crate::failure::Failure;
use crate::output::{print, say};

/// Goes on with an interrupted run.
pub(crate) fn resume(args: Resume, quiet: bool) -> Result<(), Failure> {
    let sets = &args.sets.sets;
    for set in sets {
        allowed(set)?;
    }
    let (run, plan) = RunDir::open(&args.run)?;
    let report = run.root().join("report.html");
    let judged_anew = sets.iter().any(|set| set.path.starts_with("evaluate"));
    if report.exists() && run.root().join("report.json").exists() && !judged_anew {
        if !quiet {
            say(format!(
                "{} is finished: there is nothing to go on with",
                run.root().display()
            ));
        }
        print(format!("report  {}", report.display()));
        return Ok(());
    }
    let config = config::change(&plan, &run.root().join("config.toml"), sets)?;
    Job::prepare(config, None, quiet)?.work(&run)
}

/// Whether a key may change between sessions: nothing that was trained depends on it.
fn allowed(set: &Set) -> Result<(), Failure> {
    let table = set.path.split('.').next().unwrap_or_default();
    if matches!(table, "device" | "checkpoint" | "evaluate") {
        return Ok(());
    }
    Err(Failure::request(format!(
        "{}: a run cannot change `{}` on the way; `resume` takes `device`, `checkpoint.…` and `evaluate.…`\n\n\
         hint: `gauntlet train` with this `--set` and another `--out` starts a run of its own",
        set.argument(),
        set.path
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_keys_that_training_does_not_depend_on_may_change() {
        let check = |text: &str| allowed(&text.parse().unwrap());
        for fine in [
            "device=cpu",
            "checkpoint.keep=3",
            "evaluate.final.samples=100",
        ] {
            assert!(check(fine).is_ok(), "{fine}");
        }
        for bad in [
            "train.epochs=3",
            "seed=1",
            "data.batch_size=3",
            "devices=cpu",
        ] {
            assert!(check(bad).is_err(), "{bad}");
        }
    }
}

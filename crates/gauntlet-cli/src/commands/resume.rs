use gauntlet_train::RunDir;

use super::train::Job;
use crate::args::Resume;
use crate::config;
use crate::failure::Failure;
use crate::output::{print, say};

/// Goes on with an interrupted run.
pub(crate) fn resume(args: Resume, quiet: bool) -> Result<(), Failure> {
    let sets = &args.sets.sets;
    let (run, plan) = RunDir::open(&args.run)?;
    let report = run.root().join("report.html");
    let more_to_do = sets
        .iter()
        .any(|set| set.path.starts_with("evaluate") || set.path.starts_with("train"));
    if report.exists() && run.root().join("report.json").exists() && !more_to_do {
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
    let job = Job::prepare(config, None, quiet)?.allow_inexact(args.allow_inexact);
    job.check_changes(&run)?;
    if *job.plan() != plan {
        run.write_plan(job.plan())?;
    }
    job.work(&run)
}

//! Experiments: a matrix of runs, done and judged, and what came out.

mod child;
mod document;
mod folder;
mod local;
mod matrix;
mod results;
mod slurm;
mod slurm_jobs;
mod stats;
mod status;
mod table;

use std::path::{Path, PathBuf};

use crate::args::{Engine, Experiment, ExperimentRun};
use crate::config::Set;
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{print, say};
use child::{Ended, Share};
use folder::{Asked, Folder, State};
use matrix::Matrix;
use results::Results;

/// Does the runs of experiments, and tells of them.
pub(crate) fn experiment(command: Experiment, quiet: bool) -> Result<(), Failure> {
    match command {
        Experiment::Run(args) => run(&args, quiet),
        Experiment::Status { place, json } => {
            status::print(&Matrix::read(&place.file, place.out)?, json.json);
            Ok(())
        }
        Experiment::Results { place, results } => {
            let matrix = Matrix::read(&place.file, place.out)?;
            conclude(&matrix, results.as_deref())
        }
        Experiment::Task { place, run, device } => {
            let matrix = Matrix::read(&place.file, place.out)?;
            let run = matrix.find(&run)?;
            unchanged(&matrix, std::slice::from_ref(run))?;
            let threads = slurm::threads().unwrap_or_else(local::cores);
            let share = Share {
                device,
                threads,
                shared_by: 1,
            };
            interrupt::catch("asking the run to save");
            task(&matrix, run, share, quiet)
        }
    }
}

fn run(args: &ExperimentRun, quiet: bool) -> Result<(), Failure> {
    let matrix = Matrix::read(&args.place.file, args.place.out.clone())?;
    unchanged(&matrix, &matrix.runs)?;
    let slurm = args.engine == Engine::Slurm;
    if !slurm && let Some(Set { path, text, .. }) = args.sbatch.first() {
        return Err(Failure::request(format!(
            "`--sbatch {path}={text}` is for `--engine slurm`"
        )));
    }
    if args.dry_run && !slurm {
        matrix.rehearse()?;
        for run in &matrix.runs {
            print(&run.name);
        }
        return Ok(());
    }
    if slurm {
        return submit(args, &matrix, quiet);
    }
    matrix.rehearse()?;
    let jobs = args.jobs.unwrap_or(1);
    let tally = local::work(&matrix, jobs, &args.device, quiet);
    if tally.stopped > 0 {
        let (out, file) = (matrix.out.display(), args.place.file.display());
        return Err(Failure::interrupted(format!(
            "interrupted; {} of {} runs are not done, what they have is saved in {out}\n\n\
             hint: `gauntlet experiment run {file}` goes on",
            tally.stopped,
            matrix.runs.len(),
        )));
    }
    if tally.before > 0 && !quiet {
        say(format!("{} done already", count(tally.before)));
    }
    conclude(&matrix, args.results.as_deref())?;
    if tally.failed.is_empty() {
        return Ok(());
    }
    Err(Failure::running(format!(
        "{} of {} runs failed\n\n{}\n\nhint: the same command tries them again; their output is in log.txt in their folders",
        tally.failed.len(),
        matrix.runs.len(),
        tally.failed.join("\n")
    )))
}

/// `1 run is`, `3 runs are`
fn count(runs: usize) -> String {
    match runs {
        1 => "1 run is".to_owned(),
        several => format!("{several} runs are"),
    }
}

/// Refuses what was begun with another plan.
fn unchanged(matrix: &Matrix, runs: &[matrix::Run]) -> Result<(), Failure> {
    let changed: Vec<_> = runs
        .iter()
        .filter_map(|run| Folder::of(matrix, run).changed(&run.plan))
        .collect();
    if changed.is_empty() {
        return Ok(());
    }
    Err(Failure::request(format!(
        "{}: the experiment was changed after these runs had begun\n\n{}\n\n\
         hint: `--out DIR` does the changed experiment elsewhere; or remove the folders of these runs",
        matrix.file.path.display(),
        changed.join("\n")
    )))
}

/// One run, to its end.
fn task(matrix: &Matrix, run: &matrix::Run, share: Share, quiet: bool) -> Result<(), Failure> {
    let mut told = String::new();
    let ended = child::work(matrix, run, share, &mut |stage| {
        if told != stage {
            stage.clone_into(&mut told);
            if !quiet {
                say(format!("{}: {stage}", run.name));
            }
        }
    })?;
    match ended {
        Ended::Judged(..) => {
            if !quiet {
                say(format!("{}: judged", run.name));
            }
            Ok(())
        }
        Ended::Stopped => Err(Failure::interrupted(format!(
            "interrupted; what {} has is saved\n\nhint: the same command goes on",
            run.name
        ))),
        Ended::Failed(failed) => Err(Failure::running(format!(
            "{}: {} ended with {}: {}",
            run.name, failed.command, failed.ended, failed.said
        ))),
    }
}

fn submit(args: &ExperimentRun, matrix: &Matrix, quiet: bool) -> Result<(), Failure> {
    let known = slurm_jobs::Jobs::read(matrix).states();
    let queued = |name: &str| {
        let state = known.get(name).map(|(_, state)| state.as_str());
        state.is_some_and(slurm_jobs::is_pending_or_running)
    };
    let open: Vec<_> = matrix
        .runs
        .iter()
        .enumerate()
        .filter(|(_, run)| {
            let state = Folder::of(matrix, run).state(&Asked::of(matrix, run));
            state != State::Judged
        })
        .collect();
    let (waiting, runs): (Vec<_>, Vec<_>) =
        open.into_iter().partition(|(_, run)| queued(&run.name));
    if !waiting.is_empty() && !quiet {
        say(format!("{} in the queue already", count(waiting.len())));
    }
    if runs.is_empty() {
        if waiting.is_empty() {
            return conclude(matrix, args.results.as_deref());
        }
        return Ok(());
    }
    let submission = slurm::Submission {
        matrix,
        runs,
        jobs: args.jobs,
        device: args.device.first().copied(),
        options: args
            .sbatch
            .iter()
            .map(|set| (set.path.clone(), set.text.clone()))
            .collect(),
    };
    let script = submission.script()?;
    if args.dry_run {
        print(script);
        return Ok(());
    }
    matrix.rehearse()?;
    let id = submission.submit()?;
    if !quiet {
        let file = args.place.file.display();
        say(format!(
            "submitted {} of {} runs; `gauntlet experiment status {file}` tells how far they are, `gauntlet experiment \
             results {file}` what came out",
            submission.runs.len(),
            matrix.runs.len(),
        ));
    }
    print(id);
    Ok(())
}

/// Writes what came out, and prints the table.
fn conclude(matrix: &Matrix, path: Option<&Path>) -> Result<(), Failure> {
    let results = Results::read(matrix);
    if results.judged().next().is_none() {
        return Err(Failure::request(format!(
            "{}: no run has been judged yet",
            matrix.out.display()
        )));
    }
    results.write(matrix)?;
    let beside = matrix.file.folder().join("RESULTS.md");
    let path: PathBuf = path.map_or(beside, Path::to_owned);
    document::write_document(matrix, &results, &path)?;
    print(table::table(&results));
    print(format!("\nresults  {}", path.display()));
    print(format!(
        "json     {}",
        matrix.out.join("results.json").display()
    ));
    Ok(())
}

//! How far an experiment is.

use serde::Serialize;

use super::folder::{Asked, Folder, State};
use super::matrix::{Matrix, Run};
use super::results::state_name;
use super::slurm_jobs::Jobs;
use crate::output::{self, percent, table};

/// How far a run is. Accuracies are shares in [0, 1].
#[derive(Debug, Serialize)]
struct Row {
    run: String,
    /// `waiting`, `running`, `saved at step N`, `trained`, `judged`, `failed`
    state: String,
    /// Epochs begun.
    epoch: u32,
    epochs: u32,
    step: u64,
    /// Once it is judged; before, that of the last validation.
    clean_accuracy: Option<f64>,
    /// The lowest over budgets once it is judged; before, that of the last validation.
    robust_accuracy: Option<f64>,
    judged: bool,
    /// What failed and how.
    problem: Option<String>,
    /// `123_4`
    slurm_task: Option<String>,
    /// Slurm's word, such as `PENDING`; `gone` if it no longer knows the task.
    slurm_state: Option<String>,
}

/// Prints how far each run is.
pub(crate) fn print(matrix: &Matrix, json: bool) {
    let jobs = Jobs::read(matrix).states();
    let rows: Vec<_> = matrix
        .runs
        .iter()
        .map(|run| {
            let mut row = Row::read(matrix, run);
            if let Some((task, state)) = jobs.get(&run.name) {
                row.slurm_task = Some(task.clone());
                row.slurm_state = Some(state.clone());
            }
            row
        })
        .collect();
    if json {
        let (name, out) = (&matrix.file.spec.name, &matrix.out);
        output::print_json(
            &serde_json::json!({ "schema": 1, "name": name, "out": out, "runs": rows }),
        );
        return;
    }
    let submitted = !jobs.is_empty();
    let mut heads = vec!["run", "state", ">epoch", ">clean", ">robust"];
    if submitted {
        heads.extend(["task", "Slurm"]);
    }
    let mut table = table(&heads);
    for row in &rows {
        let mark = if row.judged { "" } else { " *" };
        let share = |value: Option<f64>| {
            value.map_or_else(String::new, |value| format!("{}{mark}", percent(value)))
        };
        let mut cells = vec![
            row.run.clone(),
            row.state.clone(),
            format!("{}/{}", row.epoch, row.epochs),
            share(row.clean_accuracy),
            share(row.robust_accuracy),
        ];
        if submitted {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            cells.extend([text(&row.slurm_task), text(&row.slurm_state)]);
        }
        table.add_row(cells);
    }
    let judged = rows.iter().filter(|row| row.judged).count();
    output::print(format!(
        "{}\n{judged} of {} runs are judged",
        table.trim_fmt(),
        rows.len()
    ));
    if rows
        .iter()
        .any(|row| !row.judged && row.clean_accuracy.is_some())
    {
        output::say("* on validation data; a judged run is judged on test data");
    }
    for row in &rows {
        if let Some(problem) = &row.problem {
            output::say(format!("{}: {problem}", row.run));
        }
    }
}

impl Row {
    fn read(matrix: &Matrix, run: &Run) -> Self {
        let folder = Folder::of(matrix, run);
        let asked = Asked::of(matrix, run);
        let state = folder.state(&asked);
        let records = folder.records();
        let last = records.last();
        let validated = records
            .iter()
            .rev()
            .find(|record| record.robust_accuracy.is_some());
        let audit = folder.judged(&asked).filter(|_| state == State::Judged);
        let lowest = audit.as_ref().and_then(|audit| {
            let robust = audit.threats.iter().map(|threat| threat.robust_accuracy);
            robust.min_by(f64::total_cmp)
        });
        Self {
            run: run.name.clone(),
            epoch: last.map_or(0, |record| record.epoch + 1),
            epochs: run.plan.train.epochs,
            step: last.map_or(0, |record| record.step),
            clean_accuracy: audit
                .as_ref()
                .map(|audit| audit.clean_accuracy)
                .or_else(|| Some(validated?.accuracy)),
            robust_accuracy: lowest.or_else(|| validated?.robust_accuracy),
            judged: audit.is_some(),
            problem: match &state {
                State::Failed(failed) => Some(format!(
                    "{} ended with {}: {}",
                    failed.command, failed.ended, failed.said
                )),
                _ => folder.changed(&run.plan),
            },
            state: state_name(&state),
            slurm_task: None,
            slurm_state: None,
        }
    }
}

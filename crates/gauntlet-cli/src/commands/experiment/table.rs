//! The table that an experiment ends in, in Markdown.

use std::fmt::Write;

use gauntlet_attacks::Budget;

use super::results::{Group, Results};
use super::stats::Mean;
use crate::output::percent;

/// The table of the experiment, in Markdown.
pub(crate) fn table(results: &Results) -> String {
    let money = results.cost.as_ref();
    let mut heads = vec!["method".to_owned(), "n".to_owned(), "clean".to_owned()];
    let threats = columns(results);
    heads.extend(threats.iter().map(|threat| code(threat)));
    heads.extend(["training", "audit", "device-hours"].map(str::to_owned));
    heads.extend(money.map(|cost| format!("cost ({})", cost.currency)));
    let mut rows = Vec::new();
    for group in &results.groups {
        rows.push(row(group, &threats, results));
    }
    for (number, anchor) in results.anchors.iter().enumerate() {
        let share = |value: Option<f64>| value.map_or_else(dash, |value| mark(&percent(value)));
        let mut cells = vec![
            mark(&format!("{} [{}]", escape(&anchor.name), number + 1)),
            dash(),
            share(anchor.clean),
        ];
        let only = results
            .threats
            .first()
            .filter(|_| results.threats.len() == 1);
        let within = anchor.threat.as_ref().or(only);
        cells.extend(threats.iter().map(|threat| {
            let same = within.is_some_and(|within| same_budget(within, threat));
            share(anchor.robust.filter(|_| same))
        }));
        cells.resize_with(heads.len(), dash);
        rows.push(cells);
    }
    let mut text = markdown(&heads, &rows);
    for (number, anchor) in results.anchors.iter().enumerate() {
        let _ = write!(
            text,
            "\n[{}] from the literature, not measured here: {}\n",
            number + 1,
            anchor.source
        );
    }
    text
}

/// The budgets of the table: those of the runs, and those of anchors besides.
fn columns(results: &Results) -> Vec<String> {
    let mut columns = results.threats.clone();
    for threat in results
        .anchors
        .iter()
        .filter_map(|anchor| anchor.threat.as_ref())
    {
        if !columns.iter().any(|known| same_budget(known, threat)) {
            columns.push(threat.to_owned());
        }
    }
    columns
}

/// `linf:0.3` and `linf:0.30` are one.
fn same_budget(a: &str, b: &str) -> bool {
    match (a.parse::<Budget>(), b.parse::<Budget>()) {
        (Ok(a), Ok(b)) => a == b,
        _ => a == b,
    }
}

fn row(group: &Group, threats: &[String], results: &Results) -> Vec<String> {
    let n = group.clean.map_or(0, |mean| mean.n);
    let mut cells = vec![
        code(&group.name),
        n.to_string(),
        group.clean.map_or_else(dash, Mean::percent),
    ];
    cells.extend(threats.iter().map(|threat| {
        let mean = group.robust.get(threat);
        mean.map_or_else(dash, |mean| mean.percent())
    }));
    for seconds in [group.train_seconds, group.audit_seconds] {
        cells.push(seconds.map_or_else(dash, Mean::duration));
    }
    cells.push(
        group
            .device_hours
            .map_or_else(dash, |mean| short(mean.mean)),
    );
    if let Some(cost) = &results.cost {
        let money = group.device_hours.map(|mean| mean.mean * cost.per_hour);
        cells.push(money.map_or_else(dash, short));
    }
    cells
}

/// Three digits that say something.
pub(crate) fn short(value: f64) -> String {
    match value.abs() {
        0.0 => "0".to_owned(),
        size if size >= 100.0 => format!("{value:.0}"),
        size if size >= 10.0 => format!("{value:.1}"),
        size if size >= 1.0 => format!("{value:.2}"),
        size => {
            let places = (-size.log10()).ceil() as usize + 1;
            format!("{value:.places$}")
        }
    }
}

/// A table in Markdown; the first column is text, the others are aligned to the right.
pub(crate) fn markdown(heads: &[String], rows: &[Vec<String>]) -> String {
    let mut text = format!("| {} |\n|---|", heads.join(" | "));
    text += &"---:|".repeat(heads.len().saturating_sub(1));
    text.push('\n');
    for row in rows {
        let _ = writeln!(text, "| {} |", row.join(" | "));
    }
    text
}

pub(crate) fn dash() -> String {
    "-".to_owned()
}

pub(crate) fn code(text: &str) -> String {
    format!("`{}`", escape(text))
}

/// A number of others, in italics.
fn mark(text: &str) -> String {
    format!("*{text}*")
}

/// A bar would end the cell of a table.
fn escape(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_have_three_digits_that_say_something() {
        let written = [0.0, 0.000_321_4, 0.0123, 0.5, 2.3456, 34.56, 1234.5].map(short);
        assert_eq!(
            written,
            ["0", "0.00032", "0.012", "0.50", "2.35", "34.6", "1234"]
        );
    }

    #[test]
    fn budgets_written_differently_are_one_column() {
        assert!(same_budget("linf:0.3", "linf:0.30"));
        assert!(!same_budget("linf:0.3", "l2:0.3"));
    }
}

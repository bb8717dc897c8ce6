//! Results to stdout, talk to stderr.

use std::io::{self, IsTerminal, Write};

use comfy_table::{Cell, CellAlignment, LineStyle, Table, TableStyle};
use serde::Serialize;

/// Prints a line (or lines) of results. A reader that went away (`| head -1`) ends the program quietly: it has what it wanted.
pub(crate) fn print(text: impl AsRef<str>) {
    let mut stdout = io::stdout().lock();
    let result = writeln!(stdout, "{}", text.as_ref().trim_end()).and_then(|()| stdout.flush());
    if let Err(error) = result {
        let status = i32::from(error.kind() != io::ErrorKind::BrokenPipe);
        if status != 0 {
            say(format!("error: stdout: {error}"));
        }
        std::process::exit(status);
    }
}

/// Prints `value` as pretty JSON.
pub(crate) fn print_json(value: &impl Serialize) {
    print(serde_json::to_string_pretty(value).expect("plain structs serialise"));
}

/// Talks to the person: to stderr, where a reader that went away is nothing to die from.
pub(crate) fn say(text: impl AsRef<str>) {
    let _ = writeln!(io::stderr(), "{}", text.as_ref().trim_end());
}

/// Whether a person watches stderr.
pub(crate) fn watched() -> bool {
    io::stderr().is_terminal()
}

/// An empty table with these column heads; a head that starts with `>` is right-aligned.
pub(crate) fn table(heads: &[&str]) -> Table {
    let mut table = Table::new();
    // One rule under the heads: rows stay one line each, for eyes and for `grep`.
    table.load_style(TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─')));
    table.set_header(
        heads
            .iter()
            .map(|head| Cell::new(head.trim_start_matches('>'))),
    );
    for (index, head) in heads.iter().enumerate() {
        if let Some(column) = table.column_mut(index)
            && head.starts_with('>')
        {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// `61.25 %`
pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

/// `60,000`
pub(crate) fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// `1 h 02 min`, `3 min 05 s`, `12 s`
pub(crate) fn duration(seconds: f64) -> String {
    let seconds = seconds.max(0.0).round() as u64;
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds} s"),
        (0, minutes, seconds) => format!("{minutes} min {seconds:02} s"),
        (hours, minutes, _) => format!("{hours} h {minutes:02} min"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_for_people() {
        assert_eq!(percent(0.61249), "61.25 %");
        let written = [0, 999, 1000, 60_000, 1_234_567].map(thousands);
        assert_eq!(written, ["0", "999", "1,000", "60,000", "1,234,567"]);
        let written = [0.4, 59.6, 185.0, 3720.0].map(duration);
        assert_eq!(written, ["0 s", "1 min 00 s", "3 min 05 s", "1 h 02 min"]);
    }
}

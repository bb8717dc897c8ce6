//! What was measured, as JSON for programs and a Markdown table for people.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::ceilings::Ceilings;
use super::clock::Times;
use crate::devices::Picked;
use crate::failure::Failure;

/// A file of measurements. Other programs write it too: see `scripts/peers/torch_train.py`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    /// 1
    pub(crate) schema: u32,
    /// The first device measured.
    pub(crate) device: String,
    /// Of the program.
    pub(crate) version: String,
    /// Threads of the CPU backend.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) threads: Option<usize>,
    /// Those of the first device.
    pub(crate) ceilings: Ceilings,
    /// One for each thing measured.
    pub(crate) entries: Vec<Entry>,
}

/// One thing measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// `train/pgd-10/lenet-madry`, `kernels/linf-step/128x1x28x28`
    pub(crate) name: String,
    /// Which way of several to do the same: a peer's `eager`, `compile`, ...
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) variant: Option<String>,
    /// Where, if it is not the report's device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) device: Option<String>,
    /// Images at a time.
    pub(crate) batch: usize,
    /// Seconds.
    pub(crate) median_s: f64,
    /// Seconds between the quartiles.
    pub(crate) spread_s: f64,
    /// `batch / median_s`
    pub(crate) images_per_s: f64,
    /// Share of the ceiling that bounds it: of arithmetic for what counts FLOP, of memory for the rest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) bound_share: Option<f64>,
    /// Bytes that must be read and written, over the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gb_s: Option<f64>,
    /// Additions and multiplications that must be made, over the time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) gflop_s: Option<f64>,
    /// Median of the same by plain tensor operations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) plain_s: Option<f64>,
    /// Most bytes resident in the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) peak_bytes: Option<u64>,
}

impl Entry {
    /// An entry with its times.
    pub(crate) fn new(name: String, batch: usize, times: Times) -> Self {
        Self {
            name,
            batch,
            median_s: times.median,
            spread_s: times.spread,
            images_per_s: batch as f64 / times.median,
            ..Self::default()
        }
    }

    /// With what it computes held against the ceilings.
    pub(crate) fn bound_by(mut self, work: Work, ceilings: &Ceilings) -> Self {
        match work {
            Work::Bytes(bytes) => {
                let rate = bytes / self.median_s / 1e9;
                self.gb_s = Some(rate);
                self.bound_share = Some(rate / ceilings.copy_gb_s);
            }
            Work::Flop(flop) => {
                let rate = flop / self.median_s / 1e9;
                self.gflop_s = Some(rate);
                self.bound_share = Some(rate / ceilings.matmul_gflop_s);
            }
            Work::Bf16Flop(flop) => {
                let rate = flop / self.median_s / 1e9;
                self.gflop_s = Some(rate);
                self.bound_share = ceilings.matmul_bf16_gflop_s.map(|ceiling| rate / ceiling);
            }
        }
        self
    }
}

/// The least that must be done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Work {
    /// Bytes to be read and written.
    Bytes(f64),
    /// Additions and multiplications.
    Flop(f64),
    /// The same, most of them in `bf16`.
    Bf16Flop(f64),
}

impl Report {
    /// One with nothing measured on `first` yet.
    pub(crate) fn new(first: &Picked, ceilings: Ceilings) -> Self {
        Self {
            schema: 1,
            device: first.label(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            threads: first.is_cpu().then(rayon::current_num_threads),
            ceilings,
            entries: Vec::new(),
        }
    }

    /// Reads a file of measurements.
    ///
    /// # Errors
    /// If it is none.
    pub(crate) fn read(path: &Path) -> Result<Self, Failure> {
        let wrong = |problem: String| Failure::request(format!("{}: {problem}", path.display()));
        let text = std::fs::read_to_string(path).map_err(|error| wrong(error.to_string()))?;
        let report: Self = serde_json::from_str(&text).map_err(|error| {
            wrong(format!(
                "{error}\n\nhint: `gauntlet bench train --json FILE` writes such files"
            ))
        })?;
        match report.schema {
            1 => Ok(report),
            other => Err(wrong(format!(
                "schema {other} is not known; this program knows 1"
            ))),
        }
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub(crate) fn write(&self, path: &Path) -> Result<(), Failure> {
        let text = serde_json::to_string_pretty(self).expect("plain structs serialise");
        gauntlet_data::files::write(path, text.as_bytes())
            .map_err(|error| Failure::running(format!("{}: {error}", path.display())))
    }

    /// A Markdown table, with what the numbers stand for below it.
    pub(crate) fn table(&self) -> String {
        let any = |has: fn(&Entry) -> bool| self.entries.iter().any(has);
        let (rates, plain, peak) = (
            any(|entry| entry.gb_s.is_some() || entry.gflop_s.is_some()),
            any(|entry| entry.plain_s.is_some()),
            any(|entry| entry.peak_bytes.is_some()),
        );
        let devices = any(|entry| entry.device.is_some());
        let mut heads = vec!["what", "batch", ">median", ">spread", ">images/s"];
        heads.extend(rates.then_some(">rate"));
        heads.extend([">of the ceiling"]);
        heads.extend(plain.then_some(">plain / this"));
        heads.extend(peak.then_some(">peak memory"));
        heads.extend(devices.then_some("device"));
        let rows = self.entries.iter().map(|entry| {
            let mut row = vec![
                entry.name.clone(),
                entry.batch.to_string(),
                seconds(entry.median_s),
                seconds(entry.spread_s),
                significant(entry.images_per_s),
            ];
            if rates {
                row.push(match (entry.gflop_s, entry.gb_s) {
                    (Some(rate), _) => format!("{} GFLOP/s", significant(rate)),
                    (_, Some(rate)) => format!("{} GB/s", significant(rate)),
                    _ => String::new(),
                });
            }
            let text = |value: Option<String>| value.unwrap_or_default();
            row.push(text(
                entry
                    .bound_share
                    .map(|share| format!("{:.0} %", 100.0 * share)),
            ));
            if plain {
                row.push(text(
                    entry
                        .plain_s
                        .map(|plain| format!("{:.2}", plain / entry.median_s)),
                ));
            }
            if peak {
                row.push(text(
                    entry.peak_bytes.map(|bytes| format!("{} MB", bytes >> 20)),
                ));
            }
            if devices {
                row.push(entry.device.clone().unwrap_or_else(|| self.device.clone()));
            }
            row
        });
        let table = markdown(&heads, rows);
        let threads = self
            .threads
            .map_or_else(String::new, |threads| format!(", {threads} threads"));
        format!(
            "{table}\ngauntlet {} on {}{threads}; ceilings measured in this run: copy {} GB/s, matrix product {} GFLOP/s\n",
            self.version,
            self.device,
            significant(self.ceilings.copy_gb_s),
            significant(self.ceilings.matmul_gflop_s),
        )
    }
}

/// A Markdown table that is readable as text; heads that start with `>` are right-aligned.
pub(crate) fn markdown(heads: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let right: Vec<bool> = heads.iter().map(|head| head.starts_with('>')).collect();
    let names = heads
        .iter()
        .map(|head| head.trim_start_matches('>').to_owned());
    let rows: Vec<Vec<String>> = std::iter::once(names.collect()).chain(rows).collect();
    let widths: Vec<usize> = (0..heads.len())
        .map(|column| {
            rows.iter()
                .map(|row| row[column].chars().count())
                .max()
                .unwrap_or(0)
                .max(3)
        })
        .collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for ((cell, &width), &right) in row.iter().zip(&widths).zip(&right) {
            text += &match right {
                true => format!("| {cell:>width$} "),
                false => format!("| {cell:<width$} "),
            };
        }
        text += "|\n";
        if index == 0 {
            for (&width, &right) in widths.iter().zip(&right) {
                let rule = "-".repeat(width + 1);
                text += &match right {
                    true => format!("|{rule}:"),
                    false => format!("|-{rule}"),
                };
            }
            text += "|\n";
        }
    }
    text
}

/// `1.23 s`, `4.56 ms`, `789 µs`
pub(crate) fn seconds(seconds: f64) -> String {
    match seconds {
        1.0.. => format!("{} s", significant(seconds)),
        1e-3.. => format!("{} ms", significant(1e3 * seconds)),
        _ => format!("{} µs", significant(1e6 * seconds)),
    }
}

/// Three digits, or all before the point.
pub(crate) fn significant(value: f64) -> String {
    let before = value.abs().max(1e-3).log10().floor() as i32;
    let digits = (2 - before).clamp(0, 4) as usize;
    format!("{value:.digits$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        let times = Times {
            median: 0.5,
            spread: 0.01,
            best: 0.4,
        };
        let ceilings = Ceilings {
            copy_gb_s: 20.0,
            matmul_gflop_s: 200.0,
            matmul_bf16_gflop_s: None,
        };
        let entry = Entry::new("train/pgd-10/lenet-madry".to_owned(), 128, times);
        Report {
            schema: 1,
            device: "cpu (a CPU)".to_owned(),
            version: "0.1.0".to_owned(),
            threads: Some(2),
            entries: vec![entry.bound_by(Work::Flop(5e10), &ceilings)],
            ceilings,
        }
    }

    #[test]
    fn other_programs_find_the_documented_keys() {
        let json = serde_json::to_value(report()).unwrap();
        for key in ["schema", "device", "version", "ceilings", "entries"] {
            assert!(json.get(key).is_some(), "{key}");
        }
        for key in ["copy_gb_s", "matmul_gflop_s"] {
            assert!(json["ceilings"][key].is_f64(), "{key}");
        }
        let entry = &json["entries"][0];
        for key in ["median_s", "spread_s", "images_per_s", "bound_share"] {
            assert!(entry[key].is_f64(), "{key}");
        }
        assert_eq!(entry["name"], "train/pgd-10/lenet-madry");
        assert_eq!(entry["batch"], 128);
        assert_eq!(entry["images_per_s"], 256.0);
        // 100 of 200 GFLOP/s.
        assert_eq!(entry["bound_share"], 0.5);
        assert_eq!(serde_json::from_value::<Report>(json).unwrap(), report());
    }

    #[test]
    fn tables_are_markdown_and_aligned() {
        let table = report().table();
        let lines: Vec<&str> = table.lines().collect();
        assert!(
            lines[0].starts_with("| what ") && lines[1].starts_with("|---"),
            "{table}"
        );
        assert!(lines[2].contains("| 500 ms | 10.0 ms |"), "{table}");
        let widths: Vec<usize> = lines[..3].iter().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|&width| width == widths[0]), "{table}");
    }

    #[test]
    fn numbers_have_three_digits() {
        let written = [0.000_123_4, 0.0123, 0.123, 1.234, 12.34, 123.4, 12_345.6].map(significant);
        assert_eq!(
            written,
            ["0.0001", "0.0123", "0.123", "1.23", "12.3", "123", "12346"]
        );
        assert_eq!(
            [2.5, 2.5e-3, 2.5e-6].map(seconds),
            ["2.50 s", "2.50 ms", "2.50 µs"]
        );
    }
}

//! New measurements beside old ones, or beside a peer's.

use std::str::FromStr;

use super::report::{Entry, Report, markdown, seconds};
use crate::failure::Failure;

/// Entries of the same name and batch, side by side.
#[derive(Debug)]
pub(crate) struct Comparison<'a> {
    pairs: Vec<(&'a Entry, &'a Entry)>,
    /// Names that only one of the two files has.
    alone: Vec<&'a str>,
}

/// What a pair says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Faster, by more than both spreads.
    Faster,
    /// Slower, by more than both spreads.
    Slower,
    /// Within the spreads.
    Same,
}

impl<'a> Comparison<'a> {
    /// Pairs each entry of `new` with the fastest of its name, batch and device in `old`: a peer's best variant counts.
    pub(crate) fn of(new: &'a Report, old: &'a Report) -> Self {
        let same =
            |a: &Entry, b: &Entry| a.name == b.name && a.batch == b.batch && a.device == b.device;
        let fastest = |of: &Entry| {
            let entries = old.entries.iter().filter(|entry| same(entry, of));
            entries.min_by(|a, b| a.median_s.total_cmp(&b.median_s))
        };
        let pairs: Vec<_> = new
            .entries
            .iter()
            .filter_map(|entry| Some((entry, fastest(entry)?)))
            .collect();
        let both = [&new.entries, &old.entries].into_iter().flatten();
        let mut alone: Vec<&str> = both
            .filter(|entry| !pairs.iter().any(|(new, _)| same(new, entry)))
            .map(|entry| entry.name.as_str())
            .collect();
        alone.dedup();
        Self { pairs, alone }
    }

    /// Each pair's old time over its new one: above 1 is faster.
    pub(crate) fn ratios(&self) -> impl Iterator<Item = (&'a str, f64)> {
        self.pairs
            .iter()
            .map(|(new, old)| (new.name.as_str(), old.median_s / new.median_s))
    }

    /// A Markdown table.
    pub(crate) fn table(&self) -> String {
        let heads = [
            "what",
            "batch",
            ">now",
            ">then",
            "how",
            ">then / now",
            "verdict",
        ];
        let rows = self.pairs.iter().map(|(new, old)| {
            let word = match verdict(new, old) {
                Verdict::Faster => "faster",
                Verdict::Slower => "SLOWER",
                Verdict::Same => "within the spread",
            };
            vec![
                new.name.clone(),
                new.batch.to_string(),
                seconds(new.median_s),
                seconds(old.median_s),
                old.variant.clone().unwrap_or_default(),
                format!("{:.2}", old.median_s / new.median_s),
                word.to_owned(),
            ]
        });
        let mut text = markdown(&heads, rows);
        if !self.alone.is_empty() {
            text += &format!("not in both: {}\n", self.alone.join(", "));
        }
        text
    }

    /// Whether all gates are met.
    ///
    /// # Errors
    /// [`Failure::gate`] with those that are not, or a wrong request if a gate concerns nothing.
    pub(crate) fn judge(&self, gates: &[Gate]) -> Result<(), Failure> {
        let mut missed = Vec::new();
        for gate in gates {
            let held: Vec<_> = self
                .ratios()
                .filter(|(name, _)| gate.concerns(name))
                .collect();
            if held.is_empty() {
                let what = &gate.what;
                return Err(Failure::request(format!(
                    "`--require {what}>=..` concerns nothing that was compared"
                )));
            }
            let short = held
                .into_iter()
                .filter(|(_, ratio)| ratio.is_nan() || *ratio < gate.least);
            missed
                .extend(short.map(|(name, ratio)| {
                    format!("{name}: {ratio:.3} is less than {}", gate.least)
                }));
        }
        match missed.is_empty() {
            true => Ok(()),
            false => Err(Failure::gate(missed.join("\n"))),
        }
    }
}

fn verdict(new: &Entry, old: &Entry) -> Verdict {
    let apart = new.spread_s.max(old.spread_s);
    match new.median_s - old.median_s {
        more if more > apart => Verdict::Slower,
        less if less < -apart => Verdict::Faster,
        _ => Verdict::Same,
    }
}

/// `ratio>=0.9`, of everything compared, or `train/pgd-10>=1.0`, of what has this in its name.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gate {
    what: String,
    least: f64,
}

impl Gate {
    fn concerns(&self, name: &str) -> bool {
        self.what == "ratio" || name.contains(&self.what)
    }
}

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!("`{text}` is no gate: write one such as `ratio>=0.9` or `train/pgd-10>=1.0`")
        };
        let (what, least) = text.split_once(">=").ok_or_else(wrong)?;
        let least: f64 = least.trim().parse().map_err(|_| wrong())?;
        match what.trim() {
            "" => Err(wrong()),
            _ if !least.is_finite() || least < 0.0 => Err(wrong()),
            what => Ok(Self {
                what: what.to_owned(),
                least,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Status;

    /// A file as a person or another program might write it.
    fn file(entries: &str) -> Report {
        let text = format!(
            r#"{{ "schema": 1, "device": "cpu", "version": "x", "unknown": true,
                "ceilings": {{ "copy_gb_s": 10, "matmul_gflop_s": 100 }}, "entries": [{entries}] }}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn entry(name: &str, batch: usize, median: f64, spread: f64, variant: &str) -> String {
        format!(
            r#"{{ "name": "{name}", "batch": {batch}, "median_s": {median}, "spread_s": {spread}, "images_per_s": 1,
                "bound_share": 0.5, "variant": "{variant}" }}"#
        )
    }

    #[test]
    fn ratios_are_against_the_fastest_of_the_name_and_batch() {
        let new = file(
            &[
                entry("a", 8, 1.0, 0.1, ""),
                entry("b", 8, 1.0, 0.1, ""),
                entry("c", 8, 1.0, 0.0, ""),
            ]
            .join(","),
        );
        let old = file(
            &[
                entry("a", 8, 3.0, 0.1, "eager"),
                entry("a", 8, 2.0, 0.1, "compile"),
                entry("a", 16, 0.1, 0.1, "eager"),
                entry("b", 8, 1.05, 0.2, ""),
                entry("d", 8, 1.0, 0.0, ""),
            ]
            .join(","),
        );
        let comparison = Comparison::of(&new, &old);
        let ratios: Vec<_> = comparison.ratios().collect();
        assert_eq!(ratios, [("a", 2.0), ("b", 1.05)]);
        let table = comparison.table();
        assert!(table.contains("| compile |"), "{table}");
        assert!(table.contains("not in both: c, a, d"), "{table}");
    }

    #[test]
    fn a_regression_is_one_beyond_the_spread() {
        let verdicts = [(1.0, 1.0), (1.15, 1.0), (1.25, 1.0), (0.7, 1.0)].map(|(new, old)| {
            let (new, old) = (
                file(&entry("a", 1, new, 0.2, "")),
                file(&entry("a", 1, old, 0.1, "")),
            );
            verdict(&new.entries[0], &old.entries[0])
        });
        assert_eq!(
            verdicts,
            [
                Verdict::Same,
                Verdict::Same,
                Verdict::Slower,
                Verdict::Faster
            ]
        );
    }

    #[test]
    fn gates_hold_for_what_they_name() {
        let new = file(
            &[
                entry("train/a", 1, 1.0, 0.0, ""),
                entry("kernels/b", 1, 2.0, 0.0, ""),
            ]
            .join(","),
        );
        let old = file(
            &[
                entry("train/a", 1, 1.0, 0.0, ""),
                entry("kernels/b", 1, 1.0, 0.0, ""),
            ]
            .join(","),
        );
        let judge = |text: &str| Comparison::of(&new, &old).judge(&[text.parse().unwrap()]);
        assert!(judge("train>=1.0").is_ok());
        assert!(judge("ratio >= 0.5").is_ok());
        let missed = judge("ratio>=0.9").unwrap_err();
        assert_eq!(missed.status, Status::Gate);
        assert_eq!(missed.message, "kernels/b: 0.500 is less than 0.9");
        assert_eq!(judge("audit>=1").unwrap_err().status, Status::Request);
        for bad in [
            "",
            "ratio",
            "ratio>0.9",
            ">=1",
            "ratio>=fast",
            "ratio>=NaN",
            "ratio>=-1",
        ] {
            assert!(bad.parse::<Gate>().is_err(), "{bad}");
        }
    }
}

//! A TOML file with the place of every key in it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;

use toml::de::{DeTable, DeValue};

/// Where a key and its value stand, as byte ranges.
#[derive(Clone, Debug)]
struct Place {
    key: Range<usize>,
    value: Range<usize>,
}

/// The text of a config file, and where its keys are.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// The file, as the person wrote it.
    pub(crate) name: String,
    text: String,
    places: BTreeMap<String, Place>,
}

/// Which part of an entry a problem lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// The key is wrong.
    Key,
    /// The value is wrong.
    Value,
}

impl Source {
    /// Parses `text`; what is no TOML is told with its place.
    ///
    /// # Errors
    /// Lines for people.
    pub(crate) fn parse(path: &Path, text: String) -> Result<(Self, toml::Table), String> {
        let mut source = Self {
            name: path.display().to_string(),
            text,
            places: BTreeMap::new(),
        };
        let parsed = match DeTable::parse(&source.text) {
            Ok(table) => table,
            Err(error) => {
                let range = error.span().unwrap_or(0..0);
                return Err(source.show(&range, error.message().trim()));
            }
        };
        let mut places = BTreeMap::new();
        collect(parsed.get_ref(), "", &mut places);
        let table = source.text.parse::<toml::Table>();
        source.places = places;
        let table = table.map_err(|error| error.message().to_owned())?;
        Ok((source, table))
    }

    /// `problem` with file, line and column of `path` (or of the nearest table around it that the file has), and that line.
    pub(crate) fn locate(&self, path: &str, part: Part, problem: &str) -> String {
        match self.nearest(path) {
            // The place of a whole table says less than the place of its name.
            Some((at, place)) if part == Part::Value && at == path => {
                self.show(&place.value, problem)
            }
            Some((_, place)) => self.show(&place.key, problem),
            None => format!("{}: {problem}", self.name),
        }
    }

    /// The entry at `path`, or the nearest around it that the file has.
    fn nearest<'a>(&self, path: &'a str) -> Option<(&'a str, &Place)> {
        let mut at = path;
        loop {
            if let Some(place) = self.places.get(at) {
                return Some((at, place));
            }
            at = &at[..at.rfind(['.', '['])?];
        }
    }

    /// Where `path`, or the nearest table around it that the file has, begins.
    pub(crate) fn position(&self, path: &str) -> usize {
        self.nearest(path).map_or(0, |(_, place)| place.key.start)
    }

    /// `problem` with file, line and column of `range`, and that line.
    pub(crate) fn show(&self, range: &Range<usize>, problem: &str) -> String {
        let start = range.start.min(self.text.len());
        let before = &self.text[..start];
        let number = before.matches('\n').count() + 1;
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        let line = self.text[line_start..].lines().next().unwrap_or_default();
        let column = self.text[line_start..start].chars().count();
        let end = range.end.min(line_start + line.len());
        let width = self
            .text
            .get(start..end)
            .map_or(1, |text| text.chars().count())
            .max(1);
        let (number_text, name) = (number.to_string(), &self.name);
        let pad = " ".repeat(number_text.len());
        let (marks, indent) = ("^".repeat(width), indent(line, column));
        format!(
            "{name}:{number}:{}: {problem}\n{pad} |\n{number_text} | {line}\n{pad} | {indent}{marks}",
            column + 1
        )
    }
}

/// Spaces under the first `column` characters of `line`, tabs kept, so that marks stand under what they mark.
fn indent(line: &str, column: usize) -> String {
    let blank = |c| if c == '\t' { '\t' } else { ' ' };
    line.chars().take(column).map(blank).collect()
}

fn collect(table: &DeTable<'_>, above: &str, places: &mut BTreeMap<String, Place>) {
    for (key, value) in table {
        let path = super::join(above, key.get_ref());
        let place = Place {
            key: key.span(),
            value: value.span(),
        };
        places.insert(path.clone(), place);
        match value.get_ref() {
            DeValue::Table(inner) => collect(inner, &path, places),
            DeValue::Array(items) => {
                for (index, item) in items.iter().enumerate() {
                    let place = Place {
                        key: item.span(),
                        value: item.span(),
                    };
                    let path = format!("{path}[{index}]");
                    if let DeValue::Table(inner) = item.get_ref() {
                        collect(inner, &path, places);
                    }
                    places.insert(path, place);
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(text: &str) -> Source {
        Source::parse(Path::new("run.toml"), text.to_owned())
            .unwrap()
            .0
    }

    #[test]
    fn keys_and_values_are_found_wherever_they_are_written() {
        let source = source(
            "name = \"a\"\n[train]\nepochs = -3\noptimizer = { kind = \"sgd\", rate = 2 }\n",
        );
        let shown = source.locate("train.epochs", Part::Value, "too small");
        assert_eq!(
            shown,
            "run.toml:3:10: too small\n  |\n3 | epochs = -3\n  |          ^^"
        );
        let shown = source.locate("train.optimizer.rate", Part::Key, "no such key");
        assert!(shown.starts_with("run.toml:4:29: no such key"), "{shown}");
        let shown = source.locate("train.schedule.kind", Part::Value, "missing");
        assert!(shown.starts_with("run.toml:2:2: missing"), "{shown}");
        let source = super::Source::parse(
            Path::new("run.toml"),
            "[[threat]]\nwithin = 3\n[[threat]]\n[[threat.attack]]\nkind = \"a\"\n".to_owned(),
        )
        .unwrap()
        .0;
        let shown = source.locate("threat[0].within", Part::Value, "wrong");
        assert!(shown.starts_with("run.toml:2:10: wrong"), "{shown}");
        let shown = source.locate("threat[1].within", Part::Key, "missing");
        assert!(shown.starts_with("run.toml:3:1: missing"), "{shown}");
        let shown = source.locate("threat[1].attack[0].kind", Part::Key, "wrong");
        assert!(shown.starts_with("run.toml:5:1: wrong"), "{shown}");
        let shown = source.locate("threat[1].attack[0]", Part::Value, "wrong");
        assert!(shown.starts_with("run.toml:4:1: wrong"), "{shown}");
        assert_eq!(
            source.locate("data", Part::Key, "missing"),
            "run.toml: missing"
        );
    }

    #[test]
    fn what_is_no_toml_is_told_with_its_line() {
        let error = Source::parse(
            Path::new("run.toml"),
            "name = \"a\"\nseed = = 3\n".to_owned(),
        )
        .unwrap_err();
        assert!(error.starts_with("run.toml:2:"), "{error}");
        assert!(error.contains("2 | seed = = 3"), "{error}");
    }
}

//! `--set KEY=VALUE`: values from the command line over those of the file.

use std::str::FromStr;

use toml::{Table, Value};

/// One `--set`.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Set {
    /// `train.epochs`
    pub(crate) path: String,
    /// The value as it was typed.
    pub(crate) text: String,
    /// Where it stands, if it was not typed but is in a file.
    pub(crate) place: Option<Shown>,
}

/// A place in a file, for people.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Shown {
    /// `experiment.toml:3:1`
    pub(crate) at: String,
    /// The line, with marks under what is meant.
    pub(crate) frame: String,
}

impl FromStr for Set {
    type Err = String;

    fn from_str(argument: &str) -> Result<Self, String> {
        let (path, text) = argument
            .split_once('=')
            .ok_or("write KEY=VALUE, such as `train.epochs=3`")?;
        let path = path.trim().to_owned();
        if path.is_empty() || path.split('.').any(str::is_empty) {
            return Err(
                "the key is the way to it through the tables, such as `train.epochs`".to_owned(),
            );
        }
        Ok(Self {
            path,
            text: text.trim().to_owned(),
            place: None,
        })
    }
}

impl Set {
    /// The argument as it was typed.
    pub(crate) fn argument(&self) -> String {
        format!("--set {}={}", self.path, self.text)
    }

    /// `problem` with what caused it: the argument, or the line of the file.
    pub(super) fn tell(&self, problem: &str) -> String {
        match &self.place {
            Some(Shown { at, frame }) => format!("{at}: {problem}\n{frame}"),
            None => format!("{}: {problem}", self.argument()),
        }
    }

    /// Whether `path` is what this sets, or within it.
    pub(crate) fn covers(&self, path: &str) -> bool {
        path.strip_prefix(&self.path)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }

    /// Puts the value into `table`, which gets the tables around it where it has none. The text is read as TOML (`3`, `true`,
    /// `["crop"]`); what is none, and everything where `as_text` is set, is a string.
    ///
    /// # Errors
    /// If something on the way is no table.
    pub(crate) fn apply(&self, table: &mut Table, as_text: bool) -> Result<(), String> {
        let value = format!("value = {}", self.text).parse::<Table>().ok();
        let value = value.and_then(|mut table| table.remove("value"));
        let text = || Value::String(self.text.clone());
        let value = match value {
            Some(value) if !as_text || value.is_str() => value,
            _ => text(),
        };
        let mut keys: Vec<_> = self.path.split('.').collect();
        let last = keys.pop().expect("a path has a key");
        let mut table = table;
        for key in keys {
            let inner = table
                .entry(key)
                .or_insert_with(|| Value::Table(Table::new()));
            table = inner
                .as_table_mut()
                .ok_or_else(|| format!("`{key}` is no table"))?;
        }
        table.insert(last.to_owned(), value);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(text: &str, sets: &[&str]) -> Table {
        let mut table: Table = text.parse().unwrap();
        for set in sets {
            set.parse::<Set>()
                .unwrap()
                .apply(&mut table, false)
                .unwrap();
        }
        table
    }

    #[test]
    fn values_are_toml_or_else_text() {
        let sets = [
            "train.epochs=3",
            "train.attack.steps = 7",
            "data.augment=[\"crop\"]",
            "device=cpu",
            "threat.eps=8/255",
        ];
        let table = applied("name = \"a\"\n[train]\nepochs = 1\n", &sets);
        let expected = "name = \"a\"\ndevice = \"cpu\"\n[train]\nepochs = 3\nattack = { steps = 7 }\n[data]\naugment = [\"crop\"]\n\
                        [threat]\neps = \"8/255\"\n";
        assert_eq!(table, expected.parse::<Table>().unwrap());
    }

    #[test]
    fn bad_arguments_are_refused() {
        for bad in ["train.epochs", "=3", "train..epochs=3", ""] {
            assert!(bad.parse::<Set>().is_err(), "{bad}");
        }
        let set: Set = "name.first=3".parse().unwrap();
        let mut table: Table = "name = \"a\"".parse().unwrap();
        assert_eq!(
            set.apply(&mut table, false),
            Err("`name` is no table".to_owned())
        );
        assert!(
            set.covers("name.first")
                && set.covers("name.first.x")
                && !set.covers("name.firsts")
                && !set.covers("name")
        );
    }
}

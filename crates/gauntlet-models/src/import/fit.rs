//! Which tensor of a file is which of a network.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use gauntlet_formats::Stored;

use super::names::{self, Scheme};
use super::quoted;
use crate::Arch;
use crate::named::Named;

/// Tensors by the names they have in the file.
pub(super) type Source<'a> = BTreeMap<&'a String, &'a Stored>;

/// A tensor of the network and the one of the file that it gets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pair {
    /// Place in the list of the network's tensors.
    pub(super) ours: usize,
    pub(super) theirs: String,
    pub(super) transposed: bool,
}

/// How a file fits a network.
#[derive(Debug, Default)]
pub(super) struct Fit {
    /// What comes before the names: `state_dict.module.`, or nothing.
    prefix: String,
    pub(super) pairs: Vec<Pair>,
    /// Buffers of a normalisation that are left aside.
    pub(super) normalisation: Vec<String>,
    /// Weights that the published network has without using them.
    pub(super) unused: Vec<String>,
    /// Single numbers beside the state dict: accuracies and the like.
    pub(super) numbers: Vec<String>,
    /// Name and shape of what is missing.
    missing: Vec<(String, Vec<usize>)>,
    /// Name, shape, and the shape it should have.
    misshapen: Vec<(String, Vec<usize>, Vec<usize>)>,
    /// Weights that have no place.
    left: Vec<String>,
}

/// Dicts of a checkpoint that are state dicts, perhaps of other networks.
const STATE_DICTS: [&str; 16] = [
    "state_dict",
    "model_state_dict",
    "model_state",
    "model",
    "net",
    "network",
    "weights",
    "params",
    "ema",
    "ema_state_dict",
    "ema_model",
    "model_ema",
    "state_dict_ema",
    "best_state_dict",
    "best_model",
    "swa_model",
];

/// Other things in a checkpoint, by how their names start.
const TRAINING: [&str; 8] = [
    "optim",
    "sched",
    "lr_sched",
    "scaler",
    "grad_scaler",
    "rng",
    "cuda_rng",
    "history",
];

/// Most values that a buffer of a normalisation has: one a channel.
const MAX_CHANNELS: usize = 16;

/// The one way in which the file fits, or what is wrong with the nearest.
pub(super) fn best(source: &Source<'_>, wanted: &[Named], arch: Arch) -> Result<Fit, String> {
    let mut fits: Vec<Fit> = Vec::new();
    let mut nearest: Option<Fit> = None;
    for (scheme, prefix) in readings(source, wanted, arch) {
        let fit = read(source, wanted, arch, &scheme, &prefix);
        if fit.problems() == 0 {
            if !fits.iter().any(|other| other.pairs == fit.pairs) {
                fits.push(fit);
            }
        } else if nearest
            .as_ref()
            .is_none_or(|other| fit.score() > other.score())
        {
            nearest = Some(fit);
        }
    }
    match (fits.len(), nearest) {
        (1, _) => Ok(fits.remove(0)),
        (0, Some(fit)) => Err(fit.problem(source, arch)),
        (0, None) => {
            let names: Vec<_> = source.keys().map(|name| (*name).clone()).collect();
            Err(format!(
                "no tensor has a name that is known of `{arch}`; there are {}",
                quoted(&names)
            ))
        }
        _ => {
            let places: Vec<_> = fits
                .iter()
                .map(|fit| fit.prefix.trim_end_matches('.').to_owned())
                .collect();
            Err(format!(
                "several networks fit: {}\n\nhint: say which one, by the name of its dict",
                quoted(&places)
            ))
        }
    }
}

/// Ways to read the file in which at least one name is known: a scheme, and what comes before its names.
fn readings(source: &Source<'_>, wanted: &[Named], arch: Arch) -> Vec<(Scheme, String)> {
    // What comes before each end of a name.
    let mut before: HashMap<&str, Vec<&str>> = HashMap::new();
    // Places of sequences, by what comes before them.
    let mut sequences: BTreeMap<&str, BTreeSet<usize>> = BTreeMap::new();
    for name in source.keys() {
        let name = name.as_str();
        before.entry(name).or_default().push("");
        for (dot, _) in name.match_indices('.') {
            before
                .entry(&name[dot + 1..])
                .or_default()
                .push(&name[..=dot]);
        }
        if let Some((layer, "weight" | "bias")) = name.rsplit_once('.') {
            let start = layer.rfind('.').map_or(0, |dot| dot + 1);
            if let Ok(place) = layer[start..].parse() {
                sequences.entry(&layer[..start]).or_default().insert(place);
            }
        }
    }
    let mut readings = Vec::new();
    for scheme in [Scheme::Own, Scheme::Layers, Scheme::Published] {
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for tensor in wanted {
            for name in scheme.names(tensor, wanted, arch) {
                for prefix in before.get(name.as_str()).into_iter().flatten() {
                    *counts.entry(prefix).or_default() += 1;
                }
            }
        }
        // A few: names such as `fc.weight` are everywhere.
        let mut counts: Vec<_> = counts.into_iter().collect();
        counts.sort_by_key(|&(_, count)| std::cmp::Reverse(count));
        let prefixes = counts.into_iter().take(8);
        readings.extend(prefixes.map(|(prefix, _)| (scheme.clone(), prefix.to_owned())));
    }
    if names::is_sequence(arch) {
        for (prefix, places) in sequences.into_iter().take(64) {
            let scheme = Scheme::Sequential(places.into_iter().collect());
            readings.push((scheme, prefix.to_owned()));
        }
    }
    readings
}

fn read(source: &Source<'_>, wanted: &[Named], arch: Arch, scheme: &Scheme, prefix: &str) -> Fit {
    let mut fit = Fit {
        prefix: prefix.to_owned(),
        ..Fit::default()
    };
    let mut used: BTreeSet<&str> = BTreeSet::new();
    for (ours, tensor) in wanted.iter().enumerate() {
        let transposed = scheme.is_transposed(tensor);
        let mut shape = tensor.shape.clone();
        if transposed {
            shape.reverse();
        }
        let names: Vec<_> = scheme
            .names(tensor, wanted, arch)
            .into_iter()
            .map(|name| format!("{prefix}{name}"))
            .collect();
        let found = names.iter().find_map(|name| source.get_key_value(name));
        match found {
            None => {
                let name = names.into_iter().next();
                // A sequence with too few layers has no name for the rest.
                let name = name.unwrap_or_else(|| format!("{prefix}?.weight"));
                fit.missing.push((name, shape));
            }
            Some((name, stored)) if stored.shape == shape => {
                used.insert(name);
                fit.pairs.push(Pair {
                    ours,
                    theirs: (*name).clone(),
                    transposed,
                });
            }
            Some((name, stored)) => {
                used.insert(name);
                fit.misshapen
                    .push(((*name).clone(), stored.shape.clone(), shape));
            }
        }
    }
    let first = |name: &str| name.split('.').next().unwrap_or(name).to_owned();
    let in_state_dict = STATE_DICTS.contains(&first(prefix).as_str());
    for (name, stored) in source
        .iter()
        .filter(|(name, _)| !used.contains(name.as_str()))
    {
        let name = name.as_str();
        let last = name.rsplit('.').next().unwrap_or(name);
        let top = first(name);
        let outside = !name.starts_with(prefix);
        let other_dict =
            outside && in_state_dict && top != first(prefix) && STATE_DICTS.contains(&top.as_str());
        let training = (outside || prefix.is_empty())
            && (top == "opt"
                || top == "amp"
                || TRAINING.iter().any(|start| top.starts_with(start)));
        let counter = last == "num_batches_tracked"
            || stored.shape.is_empty() && stored.dtype.is_some_and(|dtype| !dtype.is_float());
        let unused = arch == Arch::WideResnet
            && *scheme == Scheme::Published
            && name
                .strip_prefix(prefix)
                .is_some_and(|rest| rest.starts_with("sub_block1."));
        if counter || other_dict || training {
            continue;
        }
        let list =
            if matches!(last, "mean" | "std" | "mu" | "sigma") && stored.values() <= MAX_CHANNELS {
                &mut fit.normalisation
            } else if unused {
                &mut fit.unused
            } else if outside && stored.values() == 1 && stored.dtype.is_some() {
                &mut fit.numbers
            } else {
                &mut fit.left
            };
        list.push(name.to_owned());
    }
    fit
}

impl Fit {
    fn problems(&self) -> usize {
        self.missing.len() + self.misshapen.len() + self.left.len()
    }

    /// More is nearer.
    fn score(&self) -> (usize, std::cmp::Reverse<usize>) {
        let known = 2 * self.pairs.len() + self.misshapen.len();
        (known, std::cmp::Reverse(self.problems()))
    }

    /// What is wrong, in one sentence.
    fn problem(&self, source: &Source<'_>, arch: Arch) -> String {
        let first = if let Some((name, shape)) = self.missing.first() {
            let nearest = self.nearest(name, shape, source);
            let near = nearest.map_or_else(String::new, |near| {
                format!(
                    "; the nearest that is left is `{near}` of shape {:?}",
                    source[near].shape
                )
            });
            format!("`{arch}` needs `{name}` of shape {shape:?}, which is missing{near}")
        } else if let Some((name, shape, wanted)) = self.misshapen.first() {
            format!("`{name}` is {shape:?}, `{arch}` needs {wanted:?}")
        } else {
            let name = self.left.first().expect("there is a problem");
            let shape = &source[name].shape;
            format!("`{name}` of shape {shape:?} is left over: `{arch}` has no place for it")
        };
        match self.problems() - 1 {
            0 => first,
            1 => format!("{first} (and 1 more does not fit)"),
            more => format!("{first} (and {more} more do not fit)"),
        }
    }

    /// Of what is left, the one that is most like it.
    fn nearest<'a>(
        &'a self,
        name: &str,
        shape: &[usize],
        source: &Source<'_>,
    ) -> Option<&'a String> {
        let likeness = |other: &String| {
            let same = if source[other].shape == shape {
                0.3
            } else {
                0.0
            };
            same + strsim::normalized_levenshtein(name, other)
        };
        self.left
            .iter()
            .take(1000)
            .map(|other| (likeness(other), other))
            .filter(|(likeness, _)| *likeness >= 0.6)
            .max_by(|(a, _), (b, _)| a.total_cmp(b))
            .map(|(_, other)| other)
    }
}

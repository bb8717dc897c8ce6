//! What the layers of a network are called elsewhere.

use std::collections::BTreeSet;

use crate::Arch;
use crate::import::fit::Source;
use crate::named::Named;

/// A way to name layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Scheme {
    /// Gauntlet's own, as it writes them. Linear weights are `[in, out]`, as burn has them.
    Own,
    /// Gauntlet's names of layers with PyTorch's names of their tensors.
    Layers,
    /// As in the repository that an architecture is known from.
    Published,
    /// `nn.Sequential`: the places of its layers that have weights, in order.
    Sequential(Vec<usize>),
}

impl Scheme {
    /// Whether linear weights are `[out, in]`.
    pub(super) fn is_transposed(&self, tensor: &Named) -> bool {
        *self != Self::Own && tensor.shape.len() == 2
    }

    /// What a tensor may be called, the usual name first; nothing if there is no such name.
    pub(super) fn names(&self, tensor: &Named, all: &[Named], arch: Arch) -> Vec<String> {
        let path = &tensor.path;
        if *self == Self::Own {
            return vec![path.clone()];
        }
        let Some((layer, last)) = path
            .strip_prefix("body.")
            .and_then(|path| path.rsplit_once('.'))
        else {
            return Vec::new();
        };
        let last = match last {
            "gamma" => "weight",
            "beta" => "bias",
            other => other,
        };
        let layers = match self {
            Self::Own => unreachable!("returned above"),
            Self::Layers => vec![layer.to_owned()],
            Self::Published => published(layer, all, arch),
            Self::Sequential(places) => {
                let place = layers(all).iter().position(|known| known == layer);
                let place = place.and_then(|place| places.get(place));
                place.iter().map(|place| place.to_string()).collect()
            }
        };
        layers
            .into_iter()
            .map(|layer| format!("{layer}.{last}"))
            .collect()
    }
}

/// Layers of a network in the order of its computation, if it is a sequence.
pub(super) fn layers(all: &[Named]) -> Vec<String> {
    let mut layers: Vec<String> = Vec::new();
    for tensor in all {
        let path = tensor.path.strip_prefix("body.").unwrap_or(&tensor.path);
        let layer = path.rsplit_once('.').map_or(path, |(layer, _)| layer);
        if layers.last().is_none_or(|last| last != layer) {
            layers.push(layer.to_owned());
        }
    }
    layers
}

/// Whether the architecture is one layer after another.
pub(super) fn is_sequence(arch: Arch) -> bool {
    !matches!(arch, Arch::PreactResnet18 | Arch::WideResnet)
}

fn published(layer: &str, all: &[Named], arch: Arch) -> Vec<String> {
    let some = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    let block = layer.strip_prefix("blocks.").and_then(|rest| {
        let (number, part) = rest.split_once('.')?;
        Some((number.parse::<usize>().ok()?, part))
    });
    match (arch, layer, block) {
        // TRADES, models/small_cnn.py.
        (Arch::SmallCnn, layer, _) if layer.starts_with("conv") => {
            vec![format!("feature_extractor.{layer}")]
        }
        (Arch::SmallCnn, layer, _) => vec![format!("classifier.{layer}")],
        (Arch::PreactResnet18 | Arch::WideResnet, "stem", _) => some(&["conv1"]),
        // robust_overfitting and fast_adversarial, preactresnet.py; pytorch-cifar has no last BatchNorm.
        (Arch::PreactResnet18, "norm", _) => some(&["bn"]),
        (Arch::PreactResnet18, "fc", _) => some(&["linear", "fc"]),
        (Arch::PreactResnet18, _, Some((number, part))) => {
            let part = match part {
                "norm1" => "bn1",
                "norm2" => "bn2",
                "shortcut" => "shortcut.0",
                other => other,
            };
            vec![format!("layer{}.{}.{part}", number / 2 + 1, number % 2)]
        }
        // TRADES and RobustBench, wideresnet.py.
        (Arch::WideResnet, "norm", _) => some(&["bn1"]),
        (Arch::WideResnet, "fc", _) => some(&["fc", "linear"]),
        (Arch::WideResnet, _, Some((number, part))) => {
            let blocks = layers(all)
                .iter()
                .filter(|layer| layer.ends_with(".norm1"))
                .count();
            let each = (blocks / 3).max(1);
            let part = match part {
                "norm1" => "bn1",
                "norm2" => "bn2",
                "shortcut" => "convShortcut",
                other => other,
            };
            vec![format!(
                "block{}.layer.{}.{part}",
                number / each + 1,
                number % each
            )]
        }
        _ => Vec::new(),
    }
}

/// An architecture with the width and depth that names and shapes speak of, and the least number of weights it has.
pub(super) type Candidate = (Arch, Option<usize>, Option<usize>, usize);

/// Which networks the tensors could be of.
pub(super) fn candidates(source: &Source<'_>) -> Vec<Candidate> {
    // Buffers of a normalisation have four dimensions too, the first of 1.
    let convolutions: Vec<_> = source
        .values()
        .filter(|stored| stored.shape.len() == 4 && stored.shape[0] > 1)
        .collect();
    let has = |outputs: usize, kernel: usize| {
        convolutions
            .iter()
            .any(|stored| stored.shape[0] == outputs && stored.shape[2..] == [kernel, kernel])
    };
    let mut found: Vec<Candidate> = Vec::new();
    if convolutions.is_empty() {
        let widths: BTreeSet<usize> = source
            .values()
            .filter(|stored| stored.shape.len() == 2)
            .flat_map(|stored| stored.shape.clone())
            .collect();
        let square = |width: usize| (Arch::Mlp, Some(width), None, width.saturating_mul(width));
        found.extend(
            widths
                .into_iter()
                .filter(|&width| width > 0)
                .take(8)
                .map(square),
        );
    }
    if has(16, 4) && has(32, 4) {
        found.push((Arch::MnistCnn, None, None, 0));
    }
    if has(32, 3) && has(64, 3) {
        found.push((Arch::SmallCnn, None, None, 0));
    }
    if has(32, 5) && has(64, 5) {
        found.push((Arch::LenetMadry, None, None, 0));
    }
    if has(512, 3) {
        found.push((Arch::PreactResnet18, None, None, 0));
    }
    // The first convolution of the first block, and how many blocks a stage has.
    let blocks = |start: &str| {
        let with = |i: usize| {
            let end = format!("{start}{i}.conv1.weight");
            source.iter().find(|(name, _)| {
                name.strip_suffix(end.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })
        };
        let outputs = *with(0)?.1.shape.first()?;
        let count = (0..1000).take_while(|&i| with(i).is_some()).count();
        (outputs > 0 && outputs.is_multiple_of(16)).then_some((outputs / 16, count))
    };
    let wide = |width: usize, each: usize| {
        let last = width.saturating_mul(64).saturating_pow(2).saturating_mul(9);
        (Arch::WideResnet, Some(width), Some(6 * each + 4), last)
    };
    if let Some((width, each)) = blocks("block1.layer.") {
        found.push(wide(width, each));
    }
    if let Some((width, count)) = blocks("blocks.").filter(|(_, count)| count.is_multiple_of(3)) {
        found.push(wide(width, count / 3));
    }
    found
}

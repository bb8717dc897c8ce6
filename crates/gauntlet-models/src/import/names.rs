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
        let Some(path) = path.strip_prefix("body.") else {
            return Vec::new();
        };
        let Some((layer, last)) = path.rsplit_once('.') else {
            // Parameters of the network itself.
            return match self {
                Self::Layers => vec![path.to_owned()],
                _ => Vec::new(),
            };
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
    matches!(
        arch,
        Arch::Mlp | Arch::MnistCnn | Arch::SmallCnn | Arch::LenetMadry
    )
}

/// What the tensors of a network are called where it goes out to, in their order; nothing if there are no such names. Linear weights are to be
/// `[out, in]`.
pub(crate) fn outward(all: &[Named], arch: Arch) -> Option<Vec<String>> {
    let scheme = match arch {
        Arch::Onnx => return None,
        Arch::Mlp | Arch::MnistCnn | Arch::LenetMadry | Arch::Vit => Scheme::Layers,
        _ => Scheme::Published,
    };
    let name = |tensor: &Named| scheme.names(tensor, all, arch).into_iter().next();
    all.iter().map(name).collect()
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
        (Arch::PreactResnet18 | Arch::PreactResnet18Plain | Arch::WideResnet, "stem", _) => {
            some(&["conv1"])
        }
        // robust_overfitting and fast_adversarial, preactresnet.py; pytorch-cifar has no last BatchNorm.
        (Arch::PreactResnet18, "norm", _) => some(&["bn"]),
        (Arch::PreactResnet18 | Arch::PreactResnet18Plain, "fc", _) => some(&["linear", "fc"]),
        (Arch::PreactResnet18 | Arch::PreactResnet18Plain, _, Some((number, part))) => {
            let part = match part {
                "norm1" => "bn1",
                "norm2" => "bn2",
                "shortcut" => "shortcut.0",
                other => other,
            };
            vec![format!("layer{}.{}.{part}", number / 2 + 1, number % 2)]
        }
        // adversarial_robustness, pytorch/model_zoo.py, which RobustBench has as dm_wide_resnet.py.
        (Arch::WideResnetSame, "stem", _) => some(&["init_conv"]),
        (Arch::WideResnetSame, "norm", _) => some(&["batchnorm"]),
        (Arch::WideResnetSame, "fc", _) => some(&["logits"]),
        (Arch::WideResnetSame, _, Some((number, part))) => {
            let each = blocks_of_a_stage(all);
            let part = match part {
                "norm1" => "batchnorm_0",
                "conv1" => "conv_0",
                "norm2" => "batchnorm_1",
                "conv2" => "conv_1",
                other => other,
            };
            vec![format!(
                "layer.{}.block.{}.{part}",
                number / each,
                number % each
            )]
        }
        // torchvision, and for small images pytorch-cifar and RobustBench.
        (Arch::Resnet18 | Arch::Resnet34 | Arch::Resnet50, "fc", _) => some(&["fc", "linear"]),
        (Arch::Resnet18Cifar, "fc", _) => some(&["linear", "fc"]),
        (Arch::Resnet18 | Arch::Resnet34 | Arch::Resnet50 | Arch::Resnet18Cifar, _, _) => {
            let Some((block, part)) = layer.split_once(".downsample.") else {
                return vec![layer.to_owned()];
            };
            let place = usize::from(part == "norm");
            let mut names = vec![
                format!("{block}.downsample.{place}"),
                format!("{block}.shortcut.{place}"),
            ];
            if arch == Arch::Resnet18Cifar {
                names.reverse();
            }
            names
        }
        // torchvision's places; pytorch-cifar has the same, and the one linear layer.
        (Arch::Vgg16Bn, "classifier", _) => some(&["classifier"]),
        (Arch::Vgg16Bn, _, _) => {
            let Some((kind, place)) = layer.split_once('.') else {
                return Vec::new();
            };
            let place = place.parse().map_or(0, crate::vgg::place_in_features);
            vec![format!("features.{}", place + usize::from(kind == "norms"))]
        }
        // TRADES and RobustBench, wideresnet.py.
        (Arch::WideResnet, "norm", _) => some(&["bn1"]),
        (Arch::WideResnet, "fc", _) => some(&["fc", "linear"]),
        (Arch::WideResnet, _, Some((number, part))) => {
            let each = blocks_of_a_stage(all);
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

/// How many blocks each of the three stages of a Wide ResNet has.
fn blocks_of_a_stage(all: &[Named]) -> usize {
    let layers = layers(all);
    let blocks = layers.iter().filter(|layer| layer.ends_with(".norm1"));
    (blocks.count() / 3).max(1)
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
    let ends_in = |end: &str| source.keys().any(|name| name.ends_with(end));
    match (has(512, 3), has(64, 7)) {
        (true, true) if ends_in("conv3.weight") => found.push((Arch::Resnet50, None, None, 0)),
        (true, true) if ends_in("layer3.5.conv1.weight") => {
            found.push((Arch::Resnet34, None, None, 0));
        }
        (true, true) => found.push((Arch::Resnet18, None, None, 0)),
        (true, false) if ends_in("40.weight") || ends_in("convs.12.weight") => {
            found.push((Arch::Vgg16Bn, None, None, 0));
        }
        (true, false) => found.extend(
            [
                Arch::PreactResnet18,
                Arch::PreactResnet18Plain,
                Arch::Resnet18Cifar,
            ]
            .map(|arch| (arch, None, None, 0)),
        ),
        (false, _) => {}
    }
    if let Some((_, position)) = source.iter().find(|(name, _)| name.ends_with("pos_embed"))
        && let &[1, _, width] = position.shape.as_slice()
    {
        let depth = (0..1000).take_while(|i| ends_in(&format!("blocks.{i}.attn.qkv.weight")));
        let depth = depth.count();
        let least = width
            .saturating_pow(2)
            .saturating_mul(depth.saturating_mul(12));
        found.push((Arch::Vit, Some(width), Some(depth), least));
    }
    // The first convolution of the first block, and how many blocks a stage has.
    let blocks = |start: &str, first: &str| {
        let with = |i: usize| {
            let end = format!("{start}{i}.{first}.weight");
            source.iter().find(|(name, _)| {
                name.strip_suffix(end.as_str())
                    .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
            })
        };
        let outputs = *with(0)?.1.shape.first()?;
        let count = (0..1000).take_while(|&i| with(i).is_some()).count();
        (outputs > 0 && outputs.is_multiple_of(16)).then_some((outputs / 16, count))
    };
    let wide = |arch, width: usize, each: usize| {
        let last = width.saturating_mul(64).saturating_pow(2).saturating_mul(9);
        (arch, Some(width), Some(6 * each + 4), last)
    };
    if let Some((width, each)) = blocks("block1.layer.", "conv1") {
        found.push(wide(Arch::WideResnet, width, each));
    }
    if let Some((width, each)) = blocks("layer.0.block.", "conv_0") {
        found.push(wide(Arch::WideResnetSame, width, each));
    }
    if let Some((width, count)) =
        blocks("blocks.", "conv1").filter(|(_, count)| count.is_multiple_of(3))
    {
        found.push(wide(Arch::WideResnet, width, count / 3));
    }
    found
}

//! How much arithmetic a training step is, from the shapes of its layers.

use gauntlet_models::{Arch, ModelConfig};

/// Multiplications with an addition in the convolutions and linear layers of one forward pass of one image. What is left out,
/// BatchNorm, activations and pooling, is below one in a hundred. `None` for networks
/// that are not benchmarked.
pub(crate) fn macs(
    model: &ModelConfig,
    [channels, height, width]: [usize; 3],
    classes: usize,
) -> Option<f64> {
    let mut net = Layers {
        channels,
        size: [height, width],
        macs: 0.0,
    };
    match model.arch {
        Arch::Mlp => {
            let hidden = model.width.unwrap_or(128);
            net.linear(hidden).linear(hidden).linear(classes);
        }
        Arch::MnistCnn => {
            net.conv(16, 4, 2, 1)
                .conv(32, 4, 2, 1)
                .linear(100)
                .linear(classes);
        }
        Arch::SmallCnn => {
            net.conv(32, 3, 1, 0).conv(32, 3, 1, 0).pool();
            net.conv(64, 3, 1, 0).conv(64, 3, 1, 0).pool();
            net.linear(200).linear(200).linear(classes);
        }
        Arch::LenetMadry => {
            net.conv(32, 5, 1, 2).pool().conv(64, 5, 1, 2).pool();
            net.linear(1024).linear(classes);
        }
        Arch::PreactResnet18 | Arch::PreactResnet18Plain => {
            net.residual(
                64,
                [(64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2)].into(),
            );
            net.average().linear(classes);
        }
        Arch::WideResnet | Arch::WideResnetSame => {
            let (n, k) = (
                (model.depth.unwrap_or(28) - 4) / 6,
                model.width.unwrap_or(10),
            );
            net.residual(16, [(16 * k, n, 1), (32 * k, n, 2), (64 * k, n, 2)].into());
            net.average().linear(classes);
        }
        _ => return None,
    }
    Some(net.macs)
}

/// What flows between layers, and what it cost so far.
struct Layers {
    channels: usize,
    size: [usize; 2],
    macs: f64,
}

impl Layers {
    fn conv(&mut self, outputs: usize, kernel: usize, stride: usize, padding: usize) -> &mut Self {
        self.size = self.size.map(|n| (n + 2 * padding - kernel) / stride + 1);
        let [rows, columns] = self.size;
        self.macs += (outputs * rows * columns * self.channels * kernel * kernel) as f64;
        self.channels = outputs;
        self
    }

    fn linear(&mut self, outputs: usize) -> &mut Self {
        self.macs += (self.channels * self.size[0] * self.size[1] * outputs) as f64;
        (self.channels, self.size) = (outputs, [1, 1]);
        self
    }

    fn pool(&mut self) -> &mut Self {
        self.size = self.size.map(|n| n / 2);
        self
    }

    fn average(&mut self) -> &mut Self {
        self.size = [1, 1];
        self
    }

    /// A stem and stages of (channels, blocks, first stride) of two 3x3 convolutions, 1x1 shortcuts where shapes change.
    fn residual(&mut self, stem: usize, stages: Vec<(usize, usize, usize)>) -> &mut Self {
        self.conv(stem, 3, 1, 1);
        for (outputs, blocks, first) in stages {
            for stride in std::iter::once(first)
                .chain(std::iter::repeat(1))
                .take(blocks)
            {
                let (inputs, size) = (self.channels, self.size);
                if stride != 1 || inputs != outputs {
                    self.conv(outputs, 1, stride, 0);
                    (self.channels, self.size) = (inputs, size);
                }
                self.conv(outputs, 3, stride, 1).conv(outputs, 3, 1, 1);
            }
        }
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(arch: Arch, depth: usize, width: usize) -> ModelConfig {
        let wide = arch == Arch::WideResnet;
        serde_json::from_value(serde_json::json!({
            "arch": arch.name(),
            "depth": wide.then_some(depth),
            "width": wide.then_some(width),
        }))
        .unwrap()
    }

    /// PreActResNet-18 and Wide ResNets on 32x32 images as the literature counts them, small ones by hand.
    #[test]
    fn counts_are_the_published_ones() {
        for (arch, depth, width, shape, giga) in [
            (Arch::PreactResnet18, 0, 0, [3, 32, 32], 0.5554),
            (Arch::WideResnet, 28, 10, [3, 32, 32], 5.243),
            (Arch::WideResnet, 34, 10, [3, 32, 32], 6.659),
            // 50,176 + 401,408 + 156,800 + 1,000
            (Arch::MnistCnn, 0, 0, [1, 28, 28], 0.000_609_384),
            // 627,200 + 10,035,200 + 3,211,264 + 10,240
            (Arch::LenetMadry, 0, 0, [1, 28, 28], 0.013_883_904),
        ] {
            let counted = macs(&model(arch, depth, width), shape, 10).unwrap() / 1e9;
            assert!(
                (counted / giga - 1.0).abs() < 2e-4,
                "{arch} {depth}-{width}: {counted} G"
            );
        }
    }
}

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::{BatchNorm, Linear, PaddingConfig2d};
use burn::tensor::Tensor;

use crate::build::Builder;
use crate::conv::convolve;
use crate::linear::connect;
use crate::norm::normalise_act;
use crate::onnx::{Draft, Value};
use crate::{Activation, ModelError};

/// Residual network with pre-activation blocks (He et al. 2016b), the shape of both PreActResNet-18 and Wide ResNet
/// (Zagoruyko & Komodakis 2016): a 3×3 stem, stages of basic blocks, BatchNorm, global average, one linear layer.
///
/// Where a block changes the shape, its shortcut is a 1×1 convolution of the pre-activated input.
#[derive(Module, Debug)]
pub(crate) struct ResNet {
    stem: Conv2d,
    blocks: Vec<Block>,
    norm: Option<BatchNorm>,
    fc: Linear,
}

/// In what the networks of this shape differ.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    name: &'static str,
    /// BatchNorm and activation before the average.
    last_norm: bool,
    /// Shortcuts take a block's input as it is, not pre-activated.
    raw_shortcut: bool,
    /// Strided 3×3 convolutions are padded below and to the right only, as TensorFlow's `SAME` does with even sizes.
    same: bool,
}

/// `x + conv(act(bn(conv(act(bn(x))))))`
#[derive(Module, Debug)]
pub(crate) struct Block {
    norm1: BatchNorm,
    conv1: Conv2d,
    norm2: BatchNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
    #[module(skip)]
    raw_shortcut: bool,
}

/// Channels, blocks and first stride of a stage.
type Stage = (usize, usize, usize);

impl ResNet {
    /// PreActResNet-18: 11,172,170 parameters on three channels with 10 classes. The `plain` one is RobustBench's, without the last BatchNorm and with
    /// shortcuts from a block's input as it is: 11,171,146.
    pub(crate) fn preact18(
        build: &mut Builder<'_>,
        shape: [usize; 3],
        classes: usize,
        plain: bool,
    ) -> Result<Self, ModelError> {
        let kind = Kind {
            name: if plain {
                "preact-resnet18-plain"
            } else {
                "preact-resnet18"
            },
            last_norm: !plain,
            raw_shortcut: plain,
            same: false,
        };
        let stages = [(64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2)];
        Self::new(build, kind, shape, classes, 64, &stages)
    }

    /// Wide ResNet; 28-10 has 36,479,194 parameters on three channels with 10 classes.
    pub(crate) fn wide(
        build: &mut Builder<'_>,
        shape: [usize; 3],
        classes: usize,
        depth: usize,
        width: usize,
        same: bool,
    ) -> Result<Self, ModelError> {
        if depth < 10 || !(depth - 4).is_multiple_of(6) {
            let problem = format!("{depth} is not 6n + 4 with n of 1 or more: 16, 28, 34, 40, ...");
            return Err(ModelError::Config {
                key: "depth",
                problem,
            });
        }
        if width == 0 {
            return Err(ModelError::Config {
                key: "width",
                problem: "must be at least 1".to_owned(),
            });
        }
        let n = (depth - 4) / 6;
        let stages = [(16 * width, n, 1), (32 * width, n, 2), (64 * width, n, 2)];
        let kind = Kind {
            name: if same {
                "wide-resnet-same"
            } else {
                "wide-resnet"
            },
            last_norm: true,
            raw_shortcut: false,
            same,
        };
        Self::new(build, kind, shape, classes, 16, &stages)
    }

    fn new(
        build: &mut Builder<'_>,
        kind: Kind,
        shape: [usize; 3],
        classes: usize,
        stem: usize,
        stages: &[Stage],
    ) -> Result<Self, ModelError> {
        if shape[1] < 8 || shape[2] < 8 {
            return Err(ModelError::too_small(kind.name, shape, 8));
        }
        let stem_conv = build.residual_conv([shape[0], stem], 3, 1);
        let mut channels = stem;
        let mut blocks = Vec::new();
        for &(out, count, stride) in stages {
            for position in 0..count {
                let stride = if position == 0 { stride } else { 1 };
                blocks.push(Block::new(build, kind, channels, out, stride));
                channels = out;
            }
        }
        let norm = kind.last_norm.then(|| build.batch_norm(channels));
        let fc = build.linear(channels, classes);
        Ok(Self {
            stem: stem_conv,
            blocks,
            norm,
            fc,
        })
    }

    pub(crate) fn features(&self, x: Tensor<4>, act: Activation) -> Tensor<2> {
        let mut x = convolve(&self.stem, x);
        for block in &self.blocks {
            x = block.forward(x, act);
        }
        if let Some(norm) = &self.norm {
            x = normalise_act(norm, x, act);
        }
        x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim(2)
    }

    pub(crate) fn head(&self, features: Tensor<2>) -> Tensor<2> {
        connect(&self.fc, features)
    }

    pub(crate) fn draw(&self, draft: &mut Draft, x: &Value, act: Activation) -> Value {
        let mut x = draft.conv("stem", &self.stem, x);
        for (place, block) in self.blocks.iter().enumerate() {
            x = block.draw(draft, &format!("blocks.{place}"), &x, act);
        }
        if let Some(norm) = &self.norm {
            x = draft.batch_norm("norm", norm, &x);
            x = draft.act(act, &x);
        }
        let x = draft.average(&x);
        draft.linear("fc", &self.fc, &x)
    }
}

impl Block {
    fn new(
        build: &mut Builder<'_>,
        kind: Kind,
        channels: usize,
        out: usize,
        stride: usize,
    ) -> Self {
        let changes = stride != 1 || channels != out;
        let mut conv1 = build.residual_conv([channels, out], 3, stride);
        if kind.same && stride == 2 {
            conv1.padding = PaddingConfig2d::Explicit(0, 0, 1, 1);
        }
        Self {
            norm1: build.batch_norm(channels),
            conv1,
            norm2: build.batch_norm(out),
            conv2: build.residual_conv([out, out], 3, 1),
            shortcut: changes.then(|| build.residual_conv([channels, out], 1, stride)),
            raw_shortcut: kind.raw_shortcut,
        }
    }

    fn forward(&self, x: Tensor<4>, act: Activation) -> Tensor<4> {
        let active = normalise_act(&self.norm1, x.clone(), act);
        let shortcut = match &self.shortcut {
            Some(conv) if self.raw_shortcut => convolve(conv, x),
            Some(conv) => convolve(conv, active.clone()),
            None => x,
        };
        let y = convolve(&self.conv1, active);
        convolve(&self.conv2, normalise_act(&self.norm2, y, act)) + shortcut
    }
    fn draw(&self, draft: &mut Draft, at: &str, x: &Value, act: Activation) -> Value {
        let active = draft.batch_norm(&format!("{at}.norm1"), &self.norm1, x);
        let active = draft.act(act, &active);
        let shortcut = match &self.shortcut {
            Some(conv) => {
                let from = if self.raw_shortcut { x } else { &active };
                draft.conv(&format!("{at}.shortcut"), conv, from)
            }
            None => x.clone(),
        };
        let y = draft.conv(&format!("{at}.conv1"), &self.conv1, &active);
        let y = draft.batch_norm(&format!("{at}.norm2"), &self.norm2, &y);
        let y = draft.act(act, &y);
        let y = draft.conv(&format!("{at}.conv2"), &self.conv2, &y);
        draft.add(&y, &shortcut)
    }
}

use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{BatchNorm, Linear, PaddingConfig2d};
use burn::tensor::Tensor;

use crate::build::Builder;
use crate::conv::convolve;
use crate::linear::connect;
use crate::norm::{normalise, normalise_act};
use crate::onnx::{Draft, Value};
use crate::{Activation, ModelError};

/// Residual network with the activation after the sum (He et al. 2016a), as torchvision has it: a 7×7/2 stem with a pool, four stages of basic or
/// bottleneck blocks (the stride is in the 3×3 convolution), global average, one linear layer. The form for 32×32 images has a 3×3 stem without pool.
#[derive(Module, Debug)]
pub(crate) struct TorchResNet {
    conv1: Conv2d,
    bn1: BatchNorm,
    pool: Option<MaxPool2d>,
    layer1: Vec<Block>,
    layer2: Vec<Block>,
    layer3: Vec<Block>,
    layer4: Vec<Block>,
    fc: Linear,
}

/// `act(bn(conv(act(bn(conv(x))))) + x)`, with a third convolution in bottlenecks.
#[derive(Module, Debug)]
pub(crate) struct Block {
    conv1: Conv2d,
    bn1: BatchNorm,
    conv2: Conv2d,
    bn2: BatchNorm,
    conv3: Option<Conv2d>,
    bn3: Option<BatchNorm>,
    downsample: Option<Downsample>,
}

/// The shortcut where a block changes the shape.
#[derive(Module, Debug)]
pub(crate) struct Downsample {
    conv: Conv2d,
    norm: BatchNorm,
}

/// Which of the family.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    /// Blocks of each stage.
    pub(crate) blocks: [usize; 4],
    /// Bottlenecks, which end in four times as many channels.
    pub(crate) bottleneck: bool,
    /// The stem for 32×32 images.
    pub(crate) small: bool,
}

impl TorchResNet {
    pub(crate) fn new(
        build: &mut Builder<'_>,
        kind: Kind,
        shape: [usize; 3],
        classes: usize,
    ) -> Result<Self, ModelError> {
        let least = if kind.small { 8 } else { 32 };
        if shape[1] < least || shape[2] < least {
            return Err(ModelError::too_small(kind.name, shape, least));
        }
        let (conv1, pool) = if kind.small {
            (build.residual_conv([shape[0], 64], 3, 1), None)
        } else {
            let pool = MaxPool2dConfig::new([3, 3])
                .with_strides([2, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1));
            (build.residual_conv([shape[0], 64], 7, 2), Some(pool.init()))
        };
        let bn1 = build.batch_norm(64);
        let mut channels = 64;
        let mut stage = |number: usize| -> Vec<Block> {
            let blocks = (0..kind.blocks[number]).map(|position| {
                let stride = if position == 0 && number > 0 { 2 } else { 1 };
                let block = Block::new(build, kind.bottleneck, channels, 64 << number, stride);
                channels = if kind.bottleneck {
                    256 << number
                } else {
                    64 << number
                };
                block
            });
            blocks.collect()
        };
        let (layer1, layer2, layer3, layer4) = (stage(0), stage(1), stage(2), stage(3));
        Ok(Self {
            conv1,
            bn1,
            pool,
            layer1,
            layer2,
            layer3,
            layer4,
            fc: build.linear(channels, classes),
        })
    }

    fn stages(&self) -> [&Vec<Block>; 4] {
        [&self.layer1, &self.layer2, &self.layer3, &self.layer4]
    }

    pub(crate) fn features(&self, x: Tensor<4>, act: Activation) -> Tensor<2> {
        let mut x = normalise_act(&self.bn1, convolve(&self.conv1, x), act);
        if let Some(pool) = &self.pool {
            x = pool.forward(x);
        }
        for block in self.stages().into_iter().flatten() {
            x = block.forward(x, act);
        }
        x.flatten::<3>(2, 3).mean_dim(2).squeeze_dim(2)
    }

    pub(crate) fn head(&self, features: Tensor<2>) -> Tensor<2> {
        connect(&self.fc, features)
    }

    pub(crate) fn draw(&self, draft: &mut Draft, x: &Value, act: Activation) -> Value {
        let x = draft.conv("conv1", &self.conv1, x);
        let x = draft.batch_norm("bn1", &self.bn1, &x);
        let mut x = draft.act(act, &x);
        if self.pool.is_some() {
            x = draft.max_pool(3, 2, 1, &x);
        }
        for (stage, blocks) in self.stages().into_iter().enumerate() {
            for (place, block) in blocks.iter().enumerate() {
                x = block.draw(draft, &format!("layer{}.{place}", stage + 1), &x, act);
            }
        }
        let x = draft.average(&x);
        draft.linear("fc", &self.fc, &x)
    }
}

impl Block {
    fn new(
        build: &mut Builder<'_>,
        bottleneck: bool,
        channels: usize,
        width: usize,
        stride: usize,
    ) -> Self {
        let out = if bottleneck { 4 * width } else { width };
        let (first, at) = if bottleneck {
            (1, [1, stride])
        } else {
            (3, [stride, 1])
        };
        Self {
            conv1: build.residual_conv([channels, width], first, at[0]),
            bn1: build.batch_norm(width),
            conv2: build.residual_conv([width, width], 3, at[1]),
            bn2: build.batch_norm(width),
            conv3: bottleneck.then(|| build.residual_conv([width, out], 1, 1)),
            bn3: bottleneck.then(|| build.batch_norm(out)),
            downsample: (stride != 1 || channels != out).then(|| Downsample {
                conv: build.residual_conv([channels, out], 1, stride),
                norm: build.batch_norm(out),
            }),
        }
    }

    fn forward(&self, x: Tensor<4>, act: Activation) -> Tensor<4> {
        let y = normalise_act(&self.bn1, convolve(&self.conv1, x.clone()), act);
        let y = convolve(&self.conv2, y);
        let y = match (&self.conv3, &self.bn3) {
            (Some(conv), Some(norm)) => {
                normalise(norm, convolve(conv, normalise_act(&self.bn2, y, act)))
            }
            _ => normalise(&self.bn2, y),
        };
        let shortcut = match &self.downsample {
            Some(down) => normalise(&down.norm, convolve(&down.conv, x)),
            None => x,
        };
        act.apply(y + shortcut)
    }

    fn draw(&self, draft: &mut Draft, at: &str, x: &Value, act: Activation) -> Value {
        let y = draft.conv(&format!("{at}.conv1"), &self.conv1, x);
        let y = draft.batch_norm(&format!("{at}.bn1"), &self.bn1, &y);
        let y = draft.act(act, &y);
        let y = draft.conv(&format!("{at}.conv2"), &self.conv2, &y);
        let mut y = draft.batch_norm(&format!("{at}.bn2"), &self.bn2, &y);
        if let (Some(conv), Some(norm)) = (&self.conv3, &self.bn3) {
            let active = draft.act(act, &y);
            let third = draft.conv(&format!("{at}.conv3"), conv, &active);
            y = draft.batch_norm(&format!("{at}.bn3"), norm, &third);
        }
        let shortcut = match &self.downsample {
            Some(down) => {
                let short = draft.conv(&format!("{at}.downsample.conv"), &down.conv, x);
                draft.batch_norm(&format!("{at}.downsample.norm"), &down.norm, &short)
            }
            None => x.clone(),
        };
        let sum = draft.add(&y, &shortcut);
        draft.act(act, &sum)
    }
}

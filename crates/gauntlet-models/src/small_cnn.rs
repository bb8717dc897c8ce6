use burn::module::Module;
use burn::nn::conv::Conv2d;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::nn::{Dropout, DropoutConfig, Linear};
use burn::tensor::Tensor;

use crate::build::Builder;
use crate::conv::{convolve_act, convolve_act_pool};
use crate::linear::connect;
use crate::onnx::{Draft, Value};
use crate::{Activation, ModelError};

/// The small network of TRADES (Zhang et al. 2019): four unpadded 3×3 convolutions, fc 200 – dropout – fc 200;
/// 312,202 parameters on 28×28×1 with 10 classes.
#[derive(Module, Debug)]
pub(crate) struct SmallCnn {
    conv1: Conv2d,
    conv2: Conv2d,
    conv3: Conv2d,
    conv4: Conv2d,
    pool: MaxPool2d,
    fc1: Linear,
    dropout: Dropout,
    fc2: Linear,
    fc3: Linear,
}

impl SmallCnn {
    pub(crate) fn new(
        build: &mut Builder<'_>,
        shape: [usize; 3],
        classes: usize,
    ) -> Result<Self, ModelError> {
        let [channels, height, width] = shape;
        // Two unpadded convolutions and a pool, twice.
        let shrink = |size: usize| {
            size.checked_sub(4)
                .map(|s| s / 2)
                .and_then(|s| s.checked_sub(4))
                .map(|s| s / 2)
        };
        let (Some(rows @ 1..), Some(columns @ 1..)) = (shrink(height), shrink(width)) else {
            return Err(ModelError::too_small("small-cnn", shape, 16));
        };
        Ok(Self {
            conv1: build.conv([channels, 32], 3, 1, 0),
            conv2: build.conv([32, 32], 3, 1, 0),
            conv3: build.conv([32, 64], 3, 1, 0),
            conv4: build.conv([64, 64], 3, 1, 0),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            fc1: build.linear(64 * rows * columns, 200),
            dropout: DropoutConfig::new(0.5).init(),
            fc2: build.linear(200, 200),
            fc3: build.linear(200, classes),
        })
    }

    pub(crate) fn features(&self, x: Tensor<4>, act: Activation) -> Tensor<2> {
        let x = convolve_act(&self.conv1, x, act);
        let x = convolve_act_pool(&self.conv2, x, act, &self.pool);
        let x = convolve_act(&self.conv3, x, act);
        let x = convolve_act_pool(&self.conv4, x, act, &self.pool).flatten(1, 3);
        let x = self.dropout.forward(act.apply(connect(&self.fc1, x)));
        act.apply(connect(&self.fc2, x))
    }

    pub(crate) fn head(&self, features: Tensor<2>) -> Tensor<2> {
        connect(&self.fc3, features)
    }

    pub(crate) fn draw(&self, draft: &mut Draft, x: &Value, act: Activation) -> Value {
        let mut x = x.clone();
        let convs = [&self.conv1, &self.conv2, &self.conv3, &self.conv4];
        for (place, conv) in convs.into_iter().enumerate() {
            x = draft.conv(&format!("conv{}", place + 1), conv, &x);
            x = draft.act(act, &x);
            if place % 2 == 1 {
                x = draft.max_pool(2, 2, 0, &x);
            }
        }
        let x = draft.flatten(&x);
        let x = draft.linear("fc1", &self.fc1, &x);
        let x = draft.act(act, &x);
        let x = draft.linear("fc2", &self.fc2, &x);
        let x = draft.act(act, &x);
        draft.linear("fc3", &self.fc3, &x)
    }
}

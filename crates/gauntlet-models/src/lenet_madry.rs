use burn::module::Module;
use burn::nn::Linear;
use burn::nn::conv::Conv2d;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::tensor::Tensor;

use crate::build::Builder;
use crate::conv::convolve_act_pool;
use crate::linear::connect;
use crate::onnx::{Draft, Value};
use crate::{Activation, ModelError};

/// 5×5×32 – pool – 5×5×64 – pool – fc 1024: the MNIST network of Madry et al. (2018).
#[derive(Module, Debug)]
pub(crate) struct LenetMadry {
    conv1: Conv2d,
    conv2: Conv2d,
    pool: MaxPool2d,
    fc1: Linear,
    fc2: Linear,
}

impl LenetMadry {
    pub(crate) fn new(
        build: &mut Builder<'_>,
        shape: [usize; 3],
        classes: usize,
    ) -> Result<Self, ModelError> {
        let [channels, height, width] = shape;
        if height < 4 || width < 4 {
            return Err(ModelError::too_small("lenet-madry", shape, 4));
        }
        Ok(Self {
            conv1: build.conv([channels, 32], 5, 1, 2),
            conv2: build.conv([32, 64], 5, 1, 2),
            pool: MaxPool2dConfig::new([2, 2]).with_strides([2, 2]).init(),
            fc1: build.linear(64 * (height / 4) * (width / 4), 1024),
            fc2: build.linear(1024, classes),
        })
    }

    pub(crate) fn features(&self, x: Tensor<4>, act: Activation) -> Tensor<2> {
        let x = convolve_act_pool(&self.conv1, x, act, &self.pool);
        let x = convolve_act_pool(&self.conv2, x, act, &self.pool);
        act.apply(connect(&self.fc1, x.flatten(1, 3)))
    }

    pub(crate) fn head(&self, features: Tensor<2>) -> Tensor<2> {
        connect(&self.fc2, features)
    }

    pub(crate) fn draw(&self, draft: &mut Draft, x: &Value, act: Activation) -> Value {
        let x = draft.conv("conv1", &self.conv1, x);
        let x = draft.act(act, &x);
        let x = draft.max_pool(2, 2, 0, &x);
        let x = draft.conv("conv2", &self.conv2, &x);
        let x = draft.act(act, &x);
        let x = draft.max_pool(2, 2, 0, &x);
        let x = draft.flatten(&x);
        let x = draft.linear("fc1", &self.fc1, &x);
        let x = draft.act(act, &x);
        draft.linear("fc2", &self.fc2, &x)
    }
}

use burn::module::Module;
use burn::nn::Linear;
use burn::nn::conv::Conv2d;
use burn::tensor::Tensor;

use crate::build::Builder;
use crate::conv::convolve_act;
use crate::linear::connect;
use crate::onnx::{Draft, Value};
use crate::{Activation, ModelError};

/// 16 4×4/2 – 32 4×4/2 – fc 100: the network of Wong & Kolter (2018) that verifiers and fast adversarial training share;
/// 166,406 parameters on 28×28×1 with 10 classes.
#[derive(Module, Debug)]
pub(crate) struct MnistCnn {
    conv1: Conv2d,
    conv2: Conv2d,
    fc1: Linear,
    fc2: Linear,
}

impl MnistCnn {
    pub(crate) fn new(
        build: &mut Builder<'_>,
        shape: [usize; 3],
        classes: usize,
    ) -> Result<Self, ModelError> {
        let [channels, height, width] = shape;
        if height < 4 || width < 4 {
            return Err(ModelError::too_small("mnist-cnn", shape, 4));
        }
        Ok(Self {
            conv1: build.conv([channels, 16], 4, 2, 1),
            conv2: build.conv([16, 32], 4, 2, 1),
            fc1: build.linear(32 * (height / 2 / 2) * (width / 2 / 2), 100),
            fc2: build.linear(100, classes),
        })
    }

    pub(crate) fn features(&self, x: Tensor<4>, act: Activation) -> Tensor<2> {
        let x = convolve_act(&self.conv1, x, act);
        let x = convolve_act(&self.conv2, x, act);
        act.apply(connect(&self.fc1, x.flatten(1, 3)))
    }

    pub(crate) fn head(&self, features: Tensor<2>) -> Tensor<2> {
        connect(&self.fc2, features)
    }

    pub(crate) fn draw(&self, draft: &mut Draft, x: &Value, act: Activation) -> Value {
        let x = draft.conv("conv1", &self.conv1, x);
        let x = draft.act(act, &x);
        let x = draft.conv("conv2", &self.conv2, &x);
        let x = draft.act(act, &x);
        let x = draft.flatten(&x);
        let x = draft.linear("fc1", &self.fc1, &x);
        let x = draft.act(act, &x);
        draft.linear("fc2", &self.fc2, &x)
    }
}

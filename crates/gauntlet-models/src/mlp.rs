use crate::linear::connect;
use burn::module::Module;
use burn::nn::Linear;
use burn::tensor::Tensor;

use crate::Activation;
use crate::build::Builder;
use crate::onnx::{Draft, Value};

/// Multilayer perceptron with two hidden layers on the flattened image.
#[derive(Module, Debug)]
pub(crate) struct Mlp {
    fc1: Linear,
    fc2: Linear,
    fc3: Linear,
}

impl Mlp {
    pub(crate) fn new(
        build: &mut Builder<'_>,
        inputs: usize,
        width: usize,
        classes: usize,
    ) -> Self {
        Self {
            fc1: build.linear(inputs, width),
            fc2: build.linear(width, width),
            fc3: build.linear(width, classes),
        }
    }

    pub(crate) fn features(&self, x: Tensor<4>, act: Activation) -> Tensor<2> {
        let x = act.apply(connect(&self.fc1, x.flatten(1, 3)));
        act.apply(connect(&self.fc2, x))
    }

    pub(crate) fn head(&self, features: Tensor<2>) -> Tensor<2> {
        connect(&self.fc3, features)
    }

    pub(crate) fn draw(&self, draft: &mut Draft, x: &Value, act: Activation) -> Value {
        let x = draft.flatten(x);
        let x = draft.linear("fc1", &self.fc1, &x);
        let x = draft.act(act, &x);
        let x = draft.linear("fc2", &self.fc2, &x);
        let x = draft.act(act, &x);
        draft.linear("fc3", &self.fc3, &x)
    }
}

//! Layers forward and backward.

use gauntlet_kernels::product::{Rows, Weights};

use super::Images;
use super::conv::Conv;
use super::pool::Pool;
use crate::Activation;

/// A layer of a network whose weights do not change.
#[derive(Debug)]
pub(super) enum Layer {
    /// A scale and a shift of each channel.
    Affine(Vec<f32>, Vec<f32>),
    Activation(Activation),
    Conv(Conv),
    Dense(Dense),
    Pool(Pool),
    /// The mean of so many pixels, each with so many channels.
    Mean(usize, usize),
    /// The sum of what two branches make of one input; a branch without layers leaves it as it is.
    Sum(Vec<Layer>, Vec<Layer>),
}

/// What a layer needs to know of its input on the way back.
pub(super) enum Saved {
    Nothing,
    /// The input itself.
    Input(Vec<f32>),
    /// Where each value of the output was found in the input.
    Places(Vec<u32>),
    Branches(Vec<Saved>, Vec<Saved>),
}

/// A linear layer, on all values of an image.
#[derive(Debug)]
pub(super) struct Dense {
    pub(super) forward: Weights,
    pub(super) backward: Weights,
}

/// `x` through all layers. What they need on the way back is added to `tape`, if there is one.
pub(super) fn forward(layers: &[Layer], x: Images, mut tape: Option<&mut Vec<Saved>>) -> Images {
    let Images { count, mut values } = x;
    for layer in layers {
        let (next, saved) = layer.forward(values, count, tape.is_some());
        values = next;
        if let Some(tape) = &mut tape {
            tape.push(saved);
        }
    }
    Images { count, values }
}

/// A gradient with respect to what came out of all layers as one with respect to what went in.
pub(super) fn backward(layers: &[Layer], gradient: Images, tape: Vec<Saved>) -> Images {
    let Images { count, mut values } = gradient;
    for (layer, saved) in layers.iter().zip(tape).rev() {
        values = layer.backward(values, count, saved);
    }
    Images { count, values }
}

impl Layer {
    fn forward(&self, mut x: Vec<f32>, count: usize, way_back: bool) -> (Vec<f32>, Saved) {
        let mut saved = Saved::Nothing;
        let y = match self {
            Self::Affine(scale, shift) => {
                for pixel in x.chunks_exact_mut(scale.len()) {
                    for ((x, scale), shift) in pixel.iter_mut().zip(scale).zip(shift) {
                        *x = *x * scale + shift;
                    }
                }
                x
            }
            Self::Activation(kind) => {
                if way_back {
                    saved = Saved::Input(x.clone());
                }
                activate(*kind, &mut x);
                x
            }
            Self::Conv(conv) => conv.forward(x, count),
            Self::Dense(dense) => times(&dense.forward, &x, count),
            Self::Pool(pool) => {
                let (y, places) = pool.forward(&x, count);
                saved = Saved::Places(places);
                y
            }
            Self::Mean(pixels, channels) => {
                let mut y = vec![0.0; count * channels];
                for (y, x) in y
                    .chunks_exact_mut(*channels)
                    .zip(x.chunks_exact(pixels * channels))
                {
                    for pixel in x.chunks_exact(*channels) {
                        add(y, pixel);
                    }
                    y.iter_mut().for_each(|y| *y /= *pixels as f32);
                }
                y
            }
            Self::Sum(a, b) => {
                let branch = |layers, values| {
                    let mut tape = Vec::new();
                    let images = Images { count, values };
                    let y = forward(layers, images, way_back.then_some(&mut tape));
                    (y.values, tape)
                };
                let (other, tape_b) = branch(b, x.clone());
                let (mut y, tape_a) = branch(a, x);
                add(&mut y, &other);
                saved = Saved::Branches(tape_a, tape_b);
                y
            }
        };
        (y, saved)
    }

    /// The gradient with respect to the input, of that with respect to the output.
    fn backward(&self, mut gradient: Vec<f32>, count: usize, saved: Saved) -> Vec<f32> {
        match (self, saved) {
            (Self::Affine(scale, _), _) => {
                for pixel in gradient.chunks_exact_mut(scale.len()) {
                    pixel
                        .iter_mut()
                        .zip(scale)
                        .for_each(|(g, scale)| *g *= scale);
                }
                gradient
            }
            (Self::Activation(kind), Saved::Input(x)) => {
                activate_back(*kind, &x, &mut gradient);
                gradient
            }
            (Self::Conv(conv), _) => conv.backward(&gradient, count),
            (Self::Dense(dense), _) => times(&dense.backward, &gradient, count),
            (Self::Pool(pool), Saved::Places(places)) => pool.backward(&gradient, &places, count),
            (Self::Mean(pixels, channels), _) => {
                let mut spread = Vec::with_capacity(gradient.len() * pixels);
                for image in gradient.chunks_exact_mut(*channels) {
                    image.iter_mut().for_each(|g| *g /= *pixels as f32);
                    (0..*pixels).for_each(|_| spread.extend_from_slice(image));
                }
                spread
            }
            (Self::Sum(a, b), Saved::Branches(tape_a, tape_b)) => {
                let branch =
                    |layers, values, tape| backward(layers, Images { count, values }, tape).values;
                let other = branch(b, gradient.clone(), tape_b);
                let mut first = branch(a, gradient, tape_a);
                add(&mut first, &other);
                first
            }
            _ => unreachable!("layers come back to what they saved"),
        }
    }
}

/// What is no number stays none.
fn activate(kind: Activation, x: &mut [f32]) {
    match kind {
        Activation::Relu => x
            .iter_mut()
            .for_each(|x| *x = if *x <= 0.0 { 0.0 } else { *x }),
        Activation::Silu => x.iter_mut().for_each(|x| *x *= sigmoid(*x)),
    }
}

fn activate_back(kind: Activation, x: &[f32], gradient: &mut [f32]) {
    let pairs = gradient.iter_mut().zip(x);
    match kind {
        Activation::Relu => pairs.for_each(|(gradient, x)| {
            *gradient = if *x <= 0.0 { 0.0 } else { *gradient };
        }),
        Activation::Silu => pairs.for_each(|(gradient, x)| {
            let s = sigmoid(*x);
            *gradient *= s * (1.0 + x * (1.0 - s));
        }),
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn times(weights: &Weights, x: &[f32], count: usize) -> Vec<f32> {
    let length = x.len() / count;
    let starts: Vec<usize> = (0..count).map(|image| image * length).collect();
    let mut y = vec![0.0; count * weights.width()];
    let rows = Rows {
        values: x,
        starts: &starts,
        runs: &[0],
    };
    weights.product(rows, &mut y);
    y
}

fn add(to: &mut [f32], from: &[f32]) {
    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
}

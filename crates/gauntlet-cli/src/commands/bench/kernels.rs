//! Every kernel of `gauntlet-kernels`, on each device, beside the same by plain tensor operations where there is such a way.

use burn::tensor::ops::ConvOptions;
use burn::tensor::{Device, Distribution, Int, Tensor, module, s};
use gauntlet_attacks::AttackLoss;
use gauntlet_kernels::augment::crop_flip;
use gauntlet_kernels::update::{Adam, Sgd, blend};
use gauntlet_kernels::{NoiseKey, Stream, conv2d, perturb};

use super::ceilings::Ceilings;
use super::clock::{Effort, measure as times};
use super::report::{Entry, Report, Work};
use crate::args::BenchKernels;
use crate::devices::Picked;
use crate::failure::Failure;
use crate::output::say;

/// Attack parameters; no kernel's time depends on them.
const EPS: f32 = 0.1;
const STEP: f32 = 0.025;
const BOX: (f32, f32) = (0.0, 1.0);

/// Something to measure.
struct Case {
    batch: usize,
    work: Work,
    ours: Box<dyn FnMut()>,
    plain: Option<Box<dyn FnMut()>>,
}

/// Measures all kernels whose name holds one of the filters, or all.
///
/// # Errors
/// If the filters leave none.
pub(super) fn measure(
    args: &BenchKernels,
    devices: &[Picked],
    quiet: bool,
) -> Result<Report, Failure> {
    let effort = match args.quick {
        true => Effort {
            seconds: 0.0,
            least: 3,
            most: 3,
            between: 0.0,
        },
        false => Effort {
            seconds: 1.0,
            least: 7,
            most: 200,
            between: 0.0,
        },
    };
    let mut report: Option<Report> = None;
    for on in devices {
        let ceilings = Ceilings::measure(on, args.quick, false);
        let elsewhere = report.as_ref().map(|_| on.label());
        let report = report.get_or_insert_with(|| Report::new(on, ceilings));
        let wanted = |name: &str| {
            args.filter.is_empty() || args.filter.iter().any(|text| name.contains(text))
        };
        for (name, make) in cases(args.quick, on.is_cpu()) {
            if !wanted(&name) {
                continue;
            }
            if !quiet {
                say(format!("{}: {name}", on.found.id));
            }
            // One after the other: tensors of all together need not fit a device.
            let mut case = make(&on.device);
            let mut works: Vec<&mut dyn FnMut()> = vec![&mut case.ours];
            works.extend(case.plain.as_mut().map(|plain| plain as &mut dyn FnMut()));
            let measured = times(&on.device, effort.on(on), &mut works);
            let mut entry =
                Entry::new(name, case.batch, measured[0]).bound_by(case.work, &ceilings);
            entry.plain_s = measured.get(1).map(|times| times.median);
            entry.device.clone_from(&elsewhere);
            report.entries.push(entry);
        }
    }
    let report = report.expect("at least one device");
    match report.entries.is_empty() {
        true => Err(Failure::request(
            "no kernel has this in its name; without `--filter` all are measured",
        )),
        false => Ok(report),
    }
}

/// `kernels/linf-step/128x1x28x28`, and what makes it.
type Make = (String, Box<dyn Fn(&Device) -> Case>);

/// Everything there is, small where it only has to run.
fn cases(quick: bool, on_cpu: bool) -> Vec<Make> {
    let images: &[[usize; 4]] = match (quick, on_cpu) {
        (true, _) => &[[4, 1, 9, 9]],
        (false, true) => &[[128, 1, 28, 28], [128, 3, 32, 32], [1024, 3, 32, 32]],
        // The last is several times what a GPU's cache holds.
        (false, false) => &[[128, 3, 32, 32], [1024, 3, 32, 32], [32768, 3, 32, 32]],
    };
    let mut cases: Vec<Make> = Vec::new();
    for &shape in images {
        cases.extend(perturbations(shape));
    }
    // All weights of a small network, and of a ResNet-18.
    let weights: &[usize] = match quick {
        true => &[37],
        false => &[1 << 20, 11 << 20],
    };
    for &length in weights {
        for update in [Update::Sgd, Update::Adam, Update::Blend] {
            let name = name_of(update.name(), &[length]);
            cases.push((name, Box::new(move |device| update.case(length, device))));
        }
    }
    let logits: &[[usize; 2]] = match quick {
        true => &[[4, 5]],
        false => &[[128, 10], [1024, 100]],
    };
    for &[batch, classes] in logits {
        for (name, which) in [
            ("cross-entropy-gradient", AttackLoss::CrossEntropy),
            ("margin-gradient", AttackLoss::Margin),
        ] {
            let name = name_of(name, &[batch, classes]);
            let make = move |device: &Device| loss(which, batch, classes, device);
            cases.push((name, Box::new(make)));
        }
    }
    // Layers of the networks that are trained.
    let layers = match quick {
        true => vec![Layer::new(3, [2, 5], 6, [3, 1, 1])],
        false => vec![
            Layer::new(128, [1, 16], 28, [4, 2, 1]),
            Layer::new(128, [16, 32], 14, [4, 2, 1]),
            Layer::new(128, [1, 32], 28, [5, 1, 2]),
            Layer::new(128, [32, 64], 14, [5, 1, 2]),
            Layer::new(32, [64, 64], 32, [3, 1, 1]),
            Layer::new(32, [64, 128], 32, [3, 2, 1]),
            Layer::new(32, [256, 256], 8, [3, 1, 1]),
            Layer::new(32, [512, 512], 4, [3, 1, 1]),
        ],
    };
    for layer in layers {
        for which in [Pass::Forward, Pass::Input, Pass::Weight] {
            let make = move |device: &Device| layer.case(which, device);
            cases.push((layer.name(which), Box::new(make)));
        }
    }
    cases
}

fn name_of(kernel: &str, shape: &[usize]) -> String {
    let shape: Vec<_> = shape.iter().map(usize::to_string).collect();
    format!("kernels/{kernel}/{}", shape.join("x"))
}

/// Bytes of so many reads and writes of a whole `f32` tensor.
fn passes(shape: [usize; 4], count: usize) -> Work {
    Work::Bytes((4 * count * shape.iter().product::<usize>()) as f64)
}

fn ids(shape: [usize; 4]) -> Vec<u32> {
    (0..shape[0] as u32).collect()
}

/// Images within `STEP` of others, and a gradient.
fn given(shape: [usize; 4], device: &Device) -> [Tensor<4>; 3] {
    let key = NoiseKey::new(0, Stream::TrainAttack);
    let draw = |step, low, high| {
        key.at(0, step)
            .uniform(&ids(shape), shape, low, high, device)
    };
    let x0: Tensor<4> = draw(0, 0.0, 1.0);
    [
        (x0.clone() + draw(1, -STEP, STEP)).clamp(BOX.0, BOX.1),
        x0,
        draw(2, -1.0, 1.0),
    ]
}

type Step = fn([Tensor<4>; 3]) -> Tensor<4>;

fn perturbations(shape: [usize; 4]) -> Vec<Make> {
    // Name, tensors read and written, ours, plain.
    let steps: [(&str, usize, Step, Option<Step>); 10] = [
        (
            "linf-step",
            4,
            |[x, x0, g]| perturb::linf_step(x, x0, g, STEP, EPS, BOX),
            Some(plain::linf_step),
        ),
        (
            "l2-step",
            4,
            |[x, x0, g]| perturb::l2_step(x, x0, g, STEP, EPS, BOX),
            Some(plain::l2_step),
        ),
        (
            "l1-step",
            4,
            |[x, x0, g]| perturb::l1_step(x, x0, g, 1.0, 0.05, 12.0, BOX),
            None,
        ),
        (
            "linf-momentum-step",
            5,
            |[x, x0, g]| momentum(perturb::linf_momentum_step, x, x0, g),
            Some(plain::linf_momentum_step),
        ),
        (
            "l2-momentum-step",
            5,
            |[x, x0, g]| momentum(perturb::l2_momentum_step, x, x0, g),
            Some(plain::l2_momentum_step),
        ),
        (
            "linf-projection",
            3,
            |[x, x0, _]| perturb::project_linf(x, x0, EPS, BOX),
            Some(plain::project_linf),
        ),
        (
            "l2-projection",
            3,
            |[x, x0, _]| perturb::project_l2(x, x0, EPS, BOX),
            Some(plain::project_l2),
        ),
        (
            "l1-projection",
            3,
            |[x, x0, _]| perturb::project_l1(x, x0, 12.0, BOX),
            None,
        ),
        (
            "l2-norms",
            1,
            |[x, ..]| perturb::l2_norms(x).reshape([-1, 1, 1, 1]),
            None,
        ),
        (
            "linf-norms",
            1,
            |[x, ..]| perturb::linf_norms(x).reshape([-1, 1, 1, 1]),
            None,
        ),
    ];
    let mut makes: Vec<Make> = Vec::new();
    for (name, count, ours, plain) in steps {
        let make = move |device: &Device| {
            let tensors = given(shape, device);
            // As in an attack: the gradient is nobody else's, the images are.
            let run = |step: Step, tensors: [Tensor<4>; 3]| -> Box<dyn FnMut()> {
                Box::new(move || drop(step(tensors.clone())))
            };
            Case {
                batch: shape[0],
                work: passes(shape, count),
                ours: run(ours, tensors.clone()),
                plain: plain.map(|plain| run(plain, tensors)),
            }
        };
        makes.push((name_of(name, &shape), Box::new(make)));
    }
    let mut add = |name: &str, make: Box<dyn Fn(&Device) -> Case>| {
        makes.push((name_of(name, &shape), make));
    };
    let make = move |device: &Device| {
        let (device, ids) = (device.clone(), ids(shape));
        let key = NoiseKey::new(0, Stream::TrainAttack);
        let on = device.clone();
        let draw = move || drop(key.uniform::<4>(&ids, shape, -EPS, EPS, &on));
        let range = Distribution::Uniform(-f64::from(EPS), f64::from(EPS));
        let burns = move || drop(Tensor::<4>::random(shape, range, &device));
        alone(shape, 1, Box::new(draw), Box::new(burns))
    };
    add("philox-uniform", Box::new(make));
    let make = move |device: &Device| {
        let (device, ids) = (device.clone(), ids(shape));
        let key = NoiseKey::new(0, Stream::TrainAttack);
        let on = device.clone();
        let draw = move || drop(key.normal::<4>(&ids, shape, &on));
        let normal = Distribution::Normal(0.0, 1.0);
        let burns = move || drop(Tensor::<4>::random(shape, normal, &device));
        alone(shape, 1, Box::new(draw), Box::new(burns))
    };
    add("philox-normal", Box::new(make));
    let make = move |device: &Device| {
        let ([x, ..], ids) = (given(shape, device), ids(shape));
        let key = NoiseKey::new(0, Stream::Augment);
        let images = x.clone();
        let crop = move || drop(crop_flip(images.clone(), 2, true, &key, &ids));
        // Padded, cut at one place for all, mirrored: an easier task in tensor operations.
        let [_, _, height, width] = shape;
        let cut = move || {
            let padded = x.clone().pad((2, 2, 2, 2), 0.0);
            let cut = padded.slice(s![.., .., 1..height + 1, 1..width + 1]);
            drop(cut.flip([3]));
        };
        alone(shape, 2, Box::new(crop), Box::new(cut))
    };
    add("crop-flip", Box::new(make));
    makes
}

fn alone(shape: [usize; 4], count: usize, ours: Box<dyn FnMut()>, plain: Box<dyn FnMut()>) -> Case {
    Case {
        batch: shape[0],
        work: passes(shape, count),
        ours,
        plain: Some(plain),
    }
}

type MomentumStep =
    fn(Tensor<4>, Tensor<4>, Tensor<4>, Tensor<4>, Tensor<1>, f32, f32, (f32, f32)) -> Tensor<4>;

fn momentum(step: MomentumStep, x: Tensor<4>, x0: Tensor<4>, gradient: Tensor<4>) -> Tensor<4> {
    let sizes = Tensor::full([x.dims()[0]], STEP, &x.device());
    step(x, x0.clone(), gradient, x0, sizes, 0.25, EPS, BOX)
}

/// The loss of each sample and its gradient by the logits.
fn loss(loss: AttackLoss, batch: usize, classes: usize, device: &Device) -> Case {
    let samples: Vec<u32> = (0..batch as u32).collect();
    let key = NoiseKey::new(0, Stream::TrainAttack);
    let logits = key.uniform::<2>(&samples, [batch, classes], -3.0, 3.0, device);
    let y = Tensor::<1, Int>::arange(0..batch as i64, device).remainder_scalar(classes as i64);
    let ours = move || {
        let logits = logits.clone().autodiff().require_grad();
        let value = loss.per_sample(logits.clone(), y.clone()).sum_dim(0);
        drop(logits.grad(&value.backward()));
    };
    Case {
        batch,
        // Read the logits, write a loss a row and the gradient.
        work: Work::Bytes((4 * batch * (2 * classes + 1)) as f64),
        ours: Box::new(ours),
        plain: None,
    }
}

/// What is done to all weights at once.
#[derive(Clone, Copy)]
enum Update {
    Sgd,
    Adam,
    /// A step of an average.
    Blend,
}

const SGD: Sgd = Sgd {
    rate: 0.1,
    momentum: 0.9,
    nesterov: false,
    decay: 5e-4,
};

const ADAM: Adam = Adam {
    rate: 1e-3,
    betas: [0.9, 0.999],
    epsilon: 1e-8,
    decay: 0.0,
    keep: 1.0,
    corrections: [0.5, 0.1],
};

impl Update {
    fn name(self) -> &'static str {
        match self {
            Self::Sgd => "sgd",
            Self::Adam => "adam",
            Self::Blend => "average",
        }
    }

    fn case(self, length: usize, device: &Device) -> Case {
        let passes = match self {
            Self::Sgd => 5,
            Self::Adam => 7,
            Self::Blend => 3,
        };
        Case {
            batch: 1,
            work: Work::Bytes((4 * passes * length) as f64),
            ours: self.run(length, device, false),
            plain: Some(self.run(length, device, true)),
        }
    }

    /// Update after update of the same weights, which nobody else holds; their gradient is read.
    fn run(self, length: usize, device: &Device, plain: bool) -> Box<dyn FnMut()> {
        let start = Tensor::<1>::full([length], 0.5, device);
        let gradient = start.ones_like();
        let mut state = Some((start.zeros_like(), start.zeros_like(), start.ones_like()));
        Box::new(move || {
            let (weights, first, second) = state.take().expect("left by the last");
            let gradient = gradient.clone();
            state = Some(match (self, plain) {
                (Self::Sgd, false) => {
                    let (weights, velocity) = SGD.update(weights, gradient, Some(first));
                    (weights, velocity.expect("has momentum"), second)
                }
                (Self::Sgd, true) => {
                    let (weights, velocity) = plain::sgd(weights, gradient, first);
                    (weights, velocity, second)
                }
                (Self::Adam, false) => {
                    let moments = Some([first, second]);
                    let (weights, [first, second]) = ADAM.update(weights, gradient, moments);
                    (weights, first, second)
                }
                (Self::Adam, true) => plain::adam(weights, gradient, first, second),
                (Self::Blend, false) => (blend(weights, gradient, 0.9), first, second),
                (Self::Blend, true) => {
                    let kept = weights.mul_scalar(0.9);
                    (kept + gradient.mul_scalar(0.1), first, second)
                }
            });
        })
    }
}

#[derive(Clone, Copy)]
struct Layer {
    batch: usize,
    channels: [usize; 2],
    size: usize,
    kernel: usize,
    stride: usize,
    padding: usize,
}

#[derive(Clone, Copy, PartialEq)]
enum Pass {
    Forward,
    /// Forward and backward for the input, as in an attack; the arithmetic of both.
    Input,
    /// Forward and backward for weight and bias.
    Weight,
}

impl Layer {
    fn new(batch: usize, channels: [usize; 2], size: usize, window: [usize; 3]) -> Self {
        let [kernel, stride, padding] = window;
        Self {
            batch,
            channels,
            size,
            kernel,
            stride,
            padding,
        }
    }

    fn name(self, pass: Pass) -> String {
        let name = match pass {
            Pass::Forward => "conv",
            Pass::Input => "conv+input-gradient",
            Pass::Weight => "conv+weight-gradient",
        };
        let [inputs, outputs] = self.channels;
        let name = name_of(name, &[self.batch, inputs, self.size, self.size]);
        format!("{name}-{outputs}k{}s{}", self.kernel, self.stride)
    }

    fn case(self, pass: Pass, device: &Device) -> Case {
        let [inputs, outputs] = self.channels;
        let out = (self.size + 2 * self.padding - self.kernel) / self.stride + 1;
        let ids: Vec<u32> = (0..self.batch.max(outputs) as u32).collect();
        let key = NoiseKey::new(0, Stream::Init);
        let x = key.uniform(
            &ids[..self.batch],
            [self.batch, inputs, self.size, self.size],
            -1.0,
            1.0,
            device,
        );
        let w = key.uniform(
            &ids[..outputs],
            [outputs, inputs, self.kernel, self.kernel],
            -1.0,
            1.0,
            device,
        );
        let b = Tensor::<1>::ones([outputs], device);
        let run = |conv: Convolution| -> Box<dyn FnMut()> {
            let (x, w, b) = (x.clone(), w.clone(), b.clone());
            Box::new(move || self.run(pass, conv, x.clone(), w.clone(), b.clone()))
        };
        let macs = self.batch * outputs * out * out * inputs * self.kernel * self.kernel;
        let times = match pass {
            Pass::Forward => 1,
            Pass::Input | Pass::Weight => 2,
        };
        Case {
            batch: self.batch,
            work: Work::Flop((2 * times * macs) as f64),
            ours: run(conv2d),
            plain: Some(run(plain::conv2d)),
        }
    }

    fn run(self, pass: Pass, conv: Convolution, x: Tensor<4>, w: Tensor<4>, b: Tensor<1>) {
        let (x, w, b) = match pass {
            Pass::Forward => (x, w, b),
            Pass::Input => (x.autodiff().require_grad(), w, b),
            Pass::Weight => (x, w.autodiff().require_grad(), b.autodiff().require_grad()),
        };
        let y = conv(x, w, Some(b), [self.stride; 2], [self.padding; 2]);
        if pass == Pass::Forward {
            return;
        }
        // One sum over everything costs little beside a convolution, and hands back a gradient of ones.
        drop(y.sum().backward());
    }
}

type Convolution = fn(Tensor<4>, Tensor<4>, Option<Tensor<1>>, [usize; 2], [usize; 2]) -> Tensor<4>;

/// The same in tensor operations alone.
mod plain {
    use super::*;

    pub(super) fn linf_step([x, x0, g]: [Tensor<4>; 3]) -> Tensor<4> {
        let delta = (x + g.sign().mul_scalar(STEP) - x0.clone()).clamp(-EPS, EPS);
        (x0 + delta).clamp(BOX.0, BOX.1)
    }

    pub(super) fn l2_step([x, x0, g]: [Tensor<4>; 3]) -> Tensor<4> {
        let length = lengths(g.clone());
        project_l2([x + (g / length).mul_scalar(STEP), x0.clone(), x0])
    }

    pub(super) fn project_l2([x, x0, _]: [Tensor<4>; 3]) -> Tensor<4> {
        let delta = x - x0.clone();
        let shrink = lengths(delta.clone())
            .recip()
            .mul_scalar(EPS)
            .clamp_max(1.0);
        (x0 + delta * shrink).clamp(BOX.0, BOX.1)
    }

    /// The velocity too.
    pub(super) fn sgd(w: Tensor<1>, g: Tensor<1>, v: Tensor<1>) -> (Tensor<1>, Tensor<1>) {
        let g = g + w.clone().mul_scalar(SGD.decay);
        let v = v.mul_scalar(SGD.momentum) + g;
        (w - v.clone().mul_scalar(SGD.rate), v)
    }

    /// The moments too.
    pub(super) fn adam(
        w: Tensor<1>,
        g: Tensor<1>,
        m: Tensor<1>,
        v: Tensor<1>,
    ) -> (Tensor<1>, Tensor<1>, Tensor<1>) {
        let [beta1, beta2] = ADAM.betas;
        let m = m.mul_scalar(beta1) + g.clone().mul_scalar(1.0 - beta1);
        let v = v.mul_scalar(beta2) + g.square().mul_scalar(1.0 - beta2);
        let root = v.clone().div_scalar(ADAM.corrections[1]).sqrt();
        let direction = m.clone().div_scalar(ADAM.corrections[0]) / root.add_scalar(ADAM.epsilon);
        (w - direction.mul_scalar(ADAM.rate), m, v)
    }

    pub(super) fn linf_momentum_step([x, x0, g]: [Tensor<4>; 3]) -> Tensor<4> {
        let project = |z: Tensor<4>| {
            let delta = (z - x0.clone()).clamp(-EPS, EPS);
            (x0.clone() + delta).clamp(BOX.0, BOX.1)
        };
        let ahead = project(x.clone() + g.sign().mul_scalar(STEP));
        let pull = (ahead - x.clone()).mul_scalar(0.75);
        let drift = (x.clone() - x0.clone()).mul_scalar(0.25);
        project(x + pull + drift)
    }

    pub(super) fn l2_momentum_step([x, x0, g]: [Tensor<4>; 3]) -> Tensor<4> {
        let project = |z: Tensor<4>| project_l2([z, x0.clone(), x0.clone()]);
        let length = lengths(g.clone());
        let ahead = project(x.clone() + (g / length).mul_scalar(STEP));
        let pull = (ahead - x.clone()).mul_scalar(0.75);
        let drift = (x.clone() - x0.clone()).mul_scalar(0.25);
        project(x + pull + drift)
    }

    pub(super) fn project_linf([x, x0, _]: [Tensor<4>; 3]) -> Tensor<4> {
        let delta = (x - x0.clone()).clamp(-EPS, EPS);
        (x0 + delta).clamp(BOX.0, BOX.1)
    }

    fn lengths(x: Tensor<4>) -> Tensor<4> {
        let squares = x.flatten::<2>(1, 3).square().sum_dim(1);
        squares.sqrt().clamp_min(1e-12).reshape([-1, 1, 1, 1])
    }

    pub(super) fn conv2d(
        x: Tensor<4>,
        w: Tensor<4>,
        b: Option<Tensor<1>>,
        stride: [usize; 2],
        padding: [usize; 2],
    ) -> Tensor<4> {
        module::conv2d(x, w, b, ConvOptions::new(stride, padding, [1, 1], 1))
    }
}

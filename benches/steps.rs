//! What adversarial training is made of, on the CPU backend: images a second of an attack's gradient step (input gradient
//! only) and of a whole PGD-7 training step, against a step of ordinary training.

use burn::optim::GradientsParams;
use burn::tensor::{Device, Int, Tensor};
use divan::Bencher;
use divan::counter::ItemsCount;
use gauntlet_attacks::{Attack, AttackLoss, Keep, Noise, Pgd, input_gradient};
use gauntlet_kernels::{NoiseKey, Stream};
use gauntlet_models::{Classifier, ModelConfig, Network};
use gauntlet_train::{Optimizer, OptimizerConfig, cross_entropy};

use burn::module::Module;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

/// Network, channels, size, batch: small batches where an image costs a thousand times more.
const CASES: [(&str, usize, usize, usize); 4] = [
    ("mlp", 1, 8, 64),
    ("mnist-cnn", 1, 28, 128),
    ("lenet-madry", 1, 28, 128),
    ("preact-resnet18", 3, 32, 8),
];

struct Case {
    model: Network,
    x: Tensor<4>,
    y: Tensor<1, Int>,
    noise: Noise,
    batch: usize,
}

impl Case {
    fn new(arch: &str) -> Self {
        let (_, channels, size, batch) = CASES.into_iter().find(|case| case.0 == arch).unwrap();
        let device = Device::flex();
        let config: ModelConfig =
            serde_json::from_value(serde_json::json!({ "arch": arch })).unwrap();
        let model = config
            .init([channels, size, size], 10, 0, &device.clone().autodiff())
            .unwrap();
        let samples: Vec<u32> = (0..batch as u32).collect();
        let key = NoiseKey::new(0, Stream::TrainAttack);
        let x = key.uniform(&samples, [batch, channels, size, size], 0.0, 1.0, &device);
        let y = Tensor::<1, Int>::arange(0..batch as i64, &device).remainder_scalar(10);
        Self {
            model,
            x,
            y,
            noise: Noise { key, samples },
            batch,
        }
    }

    fn images(&self) -> ItemsCount {
        ItemsCount::new(self.batch)
    }

    fn attack(steps: usize) -> Pgd {
        Pgd {
            step_size: 0.025,
            keep: Keep::Last,
            ..Pgd::new("linf:0.1".parse().unwrap(), steps)
        }
    }

    /// One update; `steps` of PGD first.
    fn update(&mut self, optimizer: &mut Optimizer, steps: usize) {
        let x = match steps {
            0 => self.x.clone(),
            _ => Self::attack(steps).perturb(
                &self.model.valid(),
                self.x.clone(),
                self.y.clone(),
                &self.noise,
            ),
        };
        let loss = cross_entropy(self.model.logits(x.autodiff()), self.y.clone(), 0.0);
        let gradients = GradientsParams::from_grads(loss.backward(), &self.model);
        self.model = optimizer.step(0.01, self.model.clone(), gradients);
    }
}

fn sgd() -> Optimizer {
    Optimizer::new(serde_json::from_str::<OptimizerConfig>(r#"{"kind":"sgd"}"#).unwrap())
}

#[divan::bench(args = CASES.map(|case| case.0), sample_count = 20)]
fn gradient_step(bencher: Bencher<'_, '_>, arch: &str) {
    let case = Case::new(arch);
    let frozen = case.model.valid();
    bencher.counter(case.images()).bench_local(|| {
        input_gradient(
            &frozen,
            case.x.clone(),
            case.y.clone(),
            AttackLoss::CrossEntropy,
        )
        .0
    });
}

#[divan::bench(args = CASES.map(|case| case.0), sample_count = 10)]
fn standard_training_step(bencher: Bencher<'_, '_>, arch: &str) {
    let (mut case, mut optimizer) = (Case::new(arch), sgd());
    bencher
        .counter(case.images())
        .bench_local(|| case.update(&mut optimizer, 0));
}

#[divan::bench(args = CASES.map(|case| case.0), sample_count = 10)]
fn pgd_7_training_step(bencher: Bencher<'_, '_>, arch: &str) {
    let (mut case, mut optimizer) = (Case::new(arch), sgd());
    bencher
        .counter(case.images())
        .bench_local(|| case.update(&mut optimizer, 7));
}

//! Perturbation arithmetic and named noise on the CPU backend: bytes a second, at the batch shapes of MNIST and CIFAR-10.

use burn::tensor::{Device, Tensor};
use divan::counter::BytesCount;
use divan::{Bencher, black_box};
use gauntlet_kernels::augment::crop_flip;
use gauntlet_kernels::perturb::{l2_step, linf_step, project_l2};
use gauntlet_kernels::{NoiseKey, Stream};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    divan::main();
}

fn shape(data: &str) -> [usize; 4] {
    match data {
        "mnist" => [128, 1, 28, 28],
        _ => [128, 3, 32, 32],
    }
}

fn tensors(shape: [usize; 4]) -> [Tensor<4>; 3] {
    let device = Device::flex();
    let ids: Vec<u32> = (0..shape[0] as u32).collect();
    [(0, 0.0), (1, 0.0), (2, -1.0)].map(|(step, low)| {
        NoiseKey::new(0, Stream::TrainAttack)
            .at(0, step)
            .uniform(&ids, shape, low, 1.0, &device)
    })
}

/// Bytes of `passes` reads or writes of a tensor.
fn bytes(shape: [usize; 4], passes: usize) -> BytesCount {
    BytesCount::new(4 * passes * shape.iter().product::<usize>())
}

#[divan::bench(args = ["mnist", "cifar10"])]
fn linf(bencher: Bencher<'_, '_>, data: &str) {
    let [x, x0, g] = tensors(shape(data));
    bencher.counter(bytes(shape(data), 4)).bench_local(|| {
        linf_step(
            x.clone(),
            x0.clone(),
            black_box(g.clone()),
            0.1,
            0.3,
            (0.0, 1.0),
        )
    });
}

#[divan::bench(args = ["mnist", "cifar10"])]
fn l2(bencher: Bencher<'_, '_>, data: &str) {
    let [x, x0, g] = tensors(shape(data));
    bencher.counter(bytes(shape(data), 4)).bench_local(|| {
        l2_step(
            x.clone(),
            x0.clone(),
            black_box(g.clone()),
            0.1,
            0.5,
            (0.0, 1.0),
        )
    });
}

#[divan::bench(args = ["mnist", "cifar10"])]
fn l2_projection(bencher: Bencher<'_, '_>, data: &str) {
    let [x, x0, _] = tensors(shape(data));
    bencher
        .counter(bytes(shape(data), 3))
        .bench_local(|| project_l2(black_box(x.clone()), x0.clone(), 0.5, (0.0, 1.0)));
}

#[divan::bench(args = ["mnist", "cifar10"])]
fn uniform_noise(bencher: Bencher<'_, '_>, data: &str) {
    let (device, shape) = (Device::flex(), shape(data));
    let ids: Vec<u32> = (0..shape[0] as u32).collect();
    let key = NoiseKey::new(0, Stream::TrainAttack);
    bencher
        .counter(bytes(shape, 1))
        .bench_local(|| key.uniform(black_box(&ids), shape, -0.3, 0.3, &device));
}

#[divan::bench(args = ["mnist", "cifar10"])]
fn crop_and_flip(bencher: Bencher<'_, '_>, data: &str) {
    let shape = shape(data);
    let [x, ..] = tensors(shape);
    let ids: Vec<u32> = (0..shape[0] as u32).collect();
    let key = NoiseKey::new(0, Stream::Augment);
    bencher
        .counter(bytes(shape, 2))
        .bench_local(|| crop_flip(black_box(x.clone()), 4, true, &key, &ids));
}

//! A module's tensors by name: `body.conv1.weight`, `body.blocks.0.norm1.running_mean`.

use std::any::Any;
use std::collections::BTreeMap;

use burn::module::{Module, ModuleMapper, ModuleVisitor, Param, ParamId};
use burn::tensor::{Tensor, TensorData};
use gauntlet_kernels::update::blend;

/// One tensor of a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Named {
    /// Where it is.
    pub path: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Whether it is a running statistic rather than a parameter.
    pub buffer: bool,
    /// What optimizers know it by.
    pub id: ParamId,
}

/// Path of a tensor while a module is walked. The names of enum variants are left out: they say which of several networks
/// a module holds, not where in it a tensor is.
#[derive(Default)]
pub struct Path(Vec<String>);

impl Path {
    /// To be called from `enter_module`.
    pub fn enter(&mut self, name: &str, container: &str) {
        if !container.starts_with("Enum:") {
            self.0.push(name.to_owned());
        }
    }

    /// To be called from `exit_module`.
    pub fn exit(&mut self, container: &str) {
        if !container.starts_with("Enum:") {
            self.0.pop();
        }
    }

    /// The name of the tensor that is visited.
    pub fn name(&self) -> String {
        self.0.join(".")
    }
}

/// Every float tensor of `model`, in the order of its fields.
pub fn list<M: Module>(model: &M) -> Vec<Named> {
    struct List(Path, Vec<Named>);
    impl ModuleVisitor for List {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.0.name();
            let buffer = is_buffer(&path);
            self.1.push(Named {
                path,
                shape: param.val().dims().to_vec(),
                buffer,
                id: param.id,
            });
        }
    }
    let mut list = List(Path::default(), Vec::new());
    model.visit(&mut list);
    list.1
}

/// Every float tensor of `model` on the host, by path. Running statistics are those after the last forward pass.
pub fn data<M: Module>(model: &M) -> BTreeMap<String, TensorData> {
    data_where(model, |_| true)
}

/// [`data`] of the tensors whose paths `take` wants.
pub fn data_where<M: Module>(
    model: &M,
    take: impl Fn(&str) -> bool,
) -> BTreeMap<String, TensorData> {
    struct Read<F>(Path, BTreeMap<String, TensorData>, F);
    impl<F: Fn(&str) -> bool> ModuleVisitor for Read<F> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.0.name();
            if (self.2)(&path) {
                self.1.insert(path, owned(param.val().inner()));
            }
        }
    }
    let mut read = Read(Path::default(), BTreeMap::new(), take);
    // `valid` applies pending BatchNorm updates; a plain visit sees statistics that are one update old.
    model.valid().visit(&mut read);
    read.1
}

/// The values of `tensor` as they are now. On devices that share memory with the host, what `into_data` returns is still
/// mapped to the device's buffer: it would change with the next step of training.
pub fn owned<const D: usize>(tensor: Tensor<D>) -> TensorData {
    let data = tensor.into_data();
    TensorData::from_bytes_vec(data.as_bytes().to_vec(), data.shape().clone(), data.dtype())
}

/// `model` with every tensor replaced by the one of its path in `tensors`. `model` comes back as an untracked copy: nothing is written
/// through to the module it was cloned from.
///
/// # Panics
/// If a path is missing or a shape differs: check against [`list`] first.
pub fn with_data<M: Module>(model: &M, tensors: BTreeMap<String, TensorData>) -> M {
    struct Replace(Path, BTreeMap<String, TensorData>);
    impl ModuleMapper for Replace {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let data = self
                .1
                .remove(&self.0.name())
                .expect("every tensor was checked to be there");
            param.map(|old| Tensor::from_data(data, &old.device()))
        }
    }
    model.valid().map(&mut Replace(Path::default(), tensors))
}

/// `target * keep + source * (1 - keep)` for every tensor, running statistics included: one step of an exponential moving
/// average. The result is untracked and shares nothing with either.
pub fn lerp<M: Module>(target: &M, source: &M, keep: f64) -> M {
    struct Read(Path, BTreeMap<String, Tensor<1>>);
    impl ModuleVisitor for Read {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1.insert(self.0.name(), param.val().flatten(0, D - 1));
        }
    }
    struct Blend(Path, BTreeMap<String, Tensor<1>>, f64);
    impl ModuleMapper for Blend {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let (keep, source) = (self.2, self.1.remove(&self.0.name()));
            match source {
                Some(source) => param.map(|old| {
                    let shape = old.dims();
                    blend(old, source.reshape(shape), keep)
                }),
                None => param,
            }
        }
    }
    let mut read = Read(Path::default(), BTreeMap::new());
    source.valid().visit(&mut read);
    target
        .valid()
        .map(&mut Blend(Path::default(), read.1, keep))
}

/// Whether the tensor at `path` belongs to a normalisation layer: its scale and shift, or running statistics.
pub fn is_norm(path: &str) -> bool {
    let last = path.rsplit('.').next().unwrap_or_default();
    matches!(last, "gamma" | "beta" | "running_mean" | "running_var")
}

/// Whether the tensor at `path` is a running statistic rather than a parameter.
pub fn is_buffer(path: &str) -> bool {
    path.ends_with("running_mean") || path.ends_with("running_var")
}

/// `target` with the tensors of `source` wherever `take` says so by their path. Parameters are the very same ones (id and graph
/// node), so that gradients of both modules add up in them. Those of `target` that stay keep theirs.
pub fn graft<M: Module>(target: M, source: &M, take: impl Fn(&str) -> bool) -> M {
    struct Read<F>(Path, BTreeMap<String, Box<dyn Any>>, F);
    impl<F: Fn(&str) -> bool> ModuleVisitor for Read<F> {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let path = self.0.name();
            if (self.2)(&path) {
                self.1.insert(path, Box::new(param.clone()));
            }
        }
    }
    struct Write(Path, BTreeMap<String, Box<dyn Any>>);
    impl ModuleMapper for Write {
        fn enter_module(&mut self, name: &str, container: &str) {
            self.0.enter(name, container);
        }
        fn exit_module(&mut self, _name: &str, container: &str) {
            self.0.exit(container);
        }
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let taken = self.1.remove(&self.0.name());
            match taken.and_then(|taken| taken.downcast::<Param<Tensor<D>>>().ok()) {
                Some(taken) => *taken,
                None => param,
            }
        }
    }
    let mut read = Read(Path::default(), BTreeMap::new(), take);
    source.visit(&mut read);
    target.map(&mut Write(Path::default(), read.1))
}

#[cfg(test)]
mod tests {
    use burn::nn::BatchNormConfig;
    use burn::tensor::Device;

    use super::*;
    use crate::detached;

    fn batch(value: f32, device: &Device) -> Tensor<3> {
        // burn's BatchNorm trains only on inputs that live on an autodiff device.
        Tensor::<3>::from_floats([[[value], [value]], [[value + 2.0], [value + 4.0]]], device)
            .autodiff()
    }

    fn host(data: &TensorData) -> Vec<f32> {
        data.try_to_vec().unwrap()
    }

    #[test]
    fn statistics_are_current_right_after_a_training_step() {
        let device = Device::flex();
        let norm = BatchNormConfig::new(2).init(&device.clone().autodiff());
        norm.forward(batch(1.0, &device));
        // Batch means 2 and 3, momentum 0.1.
        let mean = host(&data(&norm)["running_mean"]);
        assert!(
            (mean[0] - 0.2).abs() < 1e-6 && (mean[1] - 0.3).abs() < 1e-6,
            "{mean:?}"
        );
    }

    #[test]
    fn averages_and_copies_share_no_statistics_with_the_live_model() {
        let device = Device::flex();
        let live = BatchNormConfig::new(2).init(&device.clone().autodiff());
        live.forward(batch(1.0, &device));
        let before = data(&live);
        let copy = detached(&live);
        let average = lerp(&copy, &live, 0.9);
        let averaged = data(&average);
        copy.forward(batch(100.0, &device));
        assert_eq!(data(&live), before, "a copy moved the live model");
        live.forward(batch(50.0, &device));
        assert_eq!(data(&average), averaged, "the live model moved its average");
        let blended = lerp(&average, &live, 0.75);
        for (path, value) in data(&blended) {
            let (old, new) = (host(&averaged[&path]), host(&data(&live)[&path]));
            for ((value, old), new) in host(&value).into_iter().zip(old).zip(new) {
                assert!((value - (0.75 * old + 0.25 * new)).abs() < 1e-5, "{path}");
            }
        }
        assert_eq!(data(&average), averaged);
    }
}

use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::tensor::Device;

/// Modules with names of their own in place of numbers.
#[derive(Clone, Debug)]
pub(crate) struct NamedModules<T>(pub(crate) Vec<(String, T)>);

impl<T> NamedModules<T> {
    fn each<U>(self, change: impl Fn(T) -> U) -> NamedModules<U> {
        let changed = self
            .0
            .into_iter()
            .map(|(name, module)| (name, change(module)));
        NamedModules(changed.collect())
    }
}

const CONTAINER: &str = "Struct:NamedModules";

impl<T: Module> Module for NamedModules<T> {
    fn num_params(&self) -> usize {
        self.0.iter().map(|(_, module)| module.num_params()).sum()
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        for (name, module) in &self.0 {
            visitor.enter_module(name, CONTAINER);
            module.visit(visitor);
            visitor.exit_module(name, CONTAINER);
        }
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        let mapped = self.0.into_iter().map(|(name, module)| {
            mapper.enter_module(&name, CONTAINER);
            let module = module.map(mapper);
            mapper.exit_module(&name, CONTAINER);
            (name, module)
        });
        Self(mapped.collect())
    }

    fn to_device(self, device: &Device) -> Self {
        self.each(|module| module.to_device(device))
    }

    fn fork(self, device: &Device) -> Self {
        self.each(|module| module.fork(device))
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        let modules = self.0.iter();
        modules.fold(devices, |devices, (_, module)| {
            module.collect_devices(devices)
        })
    }

    fn valid(&self) -> Self {
        self.clone().each(|module| module.valid())
    }

    fn train(self) -> Self {
        self.each(Module::train)
    }

    fn materialize(self) -> Self {
        self.each(Module::materialize)
    }
}

impl<T: ModuleDisplay> ModuleDisplayDefault for NamedModules<T> {
    fn content(&self, content: Content) -> Option<Content> {
        let modules = self.0.iter();
        modules
            .fold(content, |content, (name, module)| content.add(name, module))
            .optional()
    }
}

impl<T: ModuleDisplay> ModuleDisplay for NamedModules<T> {}

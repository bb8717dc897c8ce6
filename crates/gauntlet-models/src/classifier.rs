use burn::module::Module;
use burn::tensor::Tensor;

/// What turns a gradient with respect to the logits, `[batch, classes]`, into one with respect to the input they are of.
pub type Pullback<'a, const D: usize> = Box<dyn FnOnce(Tensor<2>) -> Tensor<D> + 'a>;

/// A model that scores inputs in `[0, 1]`. Images are `D = 4` (`[batch, channels, height, width]`), feature rows `D = 2`.
///
/// Object-safe: attacks take `&dyn Classifier<D>`. Normalisation lives inside.
pub trait Classifier<const D: usize> {
    /// Unnormalised class scores, `[batch, classes]`.
    fn logits(&self, x: Tensor<D>) -> Tensor<2>;
    /// The input of the last linear layer, `[batch, features]`.
    fn features(&self, x: Tensor<D>) -> Tensor<2>;

    /// The logits of `x`, and the way back through the model; tensors are without autodiff.
    ///
    /// By default autodiff goes it. A model that knows a faster one says so here, and gradient attacks take it.
    fn pullback(&self, x: Tensor<D>) -> (Tensor<2>, Pullback<'_, D>) {
        let x = x.autodiff().require_grad();
        // A model may leave the graph on its way, by a step that autodiff does not know.
        let logits = self.logits(x.clone()).autodiff();
        let values = logits.clone().inner();
        let back = move |gradient: Tensor<2>| {
            // One that ignores its input has no gradient: that is a zero, not a crash.
            let gradient = logits.is_tracked().then(|| {
                let weighted = logits * Tensor::from_inner(gradient);
                let mut gradients = weighted.sum_dim(1).sum_dim(0).backward();
                x.grad_remove(&mut gradients)
            });
            gradient
                .flatten()
                .unwrap_or_else(|| x.clone().inner().zeros_like())
        };
        (values, Box::new(back))
    }
}

/// A deep copy in training mode: shares no BatchNorm buffers with `model`, keeps parameter ids.
///
/// `Module::clone` shares running statistics through an `Arc`; use this for EMA, weight averaging and proxies.
pub fn detached<M: Module>(model: &M) -> M {
    model.valid().train()
}

use super::{Crafted, Method, Scene};

/// Cross-entropy on clean examples.
pub(crate) struct Standard;

impl Method for Standard {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let (x, y) = (scene.x.clone(), scene.y.clone());
        Crafted::cross_entropy(0.0, y, scene.label_smoothing, move |net| {
            net.clean(x.clone())
        })
    }
}

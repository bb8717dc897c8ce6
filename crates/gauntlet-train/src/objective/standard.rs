use super::{Crafted, Loss, Method, Scene};
use crate::loss::cross_entropy;

/// Cross-entropy on clean examples.
pub(crate) struct Standard;

impl Method for Standard {
    fn craft(&mut self, scene: &Scene<'_>) -> Crafted {
        let (x, y, smoothing) = (scene.x.clone(), scene.y.clone(), scene.label_smoothing);
        Crafted {
            outer: Box::new(move |net| {
                let logits = net.clean(x.clone());
                Loss {
                    terms: vec![(
                        "cross_entropy",
                        cross_entropy(logits.clone(), y.clone(), smoothing),
                    )],
                    logits,
                    labels: y.clone(),
                }
            }),
            eps: 0.0,
            watched: None,
        }
    }
}

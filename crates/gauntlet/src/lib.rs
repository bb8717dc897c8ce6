//! Adversarial training and evaluation of image classifiers on [burn](https://burn.dev).
//!
//! ```
#![doc = include_str!("../examples/harden.rs")]
//! ```
//!
//! That is the example `harden` of this crate. Its parts, each a crate of its own:
//!
//! | module | what is in it |
//! |---|---|
//! | [`data`] | data sets: fetched, verified, split, and handed out in batches whose order is a function of the seed |
//! | [`models`] | networks with normalisation inside, so that inputs and eps are in \[0, 1\] everywhere |
//! | [`attacks`] | threat models, and the attacks on anything that is a [`Classifier`](models::Classifier) |
//! | [`train`] | objectives, interleaving of clean and adversarial examples, the step loop, checkpoints |
//! | [`audit`] | what a model withstands: evaluation over a data set, tables, reports |
//! | [`kernels`] | arithmetic on perturbations, and random numbers that have names |
//!
//! A model of your own needs [`burn::module::Module`] and [`Classifier`](models::Classifier): attacks take any classifier,
//! and [`train::fit`] any that is both.
//!
//! Nothing computes without a backend: enable the feature `flex` (CPU), `vulkan` or `cuda`. The `gauntlet` command line is the
//! crate `gauntlet-cli`.

pub use burn;
pub use gauntlet_attacks as attacks;
pub use gauntlet_audit as audit;
pub use gauntlet_data as data;
pub use gauntlet_kernels as kernels;
pub use gauntlet_models as models;
pub use gauntlet_train as train;

/// What most programs need.
pub mod prelude {
    pub use burn::module::Module;
    pub use burn::tensor::{Device, Int, Tensor};
    pub use gauntlet_attacks::evaluate::{Outcome, evaluate_batch};
    pub use gauntlet_attacks::{
        Attack, AttackLoss, Eps, Fgsm, Init, Keep, Noise, Norm, Pgd, ThreatModel, input_gradient,
    };
    pub use gauntlet_audit::{Evaluation, evaluate};
    pub use gauntlet_data::fetch::default_root;
    pub use gauntlet_data::{DataConfig, Dataset, Loader, Source, Splits, load};
    pub use gauntlet_kernels::{NoiseKey, Stream};
    pub use gauntlet_models::{Arch, Classifier, Description, ModelConfig, Network};
    pub use gauntlet_train::{Fitted, MetricSink, Plan, Session, TrainError, fit};
}

//! Adversarial training and evaluation of image classifiers on burn.

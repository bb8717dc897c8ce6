use burn::tensor::{Int, Tensor};

use crate::AttackLoss;

/// What an attacker wants, and what the classes given to an attack mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Goal {
    /// Any class but the one given, which is the true one.
    #[default]
    Untargeted,
    /// The class given, and no other.
    Targeted,
}

impl Goal {
    /// `loss` as this attacker ascends it, of each sample: its negative towards a target.
    ///
    /// # Shapes
    /// `logits: [batch, classes]`, `y: [batch]`; the result `[batch]`.
    pub fn loss(self, loss: AttackLoss, logits: Tensor<2>, y: Tensor<1, Int>) -> Tensor<1> {
        let value = loss.per_sample(logits, y);
        match self {
            Self::Untargeted => value,
            Self::Targeted => value.neg(),
        }
    }

    /// 1 for each sample whose logits are what this attacker wants, else 0; a tie is not yet won.
    ///
    /// # Shapes
    /// As [`Goal::loss`]; without autodiff.
    pub fn reached(self, logits: Tensor<2>, y: Tensor<1, Int>) -> Tensor<1> {
        let margin = self.loss(AttackLoss::Margin, logits, y);
        margin.greater_elem(0.0).float()
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;
    use crate::testing::values;

    #[test]
    fn one_flees_the_class_the_other_seeks_it() {
        let device = Device::flex();
        let logits = Tensor::<2>::from_floats([[1.0, 2.0, 0.0], [1.0, 1.0, 0.0]], &device);
        let y = |classes: [i32; 2]| Tensor::<1, Int>::from_ints(classes, &device);
        let won = |goal: Goal, classes| values(goal.reached(logits.clone(), y(classes)));
        assert_eq!(won(Goal::Untargeted, [0, 2]), [1.0, 1.0]);
        assert_eq!(
            won(Goal::Untargeted, [1, 0]),
            [0.0, 0.0],
            "a tie is not won"
        );
        assert_eq!(won(Goal::Targeted, [1, 0]), [1.0, 0.0]);
        assert_eq!(won(Goal::Targeted, [0, 2]), [0.0, 0.0]);
        let loss = |goal: Goal| values(goal.loss(AttackLoss::Margin, logits.clone(), y([0, 2])));
        assert_eq!(loss(Goal::Untargeted), [1.0, 1.0]);
        assert_eq!(loss(Goal::Targeted), [-1.0, -1.0]);
    }
}

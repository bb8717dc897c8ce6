use std::fmt;

use burn::tensor::Tensor;

use crate::{ThreatModel, Violation};

/// An attacker who may choose among several threat models: an example is legal if it is legal under one of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Union(pub Vec<ThreatModel>);

impl Union {
    /// Checks each row of `adversarial` as [`ThreatModel::verify`] does; one that is legal under some threat model passes.
    /// Without threat models nothing is legal.
    ///
    /// # Errors
    /// The first row that is legal under none, and what is wrong under each.
    pub fn verify<const D: usize>(
        &self,
        original: &Tensor<D>,
        adversarial: &Tensor<D>,
    ) -> Result<(), Violation> {
        if adversarial.dims().contains(&0) {
            return Ok(());
        }
        // Whole batches first: most are legal under one threat model alone.
        if self
            .0
            .iter()
            .any(|t| t.verify(original, adversarial).is_ok())
        {
            return Ok(());
        }
        for sample in 0..adversarial.dims()[0] {
            let row = |x: &Tensor<D>| x.clone().narrow(0, sample, 1);
            let (from, to) = (row(original), row(adversarial));
            let checks = self.0.iter().map(|threat| threat.verify(&from, &to));
            let problems: Vec<String> = match checks.collect::<Vec<_>>() {
                checks if checks.iter().any(Result::is_ok) => continue,
                checks => checks
                    .into_iter()
                    .filter_map(Result::err)
                    .map(|violation| violation.problem)
                    .collect(),
            };
            let problem = match problems.is_empty() {
                true => "no threat model allows it".to_owned(),
                false => problems.join("; "),
            };
            return Err(Violation { sample, problem });
        }
        Ok(())
    }
}

/// `linf:0.3 + l2:2 + l1:10`
impl fmt::Display for Union {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (place, threat) in self.0.iter().enumerate() {
            let plus = if place == 0 { "" } else { " + " };
            write!(f, "{plus}{threat}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn one_legal_way_is_enough() {
        let device = Device::flex();
        let tensor = |rows: [[f32; 3]; 3]| Tensor::<2>::from_floats(rows, &device);
        let union = Union(["linf:0.1", "l1:0.2"].map(|t| t.parse().unwrap()).to_vec());
        assert_eq!(union.to_string(), "linf:0.1 + l1:0.2");
        let x = tensor([[0.5; 3]; 3]);
        let legal = tensor([[0.6, 0.6, 0.4], [0.7, 0.5, 0.5], [0.5; 3]]);
        assert_eq!(union.verify(&x, &legal), Ok(()));
        for illegal in [[0.7, 0.55, 0.5], [0.5, f32::NAN, 0.5], [0.5, 0.5, -0.1]] {
            let batch = tensor([[0.6, 0.6, 0.4], [0.7, 0.5, 0.5], illegal]);
            assert_eq!(union.verify(&x, &batch).unwrap_err().sample, 2);
        }
        let both = union.verify(&x, &tensor([[0.9; 3]; 3])).unwrap_err();
        assert!(both.problem.contains("linf") && both.problem.contains("l1"));
        assert!(Union(Vec::new()).verify(&x, &x).is_err());
    }
}

use std::fmt;
use std::str::FromStr;

use burn::tensor::Tensor;
use gauntlet_kernels::host::sum_of;
use gauntlet_kernels::perturb::{l0_norms, l1_norms, l2_norms, linf_norms};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How the size of a perturbation is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Norm {
    /// Largest change of any input value.
    Linf,
    /// Euclidean length.
    L2,
    /// Sum of all changes.
    L1,
    /// Number of changed pixels (with all their channels), or features.
    L0,
}

impl Norm {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Linf, Self::L2, Self::L1, Self::L0];

    /// The size of each row of `delta`: `[batch]`.
    pub fn lengths<const D: usize>(self, delta: Tensor<D>) -> Tensor<1> {
        match self {
            Self::Linf => linf_norms(delta),
            Self::L2 => l2_norms(delta),
            Self::L1 => l1_norms(delta),
            Self::L0 => l0_norms(delta),
        }
    }

    /// The size of one row of features.
    pub(crate) fn length(self, delta: &[f32]) -> f32 {
        let count = delta.len();
        match self {
            Self::Linf => delta.iter().fold(0.0, |most, d| d.abs().max(most)),
            Self::L2 => sum_of(count, |i| delta[i] * delta[i]).sqrt(),
            Self::L1 => sum_of(count, |i| delta[i].abs()),
            Self::L0 => delta.iter().filter(|d| **d != 0.0).count() as f32,
        }
    }
}

impl fmt::Display for Norm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Linf => "linf",
            Self::L2 => "l2",
            Self::L1 => "l1",
            Self::L0 => "l0",
        })
    }
}

/// A size in input units. In TOML and JSON a number or a fraction as text, `0.1` or `"8/255"`, kept as it was written.
///
/// ```
/// let eps: gauntlet_attacks::Eps = "8/255".parse()?;
/// assert_eq!(eps.value(), 8.0 / 255.0);
/// assert_eq!(eps.to_string(), "8/255");
/// # Ok::<(), gauntlet_attacks::ParseThreatError>(())
/// ```
#[derive(Clone, Debug)]
pub struct Eps {
    value: f32,
    text: String,
}

/// However they are written: `0.1` is `1/10`.
impl PartialEq for Eps {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl Eps {
    /// The size in input units.
    pub fn value(&self) -> f32 {
        self.value
    }
}

impl FromStr for Eps {
    type Err = ParseThreatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            ParseThreatError(format!(
                "`{text}` is no size: write a number such as `0.1` or a fraction such as `8/255`"
            ))
        };
        let number = |part: &str| part.trim().parse::<f64>().map_err(|_| wrong());
        let value = match text.split_once('/') {
            Some((above, below)) => number(above)? / number(below)?,
            None => number(text)?,
        };
        if !value.is_finite() || value < 0.0 {
            return Err(ParseThreatError(format!(
                "`{text}` is no size: it must be finite and not negative"
            )));
        }
        Ok(Self {
            value: value as f32,
            text: text.trim().to_owned(),
        })
    }
}

impl TryFrom<f64> for Eps {
    type Error = ParseThreatError;

    fn try_from(value: f64) -> Result<Self, Self::Error> {
        value.to_string().parse()
    }
}

impl fmt::Display for Eps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Serialize for Eps {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.text.parse::<f64>() {
            Ok(number) => serializer.serialize_f64(number),
            Err(_) => serializer.serialize_str(&self.text),
        }
    }
}

impl<'de> Deserialize<'de> for Eps {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "a number such as `0.1` or a fraction such as \"8/255\""
        )]
        enum Written {
            Number(f64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Number(number) => Self::try_from(number),
            Written::Text(text) => text.parse(),
        }
        .map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Eps {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Eps".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({
            "description": "A size in input units: a number such as 0.1 or a fraction such as \"8/255\".",
            "anyOf": [
                { "type": "number", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9.]+(/[0-9.]+)?$" },
            ],
        })
    }
}

/// What the attacker may do, in input units (pixels in [0, 1]). Parses from and prints as `linf:8/255`.
///
/// ```
/// let threat: gauntlet_attacks::ThreatModel = "linf:8/255".parse()?;
/// assert_eq!(threat.to_string(), "linf:8/255");
/// # Ok::<(), gauntlet_attacks::ParseThreatError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct ThreatModel {
    /// How a perturbation is measured.
    pub norm: Norm,
    /// How large it may be.
    pub eps: Eps,
    /// Smallest and largest legal input value.
    pub bounds: (f32, f32),
}

/// Text that is no threat model, with what would be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseThreatError(pub String);

/// An example outside its threat model.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[error("sample {sample}: {problem}")]
pub struct Violation {
    /// Which sample: its row in the batch, or its index in the data set where that is known.
    pub sample: usize,
    /// What is wrong, with the measured size.
    pub problem: String,
}

impl ThreatModel {
    /// A threat model with bounds [0, 1].
    pub fn new(norm: Norm, eps: Eps) -> Self {
        Self {
            norm,
            eps,
            bounds: (0.0, 1.0),
        }
    }

    /// The size of each row of `delta` in this norm.
    pub fn sizes<const D: usize>(&self, delta: Tensor<D>) -> Vec<f32> {
        host(self.norm.lengths(delta))
    }

    /// Checks that each row of `adversarial` is finite, in bounds and within `eps` of `original`, to `f32` rounding.
    ///
    /// # Errors
    /// The first [`Violation`].
    pub fn verify<const D: usize>(
        &self,
        original: &Tensor<D>,
        adversarial: &Tensor<D>,
    ) -> Result<(), Violation> {
        let dims = adversarial.dims();
        if dims.contains(&0) {
            return Ok(());
        }
        let sizes = self.sizes(adversarial.clone() - original.clone());
        let rows = adversarial
            .clone()
            .reshape([dims[0], dims[1..].iter().product::<usize>()]);
        let lows = host(rows.clone().min_dim(1));
        let highs = host(rows.max_dim(1));
        // Adding and subtracting in f32 costs half an ulp of values up to 1 each; a norm over n values a little more.
        let allowed = self.eps.value() * (1.0 + 1e-5) + 2e-6;
        let (low, high) = self.bounds;
        for (sample, ((size, least), most)) in sizes.into_iter().zip(lows).zip(highs).enumerate() {
            let problem = if !(size.is_finite() && least.is_finite() && most.is_finite()) {
                "the example is not finite".to_owned()
            } else if size > allowed {
                format!("{} distance {size} exceeds {}", self.norm, self.eps)
            } else if least < low || most > high {
                format!("values reach from {least} to {most}, outside [{low}, {high}]")
            } else {
                continue;
            };
            return Err(Violation { sample, problem });
        }
        Ok(())
    }
}

fn host<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_vec_as()
        .expect("a float tensor that was computed")
}

impl FromStr for ThreatModel {
    type Err = ParseThreatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || {
            ParseThreatError(format!(
                "`{text}` is no threat model: write a norm and a size, such as `linf:8/255` or `l2:0.5`"
            ))
        };
        let (norm, eps) = text.split_once(':').ok_or_else(wrong)?;
        let norm = Norm::ALL
            .into_iter()
            .find(|known| known.to_string() == norm);
        let norm = norm.ok_or_else(wrong)?;
        let eps: Eps = eps.parse()?;
        if norm == Norm::L0 && eps.value().fract() != 0.0 {
            return Err(ParseThreatError(format!(
                "`{text}` is no threat model: {norm} counts pixels, as in `l0:10`"
            )));
        }
        Ok(Self::new(norm, eps))
    }
}

impl fmt::Display for ThreatModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.norm, self.eps)
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;

    use super::*;

    #[test]
    fn sizes_parse_as_written() {
        for (text, value) in [("8/255", 8.0 / 255.0), ("0.3", 0.3), ("1", 1.0), ("0", 0.0)] {
            let eps: Eps = text.parse().unwrap();
            assert_eq!(eps.value(), value);
            assert_eq!(eps.to_string(), text);
        }
        for text in ["", "-1", "nan", "inf", "1/0", "8/", "a/b", "1/2/3"] {
            assert!(text.parse::<Eps>().is_err(), "{text}");
        }
    }

    #[test]
    fn threat_models_parse_and_print() {
        let threat: ThreatModel = "l2:0.5".parse().unwrap();
        assert_eq!((threat.norm, threat.eps.value()), (Norm::L2, 0.5));
        assert_eq!(threat.to_string(), "l2:0.5");
        for norm in Norm::ALL {
            let text = format!("{norm}:12");
            assert_eq!(text.parse::<ThreatModel>().unwrap().norm, norm);
        }
        for text in [
            "linf", "l3:0.1", "linf:", "linf:-1", "8/255", "l0:2.5", "l0:8/255",
        ] {
            assert!(text.parse::<ThreatModel>().is_err(), "{text}");
        }
        let parse = |text: &str| text.parse::<ThreatModel>().unwrap();
        assert_eq!(parse("linf:0.1"), parse("linf:1/10"));
        assert_ne!(parse("linf:0.1"), parse("linf:0.11"));
    }

    #[test]
    fn illegal_examples_are_named() {
        let device = Device::flex();
        let original = Tensor::<2>::from_floats([[0.5, 0.5], [0.5, 0.9]], &device);
        let check = |threat: &str, second: [f32; 2]| {
            let adversarial = Tensor::<2>::from_floats([[0.5, 0.5], second], &device);
            threat
                .parse::<ThreatModel>()
                .unwrap()
                .verify(&original, &adversarial)
        };
        assert!(check("linf:0.1", [0.6, 0.8]).is_ok());
        assert!(check("l2:0.1", [0.6, 0.8]).is_err());
        for bad in [[0.61, 0.9], [0.5, 1.00001], [f32::NAN, 0.9]] {
            assert_eq!(check("linf:0.1", bad).unwrap_err().sample, 1);
        }
    }
}

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use burn::tensor::Tensor;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    Norm, ParseThreatError, PatchThreat, Shift, SpatialThreat, ThreatModel, Union, Violation,
};

/// What an attacker may do, of whatever kind, so that one audit can hold them all. As text, also in TOML and JSON:
///
/// | text | kind |
/// |---|---|
/// | `linf:8/255`, `l2:0.5`, `l1:12`, `l0:10` | a norm and how large a perturbation may be |
/// | `patch:5` | a window of 5 x 5 pixels |
/// | `spatial:30deg,3px`, `spatial:30deg,10%` | angle, and shift in pixels or in percent of height and width |
/// | `linf:0.3 + l2:2 + l1:10` | any of several balls |
///
/// ```
/// use gauntlet_attacks::Budget;
/// for text in ["linf:8/255", "patch:5", "spatial:30deg,3px"] {
///     assert_eq!(text.parse::<Budget>()?.to_string(), text);
/// }
/// # Ok::<(), gauntlet_attacks::ParseThreatError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Budget {
    /// A ball around the image.
    Norm(ThreatModel),
    /// One square window.
    Patch(PatchThreat),
    /// Rotation and translation.
    Spatial(SpatialThreat),
    /// Any of several balls.
    Union(Union),
}

impl Budget {
    /// Checks that each row of `adversarial` is what this attacker may make of `original`, as [`ThreatModel::verify`],
    /// [`PatchThreat::verify`] or [`SpatialThreat::verify`] does. Of a spatial attacker images alone show only that values
    /// are possible: who has the poses checks those with [`SpatialThreat::verify_poses`], as
    /// [`Spatial::search`](crate::Spatial::search) does in debug builds.
    ///
    /// # Shapes
    /// Both `[batch, ..]`; patches and poses are for images `[batch, channels, height, width]`.
    ///
    /// # Errors
    /// The first [`Violation`]; other shapes are one too.
    pub fn verify<const D: usize>(
        &self,
        original: &Tensor<D>,
        adversarial: &Tensor<D>,
    ) -> Result<(), Violation> {
        if original.dims() != adversarial.dims() {
            return Err(Violation {
                sample: 0,
                problem: format!(
                    "shape {:?} instead of {:?}",
                    adversarial.dims(),
                    original.dims()
                ),
            });
        }
        let images = || match (images(original), images(adversarial)) {
            (Some(original), Some(adversarial)) => Ok((original, adversarial)),
            _ => Err(Violation {
                sample: 0,
                problem: format!("`{self}` is for images, not for {D} dimensions"),
            }),
        };
        match self {
            Self::Norm(threat) => threat.verify(original, adversarial),
            Self::Union(union) => union.verify(original, adversarial),
            Self::Patch(threat) => {
                let (original, adversarial) = images()?;
                threat.verify(&original, &adversarial)
            }
            Self::Spatial(threat) => {
                let (original, adversarial) = images()?;
                threat.verify(&original, &adversarial)
            }
        }
    }

    /// How much each row was changed, in the measure that [`Budget::limit`] limits: the norm, or the side of the window that
    /// holds the changes. `None` where there is no such measure: for poses, and for patches on what are no images.
    ///
    /// # Shapes
    /// Both `[batch, ..]`, alike.
    pub fn sizes<const D: usize>(
        &self,
        original: &Tensor<D>,
        adversarial: &Tensor<D>,
    ) -> Option<Vec<f32>> {
        match self {
            _ if original.dims() != adversarial.dims() => None,
            Self::Norm(_) if original.dims().contains(&0) => Some(vec![0.0; original.dims()[0]]),
            Self::Norm(threat) => Some(threat.sizes(adversarial.clone() - original.clone())),
            Self::Patch(threat) => {
                let sizes = threat.sizes(&images(original)?, &images(adversarial)?);
                Some(sizes.into_iter().map(|size| size as f32).collect())
            }
            Self::Spatial(_) | Self::Union(_) => None,
        }
    }

    /// The largest size that is legal: eps, or the side of a patch.
    pub fn limit(&self) -> Option<f32> {
        match self {
            Self::Norm(threat) => Some(threat.eps.value()),
            Self::Patch(threat) => Some(threat.side as f32),
            Self::Spatial(_) | Self::Union(_) => None,
        }
    }

    /// Smallest and largest legal input value.
    pub fn bounds(&self) -> (f32, f32) {
        match self {
            Self::Norm(threat) => threat.bounds,
            Self::Patch(threat) => threat.bounds,
            Self::Spatial(threat) => threat.bounds,
            Self::Union(union) => union.0.first().map_or((0.0, 1.0), |threat| threat.bounds),
        }
    }
}

fn images<const D: usize>(x: &Tensor<D>) -> Option<Tensor<4>> {
    let dims: [usize; 4] = x.dims().as_slice().try_into().ok()?;
    Some(x.clone().reshape(dims))
}

impl From<ThreatModel> for Budget {
    fn from(threat: ThreatModel) -> Self {
        Self::Norm(threat)
    }
}

impl From<PatchThreat> for Budget {
    fn from(threat: PatchThreat) -> Self {
        Self::Patch(threat)
    }
}

impl From<SpatialThreat> for Budget {
    fn from(threat: SpatialThreat) -> Self {
        Self::Spatial(threat)
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Norm(threat) => threat.fmt(f),
            Self::Patch(threat) => threat.fmt(f),
            Self::Union(union) => union.fmt(f),
            Self::Spatial(threat) => threat.fmt(f),
        }
    }
}

impl FromStr for Budget {
    type Err = ParseThreatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.contains('+') {
            let parts = text.split('+').map(|part| part.trim().parse());
            return parts
                .collect::<Result<_, _>>()
                .map(|threats| Self::Union(Union(threats)));
        }
        let (kind, size) = text.split_once(':').unwrap_or((text, ""));
        match kind {
            "patch" => size.parse().map(Self::Patch),
            "spatial" => size.parse().map(Self::Spatial),
            _ if Norm::ALL.iter().any(|norm| norm.to_string() == kind) => {
                text.parse().map(Self::Norm)
            }
            _ => Err(ParseThreatError(format!(
                "`{text}` is no threat model: write a norm and a size such as `linf:8/255`, the side of a patch as \
                 `patch:5`, or an angle and a shift as `spatial:30deg,3px`"
            ))),
        }
    }
}

/// From what stands behind `patch:`.
impl FromStr for PatchThreat {
    type Err = ParseThreatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text.trim().parse() {
            Ok(side) if side > 0 => Ok(Self::new(side)),
            _ => Err(ParseThreatError(format!(
                "`{text}` is no side of a patch: write a whole number of pixels from 1, as in `patch:5`"
            ))),
        }
    }
}

/// From what stands behind `spatial:`.
impl FromStr for SpatialThreat {
    type Err = ParseThreatError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = |text: &str, unit: &str| {
            let number: f32 = text.trim().strip_suffix(unit)?.trim().parse().ok()?;
            (number.is_finite() && number >= 0.0).then_some(number)
        };
        let parse = || {
            let (degrees, shift) = text.split_once(',')?;
            let degrees = number(degrees, "deg").filter(|&degrees| degrees <= 180.0)?;
            let pixels = number(shift, "px").map(Shift::Pixels);
            let percent = || {
                let percent = number(shift, "%").filter(|&percent| percent <= 100.0);
                percent.map(Shift::Percent)
            };
            Some(Self::new(degrees, pixels.or_else(percent)?))
        };
        parse().ok_or_else(|| {
            ParseThreatError(format!(
                "`{text}` is no rotation and shift: write degrees up to 180, and pixels or percent of height and width, \
                 as in `spatial:30deg,3px` or `spatial:30deg,10%`"
            ))
        })
    }
}

impl Serialize for Budget {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Budget {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl JsonSchema for Budget {
    fn schema_name() -> Cow<'static, str> {
        "Budget".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "description": "What an attacker may do: `linf:8/255`, `l2:0.5`, `l1:12`, `l0:10`, `patch:5`, \
                `spatial:30deg,3px` or `spatial:30deg,10%`.",
            "type": "string",
            "pattern": "^((linf|l2|l1|l0):[0-9.]+(/[0-9.]+)?|patch:[0-9]+|spatial:[0-9.]+deg,[0-9.]+(px|%))$",
        })
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use serde::de::IntoDeserializer;
    use serde::de::value::{Error, StrDeserializer};

    use super::*;
    use crate::{Pose, warp};

    #[test]
    fn what_is_printed_is_what_is_read() {
        for text in [
            "linf:8/255",
            "l2:0.5",
            "l1:12",
            "l0:10",
            "patch:5",
            "patch:32",
            "spatial:30deg,3px",
            "spatial:7.5deg,0px",
            "spatial:180deg,10%",
            "spatial:0deg,0.7%",
        ] {
            let budget: Budget = text.parse().unwrap();
            assert_eq!(budget.to_string(), text);
            assert_eq!(budget.to_string().parse(), Ok(budget.clone()));
            let read: StrDeserializer<Error> = text.into_deserializer();
            assert_eq!(Budget::deserialize(read), Ok(budget));
        }
    }

    #[test]
    fn parts_mean_what_they_say() {
        let spatial: Budget = "spatial:30deg,3px".parse().unwrap();
        assert_eq!(spatial, SpatialThreat::small_images().into());
        let share: Budget = "spatial:15deg,10%".parse().unwrap();
        assert_eq!(share, SpatialThreat::new(15.0, Shift::Percent(10.0)).into());
        assert_eq!("patch:5".parse(), Ok(Budget::from(PatchThreat::new(5))));
        let limits = ["l2:0.5", "patch:5", "spatial:30deg,3px"]
            .map(|text| text.parse::<Budget>().unwrap().limit());
        assert_eq!(limits, [Some(0.5), Some(5.0), None]);
    }

    #[test]
    fn what_is_none_is_refused_with_what_would_be() {
        for (text, hint) in [
            ("", "linf:8/255"),
            ("l3:0.1", "spatial:30deg,3px"),
            ("patches:3", "patch:5"),
            ("linf", "linf:8/255"),
            ("linf:x", "8/255"),
            ("patch", "patch:5"),
            ("patch:0", "patch:5"),
            ("patch:-1", "patch:5"),
            ("patch:2.5", "patch:5"),
            ("spatial:30,3", "spatial:30deg,3px"),
            ("spatial:30deg", "spatial:30deg,10%"),
            ("spatial:-1deg,3px", "degrees up to 180"),
            ("spatial:181deg,3px", "degrees up to 180"),
            ("spatial:nandeg,3px", "degrees up to 180"),
            ("spatial:30deg,infpx", "pixels"),
            ("spatial:30deg,101%", "percent"),
        ] {
            let error = text.parse::<Budget>().unwrap_err().to_string();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }

    #[test]
    fn each_kind_is_verified_and_measured_as_its_own() {
        let device = Device::flex();
        let x = Tensor::<4>::full([2, 1, 4, 4], 0.5, &device);
        let patched = x.clone().slice_fill([1..2, 0..1, 1..3, 0..2], 1.0);
        let poses = [
            Pose::IDENTITY,
            Pose {
                down: 1.0,
                ..Pose::IDENTITY
            },
        ];
        let shifted = warp(x.clone(), &poses);
        let check = |text: &str, adversarial: &Tensor<4>| {
            let budget: Budget = text.parse().unwrap();
            let verdict = budget.verify(&x, adversarial).map_err(|error| error.sample);
            (verdict, budget.sizes(&x, adversarial))
        };
        assert_eq!(check("linf:0.5", &patched), (Ok(()), Some(vec![0.0, 0.5])));
        assert_eq!(check("linf:0.4", &patched), (Err(1), Some(vec![0.0, 0.5])));
        assert_eq!(check("l0:4", &patched), (Ok(()), Some(vec![0.0, 4.0])));
        assert_eq!(check("patch:2", &patched), (Ok(()), Some(vec![0.0, 2.0])));
        assert_eq!(check("patch:1", &patched), (Err(1), Some(vec![0.0, 2.0])));
        assert_eq!(check("patch:4", &shifted), (Ok(()), Some(vec![0.0, 4.0])));
        assert_eq!(check("spatial:0deg,1px", &shifted), (Ok(()), None));
        // Values above all of the original's: no pose makes them.
        assert_eq!(check("spatial:0deg,1px", &patched), (Err(1), None));
    }

    #[test]
    fn other_shapes_are_told_not_panicked_about() {
        let device = Device::flex();
        let rows = Tensor::<2>::zeros([2, 3], &device);
        for text in ["linf:1", "patch:2", "spatial:1deg,1px"] {
            let budget: Budget = text.parse().unwrap();
            let fits = budget.verify(&rows, &rows).is_ok();
            assert_eq!(fits, text == "linf:1");
            assert_eq!(budget.sizes(&rows, &rows).is_some(), text == "linf:1");
            let more = Tensor::<2>::zeros([2, 4], &device);
            assert!(budget.verify(&rows, &more).is_err());
            assert_eq!(budget.sizes(&rows, &more), None);
            let none = Tensor::<4>::zeros([0, 1, 2, 2], &device);
            assert_eq!(budget.verify(&none, &none), Ok(()));
        }
    }
}

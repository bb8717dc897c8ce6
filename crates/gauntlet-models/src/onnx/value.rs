//! What flows through a graph.

use burn::tensor::Tensor;

/// Most dimensions of a value.
pub(crate) const RANK: usize = 6;

/// A tensor of any rank up to [`RANK`], or whole numbers on the host (shapes and places, of which graphs make shapes).
#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "most are tensors")]
pub(crate) enum Flow {
    Float(Float),
    Ints(Ints),
}

/// A tensor with dimensions of 1 in front, so that all ranks are one type and broadcast as ONNX has it.
#[derive(Clone, Debug)]
pub(crate) struct Float {
    pub(crate) data: Tensor<RANK>,
    pub(crate) rank: usize,
}

/// Whole numbers: one, or a list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Ints {
    pub(crate) values: Vec<i64>,
    pub(crate) is_list: bool,
}

impl Float {
    pub(crate) fn of<const D: usize>(tensor: Tensor<D>) -> Self {
        let shape = padded(&tensor.dims());
        Self {
            data: tensor.reshape(shape),
            rank: D,
        }
    }

    /// As a tensor of `D` dimensions, which must be its rank.
    pub(crate) fn as_rank<const D: usize>(&self) -> Result<Tensor<D>, String> {
        if self.rank != D {
            return Err(format!("takes {D} dimensions, not {:?}", self.shape()));
        }
        let shape: [usize; D] = self.shape().try_into().expect("its rank was looked at");
        Ok(self.data.clone().reshape(shape))
    }

    /// Its sizes.
    pub(crate) fn shape(&self) -> Vec<usize> {
        self.data.dims()[RANK - self.rank..].to_vec()
    }

    /// Number of values.
    pub(crate) fn count(&self) -> usize {
        self.data.dims().iter().product()
    }

    /// The same values in another shape of as many.
    pub(crate) fn reshaped(&self, shape: &[usize]) -> Result<Self, String> {
        if shape.len() > RANK {
            return Err(format!(
                "{} dimensions are more than the {RANK} that are computed with",
                shape.len()
            ));
        }
        let count = shape
            .iter()
            .try_fold(1usize, |n, &size| n.checked_mul(size));
        if count != Some(self.count()) {
            return Err(format!("cannot make {shape:?} of {:?}", self.shape()));
        }
        Ok(Self {
            data: self.data.clone().reshape(padded(shape)),
            rank: shape.len(),
        })
    }

    /// The place among the dimensions of `data` that `axis` means; negative ones count from the end.
    pub(crate) fn axis(&self, axis: i64) -> Result<usize, String> {
        Ok(RANK - self.rank + axis_of(axis, self.rank)?)
    }

    pub(crate) fn map(&self, change: impl FnOnce(Tensor<RANK>) -> Tensor<RANK>) -> Self {
        Self {
            data: change(self.data.clone()),
            rank: self.rank,
        }
    }

    /// Two of shapes that broadcast.
    pub(crate) fn with(
        &self,
        other: &Self,
        most: usize,
        op: impl FnOnce(Tensor<RANK>, Tensor<RANK>) -> Tensor<RANK>,
    ) -> Result<Self, String> {
        let mut count = 1usize;
        for (a, b) in self.data.dims().into_iter().zip(other.data.dims()) {
            if a != b && a != 1 && b != 1 {
                return Err(format!(
                    "shapes {:?} and {:?} do not go together",
                    self.shape(),
                    other.shape()
                ));
            }
            count = count.saturating_mul(a.max(b));
        }
        limit(count, most)?;
        Ok(Self {
            data: op(self.data.clone(), other.data.clone()),
            rank: self.rank.max(other.rank),
        })
    }
}

impl Ints {
    pub(crate) fn list(values: Vec<i64>) -> Self {
        Self {
            values,
            is_list: true,
        }
    }
}

/// The axis that a possibly negative number means.
pub(crate) fn axis_of(axis: i64, rank: usize) -> Result<usize, String> {
    let counted = if axis < 0 { axis + rank as i64 } else { axis };
    usize::try_from(counted)
        .ok()
        .filter(|&axis| axis < rank)
        .ok_or_else(|| format!("axis {axis} of {rank} dimensions"))
}

/// Refuses values that are larger than any network's.
pub(crate) fn limit(count: usize, most: usize) -> Result<(), String> {
    if count > most {
        return Err(format!(
            "{count} values at once are more than are computed with"
        ));
    }
    Ok(())
}

fn padded(shape: &[usize]) -> [usize; RANK] {
    let mut padded = [1; RANK];
    padded[RANK - shape.len()..].copy_from_slice(shape);
    padded
}

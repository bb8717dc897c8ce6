//! What the operators compute, as the ONNX operator reference has it. Sizes are checked before burn sees them: a graph that does not fit is an error.

use burn::nn::BatchNorm;
use burn::tensor::module::{avg_pool2d, conv2d, layer_norm, max_pool2d};
use burn::tensor::ops::{AvgPoolOptions, ConvOptions, MaxPoolOptions, PadMode};
use burn::tensor::{Tensor, activation};
use gauntlet_formats::onnx::{Attribute, Node};

use super::value::{Float, Flow, Ints, RANK, axis_of, limit};

/// An operator with what it takes.
pub(crate) struct Call<'a> {
    pub(crate) node: &'a Node,
    pub(crate) opset: i64,
    /// Most values of a result.
    pub(crate) most: usize,
    pub(crate) inputs: Vec<Option<Flow>>,
    /// How many results there are.
    pub(crate) outputs: usize,
    pub(crate) norm: Option<&'a BatchNorm>,
}

/// Padding before and after rows and columns.
type Pads = [(usize, usize); 2];

impl Call<'_> {
    pub(crate) fn x(&self) -> Result<&Float, String> {
        self.float(0)
    }

    fn float(&self, at: usize) -> Result<&Float, String> {
        match self.inputs.get(at) {
            Some(Some(Flow::Float(float))) => Ok(float),
            Some(Some(Flow::Ints(_))) => Err(format!("its input {at} is whole numbers")),
            _ => Err(format!("its input {at} is missing")),
        }
    }

    /// An input that may be left out.
    fn given(&self, at: usize) -> Option<&Flow> {
        self.inputs.get(at).and_then(Option::as_ref)
    }

    /// Whole numbers from an input, or (as in older versions) from an attribute.
    fn ints(&self, at: usize, name: &str) -> Result<Option<Vec<i64>>, String> {
        match (self.given(at), self.node.attributes.get(name)) {
            (Some(Flow::Ints(ints)), _) => Ok(Some(ints.values.clone())),
            (Some(Flow::Float(_)), _) => Err(format!(
                "its input {at} depends on the images or is no whole numbers"
            )),
            (None, Some(Attribute::Ints(values))) => Ok(Some(values.clone())),
            (None, None) => Ok(None),
            (None, Some(_)) => Err(format!("its `{name}` is no list")),
        }
    }

    fn int(&self, name: &str, default: i64) -> i64 {
        match self.node.attributes.get(name) {
            Some(Attribute::Int(value)) => *value,
            _ => default,
        }
    }

    fn number(&self, name: &str, default: f32) -> f64 {
        match self.node.attributes.get(name) {
            Some(Attribute::Float(value)) => f64::from(*value),
            _ => f64::from(default),
        }
    }

    fn text(&self, name: &str) -> &str {
        match self.node.attributes.get(name) {
            Some(Attribute::Text(value)) => value,
            _ => "",
        }
    }

    /// Two sizes in `1..=limit` from an attribute.
    fn sizes(&self, name: &str, default: [usize; 2]) -> Result<[usize; 2], String> {
        let values = match self.node.attributes.get(name) {
            None => return Ok(default),
            Some(Attribute::Ints(values)) => values,
            Some(_) => return Err(format!("its `{name}` is no list")),
        };
        match values[..] {
            [a, b] if [a, b].iter().all(|v| (1..=4096).contains(v)) => Ok([a as usize, b as usize]),
            _ => Err(format!("`{name}` = {values:?}")),
        }
    }

    /// How far a window of `kernel` is padded on an image of `size`.
    fn pads(
        &self,
        size: [usize; 2],
        kernel: [usize; 2],
        stride: [usize; 2],
        dilation: [usize; 2],
    ) -> Result<Pads, String> {
        let reach: [usize; 2] = std::array::from_fn(|d| dilation[d] * (kernel[d] - 1) + 1);
        let same = |late: bool| {
            std::array::from_fn(|d| {
                let steps = size[d].div_ceil(stride[d]);
                let all = (steps.saturating_sub(1) * stride[d] + reach[d]).saturating_sub(size[d]);
                if late {
                    (all / 2, all - all / 2)
                } else {
                    (all - all / 2, all / 2)
                }
            })
        };
        let pads: Pads = match self.text("auto_pad") {
            "SAME_UPPER" => same(true),
            "SAME_LOWER" => same(false),
            "VALID" => [(0, 0); 2],
            _ => match self.node.attributes.get("pads") {
                None => [(0, 0); 2],
                Some(Attribute::Ints(values))
                    if values.len() == 4 && values.iter().all(|v| (0..=4096).contains(v)) =>
                {
                    let at = |i: usize| values[i] as usize;
                    [(at(0), at(2)), (at(1), at(3))]
                }
                Some(_) => return Err("its `pads` cannot be".to_owned()),
            },
        };
        let fits = (0..2).all(|d| size[d] + pads[d].0 + pads[d].1 >= reach[d]);
        if !fits {
            return Err(format!("a window of {reach:?} on images of {size:?}"));
        }
        Ok(pads)
    }

    pub(crate) fn conv(&self) -> Result<Float, String> {
        let x: Tensor<4> = self.x()?.as_rank()?;
        let weight: Tensor<4> = self.float(1)?.as_rank()?;
        let bias = match self.given(2) {
            Some(_) => Some(self.float(2)?.as_rank::<1>()?),
            None => None,
        };
        let ([batch, channels, height, width], [out, per_group, rows, columns]) =
            (x.dims(), weight.dims());
        let groups = usize::try_from(self.int("group", 1)).unwrap_or(0);
        let fits = groups > 0
            && channels == per_group.saturating_mul(groups)
            && out > 0
            && out.is_multiple_of(groups)
            && rows.min(columns) > 0
            && rows.max(columns) <= 4096
            && bias.as_ref().is_none_or(|bias| bias.dims() == [out]);
        if !fits {
            return Err(format!(
                "weights of {:?} in {groups} groups on {:?}",
                weight.dims(),
                x.dims()
            ));
        }
        let stride = self.sizes("strides", [1, 1])?;
        let dilation = self.sizes("dilations", [1, 1])?;
        let pads = self.pads([height, width], [rows, columns], stride, dilation)?;
        let after: [usize; 2] = std::array::from_fn(|d| {
            let (size, kernel) = ([height, width][d], [rows, columns][d]);
            (size + pads[d].0 + pads[d].1 - dilation[d] * (kernel - 1) - 1) / stride[d] + 1
        });
        limit(
            batch
                .saturating_mul(out)
                .saturating_mul(after[0] * after[1]),
            self.most,
        )?;
        if groups == 1 && dilation == [1, 1] {
            let even = pads.iter().all(|(before, after)| before == after);
            let (x, padding) = if even {
                (x, [pads[0].0, pads[1].0])
            } else {
                (x.pad(pads, PadMode::Constant(0.0)), [0, 0])
            };
            return Ok(Float::of(gauntlet_kernels::conv2d(
                x, weight, bias, stride, padding,
            )));
        }
        let x = x.pad(pads, PadMode::Constant(0.0));
        let options = ConvOptions::new(stride, [0, 0], dilation, groups);
        Ok(Float::of(conv2d(x, weight, bias, options)))
    }

    pub(crate) fn pool(&self) -> Result<Float, String> {
        let x: Tensor<4> = self.x()?.as_rank()?;
        let [_, _, height, width] = x.dims();
        if self.int("ceil_mode", 0) != 0 {
            return Err("`ceil_mode` is not computed".to_owned());
        }
        if self.outputs > 1 {
            return Err("places of the largest values are not computed".to_owned());
        }
        if !self.node.attributes.contains_key("kernel_shape") {
            return Err("its `kernel_shape` is missing".to_owned());
        }
        let kernel = self.sizes("kernel_shape", [1, 1])?;
        let stride = self.sizes("strides", [1, 1])?;
        let dilation = self.sizes("dilations", [1, 1])?;
        let pads = self.pads([height, width], kernel, stride, dilation)?;
        let even = pads.iter().all(|(before, after)| before == after);
        let padding = [pads[0].0, pads[1].0];
        if self.node.op == "MaxPool" {
            // Below every value that is compared.
            let (x, padding) = if even && (0..2).all(|d| 2 * padding[d] <= kernel[d]) {
                (x, padding)
            } else {
                (x.pad(pads, PadMode::Constant(f32::MIN)), [0, 0])
            };
            let mut options = MaxPoolOptions::new(kernel)
                .with_stride(stride)
                .with_padding(padding);
            options.dilation = dilation;
            return Ok(Float::of(max_pool2d(x, options)));
        }
        if dilation != [1, 1] {
            return Err("`dilations` are not computed".to_owned());
        }
        let counted = self.int("count_include_pad", 0) != 0;
        if !even && !counted {
            return Err("uneven padding that is not counted is not computed".to_owned());
        }
        let (x, padding) = if even {
            (x, padding)
        } else {
            (x.pad(pads, PadMode::Constant(0.0)), [0, 0])
        };
        let mut options = AvgPoolOptions::new(kernel)
            .with_stride(stride)
            .with_padding(padding);
        options.count_include_pad = counted;
        Ok(Float::of(avg_pool2d(x, options)))
    }

    pub(crate) fn global_pool(&self) -> Result<Float, String> {
        let x: Tensor<4> = self.x()?.as_rank()?;
        Ok(Float::of(if self.node.op == "GlobalMaxPool" {
            x.max_dim(3).max_dim(2)
        } else {
            x.mean_dim(3).mean_dim(2)
        }))
    }

    pub(crate) fn batch_norm(&self) -> Result<Float, String> {
        let x = self.x()?;
        if x.rank < 2 {
            return Err(format!("takes channels, not {:?}", x.shape()));
        }
        let channels = x.shape()[1];
        let wrong = |count: &[usize]| format!("tensors of {count:?} for {channels} channels");
        if let Some(norm) = self.norm {
            let own = norm.gamma.dims();
            if own != [channels] {
                return Err(wrong(&own));
            }
            // Three dimensions are what all backends know.
            let shape = x.shape();
            let x: Tensor<3> = x
                .reshaped(&[shape[0], channels, shape[2..].iter().product()])?
                .as_rank()?;
            return Float::of(norm.forward(x)).reshaped(&shape);
        }
        let mut column = [1; RANK];
        column[RANK - x.rank + 1] = channels;
        let each = |at: usize| -> Result<Tensor<RANK>, String> {
            let values = self.float(at)?;
            if values.count() != channels {
                return Err(wrong(&values.shape()));
            }
            Ok(values.data.clone().reshape(column))
        };
        let (scale, bias, mean, variance) = (each(1)?, each(2)?, each(3)?, each(4)?);
        let scale = scale / (variance + self.number("epsilon", 1e-5)).sqrt();
        Ok(x.map(|x| (x - mean) * scale + bias))
    }

    pub(crate) fn gemm(&self) -> Result<Float, String> {
        let turned = |name: &str, matrix: Tensor<2>| match self.int(name, 0) {
            0 => matrix,
            _ => matrix.transpose(),
        };
        let a = turned("transA", self.x()?.as_rank()?);
        let b = turned("transB", self.float(1)?.as_rank()?);
        if a.dims()[1] != b.dims()[0] {
            return Err(format!("matrices of {:?} and {:?}", a.dims(), b.dims()));
        }
        limit(a.dims()[0].saturating_mul(b.dims()[1]), self.most)?;
        let (alpha, beta) = (self.number("alpha", 1.0), self.number("beta", 1.0));
        let mut y = Float::of(scaled(a.matmul(b), alpha));
        if self.given(2).is_some() {
            let bias = self.float(2)?.map(|bias| scaled(bias, beta));
            let shape = y.shape();
            y = y.with(&bias, self.most, |y, bias| y + bias)?;
            if y.shape() != shape {
                return Err(format!("a bias of {:?}", bias.shape()));
            }
        }
        Ok(y)
    }

    pub(crate) fn mat_mul(&self) -> Result<Float, String> {
        let (a, b) = (self.x()?, self.float(1)?);
        if a.rank < 2 || b.rank < 2 {
            return Err("vectors are not multiplied, only matrices".to_owned());
        }
        let (left, right) = (a.shape(), b.shape());
        let (inner, outputs) = (left[a.rank - 1], right[b.rank - 1]);
        if inner != right[b.rank - 2] {
            return Err(format!("matrices of {left:?} and {right:?}"));
        }
        let rows: usize = left[..a.rank - 1].iter().product();
        if b.rank == 2 && rows > 0 {
            // One matrix for all: as one product.
            limit(rows.saturating_mul(outputs), self.most)?;
            let flat: Tensor<2> = a.reshaped(&[rows, inner])?.as_rank()?;
            let mut shape = left;
            shape[a.rank - 1] = outputs;
            return Float::of(flat.matmul(b.as_rank::<2>()?)).reshaped(&shape);
        }
        let mut count = left[a.rank - 2].saturating_mul(outputs);
        for d in 0..RANK - 2 {
            let (m, n) = (a.data.dims()[d], b.data.dims()[d]);
            if m != n && m != 1 && n != 1 {
                return Err(format!("matrices of {left:?} and {right:?}"));
            }
            count = count.saturating_mul(m.max(n));
        }
        limit(count, self.most)?;
        Ok(Float {
            data: a.data.clone().matmul(b.data.clone()),
            rank: a.rank.max(b.rank),
        })
    }

    pub(crate) fn pair(&self) -> Result<Float, String> {
        let (a, b) = (self.x()?, self.float(1)?);
        let op = |a: Tensor<RANK>, b: Tensor<RANK>| match self.node.op.as_str() {
            "Add" => a + b,
            "Sub" => a - b,
            "Mul" => a * b,
            "Div" => a / b,
            "Pow" => a.powf(b),
            _ => activation::relu(a.clone()) - activation::relu(a.neg()) * b,
        };
        if self.node.op == "Pow" && b.count() == 1 {
            // A square has a gradient at 0 and below, which the general power has not.
            let exponent: Vec<f32> = super::draft::host(b.data.clone());
            match exponent[..] {
                [2.0] => return Ok(a.map(|a| a.clone() * a)),
                [exponent] => return Ok(a.map(|a| a.powf_scalar(exponent))),
                _ => {}
            }
        }
        a.with(b, self.most, op)
    }

    pub(crate) fn sum(&self) -> Result<Float, String> {
        let mut total = self.x()?.clone();
        for at in 1..self.inputs.len() {
            total = total.with(self.float(at)?, self.most, |a, b| a + b)?;
        }
        Ok(total)
    }

    pub(crate) fn softmax(&self) -> Result<Float, String> {
        let x = self.x()?;
        let log = self.node.op == "LogSoftmax";
        let op = |x: Tensor<RANK>, axis: usize| match log {
            true => activation::log_softmax(x, axis),
            false => activation::softmax(x, axis),
        };
        if self.opset >= 13 {
            let axis = x.axis(self.int("axis", -1))?;
            return Ok(x.map(|x| op(x, axis)));
        }
        // Until version 12, over all dimensions from the axis on.
        let axis = axis_of(self.int("axis", 1), x.rank)?;
        let shape = x.shape();
        let rows = shape[..axis].iter().product();
        let flat = x.reshaped(&[rows, shape[axis..].iter().product()])?;
        flat.map(|x| op(x, RANK - 1)).reshaped(&shape)
    }

    pub(crate) fn layer_norm(&self) -> Result<Float, String> {
        let x = self.x()?;
        let axis = axis_of(self.int("axis", -1), x.rank)?;
        let shape = x.shape();
        let size: usize = shape[axis..].iter().product();
        let flat = |at: usize| -> Result<Tensor<1>, String> {
            let values = self.float(at)?;
            if values.count() != size {
                return Err(format!(
                    "tensors of {:?} for {:?}",
                    values.shape(),
                    &shape[axis..]
                ));
            }
            values.reshaped(&[size])?.as_rank()
        };
        let bias = if self.given(2).is_some() {
            Some(flat(2)?)
        } else {
            None
        };
        let rows: Tensor<2> = x
            .reshaped(&[shape[..axis].iter().product(), size])?
            .as_rank()?;
        let y = layer_norm(rows, flat(1)?, bias, self.number("epsilon", 1e-5));
        Float::of(y).reshaped(&shape)
    }

    pub(crate) fn clip(&self) -> Result<Float, String> {
        let bound = |at: usize, name: &str| -> Result<Option<f64>, String> {
            match (self.given(at), self.node.attributes.get(name)) {
                (Some(Flow::Float(bound)), _) if bound.count() == 1 => {
                    let values: Vec<f32> = super::draft::host(bound.data.clone());
                    Ok(values.first().map(|&value| f64::from(value)))
                }
                (Some(_), _) => Err(format!("its `{name}` is not one number")),
                (None, Some(Attribute::Float(value))) => Ok(Some(f64::from(*value))),
                _ => Ok(None),
            }
        };
        let (low, high) = (bound(1, "min")?, bound(2, "max")?);
        Ok(self.x()?.map(|mut x| {
            if let Some(low) = low {
                x = x.clamp_min(low);
            }
            match high {
                Some(high) => x.clamp_max(high),
                None => x,
            }
        }))
    }

    pub(crate) fn reduce(&self) -> Result<Float, String> {
        let x = self.x()?;
        let axes = match self.ints(1, "axes")? {
            Some(axes) if !axes.is_empty() => axes,
            _ => (0..x.rank as i64).collect(),
        };
        let axes = axes.into_iter().map(|axis| axis_of(axis, x.rank));
        let axes = axes.collect::<Result<Vec<_>, _>>()?;
        let front = RANK - x.rank;
        let reduced = x.map(|x| {
            axes.iter().fold(x, |x, axis| match self.node.op.as_str() {
                "ReduceMean" => x.mean_dim(front + axis),
                "ReduceSum" => x.sum_dim(front + axis),
                _ => x.max_dim(front + axis),
            })
        });
        if self.int("keepdims", 1) != 0 {
            return Ok(reduced);
        }
        let left = reduced.shape().into_iter().enumerate();
        let left = left
            .filter(|(axis, _)| !axes.contains(axis))
            .map(|(_, size)| size);
        reduced.reshaped(&left.collect::<Vec<_>>())
    }

    pub(crate) fn reshape(&self) -> Result<Float, String> {
        let x = self.x()?;
        let shape = x.shape();
        let needed = |name: &str| format!("its `{name}` is missing");
        let target: Vec<usize> = match self.node.op.as_str() {
            "Flatten" => {
                let axis = self.int("axis", 1);
                let axis = if axis < 0 { axis + x.rank as i64 } else { axis };
                let axis = usize::try_from(axis).ok().filter(|&axis| axis <= x.rank);
                let axis = axis.ok_or("an axis that is not there")?;
                vec![
                    shape[..axis].iter().product(),
                    shape[axis..].iter().product(),
                ]
            }
            "Reshape" => {
                let wanted = self.ints(1, "shape")?.ok_or_else(|| needed("shape"))?;
                sizes_of(&wanted, &shape, self.int("allowzero", 0) != 0)?
            }
            "Squeeze" => {
                // Without axes the batch would go where it has one image.
                let axes = self
                    .ints(1, "axes")?
                    .ok_or("without `axes` is not computed")?;
                let axes = axes.into_iter().map(|axis| axis_of(axis, x.rank));
                let axes = axes.collect::<Result<Vec<_>, _>>()?;
                let left = shape.iter().enumerate();
                left.filter(|(axis, _)| !axes.contains(axis))
                    .map(|(_, &size)| size)
                    .collect()
            }
            "Unsqueeze" => {
                let axes = self.ints(1, "axes")?.ok_or_else(|| needed("axes"))?;
                let rank = x.rank + axes.len();
                let axes = axes.into_iter().map(|axis| axis_of(axis, rank));
                let axes = axes.collect::<Result<Vec<_>, _>>()?;
                let mut old = shape.iter();
                let new = (0..rank).map(|axis| match axes.contains(&axis) {
                    true => 1,
                    false => old.next().copied().unwrap_or(1),
                });
                new.collect()
            }
            _ => return self.expand(x),
        };
        x.reshaped(&target)
    }

    fn expand(&self, x: &Float) -> Result<Float, String> {
        let wanted = self.ints(1, "shape")?.ok_or("its shape is missing")?;
        let wanted: Option<Vec<usize>> = wanted
            .iter()
            .map(|&size| usize::try_from(size).ok())
            .collect();
        let wanted = wanted
            .filter(|shape| shape.len() <= RANK)
            .ok_or("to a shape that cannot be")?;
        let mut count = 1usize;
        let mut data = x.data.clone();
        for (back, &size) in wanted.iter().rev().enumerate() {
            let axis = RANK - 1 - back;
            let old = data.dims()[axis];
            if old != size && old != 1 && size != 1 {
                return Err(format!("{:?} does not become {wanted:?}", x.shape()));
            }
            count = count.saturating_mul(old.max(size));
            limit(count, self.most)?;
            if old == 1 && size != 1 {
                if size == 0 {
                    return Err("to nothing".to_owned());
                }
                // A copy: what is only seen as larger is masked wrong by one backend.
                data = data.repeat_dim(axis, size);
            }
        }
        Ok(Float {
            data,
            rank: x.rank.max(wanted.len()),
        })
    }

    pub(crate) fn transpose(&self) -> Result<Float, String> {
        let x = self.x()?;
        let order: Vec<usize> = match self.node.attributes.get("perm") {
            Some(Attribute::Ints(perm)) => perm
                .iter()
                .map(|&axis| axis_of(axis, x.rank))
                .collect::<Result<_, _>>()?,
            _ => (0..x.rank).rev().collect(),
        };
        let mut seen = order.clone();
        seen.sort_unstable();
        if seen != (0..x.rank).collect::<Vec<_>>() {
            return Err(format!("`perm` = {order:?} of {} dimensions", x.rank));
        }
        let front = RANK - x.rank;
        let axes = std::array::from_fn::<usize, RANK, _>(|at| match at.checked_sub(front) {
            Some(at) => front + order[at],
            None => at,
        });
        Ok(x.map(|x| x.permute(axes)))
    }

    pub(crate) fn concat(&self) -> Result<Float, String> {
        let first = self.x()?;
        let axis = first.axis(self.int("axis", 0))?;
        let mut parts = Vec::new();
        for at in 0..self.inputs.len() {
            let part = self.float(at)?;
            let same = (0..RANK).all(|d| d == axis || part.data.dims()[d] == first.data.dims()[d]);
            if !same || part.rank != first.rank {
                return Err(format!(
                    "{:?} and {:?} on axis {axis}",
                    first.shape(),
                    part.shape()
                ));
            }
            parts.push(part.data.clone());
        }
        limit(
            parts
                .iter()
                .map(|part| part.dims().iter().product::<usize>())
                .sum(),
            self.most,
        )?;
        Ok(Float {
            data: Tensor::cat(parts, axis),
            rank: first.rank,
        })
    }

    pub(crate) fn gather(&self) -> Result<Float, String> {
        let x = self.x()?;
        let axis = x.axis(self.int("axis", 0))?;
        let Some(Flow::Ints(places)) = self.given(1) else {
            return Err("its places are not constant".to_owned());
        };
        let size = x.data.dims()[axis];
        let at = places.values.iter().map(|&place| axis_of(place, size));
        let at = at.collect::<Result<Vec<_>, _>>()?;
        if at.is_empty() {
            return Err("nothing is gathered".to_owned());
        }
        limit(
            (x.count() / size.max(1)).saturating_mul(at.len()),
            self.most,
        )?;
        let parts = at
            .iter()
            .map(|&place| x.data.clone().narrow(axis, place, 1));
        let gathered = Float {
            data: Tensor::cat(parts.collect(), axis),
            rank: x.rank,
        };
        if places.is_list {
            return Ok(gathered);
        }
        let mut shape = gathered.shape();
        shape.remove(axis - (RANK - x.rank));
        gathered.reshaped(&shape)
    }

    pub(crate) fn slice(&self) -> Result<Float, String> {
        let x = self.x()?;
        let starts = self.ints(1, "starts")?.ok_or("its `starts` are missing")?;
        let ends = self.ints(2, "ends")?.ok_or("its `ends` are missing")?;
        let axes = self
            .ints(3, "axes")?
            .unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = self
            .ints(4, "steps")?
            .unwrap_or_else(|| vec![1; starts.len()]);
        if [ends.len(), axes.len(), steps.len()] != [starts.len(); 3] {
            return Err("its inputs are of several lengths".to_owned());
        }
        let mut data = x.data.clone();
        for (((start, end), axis), step) in starts.into_iter().zip(ends).zip(axes).zip(steps) {
            if step != 1 {
                return Err("steps other than 1 are not computed".to_owned());
            }
            let axis = x.axis(axis)?;
            let (from, to) = span(start, end, data.dims()[axis]);
            if from >= to {
                return Err("nothing is left".to_owned());
            }
            data = data.narrow(axis, from, to - from);
        }
        Ok(Float { data, rank: x.rank })
    }

    pub(crate) fn split(&self) -> Result<Vec<Float>, String> {
        let x = self.x()?;
        let axis = x.axis(self.int("axis", 0))?;
        let size = x.data.dims()[axis];
        let lengths: Vec<usize> = match self.ints(1, "split")? {
            Some(lengths) => lengths
                .iter()
                .map(|&n| usize::try_from(n).unwrap_or(0))
                .collect(),
            None => {
                let each = size.div_ceil(self.outputs.max(1)).max(1);
                (0..self.outputs)
                    .map(|i| each.min(size.saturating_sub(i * each)))
                    .collect()
            }
        };
        let total = lengths
            .iter()
            .try_fold(0usize, |n, &length| n.checked_add(length));
        if total != Some(size) || lengths.contains(&0) {
            return Err(format!("{size} into {lengths:?}"));
        }
        let mut from = 0;
        let parts = lengths.into_iter().map(|length| {
            let data = x.data.clone().narrow(axis, from, length);
            from += length;
            Float { data, rank: x.rank }
        });
        Ok(parts.collect())
    }

    pub(crate) fn pad(&self) -> Result<Float, String> {
        let x = self.x()?;
        if !matches!(self.text("mode"), "" | "constant") {
            return Err(format!("the mode `{}` is not computed", self.text("mode")));
        }
        if self.given(3).is_some() {
            return Err("`axes` are not computed".to_owned());
        }
        let value = match self.given(2) {
            Some(Flow::Float(value)) if value.count() == 1 => {
                super::draft::host(value.data.clone())[0]
            }
            Some(_) => return Err("its value is not one number".to_owned()),
            None => self.number("value", 0.0) as f32,
        };
        let pads = self.ints(1, "pads")?.ok_or("its `pads` are missing")?;
        if pads.len() != 2 * x.rank || pads.iter().any(|pad| !(0..=4096).contains(pad)) {
            return Err(format!("`pads` = {pads:?}"));
        }
        let mut pairs = [(0, 0); RANK];
        for axis in 0..x.rank {
            pairs[RANK - x.rank + axis] = (pads[axis] as usize, pads[axis + x.rank] as usize);
        }
        let sizes = x.data.dims().into_iter().zip(&pairs);
        let count = sizes.fold(1usize, |n, (size, (before, after))| {
            n.saturating_mul(size + before + after)
        });
        limit(count, self.most)?;
        Ok(x.map(|x| x.pad(pairs, PadMode::Constant(value))))
    }

    pub(crate) fn unary(&self) -> Result<Float, String> {
        let x = self.x()?;
        let tanh_form = self.text("approximate") == "tanh";
        Ok(x.map(|x| match self.node.op.as_str() {
            "Relu" => activation::relu(x),
            "LeakyRelu" => activation::leaky_relu(x, self.number("alpha", 0.01)),
            "Elu" => {
                // exp of the positive part only would overflow where its result is not taken.
                let low = x.clone().clamp_max(0.0).exp().sub_scalar(1.0);
                activation::relu(x) + low.mul_scalar(self.number("alpha", 1.0))
            }
            "Sigmoid" => activation::sigmoid(x),
            "HardSigmoid" => {
                activation::hard_sigmoid(x, self.number("alpha", 0.2), self.number("beta", 0.5))
            }
            "HardSwish" => activation::hard_swish(x),
            "Softplus" => activation::softplus(x, 1.0),
            "Gelu" if tanh_form => activation::gelu_approximate(x),
            "Gelu" => activation::gelu(x),
            "Tanh" => x.tanh(),
            "Erf" => x.erf(),
            "Exp" => x.exp(),
            "Log" => x.log(),
            "Sqrt" => x.sqrt(),
            "Abs" => x.abs(),
            "Neg" => x.neg(),
            _ => x.recip(),
        }))
    }

    /// What shapes need, where all inputs are whole numbers; `None` for what is of tensors.
    pub(crate) fn on_ints(&self) -> Result<Option<Flow>, String> {
        let Some(Flow::Ints(x)) = self.given(0) else {
            return Ok(None);
        };
        let other = |at: usize| match self.given(at) {
            Some(Flow::Ints(ints)) => Ok(ints),
            _ => Err(format!("its input {at} is no whole numbers")),
        };
        let values = match self.node.op.as_str() {
            "Identity" | "Cast" => x.clone(),
            "Squeeze" | "Reshape" => Ints {
                values: x.values.clone(),
                is_list: self.node.op == "Reshape",
            },
            "Unsqueeze" => Ints::list(x.values.clone()),
            "Gather" => {
                let places = other(1)?;
                let at = places
                    .values
                    .iter()
                    .map(|&place| axis_of(place, x.values.len()));
                let at = at.collect::<Result<Vec<_>, _>>()?;
                Ints {
                    values: at.into_iter().map(|at| x.values[at]).collect(),
                    is_list: places.is_list,
                }
            }
            "Concat" => {
                let mut values = Vec::new();
                for at in 0..self.inputs.len() {
                    values.extend(&other(at)?.values);
                    limit(values.len(), 1 << 16)?;
                }
                Ints::list(values)
            }
            "Slice" => {
                let bound = |at: usize, name: &str| -> Result<i64, String> {
                    let values = self.ints(at, name)?.unwrap_or_default();
                    values
                        .first()
                        .copied()
                        .ok_or_else(|| format!("its `{name}` are missing"))
                };
                let (from, to) = span(bound(1, "starts")?, bound(2, "ends")?, x.values.len());
                Ints::list(x.values[from..to.max(from)].to_vec())
            }
            "Add" | "Sub" | "Mul" | "Div" => {
                let y = other(1)?;
                let (a, b) = (&x.values, &y.values);
                let count = a.len().max(b.len());
                if [a.len(), b.len()].iter().any(|&n| n != count && n != 1) {
                    return Err(format!("{} and {} whole numbers", a.len(), b.len()));
                }
                let op = |a: i64, b: i64| match self.node.op.as_str() {
                    "Add" => a.checked_add(b),
                    "Sub" => a.checked_sub(b),
                    "Mul" => a.checked_mul(b),
                    _ => a.checked_div(b),
                };
                let pick = |of: &[i64], i: usize| of[if of.len() == 1 { 0 } else { i }];
                let values = (0..count).map(|i| op(pick(a, i), pick(b, i)));
                let values = values.collect::<Option<Vec<_>>>();
                Ints {
                    values: values.ok_or("a division by 0, or too large a number")?,
                    is_list: x.is_list || y.is_list,
                }
            }
            _ => return Err("is not computed of whole numbers".to_owned()),
        };
        Ok(Some(Flow::Ints(values)))
    }
}

/// The sizes that `Reshape` asks for: 0 keeps one, -1 takes what is left.
fn sizes_of(wanted: &[i64], old: &[usize], zero_is_zero: bool) -> Result<Vec<usize>, String> {
    let wrong = || format!("{old:?} to {wanted:?}");
    let mut sizes = Vec::new();
    let mut open = None;
    for (axis, &size) in wanted.iter().enumerate() {
        sizes.push(match size {
            -1 if open.is_none() => {
                open = Some(axis);
                1
            }
            0 if !zero_is_zero => *old.get(axis).ok_or_else(wrong)?,
            size => usize::try_from(size).map_err(|_| wrong())?,
        });
    }
    if let Some(axis) = open {
        let known = sizes
            .iter()
            .try_fold(1usize, |n, &size| n.checked_mul(size));
        let known = known.filter(|&known| known > 0).ok_or_else(wrong)?;
        sizes[axis] = old.iter().product::<usize>() / known;
    }
    Ok(sizes)
}

/// `start` and `end` of a slice within `size`; negative ones count from the end.
fn span(start: i64, end: i64, size: usize) -> (usize, usize) {
    let at = |place: i64| {
        let place = if place < 0 {
            place.saturating_add(size as i64)
        } else {
            place
        };
        place.clamp(0, size as i64) as usize
    };
    (at(start), at(end))
}

fn scaled<const D: usize>(x: Tensor<D>, factor: f64) -> Tensor<D> {
    if factor == 1.0 {
        x
    } else {
        x.mul_scalar(factor)
    }
}

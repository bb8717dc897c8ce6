//! The shortest way from a point of a box to a hyperplane, inside the box.

use burn::tensor::{Tensor, TensorData};
use gauntlet_kernels::host::{each_row, is_host, part, sum_of, upload, values};
use gauntlet_kernels::perturb::{l1_norms, l2_norms, linf_norms, move_to_hyperplane, per_sample};
use gauntlet_kernels::reduce::row_sums;

use crate::Norm;

/// Divisors are at least this, and quotients at most its inverse: no division gives an infinity or a NaN.
const TINY: f32 = 1e-30;

/// Newton steps. In `f32` the root is reached after 2 to 5 where the hyperplane cuts well into the box (3072 values, normal or
/// heavy-tailed normals), and after 17 where it cuts off a millionth of it.
const STEPS: usize = 18;

/// Halvings of an interval of logarithms 69 long, to 4e-6: what `f32` tells apart at its far end.
const HALVINGS: usize = 24;

/// A linear function for each row, known at a point `x`: at `x + move` it is `gap + <normal, move>`. The largest entry of
/// `normal` is scaled to 1, which leaves the hyperplane where it is: squares of small gradients do not underflow.
#[derive(Clone, Debug)]
pub(crate) struct Hyperplane {
    /// Value at `x`: `[batch]`.
    pub(crate) gap: Tensor<1>,
    /// `[batch, values]`; a row of zeros stays one.
    pub(crate) normal: Tensor<2>,
}

impl Hyperplane {
    pub(crate) fn new(gap: Tensor<1>, normal: Tensor<2>) -> Self {
        if is_host(&normal.device()) {
            return Self::by_rows(gap, normal);
        }
        let scale = linf_norms(normal.clone()).clamp_min(TINY);
        Self {
            gap: (gap / scale.clone()).clamp(-TINY.recip(), TINY.recip()),
            normal: normal.clone() / per_sample(scale, normal.dims()),
        }
    }

    /// [`Hyperplane::new`] row by row.
    fn by_rows(gap: Tensor<1>, normal: Tensor<2>) -> Self {
        let (dims, device) = (normal.dims(), normal.device());
        let (mut gap, mut normal) = (values(gap), values(normal));
        let most = TINY.recip();
        for (gap, normal) in gap.iter_mut().zip(normal.chunks_exact_mut(dims[1].max(1))) {
            let scale = normal.iter().fold(TINY, |most, n| n.abs().max(most));
            *gap = (*gap / scale).clamp(-most, most);
            normal.iter_mut().for_each(|n| *n /= scale);
        }
        Self {
            gap: Tensor::from_data(TensorData::new(gap, [dims[0]]), &device),
            normal: Tensor::from_data(TensorData::new(normal, dims), &device),
        }
    }

    /// The same function, known at `to` instead of `from`.
    pub(crate) fn seen_from(&self, from: Tensor<2>, to: Tensor<2>) -> Self {
        let change = row_sums(self.normal.clone() * (to - from));
        Self {
            gap: self.gap.clone() + change,
            normal: self.normal.clone(),
        }
    }

    /// How far it is from the point it is known at, without a box: `[batch]`. Far away where the normal is zero.
    pub(crate) fn distance(&self, norm: Norm) -> Tensor<1> {
        let dual = match norm {
            Norm::Linf => l1_norms(self.normal.clone()),
            Norm::L2 => l2_norms(self.normal.clone()),
            // Where the normal is not zero.
            Norm::L1 => linf_norms(self.normal.clone()),
            Norm::L0 => unimplemented!("hyperplanes in {norm}"),
        };
        self.gap.clone().abs() / dual.clamp_min(1e-6)
    }

    /// Both batches, one behind the other.
    pub(crate) fn stacked(self, other: Self) -> Self {
        Self {
            gap: Tensor::cat(vec![self.gap, other.gap], 0),
            normal: Tensor::cat(vec![self.normal, other.normal], 0),
        }
    }
}

/// The shortest `move` of each row with `x + move` in the box and on the hyperplane, `gap + <normal, move> = 0` (Croce & Hein
/// 2020, equation 4 and its appendix). Where the box does not reach the hyperplane, the move to the point of the box that is
/// nearest to it along the normal: all the way to the faces.
///
/// # Shapes
/// `x: [batch, values]` in the box, the result alike.
pub(crate) fn move_to(
    hyperplane: Hyperplane,
    x: Tensor<2>,
    norm: Norm,
    bounds: (f32, f32),
) -> Tensor<2> {
    if is_host(&x.device()) {
        move_on_host(hyperplane, x, norm, bounds)
    } else {
        move_on_device(hyperplane, x, norm, bounds)
    }
}

/// [`move_to`] row by row on the host: a row is done when its own root is found, after three or four passes over values that are in
/// the cache, where whole tensors go through all passes of the hardest row.
fn move_on_host(hyperplane: Hyperplane, x: Tensor<2>, norm: Norm, bounds: (f32, f32)) -> Tensor<2> {
    let (like, dims) = (x.clone(), x.dims());
    let (mut moves, normals) = (values(x), values(hyperplane.normal));
    let gaps = values(hyperplane.gap);
    // The place of a point takes its move.
    each_row(&mut moves, dims, |row, x| {
        let mut way = Row::default();
        let moved = way.moved(x, part(&normals, row, x.len()), gaps[row], norm, bounds);
        x.copy_from_slice(moved);
    });
    upload(moves, &like)
}

/// One row of a problem, and its solution.
#[derive(Default)]
pub(crate) struct Row {
    /// `|normal|`
    size: Vec<f32>,
    /// How far each value can move.
    room: Vec<f32>,
    /// How much of the gap there is to close.
    need: f32,
    /// How far each value moves.
    lengths: Vec<f32>,
    /// Times at which values meet their faces.
    stop: Vec<f32>,
}

impl Row {
    /// The move from `x` to where `gap + <normal, move>` is zero, or as near to it as the box reaches.
    pub(crate) fn moved(
        &mut self,
        x: &[f32],
        normal: &[f32],
        gap: f32,
        norm: Norm,
        bounds: (f32, f32),
    ) -> &[f32] {
        self.set(x, normal, gap, bounds);
        match norm {
            Norm::Linf => self.all_at_once(|_| 1.0),
            Norm::L2 => self.all_at_once(|size| size),
            Norm::L1 => self.largest_first(),
            Norm::L0 => unimplemented!("hyperplanes in {norm}"),
        }
        for (length, toward) in self.lengths.iter_mut().zip(normal) {
            *length = if *toward * gap < 0.0 {
                *length
            } else {
                -*length
            };
        }
        &self.lengths
    }

    fn set(&mut self, x: &[f32], normal: &[f32], gap: f32, (low, high): (f32, f32)) {
        self.need = gap.abs();
        self.size.clear();
        self.size.extend(normal.iter().map(|w| w.abs()));
        self.room.clear();
        self.room
            .extend(x.iter().zip(normal).map(|(x, w)| match *w * gap {
                slope if slope < 0.0 => high - x,
                slope if slope > 0.0 => x - low,
                _ => 0.0,
            }));
        self.lengths.clear();
        self.lengths.resize(x.len(), 0.0);
    }

    /// As the function of this name for tensors, until Newton's method stands still.
    fn all_at_once(&mut self, speed: impl Fn(f32) -> f32) {
        self.stop.clear();
        let stops = self.room.iter().zip(&self.size);
        self.stop
            .extend(stops.map(|(room, size)| room / speed(*size).max(TINY)));
        let mut time = 0.0f32;
        for _ in 0..STEPS {
            let (stop, size, room) = (&self.stop[..], &self.size[..], &self.room[..]);
            let count = stop.len().min(size.len()).min(room.len());
            let slope = sum_of(count, |i| {
                let weight = size[i] * speed(size[i]);
                if stop[i] > time { weight } else { 0.0 }
            });
            let closed = sum_of(count, |i| {
                let at_stop = size[i] * room[i];
                if stop[i] > time { 0.0 } else { at_stop }
            });
            let root = (self.need - closed) / slope.max(TINY);
            if root <= time {
                break;
            }
            time = root.min(TINY.recip());
        }
        let values = self.size.iter().zip(&self.room);
        for (length, (size, room)) in self.lengths.iter_mut().zip(values) {
            *length = (speed(*size) * time).min(*room);
        }
    }

    /// As the function of this name for tensors, by sorting.
    fn largest_first(&mut self) {
        let mut order: Vec<usize> = (0..self.size.len()).collect();
        order.sort_unstable_by(|&a, &b| self.size[b].total_cmp(&self.size[a]));
        let mut left = self.need;
        for i in order {
            if left <= 0.0 || self.size[i] <= TINY {
                break;
            }
            self.lengths[i] = self.room[i].min(left / self.size[i]);
            left -= self.lengths[i] * self.size[i];
        }
    }
}

/// The sum of each row, in a column: `[batch, values]` to `[batch, 1]`.
pub(crate) fn sums(x: Tensor<2>) -> Tensor<2> {
    row_sums(x).unsqueeze_dim(1)
}

/// [`move_to`] as one kernel or in tensor operations, for devices that a round trip to the host would hold up.
fn move_on_device(
    hyperplane: Hyperplane,
    x: Tensor<2>,
    norm: Norm,
    bounds: (f32, f32),
) -> Tensor<2> {
    if matches!(norm, Norm::Linf | Norm::L2) {
        let Hyperplane { gap, normal } = &hyperplane;
        let along_normal = norm == Norm::L2;
        let moves = move_to_hyperplane(&x, normal, gap, bounds, along_normal, STEPS as u32);
        if let Some(moves) = moves {
            return moves;
        }
    }
    in_operations(hyperplane, x, norm, bounds)
}

fn in_operations(
    hyperplane: Hyperplane,
    x: Tensor<2>,
    norm: Norm,
    bounds: (f32, f32),
) -> Tensor<2> {
    let dims = x.dims();
    let toward = hyperplane.normal * per_sample(hyperplane.gap.clone().sign().neg(), dims);
    let need = per_sample(hyperplane.gap.abs(), dims);
    let (direction, size) = (toward.clone().sign(), toward.abs());
    let up = (x.clone().neg() + bounds.1) * direction.clone().clamp_min(0.0);
    let down = (x - bounds.0) * direction.clone().neg().clamp_min(0.0);
    let room = up + down;
    let lengths = match norm {
        Norm::Linf => all_at_once(size.ones_like(), size, room, need),
        Norm::L2 => all_at_once(size.clone(), size, room, need),
        Norm::L1 => largest_first(size, room, need),
        Norm::L0 => unimplemented!("hyperplanes in {norm}"),
    };
    direction * lengths
}

/// How far each value moves in L∞ and L2: at speed 1 (L∞) or `|normal|` (L2), until it meets its face. How much of the gap is
/// closed after time `t` is then a concave, piecewise linear function of `t`, the sum of `weight * min(t, stop)`. The paper finds
/// the time at which the gap is closed by sorting the stops; Newton's method from 0 ends at the same root without sorting, which
/// burn's GPU backends do on the host.
fn all_at_once(speed: Tensor<2>, size: Tensor<2>, room: Tensor<2>, need: Tensor<2>) -> Tensor<2> {
    let stop = room.clone() / speed.clone().clamp_min(TINY);
    let weight = size.clone() * speed.clone();
    let closed_at_stop = size * room.clone();

    let mut time = need.zeros_like();
    for _ in 0..STEPS {
        let stopped = (stop.clone() - time.clone()).lower_equal_elem(0.0);
        let slope = sums(weight.clone().mask_fill(stopped.clone(), 0.0));
        let closed = sums(closed_at_stop.clone().mask_fill(stopped.bool_not(), 0.0));
        let root = (need.clone() - closed) / slope.clamp_min(TINY);
        time = time.max_pair(root).clamp_max(TINY.recip());
    }
    (speed * time).min_pair(room)
}

/// How far each value moves in L1: a unit of length closes most of the gap where `|normal|` is largest, so values go to their faces
/// in that order, and the one at which the gap closes goes as far as it must.
///
/// Its `|normal|` is bisected, on a logarithmic scale, instead of sorted for. Values that are closer to it than the last interval
/// share what is left: the result is on the hyperplane, and longer than the shortest by that width at most.
fn largest_first(size: Tensor<2>, room: Tensor<2>, need: Tensor<2>) -> Tensor<2> {
    let closes = size.clone() * room.clone();
    let rank = size.clamp_min(TINY).log();
    let below = |cut: &Tensor<2>| (rank.clone() - cut.clone()).lower_equal_elem(0.0);
    let closed = |left_out| sums(closes.clone().mask_fill(left_out, 0.0));
    // What is above `high` does not close the gap, what is above `low` does, if anything does.
    let mut low = need.zeros_like().add_scalar(TINY.ln());
    let mut high = need.zeros_like();
    for _ in 0..HALVINGS {
        let middle = (low.clone() + high.clone()).mul_scalar(0.5);
        let enough = closed(below(&middle)).greater_equal(need.clone());
        low = low.mask_where(enough.clone(), middle.clone());
        high = high.mask_where(enough.bool_not(), middle);
    }
    let first = below(&high).bool_not();
    let others = below(&low).bool_or(first.clone());
    let left = need - closed(first.clone().bool_not());
    let share = (left / closed(others.clone()).clamp_min(TINY)).clamp(0.0, 1.0);
    let last = (room.clone() * share).mask_fill(others, 0.0);
    last.mask_where(first, room)
}

#[cfg(test)]
mod tests {
    use burn::tensor::Device;
    use gauntlet_kernels::{NoiseKey, Stream};

    use super::*;
    use crate::testing::values;

    const ROWS: usize = 300;
    const N: usize = 7;

    fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
        Tensor::from_data(TensorData::new(values, shape), &Device::flex())
    }

    /// Random points (a third of the values on a face), normals (a tenth of the entries zero, widely different sizes) and gaps:
    /// some close, some just within reach, some out of reach.
    fn problems() -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let key = NoiseKey::new(1, Stream::EvalAttack);
        let rows: Vec<u32> = (0..ROWS as u32).collect();
        let device = Device::flex();
        let draw =
            |r, low, high| values(key.restart(r).uniform(&rows, [ROWS, N], low, high, &device));
        let x = draw(0, -0.25, 1.25)
            .into_iter()
            .map(|v| v.clamp(0.0, 1.0))
            .collect();
        let sizes = draw(1, -4.0, 0.0);
        let normal = draw(2, -1.0, 1.0)
            .iter()
            .zip(&sizes)
            .map(|(v, s)| {
                if v.abs() < 0.1 {
                    0.0
                } else {
                    v.signum() * 10f32.powf(*s)
                }
            })
            .collect();
        let gap = values(key.restart(3).uniform(&rows, [ROWS], -0.3, 0.3, &device));
        (x, normal, gap)
    }

    type Way = fn(Hyperplane, Tensor<2>, Norm, (f32, f32)) -> Tensor<2>;

    const WAYS: [Way; 2] = [move_on_host, move_on_device];

    fn moves(x: &[f32], normal: &[f32], gap: &[f32], norm: Norm) -> Vec<f32> {
        moves_by(move_to, x, normal, gap, norm)
    }

    fn moves_by(way: Way, x: &[f32], normal: &[f32], gap: &[f32], norm: Norm) -> Vec<f32> {
        let rows = gap.len();
        let n = x.len() / rows;
        let plane = Hyperplane::new(
            tensor(gap.to_vec(), [rows]),
            tensor(normal.to_vec(), [rows, n]),
        );
        values(way(plane, tensor(x.to_vec(), [rows, n]), norm, (0.0, 1.0)))
    }

    fn size(delta: &[f64], norm: Norm) -> f64 {
        match norm {
            Norm::Linf => delta.iter().fold(0.0, |most, d| most.max(d.abs())),
            Norm::L2 => delta.iter().map(|d| d * d).sum::<f64>().sqrt(),
            Norm::L1 => delta.iter().map(|d| d.abs()).sum(),
            Norm::L0 => unreachable!(),
        }
    }

    /// The optimality conditions say that the solution is `clip(x - t * direction)` for one `t`: bisected in `f64`.
    fn bisected(x: &[f64], normal: &[f64], gap: f64, norm: Norm) -> (Vec<f64>, bool) {
        let at = |t: f64| -> Vec<f64> {
            let step = |w: f64| match norm {
                Norm::Linf if w == 0.0 => 0.0,
                Norm::Linf => w.signum(),
                Norm::L2 => w,
                Norm::L1 | Norm::L0 => unreachable!(),
            };
            x.iter()
                .zip(normal)
                .map(|(x, w)| (x - t * gap.signum() * step(*w)).clamp(0.0, 1.0) - x)
                .collect()
        };
        let left = |t: f64| {
            let closed: f64 = at(t).iter().zip(normal).map(|(d, w)| d * w).sum();
            (gap + closed) * gap.signum()
        };
        let (mut low, mut high) = (0.0, 1e9);
        let reachable = left(high) <= 0.0;
        for _ in 0..200 {
            let middle = 0.5 * (low + high);
            if left(middle) > 0.0 {
                low = middle;
            } else {
                high = middle;
            }
        }
        (at(high), reachable)
    }

    /// A knapsack: values sorted by what they close for their length, the largest first.
    fn sorted(x: &[f64], normal: &[f64], gap: f64) -> (Vec<f64>, bool) {
        let mut order: Vec<usize> = (0..x.len()).collect();
        order.sort_by(|a, b| normal[*b].abs().total_cmp(&normal[*a].abs()));
        let (mut left, mut delta) = (gap.abs(), vec![0.0; x.len()]);
        for i in order.into_iter().filter(|&i| normal[i] != 0.0) {
            let up = (normal[i] * gap) < 0.0;
            let room = if up { 1.0 - x[i] } else { x[i] };
            let length = room.min(left / normal[i].abs());
            delta[i] = if up { length } else { -length };
            left -= length * normal[i].abs();
        }
        (delta, left <= 1e-12)
    }

    #[test]
    fn projections_are_in_the_box_on_the_hyperplane_and_shortest() {
        let (x, normal, gap) = problems();
        let mut rng = NoiseKey::new(2, Stream::EvalAttack);
        let norms = [Norm::Linf, Norm::L2, Norm::L1];
        for (norm, way) in norms.iter().flat_map(|&norm| WAYS.map(|way| (norm, way))) {
            let found = moves_by(way, &x, &normal, &gap, norm);
            let mut reached = 0;
            for row in 0..ROWS {
                let part = |all: &[f32]| -> Vec<f64> {
                    all[row * N..(row + 1) * N]
                        .iter()
                        .map(|&v| f64::from(v))
                        .collect()
                };
                let (x, w, d, gap) = (part(&x), part(&normal), part(&found), f64::from(gap[row]));
                let (best, reachable) = match norm {
                    Norm::L1 => sorted(&x, &w, gap),
                    _ => bisected(&x, &w, gap, norm),
                };
                let value = |d: &[f64]| gap + d.iter().zip(&w).map(|(d, w)| d * w).sum::<f64>();
                assert!(
                    x.iter()
                        .zip(&d)
                        .all(|(x, d)| (-1e-6..=1.0 + 1e-6).contains(&(x + d)))
                );
                assert!((value(&d) - value(&best)).abs() < 1e-5, "{norm} row {row}");
                assert!(
                    size(&d, norm) <= size(&best, norm) + 1e-5,
                    "{norm} row {row}"
                );
                if !reachable {
                    continue;
                }
                reached += 1;
                assert!(value(&d).abs() < 1e-4, "{norm} row {row}");
                // Random points of the box on either side; where the way between them crosses is no nearer.
                rng = rng.at(row as u32, 0);
                let points = values(rng.uniform(&[0], [1, 200 * N], 0.0, 1.0, &Device::flex()));
                for pair in points.chunks_exact(2 * N) {
                    let shift = |p: &[f32]| -> Vec<f64> {
                        p.iter().zip(&x).map(|(p, x)| f64::from(*p) - x).collect()
                    };
                    let (a, b) = (shift(&pair[..N]), shift(&pair[N..]));
                    let share = value(&a) / (value(&a) - value(&b));
                    if !(0.0..=1.0).contains(&share) {
                        continue;
                    }
                    let crossing: Vec<f64> =
                        a.iter().zip(&b).map(|(a, b)| a + share * (b - a)).collect();
                    assert!(
                        size(&d, norm) <= size(&crossing, norm) + 1e-6,
                        "{norm} row {row}"
                    );
                }
            }
            assert!((ROWS / 3..ROWS).contains(&reached), "{reached} reachable");
        }
    }

    #[test]
    fn away_from_the_faces_it_is_the_closed_form() {
        let x = [0.5f32; 3];
        let normal = [1.0f32, -2.0, 0.5];
        // |gap| / |normal|_1 in each value, and gap * normal / |normal|_2^2.
        let linf = moves(&x, &normal, &[0.35], Norm::Linf);
        for (d, expected) in linf.iter().zip([-0.1, 0.1, -0.1]) {
            assert!((d - expected).abs() < 1e-6, "{linf:?}");
        }
        let l2 = moves(&x, &normal, &[-0.525], Norm::L2);
        for (d, expected) in l2.iter().zip([0.1, -0.2, 0.05]) {
            assert!((d - expected).abs() < 1e-6, "{l2:?}");
        }
        // gap / max |normal| in one value; beyond its face the next one goes on.
        let l1 = moves(&x, &normal, &[0.6], Norm::L1);
        assert!(l1[0] == 0.0 && (l1[1] - 0.3).abs() < 1e-6 && l1[2] == 0.0);
        let l1 = moves(&x, &normal, &[1.3], Norm::L1);
        assert!((l1[0] + 0.3).abs() < 1e-6 && l1[1] == 0.5 && l1[2] == 0.0);
    }

    #[test]
    fn many_values_and_a_hyperplane_that_only_grazes_the_box() {
        let n = 3072;
        let key = NoiseKey::new(5, Stream::EvalAttack);
        let device = Device::flex();
        let x = values(key.uniform(&[0], [1, n], 0.0, 1.0, &device));
        let normal = values(key.restart(1).normal(&[0], [1, n], &device));
        let room = |(x, w): (&f32, &f32)| f64::from(w.abs() * if *w > 0.0 { *x } else { 1.0 - x });
        let reach: f64 = x.iter().zip(&normal).map(room).sum();
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            for share in [1e-4, 0.1, 0.9, 0.999] {
                let gap = reach * share;
                let found = moves(&x, &normal, &[gap as f32], norm);
                let closed: f64 = found
                    .iter()
                    .zip(&normal)
                    .map(|(d, w)| f64::from(*d) * f64::from(*w))
                    .sum();
                assert!(
                    (closed + gap).abs() < 1e-5 * reach,
                    "{norm} {share}: {closed} for {gap}"
                );
            }
        }
    }

    /// `gap / |normal|` in the dual norm, without a box.
    #[test]
    fn distances_are_those_of_the_dual_norm() {
        let plane = Hyperplane::new(
            tensor(vec![-3.0], [1]),
            tensor(vec![1.0, -2.0, 2.0], [1, 3]),
        );
        for (norm, dual) in [(Norm::Linf, 5.0), (Norm::L2, 3.0), (Norm::L1, 2.0)] {
            let distance = values(plane.distance(norm))[0];
            assert!((distance - 3.0 / dual).abs() < 1e-6, "{norm}: {distance}");
        }
    }

    #[test]
    fn degenerate_hyperplanes_move_nothing_or_stay_finite() {
        for norm in [Norm::Linf, Norm::L2, Norm::L1] {
            assert_eq!(moves(&[0.2, 0.7], &[0.0, 0.0], &[1.0], norm), [0.0, 0.0]);
            assert_eq!(moves(&[0.2, 0.7], &[1.0, -1.0], &[0.0], norm), [0.0, 0.0]);
            // Out of reach: both values go to their faces; tiny normals mean what large ones do.
            for scale in [1e-25f32, 1.0, 1e25] {
                let moved = moves(&[0.2, 0.7], &[scale, -scale], &[9.0 * scale], norm);
                assert!((moved[0] + 0.2).abs() < 1e-6 && (moved[1] - 0.3).abs() < 1e-6);
            }
            let moved = moves(&[0.2, 0.7], &[1e-38, 0.0], &[1e30], norm);
            assert!(moved.iter().all(|d| d.is_finite()));
        }
    }
}

//! Work on the rows of a batch in plain Rust.
//!
//! On the CPU backend a tensor operation is a pass over the whole batch, with a new tensor for its result. What takes a dozen of
//! them, or ends at another step for each row, is done in one pass over a row that stays in the first cache. Tensors are read
//! where they lie ([`Values`]), and one that changes becomes a `Vec` and a tensor again without a copy, if nothing else holds it.
//! On a GPU it would be a round trip.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

#[cfg(feature = "flex")]
use burn::backend::{DispatchTensorKind, Flex, tensor::FloatTensor};
use burn::tensor::{Device, Tensor, TensorData};
use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::on_host;

/// Fewer values than this are not worth a second thread.
const SMALL: usize = 1 << 15;

/// The same where a value takes a few operations only: to wake a thread takes as long as some hundred thousand.
pub(crate) const CHEAP: usize = 1 << 19;

/// Whether plain tensors of this device may be worked on here: [`on_host`], and autodiff does not need to know.
pub fn is_host(device: &Device) -> bool {
    on_host(device) && !device.is_autodiff()
}

/// Rows of the batch that `samples` travel in, of `most` at a time: on the CPU as many as they are. On a GPU one of four sizes for each
/// power of two, so that it meets few shapes and computes little in vain.
pub fn batch_rows(samples: usize, most: usize, device: &Device) -> usize {
    match on_host(device) {
        true => samples,
        false => padded(samples, most),
    }
}

fn padded(samples: usize, most: usize) -> usize {
    let step = (samples.next_power_of_two() / 8).max(1);
    samples.next_multiple_of(step).min(most)
}

/// How many threads are worth starting: rayon's, `RAYON_NUM_THREADS` if it says so, else as many as there are cores.
pub fn threads() -> usize {
    rayon::current_num_threads()
}

/// What `work` makes of each of `jobs`, in their order. As many as there are threads are worked on at the same time, each with its part of
/// the threads for itself: nothing that one does in parallel waits for another.
pub fn at_once<J: Sync, T: Send>(jobs: &[J], work: impl Fn(&J) -> T + Sync) -> Vec<T> {
    let pools = pools(threads().min(jobs.len()));
    let next = AtomicUsize::new(0);
    let take = || {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            match jobs.get(at) {
                Some(job) => done.push((at, work(job))),
                None => return done,
            }
        }
    };
    let mut done = thread::scope(|scope| {
        let workers = pools.iter().map(|pool| scope.spawn(|| pool.install(take)));
        let workers: Vec<_> = workers.collect();
        let done = workers.into_iter().flat_map(|worker| match worker.join() {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        done.collect::<Vec<_>>()
    });
    done.sort_unstable_by_key(|(at, _)| *at);
    done.into_iter().map(|(_, made)| made).collect()
}

type Pools = Arc<[ThreadPool]>;

/// So many pools that share the threads. They are made once.
fn pools(count: usize) -> Pools {
    static MADE: Mutex<BTreeMap<[usize; 2], Pools>> = Mutex::new(BTreeMap::new());
    let threads = threads();
    let new = |place| {
        // The first ones have one more, where it does not come out even.
        let share = threads / count + usize::from(place < threads % count);
        let pool = ThreadPoolBuilder::new().num_threads(share);
        let pool = pool.thread_name(|_| "part".to_owned());
        pool.build().expect("threads can be started")
    };
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let pools = made.entry([threads, count]);
    pools
        .or_insert_with(|| (0..count).map(new).collect())
        .clone()
}

/// Calls `work` with the number and the values of each row of `rows`, on as many threads as pay.
pub fn each_row<const D: usize>(
    rows: &mut [f32],
    dims: [usize; D],
    work: impl Fn(usize, &mut [f32]) + Sync + Send,
) {
    each_row_of(SMALL, rows, dims, work);
}

/// [`each_row`], with threads from `least` values on.
pub(crate) fn each_row_of<const D: usize>(
    least: usize,
    rows: &mut [f32],
    dims: [usize; D],
    work: impl Fn(usize, &mut [f32]) + Sync + Send,
) {
    let width = dims[1..].iter().product::<usize>();
    if rows.is_empty() {
        return;
    }
    let threads = if rows.len() < least { 1 } else { threads() };
    let block = dims[0].div_ceil(threads);
    let run = |(place, rows): (usize, &mut [f32])| {
        for (row, values) in rows.chunks_mut(width).enumerate() {
            work(place * block + row, values);
        }
    };
    if threads == 1 {
        return run((0, rows));
    }
    rows.par_chunks_mut(block * width).enumerate().for_each(run);
}

/// Row `row` of `width` values each.
pub fn part(values: &[f32], row: usize, width: usize) -> &[f32] {
    &values[row * width..(row + 1) * width]
}

/// The values of a tensor.
///
/// # Panics
/// If it cannot be read.
pub fn values<const D: usize>(x: Tensor<D>) -> Vec<f32> {
    x.try_into_vec_as().expect("a float tensor")
}

/// The values of a tensor, to be read only: its own memory where it lies there one after the other, else a copy.
pub struct Values(Source);

enum Source {
    #[cfg(feature = "flex")]
    Memory(FloatTensor<Flex>),
    Copy(Vec<f32>),
}

impl<const D: usize> From<Tensor<D>> for Values {
    /// # Panics
    /// If it cannot be read.
    fn from(x: Tensor<D>) -> Self {
        #[cfg(feature = "flex")]
        if is_host(&x.device())
            && let DispatchTensorKind::Flex(x) = x.clone().into_dispatch().kind
            && x.as_float().as_slice::<f32>().is_some()
        {
            return Self(Source::Memory(x.float()));
        }
        Self(Source::Copy(values(x)))
    }
}

impl Deref for Values {
    type Target = [f32];

    fn deref(&self) -> &[f32] {
        match &self.0 {
            #[cfg(feature = "flex")]
            Source::Memory(x) => x.as_slice().expect("as it was found"),
            Source::Copy(values) => values,
        }
    }
}

/// Values in the shape and on the device of `like`.
pub fn upload<const D: usize>(values: Vec<f32>, like: &Tensor<D>) -> Tensor<D> {
    Tensor::from_data(TensorData::new(values, like.dims()), &like.device())
}

/// Sums and the like are taken in so many lanes: one after the other would wait for each.
const LANES: usize = 16;

/// The sum of a function of each place.
#[inline(always)]
pub fn sum_of(count: usize, term: impl Fn(usize) -> f32) -> f32 {
    in_lanes(count, 0.0, term, |sum, term| sum + term)
        .iter()
        .sum()
}

/// The largest of `least` and a function of each place; what is no number is passed over.
#[inline(always)]
pub fn most_of(count: usize, least: f32, term: impl Fn(usize) -> f32) -> f32 {
    let larger = |most: f32, term: f32| if term > most { term } else { most };
    let lanes = in_lanes(count, least, term, larger);
    lanes.into_iter().fold(least, larger)
}

#[inline(always)]
fn in_lanes(
    count: usize,
    start: f32,
    term: impl Fn(usize) -> f32,
    join: impl Fn(f32, f32) -> f32,
) -> [f32; LANES] {
    let mut lanes = [start; LANES];
    let whole = count - count % LANES;
    for start in (0..whole).step_by(LANES) {
        for (lane, joined) in lanes.iter_mut().enumerate() {
            *joined = join(*joined, term(start + lane));
        }
    }
    for at in whole..count {
        lanes[at % LANES] = join(lanes[at % LANES], term(at));
    }
    lanes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_travel_in_few_sizes() {
        let mut sizes: Vec<usize> = (1..=500).map(|samples| padded(samples, 500)).collect();
        assert!((1..=500).all(|samples| sizes[samples - 1] >= samples));
        assert!((9..=500).all(|samples| 4 * sizes[samples - 1] < 5 * samples + 4));
        sizes.dedup();
        assert_eq!(sizes.len(), 8 + 4 * 6);
        assert_eq!(padded(100, 100), 100);
        assert_eq!(batch_rows(257, 500, &Device::flex()), 257);
    }

    #[test]
    fn the_cpu_backend_is_the_host_and_autodiff_is_not() {
        assert!(is_host(&Device::flex()));
        assert!(!is_host(&Device::flex().autodiff()));
    }

    #[test]
    fn every_row_is_worked_on_once() {
        for (batch, width) in [(0, 3), (1, 5), (7, 9000), (64, 1024)] {
            let mut rows = vec![1.0; batch * width];
            each_row(&mut rows, [batch, width], |row, values| {
                assert_eq!(values.len(), width);
                values.iter_mut().for_each(|value| *value += row as f32);
            });
            for (row, values) in rows.chunks(width).enumerate() {
                assert!(values.iter().all(|value| *value == 1.0 + row as f32));
            }
        }
    }

    #[test]
    fn jobs_are_done_once_and_come_back_in_order() {
        for count in [0, 1, 2, 7, 100] {
            let jobs: Vec<usize> = (0..count).collect();
            let done = at_once(&jobs, |job| {
                let parts = (0..=*job).into_par_iter();
                (threads(), parts.sum::<usize>())
            });
            assert_eq!(done.len(), count);
            for (job, (share, sum)) in done.into_iter().enumerate() {
                let at_work = threads().min(count);
                assert!((threads() / at_work..=threads().div_ceil(at_work)).contains(&share));
                assert_eq!(sum, job * (job + 1) / 2);
            }
        }
    }

    #[test]
    fn all_threads_are_shared_out() {
        let inside = ThreadPoolBuilder::new().num_threads(7).build().unwrap();
        let shares = inside.install(|| {
            pools(3)
                .iter()
                .map(|pool| pool.current_num_threads())
                .collect::<Vec<_>>()
        });
        assert_eq!(shares, [3, 2, 2]);
    }

    #[test]
    #[should_panic(expected = "the third")]
    fn what_goes_wrong_in_a_job_goes_on() {
        at_once(&[1, 2, 3, 4], |job| assert!(*job != 3, "the third"));
    }

    #[test]
    fn sums_have_every_term() {
        for count in [0, 1, 15, 16, 33, 784] {
            let expected = (0..count).sum::<usize>() as f32;
            assert_eq!(sum_of(count, |at| at as f32), expected);
        }
    }
}

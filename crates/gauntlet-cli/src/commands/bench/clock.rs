//! Times of repeated work: median and spread.

use std::time::Instant;

use burn::tensor::Device;

use crate::devices::Picked;

/// What repeated measurements say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Times {
    /// The middle one, in seconds.
    pub(crate) median: f64,
    /// From the first quartile to the third, in seconds.
    pub(crate) spread: f64,
    /// The shortest, in seconds.
    pub(crate) best: f64,
}

impl Times {
    /// Median and quartiles of `seconds`, between neighbours where they fall between two.
    pub(crate) fn of(mut seconds: Vec<f64>) -> Self {
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * seconds.len().saturating_sub(1) as f64;
            let (low, high) = (place.floor() as usize, place.ceil() as usize);
            let (low, high) = (seconds[low], seconds[high]);
            low + (high - low) * place.fract()
        };
        Self {
            median: at(0.5),
            spread: at(0.75) - at(0.25),
            best: at(0.0),
        }
    }
}

/// How long a measurement may take, and how many repeats it has.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Effort {
    /// Seconds that repeats may take together.
    pub(crate) seconds: f64,
    /// Repeats, at least.
    pub(crate) least: usize,
    /// Repeats, at most.
    pub(crate) most: usize,
    /// Seconds of work between two looks at the clock: a GPU is told what to do faster than it can be waited for.
    pub(crate) between: f64,
}

impl Effort {
    /// The same with what the clock of a device asks for.
    pub(crate) fn on(self, picked: &Picked) -> Self {
        Self {
            between: if picked.is_cpu() { 0.0 } else { 5e-3 },
            ..self
        }
    }
}

/// Calls between two looks at the clock, at most.
const MOST_CALLS: f64 = 200.0;

/// Runs each of `works` in turn, after a warm-up of each, until the time is up. In turn, so that a machine that grows slower or
/// faster on the way does so for all of them.
pub(crate) fn measure(
    device: &Device,
    effort: Effort,
    works: &mut [&mut dyn FnMut()],
) -> Vec<Times> {
    let sync = || device.sync().unwrap_or_else(|error| panic!("{error:?}"));
    let time = |work: &mut dyn FnMut(), calls: usize| {
        let began = Instant::now();
        (0..calls).for_each(|_| work());
        sync();
        began.elapsed().as_secs_f64() / calls as f64
    };
    let calls: Vec<usize> = works
        .iter_mut()
        .map(|work| {
            time(work, 1);
            match effort.between > 0.0 {
                true => (effort.between / time(work, 1)).clamp(1.0, MOST_CALLS) as usize,
                false => 1,
            }
        })
        .collect();
    let mut seconds = vec![Vec::new(); works.len()];
    let began = Instant::now();
    for round in 0..effort.most {
        if round >= effort.least && began.elapsed().as_secs_f64() > effort.seconds {
            break;
        }
        for ((work, &calls), seconds) in works.iter_mut().zip(&calls).zip(&mut seconds) {
            seconds.push(time(work, calls));
        }
    }
    seconds.into_iter().map(Times::of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quartiles_are_those_of_the_sorted_list() {
        let times = Times::of(vec![5.0, 1.0, 4.0, 2.0, 3.0]);
        let expected = Times {
            median: 3.0,
            spread: 2.0,
            best: 1.0,
        };
        assert_eq!(times, expected);
        assert_eq!(Times::of(vec![1.0, 2.0]).median, 1.5);
        assert_eq!(Times::of(vec![7.0]).spread, 0.0);
    }

    #[test]
    fn works_take_turns_and_have_their_least_repeats() {
        let order = std::cell::RefCell::new(Vec::new());
        let effort = Effort {
            seconds: 0.0,
            least: 2,
            between: 0.0,
            most: 5,
        };
        let (mut a, mut b) = (
            || order.borrow_mut().push('a'),
            || order.borrow_mut().push('b'),
        );
        assert_eq!(
            measure(&Device::flex(), effort, &mut [&mut a, &mut b]).len(),
            2
        );
        assert_eq!(order.into_inner(), ['a', 'b', 'a', 'b', 'a', 'b']);
    }
}

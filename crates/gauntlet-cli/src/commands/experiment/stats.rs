//! Means over seeds.

use serde::Serialize;

/// Mean and spread of a few measurements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Mean {
    /// How many there are.
    pub(crate) n: usize,
    /// Their arithmetic mean.
    pub(crate) mean: f64,
    /// Sample standard deviation, `sqrt(sum (x - mean)^2 / (n - 1))`; none for a single measurement.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) sd: Option<f64>,
}

impl Mean {
    /// Of `values`; none of none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let values: Vec<f64> = values.into_iter().collect();
        let n = values.len();
        if n == 0 {
            return None;
        }
        let mean = values.iter().sum::<f64>() / n as f64;
        let squares: f64 = values.iter().map(|value| (value - mean).powi(2)).sum();
        let sd = (n > 1).then(|| (squares / (n - 1) as f64).sqrt());
        Some(Self { n, mean, sd })
    }

    /// `96.15 % ± 0.34`, of shares.
    pub(crate) fn percent(self) -> String {
        match self.sd {
            Some(sd) => format!("{:.2} % ± {:.2}", 100.0 * self.mean, 100.0 * sd),
            None => format!("{:.2} %", 100.0 * self.mean),
        }
    }

    /// `12.3 s ± 0.2`, of seconds; in minutes or hours if they are many.
    pub(crate) fn duration(self) -> String {
        let (unit, name) = match self.mean {
            mean if mean < 120.0 => (1.0, "s"),
            mean if mean < 7200.0 => (60.0, "min"),
            _ => (3600.0, "h"),
        };
        let mean = self.mean / unit;
        match self.sd {
            Some(sd) => format!("{mean:.1} {name} ± {:.1}", sd / unit),
            None => format!("{mean:.1} {name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_that_of_a_sample() {
        // By hand: mean 5, squares 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32, 32 / 7.
        let known = Mean::of([2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]).unwrap();
        assert_eq!((known.n, known.mean), (8, 5.0));
        assert!((known.sd.unwrap() - (32.0f64 / 7.0).sqrt()).abs() < 1e-15);
        assert!((known.sd.unwrap() - 2.138_089_935_299_395).abs() < 1e-12);
        // 0.9, 0.92, 0.97: mean 0.93, squares 0.0009 + 0.0001 + 0.0016 = 0.0026, half of it 0.0013.
        let shares = Mean::of([0.9, 0.92, 0.97]).unwrap();
        assert!((shares.mean - 0.93).abs() < 1e-12);
        assert!((shares.sd.unwrap() - 0.036_055_512_754_639_9).abs() < 1e-12);
        assert_eq!(shares.percent(), "93.00 % ± 3.61");
        let single = Mean::of([0.5]).unwrap();
        assert_eq!((single.n, single.mean, single.sd), (1, 0.5, None));
        assert_eq!(single.percent(), "50.00 %");
        assert_eq!(Mean::of([]), None);
        let equal = Mean::of([0.25; 3]).unwrap();
        assert_eq!(equal.sd, Some(0.0));
    }

    #[test]
    fn times_are_in_units_for_people() {
        assert_eq!(Mean::of([10.0, 12.0]).unwrap().duration(), "11.0 s ± 1.4");
        assert_eq!(Mean::of([600.0]).unwrap().duration(), "10.0 min");
        assert_eq!(Mean::of([9000.0]).unwrap().duration(), "2.5 h");
    }
}

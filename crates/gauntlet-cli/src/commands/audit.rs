//! What a model withstands.

use std::fs;
use std::path::{Path, PathBuf};

use gauntlet_attacks::ThreatModel;
use gauntlet_audit::{Audit, AuditError, Class, Data, Standing, Suite, wilson};
use gauntlet_data::{DataConfig, Dataset, fetch, files};
use gauntlet_models::Network;
use gauntlet_train::{Plan, RunDir, checkpoint};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::model::checkpoint_in;
use crate::args::{self, AuditPlan, Requirement};
use crate::devices::{self, Spec};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{self, duration, percent, say};
use crate::progress::Counter;

/// Audits a checkpoint within one or more threat models.
pub(crate) fn audit(args: args::Audit, quiet: bool) -> Result<(), Failure> {
    let job = Job::prepare(&args, quiet)?;
    let mut threats = Vec::new();
    let mut per_class = Vec::new();
    for threat in &job.threats {
        let (result, classes) = job.within(threat)?;
        threats.push(result);
        per_class = classes;
    }
    let data = &job.data;
    let clean = job.clean_right()?;
    let audit = Audit {
        schema: 1,
        model: job.checkpoint.display().to_string(),
        data: Data {
            name: data.name.clone(),
            split: data.split.to_owned(),
            samples: data.len(),
            sha256: data.sha256.clone(),
        },
        clean_accuracy: clean as f64 / data.len() as f64,
        clean_interval: wilson(clean, data.len()),
        seed: job.seed,
        device: job.device.label(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        train_seconds: None,
        plan: Some(job.plan.to_owned()),
        warnings: Vec::new(),
        checks: Vec::new(),
        findings: Vec::new(),
        threats,
        corruptions: Vec::new(),
        per_class,
        standard: None,
    };
    let stdout = args.json.as_deref() == Some(Path::new("-"));
    let mut text = serde_json::to_vec_pretty(&audit).expect("plain structs serialise");
    text.push(b'\n');
    let kept = job.out.join("audit.json");
    let wanted = args.json.as_deref().filter(|_| !stdout);
    for path in [Some(kept.as_path()), wanted].into_iter().flatten() {
        write(path, &text)?;
    }
    if stdout {
        output::print_json(&audit);
    } else {
        print(&audit);
        output::print(format!("audit  {}", wanted.unwrap_or(&kept).display()));
    }
    let missed: Vec<_> = args
        .require
        .iter()
        .filter_map(|requirement| requirement.missed(&audit))
        .collect();
    if missed.is_empty() {
        Ok(())
    } else {
        Err(Failure::gate(missed.join("\n")))
    }
}

/// All that an audit needs.
struct Job {
    quiet: bool,
    checkpoint: PathBuf,
    model: Network,
    classes: Vec<String>,
    data: Dataset,
    threats: Vec<ThreatModel>,
    plan: &'static str,
    suite: fn(&ThreatModel, usize) -> Suite,
    seed: u64,
    batch_size: usize,
    device: devices::Picked,
    out: PathBuf,
}

/// What is kept of an audit within one threat model, to go on from after an interruption.
#[derive(Serialize, Deserialize)]
struct Kept {
    schema: u32,
    /// What was audited, and how.
    identity: Value,
    standing: Standing,
}

impl Job {
    fn prepare(args: &args::Audit, quiet: bool) -> Result<Self, Failure> {
        let checkpoint = checkpoint_in(&args.model)?;
        let plan = plan_of(&checkpoint);
        let device = devices::pick(args.device.unwrap_or(Spec::Auto))?;
        if let (Some(note), false) = (&device.note, quiet) {
            say(note);
        }
        let (model, description) = checkpoint::load_network(&checkpoint, &device.device)?;
        let config = match (&args.data, &plan) {
            (Some(source), _) => DataConfig::of(*source),
            (None, Some(plan)) => plan.data.clone(),
            (None, None) => {
                return Err(Failure::request(
                    "the checkpoint is in no run, so its data are not known\n\nhint: name them with `--data`",
                ));
            }
        };
        let seed = plan.as_ref().map_or(0, |plan| plan.seed);
        let data = gauntlet_data::load(&config, &fetch::default_root(), seed)?.test;
        if data.shape != description.shape || data.classes.len() != description.classes.len() {
            return Err(Failure::request(format!(
                "the model takes images of {:?} in {} classes, {} has {:?} in {}",
                description.shape,
                description.classes.len(),
                data.name,
                data.shape,
                data.classes.len()
            )));
        }
        let threats = match (&args.threat[..], &plan) {
            ([], Some(plan)) => vec![plan.threat.model()],
            ([], None) => {
                return Err(Failure::request(
                    "the checkpoint is in no run: name a threat model, such as `--threat linf:8/255`",
                ));
            }
            (threats, _) => threats.to_vec(),
        };
        let data = data.take(args.samples.unwrap_or(data.len()));
        if data.is_empty() {
            return Err(Failure::request("there are no test images to audit on"));
        }
        let out = args.out.clone().unwrap_or_else(|| checkpoint.join("audit"));
        fs::create_dir_all(&out)
            .map_err(|error| Failure::running(format!("{}: {error}", out.display())))?;
        let (plan, suite): (_, fn(&ThreatModel, usize) -> Suite) = match args.plan {
            AuditPlan::Standard => ("standard", Suite::standard),
            AuditPlan::Quick => ("quick", Suite::quick),
        };
        interrupt::catch();
        Ok(Self {
            quiet,
            checkpoint,
            model,
            classes: description.classes,
            data,
            threats,
            plan,
            suite,
            seed: args.seed,
            batch_size: args.batch_size,
            device,
            out,
        })
    }

    /// Runs the suite within `threat`, or what is left of it, and keeps how far it came after every batch.
    fn within(
        &self,
        threat: &ThreatModel,
    ) -> Result<(gauntlet_audit::Threat, Vec<Class>), Failure> {
        let suite = (self.suite)(threat, self.classes.len());
        let path = self.state_path(threat);
        let identity = self.identity(&suite)?;
        let mut standing = read(&path)
            .filter(|kept| kept.identity == identity)
            .map(|kept| kept.standing)
            .unwrap_or_default();
        if standing != Standing::default() && standing.finished < suite.members.len() && !self.quiet
        {
            say(format!("going on from {}", path.display()));
        }
        let mut counter: Option<(usize, Counter)> = None;
        let mut keep = |standing: &Standing| {
            let kept = json!({ "schema": 1, "identity": &identity, "standing": standing });
            let text = serde_json::to_vec(&kept).expect("plain values serialise");
            write(&path, &text)?;
            if let Some(member) = suite.members.get(standing.finished) {
                if counter
                    .as_ref()
                    .is_none_or(|(place, _)| *place != standing.finished)
                {
                    counter = None;
                    let what = format!("{threat}: {}", member.attack.name());
                    let total = standing.given(&self.data, standing.finished).len() as u64;
                    let template = "{msg} {wide_bar} {pos}/{len} images, {eta} left";
                    counter = Some((
                        standing.finished,
                        Counter::new(&what, Some(total), template, self.quiet),
                    ));
                }
                if let Some((_, counter)) = &counter {
                    counter.set(standing.position as u64);
                }
            }
            Ok(!interrupt::asked())
        };
        let done = suite.run(
            &self.model,
            &self.data,
            self.seed,
            self.batch_size,
            &self.device.device,
            &mut standing,
            &mut keep,
        )?;
        drop(counter);
        if !done {
            return Err(Failure::interrupted(
                "interrupted; what was attacked is kept\n\nhint: the same command goes on",
            ));
        }
        let classes = by_class(&self.classes, &self.data, &standing);
        Ok((suite.threat_result(&self.data, &standing), classes))
    }

    fn clean_right(&self) -> Result<usize, Failure> {
        let path = self.state_path(&self.threats[0]);
        let kept = read(&path)
            .ok_or_else(|| Failure::running(format!("{}: cannot be read back", path.display())))?;
        Ok((0..self.data.len())
            .filter(|&i| kept.standing.is_right(&self.data, i))
            .count())
    }

    fn state_path(&self, threat: &ThreatModel) -> PathBuf {
        let name = threat.to_string().replace([':', '/'], "-");
        self.out.join(format!("{}-{name}.json", self.plan))
    }

    /// Two audits with equal identities have equal results.
    fn identity(&self, suite: &Suite) -> Result<Value, Failure> {
        let manifest = self.checkpoint.join("MANIFEST.json");
        let text = fs::read(&manifest)
            .map_err(|error| Failure::running(format!("{}: {error}", manifest.display())))?;
        let manifest: Value = serde_json::from_slice(&text).unwrap_or_default();
        let attacks: Vec<_> = suite
            .members
            .iter()
            .map(|member| member.attack.name())
            .collect();
        Ok(json!({
            "weights": manifest["tensors"]["model.safetensors"],
            "data": { "sha256": self.data.sha256, "samples": self.data.len() },
            "threat": suite.threat.to_string(),
            "attacks": attacks,
            "seed": self.seed,
            "device": self.device.label(),
            "version": env!("CARGO_PKG_VERSION"),
        }))
    }
}

/// The plan of the run that a checkpoint is in, if it is in one.
fn plan_of(checkpoint: &Path) -> Option<Plan> {
    let absolute = checkpoint.canonicalize().ok()?;
    RunDir::plan(absolute.parent()?.parent()?).ok()
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), AuditError> {
    files::write(path, bytes).map_err(|source| AuditError::Write {
        path: path.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Option<Kept> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

fn by_class(names: &[String], data: &Dataset, standing: &Standing) -> Vec<Class> {
    let class = |(class, name): (usize, &String)| {
        let of: Vec<_> = (0..data.len())
            .filter(|&i| data.labels[data.ids[i] as usize] as usize == class)
            .collect();
        let share = |holds: &dyn Fn(usize) -> bool| {
            of.iter().filter(|&&i| holds(i)).count() as f64 / of.len().max(1) as f64
        };
        Class {
            name: name.clone(),
            samples: of.len(),
            clean_accuracy: share(&|i| standing.is_right(data, i)),
            robust_accuracy: share(&|i| standing.stands(data, i)),
        }
    };
    names.iter().enumerate().map(class).collect()
}

fn print(audit: &Audit) {
    let interval = |[low, high]: [f64; 2]| format!("{:.1} to {:.1} %", 100.0 * low, 100.0 * high);
    let mut table = output::table(&[
        "threat",
        "attack",
        ">left standing",
        ">95 % interval",
        ">time",
    ]);
    table.add_row([
        "none",
        "",
        &percent(audit.clean_accuracy),
        &interval(audit.clean_interval),
        "",
    ]);
    for threat in &audit.threats {
        for attack in &threat.attacks {
            let count = (attack.robust_accuracy * audit.data.samples as f64).round() as usize;
            table.add_row([
                &threat.threat,
                &attack.name,
                &percent(attack.robust_accuracy),
                &interval(wilson(count, audit.data.samples)),
                &duration(attack.seconds),
            ]);
        }
    }
    let data = &audit.data;
    output::print(format!(
        "{}\n{} {} images of {}, seed {}, on {}",
        table.trim_fmt(),
        data.samples,
        data.split,
        data.name,
        audit.seed,
        audit.device
    ));
}

impl Requirement {
    /// What is to be said if the audit does not meet it.
    fn missed(&self, audit: &Audit) -> Option<String> {
        let wanted = self.threat.to_string();
        let Some(found) = audit.threats.iter().find(|threat| threat.threat == wanted) else {
            return Some(format!(
                "`--require {wanted}`: the audit did not measure {wanted}"
            ));
        };
        (found.robust_accuracy < self.least).then(|| {
            format!(
                "{wanted}: {} left standing, {} required",
                percent(found.robust_accuracy),
                percent(self.least)
            )
        })
    }
}

//! What a model withstands.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gauntlet_attacks::Budget;
use gauntlet_audit::{
    Audit, AuditError, AuditPlan, Auditor, CorruptionResult, Data, Found, Setting, Signs, Stage,
    Subject, Surrogate, Weak, audit_page, diagnosis, wilson, write_outcomes,
};
use gauntlet_data::corruptions::{Corruption, Severity};
use gauntlet_data::{DataConfig, Dataset, Source, arrays, fetch, files, picture};
use gauntlet_models::{Classifier, Description, Network};
use gauntlet_train::{Plan, RunDir};
use serde_json::{Value, json};

use super::subject;
use crate::args::{self, PlanName, Requirement};
use crate::devices::{self, Spec};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{self, duration, percent, say};
use crate::progress::Counter;

/// Audits a model within one or more budgets.
pub(crate) fn audit(args: args::Audit, quiet: bool) -> Result<(), Failure> {
    let mut job = Job::prepare(&args, quiet)?;
    let (found, corruptions) = job.run()?;
    let audit = job.audit(&found, corruptions);
    job.write(&args, &audit, &found)?;
    if args.json.as_deref() == Some(Path::new("-")) {
        output::print_json(&audit);
    } else {
        print(&audit);
        job.print_paths(&args);
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

/// All that an audit needs: what could be wrong with the request has been ruled out.
struct Job {
    quiet: bool,
    model: Network,
    name: String,
    data: Dataset,
    plan: AuditPlan,
    suites: Vec<gauntlet_audit::Suite>,
    diagnose: bool,
    identity: Value,
    seed: u64,
    batch_size: usize,
    workers: usize,
    device: devices::Picked,
    out: PathBuf,
}

impl Job {
    fn prepare(args: &args::Audit, quiet: bool) -> Result<Self, Failure> {
        let device = devices::pick(args.device.unwrap_or(Spec::Auto))?;
        if let (Some(note), false) = (&device.note, quiet) {
            say(note);
        }
        let run = run_of(&args.model);
        let known = shape_of(args, run.as_ref())?;
        let loaded = subject::load(&args.model, &args.weights, known, &device.device)?;
        let data = test_data(args, run.as_ref(), &loaded.description)?;
        let plan = plan(args, run.as_ref())?;
        let load = |path: &Path| -> Result<Surrogate, String> {
            let none = args::Weights::default();
            let surrogate = subject::load(path, &none, None, &device.device)
                .map_err(|failure| failure.to_string())?;
            Ok(Arc::new(surrogate.model))
        };
        let setting = Setting {
            classes: loaded.description.classes.len(),
            load: &load,
        };
        let suites = plan.suites(&setting).map_err(|problems| {
            let count = problems.len();
            let problems = problems.join("\n");
            match &args.plan {
                PlanName::File(path) if count == 1 => {
                    Failure::request(format!("{}: {problems}", path.display()))
                }
                PlanName::File(path) => Failure::request(format!(
                    "{count} problems in {}\n{problems}",
                    path.display()
                )),
                PlanName::Suite(_) => Failure::request(problems),
            }
        })?;
        for requirement in &args.require {
            let threat = &requirement.threat;
            if !suites.iter().any(|suite| suite.budget == *threat) {
                return Err(Failure::request(format!(
                    "`--require {threat}`: the audit does not measure {threat}\n\nhint: `--threat {threat}` does"
                )));
            }
        }
        let out = args.out.clone().unwrap_or_else(|| loaded.audit_folder());
        fs::create_dir_all(&out).map_err(|error| {
            Failure::running(format!(
                "{}: {error}\n\nhint: `--out DIR` says where to keep an audit",
                out.display()
            ))
        })?;
        let cpu = device.is_cpu();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        interrupt::catch();
        Ok(Self {
            quiet,
            identity: json!({
                "weights": gauntlet_models::weights::hashes(&loaded.model),
                "config": loaded.description.config,
                "device": device.label(),
                "version": env!("CARGO_PKG_VERSION"),
            }),
            name: loaded.name,
            model: loaded.model,
            data,
            plan,
            suites,
            diagnose: !args.no_diagnosis,
            seed: args.seed,
            batch_size: args.batch_size.unwrap_or(if cpu { 64 } else { 512 }),
            workers: if cpu { args.jobs.unwrap_or(cores) } else { 1 },
            device,
            out,
        })
    }

    /// Attacks and corrupts what is not done yet.
    fn run(&mut self) -> Result<(Vec<Found>, Vec<CorruptionResult>), Failure> {
        let mut progress = Shown::new(self.quiet);
        let mut watch = |stage: Stage| {
            progress.show(&stage);
            !interrupt::asked()
        };
        let state = self.out.join("state");
        let corruptions = self.plan.corruptions.iter().flat_map(|plan| {
            let pairs = |family: &Corruption| {
                let family = *family;
                plan.severities
                    .iter()
                    .map(move |&severity| (family, severity))
            };
            plan.families.iter().flat_map(pairs)
        });
        let on_cpu = self
            .device
            .is_cpu()
            .then(|| self.model.on_cpu(self.data.shape));
        let model: &(dyn Classifier<4> + Sync) = match &on_cpu {
            Some(model) => model,
            None => &self.model,
        };
        let mut auditor = Auditor {
            subject: Subject {
                model,
                data: &self.data,
                device: &self.device.device,
                seed: self.seed,
                batch_size: self.batch_size,
                workers: self.workers,
            },
            suites: std::mem::take(&mut self.suites),
            corruptions: corruptions.collect::<Vec<(Corruption, Severity)>>(),
            diagnose: self.diagnose,
            identity: self.identity.clone(),
            folder: &state,
        };
        let stopped = || {
            Failure::interrupted(
                "interrupted; what was attacked is kept\n\nhint: the same command goes on",
            )
        };
        let found = auditor.run(&mut watch)?.ok_or_else(stopped)?;
        let corruptions = auditor.run_corruptions(&mut watch)?.ok_or_else(stopped)?;
        Ok((found, corruptions))
    }

    fn audit(&self, found: &[Found], corruptions: Vec<CorruptionResult>) -> Audit {
        let data = &self.data;
        let clean = match found.first() {
            Some(found) => (0..data.len())
                .filter(|&i| found.standing.is_right(data, i))
                .count(),
            None => self.clean_right(),
        };
        let findings: Vec<_> = found
            .iter()
            .flat_map(|found| found.findings.clone())
            .collect();
        let mut warnings: Vec<String> = findings
            .iter()
            .map(|finding| format!("{}: {}", finding.title, finding.evidence))
            .collect();
        let broken = found.first().map_or(0, |found| {
            let nothing = |said: &&u32| **said == u32::MAX;
            found.standing.clean.iter().filter(nothing).count()
        });
        if broken > 0 {
            warnings.push(format!(
                "the model answers {broken} samples with logits that are no numbers; they count as wrong"
            ));
        }
        if data.len() < 1000 {
            warnings.push(format!(
                "only {} samples were attacked: mind the intervals",
                data.len()
            ));
        }
        Audit {
            schema: 1,
            model: self.name.clone(),
            data: Data {
                name: data.name.clone(),
                split: data.split.to_owned(),
                samples: data.len(),
                sha256: data.sha256.clone(),
            },
            clean_accuracy: clean as f64 / data.len() as f64,
            clean_interval: wilson(clean, data.len()),
            seed: self.seed,
            device: self.device.label(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            train_seconds: None,
            plan: Some(self.plan.name.clone()),
            warnings,
            checks: if found.iter().any(|found| found.signs.is_some()) {
                Signs::CODES.map(str::to_owned).to_vec()
            } else {
                Vec::new()
            },
            findings,
            per_class: found
                .last()
                .map(|found| found.threat.per_class.clone())
                .unwrap_or_default(),
            threats: found.iter().map(|found| found.threat.clone()).collect(),
            corruptions,
            standard: None,
        }
    }

    /// Samples classified correctly, where no attack has counted them.
    fn clean_right(&self) -> usize {
        use gauntlet_attacks::evaluate::predictions;
        let positions: Vec<usize> = (0..self.data.len()).collect();
        let right = positions.chunks(self.batch_size).map(|part| {
            let (x, _) = self.data.batch(part, &self.device.device);
            let said = predictions(self.model.logits(x));
            let labels = part
                .iter()
                .map(|&i| self.data.labels[self.data.ids[i] as usize]);
            said.into_iter().zip(labels).filter(|(a, b)| a == b).count()
        });
        right.sum()
    }

    fn write(&self, args: &args::Audit, audit: &Audit, found: &[Found]) -> Result<(), Failure> {
        let mut text = serde_json::to_vec_pretty(audit).expect("plain structs serialise");
        text.push(b'\n');
        let weakest: Vec<_> = found
            .iter()
            .map(|found| (found.threat.threat.clone(), self.weakest(found)))
            .collect();
        let page = audit_page(audit, &weakest);
        write(&self.out.join("audit.json"), &text)?;
        write(&self.out.join("audit.html"), page.as_bytes())?;
        write_outcomes(&self.out.join("outcomes.safetensors"), &self.data, found)?;
        if let Some(path) = args.json.as_deref().filter(|path| *path != Path::new("-")) {
            write(path, &text)?;
        }
        if let Some(path) = &args.html {
            write(path, page.as_bytes())?;
        }
        if let Some(path) = &args.examples {
            self.export(path, found)?;
        }
        Ok(())
    }

    /// The samples that took the least, for pictures.
    fn weakest(&self, found: &Found) -> Vec<Weak> {
        let data = &self.data;
        let mut fallen: Vec<usize> = found.examples.keys().copied().collect();
        let size = |i: usize| found.standing.distance[i].unwrap_or(0.0);
        fallen.sort_by(|&a, &b| size(a).total_cmp(&size(b)).then(a.cmp(&b)));
        let name = |class: u32| {
            let known = data.classes.get(class as usize);
            known.map_or("nothing", String::as_str).to_owned()
        };
        let weak = |&i: &usize| {
            let (clean, _) = data.batch(&[i], &self.device.device);
            let pixels = found.examples[&i].clone();
            let adversarial = picture::image(pixels, data.shape, &self.device.device);
            Weak {
                index: data.ids[i],
                label: name(data.labels[data.ids[i] as usize]),
                clean: name(found.standing.clean[i]),
                adversarial: name(found.standing.said[i].unwrap_or(u32::MAX)),
                attack: found.standing.fell_to[i]
                    .map(|place| found.attacks[place].clone())
                    .unwrap_or_default(),
                distance: found.standing.distance[i],
                images: (clean, adversarial),
            }
        };
        fallen.iter().take(PICTURES).map(weak).collect()
    }

    /// Adversarial examples of every sample: as `.npz`, one file a budget, or as PNG files in a folder.
    fn export(&self, path: &Path, found: &[Found]) -> Result<(), Failure> {
        for found in found {
            let threat = found.threat.threat.replace([':', '/', ',', ' '], "-");
            if path.extension().is_some_and(|extension| extension == "npz") {
                let path = if self.plan_has_several() {
                    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                    path.with_file_name(format!("{stem}-{threat}.npz"))
                } else {
                    path.to_owned()
                };
                arrays::write_examples(&path, &self.data, &found.examples)?;
            } else {
                let folder = path.join(threat);
                arrays::write_pictures(&folder, &self.data, &found.examples)?;
            }
        }
        Ok(())
    }

    fn plan_has_several(&self) -> bool {
        let budgets = self.plan.threats.iter().map(|threat| threat.within.len());
        budgets.sum::<usize>() > 1
    }

    fn print_paths(&self, args: &args::Audit) {
        let page = self.out.join("audit.html");
        let page = args.html.as_ref().unwrap_or(&page);
        let json = self.out.join("audit.json");
        let json = args.json.as_ref().unwrap_or(&json);
        output::print(format!(
            "report  {}\njson    {}\nsamples {}",
            page.display(),
            json.display(),
            self.out.join("outcomes.safetensors").display()
        ));
    }
}

/// Pictures of each budget in the report.
const PICTURES: usize = 8;

/// What to attack with, and how hard.
fn plan(args: &args::Audit, run: Option<&Plan>) -> Result<AuditPlan, Failure> {
    match &args.plan {
        PlanName::File(path) => {
            if !args.threat.is_empty() {
                return Err(Failure::request(
                    "`--threat` goes with `--plan standard` or `--plan quick`: a plan file names its own budgets",
                ));
            }
            AuditPlan::read(path).map_err(Failure::request)
        }
        PlanName::Suite(name) => {
            let within = match (&args.threat[..], run) {
                ([], Some(plan)) => vec![Budget::from(plan.threat.model())],
                ([], None) => {
                    return Err(Failure::request(
                        "the model is in no run, so its threat model is not known\n\nhint: name one, such as `--threat linf:8/255`",
                    ));
                }
                (threats, _) => threats.to_vec(),
            };
            Ok(AuditPlan::of(*name, within))
        }
    }
}

/// The plan of the run that a model is of, if it is of one.
fn run_of(model: &Path) -> Option<Plan> {
    let run = |folder: &Path| RunDir::plan(folder).ok();
    run(model).or_else(|| run(model.canonicalize().ok()?.parent()?.parent()?))
}

/// Shape of the images and names of the classes, where the data tell them before they are loaded: a weights file does not.
fn shape_of(args: &args::Audit, run: Option<&Plan>) -> Result<Option<subject::Takes>, Failure> {
    let source = match &args.data {
        Some(args::DataName::Known(source)) => *source,
        Some(args::DataName::Files(path)) => {
            let data = user_data(path, args)?;
            return Ok(Some((data.shape, data.classes.to_vec())));
        }
        None => match run {
            Some(plan) => plan.data.source,
            None => return Ok(None),
        },
    };
    Ok(source.info().shape.map(|shape| (shape, source.classes())))
}

/// The test part of the data that were asked for, else of the run's.
fn test_data(
    args: &args::Audit,
    run: Option<&Plan>,
    description: &Description,
) -> Result<Dataset, Failure> {
    let data = match (&args.data, run) {
        (Some(args::DataName::Files(path)), _) => user_data(path, args)?,
        (Some(args::DataName::Known(source)), _) => known_data(&DataConfig::of(*source), 0)?,
        (None, Some(plan)) => known_data(&plan.data, plan.seed)?,
        (None, None) => {
            return Err(Failure::request(
                "the model is in no run, so its data are not known\n\nhint: name them with `--data`",
            ));
        }
    };
    if data.shape != description.shape || data.classes.len() > description.classes.len() {
        return Err(Failure::request(format!(
            "the model takes images of {:?} in {} classes, {} has {:?} in {}",
            description.shape,
            description.classes.len(),
            data.name,
            data.shape,
            data.classes.len()
        )));
    }
    let mut data = data.take(args.samples.unwrap_or(data.len()));
    if data.is_empty() {
        return Err(Failure::request("there are no test images to audit on"));
    }
    data.classes = Arc::new(description.classes.clone());
    Ok(data)
}

fn known_data(config: &DataConfig, seed: u64) -> Result<Dataset, Failure> {
    Ok(gauntlet_data::load(config, &fetch::default_root(), seed)?.test)
}

/// A folder of images, or arrays.
fn user_data(path: &Path, args: &args::Audit) -> Result<Dataset, Failure> {
    if path.is_dir() {
        let mut config = DataConfig::of(Source::ImageFolder);
        config.path = Some(path.to_owned());
        return known_data(&config, 0);
    }
    Ok(arrays::load(
        path,
        args.labels.as_deref(),
        args.weights.classes.unwrap_or(10),
    )?)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), AuditError> {
    files::write(path, bytes).map_err(|source| AuditError::Write {
        path: path.to_owned(),
        source,
    })
}

/// What a person sees while an audit works.
struct Shown {
    quiet: bool,
    now: Option<(String, Counter)>,
}

impl Shown {
    fn new(quiet: bool) -> Self {
        Self { quiet, now: None }
    }

    fn show(&mut self, stage: &Stage) {
        let (what, done, total) = match stage {
            Stage::Attack {
                threat,
                attack,
                done,
                total,
            } => (format!("{threat}: {attack}"), *done, *total),
            Stage::Signs { threat } => {
                (format!("{threat}: looking for misleading gradients"), 0, 1)
            }
            Stage::Corruptions { done, total } => ("corruptions".to_owned(), *done, *total),
        };
        if self.now.as_ref().is_none_or(|(shown, _)| *shown != what) {
            self.now = None;
            let template = "{msg} {wide_bar} {pos}/{len}, {eta} left";
            let counter = Counter::new(&what, Some(total as u64), template, self.quiet);
            self.now = Some((what, counter));
        }
        if let Some((_, counter)) = &self.now {
            counter.set(done as u64);
        }
    }
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
    if !audit.corruptions.is_empty() {
        print_corruptions(&audit.corruptions);
    }
    for finding in &audit.findings {
        output::print(format!(
            "\nwarning: {}\n  {}\n  {}",
            finding.title,
            finding.evidence,
            first_remedy(&finding.code)
        ));
    }
}

/// Where to read on.
fn first_remedy(code: &str) -> String {
    match diagnosis(code) {
        Some(_) => format!("cause and remedy: the report, or DIAGNOSIS.md, section `{code}`"),
        None => String::new(),
    }
}

fn print_corruptions(results: &[CorruptionResult]) {
    let mut severities: Vec<u8> = results.iter().map(|result| result.severity).collect();
    severities.sort_unstable();
    severities.dedup();
    let heads: Vec<String> = severities
        .iter()
        .map(|s| format!(">severity {s}"))
        .collect();
    let heads: Vec<&str> = std::iter::once("corruption")
        .chain(heads.iter().map(String::as_str))
        .chain([">mean"])
        .collect();
    let mut table = output::table(&heads);
    let mut families: Vec<&str> = Vec::new();
    for result in results {
        if !families.contains(&result.family.as_str()) {
            families.push(&result.family);
        }
    }
    let mean = |of: &[f64]| of.iter().sum::<f64>() / of.len().max(1) as f64;
    for family in families {
        let of: Vec<f64> = results
            .iter()
            .filter(|result| result.family == family)
            .map(|result| result.accuracy)
            .collect();
        let cells = of.iter().copied().chain([mean(&of)]).map(percent);
        table.add_row(std::iter::once(family.to_owned()).chain(cells));
    }
    let all: Vec<f64> = results.iter().map(|result| result.accuracy).collect();
    output::print(format!(
        "\n{}\nmean over corruptions {}",
        table.trim_fmt(),
        percent(mean(&all))
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

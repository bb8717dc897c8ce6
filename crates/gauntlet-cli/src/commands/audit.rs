//! What a model withstands.

use std::fs::{self, File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use gauntlet_attacks::{Budget, Norm};
use gauntlet_audit::{
    Audit, AuditError, AuditPlan, Auditor, Certified, CorruptionResult, Data, Fit, Found,
    PlanProblem, Setting, Signs, Stage, Subject, Suite, SuiteName, Surrogate, Weak, audit_page,
    diagnosis, file_name, wilson, write_outcomes,
};
use gauntlet_data::corruptions::{Corruption, Severity};
use gauntlet_data::{DataConfig, Dataset, Source, arrays, fetch, files, picture};
use gauntlet_models::{Description, Network};
use gauntlet_train::{Plan, RunDir};
use serde_json::{Value, json};

use super::subject::Origin;
use crate::args::{self, PlanName, Requirement};
use crate::config::{PlanFile, reason};
use crate::devices::{self, Spec};
use crate::failure::Failure;
use crate::interrupt;
use crate::output::{self, duration, percent, say};
use crate::progress::Counter;

/// Audits a model within one or more budgets.
pub(crate) fn audit(args: args::Audit, quiet: bool) -> Result<(), Failure> {
    let mut job = Job::prepare(&args, quiet)?;
    let (found, corruptions, certified) = job.run()?;
    let audit = job.audit(&found, corruptions, certified);
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
    suites: Vec<Suite>,
    diagnose: bool,
    identity: Value,
    seed: u64,
    batch_size: usize,
    workers: usize,
    device: devices::Picked,
    out: PathBuf,
    /// Nobody else writes to the folder meanwhile.
    _lock: File,
}

impl Job {
    fn prepare(args: &args::Audit, quiet: bool) -> Result<Self, Failure> {
        let file = match &args.plan {
            PlanName::File(path) => Some(PlanFile::read(path)?),
            PlanName::Suite(_) => None,
        };
        check_targets(args)?;
        let device = devices::pick(args.device.unwrap_or(Spec::Auto))?;
        if let (Some(note), false) = (&device.note, quiet) {
            say(note);
        }
        let run = run_of(&args.model);
        let known = shape_of(args, run.as_ref())?;
        let loaded = args
            .weights
            .subject(&args.model, known.as_ref())
            .load(&device.device)?;
        if !quiet {
            loaded.notes.iter().for_each(say);
        }
        let data = test_data(args, run.as_ref(), &loaded.description)?;
        let plan = plan(args, file.as_ref(), run.as_ref())?;
        let takes = (loaded.description.shape, loaded.description.classes.clone());
        let load = |path: &Path| -> Result<Surrogate, String> {
            let surrogate = args::Weights::default()
                .subject(path, Some(&takes))
                .load(&device.device)
                .map_err(|failure| failure.message)?;
            Ok(Arc::new(surrogate.network))
        };
        let training = || {
            if !quiet {
                say("finding what fools the model on all images, on training images");
            }
            let data = training_data(args, run.as_ref())?;
            named_as(data, &loaded.description.classes)
        };
        let setting = Setting {
            classes: loaded.description.classes.len(),
            load: &load,
            fit: Some(Fit {
                model: &loaded.network,
                training: &training,
                device: &device.device,
                seed: args.seed,
            }),
        };
        let wrong = |problems: Vec<PlanProblem>| match &file {
            Some(file) => file.explain(&problems),
            None => {
                let texts = problems.into_iter().map(|found| found.problem);
                Failure::request(texts.collect::<Vec<_>>().join("\n"))
            }
        };
        let problems = plan.problems(setting.classes);
        if !problems.is_empty() {
            return Err(wrong(problems));
        }
        let budgets = plan.threats.iter().flat_map(|threat| &threat.within);
        let budgets: Vec<Budget> = budgets.cloned().collect();
        for budget in &budgets {
            too_large(budget, data.shape)?;
        }
        for requirement in &args.require {
            let threat = &requirement.threat;
            if !budgets.contains(threat) {
                let hint = match &file {
                    Some(file) => format!(
                        "a `[[threat]]` with `within = \"{threat}\"` in {} does",
                        file.name()
                    ),
                    None => format!("`--threat '{threat}'` does"),
                };
                return Err(Failure::request(format!(
                    "`--require {threat}`: the audit does not measure {threat}\n\nhint: {hint}"
                )));
            }
        }
        let out = args
            .out
            .clone()
            .unwrap_or_else(|| audit_folder(&loaded.origin));
        let state = state_folder(&out);
        fs::create_dir_all(&state).map_err(|error| unwritable(&out, &error))?;
        let lock = lock(&state, &out)?;
        // What follows may take long: what is wrong with the request has been told by now.
        let suites = plan.suites(&setting).map_err(wrong)?;
        let cpu = device.is_cpu();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        interrupt::catch("stopping after the images that are being attacked");
        Ok(Self {
            quiet,
            identity: json!({
                "weights": gauntlet_models::weights::hashes(&loaded.network),
                "config": loaded.description.config,
                "device": device.label(),
                "version": env!("CARGO_PKG_VERSION"),
            }),
            name: loaded.origin.path().display().to_string(),
            model: loaded.network,
            data,
            plan,
            suites,
            diagnose: !args.no_diagnosis,
            seed: args.seed,
            batch_size: args.batch_size.unwrap_or(if cpu { 64 } else { 512 }),
            workers: if cpu { args.jobs.unwrap_or(cores) } else { 1 },
            device,
            out,
            _lock: lock,
        })
    }

    /// Attacks and corrupts what is not done yet.
    fn run(&mut self) -> Result<Measured, Failure> {
        let mut progress = Shown::new(self.quiet);
        let mut watch = |stage: Stage| {
            progress.show(&stage);
            !interrupt::asked()
        };
        let state = state_folder(&self.out);
        let corruptions = self.plan.corruptions.iter().flat_map(|plan| {
            let pairs = |family: &Corruption| {
                let family = *family;
                plan.severities
                    .iter()
                    .map(move |&severity| (family, severity))
            };
            plan.families.iter().flat_map(pairs)
        });
        let mut auditor = Auditor {
            subject: Subject {
                model: &self.model,
                data: &self.data,
                device: &self.device.device,
                seed: self.seed,
                batch_size: self.batch_size,
                workers: self.workers,
            },
            suites: std::mem::take(&mut self.suites),
            corruptions: corruptions.collect::<Vec<(Corruption, Severity)>>(),
            certify: self.plan.certify.clone(),
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
        let certified = auditor.run_certify(&mut watch)?;
        if certified.is_none() && self.plan.certify.is_some() {
            return Err(stopped());
        }
        Ok((found, corruptions, certified))
    }

    fn audit(
        &self,
        found: &[Found],
        corruptions: Vec<CorruptionResult>,
        certified: Option<Certified>,
    ) -> Audit {
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
            certified,
            standard: None,
        }
    }

    /// Samples classified correctly, where no attack has counted them.
    fn clean_right(&self) -> usize {
        use gauntlet_attacks::evaluate::predictions;
        use gauntlet_models::Classifier;
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
        let plan = toml::to_string(&self.plan).expect("a plan is plain tables and values");
        write(&self.out.join("plan.toml"), plan.as_bytes())?;
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
        // Attacks that go to the edge of the budget leave distances that differ by rounding only: there the surest counts.
        let size = |i: usize| (1e4 * found.standing.distance[i].unwrap_or(0.0)).round();
        let sure = |i: usize| found.standing.confidence[i].unwrap_or(0.0);
        fallen.sort_by(|&a, &b| {
            let by_size = size(a).total_cmp(&size(b));
            by_size.then(sure(b).total_cmp(&sure(a))).then(a.cmp(&b))
        });
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

    /// Adversarial examples of the samples that fell: as `.npz`, one file a budget, or as PNG files in a folder.
    fn export(&self, path: &Path, found: &[Found]) -> Result<(), Failure> {
        let data = &self.data;
        for found in found {
            let threat = file_name(&found.threat.threat);
            if !is_npz(path) {
                self.export_pictures(&path.join(threat), found)?;
                continue;
            }
            let path = if self.plan_has_several() {
                let stem = path.file_stem().unwrap_or_default().to_string_lossy();
                path.with_file_name(format!("{stem}-{threat}.npz"))
            } else {
                path.to_owned()
            };
            let places: Vec<usize> = found.examples.keys().copied().collect();
            let (clean, labels) = data.batch(&places, &self.device.device);
            let clean: Vec<f32> = clean.try_into_vec_as().expect("images of the data set");
            let labels: Vec<i64> = labels.try_into_vec_as().expect("labels of the data set");
            let index: Vec<i64> = places.iter().map(|&i| i64::from(data.ids[i])).collect();
            let attacked: Vec<f32> = found.examples.values().flatten().copied().collect();
            let examples = arrays::Examples {
                shape: data.shape,
                attacked: &attacked,
                clean: &clean,
                labels: &labels,
                index: &index,
            };
            arrays::write_npz(&path, &examples)
                .map_err(|error| Failure::running(error.to_string()))?;
        }
        Ok(())
    }

    /// `FOLDER/test/CLASS/INDEX.png`, as data sets of images lie. Values are rounded to 8 bits: an example may lose its effect by
    /// that.
    fn export_pictures(&self, folder: &Path, found: &Found) -> Result<(), Failure> {
        let data = &self.data;
        let place = |&sample: &usize| {
            let id = data.ids[sample];
            let class = &data.classes[data.labels[id as usize] as usize];
            let class = folder.join("test").join(class);
            class.join(format!("{id:06}.png"))
        };
        let paths: Vec<PathBuf> = found.examples.keys().map(place).collect();
        let classes = fs::read_dir(folder.join("test")).into_iter().flatten();
        let classes = classes.filter_map(|class| fs::read_dir(class.ok()?.path()).ok());
        let others = classes.flatten().filter_map(|file| Some(file.ok()?.path()));
        if let Some(other) = others.into_iter().find(|path| !paths.contains(path)) {
            return Err(Failure::running(format!(
                "{}: there is {} already, which is of another audit\n\nhint: name another folder; what was attacked is kept",
                folder.display(),
                other.display()
            )));
        }
        for (path, pixels) in paths.iter().zip(found.examples.values()) {
            let class = path.parent().expect("it was joined from parts");
            fs::create_dir_all(class).map_err(|error| {
                Failure::running(format!("{}: {}", class.display(), reason(&error)))
            })?;
            write(path, &picture::png(pixels, data.shape))?;
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
        let mut lines = vec![
            format!("report    {}", page.display()),
            format!("json      {}", json.display()),
        ];
        if !self.plan.threats.is_empty() {
            let outcomes = self.out.join("outcomes.safetensors");
            lines.push(format!("samples   {}", outcomes.display()));
        }
        if let Some(path) = &args.examples {
            lines.push(format!("examples  {}", path.display()));
        }
        output::print(lines.join("\n"));
    }
}

/// Pictures of each budget in the report.
const PICTURES: usize = 8;

fn state_folder(out: &Path) -> PathBuf {
    out.join("state")
}

fn unwritable(path: &Path, error: &std::io::Error) -> Failure {
    Failure::running(format!(
        "{}: {}\n\nhint: `--out DIR` says where to keep an audit",
        path.display(),
        reason(error)
    ))
}

/// Keeps a second audit away from the folder of one that is running.
fn lock(state: &Path, out: &Path) -> Result<File, Failure> {
    let path = state.join(".lock");
    let wrong = |error| unwritable(&path, &error);
    let file = File::create(&path).map_err(wrong)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Failure::request(format!(
            "{} is in use by another process\n\nhint: `--out DIR` keeps this audit elsewhere",
            out.display()
        ))),
        Err(TryLockError::Error(error)) => Err(wrong(error)),
    }
}

/// What cannot be written to is told before the attacks, not after them.
fn check_targets(args: &args::Audit) -> Result<(), Failure> {
    let files = [("--json", &args.json), ("--html", &args.html)];
    let files = files
        .into_iter()
        .filter_map(|(option, path)| Some((option, path.as_deref()?)))
        .filter(|(_, path)| *path != Path::new("-"));
    for (option, path) in files {
        check_file(option, path)?;
    }
    match &args.examples {
        Some(path) if is_npz(path) => check_file("--examples", path),
        Some(path) if path.is_file() => Err(Failure::request(format!(
            "`--examples {}`: this is a file\n\nhint: name a folder for pictures, or a file that ends in `.npz`",
            path.display()
        ))),
        _ => Ok(()),
    }
}

fn check_file(option: &str, path: &Path) -> Result<(), Failure> {
    let shown = path.display();
    if path.is_dir() {
        let text = format!("`{option} {shown}`: this is a folder; name a file in it");
        return Err(Failure::request(text));
    }
    match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() && !folder.is_dir() => {
            Err(Failure::request(format!(
                "`{option} {shown}`: there is no folder {}",
                folder.display()
            )))
        }
        _ => Ok(()),
    }
}

fn is_npz(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "npz")
}

/// A budget that takes in more than an image has.
pub(crate) fn too_large(budget: &Budget, [_, height, width]: [usize; 3]) -> Result<(), Failure> {
    let too_large = match budget {
        Budget::Patch(patch) => patch.side > height.min(width),
        Budget::Norm(threat) if threat.norm == Norm::L0 => {
            f64::from(threat.eps.value()) > (height * width) as f64
        }
        _ => false,
    };
    if too_large {
        return Err(Failure::request(format!(
            "{budget} is more than an image of {height} x {width} pixels has"
        )));
    }
    Ok(())
}

/// What to attack with, and how hard.
fn plan(
    args: &args::Audit,
    file: Option<&PlanFile>,
    run: Option<&Plan>,
) -> Result<AuditPlan, Failure> {
    if let Some(file) = file {
        if !args.threat.is_empty() {
            return Err(Failure::request(
                "`--threat` goes with `--plan standard` or `--plan quick`: a plan file names its own budgets",
            ));
        }
        return Ok(file.plan.clone());
    }
    let within = match (&args.threat[..], run) {
        ([], Some(plan)) => vec![Budget::from(plan.threat.model())],
        ([], None) => {
            return Err(Failure::request(
                "the model is in no run, so its threat model is not known\n\nhint: name one, such as `--threat linf:8/255`",
            ));
        }
        (threats, _) => threats.to_vec(),
    };
    let name = match args.plan {
        PlanName::Suite(name) => name,
        PlanName::File(_) => SuiteName::default(),
    };
    Ok(AuditPlan::of(name, within))
}

/// Where an audit is kept unless told otherwise: in the checkpoint, or under the name of the file, in the current folder.
fn audit_folder(origin: &Origin) -> PathBuf {
    match origin {
        Origin::Checkpoint(folder) => folder.join("audit"),
        Origin::File(path) => Path::new("audits").join(path.file_stem().unwrap_or_default()),
    }
}

/// Shape of the images and names of the classes.
pub(crate) type Takes = ([usize; 3], Vec<String>);

/// The plan of the run that a model is of, if it is of one.
pub(super) fn run_of(model: &Path) -> Option<Plan> {
    let run = |folder: &Path| RunDir::plan(folder).ok();
    run(model).or_else(|| run(model.canonicalize().ok()?.parent()?.parent()?))
}

/// Shape of the images and names of the classes, where the data tell them before they are loaded: a weights file does not.
fn shape_of(args: &args::Audit, run: Option<&Plan>) -> Result<Option<Takes>, Failure> {
    let source = match &args.data {
        Some(args::DataName::Known(source)) => *source,
        Some(args::DataName::Files(path)) => {
            let data = user_data(path, args, run)?;
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
        (Some(args::DataName::Files(path)), _) => user_data(path, args, run)?,
        (Some(args::DataName::Known(source)), _) => known_data(&DataConfig::of(*source), 0)?,
        (None, Some(plan)) if args.validation => held_out(plan)?,
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
    let data = data.take(args.samples.unwrap_or(data.len()));
    if data.is_empty() {
        return Err(Failure::request("there are no test images to audit on"));
    }
    named_as(data, &description.classes).map_err(Failure::request)
}

/// The data with the classes of the model: by name, or in their order if they have no name in common.
fn named_as(mut data: Dataset, classes: &[String]) -> Result<Dataset, String> {
    let place = |name: &String| classes.iter().position(|class| class == name);
    let places: Vec<_> = data.classes.iter().map(place).collect();
    if places.iter().any(Option::is_some) {
        let to: Option<Vec<u32>> = places
            .iter()
            .map(|place| place.map(|place| place as u32))
            .collect();
        let to = to.ok_or_else(|| {
            let known =
                |(name, place): (&String, &Option<usize>)| place.is_none().then(|| name.clone());
            let unknown = data.classes.iter().zip(&places).find_map(known);
            format!(
                "{} has a class `{}` that the model does not know; it knows {}",
                data.name,
                unknown.unwrap_or_default(),
                classes.join(", ")
            )
        })?;
        if to.iter().enumerate().any(|(from, &to)| from as u32 != to) {
            let labels = data.labels.iter().map(|&label| to[label as usize]);
            data.labels = Arc::new(labels.collect());
        }
    }
    data.classes = Arc::new(classes.to_vec());
    Ok(data)
}

fn known_data(config: &DataConfig, seed: u64) -> Result<Dataset, Failure> {
    Ok(gauntlet_data::load(config, &fetch::default_root(), seed)?.test)
}

/// The images that a run held out of training.
fn held_out(plan: &Plan) -> Result<Dataset, Failure> {
    let splits = gauntlet_data::load(&plan.data, &fetch::default_root(), plan.seed)?;
    if splits.validation.is_empty() {
        return Err(Failure::request(
            "`--validation`: the run held no images out of training (`data.validation = 0`)",
        ));
    }
    Ok(splits.validation)
}

/// The training part of the data, for what is found on other images than those of the audit.
fn training_data(args: &args::Audit, run: Option<&Plan>) -> Result<Dataset, String> {
    let (config, seed) = match (&args.data, run) {
        (Some(args::DataName::Known(source)), _) => (DataConfig::of(*source), 0),
        (Some(args::DataName::Files(path)), _) if path.is_dir() => {
            let mut config = DataConfig::of(Source::ImageFolder);
            config.path = Some(path.clone());
            (config, split_seed(run))
        }
        (None, Some(plan)) => (plan.data.clone(), plan.seed),
        _ => return Err("arrays are test images; it needs training images".to_owned()),
    };
    let splits = gauntlet_data::load(&config, &fetch::default_root(), seed);
    Ok(splits.map_err(|error| error.to_string())?.train)
}

/// What decides which images of a folder are its test part where it has no folder for that. Of the run's own folder none may
/// be that it was trained on.
fn split_seed(run: Option<&Plan>) -> u64 {
    run.map_or(0, |run| run.seed)
}

/// A folder of images, or arrays.
fn user_data(path: &Path, args: &args::Audit, run: Option<&Plan>) -> Result<Dataset, Failure> {
    if path.is_dir() {
        let mut config = DataConfig::of(Source::ImageFolder);
        config.path = Some(path.to_owned());
        return Ok(gauntlet_data::load_test(
            &config,
            &fetch::default_root(),
            split_seed(run),
        )?);
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
            Stage::Certify { done, total } => ("certificates".to_owned(), *done, *total),
        };
        if self.now.as_ref().is_none_or(|(shown, _)| *shown != what) {
            self.now = None;
            // Without a terminal, a line a stage, and the counter's.
            if !self.quiet && !output::watched() {
                match done {
                    0 => say(&what),
                    _ => say(format!("{what}, going on after {done} of {total}")),
                }
            }
            let template = "{msg} {wide_bar} {pos}/{len}, {eta} left";
            let (done, total) = (done as u64, Some(total as u64));
            let counter = Counter::new(&what, done, total, template, self.quiet);
            self.now = Some((what, counter));
        }
        if let Some((_, counter)) = &mut self.now {
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
                &short(attack.seconds),
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
    if let Some(certified) = &audit.certified {
        print_certified(certified);
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

/// `0.4 s`, `12 s`
fn short(seconds: f64) -> String {
    if seconds < 9.95 {
        return format!("{seconds:.1} s");
    }
    duration(seconds)
}

/// Where to read on.
fn first_remedy(code: &str) -> String {
    match diagnosis(code) {
        Some(_) => format!("cause and remedy: the report, or DIAGNOSIS.md, section `{code}`"),
        None => String::new(),
    }
}

fn print_certified(certified: &Certified) {
    let mut table = output::table(&["certified within L2", ">accuracy"]);
    table.add_row([
        "smoothed prediction".to_owned(),
        percent(certified.accuracy),
    ]);
    for at in &certified.certified {
        table.add_row([at.radius.to_string(), percent(at.accuracy)]);
    }
    let protocol = &certified.protocol;
    output::print(format!(
        "\n{}\nsmoothed by noise of sigma {}, {} + {} draws, error {}; abstains from {}; mean radius {:.3}; {}",
        table.trim_fmt(),
        protocol.sigma,
        protocol.selection,
        protocol.samples,
        protocol.alpha,
        percent(certified.abstained),
        certified.mean_radius,
        short(certified.seconds)
    ));
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

/// What an audit found: attacks, corruptions, certificates.
type Measured = (Vec<Found>, Vec<CorruptionResult>, Option<Certified>);

impl Requirement {
    /// What is to be said if the audit does not meet it.
    fn missed(&self, audit: &Audit) -> Option<String> {
        let wanted = &self.threat;
        let is_wanted = |text: &str| text.parse().is_ok_and(|budget: Budget| budget == *wanted);
        let mut threats = audit.threats.iter();
        let Some(found) = threats.find(|threat| is_wanted(&threat.threat)) else {
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

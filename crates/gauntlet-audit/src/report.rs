use std::path::Path;

use gauntlet_attacks::{AttackLoss, Init};
use gauntlet_data::files;
use gauntlet_data::picture::{self, Example, RgbImage};

use crate::{AttackResult, Audit, AuditError, Class, Data, Evaluation, Threat, Twin, run_page};

/// A quantity over the steps of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// What it is: `validation, clean`. A twin's curve names whose it is before a colon: `standard twin: validation, clean`.
    pub name: String,
    /// (epoch, value)
    pub points: Vec<(f64, f64)>,
}

/// All that a run's report shows.
#[derive(Clone, Debug)]
pub struct RunReport {
    /// Name of the run.
    pub name: String,
    /// What the run's model is called: `hardened`, or `standard`.
    pub label: String,
    /// The evaluation of the run's model.
    pub hardened: Evaluation,
    /// The standard twin's, if one was trained.
    pub standard: Option<Evaluation>,
    /// Curves over training, grouped by plot title.
    pub curves: Vec<(String, Vec<Curve>)>,
    /// Class names.
    pub classes: Vec<String>,
    /// The resolved config as TOML.
    pub config: String,
    /// Data set name, split, samples, hash.
    pub data: (String, String, usize, String),
    /// Seed, device, version.
    pub seed: u64,
    /// Name of the device.
    pub device: String,
    /// Version of gauntlet.
    pub version: String,
    /// Seconds of training.
    pub train_seconds: f64,
}

impl RunReport {
    /// The numbers, as `report.json` holds them.
    pub fn audit(&self) -> Audit {
        let evaluation = &self.hardened;
        let attack = &evaluation.attack;
        let (name, split, _, sha256) = self.data.clone();
        Audit {
            schema: 1,
            model: self.name.clone(),
            data: Data {
                name,
                split,
                samples: evaluation.samples(),
                sha256,
            },
            clean_accuracy: evaluation.clean_accuracy(),
            clean_interval: evaluation.clean_interval(),
            seed: self.seed,
            device: self.device.clone(),
            version: self.version.clone(),
            train_seconds: Some(self.train_seconds),
            plan: None,
            warnings: self.warnings(),
            checks: Vec::new(),
            findings: Vec::new(),
            corruptions: Vec::new(),
            certified: None,
            threats: vec![Threat {
                norm: Some(attack.threat.norm.to_string()),
                eps: Some(f64::from(attack.threat.eps.value())),
                per_class: Vec::new(),
                confusion: Vec::new(),
                confidence: None,
                threat: attack.threat.to_string(),
                robust_accuracy: evaluation.robust_accuracy(),
                robust_interval: evaluation.robust_interval(),
                attacks: vec![AttackResult {
                    name: evaluation.attack_name(),
                    steps: attack.steps,
                    step_size: Some(attack.step_size),
                    restarts: attack.restarts,
                    random_start: Some(attack.init == Init::Uniform),
                    loss: Some(match attack.loss {
                        AttackLoss::CrossEntropy => "cross-entropy".to_owned(),
                        AttackLoss::Margin => "margin".to_owned(),
                    }),
                    robust_accuracy: evaluation.robust_accuracy(),
                    seconds: evaluation.seconds,
                }],
            }],
            per_class: self.by_class(),
            standard: self.standard.as_ref().map(|twin| Twin {
                clean_accuracy: twin.clean_accuracy(),
                clean_interval: twin.clean_interval(),
                robust_accuracy: twin.robust_accuracy(),
                robust_interval: twin.robust_interval(),
            }),
        }
    }

    fn by_class(&self) -> Vec<Class> {
        let counts = self.hardened.per_class(self.classes.len());
        let class = |(name, &[samples, clean, robust]): (&String, &[usize; 3])| Class {
            name: name.clone(),
            samples,
            clean_accuracy: clean as f64 / samples.max(1) as f64,
            robust_accuracy: robust as f64 / samples.max(1) as f64,
        };
        self.classes.iter().zip(&counts).map(class).collect()
    }

    /// What a reader of the numbers should keep in mind.
    fn warnings(&self) -> Vec<String> {
        let (evaluation, samples) = (&self.hardened, self.hardened.samples());
        let attack = &evaluation.attack;
        let mut warnings = vec![
            "Robust accuracy under PGD alone is an upper bound: a stronger or another kind of attack can only lower it."
                .to_owned(),
        ];
        if samples < 1000 {
            warnings.push(format!(
                "Only {samples} samples were attacked: mind the intervals."
            ));
        }
        let reach = attack.steps as f32 * attack.step_size;
        if reach < attack.threat.eps.value() {
            warnings.push(format!(
                "The attack is weak: {} steps of {} cannot reach the edge of {} from its middle.",
                attack.steps, attack.step_size, attack.threat
            ));
        }
        let lost: Vec<String> = self
            .by_class()
            .into_iter()
            .filter(|class| class.samples > 0 && class.robust_accuracy == 0.0)
            .map(|class| class.name)
            .collect();
        if !lost.is_empty() && evaluation.robust_accuracy() > 0.0 {
            let (shown, dots) = if lost.len() > 5 {
                (5, ", ...")
            } else {
                (lost.len(), "")
            };
            warnings.push(format!(
                "No sample withstands the attack in {} of {} classes: {}{dots}.",
                lost.len(),
                self.classes.len(),
                lost[..shown].join(", ")
            ));
        }
        let outcome = &evaluation.outcome;
        let broken = (0..samples)
            .filter(|&i| outcome.clean[i] == u32::MAX || outcome.adversarial[i] == u32::MAX)
            .count();
        if broken > 0 {
            warnings.push(format!(
                "The model answered {broken} samples with logits that are no numbers; they count as wrong."
            ));
        }
        if self.standard.is_none() && self.label != "standard" {
            warnings.push("No standard twin was trained (`evaluate.baseline`): what hardening gained is not shown.".to_owned());
        }
        warnings
    }

    /// What hardening is worth against the standard twin, in percentage points.
    pub(crate) fn worth(&self) -> Option<String> {
        let twin = self.standard.as_ref()?;
        let points = |share: f64| format!("{:.1} points", 100.0 * share.abs());
        let gain = self.hardened.robust_accuracy() - twin.robust_accuracy();
        let clean = self.hardened.clean_accuracy() - twin.clean_accuracy();
        let under_attack = if gain < 0.0 {
            format!("hardening loses {} under attack", points(gain))
        } else {
            format!("hardening is worth {} under attack", points(gain))
        };
        let without = match clean {
            d if d < 0.0 => format!("costs {} of clean accuracy", points(d)),
            d if d > 0.0 => format!("gains {} of clean accuracy", points(d)),
            _ => "costs no clean accuracy".to_owned(),
        };
        Some(format!("{under_attack} and {without}"))
    }

    /// Writes `report.json`, the self-contained `report.html` and `samples/final.png` into `folder`, each atomically.
    ///
    /// # Errors
    /// [`AuditError::Write`] naming the file.
    pub fn write(&self, folder: &Path) -> Result<(), AuditError> {
        let audit = self.audit();
        let mut json = serde_json::to_vec_pretty(&audit).expect("plain structs serialise");
        json.push(b'\n');
        let samples = folder.join("samples");
        std::fs::create_dir_all(&samples).map_err(|source| AuditError::Write {
            path: samples.clone(),
            source,
        })?;
        write(
            &samples.join("final.png"),
            &picture::png_bytes(&self.picture(&self.hardened)),
        )?;
        write(&folder.join("report.json"), &json)?;
        write(
            &folder.join("report.html"),
            run_page::page(self, &audit).as_bytes(),
        )
    }

    /// The first samples of an evaluation: clean | perturbation | adversarial, with what the model said.
    pub fn picture(&self, evaluation: &Evaluation) -> RgbImage {
        let (clean, adversarial) = evaluation.gallery.clone();
        picture::grid(clean, adversarial, &self.examples(evaluation))
    }

    pub(crate) fn examples(&self, evaluation: &Evaluation) -> Vec<Example> {
        let outcome = &evaluation.outcome;
        let name = |class: u32| {
            let known = self.classes.get(class as usize);
            known.map_or("nothing", String::as_str).to_owned()
        };
        (0..evaluation.gallery.0.dims()[0])
            .map(|i| Example {
                label: name(outcome.labels[i]),
                clean: name(outcome.clean[i]),
                adversarial: name(outcome.adversarial[i]),
            })
            .collect()
    }

    /// The table people see at the end: standard vs hardened, clean and robust.
    pub fn table(&self) -> String {
        let attack = self.hardened.attack_name();
        let first = self.label.len().max("standard".len());
        let last = attack.len().max("100.00 %".len());
        let row = |name: &str, clean: &str, robust: &str| {
            format!("{name:<first$}  {clean:>8}  {robust:>last$}\n")
        };
        let model = |name: &str, evaluation: &Evaluation| {
            let clean = percent(evaluation.clean_accuracy());
            row(name, &clean, &percent(evaluation.robust_accuracy()))
        };
        let mut table = row("", "clean", &attack);
        if let Some(twin) = &self.standard {
            table += &model("standard", twin);
        }
        table += &model(&self.label, &self.hardened);
        let (name, split, ..) = &self.data;
        let (threat, samples) = (&self.hardened.attack.threat, self.hardened.samples());
        table += &format!("within {threat} on {samples} {split} images of {name}");
        if let Some(worth) = self.worth() {
            table += &format!(":\n{worth}");
        }
        table
    }
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), AuditError> {
    files::write(path, bytes).map_err(|source| AuditError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};
    use gauntlet_attacks::Pgd;
    use gauntlet_attacks::evaluate::Outcome;

    use super::*;
    use crate::html;

    fn evaluation(clean: [u32; 4], adversarial: [u32; 4]) -> Evaluation {
        let images = Tensor::<4>::full([2, 1, 4, 4], 0.5, &Device::flex());
        Evaluation {
            attack: Pgd {
                step_size: 0.01,
                restarts: 5,
                ..Pgd::new("linf:8/255".parse().unwrap(), 20)
            },
            outcome: Outcome {
                ids: vec![0, 1, 2, 3],
                labels: vec![0, 0, 1, 1],
                clean: clean.to_vec(),
                adversarial: adversarial.to_vec(),
            },
            seconds: 1.5,
            gallery: (images.clone(), images.add_scalar(0.1)),
        }
    }

    fn report() -> RunReport {
        RunReport {
            name: "<script>alert(1)</script>".to_owned(),
            label: "hardened".to_owned(),
            // 3 of 4 right; one of them falls.
            hardened: evaluation([0, 0, 1, 0], [0, 1, 1, 0]),
            standard: Some(evaluation([0, 0, 1, 1], [1, 1, 0, 0])),
            curves: vec![(
                "Accuracy".to_owned(),
                vec![Curve {
                    name: "training & more".to_owned(),
                    points: vec![(0.0, 0.1), (1.0, 0.9)],
                }],
            )],
            classes: vec!["cat".to_owned(), "dog\"".to_owned()],
            config: "eps = \"8/255\" # a < b".to_owned(),
            data: (
                "halves".to_owned(),
                "test".to_owned(),
                4,
                "abc123".to_owned(),
            ),
            seed: 7,
            device: "cpu".to_owned(),
            version: "0.1.0".to_owned(),
            train_seconds: 65.0,
        }
    }

    #[test]
    fn the_json_keeps_its_keys() {
        let folder = tempfile::tempdir().unwrap();
        report().write(folder.path()).unwrap();
        let json: serde_json::Value =
            serde_json::from_slice(&std::fs::read(folder.path().join("report.json")).unwrap())
                .unwrap();
        assert_eq!(json["schema"], 1);
        assert_eq!(json["data"]["samples"], 4);
        assert_eq!(json["clean_accuracy"], 0.75);
        assert_eq!(json["threats"][0]["threat"], "linf:8/255");
        assert_eq!(json["threats"][0]["robust_accuracy"], 0.5);
        let attack = &json["threats"][0]["attacks"][0];
        assert_eq!(
            (&attack["name"], &attack["steps"], &attack["restarts"]),
            (&"PGD-20x5".into(), &20.into(), &5.into())
        );
        assert_eq!(attack["loss"], "cross-entropy");
        assert_eq!(json["standard"]["robust_accuracy"], 0.0);
        // Wilson's upper end for none of 4: z^2 / (4 + z^2).
        let upper = json["standard"]["robust_interval"][1].as_f64().unwrap();
        assert!((upper - 3.841459 / 7.841459).abs() < 1e-6);
        let read: Audit = serde_json::from_value(json.clone()).unwrap();
        assert_eq!(read.threats[0].attacks, report().audit().threats[0].attacks);
        // A file of the first days, that does not state the twin's intervals, can be read.
        let mut early = json.clone();
        let twin = early["standard"].as_object_mut().unwrap();
        twin.retain(|key, _| key.ends_with("accuracy"));
        let early: Audit = serde_json::from_value(early).unwrap();
        assert_eq!(early.standard.unwrap().robust_interval, [0.0, 1.0]);
        assert_eq!(json["per_class"][1]["clean_accuracy"], 0.5);
        assert!(json["warnings"].as_array().unwrap().len() >= 2);
        let png = image_size(&std::fs::read(folder.path().join("samples/final.png")).unwrap());
        assert!(png.0 > 200 && png.1 > 200);
    }

    /// Width and height of a PNG file (its IHDR chunk).
    fn image_size(png: &[u8]) -> (u32, u32) {
        let word = |at: usize| u32::from_be_bytes(png[at..at + 4].try_into().unwrap());
        (word(16), word(20))
    }

    #[test]
    fn the_table_says_what_hardening_is_worth() {
        let table = report().table();
        let rows: Vec<Vec<&str>> = table
            .lines()
            .map(|line| line.split_whitespace().collect())
            .collect();
        assert_eq!(rows[0], ["clean", "PGD-20x5"]);
        assert_eq!(rows[1], ["standard", "100.00", "%", "0.00", "%"]);
        assert_eq!(rows[2], ["hardened", "75.00", "%", "50.00", "%"]);
        let ends: Vec<usize> = table.lines().take(3).map(|line| line.len()).collect();
        assert_eq!(ends, [ends[0]; 3], "columns end together");
        assert!(table.ends_with(
            "within linf:8/255 on 4 test images of halves:\n\
             hardening is worth 50.0 points under attack and costs 25.0 points of clean accuracy"
        ));
        let alone = RunReport {
            standard: None,
            ..report()
        };
        assert!(alone.table().ends_with("images of halves"));
    }

    #[test]
    fn a_loss_is_not_sold_as_a_gain() {
        let report = report();
        let swapped = RunReport {
            hardened: report.standard.clone().unwrap(),
            standard: Some(report.hardened.clone()),
            ..report
        };
        assert_eq!(
            swapped.worth().unwrap(),
            "hardening loses 50.0 points under attack and gains 25.0 points of clean accuracy"
        );
    }

    #[test]
    fn what_weakens_the_numbers_is_said() {
        let said = |report: RunReport, text: &str| {
            let warnings = report.audit().warnings;
            warnings.iter().any(|warning| warning.contains(text))
        };
        assert!(said(report(), "upper bound") && said(report(), "Only 4 samples"));
        assert!(!said(report(), "weak") && !said(report(), "twin"));
        let mut weak = report();
        weak.hardened.attack.steps = 3;
        assert!(said(weak, "3 steps of 0.01 cannot reach"));
        let mut alone = report();
        alone.standard = None;
        assert!(said(alone.clone(), "No standard twin"));
        alone.label = "standard".to_owned();
        assert!(!said(alone, "No standard twin"));
        let mut broken = report();
        broken.hardened.outcome.adversarial[3] = u32::MAX;
        assert!(said(broken, "1 samples with logits"));
        let mut lost = report();
        lost.hardened = evaluation([0, 0, 1, 1], [0, 0, 0, 0]);
        assert!(said(lost, "1 of 2 classes: dog\""));
    }

    #[cfg(unix)]
    #[test]
    fn the_files_are_as_readable_as_any_other_and_nothing_else_stays() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("plain"), "").unwrap();
        report().write(folder.path()).unwrap();
        report().write(folder.path()).unwrap();
        let mut names: Vec<String> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["plain", "report.html", "report.json", "samples"]);
        let mode = |name: &str| {
            let metadata = std::fs::metadata(folder.path().join(name)).unwrap();
            metadata.permissions().mode()
        };
        assert_eq!(mode("report.html"), mode("plain"));
    }

    #[test]
    fn the_page_stands_alone_and_escapes_what_it_shows() {
        let report = report();
        let page = run_page::page(&report, &report.audit());
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(1)"));
        assert!(page.contains("a &lt; b") && page.contains("training &amp; more"));
        html::testing::look("run.html", &page);
        html::testing::stands_alone(&page);
        for text in [
            "75.00 %",
            "50.00 %",
            "100.00 %",
            "30.1 to 95.4 %", // Wilson's interval of 3 in 4
            "PGD-20x5",
            "20 steps of 0.01 up the cross-entropy loss, 5 restarts",
            "abc123",
            "linf:8/255",
            "up to 8/255",
            "1 min 05 s",
            "1.5 s",
            "a cat taken for cat, under attack for dog&quot;",
        ] {
            assert!(page.contains(text), "{text}");
        }
        assert_eq!(page.matches("src=\"data:image/png;base64,iVBOR").count(), 2);
    }

    #[test]
    fn every_tag_is_closed_in_order() {
        let report = report();
        let page = run_page::page(&report, &report.audit());
        assert!(html::testing::elements(&page) > 30);
    }
}

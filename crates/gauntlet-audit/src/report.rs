use std::io::Write;
use std::path::Path;

use gauntlet_attacks::Init;
use gauntlet_data::picture::{self, Example, RgbImage};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{AuditError, Evaluation, html, wilson};

/// The stable JSON of an audit (`schema` 1). Accuracies are shares in [0, 1].
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Audit {
    /// Version of this layout: 1.
    pub schema: u32,
    /// Name of the run.
    pub model: String,
    /// What it was judged on.
    pub data: Data,
    /// Accuracy without attack.
    pub clean_accuracy: f64,
    /// 95 % interval of it (Wilson 1927).
    pub clean_interval: [f64; 2],
    /// Seed of the attack's random numbers.
    pub seed: u64,
    /// What it was computed on.
    pub device: String,
    /// Version of gauntlet.
    pub version: String,
    /// Seconds of training.
    pub train_seconds: f64,
    /// What a reader should keep in mind.
    pub warnings: Vec<String>,
    /// What it withstands.
    pub threats: Vec<Threat>,
    /// By class.
    pub per_class: Vec<Class>,
    /// The same numbers for a twin trained without attack, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub standard: Option<Twin>,
}

/// The samples of an audit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Data {
    /// Name of the data set.
    pub name: String,
    /// Which part of it.
    pub split: String,
    /// How many samples.
    pub samples: usize,
    /// SHA-256 of its pixels and labels.
    pub sha256: String,
}

/// What a model withstands within one budget.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Threat {
    /// `linf:0.1`
    pub threat: String,
    /// Accuracy after all attacks.
    pub robust_accuracy: f64,
    /// 95 % interval of it (Wilson 1927).
    pub robust_interval: [f64; 2],
    /// The attacks, in order.
    pub attacks: Vec<AttackResult>,
}

/// What is left standing after an attack and those before it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct AttackResult {
    /// `PGD-20x5`
    pub name: String,
    /// Gradient steps.
    pub steps: usize,
    /// Length of a step in input units.
    pub step_size: f32,
    /// Independent runs, the best kept per sample.
    pub restarts: usize,
    /// Whether each run starts at a random place in the ball.
    pub random_start: bool,
    /// Accuracy.
    pub robust_accuracy: f64,
    /// Wall-clock time.
    pub seconds: f64,
}

/// A class.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Class {
    /// Its name.
    pub name: String,
    /// How many samples.
    pub samples: usize,
    /// Accuracy without attack.
    pub clean_accuracy: f64,
    /// Accuracy under attack.
    pub robust_accuracy: f64,
}

/// A twin trained without attack.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Twin {
    /// Accuracy without attack.
    pub clean_accuracy: f64,
    /// Accuracy under attack.
    pub robust_accuracy: f64,
}

/// A quantity over the steps of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Curve {
    /// What it is: `validation robust accuracy`.
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
        let (outcome, attack) = (&evaluation.outcome, &evaluation.attack);
        let per_class = evaluation.per_class(self.classes.len());
        let sum = |k: usize| per_class.iter().map(|count| count[k]).sum();
        let (samples, clean, robust): (usize, usize, usize) = (sum(0), sum(1), sum(2));
        let (name, split, _, sha256) = self.data.clone();
        Audit {
            schema: 1,
            model: self.name.clone(),
            data: Data {
                name,
                split,
                samples,
                sha256,
            },
            clean_accuracy: outcome.clean_accuracy(),
            clean_interval: wilson(clean, samples),
            seed: self.seed,
            device: self.device.clone(),
            version: self.version.clone(),
            train_seconds: self.train_seconds,
            warnings: self.warnings(samples),
            threats: vec![Threat {
                threat: attack.threat.to_string(),
                robust_accuracy: outcome.robust_accuracy(),
                robust_interval: wilson(robust, samples),
                attacks: vec![AttackResult {
                    name: evaluation.attack_name(),
                    steps: attack.steps,
                    step_size: attack.step_size,
                    restarts: attack.restarts,
                    random_start: attack.init == Init::Uniform,
                    robust_accuracy: outcome.robust_accuracy(),
                    seconds: evaluation.seconds,
                }],
            }],
            per_class: self
                .classes
                .iter()
                .zip(&per_class)
                .map(|(name, &[samples, clean, robust])| Class {
                    name: name.clone(),
                    samples,
                    clean_accuracy: clean as f64 / samples.max(1) as f64,
                    robust_accuracy: robust as f64 / samples.max(1) as f64,
                })
                .collect(),
            standard: self.standard.as_ref().map(|twin| Twin {
                clean_accuracy: twin.outcome.clean_accuracy(),
                robust_accuracy: twin.outcome.robust_accuracy(),
            }),
        }
    }

    fn warnings(&self, samples: usize) -> Vec<String> {
        let mut warnings = vec![
            "Robust accuracy under PGD alone is an upper bound: a stronger or another kind of attack can only lower it."
                .to_owned(),
        ];
        if samples < 1000 {
            warnings.push(format!(
                "Only {samples} samples were attacked: mind the intervals."
            ));
        }
        if self.standard.is_none() && self.label != "standard" {
            warnings.push("No standard twin was trained (`evaluate.baseline`): what hardening gained is not shown.".to_owned());
        }
        warnings
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
        write_atomic(
            &samples.join("final.png"),
            &picture::png_bytes(&self.picture(&self.hardened)),
        )?;
        write_atomic(&folder.join("report.json"), &json)?;
        write_atomic(
            &folder.join("report.html"),
            html::page(self, &audit).as_bytes(),
        )
    }

    /// The first samples of an evaluation: clean | perturbation | adversarial, with what the model said.
    pub fn picture(&self, evaluation: &Evaluation) -> RgbImage {
        let outcome = &evaluation.outcome;
        let name = |class: u32| {
            self.classes
                .get(class as usize)
                .cloned()
                .unwrap_or_else(|| "nothing".to_owned())
        };
        let shown = evaluation.gallery.0.dims()[0];
        let examples: Vec<_> = (0..shown)
            .map(|i| Example {
                label: name(outcome.labels[i]),
                clean: name(outcome.clean[i]),
                adversarial: name(outcome.adversarial[i]),
            })
            .collect();
        picture::grid(
            evaluation.gallery.0.clone(),
            evaluation.gallery.1.clone(),
            &examples,
        )
    }

    /// The table people see at the end: standard vs hardened, clean and robust.
    pub fn table(&self) -> String {
        let attack = self.hardened.attack_name();
        let wide = self.label.len().max("standard".len());
        let row = |name: &str, evaluation: &Evaluation| {
            let (clean, robust) = (
                evaluation.outcome.clean_accuracy(),
                evaluation.outcome.robust_accuracy(),
            );
            let column = attack.len().max(8);
            format!(
                "{name:<wide$}  {:>8}  {:>column$}\n",
                percent(clean),
                percent(robust)
            )
        };
        let mut table = format!("{:<wide$}  {:>8}  {attack:>8}\n", "", "clean");
        if let Some(twin) = &self.standard {
            table += &row("standard", twin);
        }
        table += &row(&self.label, &self.hardened);
        let (name, split, samples, _) = &self.data;
        table += &format!(
            "within {} on {samples} {split} images of {name}",
            self.hardened.attack.threat
        );
        if let Some(twin) = &self.standard {
            let gain = self.hardened.outcome.robust_accuracy() - twin.outcome.robust_accuracy();
            table += &format!(
                ": hardening is worth {:.1} points under attack",
                100.0 * gain
            );
        }
        table
    }
}

pub(crate) fn percent(share: f64) -> String {
    format!("{:.2} %", 100.0 * share)
}

fn write_atomic(path: &Path, bytes: &[u8]) -> Result<(), AuditError> {
    let attempt = || {
        let mut file = tempfile::NamedTempFile::new_in(path.parent().unwrap_or(Path::new(".")))?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path)?;
        Ok(())
    };
    attempt().map_err(|source: std::io::Error| AuditError::Write {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};
    use gauntlet_attacks::evaluate::Outcome;
    use gauntlet_attacks::{AttackLoss, Keep, Pgd};

    use super::*;

    fn evaluation(clean: [u32; 4], adversarial: [u32; 4]) -> Evaluation {
        let images = Tensor::<4>::full([2, 1, 4, 4], 0.5, &Device::flex());
        Evaluation {
            attack: Pgd {
                threat: "linf:8/255".parse().unwrap(),
                loss: AttackLoss::CrossEntropy,
                steps: 20,
                step_size: 0.01,
                restarts: 5,
                init: Init::Uniform,
                keep: Keep::Best,
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
        assert_eq!(json["standard"]["robust_accuracy"], 0.0);
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
        assert!(table.ends_with(
            "linf:8/255 on 4 test images of halves: hardening is worth 50.0 points under attack"
        ));
    }

    #[test]
    fn the_page_stands_alone_and_escapes_what_it_shows() {
        let report = report();
        let page = html::page(&report, &report.audit());
        assert!(!page.contains("<script") && page.contains("&lt;script&gt;alert(1)"));
        assert!(page.contains("a &lt; b") && page.contains("training &amp; more"));
        // The namespace of SVG is a name, not an address that is loaded.
        assert!(
            !page
                .replace("http://www.w3.org/2000/svg", "")
                .contains("http")
        );
        for number in [
            "75.00 %",
            "50.00 %",
            "100.00 %",
            "PGD-20x5",
            "abc123",
            "linf:8/255",
            "0.01",
        ] {
            assert!(page.contains(number), "{number}");
        }
        for tag in [
            "html", "body", "table", "tr", "td", "svg", "figure", "details", "section", "style",
        ] {
            let opened = page.matches(&format!("<{tag}>")).count()
                + page.matches(&format!("<{tag} ")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }
}

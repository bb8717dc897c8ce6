//! A model card: Markdown with a YAML header, as hubs read it.

use std::fmt;

use gauntlet_models::Description;
use gauntlet_train::Plan;
use serde_json::{Value, json};

use crate::output::{percent, thousands};

/// What a card tells.
pub(super) struct Card<'a> {
    pub(super) name: &'a str,
    pub(super) description: &'a Description,
    pub(super) parameters: u64,
    pub(super) plan: Option<&'a Plan>,
    pub(super) audit: Option<&'a Value>,
    pub(super) hash: &'a str,
    /// Whether there are weights for PyTorch.
    pub(super) pytorch: bool,
}

impl fmt::Display for Card<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.header(f)?;
        let Description {
            config,
            shape: [channels, height, width],
            classes,
        } = self.description;
        writeln!(f, "\n# {}\n", self.name)?;
        writeln!(
            f,
            "An image classifier (`{}`, {} parameters) for images of {channels} × {height} × {width} in {} classes: {}. Inputs are in [0, 1]; {}.",
            config.arch,
            thousands(self.parameters),
            classes.len(),
            listed(classes),
            match (&config.mean, &config.std) {
                (None, None) => "nothing is normalised outside of the network".to_owned(),
                (mean, std) => format!(
                    "the network normalises by mean {:?} and standard deviation {:?} itself",
                    mean.as_deref().unwrap_or(&[0.0]),
                    std.as_deref().unwrap_or(&[1.0])
                ),
            }
        )?;
        self.threat(f)?;
        self.numbers(f)?;
        self.use_it(f)?;
        self.limits(f)?;
        if let Some(plan) = self.plan {
            let text = toml::to_string_pretty(plan).expect("a plan is plain tables and values");
            writeln!(f, "\n## Training\n\n```toml\n{}\n```", text.trim_end())?;
        }
        writeln!(f, "\n## Hashes\n")?;
        writeln!(
            f,
            "SHA-256 of the lines `NAME SHA-256` of all tensors, sorted by name: `{}`",
            self.hash
        )?;
        if let Some(data) = self
            .audit
            .and_then(|audit| audit["data"]["sha256"].as_str())
        {
            writeln!(f, "SHA-256 of the audited data: `{data}`")?;
        }
        Ok(())
    }
}

impl Card<'_> {
    fn data(&self) -> Option<String> {
        let planned = self.plan.map(|plan| plan.data.source.name().to_owned());
        planned.or_else(|| Some(self.audit?["data"]["name"].as_str()?.to_owned()))
    }

    fn threats(&self) -> impl Iterator<Item = (&str, f64)> {
        let threats = self.audit.and_then(|audit| audit["threats"].as_array());
        threats.into_iter().flatten().filter_map(|threat| {
            Some((
                threat["threat"].as_str()?,
                threat["robust_accuracy"].as_f64()?,
            ))
        })
    }

    fn header(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Strings as JSON has them are YAML too.
        let text = |text: &str| json!(text).to_string();
        writeln!(
            f,
            "---\ntags:\n- image-classification\n- adversarial-robustness\n- gauntlet"
        )?;
        writeln!(f, "pipeline_tag: image-classification")?;
        if let Some(data) = self.data() {
            writeln!(f, "datasets:\n- {}", text(&data))?;
        }
        writeln!(f, "metrics:\n- accuracy")?;
        let Some(audit) = self.audit else {
            return writeln!(f, "---");
        };
        let data = &audit["data"];
        let name = text(data["name"].as_str().unwrap_or_default());
        writeln!(f, "model-index:\n- name: {}\n  results:", text(self.name))?;
        writeln!(f, "  - task:\n      type: image-classification")?;
        writeln!(f, "    dataset:\n      name: {name}\n      type: {name}")?;
        writeln!(
            f,
            "      split: {}",
            text(data["split"].as_str().unwrap_or_default())
        )?;
        writeln!(f, "    metrics:")?;
        let metric = |f: &mut fmt::Formatter<'_>, name: &str, value: f64| {
            writeln!(
                f,
                "    - type: accuracy\n      name: {}\n      value: {}",
                text(name),
                (1e4 * value).round() / 1e2
            )
        };
        metric(
            f,
            "clean accuracy",
            audit["clean_accuracy"].as_f64().unwrap_or_default(),
        )?;
        for (threat, accuracy) in self.threats() {
            metric(f, &format!("robust accuracy within {threat}"), accuracy)?;
        }
        writeln!(f, "---")
    }

    fn threat(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## Threat model\n")?;
        match self.plan {
            Some(plan) => writeln!(
                f,
                "Trained (`{}`) to withstand changes of the input within `{}`, in units of inputs in [0, 1], by an attacker who knows the network and its weights.",
                json!(plan.train.objective).as_str().unwrap_or_default(),
                plan.threat.model()
            ),
            None => writeln!(f, "How it was trained is not known here."),
        }
    }

    fn numbers(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## Audit\n")?;
        let Some(audit) = self.audit else {
            return writeln!(
                f,
                "None is kept with this model: nothing is said of what it withstands. `gauntlet audit` finds out."
            );
        };
        let data = &audit["data"];
        writeln!(
            f,
            "{} {} images of {}, seed {}, on {}, Gauntlet {}:\n",
            data["samples"],
            data["split"].as_str().unwrap_or_default(),
            data["name"].as_str().unwrap_or_default(),
            audit["seed"],
            audit["device"].as_str().unwrap_or_default(),
            audit["version"].as_str().unwrap_or_default()
        )?;
        writeln!(f, "| threat | attack | left standing |\n|---|---|---:|")?;
        let clean = audit["clean_accuracy"].as_f64().unwrap_or_default();
        writeln!(f, "| none | | {} |", percent(clean))?;
        for threat in audit["threats"].as_array().into_iter().flatten() {
            for attack in threat["attacks"].as_array().into_iter().flatten() {
                writeln!(
                    f,
                    "| `{}` | {} | {} |",
                    threat["threat"].as_str().unwrap_or_default(),
                    attack["name"].as_str().unwrap_or_default(),
                    percent(attack["robust_accuracy"].as_f64().unwrap_or_default())
                )?;
            }
        }
        writeln!(
            f,
            "\nAttacks are made one after another, each on what those before left standing."
        )?;
        for warning in audit["warnings"].as_array().into_iter().flatten() {
            writeln!(f, "\n* {}", warning.as_str().unwrap_or_default())?;
        }
        Ok(())
    }

    fn use_it(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [channels, height, width] = self.description.shape;
        writeln!(f, "\n## Use\n\n```python")?;
        if self.pytorch {
            writeln!(
                f,
                "# PyTorch; networks.py is beside the weights\nfrom networks import load\nnetwork = load(\"model.safetensors\")          # strict; in eval mode"
            )?;
            writeln!(
                f,
                "logits = network(images)                     # float32 in [0, 1], [n, {channels}, {height}, {width}]\n"
            )?;
        }
        writeln!(
            f,
            "# ONNX Runtime\nimport onnxruntime\nsession = onnxruntime.InferenceSession(\"model.onnx\")\n(logits,) = session.run(None, {{\"input\": images}})\n```"
        )
    }

    fn limits(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## Limits\n")?;
        writeln!(
            f,
            "* Robust accuracy under attack is an upper bound: a stronger attack can only lower it. It is no certificate."
        )?;
        writeln!(
            f,
            "* It holds for the budgets above and images like those audited; other changes (other norms, other data, corruptions) were not looked at unless a row says so."
        )?;
        writeln!(f, "* Confidences are not calibrated.")
    }
}

/// The first few names.
fn listed(classes: &[String]) -> String {
    let mut text = classes
        .iter()
        .take(10)
        .cloned()
        .collect::<Vec<_>>()
        .join(", ");
    if classes.len() > 10 {
        text += ", ...";
    }
    text
}

//! The page of an audit.

use burn::tensor::Tensor;
use gauntlet_data::{Source, picture};

use crate::diagnosis::{findings, kinds};
use crate::histogram::histogram;
use crate::html::{
    accuracy, add, between, columns, document, duration, escape, fold, image, may, norm_name,
    plural, protocol, section, table, warnings, width,
};
use crate::replay::REPLAYED;
use crate::report::percent;
use crate::{Audit, Class, Threat, classes, plot};

/// A sample that fell at a small distance, for pictures.
#[derive(Clone, Debug)]
pub struct Weak {
    /// Its index in the data set.
    pub index: u32,
    /// Name of its class.
    pub label: String,
    /// What the model says without attack.
    pub clean: String,
    /// What it says under attack.
    pub adversarial: String,
    /// Name of the attack it fell to.
    pub attack: String,
    /// Size of the change in the norm of the threat model, where that is a norm.
    pub distance: Option<f32>,
    /// Image before and after the attack: `[1, channels, height, width]` each, with 1 or 3 channels, values in [0, 1].
    pub images: (Tensor<4>, Tensor<4>),
}

/// Threats up to this number are all unfolded where attacks are listed; of more, the first.
const UNFOLDED: usize = 3;

/// One file that needs nothing else: what the audit found, and the samples that are easiest to attack, by threat.
pub fn audit_page(audit: &Audit, weakest: &[(String, Vec<Weak>)]) -> String {
    let parts = [
        ("findings", "Diagnosis", findings(audit)),
        (
            "eps",
            "Robust accuracy by size of the budget",
            curves(audit),
        ),
        ("attacks", "Attack by attack", attack_by_attack(audit)),
        ("classes", "By class", by_class(audit)),
        ("confusion", "What fell to what", confusion(audit)),
        ("confidence", "How sure the model was", confidence(audit)),
        ("samples", "The weakest samples", samples(weakest)),
        ("corruptions", "Common corruptions", corruptions(audit)),
        ("certificates", "Certificates", certificates(audit)),
        ("protocol", "Protocol", how(audit)),
        ("again", "Do it again", again(audit)),
    ];
    let parts: Vec<_> = parts
        .into_iter()
        .filter(|(.., body)| !body.is_empty())
        .collect();
    let mut page = format!("<h1>{}</h1>\n", escape(&audit.model));
    headline(&mut page, audit);
    page += "<nav aria-label=\"Sections of this page\"><ul>\n";
    for (id, title, _) in &parts {
        add(
            &mut page,
            format_args!("<li><a href=\"#{id}\">{title}</a></li>\n"),
        );
    }
    page += "</ul></nav>\n";
    for (id, title, body) in &parts {
        section(&mut page, id, title, body);
    }
    document(&format!("Audit of {}", audit.model), &page)
}

/// Clean and robust accuracy, what each budget means, and what to keep in mind.
fn headline(page: &mut String, audit: &Audit) {
    let data = &audit.data;
    add(
        page,
        format_args!(
            "<p class=\"sub\">What the model withstands on {} {} images of {}.</p>\n<section>\n",
            data.samples,
            escape(&data.split),
            escape(&data.name),
        ),
    );
    if !audit.findings.is_empty() {
        let count = kinds(audit).len();
        add(
            page,
            format_args!(
                "<p class=\"warning\"><strong>{count} finding{}</strong> on why these numbers may be too good: \
                 see <a href=\"#findings\">Diagnosis</a>.</p>\n",
                plural(count),
            ),
        );
    }
    let mut rows = row(
        "no attack",
        "the images as they are",
        "clean",
        (audit.clean_accuracy, audit.clean_interval),
    );
    for threat in &audit.threats {
        let robust = (threat.robust_accuracy, threat.robust_interval);
        rows += &row(&threat.threat, &meaning(threat), "robust", robust);
    }
    if let Some(twin) = &audit.standard {
        let trained = "a twin that was trained without attack";
        let clean = (twin.clean_accuracy, twin.clean_interval);
        rows += &row("twin, no attack", trained, "clean", clean);
        let robust = (twin.robust_accuracy, twin.robust_interval);
        rows += &row("twin, attacked", trained, "robust", robust);
    }
    let head = columns(["what an attacker may do", "accuracy", "of all samples"]);
    *page += &table(
        "big full",
        "Accuracy without and under attack",
        &head,
        &rows,
    );
    *page += "<p class=\"sub\">A sample counts as robust if it is classified correctly and no attack changes that. Pixel \
              values range from 0 to 1. Below each number, and as a line across its bar, the 95 % interval (Wilson).</p>\n";
    warnings(page, audit);
    *page += "</section>\n";
}

fn row(name: &str, meaning: &str, kind: &str, (share, interval): (f64, [f64; 2])) -> String {
    let [low, high] = interval.map(width);
    format!(
        "<tr><th scope=\"row\"><code>{}</code><span class=\"range\">{}</span></th>{}<td class=\"wide\">\
         <span class=\"track\" role=\"img\" aria-label=\"{} of 100 %\"><span class=\"bar {kind}\" style=\"width:{:.1}%\"></span>\
         <span class=\"span\" style=\"left:{low:.1}%;width:{:.1}%\"></span></span></td></tr>\n",
        escape(name),
        escape(meaning),
        accuracy(share, interval),
        percent(share),
        width(share),
        (high - low).max(0.0),
    )
}

/// A budget in plain words; of a union of budgets each.
fn meaning(threat: &Threat) -> String {
    let parts = threat.threat.split('+').map(|part| {
        let (kind, size) = part.trim().split_once(':')?;
        may(kind, size)
    });
    match parts.collect::<Option<Vec<_>>>() {
        Some(parts) => parts.join(", or "),
        None => format!("change an image within the budget {}", threat.threat),
    }
}

/// A curve for each norm that was measured at more than one eps.
fn curves(audit: &Audit) -> String {
    let mut norms: Vec<&str> = Vec::new();
    for norm in audit
        .threats
        .iter()
        .filter_map(|threat| threat.norm.as_deref())
    {
        if !norms.contains(&norm) {
            norms.push(norm);
        }
    }
    let figures: String = norms
        .into_iter()
        .filter_map(|norm| {
            let of = |threat: &&Threat| threat.norm.as_deref() == Some(norm);
            let mut points: Vec<_> = audit
                .threats
                .iter()
                .filter(of)
                .filter_map(|threat| {
                    Some((threat.eps?, threat.robust_accuracy, threat.robust_interval))
                })
                .filter(|(eps, ..)| eps.is_finite() && *eps > 0.0)
                .collect();
            if points.len() < 2 {
                return None;
            }
            points.push((0.0, audit.clean_accuracy, audit.clean_interval));
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            Some(format!(
                "<figure><figcaption>{}</figcaption>{}</figure>\n",
                escape(&norm_name(norm)),
                plot::robustness(norm, &points)
            ))
        })
        .collect();
    if figures.is_empty() {
        return figures;
    }
    format!(
        "<p class=\"sub\">At 0 the accuracy without attack; bars are 95 % intervals. Between the points nothing was measured.</p>\n\
         <div class=\"pair\">{figures}</div>"
    )
}

/// What each attack left standing.
fn attack_by_attack(audit: &Audit) -> String {
    let open = audit.threats.len() <= UNFOLDED;
    let all = audit.threats.iter().enumerate();
    let tables: String = all
        .filter(|(_, threat)| !threat.attacks.is_empty())
        .map(|(place, threat)| {
            fold(
                open || place == 0,
                &summary(threat),
                &attacks(audit, threat),
            )
        })
        .collect();
    if tables.is_empty() {
        return tables;
    }
    let note = "Each attack is given what those before it left standing. The solid part of a bar still stands, the striped part \
                has just fallen. Steps of attacks without gradients are queries.";
    format!("<p class=\"sub\">{note}</p>\n{tables}")
}

fn summary(threat: &Threat) -> String {
    format!(
        "{}: {} left standing ({})",
        threat.threat,
        percent(threat.robust_accuracy),
        between(threat.robust_interval)
    )
}

fn attacks(audit: &Audit, threat: &Threat) -> String {
    let start = format!(
        "<tr><th scope=\"row\">no attack</th><td>{}</td><td></td><td></td><td></td><td></td>{}</tr>\n",
        percent(audit.clean_accuracy),
        flow(audit.clean_accuracy, audit.clean_accuracy),
    );
    let mut rows = start;
    let mut before = audit.clean_accuracy;
    for attack in &threat.attacks {
        let left = attack.robust_accuracy;
        let fell = ((before - left) * audit.data.samples as f64).round();
        let steps = if attack.steps == 0 {
            "–".to_owned()
        } else {
            attack.steps.to_string()
        };
        add(
            &mut rows,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{fell:.0}</td><td>{steps}</td><td>{}</td><td>{}</td>{}</tr>\n",
                escape(&attack.name),
                percent(left),
                attack.restarts,
                duration(attack.seconds),
                flow(before, left),
            ),
        );
        before = left;
    }
    let head = columns([
        "attack",
        "left standing",
        "fell to it",
        "steps",
        "restarts",
        "time",
        "what is left",
    ]);
    let label = format!("Attacks within {}", threat.threat);
    table("", &label, &head, &rows)
}

fn flow(before: f64, left: f64) -> String {
    let (before, left) = (width(before), width(left));
    format!(
        "<td class=\"wide\" aria-hidden=\"true\"><span class=\"track flow\"><span class=\"bar robust\" style=\"width:{left:.1}%\"></span>\
         <span class=\"bar lost\" style=\"width:{:.1}%\"></span></span></td>",
        (before - left).max(0.0)
    )
}

fn by_class(audit: &Audit) -> String {
    let known: Vec<&Threat> = audit
        .threats
        .iter()
        .filter(|threat| !threat.per_class.is_empty())
        .collect();
    let Some(first) = known.first() else {
        let classes = audit.per_class.as_slice();
        return match classes {
            [] => String::new(),
            _ => classes::by_class(classes, &[("under attack", classes)], 0),
        };
    };
    let attacked: Vec<(&str, &[Class])> = known
        .iter()
        .map(|threat| (threat.threat.as_str(), threat.per_class.as_slice()))
        .collect();
    let robust = |place: &usize| known[*place].robust_accuracy;
    let hardest = (0..known.len()).min_by(|a, b| robust(a).total_cmp(&robust(b)));
    classes::by_class(&first.per_class, &attacked, hardest.unwrap_or(0))
}

fn confusion(audit: &Audit) -> String {
    let shown = audit.threats.iter().filter(|t| !t.confusion.is_empty());
    let tables: String = shown
        .enumerate()
        .map(|(place, threat)| {
            let classes = if threat.per_class.is_empty() {
                &audit.per_class
            } else {
                &threat.per_class
            };
            let names: Vec<&str> = classes.iter().map(|class| class.name.as_str()).collect();
            let body = classes::confusion(&names, &threat.confusion);
            fold(place == 0, &threat.threat, &body)
        })
        .collect();
    if tables.is_empty() {
        return tables;
    }
    let note = "A row is a class, a column what its samples ended as: as their own class (framed) if they withstood all attacks, \
                else as what the model said of them under attack, or without one where it was wrong already. \
                Shades are shares of the row.";
    format!("<p class=\"sub\">{note}</p>\n{tables}")
}

fn confidence(audit: &Audit) -> String {
    let mut known = audit
        .threats
        .iter()
        .filter_map(|threat| Some((threat, threat.confidence.as_ref()?)))
        .peekable();
    let Some((_, first)) = known.peek() else {
        return String::new();
    };
    let mut figures = histogram("clean, right", &first.clean_right, "var(--clean)");
    figures += &histogram("clean, wrong", &first.clean_wrong, "#8a8a8a");
    for (threat, confidence) in known {
        let caption = format!("adversarial, {}", threat.threat);
        figures += &histogram(&caption, &confidence.adversarial, "var(--robust)");
    }
    let note = "Softmax probability of the predicted class: of clean samples, and of the adversarial examples that samples fell to. \
                Heights are shares of the samples of a plot.";
    format!("<p class=\"sub\">{note}</p>\n<div class=\"three\">{figures}</div>")
}

fn samples(weakest: &[(String, Vec<Weak>)]) -> String {
    let mut html = String::new();
    for (threat, samples) in weakest.iter().filter(|(_, samples)| !samples.is_empty()) {
        add(
            &mut html,
            format_args!("<h3>{}</h3>\n<div class=\"three\">", escape(threat)),
        );
        for sample in samples {
            html += &weak(sample);
        }
        html += "</div>\n";
    }
    if html.is_empty() {
        return html;
    }
    let note = "Of each budget the samples that fell at the smallest distance: the image, what the attack changed (amplified around \
                grey), the image under attack.";
    format!("<p class=\"sub\">{note}</p>\n{html}")
}

fn weak(sample: &Weak) -> String {
    let (clean, adversarial) = sample.images.clone();
    let picture = picture::grid(clean, adversarial, &[]);
    let distance = match sample.distance {
        // Pixels are counted.
        Some(count) if count >= 1.0 && count.fract() == 0.0 => format!(" at distance {count}"),
        Some(distance) => format!(" at distance {distance:.4}"),
        None => String::new(),
    };
    let by = match sample.attack.strip_prefix(REPLAYED) {
        Some(budgets) => format!("as within{budgets}"),
        None => format!("by {}", sample.attack),
    };
    let (index, label) = (sample.index, &sample.label);
    let wrong = if sample.clean == *label {
        String::new()
    } else {
        format!(" (without attack for {})", sample.clean)
    };
    let fell = format!(
        "{label}, taken for {} {by}{distance}{wrong}",
        sample.adversarial
    );
    let alt = format!("Sample {index} before the attack, the change, and after it: {fell}");
    format!(
        "<figure><figcaption>Sample {index}<span class=\"note\">{}</span></figcaption>{}</figure>\n",
        escape(&fell),
        image(&picture, &alt)
    )
}

/// Accuracy by family and severity.
fn corruptions(audit: &Audit) -> String {
    let results = &audit.corruptions;
    if results.is_empty() {
        return String::new();
    }
    let mut families: Vec<&str> = Vec::new();
    for result in results {
        if !families.contains(&result.family.as_str()) {
            families.push(&result.family);
        }
    }
    let mut severities: Vec<u8> = results.iter().map(|result| result.severity).collect();
    severities.sort_unstable();
    severities.dedup();
    let mean = |holds: &dyn Fn(&str, u8) -> bool| {
        let of: Vec<f64> = results
            .iter()
            .filter(|result| holds(&result.family, result.severity))
            .map(|result| result.accuracy)
            .collect();
        (!of.is_empty()).then(|| of.iter().sum::<f64>() / of.len() as f64)
    };
    let cell = |accuracy: Option<f64>| match accuracy {
        Some(accuracy) => {
            let lost = 1.0 - accuracy / audit.clean_accuracy.max(1e-9);
            format!(
                "<td style=\"background:rgba(213,94,0,{:.2})\">{:.1}</td>",
                0.65 * lost.clamp(0.0, 1.0),
                100.0 * accuracy
            )
        }
        None => "<td>–</td>".to_owned(),
    };
    let line = |name: &str, of: &dyn Fn(&str) -> bool| {
        let mut line = format!("<tr><th scope=\"row\">{name}</th>");
        for &severity in &severities {
            line += &cell(mean(&|family, at| of(family) && at == severity));
        }
        line + &cell(mean(&|family, _| of(family))) + "</tr>\n"
    };
    let mut rows: String = families
        .iter()
        .map(|&family| line(&escape(family), &|other| other == family))
        .collect();
    rows += &line("<b>mean</b>", &|_| true);
    let severities: Vec<String> = severities.iter().map(u8::to_string).collect();
    let names = ["corruption, by severity"].into_iter();
    let names = names
        .chain(severities.iter().map(String::as_str))
        .chain(["mean"]);
    let head = columns(names);
    format!(
        "<p class=\"sub\">Accuracy in percent; {} without corruption. The stronger the shade, the more of it is lost.</p>\n{}",
        percent(audit.clean_accuracy),
        table("heat", "Accuracy under common corruptions", &head, &rows)
    )
}

/// What randomised smoothing proves.
fn certificates(audit: &Audit) -> String {
    let Some(certified) = &audit.certified else {
        return String::new();
    };
    let line = |name: &str, accuracy: f64| {
        format!(
            "<tr><th scope=\"row\">{name}</th><td>{}</td></tr>\n",
            percent(accuracy)
        )
    };
    let mut rows = line("smoothed prediction", certified.accuracy);
    for at in &certified.certified {
        rows += &line(&format!("within L2 {}", at.radius), at.accuracy);
    }
    let protocol = &certified.protocol;
    let head = columns(["certified accuracy", "share of the samples"]);
    format!(
        "<p class=\"sub\">Randomised smoothing with noise of sigma {}: class by {} draws, its probability bounded by {}, each \
         certificate wrong with probability {} at most. It abstains from {} of the samples; the mean certified radius, wrong \
         ones counted as 0, is {:.3}. No attack can do better against the smoothed model; the tables above are of the model \
         itself.</p>\n{}",
        protocol.sigma,
        protocol.selection,
        protocol.samples,
        protocol.alpha,
        percent(certified.abstained),
        certified.mean_radius,
        table("", "Certified accuracy by radius", &head, &rows)
    )
}

fn how(audit: &Audit) -> String {
    let counts = "a sample is robust if it is classified correctly without attack and no attack of the plan finds an example \
                  within the budget that is not; examples are verified against the budget, and values that are no numbers count \
                  as wrong";
    protocol(audit, counts)
}

/// The command that does the same audit.
fn again(audit: &Audit) -> String {
    let mut command = format!("gauntlet audit {}", shell(&audit.model));
    // Folders of images and the like are known by the checkpoint alone.
    let name = serde_json::Value::String(audit.data.name.clone());
    let known = serde_json::from_value::<Source>(name).is_ok_and(|s| s != Source::ImageFolder);
    if known {
        command += &format!(" --data {}", shell(&audit.data.name));
    }
    command += &format!(" --samples {}", audit.data.samples);
    let named = ["standard", "quick"];
    let beside = match audit.plan.as_deref() {
        Some(plan) if !named.contains(&plan) => {
            command += " --plan plan.toml";
            " The plan lies in the folder of the audit."
        }
        plan => {
            if let Some(plan) = plan {
                command += &format!(" --plan {plan}");
            }
            for threat in &audit.threats {
                command += &format!(" --threat {}", shell(&threat.threat));
            }
            ""
        }
    };
    command += &format!(" --seed {}", audit.seed);
    format!(
        "<pre>{}</pre>\n<p class=\"sub\">With gauntlet {} the result is the same, up to rounding that differs between devices.{beside}</p>",
        escape(&command),
        escape(&audit.version)
    )
}

/// A word of a shell's command line.
fn shell(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,=+@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

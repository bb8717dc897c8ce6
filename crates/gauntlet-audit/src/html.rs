//! `report.html`: one file that needs nothing else.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gauntlet_attacks::Norm;
use gauntlet_data::picture;

use crate::report::percent;
use crate::{Audit, Evaluation, RunReport, plot};

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --faint: #8882; --clean: #1e82c8; --robust: #d55e00; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p.sub { margin-top: .2rem; opacity: .75; } .scroll + p.sub { margin-top: .6rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
tr > :first-child { text-align: left; padding-left: 0; } td { white-space: nowrap; }
.scroll { overflow-x: auto; } tbody th { font-weight: inherit; }
.big td { font-size: 1.25rem; } .big .range { display: block; font-size: .8rem; opacity: .7; }
.warning { border-left: .25rem solid #e69f00; padding: .2rem .8rem; margin: .4rem 0; background: var(--faint); }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; border-radius: .3rem; }
.plot { display: block; width: 100%; max-width: 46rem; height: auto; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .3rem 0; padding: 0; font-size: .9rem; }
.swatch { vertical-align: middle; }
.pair { display: flex; flex-wrap: wrap; gap: 0 1.5rem; } .pair figure { flex: 1 1 18rem; }
figcaption { font-weight: 600; margin-bottom: .3rem; }
.meter { min-width: 5.5rem; } .track { display: block; height: .5rem; background: var(--faint); border-radius: .15rem; }
.bar { display: block; height: 100%; border-radius: .15rem; }
.clean { background: var(--clean); } .robust { background: var(--robust); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dt { opacity: .75; } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 30rem) { dl { display: block; } dd { margin-bottom: .5rem; } .plot text { font-size: 19px; } th, td { padding: .3rem .45rem; } .meter { min-width: 4.5rem; } }
pre { overflow-x: auto; background: var(--faint); padding: .8rem; border-radius: .3rem; font-size: .85rem; }
";

/// The whole page.
pub(crate) fn page(report: &RunReport, audit: &Audit) -> String {
    let name = escape(&report.name);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
    );
    headline(&mut page, report, audit);
    for (title, curves) in &report.curves {
        let figure = plot::figure(title, curves);
        if !figure.is_empty() {
            section(&mut page, title, &figure);
        }
    }
    section(&mut page, "By class", &by_class(audit));
    let mut pictures = gallery(report, &report.label, &report.hardened);
    if let Some(twin) = &report.standard {
        pictures += &gallery(report, "standard", twin);
    }
    if !pictures.is_empty() {
        let note = "The image, what the attack changed (amplified around grey), the image under attack, and what the model said.";
        let text = format!("<p class=\"sub\">{note}</p>\n<div class=\"pair\">{pictures}</div>");
        section(&mut page, "What the attacker did", &text);
    }
    section(&mut page, "Protocol", &protocol(audit));
    let again = format!(
        "<p>Save the config below as <code>run.toml</code> and run <code>gauntlet train run.toml</code>.</p>\n\
         <details><summary>Config, every default written out</summary><pre>{}</pre></details>",
        escape(&report.config)
    );
    section(&mut page, "Do it again", &again);
    page + "</body>\n</html>\n"
}

fn section(page: &mut String, title: &str, body: &str) {
    let title = escape(title);
    add(
        page,
        format_args!("<section>\n<h2>{title}</h2>\n{body}\n</section>\n"),
    );
}

/// The numbers that matter, what they are worth, and what to keep in mind.
fn headline(page: &mut String, report: &RunReport, audit: &Audit) {
    let threat = &report.hardened.attack.threat;
    let may = match threat.norm {
        Norm::Linf => format!("change every pixel value by up to {}", threat.eps),
        Norm::L2 => format!(
            "change an image by up to {} in Euclidean length",
            threat.eps
        ),
        Norm::L1 => format!("change pixel values by up to {} in sum", threat.eps),
        Norm::L0 => format!("change up to {} pixels at will", threat.eps),
    };
    let (low, high) = threat.bounds;
    add(
        page,
        format_args!(
            "<p class=\"sub\">What the model withstands on {} {} images of {} if an attacker may {} (values range from {low} to {high}).</p>\n",
            audit.data.samples,
            escape(&audit.data.split),
            escape(&audit.data.name),
            escape(&may),
        ),
    );
    add(
        page,
        format_args!(
            "<section>\n<div class=\"scroll\"><table class=\"big\">\n<thead><tr><th scope=\"col\">accuracy</th>\
             <th scope=\"col\">clean</th><th scope=\"col\">{}</th></tr></thead>\n<tbody>\n",
            escape(&report.hardened.attack_name())
        ),
    );
    if let Some(twin) = &report.standard {
        row(page, "standard", twin);
    }
    row(page, &report.label, &report.hardened);
    *page +=
        "</tbody>\n</table></div>\n<p class=\"sub\">Below each number its 95 % interval (Wilson).";
    if let Some(worth) = report.worth() {
        let mut letters = worth.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        let sentence: String = first.into_iter().chain(letters).collect();
        add(page, format_args!(" {}.", escape(&sentence)));
    }
    *page += "</p>\n";
    for warning in &audit.warnings {
        let warning = escape(warning);
        add(page, format_args!("<p class=\"warning\">{warning}</p>\n"));
    }
    *page += "</section>\n";
}

fn row(page: &mut String, label: &str, evaluation: &Evaluation) {
    let cell = |share: f64, [low, high]: [f64; 2]| {
        format!(
            "<td>{}<span class=\"range\">{:.1} to {:.1} %</span></td>",
            percent(share),
            100.0 * low,
            100.0 * high
        )
    };
    add(
        page,
        format_args!(
            "<tr><th scope=\"row\">{}</th>{}{}</tr>\n",
            escape(label),
            cell(evaluation.clean_accuracy(), evaluation.clean_interval()),
            cell(evaluation.robust_accuracy(), evaluation.robust_interval()),
        ),
    );
}

fn by_class(audit: &Audit) -> String {
    let mut table = "<div class=\"scroll\"><table>\n<thead><tr><th scope=\"col\">class</th><th scope=\"col\">samples</th>\
                     <th scope=\"col\">clean</th><th scope=\"col\">under attack</th></tr></thead>\n<tbody>\n"
        .to_owned();
    let meter = |kind: &str, share: f64| {
        format!(
            "<td class=\"meter\">{}<span class=\"track\"><span class=\"bar {kind}\" style=\"width:{:.1}%\"></span></span></td>",
            percent(share),
            100.0 * share
        )
    };
    for class in &audit.per_class {
        add(
            &mut table,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td>{}</td>{}{}</tr>\n",
                escape(&class.name),
                class.samples,
                meter("clean", class.clean_accuracy),
                meter("robust", class.robust_accuracy),
            ),
        );
    }
    table + "</tbody>\n</table></div>"
}

fn gallery(report: &RunReport, label: &str, evaluation: &Evaluation) -> String {
    let examples = report.examples(evaluation);
    if examples.is_empty() {
        return String::new();
    }
    let said: Vec<String> = examples
        .iter()
        .map(|e| {
            format!(
                "a {} taken for {}, under attack for {}",
                e.label, e.clean, e.adversarial
            )
        })
        .collect();
    let picture = STANDARD.encode(picture::png_bytes(&report.picture(evaluation)));
    let (label, said) = (escape(label), escape(&said.join("; ")));
    format!(
        "<figure><figcaption>The {label} model</figcaption>\
         <img alt=\"The {label} model: {said}\" src=\"data:image/png;base64,{picture}\"></figure>\n"
    )
}

fn protocol(audit: &Audit) -> String {
    let mut list = "<dl>\n".to_owned();
    let mut entry = |term: &str, text: &str| {
        let text = escape(text);
        add(&mut list, format_args!("<dt>{term}</dt><dd>{text}</dd>\n"));
    };
    let data = &audit.data;
    entry(
        "data",
        &format!("{}, {}: {} samples", data.name, data.split, data.samples),
    );
    entry("SHA-256 of the data", &data.sha256);
    for threat in &audit.threats {
        entry("threat", &threat.threat);
        for attack in &threat.attacks {
            let mut text = format!("{}: {} steps", attack.name, attack.steps);
            if let Some(size) = attack.step_size {
                text += &format!(" of {size}");
            }
            if let Some(loss) = &attack.loss {
                text += &format!(" up the {loss} loss");
            }
            let plural = if attack.restarts == 1 { "" } else { "s" };
            text += &format!(", {} restart{plural}", attack.restarts);
            if let Some(random) = attack.random_start {
                let start = if random {
                    "a random place in the ball"
                } else {
                    "the clean image"
                };
                text += &format!(" from {start}");
            }
            entry("attack", &text);
            entry("time under attack", &duration(attack.seconds));
        }
    }
    entry(
        "what counts",
        "a sample classified correctly both without and with the attack",
    );
    entry("seed", &audit.seed.to_string());
    entry("device", &audit.device);
    entry("gauntlet", &audit.version);
    if let Some(seconds) = audit.train_seconds {
        entry("time of training", &duration(seconds));
    }
    list + "</dl>"
}

fn add(page: &mut String, text: std::fmt::Arguments<'_>) {
    page.write_fmt(text).expect("memory takes any text");
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 60.0 => format!("{s:.1} s"),
        s if s < 3600.0 => format!("{} min {:02} s", s as u64 / 60, s as u64 % 60),
        s => format!("{} h {:02} min", s as u64 / 3600, s as u64 % 3600 / 60),
    }
}

/// Text that is text, in an element or an attribute.
pub(crate) fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace('\'', "&#39;")
}

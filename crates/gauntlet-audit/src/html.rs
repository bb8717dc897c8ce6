//! `report.html`: one file that needs nothing else.

use std::fmt::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gauntlet_data::picture;

use crate::report::percent;
use crate::{Audit, Evaluation, RunReport, plot};

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --faint: #8882; --clean: #0072b2; --robust: #d55e00; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2rem; }
p.sub { margin-top: .2rem; opacity: .75; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .8rem; border-bottom: 1px solid var(--line); text-align: right; }
th:first-child, td:first-child { text-align: left; }
.scroll { overflow-x: auto; }
.big td { font-size: 1.25rem; } .big .range { display: block; font-size: .8rem; opacity: .7; }
.warning { border-left: .25rem solid #e69f00; padding: .2rem .8rem; margin: .4rem 0; background: var(--faint); }
figure { margin: 1rem 0; } figure svg, figure img { max-width: 100%; height: auto; background: #fff; border-radius: .3rem; }
figcaption { font-size: .9rem; opacity: .8; }
.bar { display: inline-block; height: .8rem; vertical-align: middle; border-radius: .15rem; }
.bars { width: 12rem; text-align: left; } .clean { background: var(--clean); } .robust { background: var(--robust); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dt { opacity: .75; } dd { margin: 0; overflow-wrap: anywhere; }
pre { overflow-x: auto; background: var(--faint); padding: .8rem; border-radius: .3rem; font-size: .85rem; }
";

/// The whole page.
pub(crate) fn page(report: &RunReport, audit: &Audit) -> String {
    let mut page = String::new();
    let name = escape(&report.name);
    let threat = &audit.threats[0];
    let attack = &threat.attacks[0];
    page += "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n";
    page += "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n";
    add(
        &mut page,
        format_args!(
            "<title>{name}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<h1>{name}</h1>\n"
        ),
    );
    add(
        &mut page,
        format_args!(
            "<p class=\"sub\">What the model withstands within {} on {} {} images of {}.</p>\n",
            escape(&threat.threat),
            audit.data.samples,
            escape(&audit.data.split),
            escape(&audit.data.name)
        ),
    );

    page += "<section>\n<div class=\"scroll\"><table class=\"big\">\n";
    add(
        &mut page,
        format_args!(
            "<tr><th></th><th>clean</th><th>{}</th></tr>\n",
            escape(&attack.name)
        ),
    );
    if let Some(twin) = &report.standard {
        row(&mut page, "standard", twin);
    }
    row(&mut page, &report.label, &report.hardened);
    page += "</table></div>\n<p class=\"sub\">Accuracy, with its 95 % interval (Wilson).</p>\n";
    for warning in &audit.warnings {
        add(
            &mut page,
            format_args!("<p class=\"warning\">{}</p>\n", escape(warning)),
        );
    }
    page += "</section>\n";

    let curves = report
        .curves
        .iter()
        .filter(|(_, curves)| !curves.is_empty());
    for (title, curves) in curves {
        let title_text = escape(title);
        add(
            &mut page,
            format_args!(
                "<section>\n<h2>{title_text}</h2>\n<figure>{}</figure>\n</section>\n",
                plot::svg(title, curves)
            ),
        );
    }

    page += "<section>\n<h2>By class</h2>\n<div class=\"scroll\"><table>\n";
    page += "<tr><th>class</th><th>samples</th><th>clean</th><th>under attack</th><th class=\"bars\"></th></tr>\n";
    for class in &audit.per_class {
        let bar = |kind: &str, share: f64| {
            format!(
                "<span class=\"bar {kind}\" style=\"width:{:.1}%\"></span>",
                100.0 * share
            )
        };
        add(
            &mut page,
            format_args!(
                "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td class=\"bars\">{}<br>{}</td></tr>\n",
                escape(&class.name),
                class.samples,
                percent(class.clean_accuracy),
                percent(class.robust_accuracy),
                bar("clean", class.clean_accuracy),
                bar("robust", class.robust_accuracy),
            ),
        );
    }
    page += "</table></div>\n</section>\n";

    page += "<section>\n<h2>What the attacker did</h2>\n";
    gallery(&mut page, report, &report.label, &report.hardened);
    if let Some(twin) = &report.standard {
        gallery(&mut page, report, "standard", twin);
    }
    page += "</section>\n<section>\n<h2>Protocol</h2>\n<dl>\n";
    let start = if attack.random_start {
        "a random place in the ball"
    } else {
        "the clean image"
    };
    for (term, text) in [
        (
            "data",
            format!(
                "{}, {}: {} samples",
                audit.data.name, audit.data.split, audit.data.samples
            ),
        ),
        ("SHA-256 of the data", audit.data.sha256.clone()),
        ("threat", threat.threat.clone()),
        (
            "attack",
            format!(
                "{}: {} steps of {}, {} restarts from {start}, cross-entropy, best of each sample kept",
                attack.name, attack.steps, attack.step_size, attack.restarts
            ),
        ),
        ("time under attack", duration(attack.seconds)),
        ("time of training", duration(audit.train_seconds)),
        ("seed", audit.seed.to_string()),
        ("device", audit.device.clone()),
        ("gauntlet", audit.version.clone()),
    ] {
        add(
            &mut page,
            format_args!("<dt>{term}</dt><dd>{}</dd>\n", escape(&text)),
        );
    }
    page += "</dl>\n<p>Every sample counts that is classified correctly with and without the attack. To do it again: save the \
             config below as <code>run.toml</code> and run <code>gauntlet train run.toml</code>.</p>\n";
    add(
        &mut page,
        format_args!(
            "<details><summary>Config, every default written out</summary><pre>{}</pre></details>\n",
            escape(&report.config)
        ),
    );
    page += "</section>\n</body>\n</html>\n";
    page
}

fn row(page: &mut String, label: &str, evaluation: &Evaluation) {
    let outcome = &evaluation.outcome;
    let n = outcome.labels.len();
    let cell = |share: f64| {
        let [low, high] = crate::wilson((share * n as f64).round() as usize, n);
        format!(
            "<td>{}<span class=\"range\">{:.1} to {:.1} %</span></td>",
            percent(share),
            100.0 * low,
            100.0 * high
        )
    };
    let (clean, robust) = (
        cell(outcome.clean_accuracy()),
        cell(outcome.robust_accuracy()),
    );
    add(
        page,
        format_args!("<tr><td>{}</td>{clean}{robust}</tr>\n", escape(label)),
    );
}

fn gallery(page: &mut String, report: &RunReport, label: &str, evaluation: &Evaluation) {
    if evaluation.gallery.0.dims()[0] == 0 {
        return;
    }
    let picture = STANDARD.encode(picture::png_bytes(&report.picture(evaluation)));
    let label = escape(label);
    add(
        page,
        format_args!(
            "<figure><img alt=\"The first test images of the {label} model: clean, change, attacked\" \
             src=\"data:image/png;base64,{picture}\"><figcaption>The {label} model: the image, the change (amplified around \
             grey), the image under attack, and what the model said.</figcaption></figure>\n"
        ),
    );
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

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

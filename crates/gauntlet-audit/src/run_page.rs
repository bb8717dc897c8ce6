//! `report.html` of a training run.

use gauntlet_data::picture::Example;

use crate::html::{
    accuracy, add, columns, document, escape, may, protocol, section, table, warnings,
};
use crate::{Audit, Evaluation, RunReport, classes, html, plot};

/// The whole page.
pub(crate) fn page(report: &RunReport, audit: &Audit) -> String {
    let mut page = format!("<h1>{}</h1>\n", escape(&report.name));
    headline(&mut page, report, audit);
    for (place, (title, curves)) in report.curves.iter().enumerate() {
        let figure = plot::figure(title, curves);
        if !figure.is_empty() {
            section(&mut page, &format!("curves-{place}"), title, &figure);
        }
    }
    let attacked = [("under attack", audit.per_class.as_slice())];
    let by_class = classes::by_class(&audit.per_class, &attacked, 0);
    section(&mut page, "classes", "By class", &by_class);
    let mut pictures = gallery(report, &report.label, &report.hardened);
    if let Some(twin) = &report.standard {
        pictures += &gallery(report, "standard", twin);
    }
    if !pictures.is_empty() {
        let note = "The image, what the attack changed (amplified around grey), the image under attack, and what the model said.";
        let text = format!("<p class=\"sub\">{note}</p>\n<div class=\"pair\">{pictures}</div>");
        section(&mut page, "samples", "What the attacker did", &text);
    }
    let counts = "a sample classified correctly both without and with the attack";
    section(&mut page, "protocol", "Protocol", &protocol(audit, counts));
    let again = format!(
        "<p>Save the config below as <code>run.toml</code> and run <code>gauntlet train run.toml</code>.</p>\n\
         <details class=\"plain\"><summary>Config, every default written out</summary><pre>{}</pre></details>",
        escape(&report.config)
    );
    section(&mut page, "again", "Do it again", &again);
    document(&report.name, &page)
}

/// The numbers that matter, what they are worth, and what to keep in mind.
fn headline(page: &mut String, report: &RunReport, audit: &Audit) {
    let threat = &report.hardened.attack.threat;
    let may = may(&threat.norm.to_string(), &threat.eps.to_string()).expect("a norm");
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
    let mut rows = String::new();
    if let Some(twin) = &report.standard {
        rows += &row("standard", twin);
    }
    rows += &row(&report.label, &report.hardened);
    let head = columns(["accuracy", "clean", &report.hardened.attack_name()]);
    *page += "<section>\n";
    *page += &table("big", "Accuracy", &head, &rows);
    *page += "<p class=\"sub\">Below each number its 95 % interval (Wilson).";
    if let Some(worth) = report.worth() {
        let mut letters = worth.chars();
        let first = letters.next().map(|letter| letter.to_ascii_uppercase());
        let sentence: String = first.into_iter().chain(letters).collect();
        add(page, format_args!(" {}.", escape(&sentence)));
    }
    *page += "</p>\n";
    warnings(page, audit);
    *page += "</section>\n";
}

fn row(label: &str, evaluation: &Evaluation) -> String {
    format!(
        "<tr><th scope=\"row\">{}</th>{}{}</tr>\n",
        escape(label),
        accuracy(evaluation.clean_accuracy(), evaluation.clean_interval()),
        accuracy(evaluation.robust_accuracy(), evaluation.robust_interval()),
    )
}

fn gallery(report: &RunReport, label: &str, evaluation: &Evaluation) -> String {
    let examples = report.examples(evaluation);
    if examples.is_empty() {
        return String::new();
    }
    let said: Vec<String> = examples.iter().map(told).collect();
    let picture = report.picture(evaluation);
    let image = html::image(&picture, &format!("The {label} model: {}", said.join("; ")));
    let label = escape(label);
    format!("<figure><figcaption>The {label} model</figcaption>{image}</figure>\n")
}

fn told(example: &Example) -> String {
    format!(
        "a {} taken for {}, under attack for {}",
        example.label, example.clean, example.adversarial
    )
}

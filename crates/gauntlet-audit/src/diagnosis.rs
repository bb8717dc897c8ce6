//! The document on diagnosis, by section, and what a page shows of it.

use crate::Audit;
use crate::html::{add, escape};

const DOCUMENT: &str = include_str!("../DIAGNOSIS.md");

/// What `DIAGNOSIS.md` says of a finding, as Markdown: what is measured, what causes it, what to do.
///
/// ```
/// let text = gauntlet_audit::diagnosis("gradients-vanish").unwrap();
/// assert!(text.contains("### What to do"));
/// assert!(gauntlet_audit::diagnosis("no-such-code").is_none());
/// ```
pub fn diagnosis(code: &str) -> Option<&'static str> {
    let found = diagnoses().find(|(known, _)| *known == code);
    found.map(|(_, text)| text)
}

/// All sections of `DIAGNOSIS.md`: the code of a finding, and the text.
pub fn diagnoses() -> impl Iterator<Item = (&'static str, &'static str)> {
    DOCUMENT.split("\n## ").skip(1).map(|section| {
        let (code, text) = section.split_once('\n').unwrap_or((section, ""));
        (code.trim(), text.trim())
    })
}

/// What a section says the sign is: its first line, in bold.
fn title(text: &str) -> &str {
    let line = text.lines().next().unwrap_or_default();
    line.trim_matches('*').trim_end_matches('.')
}

/// The codes of an audit's findings, each once.
pub(crate) fn kinds(audit: &Audit) -> Vec<&str> {
    let mut codes: Vec<&str> = Vec::new();
    for finding in &audit.findings {
        if !codes.contains(&finding.code.as_str()) {
            codes.push(&finding.code);
        }
    }
    codes
}

/// The findings of an audit with their causes and remedies, or what was looked for and not found.
pub(crate) fn findings(audit: &Audit) -> String {
    if audit.findings.is_empty() {
        return nothing(audit);
    }
    let codes = kinds(audit);
    let mut html = "<p>Signs that the numbers of this page are not what they seem. Until their causes are known, take \
                    robust accuracy for an upper bound that may be far from the truth.</p>\n"
        .to_owned();
    for (place, code) in codes.iter().enumerate() {
        let same = audit
            .findings
            .iter()
            .filter(|finding| finding.code == *code);
        let evidence: String = same
            .clone()
            .map(|finding| format!("<li>{}</li>\n", escape(&finding.evidence)))
            .collect();
        let title = same.map(|finding| finding.title.as_str()).next();
        add(
            &mut html,
            format_args!(
                "<div class=\"finding\"><h3>Finding {} of {}: {}<code>{}</code></h3>\n<ul>\n{evidence}</ul>\n{}</div>\n",
                place + 1,
                codes.len(),
                escape(title.unwrap_or_default()),
                escape(code),
                diagnosis(code).map(explained).unwrap_or_default(),
            ),
        );
    }
    let others: Vec<&str> = audit
        .checks
        .iter()
        .map(String::as_str)
        .filter(|check| !codes.contains(check))
        .collect();
    if !others.is_empty() {
        html += "<p class=\"sub\">Looked for as well, and not found:</p>\n";
        html += &looked_for(&others);
    }
    html
}

fn nothing(audit: &Audit) -> String {
    let checks: Vec<&str> = audit.checks.iter().map(String::as_str).collect();
    if checks.is_empty() {
        return "<p>No findings, because none were looked for: this audit made no check for signs that its numbers \
                mislead.</p>\n"
            .to_owned();
    }
    format!(
        "<p>No findings. {} signs that robust accuracy is not what it seems were looked for, and none was there:</p>\n{}\
         <p class=\"sub\">That proves nothing; an attack made for this very model may still find more.</p>\n",
        checks.len(),
        looked_for(&checks)
    )
}

fn looked_for(checks: &[&str]) -> String {
    let item = |code: &&str| match diagnosis(code) {
        Some(text) => format!(
            "<details><summary>{}</summary>\n{}</details>\n",
            escape(title(text)),
            markdown(body(text))
        ),
        None => format!("<p><code>{}</code></p>\n", escape(code)),
    };
    checks.iter().map(item).collect()
}

/// A section without its title.
fn body(text: &str) -> &str {
    text.split_once('\n').map_or("", |(_, body)| body).trim()
}

/// What to do about it, open; the rest to unfold.
fn explained(text: &str) -> String {
    let mut html = String::new();
    for (place, part) in body(text).split("### ").skip(1).enumerate() {
        let (heading, rest) = part.split_once('\n').unwrap_or((part, ""));
        let open = if place == 0 { "" } else { " open" };
        add(
            &mut html,
            format_args!(
                "<details{open}><summary>{}</summary>\n{}</details>\n",
                escape(heading.trim()),
                markdown(rest.trim())
            ),
        );
    }
    html
}

/// HTML of the little Markdown that the document is written in: paragraphs, headings, lists of one level, and code, `*` and
/// `**` within a line.
fn markdown(text: &str) -> String {
    let mut html = String::new();
    for block in text
        .split("\n\n")
        .map(str::trim)
        .filter(|block| !block.is_empty())
    {
        if let Some(heading) = block.strip_prefix("### ") {
            add(&mut html, format_args!("<h4>{}</h4>\n", inline(heading)));
        } else if let Some(list) = block.strip_prefix("- ") {
            html += "<ul>\n";
            for item in list.split("\n- ") {
                add(&mut html, format_args!("<li>{}</li>\n", inline(item)));
            }
            html += "</ul>\n";
        } else {
            let class = if block.starts_with("Sources:") {
                " class=\"sources\""
            } else {
                ""
            };
            add(&mut html, format_args!("<p{class}>{}</p>\n", inline(block)));
        }
    }
    html
}

/// Text with its marks as elements. Marks come in pairs.
fn inline(text: &str) -> String {
    let text = escape(&text.split_whitespace().collect::<Vec<_>>().join(" "));
    let text = paired(&text, "`", "code");
    let text = paired(&text, "**", "b");
    paired(&text, "*", "em")
}

fn paired(text: &str, mark: &str, element: &str) -> String {
    let mut html = String::new();
    for (place, part) in text.split(mark).enumerate() {
        match place {
            0 => {}
            odd if odd % 2 == 1 => add(&mut html, format_args!("<{element}>")),
            _ => add(&mut html, format_args!("</{element}>")),
        }
        html += part;
    }
    html
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_code_has_a_section_with_measure_cause_and_remedy() {
        let codes: Vec<&str> = diagnoses().map(|(code, _)| code).collect();
        assert_eq!(
            codes,
            [
                "black-box-beats-white-box",
                "does-not-fall-to-zero",
                "more-effort-helps",
                "gradients-vanish",
                "randomised-outputs",
                "rough-landscape",
                "fgsm-beats-pgd",
                "catastrophic-overfitting",
            ]
        );
        for (code, text) in diagnoses() {
            for heading in ["is measured", "causes it", "to do"] {
                assert!(text.contains(&format!("### What {heading}\n")), "{code}");
            }
            assert!(text.contains("Sources: "), "{code}");
            assert!(
                title(text).len() > 10 && !title(text).contains('*'),
                "{code}"
            );
            // Codes that a text names are sections.
            for named in text.split('`').skip(1).step_by(2) {
                assert!(diagnosis(named).is_some(), "{code} names {named}");
            }
        }
        assert_eq!(diagnosis("references"), None);
    }

    #[test]
    fn markdown_becomes_elements_and_marks_do_not_stay() {
        assert_eq!(
            markdown("A *b*\nand **c** `d<`.\n\n- one\n  more\n- two\n\n### Head"),
            "<p>A <em>b</em> and <b>c</b> <code>d&lt;</code>.</p>\n\
             <ul>\n<li>one more</li>\n<li>two</li>\n</ul>\n<h4>Head</h4>\n"
        );
        for (code, text) in diagnoses() {
            let html = markdown(text);
            let marks = html.replace("&#39;", "");
            assert!(!marks.contains(['*', '`', '#']), "{code}");
            assert_eq!(
                html.matches("<li>").count(),
                text.matches("\n- ").count(),
                "{code}"
            );
            assert_eq!(html.matches("<h4>").count(), 3, "{code}");
        }
    }
}

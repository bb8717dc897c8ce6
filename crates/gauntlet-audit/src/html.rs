//! Pieces that pages are made of: one file each, that needs nothing else.

use std::fmt::{Arguments, Write};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use gauntlet_data::picture::{self, RgbImage};

use crate::report::percent;
use crate::{AttackResult, Audit};

const STYLE: &str = "
:root { color-scheme: light dark; --line: #8884; --faint: #8882; --clean: #1e82c8; --robust: #d55e00; --alarm: #d55e00; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.6rem; margin-bottom: 0; overflow-wrap: anywhere; } h2 { font-size: 1.2rem; margin-top: 2rem; }
h3 { font-size: 1rem; margin: 1rem 0 .3rem; overflow-wrap: anywhere; } h4 { font-size: .9rem; margin: .8rem 0 0; }
p.sub { margin-top: .2rem; opacity: .75; } .scroll + p.sub { margin-top: .6rem; }
nav ul { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; padding: 0; margin: .8rem 0; font-size: .9rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .7rem; border-bottom: 1px solid var(--line); text-align: right; }
tr > :first-child { text-align: left; padding-left: 0; } td { white-space: nowrap; }
.scroll { overflow-x: auto; } .scroll tr > :first-child { position: sticky; left: 0; background: Canvas; } tbody th { font-weight: inherit; }
.full { width: 100%; } .full .wide { width: 45%; } .big td { font-size: 1.25rem; } .big .range { display: block; font-size: .8rem; opacity: .7; }
.warning { border-left: .25rem solid #e69f00; padding: .2rem .8rem; margin: .4rem 0; background: var(--faint); }
.finding { border: 1px solid var(--line); border-left: .35rem solid var(--alarm); border-radius: .3rem; padding: .2rem 1rem .6rem; margin: .8rem 0; }
.finding h3 { margin-top: .5rem; } .finding h3 code { display: block; font-weight: 400; font-size: .8rem; opacity: .75; } .finding summary { font-weight: 600; } .finding ul { margin: .3rem 0; padding-left: 1.2rem; }
figure { margin: 1rem 0; } figure img { max-width: 100%; height: auto; border-radius: .3rem; }
.plot { display: block; width: 100%; max-width: 46rem; height: auto; }
.legend { list-style: none; display: flex; flex-wrap: wrap; gap: .2rem 1.2rem; margin: .3rem 0; padding: 0; font-size: .9rem; }
.swatch { vertical-align: middle; }
.pair { display: flex; flex-wrap: wrap; gap: 0 1.5rem; } .pair figure { flex: 1 1 18rem; } .pair .plot { max-width: 30rem; } .pair .plot text { font-size: 19px; }
.three { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 0 1.5rem; }
.hist { display: block; width: 100%; height: auto; } .hist text { font: 12px system-ui, sans-serif; fill: currentColor; }
p.sources { font-size: .85rem; opacity: .75; }
figcaption { font-weight: 600; margin-bottom: .3rem; } figcaption .note { display: block; font-weight: 400; font-size: .85rem; opacity: .75; }
.meter { min-width: 5.5rem; } .track { display: block; position: relative; height: .5rem; background: var(--faint); border-radius: .15rem; }
.bar { display: block; height: 100%; border-radius: .15rem; }
.clean { background: var(--clean); } .robust { background: var(--robust); }
.wide { min-width: 12rem; } .wide .track { height: .8rem; } .flow { display: flex; } .flow .bar { border-radius: 0; }
.lost { background: repeating-linear-gradient(-45deg, var(--robust) 0 2px, transparent 2px 6px); }
.span { position: absolute; top: calc(50% - 1px); height: 2px; background: currentColor; }
.span::before, .span::after { content: ''; position: absolute; top: -3px; height: 8px; width: 2px; background: currentColor; }
.span::before { left: 0; } .span::after { right: 0; }
.heat td { text-align: center; padding: .25rem .5rem; } .heat thead th { vertical-align: bottom; font-weight: 400; }
.heat .own { outline: 2px solid var(--clean); outline-offset: -2px; } .heat .none { opacity: .4; }
.heat .turned span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 9rem; white-space: nowrap; overflow: hidden; text-overflow: ellipsis; }
details { border-bottom: 1px solid var(--line); padding: .3rem 0; } .finding details, p + details.plain { border: 0; padding: 0; }
summary { cursor: pointer; overflow-wrap: anywhere; } details > :last-child { margin-bottom: .6rem; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; } dt { opacity: .75; } dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 30rem) { dl { display: block; } dd { margin-bottom: .5rem; } .plot text { font-size: 19px; } th, td { padding: .3rem .45rem; } .meter { min-width: 4.5rem; } .wide { min-width: 6rem; }
.full .wide { width: 20%; min-width: 4rem; } .scroll tbody th { min-width: 5.5rem; overflow-wrap: anywhere; } .full tbody th { min-width: 9rem; } }
pre { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--faint); padding: .8rem; border-radius: .3rem; font-size: .85rem; }
";

/// A page of `body` that may load nothing and run nothing.
pub(crate) fn document(title: &str, body: &str) -> String {
    let title = escape(title);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n{body}</body>\n</html>\n"
    )
}

/// A part of a page under a heading that can be linked to.
pub(crate) fn section(page: &mut String, id: &str, title: &str, body: &str) {
    let title = escape(title);
    add(
        page,
        format_args!("<section id=\"{id}\">\n<h2>{title}</h2>\n{body}\n</section>\n"),
    );
}

/// A part that can be folded away. `body` is HTML, `summary` is text.
pub(crate) fn fold(open: bool, summary: &str, body: &str) -> String {
    let open = if open { " open" } else { "" };
    format!(
        "<details{open}><summary>{}</summary>\n{body}\n</details>\n",
        escape(summary)
    )
}

/// A table that scrolls by itself, by keyboard too, where a screen is too narrow for it.
pub(crate) fn table(class: &str, label: &str, head: &str, body: &str) -> String {
    let label = escape(label);
    format!(
        "<div class=\"scroll\" role=\"region\" tabindex=\"0\" aria-label=\"{label}\"><table class=\"{class}\">\n\
         <thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table></div>\n"
    )
}

/// Headings of columns.
pub(crate) fn columns<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names
        .into_iter()
        .map(|name| format!("<th scope=\"col\">{}</th>", escape(name)))
        .collect()
}

/// A cell with a share, as a number and as a bar.
pub(crate) fn meter(kind: &str, share: f64) -> String {
    format!(
        "<td class=\"meter\">{}<span class=\"track\"><span class=\"bar {kind}\" style=\"width:{:.1}%\"></span></span></td>",
        percent(share),
        width(share)
    )
}

/// A cell with an accuracy and its interval.
pub(crate) fn accuracy(share: f64, interval: [f64; 2]) -> String {
    format!(
        "<td>{}<span class=\"range\">{}</span></td>",
        percent(share),
        between(interval)
    )
}

/// `30.1 to 95.4 %`
pub(crate) fn between([low, high]: [f64; 2]) -> String {
    format!("{:.1} to {:.1} %", 100.0 * low, 100.0 * high)
}

/// What a reader should keep in mind.
pub(crate) fn warnings(page: &mut String, audit: &Audit) {
    // Findings have a section of their own.
    let told = |warning: &&String| {
        let mut findings = audit.findings.iter();
        findings.any(|finding| warning.ends_with(&finding.evidence))
    };
    for warning in audit.warnings.iter().filter(|warning| !told(warning)) {
        let warning = escape(warning);
        add(page, format_args!("<p class=\"warning\">{warning}</p>\n"));
    }
}

/// A picture in the page itself. `alt` is text.
pub(crate) fn image(picture: &RgbImage, alt: &str) -> String {
    let (width, height) = picture.dimensions();
    let bytes = STANDARD.encode(picture::png_bytes(picture));
    let alt = escape(alt);
    format!(
        "<img width=\"{width}\" height=\"{height}\" alt=\"{alt}\" src=\"data:image/png;base64,{bytes}\">"
    )
}

/// What an attacker within a budget such as `linf:8/255` (kind and size) may do, as the end of a sentence.
pub(crate) fn may(kind: &str, eps: &str) -> Option<String> {
    Some(match kind {
        "linf" => format!("change every pixel value by up to {eps}"),
        "l2" => format!("change an image by up to {eps} in Euclidean length"),
        "l1" => format!("change pixel values by up to {eps} in sum"),
        "l0" if eps == "1" => "change 1 pixel at will".to_owned(),
        "l0" => format!("change up to {eps} pixels at will"),
        "patch" => format!("overwrite one window of {eps} x {eps} pixels"),
        "spatial" => {
            let (angle, shift) = eps.split_once(',')?;
            let shift = match (shift.strip_suffix("px"), shift.strip_suffix('%')) {
                (Some("1"), _) => "1 pixel".to_owned(),
                (Some(pixels), _) => format!("{pixels} pixels"),
                (_, Some(percent)) => format!("{percent} % of height and width"),
                _ => return None,
            };
            let angle = angle.strip_suffix("deg")?;
            format!("rotate an image by up to {angle} degrees and shift it by up to {shift}")
        }
        _ => return None,
    })
}

/// A norm as people write it, with the name it has in commands.
pub(crate) fn norm_name(norm: &str) -> String {
    match norm {
        "linf" => "L∞ (linf)".to_owned(),
        "l2" | "l1" | "l0" => format!("{} ({norm})", norm.to_uppercase()),
        other => other.to_owned(),
    }
}

/// A list of terms and what is said of them.
#[derive(Default)]
pub(crate) struct Terms(String);

impl Terms {
    pub(crate) fn add(&mut self, term: &str, text: &str) {
        let (term, text) = (escape(term), escape(text));
        add(
            &mut self.0,
            format_args!("<dt>{term}</dt><dd>{text}</dd>\n"),
        );
    }

    pub(crate) fn html(self) -> String {
        format!("<dl>\n{}</dl>", self.0)
    }
}

/// How an audit came about; `counts` says when a sample counts as robust.
pub(crate) fn protocol(audit: &Audit, counts: &str) -> String {
    let mut list = Terms::default();
    let data = &audit.data;
    list.add(
        "data",
        &format!("{}, {}: {} samples", data.name, data.split, data.samples),
    );
    list.add("SHA-256 of the data", &data.sha256);
    if let Some(plan) = &audit.plan {
        list.add("plan", plan);
    }
    for threat in &audit.threats {
        let attacks: Vec<String> = threat.attacks.iter().map(budget).collect();
        let seconds = threat.attacks.iter().map(|attack| attack.seconds).sum();
        let text = format!("{}; in {}", attacks.join("; "), duration(seconds));
        list.add(&format!("attacks, {}", threat.threat), &text);
    }
    list.add("what counts", counts);
    list.add("intervals", "95 % (Wilson 1927)");
    list.add("seed", &audit.seed.to_string());
    list.add("device", &audit.device);
    list.add("gauntlet", &audit.version);
    if let Some(seconds) = audit.train_seconds {
        list.add("time of training", &duration(seconds));
    }
    list.html()
}

/// An attack with all that is known of its budget.
fn budget(attack: &AttackResult) -> String {
    if attack.steps == 0 {
        return attack.name.clone();
    }
    let mut text = format!(
        "{}: {} step{}",
        attack.name,
        attack.steps,
        plural(attack.steps)
    );
    if let Some(size) = attack.step_size {
        text += &format!(" of {size}");
    }
    if let Some(loss) = &attack.loss {
        text += &format!(" up the {loss} loss");
    }
    let restarts = attack.restarts;
    text += &format!(", {restarts} restart{}", plural(restarts));
    match attack.random_start {
        Some(true) => text += " from a random place in the ball",
        Some(false) => text += " from the clean image",
        None => {}
    }
    text
}

pub(crate) fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

pub(crate) fn add(page: &mut String, text: Arguments<'_>) {
    page.write_fmt(text).expect("memory takes any text");
}

/// A share as percent of a width, whatever a file says.
pub(crate) fn width(share: f64) -> f64 {
    if share.is_finite() {
        100.0 * share.clamp(0.0, 1.0)
    } else {
        0.0
    }
}

pub(crate) fn duration(seconds: f64) -> String {
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

/// What holds of every page.
#[cfg(test)]
pub(crate) mod testing {
    /// Writes a page into the folder that `GAUNTLET_PAGES` names, if it is set, for a person to look at.
    pub(crate) fn look(name: &str, page: &str) {
        if let Some(folder) = std::env::var_os("GAUNTLET_PAGES") {
            std::fs::write(std::path::Path::new(&folder).join(name), page).unwrap();
        }
    }

    /// Nothing is loaded and nothing runs.
    pub(crate) fn stands_alone(page: &str) {
        // The namespace of SVG is a name, not an address that is loaded.
        let page = page.replace("http://www.w3.org/2000/svg", "");
        for loaded in [
            "http:", "https:", "url(", "@import", "<script", "<link", "<iframe", "src=\"/",
        ] {
            assert!(!page.contains(loaded), "{loaded}");
        }
        let pictures = page.matches("src=\"data:image/png;base64,iVBOR").count();
        assert_eq!(page.matches("src=").count(), pictures);
        assert_eq!(
            page.matches("<img ").count(),
            page.matches(" alt=\"").count()
        );
    }

    /// How many elements there are, all of them closed in order, with ids that differ and links that lead somewhere.
    pub(crate) fn elements(page: &str) -> usize {
        let mut open: Vec<&str> = Vec::new();
        let mut seen = 0;
        for piece in page.split('<').skip(1) {
            let (tag, _) = piece.split_once('>').expect("a tag ends");
            let name = tag.split([' ', '\n']).next().unwrap();
            if let Some(closed) = name.strip_prefix('/') {
                assert_eq!(open.pop(), Some(closed), "before {piece:.200}");
            } else if !tag.ends_with('/') && !["!doctype", "meta", "img"].contains(&name) {
                open.push(name);
                seen += 1;
            }
            assert_eq!(tag.matches('"').count() % 2, 0, "{tag}");
        }
        assert!(open.is_empty(), "{open:?}");
        let values = |key: &str| -> Vec<&str> {
            let starts = page.split(key).skip(1);
            starts.map(|rest| rest.split('"').next().unwrap()).collect()
        };
        let ids = values(" id=\"");
        let unique: std::collections::BTreeSet<_> = ids.iter().collect();
        assert_eq!(unique.len(), ids.len(), "{ids:?}");
        for link in values("href=\"#") {
            assert!(ids.contains(&link), "{link}");
        }
        seen
    }
}

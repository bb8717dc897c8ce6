//! The page of an audit, on data made up sample by sample so that its numbers agree with each other.
//!
//! With `GAUNTLET_PAGES` set to a folder, the pages are written there to be looked at.

use std::path::Path;

use burn::tensor::Device;
use gauntlet_data::{DataConfig, load};

use crate::html::testing;
use crate::*;

const DIGITS: [&str; 10] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"];
const CLOTHES: [&str; 10] = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "<script>alert('bag')</script>",
    "Ankle \"boot\" & co",
];

/// A generator of numbers in [0, 1) (Knuth's MMIX constants).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> f64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 11) as f64 / (1u64 << 53) as f64
    }
}

/// A sample of a made-up audit.
struct Sample {
    class: usize,
    clean: usize,
    /// Shares of a norm's reach at which it falls.
    breaks_at: f64,
    said: usize,
    attack: usize,
    confidence: [f64; 2],
}

fn samples(count: usize, classes: usize) -> Vec<Sample> {
    let mut dice = Dice(7);
    let sample = |_| {
        let class = (dice.roll() * classes as f64) as usize;
        let neighbour =
            (class + 1 + (dice.roll().powi(3) * (classes - 1) as f64) as usize) % classes;
        let hard = 0.5 + 0.5 * ((class * 7) % classes) as f64 / classes as f64;
        Sample {
            class,
            clean: if dice.roll() < 0.06 { neighbour } else { class },
            breaks_at: 1.6 * hard * dice.roll().sqrt(),
            said: neighbour,
            attack: (dice.roll().powi(2) * 4.0) as usize,
            confidence: [1.0 - 0.5 * dice.roll().powi(3), 0.3 + 0.7 * dice.roll()],
        }
    };
    (0..count).map(sample).collect()
}

/// A threat, whose `reach` is the share of the norm's reach that its budget is.
fn threat(samples: &[Sample], names: &[String], text: &str, reach: f64) -> Threat {
    let n = samples.len();
    let right = |s: &&Sample| s.clean == s.class;
    let falls = |s: &Sample| s.breaks_at < reach;
    let stands = |s: &&Sample| right(s) && !falls(s);
    let robust = samples.iter().filter(stands).count();
    let share = |count: usize, of: usize| count as f64 / of.max(1) as f64;
    let attacks = [
        "what fell within a smaller one",
        "APGD-CE-100",
        "APGD-T9-100",
        "FAB-T-100",
        "Square-5000",
    ];
    let attack = |(place, name): (usize, &&str)| {
        // The first finds what falls at nine tenths of the budget.
        let fallen =
            |s: &&Sample| right(s) && falls(s) && (s.attack < place || s.breaks_at < 0.9 * reach);
        let left = samples.iter().filter(right).count() - samples.iter().filter(fallen).count();
        AttackResult {
            name: (*name).to_owned(),
            steps: [0, 100, 100, 100, 5000][place],
            step_size: None,
            restarts: 1,
            random_start: None,
            loss: None,
            robust_accuracy: share(if place == 4 { robust } else { left }, n),
            seconds: 30.0 * (place as f64).powi(4),
        }
    };
    let class = |(class, name): (usize, &String)| {
        let of: Vec<&Sample> = samples.iter().filter(|s| s.class == class).collect();
        let count = |holds: &dyn Fn(&&Sample) -> bool| of.iter().filter(|s| holds(s)).count();
        Class {
            name: name.clone(),
            samples: of.len(),
            clean_accuracy: share(count(&right), of.len()),
            robust_accuracy: share(count(&stands), of.len()),
        }
    };
    let mut confusion = vec![vec![0; names.len()]; names.len()];
    let mut confidence = Confidence {
        clean_right: vec![0; 20],
        clean_wrong: vec![0; 20],
        adversarial: vec![0; 20],
    };
    for s in samples {
        let bin = |p: f64| ((20.0 * p) as usize).min(19);
        let fell = right(&s) && falls(s);
        confusion[s.class][if fell { s.said } else { s.clean }] += 1;
        if right(&s) {
            confidence.clean_right[bin(s.confidence[0])] += 1;
        } else {
            confidence.clean_wrong[bin(s.confidence[1])] += 1;
        }
        if fell {
            confidence.adversarial[bin(s.confidence[1])] += 1;
        }
    }
    let eps = text.split_once(':').and_then(|(_, eps)| eps.parse().ok());
    let eps = eps.filter(|_| text.starts_with('l'));
    Threat {
        threat: text.to_owned(),
        robust_accuracy: share(robust, n),
        robust_interval: wilson(robust, n),
        attacks: attacks.iter().enumerate().map(attack).collect(),
        norm: eps.and_then(|_: f64| Some(text.split_once(':')?.0.to_owned())),
        eps,
        per_class: names.iter().enumerate().map(class).collect(),
        confusion,
        confidence: Some(confidence),
    }
}

fn audit(model: &str, names: &[String], budgets: &[(&str, f64)]) -> Audit {
    let samples = samples(1000, names.len());
    let right = samples.iter().filter(|s| s.clean == s.class).count();
    let threats: Vec<Threat> = budgets
        .iter()
        .map(|(text, reach)| threat(&samples, names, text, *reach))
        .collect();
    Audit {
        schema: 1,
        model: model.to_owned(),
        data: Data {
            name: "fashion-mnist".to_owned(),
            split: "test".to_owned(),
            samples: samples.len(),
            sha256: "4d5e6f".repeat(10) + "7a8b",
        },
        clean_accuracy: right as f64 / samples.len() as f64,
        clean_interval: wilson(right, samples.len()),
        seed: 3,
        device: "cpu (2 threads)".to_owned(),
        version: "0.1.0".to_owned(),
        train_seconds: None,
        plan: Some("standard".to_owned()),
        warnings: vec![
            "Only 1000 of 10000 samples were attacked: mind the intervals & their <size>."
                .to_owned(),
        ],
        checks: diagnoses().map(|(code, _)| code.to_owned()).collect(),
        findings: Vec::new(),
        per_class: threats
            .last()
            .map_or(Vec::new(), |threat| threat.per_class.clone()),
        threats,
        corruptions: Vec::new(),
        certified: None,
        standard: None,
    }
}

fn finding(code: &str, title: &str, evidence: &str) -> Finding {
    Finding {
        code: code.to_owned(),
        title: title.to_owned(),
        evidence: evidence.to_owned(),
    }
}

/// With everything a page can show, and names that are after its reader.
fn full() -> (Audit, Vec<(String, Vec<Weak>)>) {
    let budgets = [
        ("linf:0.05", 0.3),
        ("linf:0.1", 0.6),
        ("linf:0.2", 0.9),
        ("l2:1", 0.4),
        ("l2:2", 0.8),
        ("l1:10", 0.5),
        ("l0:10", 0.7),
        ("patch:5", 0.5),
        ("spatial:30deg,3px", 0.45),
        ("linf:0.1 + l2:1", 0.65),
        ("lens<5x5>", 0.55),
    ];
    let names = CLOTHES.map(str::to_owned);
    let mut audit = audit("runs/f-mnist<script>alert(1)</script>", &names, &budgets);
    audit.findings = vec![
        finding(
            "black-box-beats-white-box",
            "attacks without gradients find what attacks with gradients miss",
            "linf:0.1: 61 of the 640 samples that withstood all attacks with gradients fell to one without",
        ),
        finding(
            "black-box-beats-white-box",
            "attacks without gradients find what attacks with gradients miss",
            "linf:0.2: 55 of the 310 samples that withstood all attacks with gradients fell to one without",
        ),
        finding(
            "gradients-vanish",
            "gradients vanish",
            "linf:0.2: the gradient is zero for 12.5 % of 200 samples",
        ),
        finding(
            "no-section<b>",
            "a sign <i>unheard of</i>",
            "l2:1: it's \"odd\"",
        ),
    ];
    let mut dice = Dice(5);
    for family in [
        "gaussian-noise",
        "shot-noise",
        "defocus-blur",
        "fog",
        "contrast",
        "jpeg<5>",
    ] {
        let weight = 0.1 + 0.15 * dice.roll();
        for severity in 1..=5 {
            audit.corruptions.push(CorruptionResult {
                family: family.to_owned(),
                severity,
                accuracy: audit.clean_accuracy * (1.0 - weight * f64::from(severity)).max(0.1),
            });
        }
    }
    audit.certified = Some(Certified {
        protocol: Certify::new(0.25),
        accuracy: 0.85,
        abstained: 0.02,
        certified: vec![AtRadius {
            radius: 0.5,
            accuracy: 0.55,
        }],
        mean_radius: 0.41,
        seconds: 12.0,
    });
    audit.standard = Some(Twin {
        clean_accuracy: 0.91,
        clean_interval: wilson(910, 1000),
        robust_accuracy: 0.0,
        robust_interval: wilson(0, 1000),
    });
    let weak = ["linf:0.05", "l2:1"].map(|threat| (threat.to_owned(), weak(&CLOTHES)));
    (audit, weak.to_vec())
}

fn weak(names: &[&str; 10]) -> Vec<Weak> {
    let config: DataConfig = serde_json::from_str(r#"{"source":"digits"}"#).unwrap();
    let data = load(&config, Path::new(""), 0).unwrap().test;
    let device = Device::flex();
    let weak = |place: usize| {
        let (x, _) = data.batch(&[place], &device);
        let class = data.labels[data.ids[place] as usize] as usize;
        let change = data
            .batch(&[place + 9], &device)
            .0
            .sub_scalar(0.5)
            .mul_scalar(0.2);
        Weak {
            index: data.ids[place],
            label: names[class].to_owned(),
            clean: names[class].to_owned(),
            adversarial: names[(class + 3) % 10].to_owned(),
            attack: "APGD-CE-100".to_owned(),
            distance: (place != 2).then_some(0.0123 + 0.004 * place as f32),
            images: (x.clone(), (x + change).clamp(0.0, 1.0)),
        }
    };
    (0..6).map(weak).collect()
}

#[test]
fn a_full_page_stands_alone_and_has_every_section() {
    let (audit, weakest) = full();
    let page = audit_page(&audit, &weakest);
    testing::look("full.html", &page);
    testing::stands_alone(&page);
    assert!(testing::elements(&page) > 500);
    for id in [
        "findings",
        "eps",
        "attacks",
        "classes",
        "confusion",
        "confidence",
        "samples",
        "corruptions",
        "certificates",
        "protocol",
        "again",
    ] {
        assert!(page.contains(&format!("<section id=\"{id}\">")), "{id}");
        assert!(page.contains(&format!("<a href=\"#{id}\">")), "{id}");
    }
    for hostile in [
        "<script",
        "<i>",
        "lens<",
        "jpeg<",
        "<size",
        "\"boot\"",
        "<b>odd",
        "no-section<",
    ] {
        assert!(!page.contains(hostile), "{hostile}");
    }
    for text in [
        "change every pixel value by up to 0.05",
        "change an image by up to 2 in Euclidean length",
        "change pixel values by up to 10 in sum",
        "change up to 10 pixels at will",
        "overwrite one window of 5 x 5 pixels",
        "rotate an image by up to 30 degrees and shift it by up to 3 pixels",
        "change every pixel value by up to 0.1, or change an image by up to 1 in Euclidean length",
        "within the budget lens&lt;5x5&gt;",
        "Finding 1 of 3: attacks without gradients",
        "Finding 3 of 3: a sign &lt;i&gt;",
        "61 of the 640",
        "55 of the 310",
        "run the black-box attack longer",
        "Looked for as well, and not found",
        "--data fashion-mnist --samples 1000 --plan standard --threat linf:0.05",
        "--threat &#39;lens&lt;5x5&gt;&#39; --seed 3",
        "at distance 0.0123",
        "twin, attacked",
    ] {
        assert!(page.contains(text), "{text}");
    }
    // A curve each for linf and l2; nothing for norms of one budget or for what is no norm.
    assert_eq!(page.matches(" eps: ").count(), 2);
    assert_eq!(page.matches("<img ").count(), 12);
    // The clean histograms once, one of adversarial examples a budget.
    assert_eq!(page.matches("class=\"hist\"").count(), 2 + 11);
}

#[test]
fn counts_of_the_waterfall_add_up() {
    let (audit, _) = full();
    let page = audit_page(&audit, &[]);
    let section = page.split("<section id=\"attacks\">").nth(1).unwrap();
    let section = section.split("</section>").next().unwrap();
    let tables: Vec<&str> = section
        .split("<tbody>")
        .skip(1)
        .map(|rest| rest.split("</tbody>").next().unwrap())
        .collect();
    assert_eq!(tables.len(), audit.threats.len());
    for (table, threat) in tables.iter().zip(&audit.threats) {
        let cells = |row: &str| -> Vec<String> {
            let cells = row.split("<td>").skip(1);
            cells
                .map(|cell| cell.split('<').next().unwrap().to_owned())
                .collect()
        };
        let rows: Vec<Vec<String>> = table.split("<tr>").skip(2).map(cells).collect();
        let fell: f64 = rows.iter().map(|row| row[1].parse::<f64>().unwrap()).sum();
        let lost = audit.clean_accuracy - threat.robust_accuracy;
        assert!((fell - 1000.0 * lost).abs() < 0.5, "{}", threat.threat);
        assert_eq!(rows[4][0], report::percent(threat.robust_accuracy));
        assert_eq!((rows[0][2].as_str(), rows[1][2].as_str()), ("–", "100"));
    }
}

#[test]
fn a_page_without_findings_says_what_was_looked_for() {
    let names = DIGITS.map(str::to_owned);
    let mut audit = audit("runs/mnist-pgd", &names, &[("linf:0.3", 0.4)]);
    let page = audit_page(&audit, &[("linf:0.3".to_owned(), weak(&DIGITS))]);
    testing::look("clean.html", &page);
    testing::stands_alone(&page);
    testing::elements(&page);
    assert!(page.contains("No findings. 8 signs") && page.contains("Gradients vanish"));
    assert!(!page.contains("class=\"finding\"") && !page.contains("id=\"eps\""));
    assert!(!page.contains("id=\"corruptions\"") && !page.contains("twin"));
    audit.checks.clear();
    let page = audit_page(&audit, &[]);
    assert!(page.contains("none were looked for") && !page.contains("id=\"samples\""));
}

#[test]
fn a_hundred_classes_stay_readable() {
    let names: Vec<String> = (0..100).map(|i| format!("class of things {i}")).collect();
    let mut audit = audit(
        "cifar100's model",
        &names,
        &[("linf:8/255", 0.5), ("linf:4/255", 0.25)],
    );
    for (threat, eps) in audit.threats.iter_mut().zip([8.0, 4.0]) {
        threat.norm = Some("linf".to_owned());
        threat.eps = Some(eps / 255.0);
    }
    let page = audit_page(&audit, &[]);
    testing::look("hundred.html", &page);
    testing::stands_alone(&page);
    testing::elements(&page);
    assert!(page.contains("by up to 8/255"));
    assert!(page.contains("The 15 of 100 classes that are lowest in the column linf:8/255"));
    assert!(page.contains("15 most frequent of") && !page.contains("class=\"heat\""));
    assert!(page.contains("gauntlet audit &#39;cifar100&#39;\\&#39;&#39;s model&#39; "));
    // From the smaller budget to the larger, whatever their order.
    let curve = page.split("Robust accuracy by linf eps: ").nth(1).unwrap();
    let (first, rest) = curve.split_once(" at 0; ").unwrap();
    assert!(first.len() < 30 && rest.find("at 0.016") < rest.find("at 0.031"));
}

#[test]
fn an_empty_audit_is_a_page_too() {
    let names = DIGITS.map(str::to_owned);
    let mut audit = audit("m", &names, &[]);
    audit.plan = None;
    audit.clean_accuracy = f64::NAN;
    let page = audit_page(&audit, &[("linf:1".to_owned(), Vec::new())]);
    testing::stands_alone(&page);
    testing::elements(&page);
    assert!(!page.contains("id=\"attacks\"") && !page.contains("id=\"samples\""));
}

#[test]
fn findings_are_told_once_and_plans_and_replays_in_plain_words() {
    let (mut audit, mut weakest) = full();
    let first = &audit.findings[0];
    let told = format!("{}: {}", first.title, first.evidence);
    let evidence = first.evidence.clone();
    audit.warnings.push(told);
    audit.plan = Some("curve".to_owned());
    weakest[0].1[0].attack = "what fell within linf:0.01".to_owned();
    weakest[0].1[1].distance = Some(3.0);
    let page = audit_page(&audit, &weakest);
    assert_eq!(page.matches(&evidence).count(), 1);
    assert!(page.contains("mind the intervals"), "other warnings stay");
    assert!(page.contains("--plan plan.toml --seed 3"));
    assert!(page.contains("as within linf:0.01 at distance"));
    assert!(page.contains("by APGD-CE-100 at distance 3<"));
}

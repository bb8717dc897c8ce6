//! Curves over training or over budgets, as SVG that takes the colours of the page around it.

use std::fmt::Write;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::coord::types::RangedCoordf64;
use plotters::prelude::*;

use crate::Curve;
use crate::html::escape;

/// Colours that stay apart for most kinds of colour vision, after Okabe & Ito (2008); the blue is lightened until it is as
/// readable on black as on white.
pub(crate) const COLOURS: [RGBColor; 6] = [
    RGBColor(30, 130, 200),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

pub(crate) const FONT: &str = "system-ui, sans-serif";
const SIZE: (u32, u32) = (600, 300);
/// Curves of more points are drawn without markers.
const MARKED: usize = 60;

/// Plot and legend of `curves` over epochs. One colour and marker a quantity; a twin's curves are dashed.
pub(crate) fn figure(title: &str, curves: &[Curve]) -> String {
    let curves: Vec<&Curve> = curves
        .iter()
        .filter(|c| points(c).next().is_some())
        .collect();
    if curves.is_empty() {
        return String::new();
    }
    let looks = looks(&curves);
    let names: Vec<&str> = curves.iter().map(|curve| curve.name.as_str()).collect();
    let plot = Plot {
        title,
        x: "epoch",
        curves: &curves,
        ranges: &[],
    };
    let svg = plot.svg(
        &looks,
        &format!("{title} over epochs: {}", names.join("; ")),
    );
    let mut legend = String::new();
    for (curve, look) in curves.iter().zip(&looks) {
        let swatch = look.swatch(curve.points.len() <= MARKED);
        write!(legend, "<li>{swatch} {}</li>", escape(&curve.name)).expect("memory takes any text");
    }
    format!("<figure>{svg}<ul class=\"legend\">{legend}</ul></figure>")
}

/// Robust accuracy against the size of the budget: (size, accuracy, its interval), drawn as a curve with bars.
pub(crate) fn robustness(norm: &str, points: &[(f64, f64, [f64; 2])]) -> String {
    let curve = Curve {
        name: norm.to_owned(),
        points: points.iter().map(|&(eps, share, _)| (eps, share)).collect(),
    };
    let ranges: Vec<_> = points.iter().map(|&(eps, _, range)| (eps, range)).collect();
    let curves = [&curve];
    let plot = Plot {
        title: "Robust accuracy",
        x: &format!("{norm} eps"),
        curves: &curves,
        ranges: &ranges,
    };
    let said: Vec<String> = points
        .iter()
        .map(|(eps, share, [low, high])| {
            let [share, low, high] = [share, low, high].map(|share| 100.0 * share);
            format!("{share:.1} % ({low:.1} to {high:.1}) at {}", number(*eps))
        })
        .collect();
    let alt = format!("Robust accuracy by {norm} eps: {}", said.join("; "));
    // The colour that robust accuracy has elsewhere on the page.
    let look = Look {
        quantity: 1,
        twin: false,
    };
    plot.svg(&[look], &alt)
}

/// The points that can be drawn.
pub(crate) fn points(curve: &Curve) -> impl Iterator<Item = (f64, f64)> + Clone {
    let finite = |point: &(f64, f64)| point.0.is_finite() && point.1.is_finite();
    curve.points.iter().copied().filter(finite)
}

/// How a curve is told from the others.
#[derive(Debug, PartialEq)]
struct Look {
    quantity: usize,
    twin: bool,
}

/// The same quantity looks the same whoever it belongs to, but for the dashes.
fn looks(curves: &[&Curve]) -> Vec<Look> {
    let parts = curves
        .iter()
        .map(|curve| match curve.name.split_once(": ") {
            Some((_, quantity)) => (quantity, true),
            None => (curve.name.as_str(), false),
        });
    let mut quantities = Vec::new();
    parts
        .map(|(name, twin)| {
            if !quantities.contains(&name) {
                quantities.push(name);
            }
            let known = quantities.iter().position(|&other| other == name);
            Look {
                quantity: known.expect("added above"),
                twin,
            }
        })
        .collect()
}

impl Look {
    fn colour(&self) -> RGBColor {
        COLOURS[self.quantity % COLOURS.len()]
    }

    /// The look, as a small drawing for the legend.
    fn swatch(&self, marked: bool) -> String {
        let RGBColor(r, g, b) = self.colour();
        let dash = if self.twin {
            " stroke-dasharray=\"6 4\""
        } else {
            ""
        };
        let marker = match self.quantity % 3 {
            _ if !marked => "",
            0 => "<circle cx=\"14\" cy=\"6\" r=\"4\" stroke=\"none\"/>",
            1 => "<path d=\"M14 1 L19 10 L9 10 Z\" stroke=\"none\"/>",
            _ => "<path d=\"M10 2 L18 10 M18 2 L10 10\"/>",
        };
        format!(
            "<svg class=\"swatch\" width=\"28\" height=\"12\" aria-hidden=\"true\" fill=\"rgb({r},{g},{b})\" \
             stroke=\"rgb({r},{g},{b})\" stroke-width=\"2\"><path d=\"M0 6 H28\"{dash}/>{marker}</svg>"
        )
    }
}

pub(crate) type Failed = DrawingAreaErrorKind<std::io::Error>;

/// What is drawn.
struct Plot<'a> {
    /// Speaks of accuracy if the values are shares.
    title: &'a str,
    /// The quantity to the right.
    x: &'a str,
    curves: &'a [&'a Curve],
    /// Bars of the first curve: (x, [low, high]).
    ranges: &'a [(f64, [f64; 2])],
}

impl Plot<'_> {
    fn svg(&self, looks: &[Look], alt: &str) -> String {
        let mut svg = String::new();
        self.draw(&mut svg, looks)
            .expect("drawing into memory does not fail");
        // The size follows the page (the view box keeps the proportions), and so does what is black.
        let head = format!("<svg width=\"{}\" height=\"{}\"", SIZE.0, SIZE.1);
        let own = format!(
            "<svg class=\"plot\" role=\"img\" aria-label=\"{}\"",
            escape(alt)
        );
        svg.replacen(&head, &own, 1)
            .replace("\"#000000\"", "\"currentColor\"")
    }

    fn draw(&self, svg: &mut String, looks: &[Look]) -> Result<(), Failed> {
        let curves = self.curves;
        let all = || curves.iter().flat_map(|curve| points(curve));
        let share = self.title.to_lowercase().contains("accuracy");
        let right = all().map(|point| point.0).fold(1e-9, f64::max);
        let highest = all().map(|point| point.1).fold(1e-9, f64::max);
        let top = if share { 1.0 } else { 1.05 * highest };
        let axis = Labelled {
            range: (0.0..top).into(),
            share,
        };
        let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(10)
            .margin_right(18)
            .x_label_area_size(54)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..right, axis)?;
        chart
            .configure_mesh()
            .x_desc(self.x)
            .x_label_formatter(&|x| number(*x))
            .x_labels(7)
            .y_labels(6)
            .label_style((FONT, 17))
            .axis_desc_style((FONT, 17))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.15))
            .draw()?;
        for (curve, look) in curves.iter().zip(looks) {
            let marked = curve.points.len() <= MARKED;
            let colour = look.colour();
            // A value a step is noisy: a thin line keeps what lies behind it visible.
            let style = colour.stroke_width(if marked || curves.len() == 1 { 2 } else { 1 });
            if look.twin {
                chart.draw_series(DashedLineSeries::new(points(curve), 6, 4, style))?;
            } else {
                chart.draw_series(LineSeries::new(points(curve), style))?;
            }
            match look.quantity % 3 {
                _ if !marked => {}
                0 => {
                    chart.draw_series(points(curve).map(|p| Circle::new(p, 4, colour.filled())))?;
                }
                1 => {
                    let markers = points(curve).map(|p| TriangleMarker::new(p, 6, colour.filled()));
                    chart.draw_series(markers)?;
                }
                _ => {
                    chart.draw_series(points(curve).map(|p| Cross::new(p, 4, style)))?;
                }
            }
        }
        if let Some(look) = looks.first() {
            let style = look.colour().stroke_width(2);
            for &(x, [low, high]) in self.ranges {
                chart.draw_series([PathElement::new(vec![(x, low), (x, high)], style)])?;
                let cap =
                    |y| EmptyElement::at((x, y)) + PathElement::new(vec![(-5, 0), (5, 0)], style);
                chart.draw_series([low, high].map(cap))?;
            }
        }
        area.present()
    }
}

/// An axis that writes shares as percent.
pub(crate) struct Labelled {
    pub(crate) range: RangedCoordf64,
    pub(crate) share: bool,
}

impl Ranged for Labelled {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.range.map(value, limit)
    }

    fn key_points<Hint: KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        self.range.key_points(hint)
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.range()
    }
}

impl ValueFormatter<f64> for Labelled {
    fn format_ext(&self, value: &f64) -> String {
        if self.share {
            format!("{} %", number(100.0 * value))
        } else {
            number(*value)
        }
    }
}

/// A number with three decimals, or three digits and an exponent, without needless zeros.
pub(crate) fn number(value: f64) -> String {
    let trimmed = |text: &str| text.trim_end_matches('0').trim_end_matches('.').to_owned();
    let size = value.abs();
    if size < 1e-12 {
        return "0".to_owned();
    }
    if (0.01..1e5).contains(&size) {
        return trimmed(&format!("{value:.3}"));
    }
    let text = format!("{value:.2e}");
    let (digits, exponent) = text.split_once('e').expect("written with an exponent");
    format!("{}e{exponent}", trimmed(digits))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn curve(name: &str, points: &[(f64, f64)]) -> Curve {
        Curve {
            name: name.to_owned(),
            points: points.to_vec(),
        }
    }

    #[test]
    fn ticks_are_short_and_differ() {
        let texts = [
            0.0,
            0.0025,
            0.003,
            0.30000000000000004,
            40.0,
            1e-18,
            250_000.0,
        ]
        .map(number);
        assert_eq!(texts, ["0", "2.5e-3", "3e-3", "0.3", "40", "0", "2.5e5"]);
    }

    #[test]
    fn a_twin_keeps_the_colour_and_gets_dashes() {
        let curves = ["training", "clean", "standard twin: clean"].map(|name| curve(name, &[]));
        let looks = looks(&curves.iter().collect::<Vec<_>>());
        assert_eq!(looks[1].colour(), looks[2].colour());
        assert_ne!(looks[0].colour(), looks[1].colour());
        assert!(!looks[1].swatch(true).contains("dasharray"));
        assert!(looks[2].swatch(true).contains("dasharray"));
    }

    #[test]
    fn intervals_are_drawn_and_said() {
        let points = [(0.0, 1.0, [0.9, 1.0]), (0.5, 0.25, [0.0, 0.5])];
        let svg = robustness("l2", &points);
        assert!(svg.contains("100.0 % (90.0 to 100.0) at 0; 25.0 % (0.0 to 50.0) at 0.5"));
        assert!(svg.contains("l2 eps") && svg.contains("100 %"));
        let bare = Plot {
            title: "Robust accuracy",
            x: "l2 eps",
            curves: &[&curve("l2", &[(0.0, 1.0), (0.5, 0.25)])],
            ranges: &[],
        };
        let look = Look {
            quantity: 0,
            twin: false,
        };
        let lines = |svg: &str| svg.matches("<polyline").count() + svg.matches("<line").count();
        assert!(lines(&svg) >= lines(&bare.svg(&[look], "")) + 2);
    }

    #[test]
    fn higher_values_are_drawn_higher_and_gaps_are_left_out() {
        let rising = curve("a", &[(0.0, 0.0), (1.0, f64::NAN), (2.0, 1.0)]);
        let svg = figure("Accuracy", &[rising]);
        assert!(svg.starts_with(
            "<figure><svg class=\"plot\" role=\"img\" aria-label=\"Accuracy over epochs: a\""
        ));
        assert!(!svg.contains("NaN") && !svg.contains("#000000"));
        let plot = svg.split("<ul").next().unwrap();
        let number = |text: &str, key: &str| -> f64 {
            let value = text.split(&format!("{key}=\"")).nth(1).unwrap();
            value.split('"').next().unwrap().parse().unwrap()
        };
        let places: Vec<_> = plot
            .split("<circle")
            .skip(1)
            .map(|circle| (number(circle, "cx"), number(circle, "cy")))
            .collect();
        assert_eq!(places.len(), 2);
        assert!(places[1].0 > places[0].0 + 300.0 && places[1].1 < places[0].1 - 150.0);
        assert!(figure("Loss", &[curve("b", &[(0.0, f64::NAN)])]).is_empty());
    }
}

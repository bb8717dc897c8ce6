//! Curves over training, as SVG.

use plotters::coord::ranged1d::ValueFormatter;
use plotters::prelude::*;

use crate::Curve;

/// Colours that stay apart for most kinds of colour vision (Okabe & Ito 2008).
const COLOURS: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
];

const FONT: &str = "system-ui, sans-serif";

/// Draws `curves` over epochs into one SVG element; a curve of few points shows each of them.
pub(crate) fn svg(title: &str, curves: &[Curve]) -> String {
    let mut svg = String::new();
    let points = || {
        curves
            .iter()
            .flat_map(|curve| &curve.points)
            .filter(|point| point.1.is_finite())
    };
    let right = points().map(|point| point.0).fold(1e-9, f64::max);
    let top = points().map(|point| point.1).fold(0.0, f64::max);
    let share = title.to_lowercase().contains("accuracy");
    let top = if share { 1.0 } else { (top * 1.05).max(1e-9) };
    draw(&mut svg, curves, right, top, share).expect("drawing into memory does not fail");
    // The size follows the page; the view box keeps the proportions.
    svg.replacen("<svg width=\"720\" height=\"320\"", "<svg role=\"img\"", 1)
}

type Failed = DrawingAreaErrorKind<std::io::Error>;

fn draw(
    svg: &mut String,
    curves: &[Curve],
    right: f64,
    top: f64,
    share: bool,
) -> Result<(), Failed> {
    let area = SVGBackend::with_string(svg, (720, 320)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .x_label_area_size(36)
        .y_label_area_size(56)
        .build_cartesian_2d(
            0.0..right,
            Labelled {
                range: (0.0..top).into(),
                share,
            },
        )?;
    chart
        .configure_mesh()
        .x_desc("epoch")
        .label_style((FONT, 13))
        .axis_desc_style((FONT, 13))
        .light_line_style(TRANSPARENT)
        .bold_line_style(BLACK.mix(0.12))
        .draw()?;
    for (i, curve) in curves.iter().enumerate() {
        let colour = COLOURS[i % COLOURS.len()];
        let style = colour.stroke_width(2);
        let points = curve
            .points
            .iter()
            .copied()
            .filter(|point| point.1.is_finite());
        // Dashes tell a twin's curves apart where colour does not.
        let twin = curve.name.starts_with("standard");
        if twin {
            chart.draw_series(DashedLineSeries::new(points.clone(), 6, 4, style))?
        } else {
            chart.draw_series(LineSeries::new(points.clone(), style))?
        }
        .label(&curve.name)
        .legend(move |(x, y)| {
            PathElement::new([(x, y), (x + if twin { 8 } else { 18 }, y)], style)
        });
        if curve.points.len() <= 60 {
            chart.draw_series(points.map(|point| Circle::new(point, 3, colour.filled())))?;
        }
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .label_font((FONT, 13))
        .position(if share {
            SeriesLabelPosition::LowerRight
        } else {
            SeriesLabelPosition::UpperRight
        })
        .draw()?;
    area.present()
}

/// An axis that writes shares as percent.
struct Labelled {
    range: plotters::coord::types::RangedCoordf64,
    share: bool,
}

impl Ranged for Labelled {
    type FormatOption = plotters::coord::ranged1d::NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        self.range.map(value, limit)
    }

    fn key_points<Hint: plotters::coord::ranged1d::KeyPointHint>(&self, hint: Hint) -> Vec<f64> {
        self.range.key_points(hint)
    }

    fn range(&self) -> std::ops::Range<f64> {
        self.range.range()
    }
}

impl ValueFormatter<f64> for Labelled {
    fn format_ext(&self, value: &f64) -> String {
        if self.share {
            format!("{:.0} %", 100.0 * value)
        } else if *value != 0.0 && value.abs() < 0.01 {
            format!("{value:.0e}")
        } else {
            format!("{:.3}", value)
                .trim_end_matches('0')
                .trim_end_matches('.')
                .to_owned()
        }
    }
}

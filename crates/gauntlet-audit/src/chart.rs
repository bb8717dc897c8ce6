//! Charts as SVG files of their own, on white, with their legend in them: for documents that no style sheet reaches.

use plotters::coord::Shift;
use plotters::prelude::*;

use crate::Curve;
use crate::html::escape;
use crate::plot::{COLOURS, FONT, Failed, Labelled, number, points};

const WIDTH: u32 = 760;
const HEIGHT: u32 = 360;
/// Width of the legend.
const LEGEND: u32 = 220;
const TEXT: i32 = 15;

/// What was measured of one of the things compared. All accuracies are shares in [0, 1].
#[derive(Clone, Debug, PartialEq)]
pub struct Cloud {
    /// What it is.
    pub name: String,
    /// (accuracy without attack, accuracy under attack) of each of its runs.
    pub points: Vec<(f64, f64)>,
}

impl Cloud {
    fn mean(&self) -> (f64, f64) {
        let n = self.points.len().max(1) as f64;
        let add = |sum: (f64, f64), point: &(f64, f64)| (sum.0 + point.0, sum.1 + point.1);
        let sum = self.points.iter().fold((0.0, 0.0), add);
        (sum.0 / n, sum.1 / n)
    }
}

/// Accuracy under attack within `threat` against accuracy without: a small mark a run, a large one for the mean. The text of an
/// SVG file; the same input gives the same text.
pub fn scatter(threat: &str, clouds: &[Cloud]) -> String {
    let clouds: Vec<&Cloud> = clouds
        .iter()
        .filter(|cloud| !cloud.points.is_empty())
        .collect();
    let said: Vec<String> = clouds
        .iter()
        .map(|cloud| {
            let (clean, robust) = cloud.mean();
            let (clean, robust) = (100.0 * clean, 100.0 * robust);
            format!("{} {clean:.1} % and {robust:.1} %", cloud.name)
        })
        .collect();
    let alt = format!(
        "Mean accuracy without attack and within {threat}: {}",
        said.join("; ")
    );
    let names: Vec<&str> = clouds.iter().map(|cloud| cloud.name.as_str()).collect();
    let all = || clouds.iter().flat_map(|cloud| cloud.points.iter());
    let x = range(all().map(|point| point.0));
    let y = range(all().map(|point| point.1));
    draw(&alt, &names, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(50)
            .y_label_area_size(64)
            .build_cartesian_2d(shares(x), shares(y))?;
        chart
            .configure_mesh()
            .x_desc("accuracy without attack")
            .y_desc(format!("within {threat}"))
            .x_labels(6)
            .y_labels(6)
            .label_style((FONT, TEXT))
            .axis_desc_style((FONT, TEXT))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.15))
            .draw()?;
        for (place, cloud) in clouds.iter().enumerate() {
            let place_of = |(x, y): (f64, f64)| chart.backend_coord(&(x, y));
            for &point in &cloud.points {
                mark(chart.plotting_area(), place_of(point), place, 4, 0.45)?;
            }
            mark(chart.plotting_area(), place_of(cloud.mean()), place, 8, 1.0)?;
        }
        Ok(())
    })
}

/// Accuracies over epochs. The text of an SVG file; the same input gives the same text.
pub fn over_epochs(title: &str, curves: &[Curve]) -> String {
    let curves: Vec<&Curve> = curves
        .iter()
        .filter(|curve| points(curve).next().is_some())
        .collect();
    let names: Vec<&str> = curves.iter().map(|curve| curve.name.as_str()).collect();
    let alt = format!("{title} over epochs: {}", names.join("; "));
    let all = || curves.iter().flat_map(|curve| points(curve));
    let right = all().map(|point| point.0).fold(1e-9, f64::max);
    draw(&alt, &names, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(50)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..right, shares((0.0, 1.0)))?;
        chart
            .configure_mesh()
            .x_desc("epoch")
            .y_desc(title)
            .x_label_formatter(&|x| number(*x))
            .x_labels(7)
            .y_labels(6)
            .label_style((FONT, TEXT))
            .axis_desc_style((FONT, TEXT))
            .light_line_style(TRANSPARENT)
            .bold_line_style(BLACK.mix(0.15))
            .draw()?;
        for (place, curve) in curves.iter().enumerate() {
            let style = colour(place).stroke_width(2);
            chart.draw_series(LineSeries::new(points(curve), style))?;
            if curve.points.len() <= 40 {
                for (x, y) in points(curve) {
                    let at = chart.backend_coord(&(x, y));
                    mark(chart.plotting_area(), at, place, 4, 1.0)?;
                }
            }
        }
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, Shift>;

/// A chart on the left, the names of what is in it on the right.
fn draw(alt: &str, names: &[&str], chart: impl FnOnce(&Area<'_>) -> Result<(), Failed>) -> String {
    let mut svg = String::new();
    let height = HEIGHT.max(30 + 22 * names.len() as u32);
    let drawn = || -> Result<(), Failed> {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        area.fill(&WHITE)?;
        let (left, right) = area.split_horizontally(WIDTH - LEGEND);
        chart(&left)?;
        for (place, name) in names.iter().enumerate() {
            let y = 24 + 22 * place as i32;
            let (base_x, base_y) = right.get_base_pixel();
            mark(&right, (base_x + 12, base_y + y), place, 5, 1.0)?;
            right.draw(&Text::new((*name).to_owned(), (26, y - 8), (FONT, TEXT)))?;
        }
        area.present()
    };
    drawn().expect("drawing into memory does not fail");
    let title = format!("<title>{}</title>", escape(alt));
    match svg.find('>') {
        Some(end) => svg.insert_str(end + 1, &title),
        None => svg = title,
    }
    svg
}

fn colour(place: usize) -> RGBColor {
    COLOURS[place % COLOURS.len()]
}

/// A mark at a pixel of the whole drawing; colour and shape are those of the thing at `place`.
fn mark<C: plotters::coord::CoordTranslate>(
    area: &DrawingArea<SVGBackend<'_>, C>,
    at: (i32, i32),
    place: usize,
    size: i32,
    strength: f64,
) -> Result<(), Failed> {
    let area = area.strip_coord_spec();
    let (base_x, base_y) = area.get_base_pixel();
    let at = (at.0 - base_x, at.1 - base_y);
    let style = colour(place).mix(strength);
    // Eighteen things look different.
    match (place + place / COLOURS.len()) % 3 {
        0 => area.draw(&Circle::new(at, size, style.filled())),
        1 => area.draw(&TriangleMarker::new(at, size + 2, style.filled())),
        _ => area.draw(&Cross::new(at, size, style.stroke_width(2))),
    }
}

fn shares((low, high): (f64, f64)) -> Labelled {
    Labelled {
        range: (low..high).into(),
        share: true,
    }
}

/// A range around accuracies, with room for marks.
fn range(values: impl Iterator<Item = f64> + Clone) -> (f64, f64) {
    let low = values.clone().fold(1.0, f64::min);
    let high = values.fold(0.0, f64::max);
    if low > high {
        return (0.0, 1.0);
    }
    let room = (0.1 * (high - low)).max(0.01);
    (low - room, high + room)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cloud(name: &str, points: &[(f64, f64)]) -> Cloud {
        Cloud {
            name: name.to_owned(),
            points: points.to_vec(),
        }
    }

    /// Centres of the circles of this radius.
    fn circles(svg: &str, radius: &str) -> Vec<(f64, f64)> {
        let number = |text: &str, key: &str| -> f64 {
            let value = text.split(&format!(" {key}=\"")).nth(1).unwrap();
            value.split('"').next().unwrap().parse().unwrap()
        };
        svg.split("<circle")
            .skip(1)
            .filter(|circle| circle.contains(&format!(" r=\"{radius}\"")))
            .map(|circle| (number(circle, "cx"), number(circle, "cy")))
            .collect()
    }

    #[test]
    fn a_run_is_a_mark_and_the_mean_a_large_one_between() {
        let runs = [(0.8, 0.4), (0.9, 0.6)];
        let svg = scatter("linf:0.1", &[cloud("a & b", &runs), cloud("none", &[])]);
        assert!(svg.starts_with("<svg ") && svg.contains("xmlns=\"http://www.w3.org/2000/svg\""));
        assert!(
            svg.contains("within linf:0.1: a &amp; b 85.0 % and 50.0 %</title>"),
            "{svg}"
        );
        let (small, large) = (circles(&svg, "4"), circles(&svg, "8"));
        assert_eq!((small.len(), large.len()), (2, 1), "{svg}");
        assert!(small[1].0 > small[0].0 + 200.0 && small[1].1 < small[0].1 - 100.0);
        let middle = (
            (small[0].0 + small[1].0) / 2.0,
            (small[0].1 + small[1].1) / 2.0,
        );
        assert!((large[0].0 - middle.0).abs() <= 1.0 && (large[0].1 - middle.1).abs() <= 1.0);
        assert_eq!(svg, scatter("linf:0.1", &[cloud("a & b", &runs)]));
    }

    #[test]
    fn curves_have_a_legend_and_survive_odd_input() {
        let curve = |name: &str, points: &[(f64, f64)]| Curve {
            name: name.to_owned(),
            points: points.to_vec(),
        };
        let rising = curve("pgd", &[(1.0, 0.0), (2.0, f64::NAN), (3.0, 1.0)]);
        let svg = over_epochs("validation accuracy", &[rising, curve("empty", &[])]);
        assert!(
            svg.contains(">\npgd\n</text>") && !svg.contains("NaN"),
            "{svg}"
        );
        assert!(!svg.contains("empty"));
        let marks = circles(&svg, "4");
        assert!(marks[1].0 > marks[0].0 && marks[1].1 < marks[0].1 - 200.0);
        assert!(over_epochs("nothing", &[]).starts_with("<svg "));
        assert!(scatter("l2:1", &[cloud("one", &[(1.0, 1.0)])]).contains("<circle"));
    }
}

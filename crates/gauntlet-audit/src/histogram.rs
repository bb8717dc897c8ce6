//! How sure a model was, as SVG that takes the colours of the page around it.

use crate::html::{add, escape};

/// Size of the drawing, and of the part of it that bars are in.
const SIZE: (f64, f64) = (260.0, 126.0);
const LEFT: f64 = 42.0;
const RIGHT: f64 = 252.0;
const TOP: f64 = 14.0;
const BOTTOM: f64 = 94.0;

/// A histogram of `counts` over equal bins of [0, 1] under a caption; heights are shares of the samples. `colour` is CSS.
pub(crate) fn histogram(caption: &str, counts: &[usize], colour: &str) -> String {
    let total: usize = counts.iter().sum();
    let caption = escape(caption);
    if total == 0 {
        return format!(
            "<figure><figcaption>{caption}<span class=\"note\">no samples</span></figcaption></figure>\n"
        );
    }
    let share = |count: usize| count as f64 / total as f64;
    let most = share(counts.iter().copied().max().unwrap_or(0));
    let (low, high) = median(counts);
    let plural = crate::html::plural(total);
    let said = format!("{total} sample{plural}, median {low:.2} to {high:.2}");
    let (width, height) = SIZE;
    let mut svg = format!(
        "<svg class=\"hist\" viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"Confidence, {caption}: {said}\">"
    );
    let bin = (RIGHT - LEFT) / counts.len() as f64;
    for (place, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        // What is there can be seen, however little it is.
        let tall = ((BOTTOM - TOP) * share(count) / most).max(1.0);
        add(
            &mut svg,
            format_args!(
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{tall:.1}\" fill=\"{colour}\"/>",
                LEFT + bin * place as f64 + 0.5,
                BOTTOM - tall,
                bin - 1.0,
            ),
        );
    }
    add(
        &mut svg,
        format_args!(
            "<path d=\"M{LEFT} {TOP} V{BOTTOM} H{RIGHT}\" fill=\"none\" stroke=\"currentColor\" opacity=\"0.5\"/>\
             <text x=\"{tick}\" y=\"{top}\" text-anchor=\"end\">{:.0} %</text>\
             <text x=\"{tick}\" y=\"{BOTTOM}\" text-anchor=\"end\">0</text>",
            100.0 * most,
            tick = LEFT - 5.0,
            top = TOP + 6.0,
        ),
    );
    for (value, text) in [(0.0, "0"), (0.5, "0.5"), (1.0, "1")] {
        let x = LEFT + (RIGHT - LEFT) * value;
        add(
            &mut svg,
            format_args!(
                "<text x=\"{x}\" y=\"{}\" text-anchor=\"middle\">{text}</text>",
                BOTTOM + 15.0
            ),
        );
    }
    add(
        &mut svg,
        format_args!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">confidence</text></svg>",
            f64::midpoint(LEFT, RIGHT),
            height - 3.0
        ),
    );
    format!(
        "<figure><figcaption>{caption}<span class=\"note\">{said}</span></figcaption>{svg}</figure>\n"
    )
}

/// Ends of the bin that the median is in.
fn median(counts: &[usize]) -> (f64, f64) {
    let total: usize = counts.iter().sum();
    let mut seen = 0;
    let bin = counts.iter().position(|&count| {
        seen += count;
        2 * seen >= total
    });
    let (bin, bins) = (bin.unwrap_or(0) as f64, counts.len() as f64);
    (bin / bins, (bin + 1.0) / bins)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_are_as_high_as_their_share() {
        let html = histogram("a < b", &[1, 0, 0, 3], "red");
        let heights: Vec<f64> = html
            .split("<rect")
            .skip(1)
            .map(|bar| {
                let height = bar.split(" height=\"").nth(1).unwrap();
                height.split('"').next().unwrap().parse().unwrap()
            })
            .collect();
        assert_eq!(heights.len(), 2);
        assert!((heights[1] - 3.0 * heights[0]).abs() < 0.2);
        assert!(html.contains("4 samples") && html.contains("median 0.75 to 1.00"));
        assert!(html.contains("75 %") && html.contains("a &lt; b"));
        assert!(histogram("none", &[0, 0], "red").contains("no samples"));
    }
}

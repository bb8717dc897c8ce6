//! What differs from class to class, for pages.

use crate::Class;
use crate::html::{add, columns, escape, fold, meter, table};

/// Up to so many classes are shown in full.
const SHOWN: usize = 20;
/// Of more, so many are shown first.
const FIRST: usize = 15;

/// Accuracy without attack, and under each attack of `attacked`, with bars. Of many classes those that are weakest under the
/// attack at `hardest` come first, and the rest is folded away.
pub(crate) fn by_class(classes: &[Class], attacked: &[(&str, &[Class])], hardest: usize) -> String {
    let names = ["class", "samples", "clean"].into_iter();
    let head = columns(names.chain(attacked.iter().map(|(name, _)| *name)));
    let row = |&place: &usize| {
        let class = &classes[place];
        let mut row = format!(
            "<tr><th scope=\"row\">{}</th><td>{}</td>{}",
            escape(&class.name),
            class.samples,
            share("clean", class, class.clean_accuracy),
        );
        for (_, classes) in attacked {
            row += &classes.get(place).map_or("<td></td>".to_owned(), |class| {
                share("robust", class, class.robust_accuracy)
            });
        }
        row + "</tr>\n"
    };
    let rows = |places: &[usize]| places.iter().map(row).collect::<String>();
    let whole = |rows: &str| table("", "Accuracy by class", &head, rows);
    let mut places: Vec<usize> = (0..classes.len()).collect();
    if classes.len() <= SHOWN {
        return whole(&rows(&places));
    }
    let (under, weakest) = attacked.get(hardest).copied().unwrap_or(("clean", classes));
    let robust = |place: &usize| match weakest.get(*place) {
        Some(class) if class.samples > 0 => class.robust_accuracy,
        _ => f64::INFINITY,
    };
    places.sort_by(|a, b| robust(a).total_cmp(&robust(b)));
    let (first, rest) = places.split_at(FIRST);
    format!(
        "<p class=\"sub\">The {FIRST} of {} classes that are lowest in the column {}.</p>\n{}{}",
        classes.len(),
        escape(under),
        whole(&rows(first)),
        fold(false, "The other classes", &whole(&rows(rest))),
    )
}

fn share(kind: &str, class: &Class, share: f64) -> String {
    if class.samples == 0 {
        return "<td class=\"meter\">–</td>".to_owned();
    }
    meter(kind, share)
}

/// How many samples of each class (row) ended as which class (column): a table with shades, or the most frequent confusions
/// where classes are many.
pub(crate) fn confusion(names: &[&str], counts: &[Vec<usize>]) -> String {
    if counts.len() > SHOWN {
        frequent(names, counts)
    } else {
        heat(names, counts)
    }
}

fn name<'a>(names: &[&'a str], class: usize) -> std::borrow::Cow<'a, str> {
    let known = names.get(class).map(|&name| name.into());
    known.unwrap_or_else(|| format!("class {class}").into())
}

fn heat(names: &[&str], counts: &[Vec<usize>]) -> String {
    let longest = (0..counts.len()).map(|class| name(names, class).chars().count());
    let turned = if longest.max().unwrap_or(0) > 4 {
        " class=\"turned\""
    } else {
        ""
    };
    let mut head = "<th scope=\"col\">true class</th>".to_owned();
    for class in 0..counts.len() {
        let name = escape(&name(names, class));
        add(
            &mut head,
            format_args!("<th scope=\"col\"{turned}><span>{name}</span></th>"),
        );
    }
    let mut body = String::new();
    for (class, row) in counts.iter().enumerate() {
        let total = row.iter().sum::<usize>().max(1) as f64;
        let name = escape(&name(names, class));
        add(&mut body, format_args!("<tr><th scope=\"row\">{name}</th>"));
        for (said, &count) in row.iter().enumerate() {
            let alpha = 0.65 * count as f64 / total;
            let cell = match (count, said == class) {
                (_, true) => format!("<td class=\"own\"><b>{count}</b></td>"),
                (0, _) => "<td class=\"none\">0</td>".to_owned(),
                _ => {
                    format!("<td style=\"background:rgba(213,94,0,{alpha:.2})\">{count}</td>")
                }
            };
            body += &cell;
        }
        body += "</tr>\n";
    }
    table("heat", "Confusion of classes under attack", &head, &body)
}

fn frequent(names: &[&str], counts: &[Vec<usize>]) -> String {
    let mut pairs = Vec::new();
    for (class, row) in counts.iter().enumerate() {
        for (said, &count) in row.iter().enumerate() {
            if said != class && count > 0 {
                pairs.push((count, class, said));
            }
        }
    }
    pairs.sort_by_key(|&(count, class, said)| (std::cmp::Reverse(count), class, said));
    let mut body = String::new();
    for &(count, class, said) in pairs.iter().take(FIRST) {
        let total: usize = counts[class].iter().sum();
        add(
            &mut body,
            format_args!(
                "<tr><th scope=\"row\">{}</th><td>{}</td><td>{count} of {total}</td>{}</tr>\n",
                escape(&name(names, class)),
                escape(&name(names, said)),
                meter("robust", count as f64 / total as f64),
            ),
        );
    }
    let head = columns(["true class", "ended as", "samples", "share of the class"]);
    let shown = pairs.len().min(FIRST);
    let note = format!(
        "<p class=\"sub\">The {shown} most frequent of {} confusions.</p>\n",
        pairs.len()
    );
    note + &table("", "Confusion of classes under attack", &head, &body)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn class(name: &str, samples: usize, robust_accuracy: f64) -> Class {
        Class {
            name: name.to_owned(),
            samples,
            clean_accuracy: 1.0,
            robust_accuracy,
        }
    }

    #[test]
    fn the_weakest_of_many_classes_come_first_and_none_is_left_out() {
        let mut classes: Vec<Class> = (0..30)
            .map(|i| class(&format!("c{i:02}"), 10, f64::from(i * 7 % 30) / 30.0))
            .collect();
        classes[0] = class("absent", 0, 0.0);
        let html = by_class(&classes, &[("l2:1", &classes)], 0);
        let (first, rest) = html.split_once("<details>").unwrap();
        // i * 7 % 30 = 1 for i = 13; 29 for i = 17. A class without samples is not weak.
        assert!(first.contains("c13") && rest.contains("c17") && rest.contains("absent"));
        assert_eq!(html.matches("scope=\"row\"").count(), 30);
        assert!(html.contains("<td class=\"meter\">–</td>"));
    }

    #[test]
    fn cells_are_shaded_by_their_share_of_the_row() {
        let html = confusion(&["a", "b"], &[vec![6, 2], vec![0, 4]]);
        assert!(html.contains("<td class=\"own\"><b>6</b></td>"));
        // 0.65 * 2 / 8
        assert!(html.contains("<td style=\"background:rgba(213,94,0,0.16)\">2</td>"));
        assert!(html.contains("<td class=\"none\">0</td>"));
        assert!(!html.contains("turned"));
        assert!(confusion(&["plane"], &[vec![1, 0], vec![0, 1]]).contains("class 1"));
    }

    #[test]
    fn many_classes_give_the_most_frequent_confusions() {
        let mut counts = vec![vec![0; 25]; 25];
        for (class, row) in counts.iter_mut().enumerate() {
            row[class] = 50;
            row[(class + 1) % 25] = class;
        }
        let html = confusion(&[], &counts);
        let rows: Vec<&str> = html.split("<tr>").skip(2).collect();
        assert_eq!(rows.len(), 15);
        assert!(rows[0].contains("class 24</th><td>class 0</td><td>24 of 74</td>"));
        // 24 classes are confused at least once.
        assert!(html.contains("15 most frequent of 24 confusions"));
    }
}

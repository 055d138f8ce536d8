//! Lists and ranges of numbers, and the output's formats.

use braid::cli::failure::Failure;
use braid::cli::flag::wrap;
use braid::cli::terminal;
use braid::cli::value::Value;
use serde::Serialize;

/// The most values of a list; more would be a typing error.
const MOST: usize = 1000;

/// Whole numbers as llama-bench writes them: `4`, `1,2`, `512..1024+256` (also `512-1024+256`), `64..1024*2`; each of `min`
/// to `max`. A range without a step goes up by one.
pub fn numbers(value: &mut Value<'_>, min: usize, max: usize) -> Result<Vec<usize>, Failure> {
    let text = value.text()?;
    parse(&text).filter(|list| list.iter().all(|n| (min..=max).contains(n))).ok_or_else(|| {
        value.wrong(&format!(
            "must be numbers of {min} to {max}, as in 20,50 or 512..1024+256 or 64..1024*2; got `{text}`"
        ))
    })
}

fn parse(text: &str) -> Option<Vec<usize>> {
    let mut out = Vec::new();
    for item in text.split(',') {
        let Some((first, rest)) = item.split_once("..").or_else(|| item.split_once('-')) else {
            out.push(item.trim().parse().ok()?);
            continue;
        };
        let at = rest.find(['+', '*']).unwrap_or(rest.len());
        let (last, step) = rest.split_at(at);
        let (mut n, last): (usize, usize) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        let by: usize = step.get(1..).map_or(Some(1), |s| s.trim().parse().ok())?;
        let factor = step.starts_with('*');
        if n > last || by == 0 || (factor && (by == 1 || n == 0)) {
            return None;
        }
        while n <= last && out.len() <= MOST {
            out.push(n);
            n = if factor { n.checked_mul(by)? } else { n.checked_add(by)? };
        }
    }
    (out.len() <= MOST).then_some(out)
}

/// The format in which results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Markdown,
    Csv,
    Json,
    JsonLines,
}

impl Format {
    /// The value of `-o`.
    pub fn read(value: &mut Value<'_>) -> Result<Self, Failure> {
        value.choice(&[("md", Self::Markdown), ("csv", Self::Csv), ("json", Self::Json), ("jsonl", Self::JsonLines)])
    }
}

/// Rows under their titles, as CSV.
fn csv(titles: &[&str], rows: &[Vec<String>]) -> String {
    let cell = |text: &str| match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text.to_owned(),
    };
    let mut text = titles.iter().map(|title| cell(title)).collect::<Vec<_>>().join(",") + "\n";
    text.extend(rows.iter().map(|row| row.iter().map(|c| cell(c)).collect::<Vec<_>>().join(",") + "\n"));
    text
}

/// The widest line of a table that is read on a terminal.
const WIDTH: usize = 100;

/// Rows under their titles, as a Markdown table for a terminal.
///
/// Of the first `about` columns, which describe the measurement, those with one value in every row stand in lines above
/// the table, and so does the first date. Columns without any text are left out; why a row was skipped stands below. A
/// table that is too wide has its rows side by side where they fit.
pub fn markdown(titles: &[&str], rows: &[Vec<String>], about: usize) -> String {
    let (rows, notes) = (noted(titles, rows), skipped(titles, rows));
    let same = |k: usize| k < about && (titles[k] == "date" || rows.iter().all(|row| row[k] == rows[0][k]));
    let empty = |k: usize| rows.iter().all(|row| row[k].is_empty());
    let shared: Vec<_> = (0..about).filter(|&k| !rows.is_empty() && same(k) && !empty(k)).collect();
    let shared: Vec<_> = shared.into_iter().map(|k| format!("{}: {}", titles[k], rows[0][k])).collect();
    let head = match shared.is_empty() {
        true => String::new(),
        false => format!("{}\n\n", wrap(&shared.join(", "), 0, "")),
    };
    let kept: Vec<_> = (0..titles.len()).filter(|&k| !same(k) && !empty(k)).collect();
    let mut lines = vec![kept.iter().map(|&k| titles[k].to_owned()).collect::<Vec<_>>()];
    lines.extend(rows.iter().map(|row| kept.iter().map(|&k| row[k].replace('|', "\\|")).collect()));
    let fits = |table: &String| table.lines().next().is_none_or(|line| line.chars().count() <= WIDTH);
    let [table, turned] = [aligned(&lines), aligned(&turned(&lines))];
    let table = if !fits(&table) && fits(&turned) { turned } else { table };
    let below = |(i, why): (usize, &String)| format!("\n{}\n", wrap(&format!("skipped {}: {why}", i + 1), 0, ""));
    head + &table + &notes.iter().enumerate().map(below).collect::<String>()
}

/// The reasons why rows were skipped, each once.
fn skipped(titles: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let mut notes: Vec<String> = Vec::new();
    let column = titles.iter().position(|title| *title == "skipped");
    for why in rows.iter().filter_map(|row| row.get(column?)).filter(|why| !why.is_empty()) {
        if !notes.contains(why) {
            notes.push(why.clone());
        }
    }
    notes
}

/// The rows with the number of the reason in place of the reason.
fn noted(titles: &[&str], rows: &[Vec<String>]) -> Vec<Vec<String>> {
    let notes = skipped(titles, rows);
    let number = |title: &str, cell: &String| match notes.iter().position(|why| title == "skipped" && why == cell) {
        Some(at) => (at + 1).to_string(),
        None => cell.clone(),
    };
    rows.iter().map(|row| titles.iter().zip(row).map(|(title, cell)| number(title, cell)).collect()).collect()
}

/// Lines in columns, the first line above a rule.
fn aligned(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |k: usize| lines.iter().map(|line| line[k].chars().count()).max().unwrap_or(0).max(3);
    let widths: Vec<_> = (0..columns).map(width).collect();
    let line = |cells: &[String]| {
        let cells: Vec<_> = cells.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("| {} |\n", cells.join(" | "))
    };
    let rule: Vec<_> = widths.iter().map(|width| "-".repeat(*width)).collect();
    let mut text = String::new();
    for (i, cells) in lines.iter().enumerate().filter(|_| columns > 0) {
        text.push_str(&line(cells));
        text.push_str(&if i == 0 { line(&rule) } else { String::new() });
    }
    text
}

/// Lines as columns.
fn turned(lines: &[Vec<String>]) -> Vec<Vec<String>> {
    let columns = lines.first().map_or(0, Vec::len);
    (0..columns).map(|k| lines.iter().map(|line| line[k].clone()).collect()).collect()
}

/// An operation's kind in few letters.
pub fn brief(kind: &str) -> String {
    kind.replace("decoupled attention", "decoupled").replace(" with GEGLU", "+GEGLU")
}

/// Text cut at a width.
pub fn cut(text: &str, width: usize) -> String {
    match text.chars().count() > width {
        true => text.chars().take(width - 1).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

/// Results, each of which has a markdown page of its own and several rows of a table.
pub fn pages<T: Serialize>(
    results: &[T],
    format: Format,
    titles: &[&str],
    page: impl Fn(&T) -> String,
    rows: impl Fn(&T) -> Vec<Vec<String>>,
) -> String {
    match format {
        Format::Markdown => results.iter().map(page).collect::<Vec<_>>().join("\n"),
        Format::Csv => csv(titles, &results.iter().flat_map(rows).collect::<Vec<_>>()),
        Format::Json => terminal::json(&results),
        Format::JsonLines => results.iter().map(terminal::json).collect(),
    }
}

/// Results whose rows make one table, in markdown too; the first `about` columns say what was measured.
pub fn one_table<T: Serialize>(
    results: &[T],
    format: Format,
    (titles, about): (&[&str], usize),
    rows: impl Fn(&T) -> Vec<Vec<String>>,
) -> String {
    match format {
        Format::Markdown => markdown(titles, &results.iter().flat_map(rows).collect::<Vec<_>>(), about),
        other => pages(results, other, titles, |_| String::new(), rows),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_and_ranges() {
        assert_eq!(parse("20"), Some(vec![20]));
        assert_eq!(parse("10,20"), Some(vec![10, 20]));
        assert_eq!(parse("512..1024+256"), Some(vec![512, 768, 1024]));
        assert_eq!(parse("512-1024+256,8"), Some(vec![512, 768, 1024, 8]));
        assert_eq!(parse("64..1024*4"), Some(vec![64, 256, 1024]));
        assert_eq!(parse("1..3"), Some(vec![1, 2, 3]));
        for text in ["", "x", "1,", "3..1", "1..9+0", "1..9*1", "0..9*2", "1..9+", "1..100000", "-1"] {
            assert_eq!(parse(text), None, "{text}");
        }
    }

    #[test]
    fn table_escapes() {
        assert_eq!(markdown(&["a"], &[vec!["x|y".into()]], 0), "| a    |\n| ---- |\n| x\\|y |\n");
        assert_eq!(csv(&["a"], &[vec!["x,\"y".into()]]), "a\n\"x,\"\"y\"\n");
    }

    #[test]
    fn shared_cells() {
        let row = |cells: [&str; 4]| cells.map(String::from).to_vec();
        let rows = [row(["cpu", "1", "0.5", ""]), row(["cpu", "2", "0.5", ""])];
        let text = "device: cpu\n\n| steps | s   |\n| ----- | --- |\n| 1     | 0.5 |\n| 2     | 0.5 |\n";
        assert_eq!(markdown(&["device", "steps", "s", "why"], &rows, 2), text);
        // Too wide: rows side by side.
        let titles: Vec<_> = (0..20).map(|i| format!("title {i}")).collect();
        let titles: Vec<&str> = titles.iter().map(String::as_str).collect();
        let text = markdown(&titles, &[vec!["1".into(); 20], vec!["2".into(); 20]], 0);
        assert!(text.lines().count() == 21 && text.starts_with("| title 0  | 1   | 2   |\n"), "{text}");
        let rows = ["a reason", "", "a reason"].map(|why| vec![why.to_owned(), "1".into()]);
        let text = markdown(&["skipped", "n"], &rows, 0);
        assert!(
            text.ends_with("| 1       | 1   |\n\nskipped 1: a reason\n") && text.matches("reason").count() == 1,
            "{text}"
        );
        assert_eq!([cut("abcd", 3), cut("abc", 3)], ["ab…", "abc"]);
    }
}

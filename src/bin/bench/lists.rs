//! Lists and ranges of numbers, and the output's formats.

use crate::args::{self, Failure};
use crate::terminal;
use serde::Serialize;

/// The most values of a list: more would be a slip of the pen.
const MOST: usize = 1000;

/// Whole numbers as llama-bench writes them: `4`, `1,2`, `512..1024+256` (also `512-1024+256`), `64..1024*2`; each of `min`
/// to `max`. A range without a step goes up by one.
pub fn numbers(p: &mut lexopt::Parser, flag: &str, min: usize, max: usize) -> Result<Vec<usize>, Failure> {
    let text = args::text(p, flag)?;
    parse(&text).filter(|list| list.iter().all(|n| (min..=max).contains(n))).ok_or_else(|| {
        Failure::usage(format!(
            "{flag}: `{text}` given; numbers of {min} to {max} are needed, as in 20,50 or 512..1024+256 or 64..1024*2"
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

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Markdown,
    Csv,
    Json,
    JsonLines,
}

impl Format {
    /// The value of `-o`.
    pub fn read(p: &mut lexopt::Parser) -> Result<Self, Failure> {
        match args::text(p, "--output")?.as_str() {
            "md" => Ok(Self::Markdown),
            "csv" => Ok(Self::Csv),
            "json" => Ok(Self::Json),
            "jsonl" => Ok(Self::JsonLines),
            other => Err(Failure::usage(format!("--output: `{other}` is not known; one of md, csv, json, jsonl is"))),
        }
    }
}

/// Rows under their titles, as Markdown or CSV.
pub fn table(titles: &[&str], rows: &[Vec<String>], markdown: bool) -> String {
    let cell = |text: &str| {
        if markdown {
            text.replace('|', "\\|")
        } else if text.contains([',', '"', '\n']) {
            format!("\"{}\"", text.replace('"', "\"\""))
        } else {
            text.to_owned()
        }
    };
    let line = |cells: Vec<String>| {
        if markdown { format!("| {} |\n", cells.join(" | ")) } else { cells.join(",") + "\n" }
    };
    let mut text = line(titles.iter().map(|t| cell(t)).collect());
    if markdown {
        text.push_str(&line(vec!["---".into(); titles.len()]));
    }
    rows.iter().for_each(|row| text.push_str(&line(row.iter().map(|c| cell(c)).collect())));
    text
}

/// Results, each of which has a markdown page of its own and several rows of a table.
pub fn pages<T: Serialize>(
    results: &[T],
    format: Format,
    titles: &[&str],
    markdown: impl Fn(&T) -> String,
    rows: impl Fn(&T) -> Vec<Vec<String>>,
) -> String {
    if format == Format::Markdown {
        return results.iter().map(markdown).collect::<Vec<_>>().join("\n");
    }
    one_table(results, format, titles, rows)
}

/// Results whose rows make one table, in markdown too.
pub fn one_table<T: Serialize>(
    results: &[T],
    format: Format,
    titles: &[&str],
    rows: impl Fn(&T) -> Vec<Vec<String>>,
) -> String {
    match format {
        Format::Markdown | Format::Csv => {
            table(titles, &results.iter().flat_map(rows).collect::<Vec<_>>(), format == Format::Markdown)
        }
        Format::Json => terminal::json(&results),
        Format::JsonLines => results.iter().map(terminal::json).collect(),
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
    fn cells_cannot_break_a_table() {
        assert_eq!(table(&["a"], &[vec!["x|y".into()]], true), "| a |\n| --- |\n| x\\|y |\n");
        assert_eq!(table(&["a"], &[vec!["x,\"y".into()]], false), "a\n\"x,\"\"y\"\n");
    }
}

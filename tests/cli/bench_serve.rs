//! `bench serve` on small models: the rows, never the times in them.

use super::bench_requests::{number, refused, rows};
use serde_json::{Value, json};

const ARGS: [&str; 13] =
    ["serve", "--model", "demo", "-n", "2", "--size", "64", "--device", "cpu", "--requests", "5", "-r", "2"];

fn latencies(row: &Value) -> Vec<&Value> {
    row["seconds"].as_array().unwrap().iter().flat_map(|round| round.as_array().unwrap()).collect()
}

#[test]
fn policies_beside_one_at_a_time() {
    let rows = rows(&[&ARGS[..], &["--load", "0.9", "--rate", "50", "--max-batch", "1,3", "--gather", "0,5"]].concat());
    let found: Vec<_> =
        rows.iter().map(|row| (row["load"].as_f64(), row["max_batch"].as_u64(), row["gather_ms"].as_u64())).collect();
    let of = |load| [(load, Some(1), Some(0)), (load, Some(3), Some(0)), (load, Some(3), Some(5))];
    assert_eq!(found, [of(Some(0.9)), of(None)].concat());
    for (i, row) in rows.iter().enumerate() {
        let is_alone = i % 3 == 0;
        assert_eq!((number(row, "served"), number(row, "refused")), (10.0, 0.0), "{row}");
        let latencies: Vec<f64> = latencies(row).into_iter().map(|v| v.as_f64().unwrap()).collect();
        assert!(latencies.len() == 10 && latencies.iter().all(|seconds| *seconds > 0.0), "{row}");
        assert!(number(row, "p50_seconds") <= number(row, "p90_seconds"));
        assert!(number(row, "p99_seconds") <= latencies.iter().copied().fold(0.0, f64::max));
        // Ten images of two steps, alone or not.
        let steps = row["batch_steps"].as_object().unwrap();
        let images = steps.iter().map(|(size, n)| size.parse::<u64>().unwrap() * n.as_u64().unwrap()).sum::<u64>();
        assert_eq!(images, 20, "{row}");
        assert!(steps.keys().all(|size| size.parse::<u64>().unwrap() <= row["max_batch"].as_u64().unwrap()), "{row}");
        assert_eq!(row["p50_ratio"].is_null(), is_alone, "{row}");
        assert_eq!(row["throughput_ratio"].is_null(), is_alone, "{row}");
        assert_eq!((&row["adapters"], &row["prompts"]), (&1.into(), &"mixed".into()));
        let rate = if i < 3 { 0.9 / number(row, "alone_seconds") } else { 50.0 };
        assert!((number(row, "rate") / rate - 1.0).abs() < 1e-9 && row["scenario"] == "server", "{row}");
    }
}

#[test]
fn offline() {
    // The first waits for the others, so that all make their steps together.
    let rows = rows(&[&ARGS[..], &["--load", "offline", "--max-batch", "5", "--gather", "60000"]].concat());
    assert!(rows.iter().all(|row| row["scenario"] == "offline" && row["rate"].is_null() && row["load"].is_null()));
    assert_eq!(rows[0]["batch_steps"], json!({ "1": 20 }));
    assert_eq!(rows[1]["batch_steps"], json!({ "5": 4 }));
    assert_eq!((number(&rows[1], "batch_mean"), number(&rows[1], "served")), (5.0, 10.0));
}

#[test]
fn repeated_requests_and_refusals() {
    // More than is served: one or two are drawn, one waits, and others are refused.
    let more = ["--rate", "10000", "--max-waiting", "1", "--prompts", "same", "--adapter", "off", "--max-batch", "2"];
    for row in rows(&[&ARGS[..], &more].concat()) {
        assert_eq!(number(&row, "served") + number(&row, "refused"), 10.0, "{row}");
        let refused = latencies(&row).into_iter().filter(|seconds| seconds.is_null()).count();
        assert_eq!(number(&row, "refused"), refused as f64);
        assert_eq!((&row["prompts"], &row["adapters"], &row["rate"]), (&"same".into(), &0.into(), &10_000.0.into()));
    }
    assert!(refused(&["serve", "--model", "demo", "--load", "0"]).contains("--load"));
    assert!(refused(&["serve", "--model", "demo", "--rate", "1,x"]).contains("--rate"));
    assert!(refused(&["serve", "--model", "demo", "--prompts", "all"]).contains("--prompts"));
}

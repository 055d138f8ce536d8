//! compel's syntax against its own parser.

use braid::inputs::prompt_weights::{CompelPrompt, Fragment, compel};
use serde_json::Value;
use std::path::Path;

/// A prompt without fragments counts as an empty one, which compel gives a fragment or an error.
fn fragments(value: &Value) -> Vec<Fragment> {
    let fragment = |f: &Value| Fragment { text: f[0].as_str().unwrap().into(), weight: f[1].as_f64().unwrap() };
    let all: Vec<_> = value.as_array().unwrap().iter().map(fragment).collect();
    let empty = matches!(all.as_slice(), [only] if only.text.is_empty() && only.weight == 1.0);
    if empty { Vec::new() } else { all }
}

fn prompt(value: &Value) -> CompelPrompt {
    let blend = value[1].as_array().unwrap().iter();
    let blend = blend.map(|b| (b[0].as_f64().unwrap(), fragments(&b[1]))).collect();
    CompelPrompt { weight: value[0].as_f64().unwrap(), blend }
}

/// Cases made by tools/goldens/make_compel.py.
#[test]
fn compel_prompts() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens/prompts/compel.json");
    let cases: Vec<(String, Vec<Value>)> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert!(cases.len() >= 480, "{}", cases.len());
    let close = |a: f64, b: f64| (a - b).abs() < 1e-12;
    let same = |a: &Fragment, b: &Fragment| a.text == b.text && close(a.weight, b.weight);
    for (text, wanted) in cases {
        // There the operator is text; here it is refused, as it joins nothing.
        if text.contains(".blend( 1 , 2 )") {
            assert!(compel(&text).unwrap_err().contains("`.blend` at character 20 joins nothing"));
            continue;
        }
        let mut wanted: Vec<_> = wanted.iter().map(prompt).collect();
        if wanted.is_empty() {
            wanted.push(CompelPrompt { weight: 1.0, blend: vec![(1.0, Vec::new())] });
        }
        let found = compel(&text).unwrap();
        let equal = found.len() == wanted.len()
            && found.iter().zip(&wanted).all(|(found, wanted)| {
                close(found.weight, wanted.weight)
                    && found.blend.len() == wanted.blend.len()
                    && found.blend.iter().zip(&wanted.blend).all(|((a, found), (b, wanted))| {
                        close(*a, *b)
                            && found.len() == wanted.len()
                            && found.iter().zip(wanted).all(|(a, b)| same(a, b))
                    })
            });
        assert!(equal, "{text:?}\n  found    {found:?}\n  expected {wanted:?}");
    }
}

/// Refusals, with the place, of operators that compel leaves without effect on SDXL or stops at with an exception.
#[test]
fn compel_refusals() {
    for (text, part) in [
        ("a cat.swap(dog)", "`.swap` at character 6"),
        ("a (b, cat.swap(dog))1.2", "`.swap` at character 10"),
        ("withLora(x, 0.5) a", "`withLora` at character 1 "),
        ("a, useLora(x)", "`useLora` at character 4 "),
        ("(\"a\", \"b\").blend(1)", "`.blend` at character 11 has 1 weight for 2 prompts"),
        ("(\"a\", \"b\").blend(1, -1)", "add up to 0"),
        ("(\"a\", \"b\").blend(1, x)", "`.blend` at character 11 are not numbers"),
        ("(\"a\", \"b\").blend(1, 1) c", "text stands behind `.blend`"),
        ("(\"a\", \"b\").and(1, 1), c", "text stands behind `.and`"),
        ("(\"a\", \"b\").and(no_normalize)", "the arguments of `.and`"),
        (&"(".repeat(100_000), "brackets more than 64 deep"),
        (&"( a".repeat(100_000), "brackets more than 64 deep"),
        ("(a b, c).and()", "`.and` at character 9 joins nothing"),
    ] {
        let error = compel(text).unwrap_err();
        assert!(error.contains(part), "{text}: {error}");
    }
}

//! The commands of docs/guide.md: each runs, and gives the image that stands there.

use super::*;
use braid::{AlphaMode, Image};

/// The greatest mean difference of a image's values from the committed one's, of 255: other processors add in another order.
const NEAR: f64 = 1.0;

fn guide() -> String {
    std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide.md")).unwrap()
}

/// The commands in blocks of a language, each on one line.
fn commands(text: &str, language: &str) -> Vec<String> {
    let blocks =
        text.split("```").skip(1).step_by(2).filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'));
    let joined = blocks.flat_map(|block| block.replace("\\\n", " ").lines().map(str::to_owned).collect::<Vec<_>>());
    joined.filter(|line| line.starts_with("braid ")).collect()
}

/// The words of a command as a shell splits it: double quotes, and the two variables that the guide sets.
fn words(text: &str, command: &str) -> Vec<String> {
    let value = |name: &str| {
        let line = text.lines().find_map(|line| line.trim().strip_prefix(name)?.strip_prefix("=\""));
        line.unwrap().trim_end_matches('"').to_owned()
    };
    let command = command.replace("$MODEL", &value("MODEL")).replace("$ADAPTER", &value("ADAPTER"));
    let quoted = command.split('"').enumerate();
    let each = |(i, part): (usize, &str)| match i % 2 {
        1 => vec![part.to_owned()],
        _ => part.split_whitespace().map(str::to_owned).collect(),
    };
    quoted.flat_map(each).collect()
}

/// The mean difference of two images' values.
fn apart(a: &Image, b: &Image) -> f64 {
    assert_eq!((a.width(), a.height()), (b.width(), b.height()));
    let sum: f64 = a.rgb().iter().zip(b.rgb()).map(|(a, b)| f64::from(a.abs_diff(*b))).sum();
    sum / a.rgb().len() as f64
}

#[test]
fn guide_images() {
    let (text, root) = (guide(), Path::new(env!("CARGO_MANIFEST_DIR")));
    let all = commands(&text, "sh");
    assert!(all.len() >= 10, "{all:?}");
    let (dir, images) = (tempfile::tempdir().unwrap(), root.join("docs/images/guide"));
    for command in &all {
        let mut args = words(&text, command);
        assert_eq!(args.remove(0), "braid", "{command}");
        for at in 1..args.len() {
            let Some(own) = args[at].strip_prefix("docs/images/guide/").map(|name| dir.path().join(name)) else {
                continue;
            };
            // What an earlier command wrote is read from there, too.
            if matches!(args[at - 1].as_str(), "-o" | "--preview" | "--attribution") || own.exists() {
                args[at] = own.display().to_string();
            }
        }
        let output = braid().args(&args).current_dir(root).output().unwrap();
        assert!(output.status.success(), "{command}: {}", stderr(&output));
    }
    let open = |path: &Path| Image::open(path, AlphaMode::Ignore).unwrap();
    let mut made = 0;
    for entry in std::fs::read_dir(dir.path()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap();
        made += 1;
        if path.extension().unwrap() == "safetensors" {
            continue;
        }
        let difference = apart(&open(&path), &open(&images.join(name)));
        assert!(
            difference < NEAR,
            "{name:?} is {difference:.2} from the committed image; `make guide` writes them anew"
        );
        assert!(text.contains(&format!("images/guide/{})", name.display())), "the guide does not show {name:?}");
    }
    assert!(made >= all.len());
}

/// Commands for files that are not here name flags that there are.
#[test]
fn guide_flags() {
    let text = guide();
    for command in commands(&text, "sh").iter().chain(&commands(&text, "text")) {
        let words = words(&text, command);
        let help = stdout(&run(&[&words[1], "--help"]));
        for flag in words.iter().filter(|word| word.starts_with("--")) {
            assert!(help.contains(&format!("{flag} ")), "{flag} of {command}");
        }
    }
}

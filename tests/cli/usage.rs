//! Wrong usage: status 2, one line that names the flag.

use super::{failure, run, stderr, stdout};

/// Arguments after `generate --model m -p x`, and what the line must name.
const WRONG: &[(&[&str], &str)] = &[
    (&["--bogus"], "--bogus"),
    (&["-q"], "-q"),
    (&["stray"], "stray"),
    (&["--steps"], "--steps: a value"),
    (&["--steps", "0"], "--steps"),
    (&["--steps", "-1"], "--steps"),
    (&["--steps", "1000000000"], "--steps"),
    (&["--steps", "4.5"], "--steps"),
    (&["--cfg-scale", "NaN"], "--cfg-scale"),
    (&["--cfg-scale", "inf"], "--cfg-scale"),
    (&["--cfg-scale", "-2"], "--cfg-scale"),
    (&["--cfg-scale", "x"], "--cfg-scale"),
    (&["--guidance-rescale", "NaN"], "--guidance-rescale"),
    (&["-W", "0"], "--width"),
    (&["-W", "16385"], "--width"),
    (&["--height", "x"], "--height"),
    (&["-s", "-2"], "--seed"),
    (&["-s", "18446744073709551616"], "--seed"),
    (&["-s", "one"], "--seed"),
    (&["-b", "0"], "--batch-count"),
    (&["-b", "1000000"], "--batch-count"),
    (&["--sampling-method", "euler_a"], "euler-a"),
    (&["--schedule", "x"], "karras"),
    (&["--prediction", "x"], "epsilon"),
    (&["--timestep-spacing", "x"], "trailing"),
    (&["--eta", "nan"], "--eta"),
    (&["--clip-skip", "-1"], "--clip-skip"),
    (&["--compat", "a1111"], "diffsynth"),
    (&["--rng", "gpu"], "--rng"),
    (&["--dtype", "fp16"], "--dtype"),
    (&["--vae-dtype", "int8"], "--vae-dtype"),
    (&["--quantize", "int4"], "--quantize"),
    (&["--quantize", "fp8", "--device", "cpu"], "--quantize: fp8 is for GPUs of compute capability 9.0"),
    (&["--device", "tpu"], "--device"),
    (&["--device", "cuda:x"], "--device"),
    (&["--encoders", "drop"], "--encoders"),
    (&["--threads", "0"], "--threads"),
    (&["--strength", "0.5"], "--strength: there is no --init-img"),
    (&["--mask", "m.png"], "--mask: there is no --init-img"),
    (&["--preview-every", "2"], "--preview-every: there is no --preview"),
    (&["--preview", "p.png", "--preview-every", "0"], "--preview-every"),
    (&["--preview", "a.png", "-o", "a.png"], "--preview: names the same file as --output"),
    (&["--preview", "a.png", "-o", "a-1.png", "-b", "1", "--preview", "a-1.png"], "--preview: names the same file"),
    (&["--preview", "p.bmp"], "p.bmp"),
    (&["--attribution", "a.png"], "--attribution: there is no --ip-adapter"),
    (&["--attribution", "a.png", "-o", "a.png"], "--attribution: names the same file as --output"),
    (&["--attribution", "a.bmp", "--ip-adapter", "a", "--ip-adapter-image", "i"], "a.bmp"),
    (&["-i", "i.png", "--strength", "1.5"], "--strength: must be a number of 0 to 1"),
    (&["-i", "i.png", "--strength", "-1"], "--strength"),
    (&["-i", "i.png", "--strength", "NaN"], "--strength"),
    (&["-i"], "--init-img: a value"),
    (&["-o", "a.gif"], "--output"),
    (&["-o", "a"], "--output"),
    (&["-o", "a.png", "--dump", "a.png"], "--dump"),
    (&["--ip-adapter-image", "i.png"], "--ip-adapter-image"),
    (&["--ip-adapter-strength", "1"], "--ip-adapter-strength"),
    (&["--ip-adapter-blocks", "full"], "--ip-adapter-blocks"),
    (&["--ip-adapter-image-resize", "8x8"], "--ip-adapter-image-resize"),
    (&["--ip-adapter-image-resize", "8"], "--ip-adapter-image-resize"),
    (&["--ip-adapter-image-resize", "0x8"], "--ip-adapter-image-resize"),
    (&["--ip-adapter", "a"], "a has no image"),
    (&["--ip-adapter", "a", "--ip-adapter-image", "i", "--ip-adapter", "b"], "b has no image"),
    (&["--ip-adapter", "a", "--ip-adapter-image", "i", "--ip-adapter-strength", "NaN"], "--ip-adapter-strength"),
    (&["--ip-adapter", "a", "--ip-adapter-image", "i", "--ip-adapter-blocks", "both"], "--ip-adapter-blocks"),
    (&["--ip-adapter-strength", "1", "--ip-adapter", "a", "--ip-adapter-strength", "1"], "given twice"),
    (&["--ip-adapter-weight", "1"], "--ip-adapter-weight"),
    (&["--ip-adapter-mask", "m.png"], "--ip-adapter-mask"),
    (&["--ip-adapter-text", "a castle:-0.5"], "--ip-adapter-text"),
    (
        &["--ip-adapter", "a", "--ip-adapter-image", "i", "--ip-adapter-text", "a castle:nan"],
        "--ip-adapter-text: the factor",
    ),
    (&["--ip-adapter-combine", "add"], "--ip-adapter-combine"),
    (&["--ip-adapter-start", "0.5"], "--ip-adapter-start"),
    (&["--ip-adapter-end", "0.5"], "--ip-adapter-end"),
    (&["--ip-adapter-negative-image", "n.png"], "--ip-adapter-negative-image"),
    (&["--ip-adapter-fit", "pad"], "--ip-adapter-fit"),
    (&["--save-reference", "seen.png"], "--save-reference"),
    (&["--ip-adapter", "a", "--ip-adapter-image", "i", "--save-reference", "seen.jpg"], "--save-reference"),
    (&["--ip-adapter", "a", "--ip-adapter-image", "i", "-o", "a.png", "--save-reference", "a.png"], "--save-reference"),
    (&["--ip-adapter", "a", "--ip-adapter-image", "i", "--ip-adapter-fit", "zoom"], "crop, pad or stretch"),
    (&["--ip-adapter", "a", "--ip-adapter-image", "i", "--ip-adapter-combine", "sum"], "concat, average or add"),
    (&["--ip-adapter", "a", "--ip-adapter-image", "i", "--ip-adapter-weight", "inf"], "--ip-adapter-weight"),
    (&["--ip-adapter", "a", "--ip-adapter-image", "i", "--ip-adapter-start", "1.1"], "--ip-adapter-start"),
    (&["--ip-adapter", "a", "--ip-adapter-image", "i", "--ip-adapter-end", "x"], "--ip-adapter-end"),
    (
        &["--ip-adapter", "a", "--ip-adapter-image", "i", "--ip-adapter-start", "0.6", "--ip-adapter-end", "0.5"],
        "--ip-adapter-start",
    ),
    (
        &["--ip-adapter", "a", "--ip-adapter-image", "i", "--ip-adapter-weight", "1", "--ip-adapter-weight", "2"],
        "given twice for one --ip-adapter-image",
    ),
    (
        &["--ip-adapter", "a", "--ip-adapter-image", "i", "--ip-adapter-mask", "m", "--ip-adapter-image", "j"],
        "1 mask for 2 images",
    ),
];

#[test]
fn wrong_flags() {
    for (args, part) in WRONG {
        let mut all = vec!["generate", "--model", "m", "-p", "x"];
        all.extend(*args);
        let text = failure(&run(&all), 2);
        assert!(text.contains(part), "{args:?}: {text}");
    }
}

#[test]
fn missing_arguments() {
    for (args, part) in [
        (vec![], "generate, sweep, encode-image, replay, demo"),
        (vec!["draw"], "`draw`"),
        (vec!["--models"], "--models"),
        (vec!["generate"], "--model"),
        (vec!["generate", "--model", "m"], "--prompt"),
        (vec!["inspect"], "file"),
        (vec!["inspect", "--yaml"], "--yaml"),
        (vec!["synth"], "synth sdxl DIR"),
        (vec!["synth", "flux", "d"], "`flux`"),
        (vec!["doctor", "x"], "`x`"),
        (vec!["help", "x"], "`x`"),
        (vec!["demo", "-o", "a.bmp"], "--output"),
        // Escapes do not get through.
        (vec!["\x1b[31mred"], "\\u{1b}[31mred"),
    ] {
        let text = failure(&run(&args), 2);
        assert!(text.contains(part), "{args:?}: {text}");
    }
}

#[test]
fn help_and_version() {
    assert_eq!(stdout(&run(&["--version"])), format!("braid {}\n", env!("CARGO_PKG_VERSION")));
    for command in ["generate", "sweep", "encode-image", "replay", "demo", "inspect", "synth", "doctor"] {
        let help = run(&["help", command]);
        assert!(help.status.success() && stderr(&help).is_empty());
        assert_eq!(stdout(&help), stdout(&run(&[command, "--help"])));
        assert!(stdout(&help).lines().all(|l| l.len() <= 92), "{command}");
    }
    // Every promised flag is there.
    let help = stdout(&run(&["help", "generate"]));
    let promised = "--model --clip-vision --ip-adapter --ip-adapter-image --ip-adapter-strength --ip-adapter-blocks \
        --ip-adapter-weight --ip-adapter-mask --ip-adapter-combine --ip-adapter-start --ip-adapter-end \
        --ip-adapter-negative-image --ip-adapter-fit --save-reference \
        -p --prompt -n --negative-prompt --steps --cfg-scale -W --width -H --height -s --seed -b --batch-count \
        --ip-adapter-image-resize --sampling-method --schedule --prediction --timestep-spacing --guidance-rescale \
        --clip-skip --compat --rng --dtype --vae-dtype --quantize --device --encoders --threads -o --output --latents-in --dump --json \
        -i --init-img --strength --mask --vae --taesd --vae-tiling --preview --preview-every --attribution --batch --max-batch \
        --record-hashes";
    for flag in promised.split_whitespace() {
        assert!(help.split([' ', ',', '\n']).any(|w| w == flag), "{flag}");
    }
}

#[test]
fn bench_usage() {
    let bench = |args: &[&str]| std::process::Command::new(env!("CARGO_BIN_EXE_bench")).args(args).output().unwrap();
    let output = bench(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stdout(&output).contains("bench e2e --model"));
    assert!(stderr(&bench(&["e2e"])).contains("--model"));
    assert!(stderr(&bench(&["e2e", "--model", "m", "-o", "xml"])).contains("--output"));
    assert_eq!(bench(&["e2e", "--model", "/none/m"]).status.code(), Some(1));
}

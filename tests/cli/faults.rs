//! Failures around the command: files, devices, closed pipes. Signals are in signals.rs.

use super::common::Model;
use super::{Case, braid, failure, stderr, stdout};
use serde_json::{Value, json};
use std::fs::File;
use std::io::BufReader;

#[test]
fn unwritable_outputs() {
    let case = Case::make("diffusers", "euler");
    let fails = |path: &str, part: &str| {
        let text = failure(&case.short(&["-o", path]).output().unwrap(), 1);
        assert!(text.contains(part), "{text}");
    };
    fails(&case.path("none/a.png"), "no folder");
    fails(&case.path("model_index.json/a.png"), "model_index.json");
    std::fs::create_dir(case.path("dir.png")).unwrap();
    fails(&case.path("dir.png"), "dir.png");
    let text = failure(&case.short(&["--dump", &case.path("none/d")]).output().unwrap(), 1);
    assert!(text.contains("none/d"), "{text}");
    assert!(case.written().is_empty(), "{:?}", case.written());
}

#[test]
fn missing_and_misfit_inputs() {
    let case = Case::make("diffusers", "euler");
    let adapter = case.path("ip-adapter.safetensors");
    let fails = |more: &[&str], status: i32, part: &str| {
        let text = failure(&case.short(more).output().unwrap(), status);
        assert!(text.contains(part), "{part}: {text}");
        assert!(case.written().is_empty());
    };
    fails(&["--device", "cuda"], 1, "--device cpu");
    fails(&["--device", "cuda:3"], 1, "cuda:3");
    fails(&["--device", "cuda", "--dtype", "f32"], 2, "f32 is for the VAE alone on CUDA");
    fails(&["--model", "/none"], 1, "/none");
    fails(&["--ip-adapter", &adapter, "--ip-adapter-image", "/none.png"], 1, "/none.png");
    fails(&["--ip-adapter", &adapter, "--ip-adapter-image", &adapter], 1, "ip-adapter.safetensors");
    let image = case.folder.join("../pictures/landscape.png");
    let image = image.to_str().unwrap();
    fails(&["--ip-adapter", image, "--ip-adapter-image", image], 1, "landscape.png");
    fails(&["--clip-vision", &adapter, "--ip-adapter", &adapter, "--ip-adapter-image", image], 1, "image encoder");
    fails(&["--latents-in", image], 1, "landscape.png");
    // What only the library can judge is wrong usage all the same.
    fails(&["-W", "33"], 2, "--width");
    fails(&["--guidance-rescale", "1.5"], 2, "--guidance-rescale");
    fails(&["--clip-skip", "999"], 2, "--clip-skip");
    fails(&["--sampling-method", "ddim", "--schedule", "karras"], 2, "--schedule");
    let scales = r#"{"down": {"block_9": 1}}"#;
    fails(&["--ip-adapter", &adapter, "--ip-adapter-image", image, "--ip-adapter-blocks", scales], 2, "down.block_9");
}

/// A VAE that bf16 is too narrow for is told of, on the terminal, in the report and in the file; NaN is a failure without a file.
#[test]
fn f14_not_finite_values() {
    let model = Model::folder();
    let vae = "vae/diffusion_pytorch_model.safetensors";
    let path = model.path("out.png");
    let draw = |dtype: &str| {
        let mut command = braid();
        command.args(["generate", "--device", "cpu", "-p", "x", "--steps", "1", "-W", "32", "-H", "32", "--json"]);
        command.arg("--model").arg(model.dir.path()).arg("-o").arg(&path).args(["--vae-dtype", dtype]).output().unwrap()
    };
    model.edit(vae, |tensors| {
        let mut poison = |name: &str, value, at| tensors.get_mut(name).unwrap().poison(value, at);
        poison("decoder.conv_norm_out.weight", 1e-37, None);
        poison("decoder.conv_norm_out.bias", 0.0, None);
        poison("decoder.conv_out.weight", f32::MAX, Some(0));
    });
    for (dtype, upcast) in [("bf16", true), ("f32", false)] {
        let output = draw(dtype);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        assert_eq!(stderr(&output).contains("image 0 was decoded in f32"), upcast, "{}", stderr(&output));
        let report: Value = serde_json::from_str(&stdout(&output)).unwrap();
        assert_eq!(report.get("upcast_vae"), upcast.then(|| json!([0])).as_ref());
        let reader = png::Decoder::new(BufReader::new(File::open(&path).unwrap())).read_info().unwrap();
        let [parameters, request] = &reader.info().uncompressed_latin1_text[..] else { panic!("two texts are there") };
        assert_eq!(parameters.text.contains(", VAE upcast: f32, Version"), upcast, "{}", parameters.text);
        let request: Value = serde_json::from_str(&request.text).unwrap();
        assert_eq!(request.get("upcast_vae"), upcast.then_some(json!(true)).as_ref());
        std::fs::remove_file(&path).unwrap();
    }
    model.edit(vae, |tensors| tensors.get_mut("decoder.conv_out.bias").unwrap().poison(f32::NAN, Some(0)));
    let text = failure(&draw("f32"), 1);
    assert!(
        text.contains("the VAE gave a value that is not finite") && text.contains("decoder.conv_out.bias"),
        "{text}"
    );
    assert!(!path.exists());
}

#[cfg(unix)]
mod unix {
    use super::*;
    use std::io::Read;
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Child, Stdio};
    use std::time::Duration;

    fn end(mut child: Child) -> (Option<i32>, String) {
        let mut text = String::new();
        child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), None, "{text}");
        (status.code(), text)
    }

    /// A file that grows beyond `ulimit -f` is removed, and said to be too large.
    #[test]
    fn file_size_limit() {
        let case = Case::make("diffusers", "euler");
        let dump = case.path("out.safetensors");
        let command = case.short(&["--dump", &dump]);
        let mut limited = std::process::Command::new("sh");
        // Blocks of 512 or 1,024 bytes: the stages take more than either.
        limited.args(["-c", "ulimit -f 8; exec \"$@\"", "sh"]).arg(command.get_program()).args(command.get_args());
        let text = failure(&limited.output().unwrap(), 1);
        assert!(text.contains("cannot write") && text.contains("too large"), "{text}");
        assert!(
            !case.written().iter().any(|name| name.starts_with('.') || name.ends_with(".safetensors")),
            "{:?}",
            case.written()
        );
    }

    /// The same image from fewer threads, as the system limits the number of tasks.
    #[cfg(target_os = "linux")]
    #[test]
    fn limited_tasks() {
        use std::os::unix::fs::PermissionsExt;
        use std::os::unix::process::CommandExt;
        let case = Case::make("diffusers", "euler");
        let (adapter, image) = (case.path("ip-adapter.safetensors"), case.folder.join("../pictures/landscape.png"));
        let more = ["--ip-adapter", &adapter, "--ip-adapter-image", image.to_str().unwrap(), "--record-hashes"];
        let short = |name: &str| {
            let mut command = case.short(&more);
            command.args(["--clip-vision", &case.path("image_encoder"), "--seed", "5", "--threads", "64"]);
            command.args(["-o", &case.path(name)]);
            command
        };
        assert!(short("out.png").output().unwrap().status.success());
        let pixels = |name: &str| braid::Image::open(case.path(name), braid::AlphaMode::Ignore).unwrap();
        std::fs::set_permissions(case.dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        for tasks in 1..5 {
            let mut command = short("out-limited.png");
            // The limit does not hold for root.
            // SAFETY: getuid has no preconditions.
            if unsafe { libc::getuid() } == 0 {
                command.uid(65_534);
            }
            let limit = libc::rlimit { rlim_cur: tasks, rlim_max: tasks };
            // SAFETY: setrlimit may be called between fork and exec, and the struct is its own.
            unsafe {
                command.pre_exec(move || match libc::setrlimit(libc::RLIMIT_NPROC, &limit) {
                    0 => Ok(()),
                    _ => Err(std::io::Error::last_os_error()),
                });
            }
            let output = match command.output() {
                Ok(output) => output,
                Err(error) => return println!("limited_tasks: skipped: no other user can run the command: {error}"),
            };
            let text = stderr(&output);
            assert!(output.status.success(), "{tasks}: {text}");
            let warns = |line: &str| {
                line.starts_with("warning: ") && line.contains("cores") || line.contains("could be started")
            };
            assert!(text.lines().all(warns), "{tasks}: {text}");
            let cores = std::thread::available_parallelism().unwrap().get();
            assert!(tasks > 1 || cores == 1 || text.contains("only 1 of"), "{text}");
            assert!(pixels("out-limited.png") == pixels("out.png"), "{tasks}");
        }
    }

    /// Whatever it is called, a file that is read is never written.
    #[test]
    fn outputs_that_are_inputs() {
        let case = Case::make("diffusers", "euler");
        let picture = case.folder.join("../pictures/landscape.png");
        let (image, other) = (case.path("image.png"), case.path("other.png"));
        std::fs::copy(picture, &image).unwrap();
        std::os::unix::fs::symlink("image.png", &other).unwrap();
        let adapter = case.path("ip-adapter.safetensors");
        let twin = case.path("twin.png");
        std::fs::hard_link(&adapter, &twin).unwrap();
        let part = case.path("unet/twin");
        std::fs::hard_link(case.path("unet/config.json"), &part).unwrap();
        let sums = || [&image, &adapter, &part].map(|path| std::fs::read(path).unwrap());
        let before = sums();
        for (more, flag) in [
            (&["-i", &image, "-o", &image][..], "--output"),
            (&["-i", &image, "-o", &other], "--output"),
            (&["--ip-adapter", &adapter, "--ip-adapter-image", &image, "-o", &other], "--output"),
            (&["--ip-adapter", &adapter, "--ip-adapter-image", &image, "-o", &twin], "--output"),
            (&["--ip-adapter", &adapter, "--ip-adapter-image", &image, "--dump", &twin], "--dump"),
            (&["--ip-adapter", &adapter, "--ip-adapter-image", &image, "--save-reference", &other], "--save-reference"),
            (&["--dump", &part], "--dump"),
        ] {
            let text = failure(&case.short(more).output().unwrap(), 2);
            assert!(text.contains(&format!("{flag}: ")) && text.contains("is read as"), "{more:?}: {text}");
        }
        let batch = case.path("batch.jsonl");
        std::fs::write(&batch, format!("{{\"prompt\": \"a\"}}\n{{\"init_img\": {other:?}}}\n")).unwrap();
        std::os::unix::fs::symlink("image.png", case.path("out-1.png")).unwrap();
        let text = failure(&case.short(&["--batch", &batch, "-o", &case.path("out.png")]).output().unwrap(), 2);
        assert!(text.contains("out-1.png is read as"), "{text}");
        let text = failure(&crate::run(&["replay", &image, "-o", &other]), 2);
        assert!(text.contains("--output") && text.contains("is read as"), "{text}");
        assert!(sums() == before);
    }

    /// A run that has mapped the file of the VAE, whose weights it needs only after the last step.
    #[cfg(target_os = "linux")]
    fn with_mapped_vae(case: &Case) -> (Child, std::fs::File) {
        let vae = case.dir.path().join("vae/diffusion_pytorch_model.safetensors");
        let file = std::fs::OpenOptions::new().read(true).write(true).open(&vae).unwrap();
        file.set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_000_000_000)).unwrap();
        let mut command = case.short(&["--steps", "100", "-W", "64", "-H", "64"]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let maps = format!("/proc/{}/maps", child.id());
        while !std::fs::read_to_string(&maps).unwrap().contains(vae.to_str().unwrap()) {
            std::thread::sleep(Duration::from_millis(2));
        }
        (child, file)
    }

    /// Other weights of the same size.
    #[cfg(target_os = "linux")]
    #[test]
    fn f09_overwritten_mapped_model() {
        use std::os::unix::fs::FileExt;
        let case = Case::make("diffusers", "euler");
        let (child, vae) = with_mapped_vae(&case);
        let end_of_file = vae.metadata().unwrap().len() - 512;
        let mut bytes = [0; 512];
        vae.read_exact_at(&mut bytes, end_of_file).unwrap();
        vae.write_all_at(&bytes.map(|byte| byte ^ 1), end_of_file).unwrap();
        let (code, text) = end(child);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.contains("vae/diffusion_pytorch_model.safetensors: its bytes were written again"), "{text}");
        assert!(text.contains("or use --no-mmap") && text.lines().count() == 1, "{text}");
        assert!(case.written().is_empty(), "{:?}", case.written());
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn f08_truncated_mapped_model() {
        let case = Case::make("diffusers", "euler");
        let (child, vae) = with_mapped_vae(&case);
        vae.set_len(100).unwrap();
        let (code, text) = end(child);
        assert_eq!(code, Some(1), "{text}");
        assert!(text.starts_with(&format!("braid: {}", case.path(""))), "{text}");
        assert!(text.contains("/vae/diffusion_pytorch_model.safetensors: cut short ") && text.ends_with("--no-mmap\n"));
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(case.written().is_empty(), "{:?}", case.written());
    }

    #[test]
    fn f16_closed_stdout() {
        let case = Case::make("diffusers", "euler");
        let mut command = case.short(&["--json"]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let (code, text) = end(child);
        assert_eq!((code, text.as_str()), (Some(0), ""));
        assert_eq!(case.written(), ["out.png"]);
        for command in ["doctor", "--help"] {
            let mut child = braid().arg(command).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            drop((child.stdout.take(), child.stderr.take()));
            assert_eq!(child.wait().unwrap().code(), Some(0));
        }
        if std::path::Path::new("/dev/full").exists() {
            let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
            let output = braid().arg("doctor").stdout(full).output().unwrap();
            assert!(failure(&output, 1).contains("standard output"), "{}", stderr(&output));
        }
    }

    /// Without a terminal nothing but warnings is said, and without any of the three streams the image is the same.
    #[test]
    fn f16_no_terminal() {
        let case = Case::make("diffusers", "euler");
        let output = case.short(&["--seed", "5"]).output().unwrap();
        assert!(output.status.success() && output.stderr.is_empty(), "{}", stderr(&output));
        let image = case.path("out.png");
        let bytes = std::fs::read(&image).unwrap();
        std::fs::remove_file(&image).unwrap();
        let command = case.short(&["--seed", "5"]);
        let mut closed = std::process::Command::new("sh");
        closed.args(["-c", "exec \"$@\" <&- >&- 2>&-", "sh"]).arg(command.get_program()).args(command.get_args());
        assert!(closed.status().unwrap().success());
        assert!(std::fs::read(&image).unwrap() == bytes);
        // A failure that nobody hears has its status all the same.
        let mut closed = std::process::Command::new("sh");
        closed.args(["-c", "exec \"$@\" 2>&-", "sh"]).arg(command.get_program()).args(["generate", "--nonsense"]);
        assert_eq!(closed.status().unwrap().code(), Some(2));
    }
}

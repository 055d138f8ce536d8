//! F11: SIGINT and SIGTERM, whatever the command is doing. No test depends on a machine's speed: each waits until the command has come
//! to where it is meant to be, and what is not stopped there would take minutes or for ever.

use super::{Case, braid, stderr};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::FromRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, Command, Stdio};
use std::ptr::null_mut;
use std::time::{Duration, Instant};

/// The longest time that a signal may take, on a machine that is busy otherwise.
const LONG: Duration = Duration::from_secs(30);

fn kill(child: &Child, signal: i32) {
    // SAFETY: kill has no preconditions; the child has not been waited for, so the number is still its own.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

/// The exit status of a command that has got a signal, and its standard error.
fn end(mut child: Child) -> (Option<i32>, String) {
    let begin = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        if begin.elapsed() > LONG {
            child.kill().unwrap();
            panic!("it goes on after a signal");
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let mut text = String::new();
    child.stderr.take().unwrap().read_to_string(&mut text).unwrap();
    (status.code(), text)
}

/// A command whose standard error is a terminal.
struct OnTerminal {
    child: Child,
    terminal: File,
    text: String,
}

impl OnTerminal {
    fn start(mut command: Command) -> Self {
        let (mut terminal, mut end) = (0, 0);
        // SAFETY: both numbers are writable, and the rest may be null.
        assert_eq!(unsafe { libc::openpty(&mut terminal, &mut end, null_mut(), null_mut(), null_mut()) }, 0);
        // SAFETY: both were opened just now, and nobody else has them.
        let (terminal, end) = unsafe { (File::from_raw_fd(terminal), File::from_raw_fd(end)) };
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(end).spawn().unwrap();
        Self { child, terminal, text: String::new() }
    }

    /// Reads what the command shows; `false` once it has ended.
    fn read(&mut self) -> bool {
        let mut bytes = [0; 4096];
        let count = self.terminal.read(&mut bytes).unwrap_or(0);
        self.text += &String::from_utf8_lossy(&bytes[..count]);
        count > 0
    }

    /// Waits until the command has shown that.
    fn wait_for(&mut self, shown: &str) {
        while !self.text.contains(shown) {
            assert!(self.read(), "no `{shown}`: {}", self.text);
        }
    }

    /// The exit status, and what was shown.
    fn end(mut self) -> (Option<i32>, String, Duration) {
        let begin = Instant::now();
        while self.read() {}
        (self.child.wait().unwrap().code(), self.text, begin.elapsed())
    }
}

/// Within any stage of a large image.
#[test]
fn f11_signal_in_every_stage() {
    let case = Case::make("diffusers", "euler");
    for (shown, side, signal, status) in [
        ("text", "64", libc::SIGINT, 130),
        ("denoise [....................] 0/1", "2048", libc::SIGINT, 130),
        ("denoise [....................] 0/1", "2048", libc::SIGTERM, 143),
        ("decode", "512", libc::SIGTERM, 143),
    ] {
        let mut run = OnTerminal::start(case.short(&["-W", side, "-H", side]));
        run.wait_for(shown);
        kill(&run.child, signal);
        let (code, text, took) = run.end();
        assert_eq!(code, Some(status), "in {shown}: {text}");
        assert!(text.contains(&format!("braid: stopped by signal {signal}; no unfinished file")), "in {shown}: {text}");
        assert!(took < LONG, "in {shown}: {took:?}");
        assert!(case.written().is_empty(), "in {shown}: {:?}", case.written());
    }
    let mut run = OnTerminal::start(case.short(&["-W", "2048", "-H", "2048"]));
    run.wait_for("denoise");
    kill(&run.child, libc::SIGINT);
    kill(&run.child, libc::SIGTERM);
    let (code, text, took) = run.end();
    assert!(matches!(code, Some(130 | 143)) && took < LONG, "{code:?} {text}");
    assert!(case.written().is_empty(), "{:?}", case.written());
}

/// Images of a file of requests and of a grid.
#[test]
fn f11_signal_in_a_batch() {
    let case = Case::make("diffusers", "euler");
    let batch = case.path("batch.jsonl");
    std::fs::write(&batch, "{\"seed\": 1}\n{\"width\": 2048, \"height\": 2048}\n").unwrap();
    let mut sweep = braid();
    sweep.arg("sweep").args(&case.model()[1..]).args(["-p", "x", "--steps", "1", "-W", "2048", "-H", "2048"]);
    sweep.args(["--over", "seed=1,2", "-o", &case.path("out.png")]);
    for command in [case.short(&["--batch", &batch, "--max-batch", "1"]), sweep] {
        let mut run = OnTerminal::start(command);
        run.wait_for("denoise");
        kill(&run.child, libc::SIGTERM);
        let (code, text, took) = run.end();
        assert!(code == Some(143) && took < LONG, "{code:?} {took:?} {text}");
        // The first request of the batch may be done.
        let written = case.written();
        assert!(written.is_empty() || written == ["out-0.png"], "{written:?}");
    }
}

/// The writing end of a pipe, once the command waits for one; none where the command has ended.
fn writer(child: &mut Child, pipe: &str) -> Option<File> {
    loop {
        match OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(pipe) {
            Ok(file) => return Some(file),
            Err(error) => assert_eq!(error.raw_os_error(), Some(libc::ENXIO), "{error}"),
        }
        if child.try_wait().unwrap().is_some() {
            return None;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn pipe(case: &Case) -> String {
    let pipe = case.path("pipe");
    let name = std::ffi::CString::new(pipe.as_str()).unwrap();
    // SAFETY: the name is a C string.
    assert_eq!(unsafe { libc::mkfifo(name.as_ptr(), 0o600) }, 0);
    pipe
}

/// A pipe that nobody writes to holds up the reading of any file, from its opening on.
#[test]
fn f11_signal_while_a_pipe_is_opened() {
    let case = Case::make("diffusers", "euler");
    let (pipe, adapter) = (pipe(&case), case.path("ip-adapter.safetensors"));
    let image = case.folder.join("../pictures/landscape.png");
    let image = image.to_str().unwrap();
    let encode = |image: &str| {
        let mut command = braid();
        command.args(["encode-image", image, "-o", &case.path("out.safetensors"), "--ip-adapter", &adapter]);
        command.args(["--model", &case.path("."), "--clip-vision", &case.path("image_encoder")]);
        command
    };
    let other = |args: &[&str]| {
        let mut command = braid();
        command.args(args);
        command
    };
    for (number, command) in [
        case.short(&["--ip-adapter", &adapter, "--ip-adapter-image", &pipe]),
        case.short(&["-i", &pipe]),
        case.short(&["-i", image, "--mask", &pipe]),
        case.short(&["--batch", &pipe]),
        encode(&pipe),
        other(&["replay", &pipe]),
        other(&["demo", "--device", "cpu", "--image", &pipe, "-o", &case.path("out.png")]),
    ]
    .into_iter()
    .enumerate()
    {
        let (signal, status) = [(libc::SIGINT, 130), (libc::SIGTERM, 143)][number % 2];
        let mut command = command;
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let open = writer(&mut child, &pipe);
        assert!(open.is_some(), "{command:?} has ended");
        kill(&child, signal);
        let (code, text) = end(child);
        assert_eq!(code, Some(status), "{command:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{command:?}: {text}");
        assert!(case.written().is_empty(), "{command:?}: {:?}", case.written());
    }
    // Those that must be plain files are refused at once.
    for mut command in [
        case.short(&["--latents-in", &pipe]),
        case.short(&["--vae", &pipe]),
        case.short(&["--lora", &pipe]),
        case.short(&["--model", &pipe]),
        other(&["inspect", &pipe]),
    ] {
        let output = command.output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{command:?}: {}", stderr(&output));
        assert!(stderr(&output).contains("pipe: not a regular file"), "{}", stderr(&output));
    }
    // One with a writer is read.
    let picture = std::fs::read(image).unwrap();
    let write = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::write(pipe, picture).unwrap()
    });
    let child = case.short(&["--ip-adapter", &adapter, "--ip-adapter-image", &pipe]).output().unwrap();
    assert!(child.status.success(), "{}", stderr(&child));
    write.join().unwrap();
}

/// A command that writes no file ends at once, too; here it waits for whoever reads what it says.
#[test]
fn f11_signal_while_files_are_described() {
    let case = Case::make("diffusers", "euler");
    let mut command = braid();
    command.args(["inspect", "--json"]).args((0..2000).map(|_| "unet")).current_dir(case.dir.path());
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
    kill(&child, libc::SIGINT);
    let (code, text) = end(child);
    assert_eq!(code, Some(130), "{text}");
    assert!(text.starts_with("braid: stopped by signal 2"), "{text}");
}

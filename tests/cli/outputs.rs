//! Files that are written: each image as soon as it is done, and what cannot be written found before any work. F10 of the catalogue.

use super::{Case, failure, run, stderr, stdout};
use braid::inputs::image::{AlphaMode, Image};
use std::path::Path;

/// The images that were written, which are the first ones, each whole.
#[track_caller]
fn first_images(case: &Case) -> usize {
    let count = case.written().len();
    for i in 0..count {
        let image = Image::open(case.path(&format!("out-{i}.png")), AlphaMode::Ignore);
        assert!(image.is_ok(), "{i} of {count}: {image:?}");
    }
    count
}

/// An obstacle is told before the model is looked at.
#[track_caller]
fn refused(case: &Case, more: &[&str], part: &str) {
    let text = failure(&case.short(&[&["--model", "/none"], more].concat()).output().unwrap(), 1);
    assert!(text.contains(part) && text.contains("cannot write") && !text.contains("/none"), "{part}: {text}");
}

#[test]
fn f10_names_that_cannot_be() {
    let case = Case::make("diffusers", "euler");
    let long = format!("{}.png", "x".repeat(250));
    refused(&case, &["-o", &case.path(&format!("yy{long}"))], "long");
    // The number makes it too long.
    refused(&case, &["-o", &case.path(&long), "-b", "2"], "long");
    refused(&case, &["-o", &case.path(&format!("{}out.png", "./".repeat(2100)))], "long");
    refused(&case, &["--dump", &case.path(&format!("yy{long}"))], "long");
    refused(&case, &["-o", &case.path("absent/out.png")], "no folder");
    std::fs::create_dir(case.path("out-1.png")).unwrap();
    refused(&case, &["-b", "2"], "out-1.png");
    assert_eq!(case.written(), ["out-1.png"]);
}

/// An older image stays as it was until the new one is done, and is replaced whole.
#[test]
fn f10_existing_output() {
    let case = Case::make("diffusers", "euler");
    std::fs::write(case.path("out.png"), "old").unwrap();
    failure(&case.short(&["--model", "/none"]).output().unwrap(), 1);
    failure(&case.short(&["--guidance-rescale", "2"]).output().unwrap(), 2);
    assert_eq!(std::fs::read(case.path("out.png")).unwrap(), b"old");
    assert!(case.short(&[]).output().unwrap().status.success());
    Image::open(case.path("out.png"), AlphaMode::Ignore).unwrap();
    assert_eq!(case.written(), ["out.png"]);
    let mut marked = std::fs::metadata(case.path("out.png")).unwrap().permissions();
    marked.set_readonly(true);
    std::fs::set_permissions(case.path("out.png"), marked).unwrap();
    refused(&case, &[], "marked read-only");
}

/// The demo's own image is an input, too.
#[test]
fn demo_output_that_is_its_input() {
    let dir = tempfile::tempdir().unwrap();
    let image = dir.path().join("image.png");
    Image::new(4, 4, vec![9; 48]).unwrap().save(&image).unwrap();
    let (before, image) = (std::fs::read(&image).unwrap(), image.to_str().unwrap());
    let text = failure(&run(&["demo", "--image", image, "-o", image]), 2);
    assert!(text.contains("--output: ") && text.contains("is read as"), "{text}");
    assert_eq!(std::fs::read(image).unwrap(), before);
}

#[cfg(target_os = "linux")]
mod linux {
    use super::*;
    use std::fs::Permissions;
    use std::io::Write;
    use std::os::unix::fs::{PermissionsExt, chown, symlink};
    use std::os::unix::process::CommandExt;
    use std::process::{Command, Output, Stdio};
    use std::time::Duration;

    /// Images that are done by the time of a signal stay, of one request and of a file of requests.
    #[test]
    fn f10_images_before_a_signal() {
        let case = Case::make("diffusers", "euler");
        let lines = case.path("lines.jsonl");
        std::fs::write(&lines, "{\"batch_count\": 1000}\n").unwrap();
        for more in [&["-b", "1000"][..], &["--batch", &lines]] {
            let mut command = case.short(&[&["--max-batch", "1"], more].concat());
            let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
            while !Path::new(&case.path("out-2.png")).exists() {
                assert_eq!(child.try_wait().unwrap(), None);
                std::thread::sleep(Duration::from_millis(2));
            }
            // SAFETY: kill has no preconditions; the child has not been waited for, so the number is still its own.
            assert_eq!(unsafe { libc::kill(child.id() as i32, libc::SIGINT) }, 0);
            let output = child.wait_with_output().unwrap();
            assert!(failure(&output, 130).contains("stopped by signal 2"));
            let count = first_images(&case);
            assert!((3..1000).contains(&count), "{count}");
            assert!(stdout(&output).lines().count() >= 3, "{}", stdout(&output));
            case.written().iter().for_each(|name| std::fs::remove_file(case.path(name)).unwrap());
        }
    }

    /// The second image finds a full disk: the first stays, and the third is not drawn in vain. Of a file of requests the others go on.
    #[test]
    fn f10_disk_full_at_an_image() {
        let case = Case::make("diffusers", "euler");
        symlink("/dev/full", case.path("out-1.png")).unwrap();
        let text = failure(&case.short(&["-b", "3", "--max-batch", "1"]).output().unwrap(), 1);
        assert!(text.contains("out-1.png: cannot write: No space left on device"), "{text}");
        assert_eq!(case.written(), ["out-0.png", "out-1.png"]);
        Image::open(case.path("out-0.png"), AlphaMode::Ignore).unwrap();
        let lines = case.path("lines.jsonl");
        std::fs::write(&lines, "{}\n{}\n{}\n").unwrap();
        let text = failure(&case.short(&["--batch", &lines]).output().unwrap(), 1);
        assert!(text.contains("request 2 of") && text.contains("out-1.png: cannot write: No space"), "{text}");
        assert_eq!(case.written(), ["out-0.png", "out-1.png", "out-2.png"]);
        for more in [["-o", &case.path("out-1.png")], ["--dump", "/dev/full"]] {
            assert!(failure(&case.short(&more).output().unwrap(), 1).contains("No space left"), "{more:?}");
        }
    }

    /// Runs a command with the case's folder `disk` as a file system of its own, which `setup` changes; what is in it then goes to
    /// standard output. None where the system lets nobody do that.
    fn on_a_disk(case: &Case, options: &str, setup: &str, more: &[&str]) -> Option<Output> {
        let disk = case.path("disk");
        std::fs::create_dir_all(&disk).unwrap();
        let command = case.short(&[&["-o", &case.path("disk/out.png")], more].concat());
        let script = format!(
            "mount -t tmpfs -o {options} none \"$0\" && {{ cd \"$0\"; {setup}; }} || exit 99\n\"$@\"\ncode=$?\nls -A \"$0\"\nexit $code"
        );
        let mut shell = Command::new("unshare");
        shell.args(["-rm", "sh", "-c", &script, &disk]).arg(command.get_program()).args(command.get_args());
        let output = shell.env_remove("LD_LIBRARY_PATH").output().ok();
        let found = output.filter(|output| output.status.code() != Some(99) && !stderr(output).starts_with("unshare"));
        if found.is_none() {
            skip("no user namespaces with mounts");
        }
        found
    }

    fn skip(why: &str) {
        let thread = std::thread::current();
        let _ = writeln!(std::io::stderr(), "{}: skipped: {why}", thread.name().unwrap_or("a test"));
    }

    #[test]
    fn f10_disk_full() {
        let case = Case::make("diffusers", "euler");
        let size = ["-W", "128", "-H", "128", "-b", "8", "--max-batch", "1"];
        let Some(output) = on_a_disk(&case, "size=64k", "true", &size) else { return };
        assert!(failure(&output, 1).contains("cannot write: No space left on device"), "{}", stderr(&output));
        let (text, list) = (stdout(&output), |line: &&str| !line.contains(' '));
        let names: Vec<_> = text.lines().filter(list).collect();
        let expected: Vec<_> = (0..names.len()).map(|i| format!("out-{i}.png")).collect();
        assert!(names == expected && (1..8).contains(&names.len()), "{text}");
    }

    /// A disk that is read-only, and files on which others are mounted, as containers have them.
    #[test]
    fn f10_read_only_disk_and_mounted_files() {
        let case = Case::make("diffusers", "euler");
        let none = ["--model", "/none"];
        let cases = [
            ("mount -o remount,ro .", "Read-only file system"),
            ("touch out.png other && mount --bind other out.png", "a file is mounted there"),
            (
                "touch 'o t' out.png && mount --bind 'o t' out.png && mount -o remount,bind,ro out.png",
                "a file is mounted there",
            ),
        ];
        for (setup, part) in cases {
            let Some(output) = on_a_disk(&case, "size=64k", setup, &none) else { return };
            let text = failure(&output, 1);
            assert!(text.contains("disk/out.png: cannot write: ") && text.contains(part), "{setup}: {text}");
            assert!(!stdout(&output).contains(".tmp"), "{}", stdout(&output));
        }
    }

    /// Folders and files that are marked immutable or append-only. Nothing stays in a folder from which nothing can be removed.
    #[test]
    fn f10_immutable_and_append_only() {
        let case = Case::make("diffusers", "euler");
        for (sign, word) in [("i", "immutable"), ("a", "append-only")] {
            let (folder, file) = (case.path(&format!("folder-{sign}")), case.path(&format!("out-{sign}.png")));
            std::fs::create_dir(&folder).unwrap();
            std::fs::write(&file, "old").unwrap();
            let mark = |how: &str| {
                let marked = Command::new("chattr").args([&format!("{how}{sign}"), &folder, &file]).output();
                marked.is_ok_and(|output| output.status.success())
            };
            let marked = mark("+");
            let results = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                if marked {
                    let said = format!("the folder is marked {word} (lsattr -d)");
                    refused(&case, &["-o", &format!("{folder}/out.png")], &said);
                    refused(&case, &["--dump", &format!("{folder}/out.safetensors")], &said);
                    refused(&case, &["-o", &file], "the file is there and marked immutable or append-only (lsattr)");
                }
            }));
            mark("-");
            if !marked {
                skip(&format!("chattr +{sign} is not for this user or disk"));
            }
            results.unwrap();
            assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
            assert_eq!(std::fs::read(&file).unwrap(), b"old");
        }
        assert_eq!(case.written(), ["out-a.png", "out-i.png"]);
    }

    /// In a folder such as /tmp another user's file cannot be replaced; one's own can.
    #[test]
    fn f10_sticky_folder() {
        const OWN: u32 = 65_534;
        const OTHER: u32 = 12_345;
        let case = Case::make("diffusers", "euler");
        let folder = case.dir.path().join("shared");
        std::fs::create_dir(&folder).unwrap();
        let open = |path: &Path, mode| std::fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        open(case.dir.path(), 0o755);
        open(&folder, 0o1777);
        let (own, other) = (folder.join("own.png"), folder.join("other.png"));
        for (file, user) in [(&own, OWN), (&other, OTHER)] {
            std::fs::write(file, "old").unwrap();
            open(file, 0o666);
            if chown(file, Some(user), None).is_err() {
                return skip("files of other users need root");
            }
        }
        let as_user = |file: &Path| {
            let command = case.short(&["-o", file.to_str().unwrap(), "--model", "/none"]);
            let mut user = Command::new(command.get_program());
            user.args(command.get_args()).env_remove("LD_LIBRARY_PATH").current_dir("/").uid(OWN).output()
        };
        let Ok(output) = as_user(&own) else { return skip("other users cannot run this build") };
        assert!(failure(&output, 1).contains("/none"), "{}", stderr(&output));
        let text = failure(&as_user(&other).unwrap(), 1);
        assert!(text.contains("other.png: cannot write: ") && text.contains("belongs to another user"), "{text}");
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 2);
    }

    /// A folder without permission to write.
    #[test]
    fn f10_read_only_folder() {
        let case = Case::make("diffusers", "euler");
        let folder = case.path("folder");
        std::fs::create_dir(&folder).unwrap();
        std::fs::set_permissions(&folder, Permissions::from_mode(0o555)).unwrap();
        if std::fs::write(case.path("folder/x"), "").is_ok() {
            return skip("root writes everywhere");
        }
        refused(&case, &["-o", &case.path("folder/out.png")], "Permission denied");
    }
}

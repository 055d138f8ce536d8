//! Files that change while they are mapped: F08 and F09 of the catalogue of faults.

use super::*;
use braid::pipeline::{Callbacks, Stage};
use std::fs::File;
use std::io::Write;
use std::time::{Duration, SystemTime};

/// Makes a file old, so that any write to it is later, however coarse the file system's clock is.
fn age(path: &Path) {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    File::options().write(true).open(path).unwrap().set_modified(then).unwrap();
}

/// Writes over a file in place, without cutting it short in between.
fn overwrite(path: &Path, bytes: &[u8]) {
    File::options().write(true).open(path).unwrap().write_all(bytes).unwrap();
}

#[track_caller]
fn demand_changed(error: &Error, file: &str) {
    let text = error.to_string();
    assert!(matches!(error, Error::Changed { path, .. } if path.ends_with(file)), "{file}: {text}");
    assert!(text.contains("load it again") && text.contains("`mmap: false`"), "{text}");
}

/// Of whichever model the file is: requests fail from then on, and a pipeline that is loaded anew is sound.
#[test]
fn f09_overwritten_files() {
    const LORA: &str = "kohya.safetensors";
    let (folder, with_lora) = (Model::folder(), Model::golden("diffusers", "lora-kohya"));
    let files = PARTS.iter().map(|(_, file)| (&folder, *file)).chain([(&folder, ADAPTER), (&with_lora, LORA)]);
    for (model, file) in files {
        let mut options = model.options();
        if file == LORA {
            options = options.with_lora(model.path(LORA));
        }
        let path = model.path(file);
        age(&path);
        let pipeline = Pipeline::load(&options).unwrap();
        let before = generate(&pipeline, &request()).unwrap();
        overwrite(&path, &std::fs::read(&path).unwrap());
        for _ in 0..2 {
            demand_changed(&refused(generate(&pipeline, &request()), file), file);
        }
        assert_eq!(generate(&Pipeline::load(&options).unwrap(), &request()).unwrap(), before, "{file}");
    }
}

/// The decoder's file while the steps are made; NaN in it is not the reason that is given. The image encoder's before its image.
#[test]
fn f09_overwritten_under_way() {
    let model = Model::folder();
    let file = PARTS[1].1;
    let sound = std::fs::read(model.path(file)).unwrap();
    model.edit(file, |tensors| tensors.values_mut().for_each(|tensor| tensor.poison(f32::NAN, None)));
    let bad = std::fs::read(model.path(file)).unwrap();
    for other in [sound.clone(), bad] {
        std::fs::write(model.path(file), &sound).unwrap();
        age(&model.path(file));
        let pipeline = model.load().unwrap();
        let callbacks = Callbacks::new().with_progress(|progress| {
            if progress.stage == Stage::Denoise && progress.done == 1 {
                overwrite(&model.path(file), &other);
            }
        });
        demand_changed(&refused(pipeline.generate_with(&request(), callbacks).map(drop), file), file);
    }
    let file = PARTS[4].1;
    age(&model.path(file));
    let pipeline = model.load().unwrap();
    let image = Image::new(4, 4, vec![7; 48]).unwrap();
    pipeline.encode_image(&image).unwrap();
    overwrite(&model.path(file), &std::fs::read(model.path(file)).unwrap());
    demand_changed(&refused(pipeline.encode_image(&image).map(drop), file), file);
    let prompt = ImagePrompt::new(image);
    demand_changed(&refused(pipeline.encode_references(0, &prompt).map(drop), file), file);
}

/// A file whose name another one takes stays whole: images are those of the old one. Without mapping nothing matters.
#[test]
fn f09_replaced_files() {
    let model = Model::folder();
    let path = model.path(PARTS[0].1);
    let (mapped, read) = (model.load().unwrap(), Pipeline::load(&model.options().with_mmap(false)).unwrap());
    let old = generate(&mapped, &request()).unwrap();
    let new = model.path("new.safetensors");
    std::fs::copy(&path, &new).unwrap();
    model.edit("new.safetensors", |tensors| {
        tensors.get_mut("conv_out.bias").unwrap().poison(0.5, None);
    });
    std::fs::rename(&new, &path).unwrap();
    assert_eq!(generate(&mapped, &request()).unwrap(), old);
    assert_eq!(generate(&read, &request()).unwrap(), old);
    assert_ne!(generate(&model.load().unwrap(), &request()).unwrap(), old);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    assert_eq!(generate(&mapped, &request()).unwrap(), old);
    assert_eq!(generate(&read, &request()).unwrap(), old);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(generate(&mapped, &request()).unwrap(), old);
}

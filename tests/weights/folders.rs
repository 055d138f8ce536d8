//! Shards (B20) and folders.

use super::*;

fn shard(name: &str, value: f32) -> Vec<u8> {
    let mut bytes = st(&format!("{{{}}}", entry(name, "F32", "[1]", 0, 4)), 0);
    bytes.extend(value.to_le_bytes());
    bytes
}

#[test]
fn b20_shards() {
    let dir = tempfile::tempdir().unwrap();
    let index = dir.path().join("diffusion_pytorch_model.safetensors.index.json");
    let put =
        |map: &str| std::fs::write(&index, format!(r#"{{"metadata":{{"total_size":8}},"weight_map":{map}}}"#)).unwrap();
    let error = || open(&index, &OpenOptions::default()).unwrap_err().to_string();
    std::fs::write(dir.path().join("one.safetensors"), shard("a", 1.0)).unwrap();
    for outside in
        ["../one.safetensors", "/etc/passwd", "x/../one.safetensors", ".", "..", "", "./one.safetensors", "c:x"]
    {
        put(&format!(r#"{{"a":"{outside}"}}"#));
        assert!(error().contains("is not a plain file name"), "{outside}: {}", error());
    }
    put(r#"{"a":"one.safetensors","b":"two.safetensors"}"#);
    assert!(error().contains("the shard `two.safetensors` with 1 tensors is missing"), "{}", error());
    std::fs::write(dir.path().join("two.safetensors"), shard("c", 2.0)).unwrap();
    assert!(error().contains("tensor `b` is listed in the shard `two.safetensors`, but is not there"), "{}", error());
    std::fs::write(dir.path().join("two.safetensors"), shard("a", 2.0)).unwrap();
    put(r#"{"a":"two.safetensors","b":"one.safetensors"}"#);
    assert!(error().contains("tensor `b` is listed in the shard `one.safetensors`"), "{}", error());
    std::fs::write(&index, "{}").unwrap();
    assert!(error().contains("weight_map"), "{}", error());
    std::fs::write(&index, "<html>").unwrap();
    assert!(error().contains("not the index of a sharded model"), "{}", error());

    // Sound, by the index and by the folder; a listed tensor of integers is not missed.
    std::fs::write(dir.path().join("two.safetensors"), shard("b", 2.0)).unwrap();
    std::fs::copy(data("small.safetensors"), dir.path().join("three.safetensors")).unwrap();
    put(r#"{"a":"one.safetensors","b":"two.safetensors","position_ids":"three.safetensors"}"#);
    for path in [&index, dir.path()] {
        let weights = open(path, &OpenOptions::default()).unwrap();
        assert_eq!(weights.get("a").unwrap().to_f32(), [1.0]);
        assert_eq!(weights.get("b").unwrap().to_f32(), [2.0]);
        assert_eq!(weights.len(), 5);
    }
}

#[test]
fn folders() {
    let dir = tempfile::tempdir().unwrap();
    let open = || open(dir.path(), &OpenOptions::default());
    let text = open().unwrap_err().to_string();
    assert!(
        text.contains("sought diffusion_pytorch_model.safetensors") && text.contains("pytorch_model.bin"),
        "{text}"
    );
    // A variant that is not among those sought is named.
    let variant = dir.path().join("diffusion_pytorch_model.bf16.safetensors");
    std::fs::write(&variant, shard("a", 1.0)).unwrap();
    let text = open().unwrap_err().to_string();
    assert!(text.contains("`diffusion_pytorch_model.bf16.safetensors` is there"), "{text}");
    std::fs::remove_file(&variant).unwrap();
    // Each file is preferred to those before it.
    std::fs::copy(data("many.bin"), dir.path().join("pytorch_model.bin")).unwrap();
    assert_eq!(open().unwrap().len(), 60);
    for (i, name) in
        ["model.fp16.safetensors", "model.safetensors", "diffusion_pytorch_model.safetensors"].iter().enumerate()
    {
        std::fs::write(dir.path().join(name), shard("a", i as f32)).unwrap();
        let weights = open().unwrap();
        assert_eq!((weights.get("a").unwrap().to_f32(), weights.path()), (vec![i as f32], &*dir.path().join(name)));
    }
    assert!(braid::weights::open(&dir.path().join("absent"), &OpenOptions::default()).is_err());
    #[cfg(unix)]
    {
        let link = dir.path().join("diffusion_pytorch_model.safetensors");
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("../blobs/absent", &link).unwrap();
        let text = open().unwrap_err().to_string();
        assert!(text.contains("diffusion_pytorch_model.safetensors: cannot open"), "{text}");
        let null = braid::weights::open(Path::new("/dev/null"), &OpenOptions::default());
        assert!(null.unwrap_err().to_string().contains("not a regular file"));
    }
}

//! Checks that timed work is correct: finite, and the same every time.

use braid::inputs::image::Image;
use braid::pipeline::HostTensor;
use std::collections::BTreeMap;

/// CRC-32 of the images' sizes and pixels.
pub fn checksum(images: &[Image]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    for image in images {
        [image.width(), image.height()].iter().for_each(|side| crc.update(&(*side as u64).to_le_bytes()));
        crc.update(image.rgb());
    }
    crc.finalize()
}

/// Whether these are the images of the first run, and every stage on the way to them, where stages were kept, is finite.
pub fn verify(first: u32, images: &[Image], stages: &BTreeMap<String, HostTensor>) -> Result<(), String> {
    if let Some((name, _)) = stages.iter().find(|(_, tensor)| !tensor.data.iter().all(|v| v.is_finite())) {
        return Err(format!("`{name}` is NaN or infinite in places; nothing is reported"));
    }
    let now = checksum(images);
    if now != first {
        return Err(format!(
            "two runs of the same request gave different images, checksums {first:08x} and {now:08x}; nothing is reported"
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wrong_results() {
        let image = |value| Image::new(2, 1, vec![value; 6]).unwrap_or_else(|e| panic!("{e}"));
        let stage = |value| HostTensor { shape: vec![2], data: vec![1.0, value] };
        let stages = |value| BTreeMap::from([("latents".to_owned(), stage(value))]);
        let first = checksum(&[image(9)]);
        assert_eq!(verify(first, &[image(9)], &stages(0.0)), Ok(()));
        let other = verify(first, &[image(8)], &stages(0.0)).unwrap_err();
        assert!(other.contains(&format!("{first:08x}")) && other.contains("different images"), "{other}");
        assert!(verify(first, &[image(9), image(9)], &stages(0.0)).is_err());
        assert!(verify(first, &[image(9)], &stages(f32::NAN)).unwrap_err().contains("`latents`"));
        assert!(verify(first, &[image(9)], &stages(f32::INFINITY)).is_err());
        // The same pixels in another shape are another image.
        let tall = Image::new(1, 2, vec![9; 6]).unwrap_or_else(|e| panic!("{e}"));
        assert_ne!(checksum(&[tall]), first);
    }
}

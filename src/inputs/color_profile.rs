//! Colour profiles: they are not applied, which is told unless they are sRGB.

use std::path::Path;

/// Tells of a profile that the image's values are not in sRGB.
pub(super) fn tell(name: &Path, profile: &[u8]) {
    if profile.is_empty() {
        return;
    }
    let what = description(profile).unwrap_or_else(|| "without a name".into());
    if !what.contains("sRGB") {
        tracing::warn!(
            "{}: the embedded colour profile ({what}) is not applied, as in PIL's convert(\"RGB\"); convert the image to \
             sRGB where its colours count",
            name.display()
        );
    }
}

/// The description of an ICC profile: its `desc` tag, as ASCII or as UTF-16.
fn description(profile: &[u8]) -> Option<String> {
    let number = |at: usize| profile.get(at..at + 4)?.try_into().ok().map(|b| u32::from_be_bytes(b) as usize);
    let tags = number(128)?.min(100);
    let entry = (0..tags).map(|i| 132 + 12 * i).find(|&at| profile.get(at..at + 4) == Some(b"desc"))?;
    let tag = profile.get(number(entry + 4)?..)?;
    let number = |at: usize| tag.get(at..at + 4)?.try_into().ok().map(|b| u32::from_be_bytes(b) as usize);
    let text = match tag.get(..4)? {
        b"desc" => String::from_utf8_lossy(tag.get(12..)?.get(..number(8)?)?).into_owned(),
        b"mluc" => {
            let units = tag.get(number(24)?..)?.get(..number(20)?)?.as_chunks::<2>().0;
            String::from_utf16_lossy(&units.iter().map(|&unit| u16::from_be_bytes(unit)).collect::<Vec<_>>())
        }
        _ => return None,
    };
    let text: String = text.chars().filter(|c| !c.is_control()).take(60).collect();
    Some(text).filter(|text| !text.is_empty())
}

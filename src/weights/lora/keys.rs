//! The names of a LoRA file's tensors: a module and the part of its update.

/// The part of a module's update that a tensor holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    /// The right factor, `[R, K]` or `[R, I, kh, kw]`.
    Down,
    /// The left factor, `[N, R]` or `[N, R, 1, 1]`.
    Up,
    /// The numerator of the module's scale.
    Alpha,
}

/// The beginnings of what follows a module's name, for the right and the left factor.
const FACTORS: [(&str, &str); 5] = [
    (".lora_down.", ".lora_up."),
    (".lora_A.", ".lora_B."),
    (".lora.down.", ".lora.up."),
    ("_lora.down.", "_lora.up."),
    (".lora_linear_layer.down.", ".lora_linear_layer.up."),
];

/// The mark of old attention processors, whose projections are named `to_q_lora`.
const PROCESSOR: &str = "_lora.";

/// Splits the name of a tensor into its module, as the file spells it, and its part; `None` for other names.
pub(super) fn split(name: &str) -> Option<(String, Part)> {
    if let Some(module) = name.strip_suffix(".alpha") {
        return Some((plain(module, false), Part::Alpha));
    }
    for (down, up) in FACTORS {
        for (mark, part) in [(down, Part::Down), (up, Part::Up)] {
            if let Some((module, rest)) = name.split_once(mark) {
                // PEFT may leave the adapter's name between: `lora_A.default.weight`.
                let weight = rest == "weight" || rest.strip_suffix(".weight").is_some_and(|name| !name.contains('.'));
                return weight.then(|| (plain(module, mark.starts_with(PROCESSOR)), part));
            }
        }
    }
    None
}

/// The module without PEFT's prefix and without the names of attention processors.
fn plain(module: &str, processor: bool) -> String {
    let module = module.strip_prefix("base_model.model.").unwrap_or(module).replace(".processor.", ".");
    if !processor {
        return module;
    }
    const TEXT: [(&str, &str); 4] =
        [(".to_q", ".q_proj"), (".to_k", ".k_proj"), (".to_v", ".v_proj"), (".to_out", ".out_proj")];
    let text = module.contains(".self_attn.");
    for (old, new) in TEXT {
        if let Some(rest) = module.strip_suffix(old).filter(|_| text) {
            return format!("{rest}{new}");
        }
    }
    if module.ends_with(".to_out") { module + ".0" } else { module }
}

/// The tensors of methods that are no plain LoRA, by a part of their names.
const OTHER_METHODS: [(&str, &str); 16] = [
    (".dora_scale", "DoRA"),
    (".lora_magnitude_vector", "DoRA"),
    (".hada_", "LoHa"),
    (".lokr_", "LoKr"),
    (".ia3_", "IA3"),
    (".on_input", "IA3"),
    (".oft_", "OFT"),
    (".boft_", "BOFT"),
    (".lora_mid.", "LoRA with convolutions in CP decomposition (`lora_mid`)"),
    (".lora_embedding_", "LoRA of embeddings"),
    (".lora_A.bias", "LoRA with biases"),
    (".lora_B.bias", "LoRA with biases"),
    (".lora_up.bias", "LoRA with biases"),
    (".a1.weight", "GLoRA"),
    (".w_norm", "LoRA with differences of norms"),
    (".b_norm", "LoRA with differences of norms"),
];

/// Names the method that a tensor belongs to, where it is no plain LoRA.
pub(super) fn other_method(name: &str) -> Option<&'static str> {
    if name.ends_with(".diff") || name.ends_with(".diff_b") {
        return Some("LoRA with full differences of weights (`diff`)");
    }
    OTHER_METHODS.iter().find(|(part, _)| name.contains(part)).map(|(_, method)| *method)
}

/// Whether a tensor belongs to a LoRA or to one of its relatives.
pub(in crate::weights) fn is_lora(name: &str) -> bool {
    const PREFIXES: [&str; 4] = ["lora_unet_", "lora_te", "lycoris_", "oft_unet_"];
    PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        || FACTORS.iter().any(|(down, up)| name.contains(down) || name.contains(up))
        || OTHER_METHODS[..9].iter().any(|(part, _)| name.contains(part))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_tensors() {
        let q = "down_blocks.1.attn1";
        for (name, module, part) in [
            ("lora_unet_a_b.lora_down.weight".to_owned(), "lora_unet_a_b".to_owned(), Part::Down),
            ("lora_te1_a.lora_up.weight".to_owned(), "lora_te1_a".to_owned(), Part::Up),
            ("lora_te1_a.alpha".to_owned(), "lora_te1_a".to_owned(), Part::Alpha),
            (format!("unet.{q}.to_q.lora_A.weight"), format!("unet.{q}.to_q"), Part::Down),
            (format!("base_model.model.{q}.to_q.lora_B.default.weight"), format!("{q}.to_q"), Part::Up),
            (format!("unet.{q}.to_q.lora.up.weight"), format!("unet.{q}.to_q"), Part::Up),
            (format!("unet.{q}.processor.to_q_lora.down.weight"), format!("unet.{q}.to_q"), Part::Down),
            (format!("{q}.processor.to_out_lora.up.weight"), format!("{q}.to_out.0"), Part::Up),
            (
                "text_encoder.x.self_attn.to_out_lora.up.weight".into(),
                "text_encoder.x.self_attn.out_proj".into(),
                Part::Up,
            ),
            ("text_encoder.x.q_proj.lora_linear_layer.down.weight".into(), "text_encoder.x.q_proj".into(), Part::Down),
        ] {
            assert_eq!(split(&name), Some((module, part)), "{name}");
            assert!(is_lora(&name) || part == Part::Alpha, "{name}");
        }
        for name in ["a.weight", "a.lora_A.bias", "a.lora_A.b.c.weight", "lora_A.weight", ""] {
            assert_eq!(split(name), None, "{name}");
        }
    }

    #[test]
    fn methods_by_name() {
        for (name, method) in [
            ("lora_unet_x.dora_scale", "DoRA"),
            ("unet.x.lora_magnitude_vector.weight", "DoRA"),
            ("lora_unet_x.hada_w1_a", "LoHa"),
            ("lora_unet_x.lokr_w2", "LoKr"),
            ("lora_unet_x.on_input", "IA3"),
            ("x.ia3_l", "IA3"),
        ] {
            assert_eq!(other_method(name), Some(method), "{name}");
            assert!(is_lora(name) || name.ends_with("on_input"), "{name}");
        }
        assert_eq!(other_method("lora_unet_x.lora_up.weight"), None);
    }
}

use super::*;
use crate::error::Error;
use crate::weights::{Weight, Weights};
use std::collections::BTreeMap;

type Table = Vec<(String, Vec<usize>)>;

fn table(names: &[(&str, &[usize])]) -> Table {
    names.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())).collect()
}

/// A model of a few modules: a UNet of two resnets a level, and two text encoders.
fn targets() -> LoraTargets {
    let attn = |part: &str| format!("down_blocks.1.attentions.0.transformer_blocks.0.attn2.{part}.weight");
    let (k, v) = (attn("to_k"), attn("to_v"));
    let unet = table(&[
        ("down_blocks.0.resnets.0.conv1.weight", &[8, 8, 3, 3]),
        ("down_blocks.0.resnets.1.conv1.weight", &[8, 8, 3, 3]),
        ("down_blocks.1.resnets.0.conv_shortcut.weight", &[16, 8, 1, 1]),
        (&k, &[16, 32]),
        (&v, &[16, 32]),
        ("conv_norm_out.weight", &[8]),
    ]);
    let layer = "text_model.encoder.layers.0";
    let text = |width| {
        table(&[
            ("text_model.embeddings.token_embedding.weight", &[100, width]),
            (&format!("{layer}.self_attn.q_proj.weight"), &[width, width]),
            (&format!("{layer}.mlp.fc1.weight"), &[2 * width, width]),
        ])
    };
    LoraTargets::new(&unet, [&text(12), &text(20)])
}

const K: &str = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k";
const KOHYA_K: &str = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k";
const CONV: &str = "lora_unet_input_blocks_2_0_in_layers_2";

struct File(Weights);

impl File {
    fn new() -> Self {
        Self(Weights::new("l.safetensors"))
    }

    fn with(mut self, name: &str, shape: &[usize]) -> Self {
        let values = vec![0.5; shape.iter().product()];
        self.0.insert(name, Weight::from_f32(&values, shape, name).unwrap()).unwrap();
        self
    }

    /// A pair in kohya's way, with an alpha of 0.5.
    fn kohya(self, module: &str, down: &[usize], up: &[usize]) -> Self {
        let part = |end: &str| format!("{module}.{end}");
        self.with(&part("lora_down.weight"), down).with(&part("lora_up.weight"), up).with(&part("alpha"), &[])
    }

    /// A pair in PEFT's way.
    fn peft(self, module: &str, down: &[usize], up: &[usize]) -> Self {
        self.with(&format!("{module}.lora_A.weight"), down).with(&format!("{module}.lora_B.weight"), up)
    }

    fn metadata(mut self, text: &str) -> Self {
        self.0.set_metadata(BTreeMap::from([("lora_adapter_metadata".to_owned(), text.to_owned())]));
        self
    }

    fn read(&self) -> crate::Result<Lora> {
        Lora::read(&self.0, &targets())
    }

    fn fails(&self, texts: &[&str]) {
        let error = self.read().unwrap_err();
        let text = error.to_string();
        assert!(
            matches!(error, Error::Mismatch { .. } | Error::Malformed { .. }) && text.starts_with("l.safetensors: ")
        );
        for part in texts {
            assert!(text.contains(part), "{part}: {text}");
        }
    }
}

fn names(lora: &Lora) -> Vec<(LoraComponent, &str, usize, f32)> {
    lora.modules.iter().map(|m| (m.component, m.module.as_str(), m.rank(), m.scale)).collect()
}

#[test]
fn kohya_with_convolutions_and_alphas() {
    let file = File::new()
        .kohya(KOHYA_K, &[4, 32], &[16, 4])
        .kohya(CONV, &[2, 8, 3, 3], &[8, 2, 1, 1])
        .kohya("lora_unet_down_blocks_1_resnets_0_conv_shortcut", &[2, 8, 1, 1], &[16, 2, 1, 1])
        .kohya("lora_te2_text_model_encoder_layers_0_mlp_fc1", &[5, 20], &[40, 5]);
    // The file spells blocks in both ways, so the original ones count no more; as in diffusers.
    let lora = file.read().unwrap();
    assert_eq!(lora.unused, [CONV, KOHYA_K]);
    let shortcut = (LoraComponent::Unet, "down_blocks.1.resnets.0.conv_shortcut", 2, 0.25);
    let fc1 = (LoraComponent::Text(1), "text_model.encoder.layers.0.mlp.fc1", 5, 0.1);
    assert_eq!(names(&lora), [shortcut, fc1]);
    assert_eq!((lora.modules[0].down.shape(), lora.modules[0].up.shape()), (&[2, 8][..], &[16, 2][..]));
    let file = File::new().kohya(CONV, &[2, 8, 3, 3], &[8, 2, 1, 1]).kohya(KOHYA_K, &[4, 32], &[16, 4]);
    let lora = file.read().unwrap();
    let conv = (LoraComponent::Unet, "down_blocks.0.resnets.1.conv1", 2, 0.25);
    assert_eq!(names(&lora), [conv, (LoraComponent::Unet, K, 4, 0.125)]);
    assert_eq!(lora.modules[0].down.shape(), [2, 8, 3, 3]);
}

#[test]
fn peft_and_old_diffusers_names() {
    let q = "text_model.encoder.layers.0.self_attn.q_proj";
    let file = File::new()
        .peft(&format!("unet.{K}"), &[4, 32], &[16, 4])
        .peft(&format!("text_encoder.{q}"), &[2, 12], &[12, 2])
        .peft(&format!("text_encoder_2.{}", &q[11..]), &[2, 20], &[20, 2]);
    let lora = file.read().unwrap();
    let expected =
        [(LoraComponent::Unet, K, 4, 1.0), (LoraComponent::Text(0), q, 2, 1.0), (LoraComponent::Text(1), q, 2, 1.0)];
    assert_eq!(names(&lora), expected);
    let processor = format!("{}.processor.to_k_lora", K.trim_end_matches(".to_k"));
    let file = File::new()
        .with(&format!("{processor}.down.weight"), &[4, 32])
        .with(&format!("{processor}.up.weight"), &[16, 4])
        .with(&format!("text_encoder.{q}.lora_linear_layer.down.weight"), &[2, 12])
        .with(&format!("text_encoder.{q}.lora_linear_layer.up.weight"), &[12, 2]);
    assert_eq!(names(&file.read().unwrap()), expected[..2]);
}

#[test]
fn alphas_of_the_metadata() {
    let v = K.replace("to_k", "to_v");
    let file =
        || File::new().peft(&format!("unet.{K}"), &[4, 32], &[16, 4]).peft(&format!("unet.{v}"), &[4, 32], &[16, 4]);
    let scales = |text: &str| {
        let lora = file().metadata(text).read().unwrap();
        [lora.modules[0].scale, lora.modules[1].scale]
    };
    assert_eq!(scales(r#"{"unet.r": 4, "unet.lora_alpha": 8}"#), [2.0, 2.0]);
    assert_eq!(scales(r#"{"unet.r": 4, "unet.lora_alpha": 8, "unet.alpha_pattern": {"attn2.to_v": 1}}"#), [2.0, 0.25]);
    assert_eq!(scales(r#"{"unet.lora_alpha": 8, "unet.use_rslora": true}"#), [4.0, 4.0]);
    assert_eq!(scales(r#"{"text_encoder.lora_alpha": 8}"#), [1.0, 1.0]);
    file().metadata(r#"{"unet.use_dora": true}"#).fails(&["DoRA"]);
    file().metadata("[").fails(&["lora_adapter_metadata"]);
}

#[test]
fn other_methods_and_families() {
    let pair = || File::new().kohya(KOHYA_K, &[4, 32], &[16, 4]);
    for (end, method) in
        [("dora_scale", "DoRA"), ("hada_w1_a", "LoHa"), ("lokr_w1", "LoKr"), ("on_input", "IA3"), ("diff", "full")]
    {
        pair().with(&format!("lora_unet_x.{end}"), &[4]).fails(&[method, "plain LoRA"]);
    }
    let other = "lora_unet_down_blocks_2_attentions_1_transformer_blocks_0_attn2_to_k";
    File::new().kohya(other, &[4, 768], &[320, 4]).fails(&["Stable Diffusion 1.x", "768 wide, this model's 32"]);
    File::new().kohya(other, &[4, 1024], &[320, 4]).fails(&["Stable Diffusion 2.x"]);
    File::new().kohya("lora_te_text_model_encoder_layers_0_mlp_fc1", &[4, 12], &[24, 4]).fails(&["lora_te_", "1.x"]);
    File::new().peft("transformer.single_transformer_blocks.0.attn.to_q", &[4, 8], &[8, 4]).fails(&["Flux"]);
    File::new().with("down_blocks.0.x", &[1]).with("conv_in.weight", &[1]).fails(&["this is a UNet", "LoRA"]);
}

#[test]
fn names_that_are_no_module() {
    let lora = File::new().kohya(KOHYA_K, &[4, 32], &[16, 4]).kohya("lora_unet_x", &[4, 8], &[8, 4]).read().unwrap();
    assert_eq!((lora.modules.len(), lora.unused.as_slice()), (1, &["lora_unet_x".to_owned()][..]));
    File::new().kohya("lora_unet_x", &[4, 8], &[8, 4]).fails(&["none of the LoRA's 1 modules", "lora_unet_x"]);
    // An alpha alone changes nothing.
    let lone = File::new().kohya(KOHYA_K, &[4, 32], &[16, 4]).with(&format!("{CONV}.alpha"), &[]);
    assert_eq!(lone.read().unwrap().unused, [CONV]);
}

#[test]
fn damaged_modules() {
    File::new().with(&format!("{KOHYA_K}.lora_down.weight"), &[4, 32]).fails(&["not its left", KOHYA_K]);
    File::new().kohya(KOHYA_K, &[4, 31], &[16, 4]).fails(&["1 of 1 modules have other shapes", "[4, 31]", "[16, 32]"]);
    File::new().kohya(CONV, &[4, 8, 1, 1], &[8, 4, 1, 1]).fails(&["[4, 8, 1, 1]", "[8, 8, 3, 3]"]);
    File::new().kohya(KOHYA_K, &[0, 32], &[16, 0]).fails(&["rank 0"]);
    let twice = File::new().kohya(KOHYA_K, &[4, 32], &[16, 4]).peft(KOHYA_K, &[4, 32], &[16, 4]);
    twice.fails(&["same factor twice"]);
    let alpha = File::new().peft(KOHYA_K, &[4, 32], &[16, 4]).with(&format!("{KOHYA_K}.alpha"), &[2]);
    alpha.fails(&["alpha", "not one number"]);
}

#[test]
fn scales_of_stacked_loras() {
    let v = K.replace("to_k", "to_v");
    let first =
        File::new().peft(&format!("unet.{v}"), &[1, 32], &[16, 1]).peft(&format!("unet.{K}"), &[2, 32], &[16, 2]);
    let second = File::new().kohya(KOHYA_K, &[2, 32], &[16, 2]);
    let loras = [first.read().unwrap(), second.read().unwrap()];
    let set = LoraSet::new(LoraComponent::Unet, &loras);
    let (k, v) = (set.get(K).unwrap(), set.get(&v).unwrap());
    // Ranks 2, 2 and 1, each padded to 8.
    assert_eq!((k.start, k.rank(), k.of, v.start, v.rank()), (0, 16, 24, 16, 8));
    assert!(LowRank::adjacent(&[k.clone(), v.clone()]) && !LowRank::adjacent(&[v.clone(), k.clone()]));
    assert_eq!((k.down[1].shape(), v.up[0].shape()), (&[8, 32][..], &[16, 8][..]));
    assert_eq!(
        (&k.down[1].to_f32()[60..68], &v.up[0].to_f32()[6..10]),
        (&[0.5, 0.5, 0.5, 0.5, 0.0, 0.0, 0.0, 0.0][..], &[0.0, 0.0, 0.5, 0.0][..])
    );
    // Alpha 0.5 of rank 2; the second LoRA is negative.
    let scales = |loras: &[f32]| set.scales(loras).chunks(8).map(|c| [c[0], c[7]]).collect::<Vec<_>>();
    assert_eq!(scales(&[0.5, -2.0]), [[0.5; 2], [-0.5; 2], [0.5; 2]]);
    assert_eq!(scales(&[]), [[1.0; 2], [0.25; 2], [1.0; 2]]);
    assert!(LoraSet::new(LoraComponent::Text(0), &loras).scales(&[]).is_empty());
}

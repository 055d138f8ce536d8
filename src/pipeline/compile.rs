//! From a request's parts to executables, each compiled where it is not there yet.

use super::denoise_plan::{DenoisePlan, Placement};
use super::executable_cache::{ExecutableCache, ExecutableKey, LoopKey, TextEncoderKey, VaeKey};
use super::load::Models;
use super::model::Model;
use super::planned_loops::{MAX_IMAGES, PlannedLoops};
use super::residency::MemoryEstimate;
use crate::compat::Compat;
use crate::device::host::HostDenoiseLoop;
use crate::device::{
    DenoiseLoop, Device, DeviceMemory, Executable, ImageDecoder, LoopSpec, MemoryRequirement, PixelRounding, Role,
    TiledDecoder, TiledEncoder, Tiling,
};
use crate::error::{Error, Field, Message, Result};
use crate::graph::Graph;
use crate::models::clip::{ClipTextShape, clip_text, clip_vision};
use crate::models::ip_adapter::{Adapter, AdapterConfig};
use crate::models::unet::{ConditioningPart, UnetShape, conditioning, denoiser};
use crate::models::vae::{vae_decoder, vae_encoder};
use crate::weights::Scope;

/// The models that graphs are made of, and the device that compiles them.
#[derive(Clone, Copy)]
pub(super) struct Compiler<'a> {
    pub(super) models: &'a Models,
    pub(super) compat: &'a Compat,
    pub(super) device: &'a dyn Device,
    /// The most bytes of fresh noise that a device's denoise loop reserves.
    pub(super) max_noise_bytes: u64,
    /// The most images that share an evaluation; by their size where absent.
    pub(super) max_batch: Option<usize>,
    /// The side in latents of the tiles in which images are decoded and encoded.
    pub(super) tile: Option<usize>,
}

/// The executables of a pipeline, compiled on demand.
pub(super) struct Executables<'a> {
    pub(super) compiler: Compiler<'a>,
    pub(super) cache: &'a mut ExecutableCache,
    /// Whether other requests may join the one under way.
    pub(super) joins: bool,
    /// The plans of the steps of each request under way, which the next one may join.
    pub(super) under_way: Vec<Vec<DenoisePlan>>,
}

impl Executables<'_> {
    /// A text encoder for so many rows of tokens, or the power of two above.
    pub(super) fn text_encoder(&mut self, key: TextEncoderKey, rows: usize) -> Result<&mut dyn Executable> {
        let (compiler, rows) = (self.compiler, self.compiler.encoder_rows(rows));
        let compile = || compiler.device.compile(compiler.text_graph(key, rows)?);
        self.cache.executable(ExecutableKey::TextEncoder(key, rows), compile)
    }

    /// The image encoder for so many images, or the power of two above.
    pub(super) fn image_encoder(&mut self, images: usize) -> Result<&mut dyn Executable> {
        let (compiler, images) = (self.compiler, self.compiler.encoder_rows(images));
        let compile = || compiler.device.compile(compiler.image_graph(images)?);
        self.cache.executable(ExecutableKey::ImageEncoder(images), compile)
    }

    /// The VAE's encoder to latents of that height and width.
    pub(super) fn vae_encoder(&mut self, latent: [usize; 2]) -> Result<&mut dyn Executable> {
        self.vae_encoder_on(self.compiler.device, VaeKey::new(latent))
    }

    /// The same in f32; `None` where that is its type.
    pub(super) fn upcast_vae_encoder(&mut self, latent: [usize; 2]) -> Result<Option<&mut dyn Executable>> {
        let Some(device) = self.compiler.device.upcast_vae() else { return Ok(None) };
        self.vae_encoder_on(device.as_ref(), VaeKey::upcast(latent)).map(Some)
    }

    fn vae_encoder_on(&mut self, device: &dyn Device, key: VaeKey) -> Result<&mut dyn Executable> {
        let (compiler, latent) = (self.compiler, key.latent);
        self.cache.executable(ExecutableKey::VaeEncoder(key), || {
            let tiling = compiler.tiling(latent);
            let compiled = device.compile_vae_encoder(compiler.vae_encoder_graph(tiling.tile())?);
            let encoder = compiled.map_err(|error| compiler.size_that_fits("encode", latent, error))?;
            if tiling.is_whole() {
                return Ok(encoder);
            }
            Ok(Box::new(TiledEncoder::new(encoder, tiling, compiler.models.vae.config.scale_factor())))
        })
    }

    /// A part of the step-invariant conditioning.
    pub(super) fn conditioner(
        &mut self,
        part: ConditioningPart,
        plan: &DenoisePlan,
        placement: Placement,
    ) -> Result<&mut dyn Executable> {
        let (compiler, plan) = (self.compiler, plan.conditioning(part));
        let key = ExecutableKey::Conditioner(part, plan.clone(), placement);
        self.cache.executable(key, || {
            let graph = compiler.condition_graph(part, &plan)?;
            match placement {
                Placement::Device => compiler.device.compile_conditioner(graph),
                Placement::Host => compiler.device.compile(graph),
            }
        })
    }

    /// The denoise loop of a plan, with room for what was planned to share it.
    pub(super) fn denoise_loop(&mut self, plan: &DenoisePlan, placement: Placement) -> Result<&mut dyn DenoiseLoop> {
        let (plan, image_rows) = self.cache.widened(plan);
        let (compiler, shape) = (self.compiler, &plan.shape);
        let spec = LoopSpec { image_rows, ..compiler.loop_spec(&plan) };
        let key = LoopKey { shape: shape.clone(), placement };
        self.cache.denoise_loop(key, &spec, || {
            let graph = compiler.unet_graph(shape)?;
            let compiled = match placement {
                Placement::Device => compiler.device_loop(graph, shape, &spec),
                Placement::Host => on_host(compiler.device, graph, &spec),
            };
            compiled.map_err(|error| compiler.size_that_fits("denoise", [shape.height, shape.width], error))
        })
    }

    /// The denoise loops for so many images of a plan, as many at once as may share an evaluation and the memory has room for.
    pub(super) fn denoise_loops(&mut self, plan: &DenoisePlan, placement: Placement, images: usize) -> Result<()> {
        let latent = [plan.shape.height, plan.shape.width];
        loop {
            let at_once = self.most_images(latent).min(images);
            let compiled = self.denoise_loop(&plan.of_images(at_once), placement).map(drop);
            match (compiled, images % at_once) {
                (Err(Error::Memory { .. }), _) if at_once > 1 => self.cache.limit_images(latent, at_once.div_ceil(2)),
                (Ok(()), rest) if rest > 0 => return self.denoise_loop(&plan.of_images(rest), placement).map(drop),
                (result, _) => return result,
            }
        }
    }

    /// The most images of that height and width in latents that share an evaluation.
    pub(super) fn most_images(&self, latent: [usize; 2]) -> usize {
        self.compiler.most_images(latent).min(self.cache.images_limit(latent)).max(1)
    }

    /// The decoder of latents of that height and width.
    pub(super) fn image_decoder(&mut self, latent: [usize; 2]) -> Result<&mut dyn ImageDecoder> {
        self.image_decoder_on(self.compiler.device, VaeKey::new(latent))
    }

    /// The same in f32; `None` where that is its type.
    pub(super) fn upcast_image_decoder(&mut self, latent: [usize; 2]) -> Result<Option<&mut dyn ImageDecoder>> {
        let Some(device) = self.compiler.device.upcast_vae() else { return Ok(None) };
        self.image_decoder_on(device.as_ref(), VaeKey::upcast(latent)).map(Some)
    }

    fn image_decoder_on(&mut self, device: &dyn Device, key: VaeKey) -> Result<&mut dyn ImageDecoder> {
        let (compiler, latent) = (self.compiler, key.latent);
        self.cache.decoder(key, || {
            let (tiling, rounding) = (compiler.tiling(latent), compiler.pixel_rounding());
            let compiled = device.compile_image_decoder(compiler.decoder_graph(tiling.tile())?, rounding);
            let decoder = compiled.map_err(|error| compiler.size_that_fits("decode", latent, error))?;
            if tiling.is_whole() {
                return Ok(decoder);
            }
            Ok(Box::new(TiledDecoder::new(decoder, tiling, rounding, compiler.models.vae.config.scale_factor())))
        })
    }

    /// The loops of a request's steps by their plans, with those of the requests under way that it may join.
    pub(super) fn planned_loops(&self, plan: &DenoisePlan, unguided: Option<&DenoisePlan>) -> PlannedLoops {
        PlannedLoops::new(plan, self.under_way.iter().flatten().chain(unguided))
    }

    /// Whether decoder and denoise loop of a plan are there, the latter of one image or more.
    pub(super) fn has(&self, plan: &DenoisePlan, placement: Placement) -> bool {
        let key = LoopKey { shape: plan.shape.clone(), placement };
        self.cache.has(&key, &self.compiler.loop_spec(plan))
    }
}

fn on_host(device: &dyn Device, graph: Graph, spec: &LoopSpec) -> Result<Box<dyn DenoiseLoop>> {
    Ok(Box::new(HostDenoiseLoop::new(device.compile(graph)?, spec)?))
}

impl Compiler<'_> {
    /// The most images of that height and width in latents that share an evaluation, where there is memory for it.
    pub(super) fn most_images(&self, [height, width]: [usize; 2]) -> usize {
        let by_size = (self.device.batch_latents() / (height * width).max(1)).clamp(1, MAX_IMAGES);
        self.max_batch.unwrap_or(by_size)
    }

    /// The rows of an encoder's executable for so many: a power of two, up to the most that the device takes at once.
    pub(super) fn encoder_rows(&self, rows: usize) -> usize {
        let most = self.device.encoder_rows().max(1);
        rows.min(most).next_power_of_two().min(most)
    }

    pub(super) fn loop_spec(&self, plan: &DenoisePlan) -> LoopSpec {
        plan.loop_spec(&self.models.unet.config, self.max_noise_bytes)
    }

    /// The tiles of latents of that height and width.
    fn tiling(&self, latent: [usize; 2]) -> Tiling {
        Tiling::new(latent, self.tile.unwrap_or(usize::MAX))
    }

    /// The same with tiles of 512 pixels, where latents of that height and width are not in tiles yet and would then be.
    pub(super) fn in_tiles(&self, latent: [usize; 2]) -> Option<Self> {
        let tile = (512 / self.models.vae.config.scale_factor()).max(8);
        let tiled = Self { tile: Some(tile), ..*self };
        (self.tile.is_none() && !tiled.tiling(latent).is_whole()).then_some(tiled)
    }

    fn pixel_rounding(&self) -> PixelRounding {
        if self.compat.truncates_pixels { PixelRounding::Truncate } else { PixelRounding::Nearest }
    }

    /// The text encoder that leaves out `skip` layers from the end, beyond the last one.
    ///
    /// # Errors
    /// [`Error::Parameter`] where it has not as many layers.
    pub(super) fn text_encoder_key(&self, encoder: usize, skip: usize, masked: bool) -> Result<TextEncoderKey> {
        let all = self.models.text[encoder].config.num_hidden_layers;
        let layers = all.checked_sub(skip.saturating_add(1)).filter(|layers| *layers > 0);
        let what = || format!("{skip} given; the text encoder has {all} layers");
        let layers = layers.ok_or_else(|| Error::parameter(Field::ClipSkip, what()))?;
        Ok(TextEncoderKey { encoder, layers, masked })
    }

    fn text_graph(&self, key: TextEncoderKey, rows: usize) -> Result<Graph> {
        let TextEncoderKey { encoder, layers, masked } = key;
        let model = &self.models.text[encoder];
        let tokens = self.models.tokenizers[encoder].max_length();
        let scope = self.models.loras.text(encoder, Scope::new(model.weights.clone()));
        let graph = clip_text(
            &model.config,
            &scope,
            ClipTextShape { rows, tokens, depth: layers, pooled: encoder == 1, masked },
        )?;
        scope.finish("text encoder")?;
        Ok(graph)
    }

    fn image_graph(&self, images: usize) -> Result<Graph> {
        let vision = self.models.image_encoder()?;
        let scope = Scope::new(vision.weights.clone());
        let graph = clip_vision(&vision.config, &scope, images, self.models.vision_outputs())?;
        scope.finish("image encoder")?;
        Ok(graph)
    }

    /// The projection of one image's embedding, of so many hidden states where the adapter takes them, to image tokens.
    pub(super) fn projection_graph(&self, adapter: &Model<AdapterConfig>, positions: usize) -> Result<Graph> {
        let scope = Scope::new(adapter.weights.clone());
        let graph = Adapter { config: &adapter.config, scope: &scope, positions }.projection()?;
        scope.finish("IP-Adapter")?;
        Ok(graph)
    }

    fn condition_graph(&self, part: ConditioningPart, plan: &DenoisePlan) -> Result<Graph> {
        let unet = &self.models.unet;
        let scope = self.models.loras.unet(Scope::new(unet.weights.clone()));
        let used: Vec<_> = plan.adapters.iter().map(|&a| &self.models.adapters[a]).collect();
        let scopes: Vec<Scope> = used.iter().map(|a| Scope::new(a.weights.clone())).collect();
        let adapters: Vec<Adapter<'_>> = used
            .iter()
            .zip(&scopes)
            .map(|(a, scope)| Adapter { config: &a.config, scope, positions: plan.positions })
            .collect();
        let graph = conditioning(&unet.config, &scope, &plan.shape, plan.max_steps, &adapters, &[part])?;
        scope.finish("UNet")?;
        scopes.iter().try_for_each(|s| s.finish("IP-Adapter").map(drop))?;
        Ok(graph)
    }

    /// The device's own denoise loop for a denoiser of that shape.
    fn device_loop(&self, graph: Graph, shape: &UnetShape, spec: &LoopSpec) -> Result<Box<dyn DenoiseLoop>> {
        let parts = self.device.row_parts(&graph);
        if parts.len() < 2 {
            return self.device.compile_denoise_loop(graph, spec);
        }
        let part = |batch| self.unet_graph(&UnetShape { batch, ..shape.clone() });
        let parts = parts.into_iter().map(part).collect::<Result<_>>()?;
        self.device.compile_denoise_parts(graph, parts, spec)
    }

    fn unet_graph(&self, shape: &UnetShape) -> Result<Graph> {
        let unet = &self.models.unet;
        let scope = self.models.loras.unet(Scope::new(unet.weights.clone()));
        let graph = denoiser(&unet.config, &scope, shape, self.compat)?;
        scope.finish("UNet")?;
        Ok(graph)
    }

    fn vae_encoder_graph(&self, latent: [usize; 2]) -> Result<Graph> {
        let config = &self.models.vae.config;
        if let Some(encoder) = &self.models.taesd.encoder {
            return encoder.graph(latent);
        }
        let [height, width] = latent.map(|side| side * config.scale_factor());
        let scope = Scope::new(self.models.vae_encoder.clone());
        let graph = vae_encoder(config, &scope, height, width)?;
        scope.finish("VAE encoder")?;
        Ok(graph)
    }

    fn decoder_graph(&self, [height, width]: [usize; 2]) -> Result<Graph> {
        if let Some(decoder) = &self.models.taesd.decoder {
            return decoder.graph([height, width]);
        }
        let vae = &self.models.vae;
        let scope = Scope::new(vae.weights.clone());
        let graph = vae_decoder(&vae.config, &scope, height, width, self.compat)?;
        scope.finish("VAE decoder")?;
        Ok(graph)
    }

    /// The bytes of the device's own memory that executables take: those of a plan, a conditioner for each of these plans, of which it is the
    /// first, and a denoise loop for each of those, of images of so many rows or more; `None` where the device has none of its own.
    pub(super) fn estimate(
        &self,
        plans: &[DenoisePlan],
        (loops, image_rows): (&[DenoisePlan], usize),
        placement: Placement,
        encoders: &EncoderPlan,
    ) -> Result<Option<MemoryEstimate>> {
        if self.device.memory()? == DeviceMemory::Host {
            return Ok(None);
        }
        let mut staging = 0;
        let mut bytes = |graphs: Vec<(Graph, Role)>| {
            let MemoryRequirement { bytes, staging: needed } = self.device.memory_requirement(graphs)?;
            staging = needed.max(staging);
            Ok::<u64, Error>(bytes)
        };
        let plain = |graph: Graph| (graph, Role::Plain);
        let of_rows =
            |key: TextEncoderKey, rows: usize| sizes(rows).map(move |rows| self.text_graph(key, rows).map(plain));
        let text = encoders.text.iter().flat_map(|(key, rows)| of_rows(*key, *rows)).collect::<Result<Vec<_>>>()?;
        let text = bytes(text)?;
        let image = sizes(encoders.images).map(|images| self.image_graph(images).map(plain));
        let image = bytes(image.collect::<Result<Vec<_>>>()?)?;
        let Some(plan) = plans.first() else { return Err(Error::Graph("an estimate of no plan".into())) };
        let latent = self.tiling([plan.shape.height, plan.shape.width]).tile();
        let encode = if encoders.vae { bytes(vec![(self.vae_encoder_graph(latent)?, Role::Encode)])? } else { 0 };
        let condition = if placement == Placement::Device { Role::Condition } else { Role::Plain };
        let part = |(plan, part): (&DenoisePlan, ConditioningPart)| {
            Ok::<_, Error>((self.condition_graph(part, &plan.conditioning(part))?, condition.clone()))
        };
        let parts = plans.iter().flat_map(|plan| plan.conditioning_parts().iter().map(move |part| (plan, *part)));
        let condition = bytes(parts.map(part).collect::<Result<Vec<_>>>()?)?;
        let denoise = |plan: &DenoisePlan| match placement {
            Placement::Device => Role::Denoise(LoopSpec { image_rows, ..self.loop_spec(plan) }),
            Placement::Host => Role::Plain,
        };
        let one = |plan: &DenoisePlan| Ok::<_, Error>((self.unet_graph(&plan.shape)?, denoise(plan)));
        let denoise = bytes(loops.iter().map(one).collect::<Result<Vec<_>>>()?)?;
        let decode = bytes(vec![(self.decoder_graph(latent)?, Role::Decode(self.pixel_rounding()))])?;
        Ok(Some(MemoryEstimate { text, image, encode, condition, denoise, decode, staging }))
    }

    /// The bytes of a conditioning's results: the denoiser's inputs that the conditioner makes.
    pub(super) fn conditioning_bytes(&self, plan: &DenoisePlan) -> Result<u64> {
        let mut bytes = 0;
        for part in plan.conditioning_parts() {
            let graph = self.condition_graph(*part, &plan.conditioning(*part))?;
            bytes += graph.outputs.iter().map(|(_, id)| graph.node(*id).len() as u64 * 4).sum::<u64>();
        }
        Ok(bytes)
    }

    /// Names a size that would fit where an executable for this one does not: its memory grows with the number of pixels.
    fn size_that_fits(&self, stage: &'static str, latent: [usize; 2], error: Error) -> Error {
        let Error::Memory { need, have, hint, .. } = error else { return error };
        // Memory in pieces, or a driver that does not say how much it needs: no size follows from that.
        if need <= have {
            return Error::Memory { stage, need, have, hint };
        }
        let factor = self.models.vae.config.scale_factor();
        // A little less, for what does not shrink.
        let ratio = (0.9 * have as f64 / need as f64).sqrt();
        let [h, w] = latent.map(|side| ((side * factor) as f64 * ratio) as usize / 64 * 64);
        let hint = match h.min(w) {
            0 => "free memory or ask for a smaller image".into(),
            _ => Message::from(format!("about {w}x{h} (width x height) would fit")),
        };
        // The VAE's stages need not shrink the image.
        let hint = match self.in_tiles(latent) {
            Some(_) if stage != "denoise" => hint.text(", or set ").field(Field::VaeTiling),
            _ => hint,
        };
        Error::Memory { stage, need, have, hint }
    }
}

/// The encoders that a request runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct EncoderPlan {
    /// The text encoders, each once, with the most rows that it takes at once.
    pub(super) text: Vec<(TextEncoderKey, usize)>,
    /// The most images that the image encoder takes at once; 0 where it does not run.
    pub(super) images: usize,
    /// Whether the VAE's encoder runs.
    pub(super) vae: bool,
}

impl EncoderPlan {
    /// The encoders for rows of text, each with its encoder, and for so many images.
    pub(super) fn new(
        compiler: &Compiler<'_>,
        rows: impl IntoIterator<Item = (TextEncoderKey, usize)>,
        images: usize,
        vae: bool,
    ) -> Self {
        let mut text: Vec<(TextEncoderKey, usize)> = Vec::new();
        for (key, rows) in rows {
            match text.iter_mut().find(|(known, _)| *known == key) {
                Some((_, all)) => *all += rows,
                None => text.push((key, rows)),
            }
        }
        for (key, rows) in &mut text {
            // With tokens that are hidden from all it takes one row at a time.
            *rows = if key.masked { 1 } else { compiler.encoder_rows(*rows) };
        }
        Self { text, images: if images > 0 { compiler.encoder_rows(images) } else { 0 }, vae }
    }

    /// The same where what several requests encode goes through the encoders together.
    pub(super) fn of_more(mut self, compiler: &Compiler<'_>) -> Self {
        let most = compiler.encoder_rows(usize::MAX);
        self.text.iter_mut().filter(|(key, _)| !key.masked).for_each(|(_, rows)| *rows = most);
        self.images = if self.images > 0 { most } else { 0 };
        self
    }
}

/// The numbers of rows for which an encoder of so many is compiled: earlier requests may have the results of some of them.
pub(super) fn sizes(rows: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), |rows| Some(2 * rows)).take_while(move |size| *size <= rows)
}

//! Help texts.

use crate::args::{Failure, usage};
use crate::{Outcome, terminal};

/// Prints a help text.
pub fn print(text: &str) -> Outcome {
    terminal::print(text)
}

/// `braid help [COMMAND]`.
pub fn run(mut parser: lexopt::Parser) -> Outcome {
    let name = match parser.next().map_err(usage)? {
        None => return print(BRAID),
        Some(lexopt::Arg::Value(name)) => name.to_string_lossy().into_owned(),
        Some(other) => return Err(crate::args::unexpected(other, "")),
    };
    match name.as_str() {
        "generate" => print(GENERATE),
        "demo" => print(DEMO),
        "inspect" => print(INSPECT),
        "synth" => print(SYNTH),
        "doctor" => print(DOCTOR),
        "help" => print(BRAID),
        _ => Err(Failure::usage(format!("help: `{name}` is no command; see `braid --help`"))),
    }
}

/// `braid --help`.
pub const BRAID: &str = "\
Stable Diffusion XL with IP-Adapter image prompts.

Usage: braid COMMAND [OPTIONS]

Commands:
  generate   draw pictures from a prompt and reference pictures
  demo       draw a sheet with a small built-in model; needs no files
  inspect    say what weight files are, what they hold and what they go with
  synth      write a full-size SDXL of random weights, for measurements
  doctor     say what this machine has
  help       help on a command: braid help generate

Options:
  -h, --help      this text
  -V, --version   the version

Exit status: 0 done; 2 wrong usage; 1 any other failure, with one line on standard
error that says what and where; 130 or 143 when stopped by SIGINT or SIGTERM.
";

/// `braid help generate`.
pub const GENERATE: &str = "\
Draws pictures from a prompt and reference pictures.

Usage: braid generate --model PATH -p TEXT [OPTIONS]

  braid generate --model sdxl.safetensors --clip-vision image_encoder \\
      --ip-adapter ip-adapter_sdxl.safetensors --ip-adapter-image fox.png \\
      -p 'a fox in the snow' -o out.png

Models:
  -m, --model PATH              SDXL checkpoint (.safetensors) or diffusers folder
      --config DIR              a diffusers folder whose configurations are those of a
                                single-file checkpoint
      --clip-vision PATH        image encoder: model.safetensors or its folder
                                [default: image_encoder/ of the model's folder]
      --no-mmap                 read the files into memory instead of mapping them

Image prompts:
      --ip-adapter PATH         an IP-Adapter (.safetensors or .bin); may be repeated
      --ip-adapter-image PATH   a reference picture (PNG, JPEG, WebP); may be repeated,
                                the pictures of one adapter share its softmax
      --ip-adapter-strength F   how much the adapter weighs [default: 1]
      --ip-adapter-blocks SPEC  full, style, layout, style+layout, or JSON as diffusers'
                                set_ip_adapter_scale takes it, such as
                                '{\"up\": {\"block_0\": [0, 1, 0]}}' [default: full]
      --ip-adapter-image-resize WxH
                                stretch every picture (bicubic) before the encoder
  With several adapters, image, strength and blocks belong to the --ip-adapter that they
  follow; those before the first belong to the first. With one the order is free.

Picture:
  -p, --prompt TEXT             what it should show
  -n, --negative-prompt TEXT    what it should not show
  -W, --width N  -H, --height N in pixels [default: the model's own size, mostly 1024]
  -s, --seed N                  0 to 2^64 - 1, or -1 for a random one [default: 0]
  -b, --batch-count N           pictures, of seeds N, N+1, ... [default: 1]

Sampling (a flag wins over the model folder's scheduler, that over the profile's default):
      --steps N                 [default: 50]
      --cfg-scale F             guidance [default: 5]
      --guidance-rescale F      0 to 1 [default: 0]
      --sampling-method M       euler, euler-a, ddim, dpmpp-2m or lcm
      --schedule S              default or karras
      --prediction P            epsilon or v
      --timestep-spacing S      leading, trailing or linspace
      --eta F                   of ddim, 0 to 1
      --clip-skip N             layers that the prompt skips, beyond the last [default: 0]

Arithmetic:
      --compat PROFILE          diffusers or diffsynth: whose results are followed
                                [default: diffusers]
      --rng WHOSE               cpu or cuda: whose torch generator the noise follows
                                [default: cpu]
      --dtype T                 auto, f16, bf16 or f32; on the CPU only the noise's type,
                                f32 only there [default: auto, f16 on CUDA, else f32]
      --vae-dtype T             the same of the VAE, f32 too: exact, slower and twice the
                                memory; no effect on the CPU [default: auto, bf16 on CUDA]
      --device D                auto, cpu, cuda or cuda:N; auto is CUDA where it can be
                                used, else the CPU [default: auto]
      --encoders WHAT           auto, keep or free: whether the encoders stay in the GPU's
                                memory after use [default: auto, where they fit]
  -t, --threads N               CPU threads [default: all cores]

Files:
  -o, --output FILE             .png, .jpg or .webp [default: braid.png]; several pictures
                                are numbered, FILE-0.png, FILE-1.png. PNG carries the
                                parameters as text (AUTOMATIC1111's style) and as JSON
      --latents-in FILE         safetensors with `noise` [N, 4, H/8, W/8] f32, used
                                instead of drawing
      --dump FILE               safetensors of every stage, f32
      --json                    one line of JSON on standard output: files, seeds, device,
                                seconds, peak bytes
";

/// `braid help demo`.
pub const DEMO: &str = "\
Draws a sheet with the bundled model, a small SDXL with an IP-Adapter: three reference
pictures by three prompts, and one picture at image-prompt scales from 0 to 1. Takes a few
seconds. With a prompt or a picture of yours, it draws the row of scales alone.

Usage: braid demo [OPTIONS]

  -o, --output FILE   .png, .jpg or .webp [default: braid-demo.png]
  -p, --prompt TEXT   what to draw: circles, squares, triangles, stars, rings, crosses,
                      hearts, diamonds, moons or flowers; one, 'two' or 'three'; 'big' or
                      'small'; 'on the left', 'at the top', ...; colours; 'on a blue
                      striped background' [default: a big star]
      --image PATH    the reference picture, one whose colours and texture are plain to see
  -s, --seed N        [default: 1]
      --assets DIR    where the bundled model is [default: assets/demo beside the
                      program or in the folder in which Braid was built]
";

/// `braid help inspect`.
pub const INSPECT: &str = "\
Says what weight files are, what they hold, and what they go with.

Usage: braid inspect [--json] FILE...

  FILE is a .safetensors or .bin file, the index of a sharded one, a folder with weights
  or a diffusers folder. Of several files it also says which fit together.
      --json   one line of JSON for each file
";

/// `braid help synth`.
pub const SYNTH: &str = "\
Writes a full-size SDXL of random weights in the published formats: sdxl.safetensors,
image_encoder/ and ip-adapter_sdxl.bin, 11.3 GB in all. Its pictures are noise; its speed
and memory are those of the real one.

Usage: braid synth sdxl DIR [--force]

      --force   replace files that are there
";

/// `braid help doctor`.
pub const DOCTOR: &str = "\
Says what this machine has: processor, memory, devices, and what this build can use.

Usage: braid doctor
";

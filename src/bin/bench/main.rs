//! Throughput and latency: `bench e2e` times whole requests, `bench ops` each operation, `bench roofline` says what a GPU could
//! reach at best, `bench plot` draws them.

#[allow(dead_code)]
#[path = "../braid/args.rs"]
mod args;
mod check;
mod child;
mod cold;
mod e2e;
#[path = "../braid/flags.rs"]
mod flags;
mod gauge;
mod gpus;
mod host;
mod listener;
mod lists;
mod machine;
mod memory;
mod ops;
mod plot;
mod roofline;
mod row;
mod setup;
mod stats;
mod svg;
#[allow(dead_code)]
#[path = "../braid/terminal.rs"]
mod terminal;
mod work;

use args::Failure;
use lexopt::Arg;
use std::process::ExitCode;

const HELP: &str = "\
Measures Braid.

Usage: bench e2e --model PATH [OPTIONS]
       bench cold --model PATH [OPTIONS]
       bench memory --model PATH [OPTIONS]
       bench ops [OPTIONS]
       bench roofline --gpu LIST [OPTIONS]
       bench plot RESULT.json... [-o FILE.svg]

Lists are numbers or ranges with commas between them: 20,50  512..1024+256  64..1024*2

e2e times one request from prompt to picture, again and again: a first run, which builds, runs to
warm up, which are not counted, then -r runs. Every stage must be finite and every run must give
the first one's picture, which is checked before anything is timed and after. Models stay
loaded; what is kept between requests is kept. Lists give a row for every combination; one that
cannot run here has a row that says why, and only if none can is that a failure.

  -m, --model PATH              SDXL checkpoint or diffusers folder; `demo`, the bundled model;
                                `synthetic:sdxl`, random weights of the published sizes made in
                                memory (11.3 GB with encoders and adapter); `synthetic:small`.
                                These three bring an adapter and a reference
      --config DIR              configurations for a single-file checkpoint
      --clip-vision PATH        image encoder
      --ip-adapter PATH         IP-Adapter
      --ip-adapter-image PATH   its reference picture
      --adapter LIST            on, off; both are measured by turns, and the overhead in percent is
                                the median over the pairs [default: on where there is one]
      --device LIST             auto, cpu, cuda, cuda:N; auto is a GPU if usable [default: auto]
      --dtype LIST              f32, f16, bf16, of GPUs [default: f16]; the CPU computes in f32
      --vae-dtype T             the same for the VAE [default: bf16]
      --compat PROFILE          diffusers or diffsynth [default: diffusers]
  -p, --prompt TEXT             [default: a red fox in the snow]
  -n, --steps LIST              [default: 50]
      --cfg-scale F             [default: 5]
      --size LIST               width and height [default: the model's own size]
  -W, --width N  -H, --height N one of them apart
  -b, --batch-count LIST        pictures of a request [default: 1]
      --preset mlperf           20 steps of Euler, guidance 8, 1024x1024, in both scenarios: a row
                                single-stream (one picture, its percentiles) and a row offline (4
                                pictures a request or -b, pictures/s); flags after it win
  -t, --threads N               [default: all cores]
  -r, --repetitions N           [default: 5]
      --warmup N                runs after the first [default: 1]
  -o, --output FORMAT           md, csv, json or jsonl [default: md]

cold starts a process for each sample and follows it to its first picture: start, arguments,
device, map (reading and checking files), programs (planned, on a GPU compiled or loaded), upload
(of weights to a GPU), text, image, condition, first step, other steps, decode, rest; the
warm-up is what the first step takes longer than the others. Files should have been read once
before. memory says for each stage what its programs take as planned and what was taken, in a
process of its own. Both take e2e's flags from --model to --compat, --prompt and --cfg-scale;
--adapter is on or off.

  -n, --steps N                 [default: 4 for cold, 2 for memory]
      --size N  -W N  -H N      [default: the model's own size]
  -r, --repetitions N           processes; cold alone [default: 5]
  -o, --output FORMAT           md, csv, json or jsonl [default: md]

ops times every distinct operation of the models by itself, with random weights and cold caches,
beside what a copy and a large product reach in the same run. It needs no files.

      --parts LIST              of text, image, condition, unet, vae [default: unet,vae]
      --only TEXT               operations with this text in their row, e.g. attention or conv_in
      --size LIST               width and height [default: 1024]
  -b, --batch LIST              rows of the UNet; guidance takes 2 [default: 2]
      --adapter                 with an IP-Adapter and one picture
      --model NAME              sdxl, or small: the same make, for a quick look [default: sdxl]
      --device NAME             auto, cpu, cuda or cuda:N [default: cpu]
      --dtype TYPE              f16 or bf16, on a GPU [default: f16]
  -t, --threads N               [default: all cores]
  -r, --repetitions N           [default: 5]
      --warmup N                [default: 1]
  -o, --output FORMAT           md, csv, json or jsonl [default: md]

roofline needs no device and no model: for a request of SDXL it gives every operation's FLOPs,
bytes, shortest time, kernel, tile and wave efficiency on a GPU, and from them a time.

      --gpu LIST                a100, h100, h200, rtx4090, l40s
      --parts LIST              whose operations are listed [default: unet]
      --size LIST               width and height [default: 1024]
  -b, --batch LIST              rows of the UNet; guidance takes 2 [default: 2]
  -n, --steps N                 evaluations of the UNet for a picture [default: 50]
      --adapter                 with an IP-Adapter and one picture
      --model NAME              sdxl or small [default: sdxl]
      --measured FILE           `bench ops -o json` of that GPU, to stand beside the prediction
  -o, --output FORMAT           md, csv, json or jsonl [default: md]

plot draws results in JSON: of e2e the time by stage, of ops and roofline every operation in
the roofline of its device.

  -o, --output FILE             [default: standard output]
";

fn main() -> ExitCode {
    child::begin();
    terminal::install();
    match std::panic::catch_unwind(run).unwrap_or(Err(Failure::Told(1))) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            if let Some(text) = failure.text() {
                terminal::line("bench: ", &text);
            }
            ExitCode::from(failure.status())
        }
    }
}

fn run() -> Result<(), Failure> {
    let mut parser = args::parser();
    match parser.next().map_err(args::usage)? {
        None => {
            terminal::print(HELP)?;
            Err(Failure::usage("a benchmark is needed: e2e, cold, memory, ops, roofline or plot"))
        }
        Some(Arg::Short('h') | Arg::Long("help")) => terminal::print(HELP),
        Some(Arg::Value(name)) if name == "e2e" => e2e::run(parser),
        Some(Arg::Value(name)) if name == "cold" => cold::run(parser),
        Some(Arg::Value(name)) if name == "memory" => memory::run(parser),
        Some(Arg::Value(name)) if name == "ops" => ops::run(parser),
        Some(Arg::Value(name)) if name == "plot" => plot::run(parser),
        Some(Arg::Value(name)) if name == "roofline" => roofline::run(parser),
        Some(other) => Err(args::unexpected_of(other, "bench --help")),
    }
}

//! Throughput and latency: `bench e2e` times whole requests, `bench ops` each operation, `bench roofline` says what a GPU could
//! reach at best, `bench plot` draws them.

#[allow(dead_code)]
#[path = "../braid/args.rs"]
mod args;
mod e2e;
mod gpus;
mod host;
mod lists;
mod ops;
mod plot;
mod roofline;
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
       bench ops [OPTIONS]
       bench roofline --gpu LIST [OPTIONS]
       bench plot RESULT.json... [-o FILE.svg]

Lists are numbers or ranges with commas between them: 20,50  512..1024+256  64..1024*2

e2e times one request from prompt to picture, again and again: runs to warm up, which are not
counted, then -r runs, each checked against the first. Models stay loaded; what is kept between
requests is kept. Lists give a row for every combination.

  -m, --model PATH              SDXL checkpoint, diffusers folder, or `demo`, the bundled model
      --config DIR              configurations for a single-file checkpoint
      --clip-vision PATH        image encoder
      --ip-adapter PATH         IP-Adapter
      --ip-adapter-image PATH   its reference picture
  -p, --prompt TEXT             [default: a red fox in the snow]
  -n, --steps LIST              [default: 50]
      --cfg-scale F             [default: 5]
      --size LIST               width and height [default: the model's own size]
  -W, --width N  -H, --height N one of them apart
  -b, --batch-count LIST        pictures of a request [default: 1]
      --preset mlperf           20 steps of Euler, guidance 8, 1024x1024; flags after it win. Its
                                single stream is -b 1 and the percentiles, its offline a larger -b
                                and pictures/s
  -t, --threads N               [default: all cores]
  -r, --repetitions N           [default: 5]
      --warmup N                [default: 1]
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
            Err(Failure::usage("a benchmark is needed: e2e, ops, roofline or plot"))
        }
        Some(Arg::Short('h') | Arg::Long("help")) => terminal::print(HELP),
        Some(Arg::Value(name)) if name == "e2e" => e2e::run(parser),
        Some(Arg::Value(name)) if name == "ops" => ops::run(parser),
        Some(Arg::Value(name)) if name == "plot" => plot::run(parser),
        Some(Arg::Value(name)) if name == "roofline" => roofline::run(parser),
        Some(other) => Err(args::unexpected_of(other, "bench --help")),
    }
}

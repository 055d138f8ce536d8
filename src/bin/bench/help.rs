//! The help text, from the flags of all benchmarks.

use crate::{child, e2e, ops, plot, roofline, serve, setup, work_options};
use braid::cli::flag::list;

const ABOUT: &str = "\
Measures Braid.

Usage: bench e2e --model PATH [OPTIONS]
       bench serve --model PATH [OPTIONS]
       bench cold --model PATH [OPTIONS]
       bench memory --model PATH [OPTIONS]
       bench ops [OPTIONS]
       bench roofline --gpu LIST [OPTIONS]
       bench plot RESULT.json... [-o FILE.svg]

Lists are numbers or ranges with commas between them: 20,50  512..1024+256  64..1024*2

e2e times one request from prompt to image, again and again: a first run, which compiles, runs to
warm up, which are not counted, then -r runs. Every stage must be finite and every run must give
the first one's image, which is checked before anything is timed and after. Models and executables
stay; prompts and references are encoded anew. Lists give a row for every combination; one that
cannot run here has a row that says why, and only if none can is that a failure.
";

const CHILD: &str = "\
cold starts a process for each sample and follows it to its first image: start, arguments,
device, map (reading and checking files), programs (planned, on a GPU compiled or loaded), upload
(of weights to a GPU), text, image, condition, first step, other steps, decode, rest; the warm-up
is the time by which the first step exceeds the others. Files should have been read once before.
memory says for each stage what its executables take as planned and what was taken, in a process
of its own. Both take the flags of e2e's first list.
";

const SERVE: &str = "\
serve sends requests of one image to a queue (`Engine`) at times that do not wait for results, those
of a Poisson process, and gives the latency from the time at which a request was to come, by
policy: one at a time, and each --max-batch with each --gather. All policies get the same requests
at the same times, in turn, round by round; ratios are to one at a time, the median over the
rounds. A request must have the same image in all of them. It takes the flags of e2e's first list
and of cold's, and these, of which --max-batch is another one than e2e's:
";

const OPS: &str = "\
ops times every distinct operation of the models by itself, with random weights and cold caches,
beside what a copy and a large product reach in the same run. It needs no files.
";

const ROOFLINE: &str = "\
roofline needs no device and no model: for a request of SDXL it gives every operation's FLOPs,
bytes, shortest time, kernel, tile and wave efficiency on a GPU, and from them a time. With
--stream it gives the time of a frame and of a new reference image between two frames.
";

const WORK: &str = "Both ops and roofline take:\n";

const PLOT: &str = "\
plot draws results in JSON: of e2e the time by stage, of ops and roofline every operation in
the roofline of its device.
";

/// The whole text.
pub fn text() -> String {
    [
        format!("{ABOUT}\n{}{}\n{}", list(setup::SHARED), list(setup::FLAGS), list(e2e::FLAGS)),
        format!("{CHILD}\n{}{}", list(child::FLAGS), list(child::REPEATED)),
        format!("{SERVE}\n{}", list(serve::FLAGS)),
        format!("{OPS}\n{}", list(ops::FLAGS)),
        format!("{ROOFLINE}\n{}", list(roofline::FLAGS)),
        format!("{WORK}\n{}", list(work_options::FLAGS)),
        format!("{PLOT}\n{}", list(plot::FLAGS)),
    ]
    .join("\n")
}

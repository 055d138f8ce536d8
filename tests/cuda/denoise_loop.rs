//! All steps of a denoise loop on the device, against the steps made one by one with the schedulers' own arithmetic.

use super::ptx::PtxDriver;
use super::{compiled, denoise, outputs, relative, scope, values};
use braid::device::cpu::Cpu;
use braid::device::cuda::driver::{CallCounts, Driver};
use braid::device::cuda::{CudaDenoiseLoop, CudaDevice};
use braid::device::host::HostDenoiseLoop;
use braid::device::{Compiled, DenoiseInputs, DenoiseLoop, DenoiseOutput, Device, ImageInFlight, LoopSpec, RowAxis};
use braid::graph::{Builder, Graph};
use braid::schedulers::{SchedulerConfig, SchedulerKind, StepTable, classifier_free_guidance, step};
use braid::tensor::DType;
use braid::{Error, Result};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Latents of several blocks in every kernel of a step.
const SIDES: [usize; 2] = [16, 33];
const N: usize = SIDES[0] * SIDES[1] * 4;
const WIDTH: usize = 8;

/// A denoiser in small: rows of their own for each step are added within it.
fn graph(rows: usize) -> Graph {
    let s = scope(&[
        ("in.weight", &[WIDTH, 4, 3, 3], 1),
        ("mid.weight", &[WIDTH, WIDTH, 3, 3], 2),
        ("mid.bias", &[WIDTH], 3),
        ("out.weight", &[4, WIDTH, 3, 3], 4),
    ]);
    let mut b = Builder::new();
    let x = b.input("sample", &[rows, SIDES[0], SIDES[1], 4]);
    let shift = b.input("shift", &[rows, SIDES[0], SIDES[1], WIDTH]);
    let time = b.input("time", &[rows, WIDTH]);
    let x = b.conv2d_no_bias(x, &s.pp("in"), WIDTH, 3, 1);
    let x = b.conv2d(x, &s.pp("mid"), WIDTH, 3, 1);
    let x = b.broadcast_add(x, time);
    let x = b.add(x, shift);
    let x = b.conv2d_no_bias(x, &s.pp("out"), 4, 3, 1);
    b.output("output", x);
    b.finish().unwrap()
}

fn steps(noise: bool) -> LoopSpec {
    LoopSpec { max_steps: 15, varying: 2..3, noise, row_axes: Vec::new(), image_rows: 2 }
}

/// The result of a denoise loop, all on the host.
#[derive(Debug, Clone, PartialEq)]
struct Denoised {
    latents: Vec<f32>,
    first_output: Vec<f32>,
    not_finite: Option<usize>,
}

impl Denoised {
    fn new(denoised: DenoiseOutput) -> Result<Self> {
        let latents = denoised.latents.read()?.into_owned();
        Ok(Self { latents, first_output: denoised.first_output, not_finite: denoised.not_finite })
    }
}

/// The callback of previews.
type Show<'a> = &'a mut dyn FnMut(usize, &[f32]) -> Result<()>;

/// The inputs of one image.
struct Case {
    table: StepTable,
    rows: usize,
    guidance: [f32; 2],
    latents: Vec<f32>,
    shift: Vec<f32>,
    time: Vec<f32>,
    noise: Vec<Vec<f32>>,
}

impl Case {
    fn new(method: SchedulerKind, count: usize, rows: usize, seed: u32) -> Self {
        let table = SchedulerConfig::sdxl_default().with_kind(method).unwrap().table(count).unwrap();
        let fresh = |i: usize| values(N, seed + 10 + i as u32);
        let draws = |(i, row): (usize, &braid::schedulers::StepCoefficients)| match row.adds_noise() {
            true => fresh(i),
            false => Vec::new(),
        };
        let noise = table.steps.iter().enumerate().map(draws).collect();
        Self {
            rows,
            guidance: [3.0, 0.7],
            latents: values(N, seed).iter().map(|x| x * table.init_noise_sigma).collect(),
            shift: values(rows * SIDES[0] * SIDES[1] * WIDTH, seed + 1),
            time: values(table.steps.len() * rows * WIDTH, seed + 2),
            noise,
            table,
        }
    }

    /// On the device; `reached` as the executable gives it.
    fn sample(
        &self,
        executable: &mut CudaDenoiseLoop,
        reached: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Denoised> {
        self.previewed(executable, reached, None)
    }

    fn previewed(
        &self,
        executable: &mut dyn DenoiseLoop,
        reached: &mut dyn FnMut(usize) -> Result<()>,
        preview: Option<(usize, Show<'_>)>,
    ) -> Result<Denoised> {
        let (every, mut show) = preview.unzip();
        let denoised = denoise(executable, self.inputs(every), &mut |done, clean| match (clean, &mut show) {
            (Some(clean), Some(show)) => show(done, clean),
            (Some(_), None) => panic!("a preview that nobody asked for"),
            (None, _) => reached(done),
        })?;
        Denoised::new(denoised)
    }

    fn inputs(&self, preview_every: Option<usize>) -> DenoiseInputs {
        let noise = self.noise.clone();
        let inputs: [Vec<f32>; 3] = [Vec::new(), self.shift.clone(), self.time.clone()];
        DenoiseInputs {
            rows: self.rows,
            inputs: inputs.into_iter().map(|values| Arc::new(values.into())).collect(),
            table: self.table.steps.as_slice().into(),
            guidance_scale: self.guidance[0],
            guidance_rescale: self.guidance[1],
            latents: self.latents.clone(),
            extra: Vec::new(),
            kept: None,
            noise: Box::new(move |step| noise[step].clone()),
            capture_first: true,
            preview_every,
        }
    }

    /// Step by step on that device.
    fn stepwise(&self, device: &dyn Device) -> Vec<f32> {
        let mut executable = device.compile(graph(self.rows)).unwrap();
        let (mut x, mut history, mut out) = (self.latents.clone(), vec![0.0; 3 * N], vec![0.0; N]);
        for (i, row) in self.table.steps.iter().enumerate() {
            let sample = x.iter().map(|x| x * row.input_scale).collect::<Vec<_>>().repeat(self.rows);
            let time = &self.time[i * self.rows * WIDTH..][..self.rows * WIDTH];
            let output = outputs(executable.as_mut(), &[&sample[..], &self.shift, time]).remove(0);
            match self.rows {
                2 => classifier_free_guidance(&output[N..], &output[..N], self.guidance[0], self.guidance[1], &mut out)
                    .unwrap(),
                _ => out.copy_from_slice(&output),
            }
            step(row, &mut x, &out, &mut history, Some(&self.noise[i])).unwrap();
        }
        x
    }
}

/// Previews are those of the host's loop over the same kernels, and the latents those without previews; what shows one may run
/// executables of the device.
#[test]
fn previews() {
    if !compiled() {
        return;
    }
    for (rows, method) in [(1, SchedulerKind::EulerAncestral), (2, SchedulerKind::Heun)] {
        let device = CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap().with_cublaslt(false);
        let mut own = device.compile_loop(graph(rows), steps(true)).unwrap();
        let mut host = HostDenoiseLoop::new(device.compile(graph(rows)).unwrap(), &steps(true)).unwrap();
        let mut other = device.compile(graph(rows)).unwrap();
        let case = Case::new(method, 4, rows, 31);
        let want = case.sample(&mut own, &mut |_| Ok(())).unwrap();
        let mut seen = [Vec::new(), Vec::new()];
        for (seen, on) in seen.iter_mut().zip([&mut own as &mut dyn DenoiseLoop, &mut host]) {
            let time = &case.time[..rows * WIDTH];
            let mut show = |done: usize, clean: &[f32]| {
                outputs(other.as_mut(), &[&case.latents.repeat(rows)[..], &case.shift, time]);
                seen.push((done, clean.to_vec()));
                Ok(())
            };
            let got = case.previewed(on, &mut |_| Ok(()), Some((3, &mut show))).unwrap();
            assert!(relative(&got.latents, &want.latents) <= 1e-3);
        }
        assert_eq!(case.sample(&mut own, &mut |_| Ok(())).unwrap(), want);
        let [own, host] = seen;
        assert_eq!(own.len(), case.table.steps.len() / 3);
        for ((done, own), (same, host)) in own.iter().zip(&host) {
            let error = relative(own, host);
            println!("{method}, preview after {done}: {error:.1e} from the host's");
            assert!(done == same && error <= 1e-3, "{method} {done}: {error:.1e}");
        }
        // An error of what shows them ends the run, and the loop stays usable.
        let mut fails = |_: usize, _: &[f32]| Err(Error::Cancelled);
        let mut own = device.compile_loop(graph(rows), steps(true)).unwrap();
        let ended = case.previewed(&mut own, &mut |_| Ok(()), Some((2, &mut fails)));
        assert!(matches!(ended, Err(Error::Cancelled)));
        assert_eq!(case.sample(&mut own, &mut |_| Ok(())).unwrap(), want);
    }
}

/// Every scheduler, guided and not: the device's steps are those of the host on the same kernels, and those of the CPU within
/// what f16 costs.
#[test]
fn step_parity() {
    if !compiled() {
        return;
    }
    for rows in [1, 2] {
        let device = CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap().with_cublaslt(false);
        let mut executable = device.compile_loop(graph(rows), steps(true)).unwrap();
        // 5 steps, then 8, in the same executable; up to 15 evaluations.
        for (k, &method) in SchedulerKind::ALL.iter().enumerate() {
            let case = Case::new(method, if k % 2 == 0 { 5 } else { 8 }, rows, 100 * k as u32 + 7);
            let got = case.sample(&mut executable, &mut |_| Ok(())).unwrap();
            let host = relative(&got.latents, &case.stepwise(&device));
            let cpu = relative(&got.latents, &case.stepwise(&Cpu::new(Some(1))));
            println!("{method} of {rows}: {host:.1e} from the host's steps, {cpu:.1e} from the CPU");
            assert!(host <= 1e-3 && cpu <= 3e-3 && got.not_finite.is_none(), "{method}: {host:.1e}, {cpu:.1e}");
            assert_eq!(got.first_output.len(), rows * N);
        }
    }
}

/// A request leaves nothing behind: with one difference to the request before, the result is that of an executable of its own.
#[test]
fn one_difference_to_the_request_before() {
    if !compiled() {
        return;
    }
    let compile = || {
        let device = CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap().with_cublaslt(false);
        device.compile_loop(graph(2), steps(true)).unwrap()
    };
    let base = || Case::new(SchedulerKind::Dpmpp2M, 5, 2, 40);
    let other = || Case::new(SchedulerKind::Dpmpp2M, 5, 2, 900);
    let cases: [(&str, Case); 9] = [
        ("another scheduler with as many steps", Case { table: scheduled(SchedulerKind::Ddim, 5), ..base() }),
        (
            "a scheduler that adds noise",
            Case { noise: noises(5), table: scheduled(SchedulerKind::EulerAncestral, 5), ..base() },
        ),
        (
            "fewer steps",
            Case { table: scheduled(SchedulerKind::Dpmpp2M, 4), time: base().time[..4 * 2 * WIDTH].to_vec(), ..base() },
        ),
        ("another guidance scale", Case { guidance: [7.0, 0.7], ..base() }),
        ("no rescale", Case { guidance: [3.0, 0.0], ..base() }),
        ("other latents", Case { latents: other().latents, ..base() }),
        ("another condition", Case { shift: other().shift, ..base() }),
        ("other times", Case { time: other().time, ..base() }),
        ("nothing", base()),
    ];
    let mut used = compile();
    let first = base().sample(&mut used, &mut |_| Ok(())).unwrap();
    for (name, case) in cases {
        let own = case.sample(&mut compile(), &mut |_| Ok(())).unwrap();
        assert_eq!(own == first, name == "nothing", "{name} changes nothing");
        assert!(case.sample(&mut used, &mut |_| Ok(())).unwrap() == own, "{name}: the request before shows");
        assert!(base().sample(&mut used, &mut |_| Ok(())).unwrap() == first, "{name} shows in the request after it");
    }
}

fn scheduled(kind: SchedulerKind, count: usize) -> StepTable {
    SchedulerConfig::sdxl_default().with_kind(kind).unwrap().table(count).unwrap()
}

fn noises(count: usize) -> Vec<Vec<f32>> {
    (0..count as u32).map(|i| values(N, 70 + i)).collect()
}

fn calls(after: CallCounts, before: CallCounts) -> CallCounts {
    CallCounts {
        launches: after.launches - before.launches,
        gemms: after.gemms - before.gemms,
        graph_launches: after.graph_launches - before.graph_launches,
        copies: after.copies - before.copies,
        allocations: after.allocations - before.allocations,
        synchronizations: after.synchronizations - before.synchronizations,
        waits: after.waits - before.waits,
        captures: after.captures - before.captures,
    }
}

/// N steps are N graph launches and nothing else, from the first request on where the executable was warmed.
#[test]
fn launched_loop() {
    if !compiled() {
        return;
    }
    let driver = Arc::new(PtxDriver::new());
    let device = CudaDevice::new(driver.clone(), DType::BF16).unwrap();
    let mut executable = device.compile_loop(graph(2), steps(false)).unwrap();
    executable.warmup().unwrap();
    assert_eq!(driver.calls().captures, 1);
    // Warmed twice is warmed once.
    let before = driver.calls();
    executable.warmup().unwrap();
    assert_eq!(calls(driver.calls(), before), CallCounts { synchronizations: 1, ..CallCounts::default() });
    let mut first = None;
    for round in 0..2 {
        let case = Case::new(SchedulerKind::Dpmpp2M, 6, 2, 3);
        let before = driver.calls();
        let (mut seen, mut at) = (Vec::new(), Vec::new());
        let denoised = case.sample(&mut executable, &mut |done| {
            seen.push(done);
            at.push(driver.calls());
            Ok(())
        });
        let denoised = denoised.unwrap();
        // Two steps ahead, then the last two.
        assert_eq!(seen, [0, 0, 1, 2, 3, 4, 6]);
        // From the second step on. Everything waits for events alone.
        let within = calls(at[5], at[0]);
        assert_eq!(within, CallCounts { graph_launches: 5, waits: 4, ..CallCounts::default() });
        assert_eq!(calls(at[6], at[5]).waits, 1);
        let all = calls(driver.calls(), before);
        assert_eq!((all.graph_launches, all.allocations, all.captures), (6, 0, 0), "round {round}");
        assert_eq!(*first.get_or_insert(denoised.clone()), denoised);
    }
    // Without `warm` the first step goes launch by launch, and the rest is the same.
    let mut cold = device.compile_loop(graph(2), steps(false)).unwrap();
    let case = Case::new(SchedulerKind::Dpmpp2M, 6, 2, 3);
    assert_eq!(Some(case.sample(&mut cold, &mut |_| Ok(())).unwrap()), first);
    // So it is where the driver does not capture.
    let direct = CudaDevice::new(Arc::new(PtxDriver::new().direct()), DType::BF16).unwrap();
    let mut direct = direct.compile_loop(graph(2), steps(false)).unwrap();
    assert_eq!(Some(case.sample(&mut direct, &mut |_| Ok(())).unwrap()), first);
}

/// An error of the caller's ends the loop within two steps, and the executable is as good as before.
#[test]
fn cancellation_within_two_steps() {
    if !compiled() {
        return;
    }
    let driver = Arc::new(PtxDriver::new());
    let device = CudaDevice::new(driver.clone(), DType::F16).unwrap();
    let mut executable = device.compile_loop(graph(1), steps(false)).unwrap();
    let case = Case::new(SchedulerKind::Euler, 8, 1, 5);
    let whole = case.sample(&mut executable, &mut |_| Ok(())).unwrap();
    let before = driver.calls();
    let cancelled = case.sample(&mut executable, &mut |done| if done >= 2 { Err(Error::Cancelled) } else { Ok(()) });
    assert!(matches!(cancelled, Err(Error::Cancelled)), "{cancelled:?}");
    // Two are done, two more were on their way.
    assert!(calls(driver.calls(), before).graph_launches <= 4);
    assert_eq!(case.sample(&mut executable, &mut |_| Ok(())).unwrap(), whole);
}

#[test]
fn first_not_finite_step() {
    if !compiled() {
        return;
    }
    let device = CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap();
    let mut executable = device.compile_loop(graph(1), steps(false)).unwrap();
    let mut case = Case::new(SchedulerKind::Euler, 5, 1, 5);
    case.time[3 * WIDTH] = f32::NAN;
    assert_eq!(case.sample(&mut executable, &mut |_| Ok(())).unwrap().not_finite, Some(3));
    // And nothing of it is left.
    let case = Case::new(SchedulerKind::Euler, 5, 1, 5);
    assert_eq!(case.sample(&mut executable, &mut |_| Ok(())).unwrap().not_finite, None);
}

#[test]
fn misfit_inputs() {
    if !compiled() {
        return;
    }
    let device = CudaDevice::new(Arc::new(PtxDriver::new()), DType::F16).unwrap();
    let mut executable = device.compile_loop(graph(1), steps(false)).unwrap();
    let mut fails = |change: fn(&mut Case), method, count, part: &str| {
        let mut case = Case::new(method, count, 1, 5);
        change(&mut case);
        let text = case.sample(&mut executable, &mut |_| Ok(())).unwrap_err().to_string();
        assert!(text.contains(part), "{text}");
    };
    fails(|_| {}, SchedulerKind::Euler, 16, "16 steps; 1 to 15 are possible");
    fails(|_| {}, SchedulerKind::EulerAncestral, 3, "noise of 2112 values");
    fails(
        |case| case.time.truncate(20),
        SchedulerKind::Euler,
        3,
        "`time` is bound to 20 values of f32, 24 of f32 are needed",
    );
    fails(|case| case.shift.clear(), SchedulerKind::Euler, 3, "`shift` is bound to 0 values");
    fails(|case| case.shift.truncate(9), SchedulerKind::Euler, 3, "`shift` is bound to 9 values");
    fails(|case| case.latents.clear(), SchedulerKind::Euler, 3, "0 latents, 2112");
    // An input that varies and that all rows share.
    let wrong = LoopSpec { row_axes: vec![RowAxis::First, RowAxis::First, RowAxis::Shared], ..steps(false) };
    let text = device.compile_loop(graph(1), wrong).map(|_| ()).unwrap_err().to_string();
    assert!(text.contains("inputs that vary have rows of their own"), "{text}");
    let far = LoopSpec { varying: 2..4, ..steps(false) };
    assert!(device.compile_loop(graph(1), far).is_err());
}

/// A group of images that share an evaluation, by their numbers.
type Group<'a> = &'a [usize];

/// Takes images through evaluations by loops of as many rows, each compiled where it is not there yet.
fn advance(
    device: &CudaDevice,
    loops: &mut BTreeMap<usize, CudaDenoiseLoop>,
    cases: &[Case],
    groups: &[Group<'_>],
) -> Vec<Option<Denoised>> {
    let mut images: Vec<_> = cases.iter().map(|case| Some(ImageInFlight::new(case.inputs(None)))).collect();
    let mut done: Vec<_> = cases.iter().map(|_| None).collect();
    for group in groups {
        let mut taken: Vec<ImageInFlight> = group.iter().map(|i| images[*i].take().unwrap()).collect();
        // The second half of each one's steps is not guided.
        taken.iter_mut().for_each(|image| image.guided = 2 * image.done() < image.inputs.table.len());
        let rows = taken.iter().map(ImageInFlight::rows).sum();
        let on = loops.entry(rows).or_insert_with(|| device.compile_loop(graph(rows), steps(true)).unwrap());
        on.evaluate(&mut taken.iter_mut().collect::<Vec<_>>()).unwrap();
        for (i, image) in group.iter().zip(taken) {
            match image.is_finished() {
                true => done[*i] = Some(Denoised::new(on.finish(image).unwrap()).unwrap()),
                false => images[*i] = Some(image),
            }
        }
    }
    done
}

/// Images that join others at any step, leave them for a while, go from loop to loop and change places have the bytes that they have
/// alone; each loop is captured once.
#[test]
fn images_in_several_loops() {
    if !compiled() {
        return;
    }
    let driver = Arc::new(PtxDriver::new());
    let device = CudaDevice::new(driver.clone(), DType::F16).unwrap().with_cublaslt(false);
    let mut cases = [
        Case::new(SchedulerKind::Dpmpp2M, 5, 2, 40),
        Case::new(SchedulerKind::EulerAncestral, 4, 2, 90),
        Case::new(SchedulerKind::Lms, 4, 1, 140),
        Case::new(SchedulerKind::Heun, 2, 2, 190),
    ];
    cases[1].guidance = [6.0, 0.0];
    cases[3].time[2 * WIDTH] = f32::NAN;
    let mut loops = BTreeMap::new();
    let evaluations = cases.each_ref().map(|case| case.table.steps.len());
    assert_eq!(evaluations, [5, 4, 4, 3]);
    let alone: Vec<Group<'_>> = (0..4).flat_map(|i| vec![[&[0][..], &[1], &[2], &[3]][i]; evaluations[i]]).collect();
    let wanted = advance(&device, &mut loops, &cases, &alone);
    let not_finite: Vec<_> = wanted.iter().map(|image| image.as_ref().unwrap().not_finite).collect();
    assert_eq!(not_finite, [None, None, None, Some(1)]);
    let orders: [&[Group<'_>]; 2] = [
        &[&[0], &[1, 0], &[2, 0, 1], &[3, 2], &[1, 3, 0], &[2], &[3, 0, 1, 2]],
        &[&[3, 2, 1, 0], &[0, 1], &[2, 3], &[1, 0], &[0, 2], &[3, 1], &[2], &[0]],
    ];
    for groups in orders {
        assert!(bits(&advance(&device, &mut loops, &cases, groups)) == bits(&wanted));
    }
    // As often again, whatever the images, nothing is captured or allocated.
    orders.iter().for_each(|groups| drop(advance(&device, &mut loops, &cases, groups)));
    let before = driver.calls();
    assert_eq!(before.captures as usize, loops.len());
    orders.iter().for_each(|groups| drop(advance(&device, &mut loops, &cases, groups)));
    let calls = driver.calls();
    assert_eq!((calls.captures, calls.allocations), (before.captures, before.allocations));
    drop(loops);
    assert_eq!(driver.held(), 0);
}

/// The bits of latents and first outputs, and the first step that was not finite.
fn bits(all: &[Option<Denoised>]) -> Vec<(Vec<u32>, Option<usize>)> {
    let of = |image: &Option<Denoised>| {
        let Denoised { latents, first_output, not_finite } = image.as_ref().unwrap();
        (latents.iter().chain(first_output).map(|v| v.to_bits()).collect(), *not_finite)
    };
    all.iter().map(of).collect()
}

/// Images whose rows are not the loop's, that another device has begun, or for whose state there is no memory; those are as before then.
#[test]
fn images_that_do_not_fit() {
    if !compiled() {
        return;
    }
    let compile = |room: u64| {
        let driver = Arc::new(PtxDriver::new().room(room));
        let device = CudaDevice::new(driver.clone(), DType::F16).unwrap().with_cublaslt(false);
        (driver, device.compile_loop(graph(3), steps(false)).unwrap())
    };
    let image = |rows: usize| ImageInFlight::new(Case::new(SchedulerKind::Euler, 3, rows, 5).inputs(None));
    let refused = |on: &mut CudaDenoiseLoop, images: &mut [ImageInFlight]| {
        on.evaluate(&mut images.iter_mut().collect::<Vec<_>>()).unwrap_err()
    };
    let (driver, mut first) = compile(8 << 30);
    let text = refused(&mut first, &mut [image(1), image(1)]).to_string();
    assert!(text.contains("images of 2 rows, 3 are needed"), "{text}");
    let mut begun = [image(2), image(1)];
    first.evaluate(&mut begun.iter_mut().collect::<Vec<_>>()).unwrap();
    let (_, mut other) = compile(8 << 30);
    assert!(refused(&mut other, &mut begun).to_string().contains("another device has begun"));
    assert!(other.finish(image(1)).unwrap_err().to_string().contains("an image without a step"));
    // There is memory for two images from the beginning, for a third one not; some is for the upload of weights.
    let (_, mut short) = compile(driver.held() as u64 + 40_000);
    let mut three = [image(1), image(1), image(1)];
    assert!(matches!(refused(&mut short, &mut three), Error::Memory { .. }));
    assert!(three.iter().all(|image| image.done() == 0));
    let mut two = [image(2), image(1)];
    short.evaluate(&mut two.iter_mut().collect::<Vec<_>>()).unwrap();
}

"""Writes tests/goldens/schedulers/{diffusers,diffsynth,sweep}.json.

    python make_schedulers.py diffusers      needs diffusers 0.42.1: diffusers.json, guidance and the sweep
    python make_schedulers.py diffsynth      needs diffsynth 1.1.9: diffsynth.json

A case holds a scheduler_config.json, the method whose class is made of it with from_config, keyword overrides, the
number of steps, and what the peer's own loop gives for 16 latents: timesteps, init_noise_sigma, the first four scaled
model inputs and all latents after each step, and which steps drew noise. Model outputs and noise are not stored: they
are `fill` of recipe.py at seeds that the case's index and the step give. `rounding` is the largest relative distance of
the peer's latents from those that its own `step` gives in f64 from the same f32 tables; `exact` are the last of these.
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
from recipe import fill  # noqa: E402

torch.set_num_threads(1)
OUT = Path(__file__).resolve().parents[2] / "tests/goldens/schedulers"
N = 16


def initial(case):
    return fill((1, 1, 4, 4), 1.7, 0.0, 1_000_003 * case + 1)


def output(case, step):
    return fill((1, 1, 4, 4), 1.7, 0.0, 1_000_003 * case + 1000 + step)


def noise(case, step):
    return fill((1, 1, 4, 4), 1.7, 0.0, 1_000_003 * case + 500_000 + step)


def floats(tensor):
    """Shortest decimals that give back the f32."""
    return [float(np.format_float_positional(v, unique=True)) for v in tensor.detach().to(torch.float32).flatten().numpy()]


# Shipped with the published SDXL base model.
SDXL = {
    "_class_name": "EulerDiscreteScheduler", "_diffusers_version": "0.19.0.dev0", "beta_end": 0.012,
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "clip_sample": False, "interpolation_type": "linear",
    "num_train_timesteps": 1000, "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False,
    "skip_prk_steps": True, "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None,
    "use_karras_sigmas": False,
}
CLASSES = {
    "euler": "EulerDiscreteScheduler", "euler-a": "EulerAncestralDiscreteScheduler", "ddim": "DDIMScheduler",
    "dpmpp-2m": "DPMSolverMultistepScheduler", "lcm": "LCMScheduler",
}
TRAINED = [float(np.float32(0.001 + 0.015 * (i / 199) ** 2)) for i in range(200)]


def cases():
    """(method, configuration, overrides, steps, eta)"""
    def own(method, **fields):
        return {"_class_name": CLASSES[method], "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", **fields}

    yield "euler", SDXL, {}, 50, 0
    yield "euler", SDXL, {}, 1, 0
    yield "euler", SDXL, {}, 1000, 0
    for spacing in ("trailing", "linspace"):
        yield "euler", SDXL, {"timestep_spacing": spacing}, 7, 0
        yield "euler", SDXL, {"timestep_spacing": spacing, "prediction_type": "v_prediction"}, 20, 0
        yield "euler", SDXL, {"timestep_spacing": spacing}, 1, 0
    yield "euler", SDXL, {"prediction_type": "sample"}, 4, 0
    yield "euler", SDXL, {"use_karras_sigmas": True}, 20, 0
    yield "euler", SDXL, {"use_karras_sigmas": True, "timestep_spacing": "trailing"}, 7, 0
    yield "euler", own("euler", use_karras_sigmas=True, sigma_min=0.002, sigma_max=80.0), {}, 4, 0
    yield "euler", own("euler", use_exponential_sigmas=True), {}, 7, 0
    yield "euler", SDXL, {"interpolation_type": "log_linear"}, 7, 0
    yield "euler", SDXL, {"interpolation_type": "log_linear", "use_karras_sigmas": True}, 4, 0
    yield "euler", SDXL, {"final_sigmas_type": "sigma_min"}, 4, 0
    yield "euler", own("euler", prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"), {}, 20, 0
    yield "euler", own("euler", prediction_type="v_prediction", timestep_type="continuous", sigma_min=0.002, sigma_max=700.0, use_karras_sigmas=True), {}, 7, 0
    yield "euler", {"_class_name": CLASSES["euler"]}, {}, 4, 0
    yield "euler", {"_class_name": CLASSES["euler"], "beta_schedule": "squaredcos_cap_v2"}, {}, 7, 0
    yield "euler", {"_class_name": CLASSES["euler"], "trained_betas": TRAINED, "num_train_timesteps": 200}, {}, 4, 0

    yield "euler-a", SDXL, {}, 20, 0
    yield "euler-a", SDXL, {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 7, 0
    yield "euler-a", SDXL, {"timestep_spacing": "linspace"}, 4, 0
    yield "euler-a", SDXL, {}, 1, 0
    yield "euler-a", own("euler-a", prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"), {}, 7, 0

    yield "ddim", SDXL, {}, 50, 0
    yield "ddim", SDXL, {}, 1, 0
    for spacing in ("trailing", "linspace"):
        for prediction in ("epsilon", "v_prediction", "sample"):
            yield "ddim", SDXL, {"timestep_spacing": spacing, "prediction_type": prediction}, 7, 0
    yield "ddim", own("ddim"), {}, 4, 0  # clip_sample is this class's default
    yield "ddim", own("ddim", clip_sample=True, clip_sample_range=0.5, prediction_type="v_prediction"), {}, 7, 0
    yield "ddim", own("ddim", clip_sample=True, prediction_type="sample"), {}, 4, 0.5
    yield "ddim", SDXL, {"set_alpha_to_one": True}, 4, 0
    yield "ddim", SDXL, {}, 7, 0.3
    yield "ddim", own("ddim"), {}, 4, 1.0
    yield "ddim", own("ddim", clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"), {}, 20, 0
    yield "ddim", {"_class_name": CLASSES["ddim"], "clip_sample": False, "beta_schedule": "linear"}, {}, 4, 0

    yield "dpmpp-2m", SDXL, {}, 50, 0
    for steps in (1, 2, 7, 20):
        yield "dpmpp-2m", SDXL, {"timestep_spacing": "linspace"}, steps, 0
    yield "dpmpp-2m", SDXL, {"timestep_spacing": "trailing", "prediction_type": "v_prediction"}, 20, 0
    yield "dpmpp-2m", SDXL, {"prediction_type": "sample"}, 4, 0
    yield "dpmpp-2m", SDXL, {"use_karras_sigmas": True}, 20, 0
    yield "dpmpp-2m", SDXL, {"use_karras_sigmas": True}, 4, 0
    yield "dpmpp-2m", SDXL, {"final_sigmas_type": "sigma_min"}, 7, 0
    yield "dpmpp-2m", SDXL, {"final_sigmas_type": "sigma_min", "lower_order_final": False}, 7, 0
    yield "dpmpp-2m", SDXL, {"final_sigmas_type": "sigma_min"}, 20, 0
    yield "dpmpp-2m", SDXL, {"final_sigmas_type": "sigma_min", "euler_at_final": True}, 20, 0
    yield "dpmpp-2m", SDXL, {"solver_type": "heun"}, 7, 0
    yield "dpmpp-2m", SDXL, {"solver_order": 1}, 4, 0
    yield "dpmpp-2m", SDXL, {"use_lu_lambdas": True}, 7, 0
    yield "dpmpp-2m", SDXL, {"use_exponential_sigmas": True}, 7, 0
    yield "dpmpp-2m", {"_class_name": CLASSES["dpmpp-2m"], "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1, "algorithm_type": "deis", "solver_type": "logrho", "final_sigmas_type": "sigma_min"}, {}, 7, 0
    yield "dpmpp-2m", {"_class_name": CLASSES["dpmpp-2m"], "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}, {"timestep_spacing": "leading"}, 4, 0
    yield "dpmpp-2m", {"_class_name": CLASSES["dpmpp-2m"], "beta_schedule": "squaredcos_cap_v2", "lambda_min_clipped": -5.1}, {"timestep_spacing": "trailing"}, 4, 0
    yield "dpmpp-2m", {**SDXL, "sigma_min": 0.1, "sigma_max": 10.0}, {"use_karras_sigmas": True}, 4, 0
    yield "dpmpp-2m", own("dpmpp-2m", prediction_type="v_prediction", rescale_betas_zero_snr=True, timestep_spacing="trailing"), {}, 7, 0

    yield "lcm", SDXL, {}, 4, 0
    yield "lcm", SDXL, {}, 7, 0
    yield "lcm", SDXL, {}, 1, 0
    yield "lcm", SDXL, {"prediction_type": "v_prediction"}, 4, 0
    yield "lcm", SDXL, {"prediction_type": "sample", "timestep_scaling": 0.01}, 4, 0
    yield "lcm", own("lcm", clip_sample=True, original_inference_steps=100), {}, 20, 0
    yield "lcm", {"_class_name": CLASSES["lcm"]}, {}, 50, 0
    # A file of another class, written with defaults that do not carry over.
    yield "euler", {"_class_name": "PNDMScheduler", "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "skip_prk_steps": True, "steps_offset": 1}, {}, 4, 0
    yield "ddim", {"_class_name": CLASSES["euler"], "beta_schedule": "scaled_linear", "steps_offset": 1, "_use_default_values": ["steps_offset"]}, {}, 4, 0


def run_diffusers():
    import diffusers
    from diffusers.schedulers import scheduling_ddim, scheduling_dpmsolver_multistep, scheduling_euler_ancestral_discrete, scheduling_euler_discrete, scheduling_lcm

    assert diffusers.__version__ == "0.42.1", diffusers.__version__
    draws = []
    where = [0, 0]
    wide = [False]

    def drawn(*args, **kwargs):
        draws.append(where[1])
        return noise(*where).double() if wide[0] else noise(*where)

    class Torch:
        """torch, but that the f32 to which some `step`s round their sample is f64 in the wide loop."""

        @property
        def float32(self):
            return torch.float64 if wide[0] else torch.float32

        def __getattr__(self, name):
            return getattr(torch, name)

    for module in (scheduling_ddim, scheduling_dpmsolver_multistep, scheduling_euler_ancestral_discrete, scheduling_euler_discrete, scheduling_lcm):
        module.randn_tensor = drawn
        module.torch = Torch()
    diffusers.logging.set_verbosity_error()

    def loop(index, method, config, overrides, steps, eta, double):
        own = getattr(diffusers, config["_class_name"]).from_config(config)
        scheduler = getattr(diffusers, CLASSES[method]).from_config(own.config, **overrides)
        scheduler.set_timesteps(steps)
        sigma = torch.as_tensor(scheduler.init_noise_sigma, dtype=torch.float32)
        x = initial(index) * sigma
        if double:
            # The f32 tables as they are, all that `step` computes from them in f64.
            x = x.double()
            for name in ("sigmas", "alphas_cumprod", "final_alpha_cumprod"):
                if hasattr(scheduler, name):
                    setattr(scheduler, name, getattr(scheduler, name).double())
        wide[0] = double
        torch.set_default_dtype(torch.float64 if double else torch.float32)
        draws.clear()
        inputs, latents = [], []
        for i, t in enumerate(scheduler.timesteps):
            where[:] = index, i
            inputs.append(floats(scheduler.scale_model_input(x, t))[:4])
            extra = {"eta": eta} if method == "ddim" else {}
            out = output(index, i)
            x = scheduler.step(out.double() if double else out, t, x, return_dict=False, **extra)[0]
            assert x.dtype == (torch.float64 if double else torch.float32)
            latents.append(x)
        wide[0] = False
        torch.set_default_dtype(torch.float32)
        return scheduler, sigma, inputs, latents

    lines = []
    for index, (method, config, overrides, steps, eta) in enumerate(cases()):
        exact = loop(index, method, config, overrides, steps, eta, True)[3]
        scheduler, sigma, inputs, latents = loop(index, method, config, overrides, steps, eta, False)
        rounding = max(float((x - e).norm() / e.norm()) for x, e in zip(latents, exact))
        latents = [floats(x) for x in latents]
        few = steps > 100  # of a long run only the last latents
        case = {
            "method": method, "config": config, "overrides": overrides, "steps": steps, "eta": eta,
            "timesteps": floats(scheduler.timesteps) if not few else [], "init_noise_sigma": floats(sigma)[0],
            "draws": list(draws), "inputs": inputs if not few else [], "latents": latents if not few else latents[-1:],
            "rounding": float(f"{rounding:.2e}"), "exact": floats(exact[-1]),
        }
        assert all(np.isfinite(latents[-1])), case
        lines.append(json.dumps(case, separators=(",", ":")))
    write("diffusers.json", lines)
    guidance()
    sweep()


def guidance():
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

    lines = []
    for index, (scale, phi) in enumerate([(5.0, 0.0), (7.5, 0.7), (1.5, 1.0)]):
        negative = torch.cat([output(900 + index, 0), output(900 + index, 1) * 3])
        positive = torch.cat([output(900 + index, 2), output(900 + index, 3) + 1])
        guided = negative + scale * (positive - negative)
        if phi > 0:
            guided = rescale_noise_cfg(guided, positive, guidance_rescale=phi)
        lines.append(json.dumps({"scale": scale, "rescale": phi, "guided": [floats(g) for g in guided]}, separators=(",", ":")))
    write("guidance.json", lines)


def fnv(h, values):
    for word in np.asarray(values, dtype=np.float32).view(np.uint32):
        h = ((h ^ int(word)) * 0x01000193) & 0xFFFFFFFF
    return h


def sweep():
    """One hash of the timesteps of every number of steps from 1 to 1000, for each method and spacing. Where diffusers
    makes a timestep -1 too many, it is left out, as the engine leaves it out."""
    import diffusers

    lines = []
    for method in ("euler", "euler-a", "ddim", "dpmpp-2m", "lcm"):
        for spacing in ("leading", "trailing", "linspace"):
            config = {**SDXL, "timestep_spacing": spacing, "steps_offset": 0}
            scheduler = getattr(diffusers, CLASSES[method]).from_config(config)
            h, most = 0x811C9DC5, {"lcm": 50, "dpmpp-2m": 999}.get(method, 1000)
            for steps in range(1, most + 1):
                scheduler.set_timesteps(steps)
                h = fnv(h, [t for t in scheduler.timesteps.tolist() if t >= 0])
            lines.append(json.dumps({"method": method, "spacing": spacing, "most": most, "hash": h}))
    write("sweep.json", lines)


def run_diffsynth():
    from diffsynth.schedulers.ddim import EnhancedDDIMScheduler

    lines = []
    for index, (prediction, steps) in enumerate([("epsilon", 1), ("epsilon", 2), ("epsilon", 7), ("epsilon", 50), ("v_prediction", 7)], 800):
        scheduler = EnhancedDDIMScheduler(prediction_type=prediction)
        scheduler.set_timesteps(steps)
        x, latents = initial(index), []
        for i, t in enumerate(scheduler.timesteps):
            x = scheduler.step(output(index, i), t.unsqueeze(0), x)
            latents.append(floats(x))
        case = {"case": index, "prediction": prediction, "steps": steps, "timesteps": floats(scheduler.timesteps), "latents": latents}
        lines.append(json.dumps(case, separators=(",", ":")))
    scheduler, h = EnhancedDDIMScheduler(), 0x811C9DC5
    for steps in range(1, 1003):
        scheduler.set_timesteps(steps)
        h = fnv(h, scheduler.timesteps.tolist())
    lines.append(json.dumps({"sweep": 1002, "hash": h}))
    write("diffsynth.json", lines)


def write(name, lines):
    OUT.mkdir(parents=True, exist_ok=True)
    (OUT / name).write_text("[\n" + ",\n".join(lines) + "\n]\n")


if __name__ == "__main__":
    {"diffusers": run_diffusers, "diffsynth": run_diffsynth}[sys.argv[1]]()

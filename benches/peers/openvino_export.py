"""Exports a checkpoint's UNet for openvino_peer.py: static shapes, two rows, 77 tokens, diffusers' own output beside it.

    python openvino_export.py --model DIR --size 512 --out FOLDER

DIR is what `braid synth sdxl` writes, or assets/demo. The weights are kept in f16 where the checkpoint's are. At full size
this takes 15 GB of memory and 5.1 GB of disk.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.modules["openvino_telemetry"] = None  # not imported, so that nothing is sent: it forks this large process for each event

import openvino as ov  # noqa: E402
import torch  # noqa: E402
from diffusers import UNet2DConditionModel  # noqa: E402
from openvino import opset15 as opset  # noqa: E402
from safetensors import safe_open  # noqa: E402

import case  # noqa: E402
import row as rows  # noqa: E402
from diffusers_peer import configure  # noqa: E402

NAMES = ("sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids")


class Plain(torch.nn.Module):
    """The UNet with tensors alone as its inputs."""

    def __init__(self, unet):
        super().__init__()
        self.unet = unet

    def forward(self, sample, timestep, encoder_hidden_states, text_embeds, time_ids):
        added = {"text_embeds": text_embeds, "time_ids": time_ids}
        return self.unet(sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False)[0]


def load(model: Path) -> UNet2DConditionModel:
    with tempfile.TemporaryDirectory() as folder:
        config = configure(Path(folder), model)
        unet = UNet2DConditionModel.from_single_file(str(model / "sdxl.safetensors"), config=str(config), subfolder="unet",
                                                     local_files_only=True, torch_dtype=torch.float32)
    return unet.eval()


def inputs(unet, size: int) -> dict[str, torch.Tensor]:
    config, generator = unet.config, torch.Generator("cpu").manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator)
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    values = (draw(2, config.in_channels, size // 8, size // 8), torch.tensor([801.0]), draw(2, 77, config.cross_attention_dim),
              draw(2, pooled), torch.tensor([[size, size, 0, 0, size, size]] * 2, dtype=torch.float32))
    return dict(zip(NAMES, values))


def frequencies_as_inputs(model) -> dict[str, np.ndarray]:
    """Makes inputs of the constants by which timestep and sizes are multiplied: as f16 they would cost 1e-3 of the output."""
    taken = {}
    for node in model.get_ops():
        if node.get_type_name() == "Constant" and "time_proj" in node.get_friendly_name() and node.data.size > 1:
            name = f"frequencies_{len(taken)}"
            parameter = opset.parameter(node.get_output_shape(0), ov.Type.f32, name)
            parameter.output(0).tensor.set_names({name})
            taken[name] = node.data.copy()
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(parameter.output(0))
            model.add_parameters([parameter])
    model.validate_nodes_and_infer_types()
    if len(taken) != 2:
        raise SystemExit(f"{len(taken)} constants of frequencies in place of 2; nothing is exported")
    return taken


def has_f16_weights(file: Path) -> bool:
    with safe_open(file, "pt") as tensors:
        names = [name for name in tensors.keys() if name.startswith("model.diffusion_model.")]
        return all(tensors.get_slice(name).get_dtype() == "F16" for name in names)


def bf16_distance(module, given: dict, expected: torch.Tensor) -> float:
    """Relative L2 of diffusers' own bf16 from its f32: what OpenVINO's may be taken for."""
    module.to(torch.bfloat16)
    output = module(*(tensor.to(torch.bfloat16) for tensor in given.values())).float()
    return float(torch.linalg.vector_norm(output - expected) / torch.linalg.vector_norm(expected))


def main(args) -> None:
    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    (args.out / "export.json").unlink(missing_ok=True)
    module = Plain(load(args.model))
    given = inputs(module.unet, args.size)
    expected = module(*given.values())
    if not torch.isfinite(expected).all():
        raise SystemExit("diffusers' own output is not finite; nothing is exported")
    shapes = [(name, list(tensor.shape)) for name, tensor in given.items()]
    exported = ov.convert_model(module, example_input=tuple(given.values()), input=shapes)
    numpy = {name: tensor.numpy() for name, tensor in given.items()} | frequencies_as_inputs(exported)
    ov.save_model(exported, args.out / "unet.xml", compress_to_fp16=has_f16_weights(args.model / "sdxl.safetensors"))
    del exported  # its constants are the module's
    np.savez(args.out / "check.npz", expected=expected.numpy(), bf16_distance=bf16_distance(module, given, expected), **numpy)
    work = case.Work(args.model, args.size, 0, 0.0, args.model)
    (args.out / "export.json").write_text(json.dumps(case.export_stamp(work)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--model", type=Path, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("-t", "--threads", type=int, default=rows.cores())
    main(parser.parse_args())

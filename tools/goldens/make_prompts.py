"""Writes the cases of prompt_cases.py to tests/goldens/diffusers. See README.md.

Rows of tokens and weights are no part of diffusers' pipeline: the hidden states are made here with its own tokenizers and encoders,
row by row, and given to it as embeddings; compel's weights are compel's own.
"""
import sys

import diffusers
import torch
from compel import CompelForSDXL
from safetensors.torch import load_file

import make_diffusers
from make_diffusers import GOLDENS, Peer, make
from prompt_cases import CASES


class Prompted(Peer):
    """StableDiffusionXLPipeline with every argument about prompts and sizes."""

    def apply(self, twist: dict | None = None) -> None:
        twist = twist or {}
        self.pieces = [twist.get(key, self.case.get(key)) for key in ("pieces", "negative_pieces")]
        super().apply({k: v for k, v in twist.items() if k not in ("pieces", "negative_pieces")})

    def inversions(self) -> None:
        """Loads the textual inversions, once: each encoder's vectors into it and its tokenizer, as the pipeline takes them."""
        pipe = self.pipe
        pairs = ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2))
        for embedding in self.case.get("embeddings", []) if not hasattr(self, "words") else []:
            path = self.folder / embedding["path"]
            tensors = load_file(path) if path.suffix == ".safetensors" else torch.load(path)
            for name, (_, encoder) in embedding["names"].items():
                tokenizer, text_encoder = pairs[encoder]
                tensor = tensors[name] if name in tensors else tensors["string_to_param"]["*"]
                pipe.load_textual_inversion(tensor.float(), token=path.stem, tokenizer=tokenizer, text_encoder=text_encoder)
                first, count = tokenizer.convert_tokens_to_ids(path.stem), len(tensor) if tensor.ndim == 2 else 1
                tokenizer.words = getattr(tokenizer, "words", {}) | {first: count}
        self.words = True

    def own_arguments(self) -> dict:
        request = self.request
        own = {"prompt_2": request["prompt_2"], "negative_prompt_2": request["negative_prompt_2"]}
        for sign in ("", "negative_"):
            for name in ("original_size", "target_size"):
                size = request[sign + name]
                own[sign + name] = size and (size[1], size[0])
            left, top = request[f"{sign}crop"] or (0, 0)
            own[f"{sign}crops_coords_top_left"] = (top, left)
        if self.embedded or self.compels:
            own |= {"prompt_2": None, "negative_prompt_2": None}
        return super().own_arguments() | own

    def run(self, images: list | None = None, **replace) -> dict[str, torch.Tensor]:
        self.inversions()
        self.compels = self.request["prompt_weights"] == "compel" and "prompt_embeds" not in replace
        if self.compels:
            replace = self.compel(replace.pop("prompt", None)) | replace
        self.embedded = self.pieces[0] is not None or "prompt_embeds" in replace
        if self.pieces[0] is not None and "prompt_embeds" not in replace:
            plain = [[replace.get("prompt"), 1.0], *[None] * self.pieces[1].count(None)]
            pieces = [plain, self.pieces[1]] if "prompt" in replace else self.pieces
            (embeds, pooled), (negative, negative_pooled) = (self.embed(p) for p in pieces)
            replace = {
                "prompt": None, "negative_prompt": None, "prompt_embeds": embeds, "pooled_prompt_embeds": pooled,
                "negative_prompt_embeds": negative, "negative_pooled_prompt_embeds": negative_pooled,
            }
        return super().run(images, **replace)

    def compel(self, prompt: str | None) -> dict:
        """The arguments that compel makes of the request's texts, or of another prompt for both encoders."""
        texts = [self.request[key] for key in ("prompt", "prompt_2", "negative_prompt", "negative_prompt_2")]
        if prompt is not None:
            texts[:2] = [prompt, None]
        with torch.no_grad():
            made = CompelForSDXL(self.pipe)(texts[0], style_prompt=texts[1], negative_prompt=texts[2], negative_style_prompt=texts[3])
        return {
            "prompt": None, "negative_prompt": None, "prompt_embeds": made.embeds, "pooled_prompt_embeds": made.pooled_embeds,
            "negative_prompt_embeds": made.negative_embeds, "negative_pooled_prompt_embeds": made.negative_pooled_embeds,
        }

    def embed(self, pieces: list) -> tuple[torch.Tensor, torch.Tensor]:
        pipe, hidden = self.pipe, []
        for tokenizer, encoder in ((pipe.tokenizer, pipe.text_encoder), (pipe.tokenizer_2, pipe.text_encoder_2)):
            rows, pooled = [[]], None
            for piece in pieces:
                if piece is None:
                    rows.append([])
                    continue
                text = pipe.maybe_convert_prompt(piece[0], tokenizer)
                for token in tokenizer(text, add_special_tokens=False, truncation=False).input_ids:
                    # The vectors of a word stay together.
                    need = getattr(tokenizer, "words", {}).get(token, 1)
                    if len(rows[-1]) + need > tokenizer.model_max_length - 2:
                        rows.append([])
                    rows[-1].append((token, piece[1]))
            states = []
            for row in rows:
                tokens = [(tokenizer.bos_token_id, 1.0), *row, (tokenizer.eos_token_id, 1.0)]
                tokens += [(tokenizer.pad_token_id, 1.0)] * (tokenizer.model_max_length - len(tokens))
                with torch.no_grad():
                    out = encoder(torch.tensor([[token for token, _ in tokens]]), output_hidden_states=True)
                pooled = out[0] if pooled is None else pooled
                state = out.hidden_states[-2]
                weighted = state * torch.tensor([weight for _, weight in tokens])[:, None]
                states.append(weighted * (state.mean() / weighted.mean()))
            hidden.append(torch.cat(states, 1))
        return torch.cat(hidden, -1), pooled


def main() -> None:
    make_diffusers.quiet()
    make_diffusers.pictures(GOLDENS / "pictures")
    for name in sys.argv[1:] or CASES:
        make(name, CASES[name], [], Prompted)


if __name__ == "__main__":
    main()

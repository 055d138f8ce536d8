"""Token ids of CLIP's tokenizers: tests/goldens/tokenizer/*.json.

    python make_tokens.py diffusers     with diffusers 0.42's requirements: transformers 5.23
    python make_tokens.py diffsynth     with diffsynth 1.1.9, transformers 4.51.3, ftfy 6.3.1
    python make_tokens.py folders       as the first: small vocabularies in every layout of files
    python make_tokens.py entities      writes assets/clip/entities.txt; needs ftfy

The folders are built from the vocabulary under assets/clip and have the configuration files of the published SDXL folder.
`l` is the first tokenizer, `g` the second (padding token `!`). A case has the raw ids without BOS and EOS; with `times` the
text, and the ids, are repeated so often. `full` is what the text encoders get. A text that ftfy takes for mojibake has
`mojibake`: its ids come from ftfy with fix_encoding off.
"""
import gzip
import json
import os
import random
import sys
import tempfile
import unicodedata
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
ROOT = Path(__file__).resolve().parents[2]
SAMPLE = int(os.environ.get("SAMPLE", "200"))

TEXTS = [
    "", " ", "A super man", "a photo of a cat", "  a   photo\tof\n\na cat  ", "A PHOTO OF A CAT", "aPhotoOfACat",
    "text, watermark, lowres, low quality, worst quality, deformed, glitch, low contrast, noisy, saturation, blurry",
    "best quality, high quality, 8k uhd, (masterpiece:1.2), [detail], {x}", "it's we're I've I'm they'll he'd don't IT'S 'S 's",
    "'", "''", "'''s", "'ſ 'st 'K", "rock'n'roll", "1234567890", "3.14 1,000,000 v2.00 2x4 1/2 ½ ² ⅷ", "१२३ ٣٤٥ 一二三",
    "!", "!!!", "hello! world!!! !a! a!b", "?!?!", "...", "--------", "_____", "#hashtag @user $100 50% a&b a+b=c",
    "https://example.com/path?x=1&y=2#z", "user.name@example.org", "C:\\path\\to", "`code` ~tilde~ ^caret^ |pipe|",
    "<|endoftext|>", "a<|endoftext|>b", "a <|startoftext|> b", "<|ENDOFTEXT|> <|StartOfText|>", "!!<|ENDOFTEXT|>!!", "<|endoftext", "|> <| <|endof text|>",
    "</w>", "a</w>b", "cat</w> <w>", "é e\u0301 É E\u0301", "naïve façade Übergröße señor", "Å A\u030a \u212b", "a\u0300\u0301\u0302\u0303",
    "İstanbul ISPARTA ıssız", "ΟΔΟΣ ΣΑΣ Σ ΑΣΑ ΑΣ.", "Привет, мир! ЁЖИК", "ß ẞ STRASSE", "Ǆ ǅ ǆ ĳ ŉ", "中文提示词：一只猫，坐在月亮上", "日本語のプロンプト。ｶﾞﾗｽ ガラス",
    "한국어 프롬프트 \u1112\u1161\u11ab", "مرحبا بالعالم", "שלום עולם", "हिन्दी में", "ภาษาไทย", "Tiếng Việt",
    "😀 👩‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️", "🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f", "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𝟙𝟚𝟛", "ＦＵＬＬ　ｗｉｄｔｈ！　１２３",
    "“curly” ‘quotes’ „low“ «guillemets» ʼ ‛ ‟", "ﬁ ﬂ ﬀ ﬃ ﬄ ﬅ ﬆ", "&amp; &lt;b&gt; &quot; &#39; &#x27; &nbsp; &hellip; &NTILDE; &nosuch; &amp", "&amp;amp;amp; a&ampb; &#59; &#0; &#150; &#xD800; &#99999999;",
    "<b> &amp; bold", "x &amp; y\n<i>\n&amp;", "a\0b\0", "\x1b[31mred\x1b[0m \x1b[1;32m \x1b[ x", "\x07bell \x08 \x7f \x0b \x0c \x1c \x1f end",
    "line\r\nline\rline\u2028line\u2029line\u0085line", "nb\u00a0sp thin\u2009sp zero\u200bwidth joi\u200dner \ufeff bom \u3000 \u180e \u205f \u202f", "\u200e\u202eabc\u202c \u2066x\u2069", "\ufffd \ufffc \ufff9 \u206a",
    "a" * 300, "ab" * 200, "ha" * 77, "!" * 100, "1" * 90, "ÿ" * 80, "\u0301" * 40, " " * 500 + "x", "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "w " * 74, "w " * 75, "w " * 76, "w " * 77, "w " * 152, "w " * 153, "w! " * 60, "w!!! " * 30,
]
REPEATED = [("a photo of a cat, ", 2000), ("<|endoftext|>", 500), ("日本 ", 700)]
PIECES = ["<|endoftext|>", "<|startoftext|>", "<|ENDOFTEXT|>", "</w>", "'s", "'S", "'T", "'RE", "'ve", "'ſ", "&amp;", "&lt;", "&#x41;", "&eacute;", "&", ";", "<", "!", "!!", "\x1b[1m", "\r\n", "fi", "Σ", "ς", "İ", "\u0307", "cat", "The", "photo", "WORLD", "ing", "99"]
RANGES = [(0x20, 0x7f), (0x20, 0x7f), (0x61, 0x7b), (0x61, 0x7b), (0, 0x20), (0xa0, 0x180), (0x180, 0x250), (0x300, 0x370), (0x370, 0x400), (0x400, 0x530), (0x530, 0x800), (0x900, 0xe80), (0x1100, 0x1200),
          (0x1e00, 0x2000), (0x2000, 0x2070), (0x2070, 0x2c00), (0x3000, 0x3100), (0x4e00, 0x9fff), (0xac00, 0xd7a4), (0xf900, 0x10000), (0x1d400, 0x1d800), (0x1f300, 0x1fb00), (0x80, 0xd800), (0x10000, 0x20000), (0xe0000, 0xe0080)]


def fuzz(count: int) -> list[str]:
    rng = random.Random(20240607)
    def one(pool):
        while True:
            if rng.random() < 0.15:
                return rng.choice(PIECES)
            c = chr(rng.randrange(*rng.choice(pool)))
            # Characters that some Unicode version of the peers does not know yet differ between them too.
            if unicodedata.category(c) not in ("Cn", "Cs", "Co"):
                return c
    return ["".join(one(pool) for _ in range(rng.randrange(1, 40))) for pool in
            ([RANGES, rng.sample(RANGES, 2) + [(0x20, 0x7f)]][rng.random() < 0.7] for _ in range(count))]


def published(pad: str) -> dict[str, dict]:
    """The configuration files of SDXL's tokenizer folders; they differ in the padding token only."""
    def token(content, **more):
        return {**more, "content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False}
    names = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
    config = {"add_prefix_space": False, "do_lower_case": True, "errors": "replace", "model_max_length": 77, "pad_token": pad, "tokenizer_class": "CLIPTokenizer"}
    config |= {k: token(v, __type="AddedToken") for k, v in names.items()}
    return {"tokenizer_config.json": config, "special_tokens_map.json": {k: token(v) for k, v in names.items()} | {"pad_token": pad}}


def vocabulary(merges: list[str]) -> list[str]:
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    chars = [chr(b) for b in shown] + [chr(256 + i) for i in range(256 - len(shown))]
    return chars + [c + "</w>" for c in chars] + [m.replace(" ", "") for m in merges] + ["<|startoftext|>", "<|endoftext|>"]


def folders(root: Path) -> list[Path]:
    """tokenizer and tokenizer_2 as published, with the whole vocabulary."""
    lines = gzip.open(ROOT / "assets/clip/bpe_simple_vocab_16e6.txt.gz").read().decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    tokens = vocabulary(merges)
    out = []
    for name, pad in (("tokenizer", "<|endoftext|>"), ("tokenizer_2", "!")):
        folder = root / name
        folder.mkdir()
        (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
        (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
        for file, value in published(pad).items():
            (folder / file).write_text(json.dumps(value))
        out.append(folder)
    return out


def main(peer: str) -> None:
    from transformers import CLIPTokenizer

    with tempfile.TemporaryDirectory() as root:
        pair = dict(zip("lg", (CLIPTokenizer.from_pretrained(f) for f in folders(Path(root)))))
    if peer == "diffsynth":
        import ftfy
        from diffsynth.prompters.base_prompter import tokenize_long_prompt
        from transformers import PreTrainedTokenizer
        assert all(isinstance(t, PreTrainedTokenizer) for t in pair.values())
        for t in pair.values():
            assert t.fix_text is ftfy.fix_text

    def raw(t, text):
        ids = t(text, add_special_tokens=False).input_ids
        assert t(text).input_ids == [t.bos_token_id, *ids, t.eos_token_id]
        return ids

    def full(t, text):
        if peer == "diffsynth":
            return tokenize_long_prompt(t, text).tolist()
        return t(text, padding="max_length", max_length=t.model_max_length, truncation=True).input_ids

    cases = []
    for group, texts in (("full", TEXTS), ("fuzz", fuzz(SAMPLE))):
        for text in texts:
            case = {"text": text}
            if peer == "diffsynth" and ftfy.fix_text(text) != ftfy.fix_text(text, fix_encoding=False):
                case["mojibake"] = True
                for t in pair.values():
                    t.fix_text = lambda s: ftfy.fix_text(s, fix_encoding=False)
            case |= {k: raw(t, text) for k, t in pair.items()}
            if group == "full":
                case["full"] = {k: full(t, text) for k, t in pair.items()}
            if "mojibake" in case:
                for t in pair.values():
                    t.fix_text = ftfy.fix_text
            cases.append(case)
    for text, times in REPEATED:
        case = {"text": text, "times": times} | {k: raw(t, text) for k, t in pair.items()}
        for k, t in pair.items():
            assert raw(t, text * times) == case[k] * times
        cases.append(case)
    path = ROOT / f"tests/goldens/tokenizer/{peer}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
    print(len(cases), "cases,", sum("mojibake" in c for c in cases), "mojibake,", path.stat().st_size, "bytes")


def small() -> None:
    """Each case: the files of a folder, and what transformers 5 makes of it."""
    from transformers import CLIPTokenizer

    merges = ["c a", "ca t</w>", "t h", "th e</w>", "i n", "in g</w>", "p h", "o t", "ph ot", "phot o</w>", "! !</w>", "a t</w>"]
    tokens = vocabulary(merges)
    bare = {"vocab.json": {t: i for i, t in enumerate(tokens)}, "merges.txt": "\n".join(["#version: 0.2", *merges]) + "\n"}
    n = len(tokens)

    def added(content, **more):
        return {"content": content, "lstrip": False, "normalized": True, "rstrip": False, "single_word": False, "special": False} | more

    config = published("!")["tokenizer_config.json"] | {k + "_token": v for k, v in (("bos", "<|startoftext|>"), ("eos", "<|endoftext|>"), ("unk", "<|endoftext|>"))}
    listed = {0: added("!", normalized=False, special=True), n - 2: added("<|startoftext|>", special=True), n - 1: added("<|endoftext|>", special=True),
              n: added("<Cat-Toy>"), n + 1: added("<DOG>", normalized=False), n + 2: added("<dog>s", special=True, normalized=False)}
    variants = {
        "bare": bare,
        "published": bare | published("!"),
        "config only": bare | {"tokenizer_config.json": published("<|endoftext|>")["tokenizer_config.json"]},
        "listed": bare | {"tokenizer_config.json": config | {"added_tokens_decoder": listed}},
        "legacy": bare | published("!") | {"added_tokens.json": {"<Cat-Toy>": n, "<dog>": n + 1}},
        "other names": bare | {"tokenizer_config.json": config | {"bos_token": "cat</w>", "pad_token": "<pad>", "model_max_length": 8}},
    }
    texts = ["a photo of the cat", "the cat!! a!b", "<CAT-TOY>s <cat-toy> <DOG> <dog>s <dog>", "x<|endoftext|>y <|ENDOFTEXT|>!! <|EndOfText|>", "cat</w> <pad>ing", "é 😀 <|startoftext|> "]
    out = []
    with tempfile.TemporaryDirectory() as root:
        def save(name, files):
            folder = Path(root) / name
            folder.mkdir()
            for file, value in files.items():
                (folder / file).write_text(value if isinstance(value, str) else json.dumps(value))
            return folder
        for name in ("listed", "published"):
            saved = Path(root) / ("saved " + name)
            CLIPTokenizer.from_pretrained(save("for " + name, variants[name])).save_pretrained(saved)
            variants[saved.name] = {f.name: f.read_text() if f.suffix == ".txt" else json.loads(f.read_text()) for f in sorted(saved.iterdir())}
        for name, files in variants.items():
            t = CLIPTokenizer.from_pretrained(save("case " + name, files))
            case = {"name": name, "bos": t.bos_token_id, "eos": t.eos_token_id, "pad": t.pad_token_id, "unk": t.unk_token_id, "size": len(t), "max_length": t.model_max_length if t.model_max_length < 1e6 else 77}
            case["ids"] = {text: t(text, add_special_tokens=False).input_ids for text in texts}
            out.append(case | {"files": files})
    path = ROOT / "tests/goldens/tokenizer/folders.json"
    path.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in out) + "\n]\n")
    print([(c["name"], sorted(c["files"])) for c in out], path.stat().st_size, "bytes")


WORDS = [("mat-style", 3), ("MyStyle", 1), ("<s0>", 2), ("two words", 1), ("\u00e9-x", 1), ("a.b", 2), ("!!bad", 2), ("bad-hand-5", 2), ("\u96ea\u666f", 2)]


def words() -> None:
    """What transformers makes of texts with the words of textual inversions, after diffusers has put in the vectors' words.

    Words of several vectors are lower case here, without spaces, and never beside their own later ones: diffusers puts the later ones in
    by replacing text.
    """
    import torch
    from diffusers.loaders.textual_inversion import TextualInversionLoaderMixin
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    class Loader(TextualInversionLoaderMixin):
        hf_device_map, components = None, {}

    texts = [w for w, _ in WORDS] + ["a photo in mat-style, sharp", "mat-stylemat-style mat-style", "xmat-styley MYSTYLEs", "mystyle_1 <s0>_1 <s0>_1_1", "<s0>_2", "two  words", "two\nwords two word s",
             "E\u0301-X e\u0301-x", "a. b a.bc", "!!bad !!!bad !bad", "mat-style_1 mat-style_2", "mat-style_3", "bad-hand-5 bad-hand-55 bad hand 5", "(mat-style:1.2) [<s0>]", "mat-style's", "\u96ea\u666f\u4e2d <|endoftext|>mat-style"]
    rng = random.Random(5)
    pieces = [w for w, _ in WORDS] + [" ", " ", ", ", "cat", "!", "x", "e\u0301", "A PHOTO", "<", "mat-", "style"]
    texts += ["".join(rng.choice(pieces) for _ in range(rng.randrange(1, 10))) for _ in range(150)]
    out = [{"text": text} for text in texts]
    with tempfile.TemporaryDirectory() as root:
        for key, folder in zip("lg", folders(Path(root))):
            tokenizer = CLIPTokenizer.from_pretrained(folder)
            encoder = CLIPTextModel(CLIPTextConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8))
            for word, count in WORDS:
                Loader().load_textual_inversion({word: torch.zeros(count, 8)}, token=word, tokenizer=tokenizer, text_encoder=encoder)
            for case in out:
                case[key] = tokenizer(Loader().maybe_convert_prompt(case["text"], tokenizer), add_special_tokens=False).input_ids
    path = ROOT / "tests/goldens/tokenizer/words.json"
    path.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in out) + "\n]\n")
    print(len(out), "cases,", path.stat().st_size, "bytes")


def entities() -> None:
    from ftfy.chardata import HTML_ENTITIES
    lines = [k[1:-1] + " " + " ".join(f"{ord(c):x}" for c in v) for k, v in HTML_ENTITIES.items()]
    (ROOT / "assets/clip/entities.txt").write_text("\n".join(sorted(lines)) + "\n")


if __name__ == "__main__":
    {"folders": small, "words": words, "entities": entities}.get(sys.argv[1], lambda: main(sys.argv[1]))()

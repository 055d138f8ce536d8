"""Writes tests/goldens/prompts/compel.json: what compel's own parser makes of prompts."""
import json
import random
from pathlib import Path

from compel.prompt_parser import Blend, CrossAttentionControlSubstitute, PromptParser

ROOT = Path(__file__).resolve().parents[2]
TEXTS = [
    "", " ", "a red cat", "a (red)1.3 cat", "a (red cat)++ sat", "a fire++ and ice--", "a cat- b", "a well-known cat", "a-b- c+d+", "(a (b)1.2 (c)0.5 d)1.1",
    "((a))+", "(a, b)0.8, c", "a,b,c", "a,,b ,c,,,d", "\"a cat\"++ sat", "\"a cat\"1.4", "\"a (b)0.5 cat\"", "(\"a b\"1.3 c)0.9", "a \\(b\\) c", "(a \\(b\\))1.2", "\\(a\\)++ b", "a \\\"b\\\" c",
    "\"a \\\"b\\\" c\"1.2", "(unclosed a b", "a b)1.2 c", "(a - b)1.3 c", "(a -b)1.3 c", "a = b", "(a=b)1.2", "(a).5 b", "(a)1. b", "(a)1.3.5", "(a)1,b", "(a)-", "(a)-- b", "(a)+1.3", "(a)-1.3", "(a) 1.3", "word 1.3",
    "word1.3", "(a).attend(1.2) b", "a.attend(++)", "(a).attend(-) c", "a .attend( 0.5 ) b", "(a)0", "(a)0.0 b", "C++ and a+ b", "3.5 apples++", "12:30 (at)1.2", "(word:1.3)", "[word] {x}", "e.g. this.", "\u96ea (\u72d0)1.2 caf\u00e9++",
    "()", "() a", "a () b", "()1.2 a", "\"\" a", "\"\"1.2", "a\tb\n(c)1.2", "(a\nb)1.2", "\"a\nb\"1.2", "a \"b", "a\"b\"++", "(a)(b)", "(a)++(b)--", "(a)1.1(b)1.1", "a++b--", "a++, b--,c", "((a)1.2)1.3 ((b)+)-",
    "(\"a\", \"b\").blend(1, 0.5)", "(\"a (red)1.2 cat\", \"b\").blend(0.7, 0.3)", "(a, b).blend(1, 1)", "(\"a\", \"b c\", \"d\").blend()", "(\"a\", \"b\").blend(1, -0.5)", "(\"a\", \"b\").blend(1, 1, no_normalize)", "( \"a\" , (b c)1.2 ) .blend( 1 , 2 )",
    "(\"a\", \"b\").and()", "(\"a\", \"b\").and(1, 0.5)", "(\"a\", \"b\").add(0.5, 2)", "(\"a - b\", \"c, d.\").and()", "(\"a (b)0.5\").and()", "(a).and(0.5)", "(\"a++\", \"(b)-\").blend(0.5, 0.5)",
]


def fuzz(count: int) -> list[str]:
    rng = random.Random(7)
    pieces = ["a", "cat", "red", " ", " ", " ", "(", "(", ")", ")1.3", ")0.5", ")++", ")-", "\"", "\"", "\"1.2", "++", "-", "+", ",", ".", "=", "\\(", "\\)", "1.5", "7", "b-c"]
    return ["".join(rng.choice(pieces) for _ in range(rng.randrange(2, 14))) for _ in range(count)]


def fragments(prompt) -> list:
    assert not any(isinstance(f, CrossAttentionControlSubstitute) for f in prompt.children)
    return [[f.text, f.weight] for f in prompt.children]


def read(text: str):
    parsed = PromptParser().parse_conjunction(text)
    out = []
    for prompt, weight in zip(parsed.prompts, parsed.weights):
        if isinstance(prompt, Blend):
            total = sum(prompt.weights) if prompt.normalize_weights else 1
            out.append([weight, [[w / total, fragments(p)] for p, w in zip(prompt.prompts, prompt.weights)]])
        else:
            out.append([weight, [[1.0, fragments(prompt)]]])
    assert not parsed.lora_weights
    return out


def main() -> None:
    cases = []
    for text in TEXTS + fuzz(400):
        try:
            cases.append([text, read(text)])
        except Exception as error:
            print(repr(text), type(error).__name__, str(error)[:80])
    path = ROOT / "tests/goldens/prompts/compel.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text("[\n" + ",\n".join(json.dumps(c, separators=(",", ":")) for c in cases) + "\n]\n")
    print(len(cases), "cases,", path.stat().st_size, "bytes")


if __name__ == "__main__":
    main()

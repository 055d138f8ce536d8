"""Ratios, table and notes of the rows of both sides. Needs no packages."""
import statistics

# Relative L2 of the images beyond which the work may not be the same. The bundled model's differ by 6e-5 in f32 and 8e-3 in bf16, with
# other noise by 0.1.
IMAGES_DIFFER = 0.02
OUTPUTS_DIFFER = 1e-4  # of a UNet in f32; in bf16 twice what diffusers' own bf16 differs from its f32


def within(row: dict, outside: list[str]) -> float:
    """Median seconds of a request without the stages that the other side does once before."""
    return statistics.median(
        total - sum(row["stages"].get(stage, [0.0] * len(row["seconds"]))[i] for stage in outside)
        for i, total in enumerate(row["seconds"])) / row["pictures"]


def is_unet(peer: dict) -> bool:
    """Whether a row is the UNet alone, which has steps and no image."""
    return peer.get("part") == "unet"


def summary(pairs: list[tuple[dict, dict]]) -> dict:
    """Medians of each side, and median, least and greatest of the pairs' ratios."""
    out, of_name = {}, {"step": lambda row, _: row["step_mean_seconds"], "picture": within}
    if is_unet(pairs[0][1]):
        del of_name["picture"]
    for name, of in of_name.items():
        values = [(of(braid, peer["outside"]), of(peer, [])) for braid, peer in pairs]
        ratios = [a / b for a, b in values]
        out[name] = {"braid": statistics.median(a for a, _ in values), "peer": statistics.median(b for _, b in values),
                     "ratio": statistics.median(ratios), "least": min(ratios), "greatest": max(ratios)}
    return out


def worst(result: dict) -> dict:
    """The greatest difference that a pair found."""
    return max((peer["against"] for _, peer in result["pairs"]), key=lambda against: against["relative"])


def types(braid: dict, peer: dict) -> str:
    """The type of both, and what Braid quantized."""
    ours, theirs = braid.get("dtype", peer["dtype"]), peer["dtype"]
    quantized = braid.get("quantize") or "none"
    if quantized != "none":
        return f"{ours} with {quantized} beside {theirs}"
    return theirs if ours == theirs else f"{ours} beside {theirs}"


def table(results: list[dict]) -> str:
    titles = ["peer", "size", "steps", "threads", "type", "Braid ms/step", "peer ms/step", "ratio", "Braid s/image",
              "peer s/image", "ratio", "pairs", "results differ by"]
    lines = [titles, ["---"] * len(titles)]
    for result in results:
        (braid, peer), s = result["pairs"][0], result["summary"]
        cells = [f"{peer['engine']} {peer['version']}", f"{peer['width']}x{peer['height']}", str(peer["steps"]),
                 str(peer["threads"]), types(braid, peer)]
        for name, unit in (("step", 1000), ("picture", 1)):
            v = s.get(name)
            cells += [f"{v['braid'] * unit:.4g}", f"{v['peer'] * unit:.4g}",
                      f"**{v['ratio']:.3f}** ({v['least']:.3f} to {v['greatest']:.3f})"] if v else [""] * 3
        by = worst(result)
        what = "the first output" if is_unet(peer) else f"at most {by['largest']} of 255"
        cells += [str(len(result["pairs"])), f"{by['relative']:.1e}, {what}"]
        lines.append(cells)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def limit(peer: dict) -> float:
    """How much the results of two engines in this type may differ where their work is the same."""
    if not is_unet(peer):
        return IMAGES_DIFFER
    return OUTPUTS_DIFFER if peer["dtype"] == "f32" else 2 * peer["against"]["peer_bf16"]


def same_work(result: dict) -> list[str]:
    """What says that the ratio compares different work."""
    out = []
    braid, peer = result["pairs"][0]
    if braid["threads"] != peer["threads"] or braid.get("dtype", peer["dtype"]) != peer["dtype"]:
        out.append("threads or types differ: the ratio compares different work.")
    checksum = peer["against"]["checksum"]
    if is_unet(peer):
        if worst(result)["relative"] > limit(peer):
            out.append("the output is not that of diffusers' UNet: the ratio compares different work.")
        return out
    if result["same_profile"] and any(b.get("checksum", checksum) != checksum for b, _ in result["pairs"]):
        out.append("Braid's measured image is not the one that was compared.")
    if not result["same_profile"]:
        out.append("Braid was timed in its default profile (Euler in place of DDIM, the negative text as zeros), its image compared "
                   "in the peer's.")
    if (braid.get("quantize") or "none") != "none":
        out.append(f"Braid's products were {braid['quantize']}, which is in the difference of the images.")
    elif worst(result)["relative"] > limit(peer):
        why = ("bf16's rounding does that to random weights at full size, and so does different work: see the f32 row."
               if peer["dtype"] == "bf16" else "the ratio compares different work.")
        out.append(f"the images differ by more than {100 * limit(peer):g} %: {why}")
    return out


def notes(results: list[dict]) -> list[str]:
    out = []
    for result in results:
        braid, peer = result["pairs"][0]
        found = same_work(result)
        if peer["outside"]:
            found.append(f"{', '.join(peer['outside'])} was encoded once before, because not all of its models fit into memory at "
                         "once; Braid's s/image is without that stage, too.")
        if braid.get("build") == "debug":
            found.append("Braid is a debug build.")
        if is_unet(peer):
            found.append("it has no IP-Adapter; two rows of the UNet; beside it Braid's guided step without an adapter, "
                         "in which guidance and scheduler take less than can be seen.")
        if peer.get("compiled"):
            first = [p["first_seconds"] for _, p in result["pairs"]]
            found.append(f"a process's first image took {min(first):.4g} to {max(first):.4g} s, compiling included, and is in no "
                         "figure above.")
        out += [f"{peer['engine']} {peer['dtype']}: {text}" for text in found]
    return out

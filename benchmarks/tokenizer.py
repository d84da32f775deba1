"""Captions a second of our tokenizer and OpenCLIP's, on English captions: `python -m benchmarks.tokenizer`.

Captions are the English emoji names in OpenAI's ImageNet prompts, each caption once. The two take turns, round by
round, on one core; each round takes fresh tokenizer objects for a cold pass and then passes over the captions again.
Times are CPU times of `__call__` on batches of 1,024, from strings to a tensor; medians are reported.
"""

import argparse
import importlib.metadata
import itertools
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import emoji
import torch
from open_clip.tokenizer import SimpleTokenizer
from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES

from workbench.tokenizer import Tokenizer

BATCH = 1024
NAMES = {"ours": Tokenizer, "OpenCLIP": SimpleTokenizer}


def captions(count: int) -> list[str]:
    """Return so many different captions, names and prompts well mixed."""
    names = [
        about["en"].strip(":").replace("_", " ")
        for about in emoji.EMOJI_DATA.values()
        if about["status"] == emoji.STATUS["fully_qualified"]
    ]
    templates = OPENAI_IMAGENET_TEMPLATES
    found = (
        templates[(position + shift) % len(templates)](name)
        for shift in range(len(templates))
        for position, name in enumerate(names)
    )
    return list(itertools.islice(dict.fromkeys(found), count))


def seconds(tokenize: Callable[[list[str]], torch.Tensor], texts: list[str]) -> float:
    """Return the CPU time of tokenizing the texts in batches."""
    start = time.process_time()
    for first in range(0, len(texts), BATCH):
        tokenize(texts[first : first + BATCH])
    return time.process_time() - start


def measure(texts: list[str], rounds: int) -> dict[str, dict[str, float]]:
    """Return the median captions/s, cold and warm, and construction time of each tokenizer."""
    times: dict[str, dict[str, list[float]]] = {name: {"cold": [], "warm": [], "construction": []} for name in NAMES}
    for _, (name, kind) in itertools.product(range(rounds), NAMES.items()):
        start = time.process_time()
        tokenize = kind()
        times[name]["construction"].append(time.process_time() - start)
        times[name]["cold"].append(seconds(tokenize, texts))
        times[name]["warm"].append(seconds(tokenize, texts))
    return {
        name: {
            "cold_captions_per_second": len(texts) / statistics.median(found["cold"]),
            "warm_captions_per_second": len(texts) / statistics.median(found["warm"]),
            "construction_seconds": statistics.median(found["construction"]),
        }
        for name, found in times.items()
    }


def table(results: dict[str, dict[str, float]]) -> str:
    """Return the results in Markdown."""
    lines = ["| captions/s | ours | OpenCLIP | ratio |", "|---|---:|---:|---:|"]
    ours, theirs = results["ours"], results["OpenCLIP"]
    for title, key in (("cold, a fresh tokenizer", "cold"), ("warm, a second pass", "warm")):
        mine, other = (found[f"{key}_captions_per_second"] for found in (ours, theirs))
        lines.append(f"| {title} | {mine:,.0f} | {other:,.0f} | {mine / other:.1f} x |")
    mine, other = (found["construction_seconds"] for found in (ours, theirs))
    lines.append(f"| construction, seconds | {mine:.2f} | {other:.2f} | {other / mine:.1f} x |")
    return "\n".join(lines)


def main() -> None:
    """Check that ids agree, measure, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split(":")[0])
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    parser.add_argument("--captions", type=int, default=20_000, help="how many (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="medians are over so many (default: %(default)s)")
    options = parser.parse_args()

    torch.set_num_threads(1)
    texts = captions(options.captions)
    if not torch.equal(Tokenizer()(texts).long(), SimpleTokenizer()(texts)):
        raise SystemExit("The ids differ, so there is nothing to compare.")
    results = measure(texts, options.rounds)
    versions = {name: importlib.metadata.version(name) for name in ("open_clip_torch", "ftfy", "regex", "torch")}
    print(f"{len(texts):,} captions, all different, ids equal; medians of {options.rounds} interleaved rounds;")
    print(f"Python {platform.python_version()}, {', '.join(map(' '.join, versions.items()))}.\n")
    print(table(results))
    if options.json:
        about = {"captions": len(texts), "rounds": options.rounds, "python": platform.python_version(), **versions}
        options.json.write_text(json.dumps({"about": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()

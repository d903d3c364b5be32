"""From files to embeddings: against the bare network, and against others.

    python -m benchmarks.speed.extraction FOLDER [--weights FILE] [--files N]

FOLDER holds photographs in class folders. `--weights` is a file of mobilenet_v2's, for
the distance of our embeddings from those of torchvision's preset; without it the
distance is measured with random weights, where it says little.
"""

import argparse

import numpy as np
import torch
from PIL import Image

from benchmarks.side_by_side import (
    busy_core,
    measure,
    precisions,
    print_machine,
    print_table,
    ratio,
)
from benchmarks.speed import peers
from sktransfer import PretrainedFeatureExtractor, load_backbone
from sktransfer.datasets import load_image_folder

BATCH = 16


def bare_forward(name, n_images, precision="float32"):
    """Return the network alone, fused and channels last, with all cores."""
    backbone = load_backbone(name, weights=None)
    side = backbone.reader.crop
    batch = torch.randn(BATCH, 3, side, side)
    batch = batch.contiguous(memory_format=torch.channels_last)
    stages = backbone.inference_stages()

    def forward():
        low = torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16")
        with torch.inference_mode(), low:
            for first in range(0, n_images, BATCH):
                stages(batch[: min(BATCH, n_images - first)])

    return forward


def ours(name, files, **options):
    """Return this package's extractor, without its cache."""
    extractor = PretrainedFeatureExtractor(name, weights=None, cache=None, **options)
    extractor.fit(files)
    return lambda: extractor.transform(files)


def against_the_bare_forward(files, rounds):
    """Print how near to the network alone it is, for some networks."""
    rows = []
    for name in ("resnet18", "resnet50", "mobilenet_v2"):
        variants = {"ours": ours(name, files), "bare": bare_forward(name, len(files))}
        seconds = measure(variants, 3 * rounds)
        rows.append([name, ratio(seconds["bare"], seconds["ours"])])
    print_table(["bare forward, fused, channels last", "speed, of it"], rows)


def against_others(files, rounds):
    """Print how long each takes for the same files with resnet18."""
    variants = {
        "sktransfer": ours("resnet18", files),
    }
    low = torch.cpu._is_avx512_bf16_supported()
    if low:
        variants["sktransfer, bfloat16"] = ours("resnet18", files, precision="bfloat16")
    for name, embed in peers.installed().items():
        variants[name] = lambda embed=embed: embed(files)
    seconds = measure(variants, rounds)
    head = ["resnet18", "files per second", "sktransfer is faster by"]
    if low:
        head.append("in bfloat16 by")
    rows = []
    for name, times in seconds.items():
        row = [name, f"{len(files) / np.median(times):.1f}"]
        row.append(ratio(times, seconds["sktransfer"]))
        if low:
            row.append(ratio(times, seconds["sktransfer, bfloat16"]))
        rows.append(row)
    print_table(head, rows)


def with_a_busy_core(files, rounds):
    """Print what is left when another program takes a core."""
    embed = peers.tutorial("mobilenet_v3_small")
    variants = {
        "sktransfer": ours("mobilenet_v3_small", files),
        "tutorial loop": lambda: embed(files),
    }
    with busy_core():
        seconds = measure(variants, 3 * rounds)
    print_table(
        ["mobilenet_v3_small, one core busy", "sktransfer is faster by"],
        [["tutorial loop", ratio(seconds["tutorial loop"], seconds["sktransfer"])]],
    )


def distances(files, weights):
    """Print the largest cosine distance from the preset, by Pillow, in float32."""
    given = {"weights": weights, "random_state": 0}
    backbone = load_backbone("mobilenet_v2", **given)
    preset = peers.get_model_weights("mobilenet_v2").IMAGENET1K_V1.transforms()
    pictures = [preset(Image.open(file).convert("RGB")) for file in files]
    with torch.inference_mode():
        batches = torch.stack(pictures).split(BATCH)
        expected = torch.cat([backbone.stages(batch) for batch in batches]).double()
    rows = []
    for precision in precisions("cpu"):
        extractor = PretrainedFeatureExtractor(
            "mobilenet_v2", cache=None, precision=precision, **given
        )
        found = torch.from_numpy(extractor.fit_transform(files)).double()
        cosine = torch.nn.functional.cosine_similarity(found, expected)
        rows.append([precision, f"{(1 - cosine).max():.1e}"])
    print_table(["precision", "largest cosine distance from the preset"], rows)


def main():
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--weights", default=None)
    parser.add_argument("--files", type=int, default=192)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print_machine()
    files = list(load_image_folder(arguments.folder).data)
    step = max(len(files) // arguments.files, 1)
    files = files[::step][: arguments.files]
    against_the_bare_forward(files, arguments.rounds)
    against_others(files, arguments.rounds)
    with_a_busy_core(files, arguments.rounds)
    distances(files, arguments.weights)


if __name__ == "__main__":
    main()

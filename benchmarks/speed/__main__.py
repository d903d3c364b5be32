"""All figures of docs/performance.rst, as tables in Markdown.

    python -m benchmarks.speed PHOTOS SMALL [--weights FILE] > figures.md

PHOTOS and SMALL hold pictures in class folders: photographs, and pictures of some 32
pixels, as of CIFAR-10. FILE is one of mobilenet_v2's weights. The peers that are
installed are compared with: img2vec_pytorch, embetter, timm, fastai. A GPU, where there
is one, is measured as well.
"""

import argparse
import subprocess
import sys

import torch

parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("photos")
parser.add_argument("small")
parser.add_argument("--weights", default=None)
arguments = parser.parse_args()
weights = ["--weights", arguments.weights] if arguments.weights else []
runs = [
    ("extraction", arguments.photos, *weights),
    ("caching", arguments.photos),
    ("searches", arguments.small),
    ("searches", arguments.small, "--one-core"),
    ("fine_tuning", arguments.photos),
    ("fine_tuning", arguments.photos, "--backbone", "mobilenet_v3_small"),
    ("limits", arguments.photos),
]
if torch.cuda.is_available():
    gpu = (arguments.photos, "--device", "cuda")
    runs += [
        ("limits", *gpu, "--images", "4096"),
        ("fine_tuning", *gpu, "--image-size", "224", "--backbone", "resnet50"),
    ]
for name, *options in runs:
    print(f"\n## {name}\n", flush=True)
    script = ["-m", f"benchmarks.speed.{name}"]
    subprocess.run([sys.executable, "-W", "ignore", *script, *options], check=True)

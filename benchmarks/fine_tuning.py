"""An epoch of fine-tuning, against a plain PyTorch loop that does the same work.

    python benchmarks/fine_tuning.py FOLDER [--images N] [--backbone NAME]

Both train all of the network on the same pictures, decoded before the first epoch.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from side_by_side import print_machine, print_table, ratio
from torch.nn import functional as F

from sktransfer import FineTuneClassifier, load_backbone
from sktransfer.datasets import load_image_folder


def plain_epochs(network, squares, y, epochs, batch_size, precision):
    """Train as a tutorial does; return the seconds of each epoch."""
    network.train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # as ours: the statistics of the source are kept
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    low, seconds = precision == "bfloat16", []
    for _ in range(epochs):
        start = time.perf_counter()
        for rows in torch.randperm(len(y)).split(batch_size):
            x = (squares[rows].float() / 255 - mean) / std
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=low):
                loss = F.cross_entropy(network(x).float(), y[rows])
            loss.backward()
            optimizer.step()
        seconds.append(time.perf_counter() - start)
    return seconds


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print_machine()
    photos = load_image_folder(arguments.folder)
    order = np.random.default_rng(0).permutation(len(photos.data))[: arguments.images]
    files = [photos.data[row] for row in order]
    y = np.unique(photos.target[order], return_inverse=True)[1]
    source = load_backbone(
        arguments.backbone,
        weights=None,
        image_size=arguments.image_size,
        random_state=0,
    )
    recipe = source.recipe
    squares = torch.stack([recipe.read(Path(file).read_bytes()) for file in files])
    precisions = ["float32"]
    if torch.cpu._is_avx512_bf16_supported():
        precisions.append("bfloat16")
    rows = []
    for precision in precisions:
        plain, ours = [], []
        for _ in range(arguments.rounds):
            network = torch.nn.Sequential(
                *(type(source)(source.stages).stages),
                torch.nn.Linear(source.n_features, int(y.max()) + 1),
            )
            network.requires_grad_(True)
            found = plain_epochs(
                network, squares, torch.from_numpy(y), 3, 32, precision
            )
            plain.append(min(found))
            model = FineTuneClassifier(
                source,
                freeze=0,
                head_epochs=0,
                max_epochs=3,
                batch_size=32,
                precision=precision,
                random_state=0,
            ).fit(files, y)
            ours.append(min(epoch["seconds"] for epoch in model.history_))
        rows.append([precision, f"{np.median(plain):.2f}", ratio(ours, plain)])
    size = f"{arguments.backbone}, {len(files)} images of {arguments.image_size} pixels"
    print_table([f"epoch: {size}", "plain loop, seconds", "sktransfer / plain"], rows)


if __name__ == "__main__":
    main()

"""An epoch of fine-tuning, against a plain PyTorch loop that does the same work.

    python -m benchmarks.speed.fine_tuning FOLDER [--device cuda] [--backbone NAME]

Both train all of the network on the same pictures, decoded before the first epoch.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.side_by_side import (
    finish,
    precisions,
    print_machine,
    print_table,
    ratio,
    tf32,
)
from sktransfer import FineTuneClassifier, load_backbone
from sktransfer.datasets import load_image_folder

EPOCHS, BATCH = 3, 32


def plain_epoch(source, squares, y, device, precision):
    """Train as a tutorial does; return the seconds of the fastest epoch."""
    network = torch.nn.Sequential(
        *type(source)(source.stages).stages,
        torch.nn.Linear(source.n_features, int(y.max()) + 1),
    )
    network.requires_grad_(True).to(device).train()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()  # as ours: the statistics of the source are kept
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=device).view(3, 1, 1)
    kind, low = torch.device(device).type, precision == "bfloat16"
    seconds = []
    for _ in range(EPOCHS):
        start = time.perf_counter()
        for rows in torch.randperm(len(y)).split(BATCH):
            x = (squares[rows].to(device).float() / 255 - mean) / std
            optimizer.zero_grad()
            with torch.autocast(kind, torch.bfloat16, enabled=low):
                loss = F.cross_entropy(network(x).float(), y[rows].to(device))
            loss.backward()
            optimizer.step()
        finish(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def our_epoch(source, files, y, device, precision):
    """Fit; return the seconds of the fastest epoch."""
    model = FineTuneClassifier(
        source,
        freeze=0,
        head_epochs=0,
        max_epochs=EPOCHS,
        batch_size=BATCH,
        device=device,
        precision="bfloat16" if precision == "bfloat16" else "float32",
        random_state=0,
    ).fit(files, y)
    return min(epoch["seconds"] for epoch in model.history_)


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--image-size", type=int, default=96)
    parser.add_argument("--backbone", default="resnet18")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    device, name = arguments.device, arguments.backbone
    print_machine(device)
    photos = load_image_folder(arguments.folder)
    order = np.random.default_rng(0).permutation(len(photos.data))[: arguments.images]
    files = [photos.data[row] for row in order]
    y = np.unique(photos.target[order], return_inverse=True)[1]
    side = arguments.image_size
    source = load_backbone(name, weights=None, image_size=side, random_state=0)
    read = source.reader.read
    squares = torch.stack([read(Path(file).read_bytes()) for file in files])
    rows = []
    for precision in precisions(device):
        plain, ours = [], []
        with tf32(precision == "tf32"):
            for _ in range(arguments.rounds):
                target = torch.from_numpy(y)
                plain.append(plain_epoch(source, squares, target, device, precision))
                ours.append(our_epoch(source, files, y, device, precision))
        rows.append([precision, f"{np.median(plain):.2f}", ratio(ours, plain)])
    size = f"{name}, {len(files)} images of {side} pixels, {device}"
    print_table([f"epoch: {size}", "plain loop, seconds", "sktransfer / plain"], rows)


if __name__ == "__main__":
    main()

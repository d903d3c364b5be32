r"""Make the bundled backbone "tiny": distil an ImageNet teacher into a small network.

    python -m benchmarks.tiny.pretrain PART1.zip PART2.zip --teacher WEIGHTS \
        --work-dir DIR --output sktransfer/data/tiny.safetensors

Three phases, each resumed where it stopped when the script is run again:

1. decode: the 64-pixel pictures of the zips (folder = class) into one array;
2. teach: each picture is cropped and flipped in a few fixed ways, its *views*, and the
   teacher's embedding of each view is stored;
3. train: the student sees precisely the crop that the teacher saw (Beyer et al. 2022,
   "A good teacher is patient and consistent"), under noise of its own (light, colour,
   blur as of enlarged small pictures), and learns the teacher's embedding, its softened
   class scores and the labels.

Where time is short, `--taught` lets the teacher see only so many pictures; the others
teach by their labels alone.
"""

import argparse
import copy
import hashlib
import io
import math
import os
import time
import zipfile
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image
from safetensors.torch import load_file, save
from torch import nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v2

from sktransfer.backbones._fusion import fuse
from sktransfer.backbones._tiny import N_FEATURES, tiny

SIDE = 64
N_TARGETS, N_SCORES = 256, 1000  # whitened embedding, teacher's classes
HOLD_OUT = 20  # every 20th picture is kept for validation
SAVE_SECONDS = 120
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MEAN = torch.tensor([0.485, 0.456, 0.406], device=DEVICE).view(3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225], device=DEVICE).view(3, 1, 1)


def autocast():
    """Return the context of all heavy computation: bfloat16 where it is safe."""
    return torch.autocast(DEVICE.type, torch.bfloat16)


def replace(path, write):
    """Let `write` make a file, and move it to `path` only when it is whole."""
    partial = path.with_name(path.name + ".partial")
    with open(partial, "wb") as file:
        write(file)
    os.replace(partial, path)


# -- 1. decode -------------------------------------------------------------------------


def decode(zips, work_dir):
    """Return all pictures (n, 64, 64, 3) uint8 and their labels."""
    pixels, labels = work_dir / "pixels.npy", work_dir / "labels.npy"
    if not labels.exists():
        names = [
            (path, name)
            for path in zips
            for name in sorted(zipfile.ZipFile(path).namelist())
            if not name.endswith("/")
        ]
        array = open_memmap(pixels, "w+", np.uint8, (len(names), SIDE, SIDE, 3))
        archives = {path: zipfile.ZipFile(path) for path in zips}
        for row, (path, name) in enumerate(names):
            with Image.open(io.BytesIO(archives[path].read(name))) as image:
                array[row] = np.asarray(image.convert("RGB"))
        array.flush()
        classes = [Path(name).parent.name for _, name in names]
        numbers = np.unique(classes, return_inverse=True)[1]
        replace(labels, lambda file: np.save(file, numbers))
    return np.load(pixels), np.load(labels)


# -- 2. teach --------------------------------------------------------------------------


def draw_views(n_images, view, seed):
    """Return the affine maps (n, 2, 3) of one view: a crop, and perhaps a flip."""
    rng = np.random.default_rng((seed, view + 1))
    area = rng.uniform(0.3, 1.0, n_images)
    aspect = np.exp(rng.uniform(-0.25, 0.25, n_images))
    sides = np.sqrt(area / np.stack([aspect, 1 / aspect])).clip(max=1.0).T
    maps = np.zeros((n_images, 2, 3), dtype=np.float32)
    maps[:, 0, 0] = sides[:, 0] * rng.choice([-1, 1], n_images)
    maps[:, 1, 1] = sides[:, 1]
    maps[:, :, 2] = rng.uniform(-1, 1, (n_images, 2)) * (1 - sides)
    return maps


def crop(pixels, maps, side):
    """Cut each picture as its map says; return (n, 3, side, side), values in [0, 1]."""
    images = torch.as_tensor(pixels).to(DEVICE).permute(0, 3, 1, 2).float().div_(255)
    grid = F.affine_grid(
        torch.as_tensor(maps).to(DEVICE), (len(images), 3, side, side), False
    )
    return F.grid_sample(images, grid, padding_mode="border", align_corners=False)


def normalise(images):
    """Return images as both networks take them."""
    return ((images - MEAN) / STD).contiguous(memory_format=torch.channels_last)


def load_teacher(path):
    """Return the teacher's features, batch norms folded, and its classifier."""
    model = mobilenet_v2(weights=None).eval().requires_grad_(False)
    model.load_state_dict(load_file(path))
    pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    features = nn.Sequential(fuse(model.features), pool)
    features = features.to(DEVICE, memory_format=torch.channels_last)
    return features, model.classifier[1].to(DEVICE)


@torch.inference_mode()
def teach(features, pixels, view, args, batch_size=4):
    """Return the teacher's float16 embeddings (n, 1280) of one view.

    Pictures that the teacher did not see have rows of NaN.
    """
    path = args.work_dir / f"embeddings_{view}.npy"
    array = np.full((len(pixels), 1280), np.nan, dtype=np.float16)
    if path.exists():
        array = np.load(path)
    maps = draw_views(len(pixels), view, args.seed)
    order = np.random.default_rng(args.seed).permutation(len(pixels))[: args.taught]
    order = order[np.isnan(array[order, 0])]
    saved = time.time()
    # Small batches, whose activations stay in a CPU's cache.
    for first in range(0, len(order), batch_size):
        rows = np.sort(order[first : first + batch_size])
        images = normalise(crop(pixels[rows], maps[rows], args.teacher_side))
        with autocast():
            array[rows] = features(images).float().cpu().numpy()
        if time.time() - saved > SAVE_SECONDS or first + batch_size >= len(order):
            replace(path, lambda file: np.save(file, array))
            saved = time.time()
            print(f"view {view}: {first + len(rows)} of {len(order)}", flush=True)
    return array


# -- 3. train --------------------------------------------------------------------------


def whiten(embeddings):
    """Return the mean and the projection of a half-whitened PCA of embeddings."""
    taught = embeddings[~torch.isnan(embeddings[:, 0])][:20_000].float()
    mean = taught.mean(0)
    values, vectors = torch.linalg.eigh((taught - mean).T.cov())
    values, vectors = values[-N_TARGETS:].clamp(min=1e-6), vectors[:, -N_TARGETS:]
    return mean.to(DEVICE), (vectors * values**-0.25).to(DEVICE)


def disturb(images, rng):
    """Change light, colour and sharpness of images (n, 3, h, w) in [0, 1], by image."""
    n, side = len(images), images.shape[-1]

    def uniform(low, high):
        return torch.empty(n, 1, 1, 1).uniform_(low, high, generator=rng).to(DEVICE)

    images = images.clone()
    for part in range(2):  # the batch is in random order: its first rows are random
        small = int(side * torch.empty(1).uniform_(0.25, 0.9, generator=rng))
        rows = slice(part * n // 8, (part + 1) * n // 8)
        shrunk = F.interpolate(
            images[rows], (small, small), mode="bilinear", antialias=True
        )
        images[rows] = F.interpolate(shrunk, (side, side), mode="bilinear")
    grey = images.mean(1, keepdim=True)
    colour = uniform(0.4, 1.6) * (uniform(0, 1) > 0.1)
    centre = grey.mean((2, 3), keepdim=True)
    images = torch.lerp(grey, images, colour)
    images = (images - centre) * uniform(0.6, 1.4) + centre * uniform(0.7, 1.3)
    return images.clamp_(0, 1)


def split_decay(model):
    """Return the groups of parameters: biases and norms do not decay."""
    parameters = list(model.parameters())
    flat = [parameter for parameter in parameters if parameter.ndim <= 1]
    rest = [parameter for parameter in parameters if parameter.ndim > 1]
    return [{"params": rest}, {"params": flat, "weight_decay": 0.0}]


class Distillation:
    """The student with its training heads, and its losses."""

    def __init__(self, backbone, classifier, embeddings, args):
        self.sizes = (N_TARGETS, N_SCORES, args.n_classes)
        self.model = nn.Sequential(backbone, nn.Linear(N_FEATURES, sum(self.sizes)))
        self.model.to(DEVICE, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            split_decay(self.model),
            lr=args.lr,
            weight_decay=args.weight_decay,
            fused=True,
        )
        self.classifier, self.args = classifier, args
        self.mean, self.projection = whiten(embeddings)

    def losses(self, model, images, embeddings, labels):
        """Return embedding, score and label loss, and the accuracy of the labels."""
        with autocast():
            outputs = model(normalise(images)).float()
        target, soft, classes = outputs.split(self.sizes, dim=1)
        smoothing = 0.1 if model.training else 0.0
        by_label = F.cross_entropy(classes, labels, label_smoothing=smoothing)
        accuracy = (classes.argmax(1) == labels).float().mean()
        taught = ~torch.isnan(embeddings[:, 0])
        if not taught.any():
            return torch.stack([by_label * 0, by_label * 0, by_label, accuracy])
        embeddings = embeddings[taught]
        aim = (embeddings - self.mean) @ self.projection
        hot = self.args.temperature
        divergence = F.kl_div(
            F.log_softmax(soft[taught] / hot, 1),
            F.log_softmax(self.classifier(embeddings) / hot, 1),
            reduction="batchmean",
            log_target=True,
        )
        distance = 1 - F.cosine_similarity(target[taught], aim).mean()
        return torch.stack([distance, hot**2 * divergence, by_label, accuracy])

    def step(self, batch, progress):
        """Descend one step, `progress` in [0, 1] being the part of training done."""
        self.model.train()
        rate = min(progress / 0.05, 0.5 + 0.5 * math.cos(math.pi * progress))
        for group in self.optimizer.param_groups:
            group["lr"] = self.args.lr * max(rate, 0.01)
        losses = self.losses(self.model, *batch)
        self.optimizer.zero_grad()
        (losses[:3] @ losses.new_tensor(self.args.loss_weights)).backward()
        self.optimizer.step()
        pace = max(1 - self.args.ema, 0.2 - progress)  # follow closely at first
        states = self.average.state_dict(), self.model.state_dict()
        for mean, value in zip(*(state.values() for state in states), strict=True):
            if mean.is_floating_point():
                mean.lerp_(value, pace)
        return losses.detach()

    @property
    def parts(self):
        """All that changes in training."""
        return self.model, self.average, self.optimizer


def draw_batch(data, rows, step, args):
    """Return the disturbed batch of one step; the same one after a resumption."""
    rng = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
    rows = rows[torch.randint(len(rows), (args.batch_size,), generator=rng)]
    views = torch.randint(args.views, rows.shape, generator=rng)
    images = crop(data["pixels"][rows], data["maps"][views, rows], SIDE)
    flip = torch.rand(len(rows), generator=rng) < 0.5
    images[flip] = images[flip].flip(-1)
    embeddings = data["embeddings"][views, rows].to(DEVICE).float()
    return disturb(images, rng), embeddings, data["labels"][rows].to(DEVICE)


@torch.inference_mode()
def validate(student, data, rows):
    """Return label loss and accuracy of the averaged student on whole pictures."""
    losses = []
    for batch in rows.split(100):
        images = data["pixels"][batch].to(DEVICE).permute(0, 3, 1, 2) / 255
        untaught = torch.full((len(batch), 1), torch.nan, device=DEVICE)
        labels = data["labels"][batch].to(DEVICE)
        losses.append(student.losses(student.average, images, untaught, labels)[2:])
    return torch.stack(losses).mean(0).cpu().numpy().round(3)


def train(student, data, args):
    """Train all steps, from the last checkpoint on."""
    checkpoint, step, spent = args.work_dir / "checkpoint.pt", 0, 0.0
    if checkpoint.exists():
        step, spent, states = torch.load(checkpoint, map_location=DEVICE)
        for part, state in zip(student.parts, states, strict=True):
            part.load_state_dict(state)
    rows = torch.arange(len(data["labels"]))
    held_out = rows % HOLD_OUT == 0
    start, saved, recent = time.monotonic() - spent, spent, []
    while step < args.steps:
        batch = draw_batch(data, rows[~held_out], step, args)
        recent.append(student.step(batch, step / args.steps))
        step, spent = step + 1, time.monotonic() - start
        if spent - saved > SAVE_SECONDS or step == args.steps:
            state = step, spent, [part.state_dict() for part in student.parts]
            replace(checkpoint, lambda file, state=state: torch.save(state, file))
            export(student.average[0], args.work_dir / "latest.safetensors")
            losses = torch.stack(recent).mean(0).cpu().numpy().round(3)
            rate = (spent - saved) / len(recent)
            print(f"step {step}: {losses} {rate:.2f} s per step", flush=True)
            saved, recent = spent, []
    print("held out:", validate(student, data, rows[held_out][: args.validated]))


def export(backbone, path):
    """Write float16 weights to `path` and their SHA-256 beside it."""
    state = {
        name: (value.half() if value.is_floating_point() else value).cpu().contiguous()
        for name, value in backbone.state_dict().items()
    }
    content = save(state)
    digest = hashlib.sha256(content).hexdigest()
    replace(path, lambda file: file.write(content))
    line = f"{digest}\n".encode()
    replace(path.with_suffix(".sha256"), lambda file: file.write(line))
    print(f"{path}: {len(content)} bytes, sha256 {digest}")


def parse_arguments():
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("zips", nargs="+", type=Path, metavar="ZIP")
    add("--teacher", type=Path, required=True)
    add("--work-dir", type=Path, required=True)
    add("--output", type=Path, required=True)
    add("--steps", type=int, default=24_000, help="of training")
    add("--views", type=int, default=2)
    add("--taught", type=int, default=None, help="pictures that the teacher sees")
    add("--teacher-side", type=int, default=224, help="pixels that the teacher sees")
    add("--seed", type=int, default=0)
    add("--batch-size", type=int, default=128)
    add("--lr", type=float, default=2e-3)
    add("--weight-decay", type=float, default=0.05)
    add("--ema", type=float, default=0.998)
    add("--temperature", type=float, default=2.0)
    add("--loss-weights", type=float, nargs=3, default=(5.0, 1.0, 1.0))
    add("--validated", type=int, default=3000, help="held-out pictures looked at")
    return parser.parse_args()


def main():
    """Run the three phases and write the weights."""
    args = parse_arguments()
    args.work_dir.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(args.seed)
    pixels, labels = decode(args.zips, args.work_dir)
    features, classifier = load_teacher(args.teacher)
    views = range(args.views)
    embeddings = [teach(features, pixels, view, args) for view in views]
    maps = [draw_views(len(pixels), view, args.seed) for view in views]
    data = {
        "pixels": torch.from_numpy(pixels),
        "labels": torch.from_numpy(labels),
        "maps": torch.from_numpy(np.stack(maps)),
        "embeddings": torch.from_numpy(np.stack(embeddings)),
    }
    args.n_classes = int(labels.max()) + 1
    student = Distillation(tiny(), classifier, data["embeddings"][-1], args)
    train(student, data, args)
    export(student.average[0], args.output)


if __name__ == "__main__":
    main()

"""A prototype: frozen stages that are computed by OpenVINO in place of torch, on a CPU.

    python -m benchmarks.speed.engines PHOTOS TEXTS --encoder FOLDER [--samples N]

PHOTOS holds photographs in class folders, TEXTS is a CSV file with a column "text", and
FOLDER holds an encoder of texts of transformers. All other weights are random. Each
stage is compiled for batches of the size that it is run in, on the first batch, once
for each lane, with one thread. The second way has the network in a single stage: what
an engine would gain at most, as nothing is copied between stages.
"""

import argparse
import functools
import threading
import time
from itertools import cycle, islice
from unittest import mock

import numpy as np
import openvino
import pandas as pd
import torch
from torch import nn

from benchmarks.side_by_side import (
    measure,
    precisions,
    print_machine,
    print_table,
    ratio,
)
from sktransfer import Backbone, PretrainedFeatureExtractor, load_backbone
from sktransfer.datasets import load_image_folder

NETWORKS = ("resnet50", "vit_b_16", "efficientnet_b0", "mobilenet_v3_small")
CORE = openvino.Core()
# torch traces one module at a time.
COMPILING = threading.Lock()


class Compiled(nn.Module):
    """A stage that is compiled for each shape that it is given, and run by OpenVINO."""

    def __init__(self, stage, precision):
        super().__init__()
        self.stage = [stage]  # not a child
        self.options = {
            "INFERENCE_NUM_THREADS": 1,
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,
            "INFERENCE_PRECISION_HINT": precision,
        }
        self.models, self.free = {}, {}

    def request(self, key, x):
        """Return a request that no lane is using, of a stage for inputs of this shape.

        Lanes would wait for each other in the streams of a single compiled model.
        """
        with COMPILING, torch.autocast("cpu", enabled=False):
            free = self.free.setdefault(key, [])
            if free:
                return free.pop()
            if key not in self.models:
                found = openvino.convert_model(self.stage[0], example_input=x)
                found.reshape(list(x.shape))
                self.models[key] = found
            compiled = CORE.compile_model(self.models[key], "CPU", self.options)
            return compiled.create_infer_request()

    def forward(self, x):
        key = tuple(x.shape), x.dtype
        request = self.request(key, x)
        # The array of a channels-last batch is copied to the layout of the model.
        given = np.ascontiguousarray(x.numpy())
        found = request.infer([given], share_inputs=True)
        self.free[key].append(request)
        return torch.from_numpy(next(iter(found.values())))


class Engine:
    """Stages compiled once for each backbone, in place of those for torch."""

    def __init__(self, precision):
        self.precision = {"float32": "f32", "bfloat16": "bf16"}[precision]
        self.compiled = {}

    def stages(self, backbone, device="cpu"):
        """Return the compiled stages of a backbone."""
        if backbone not in self.compiled:
            own = TORCH(backbone, device)
            parts = [Compiled(stage, self.precision) for stage in own]
            self.compiled[backbone] = nn.Sequential(*parts)
        return self.compiled[backbone]

    def transform(self, extractor, X):
        """Embed samples by the compiled stages."""
        stages = functools.partialmethod(lambda one, *rest: self.stages(one, *rest))
        with mock.patch.object(Backbone, "inference_stages", stages):
            return extractor.transform(X)


TORCH = Backbone.inference_stages


def in_one(backbone):
    """Return the same network with a single stage."""
    return Backbone(nn.Sequential(backbone.stages), backbone.reader, name="whole")


def compared(backbone, X, precision, rounds):
    """Return the samples a second by torch, and what OpenVINO gains."""
    settings = {"cache": None, "precision": precision}
    ours = PretrainedFeatureExtractor(backbone, **settings).fit(X)
    whole = PretrainedFeatureExtractor(in_one(backbone), **settings).fit(X)
    engine = Engine(precision)
    variants = {
        "torch": functools.partial(ours.transform, X),
        "stages": functools.partial(engine.transform, ours, X),
        "whole": functools.partial(engine.transform, whole, X),
    }
    start = time.perf_counter()
    found = {name: torch.from_numpy(run()) for name, run in variants.items()}
    once = time.perf_counter() - start
    seconds = measure(variants, rounds)
    # Random weights let the values of some networks nearly vanish.
    away = (found["torch"] - found["stages"]).abs().max() / found["torch"].abs().max()
    gains = [ratio(seconds["torch"], seconds[name]) for name in ("stages", "whole")]
    speed = f"{len(X) / np.median(seconds['torch']):.1f}"
    once -= sum(np.median(times) for times in seconds.values())
    return speed, *gains, f"{away:.0e}", f"{once:.0f}"


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("photos")
    parser.add_argument("texts")
    parser.add_argument("--encoder")
    parser.add_argument("--networks", nargs="*", default=NETWORKS)
    parser.add_argument("--samples", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print_machine()
    photos = load_image_folder(arguments.photos).data
    photos = list(islice(cycle(photos), arguments.samples))
    texts = pd.read_csv(arguments.texts)["text"][: arguments.samples]
    tasks = {name: (name, {"weights": None}, photos) for name in arguments.networks}
    if arguments.encoder:
        tasks["encoder"] = f"hf/{arguments.encoder}", {}, texts
    head = ["OpenVINO: faster by", "with one stage", "difference", "seconds to compile"]
    print_table(["network", "precision", "torch, samples a second", *head], [])
    for name, (network, options, X) in tasks.items():
        backbone = load_backbone(network, random_state=0, **options)
        for precision in precisions("cpu"):
            cells = compared(backbone, X, precision, arguments.rounds)
            print(f"| {' | '.join([name, precision, *cells])} |", flush=True)


if __name__ == "__main__":
    main()

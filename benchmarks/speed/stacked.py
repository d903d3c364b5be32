"""A prototype: candidates of a search trained in one loop, over stacked parameters.

    python -m benchmarks.speed.stacked [--candidates N] [--rounds N]

Candidates that differ only in the learning rate, the weight decay or the head's dropout
have networks of the same shape, and can take each step together: torch.func.vmap over
stacked parameters, as Nautilus does it (SIGMOD 2022). Beside it, the same steps one
candidate after another, as GridSearchCV has them. The inputs are random.
"""

import argparse
import copy

import torch
from torch import nn
from torch.func import functional_call, stack_module_state, vmap

from benchmarks.side_by_side import measure, print_machine, print_table, ratio
from sktransfer import load_backbone

STEPS, BATCH, CLASSES = 4, 32, 10


def head(n_features, width):
    """Return a head with a hidden layer."""
    return nn.Sequential(
        nn.Linear(n_features, width), nn.ReLU(), nn.Linear(width, CLASSES)
    )


def last_stage(name, stage):
    """Return the stages of a network from one on, with a linear head."""
    backbone = load_backbone(name, weights=None)
    depth = backbone.depth(stage) - 1
    stages = copy.deepcopy(backbone.stages[depth:]).requires_grad_(True).eval()
    shape = backbone.shapes[depth - 1]
    return nn.Sequential(
        stages, nn.Flatten(), nn.Linear(backbone.n_features, CLASSES)
    ), shape


def one_by_one(network, rates, inputs, targets):
    """Return the training of one candidate after another, as a function."""
    networks = [copy.deepcopy(network) for _ in rates]

    def train():
        for candidate, rate in zip(networks, rates, strict=True):
            optimizer = torch.optim.SGD(candidate.parameters(), lr=rate, fused=True)
            for x, y in zip(inputs, targets, strict=True):
                optimizer.zero_grad()
                nn.functional.cross_entropy(candidate(x), y).backward()
                optimizer.step()
        return networks

    return train


def stacked(network, rates, inputs, targets):
    """Return the training of all candidates in each step, as a function."""
    networks = [copy.deepcopy(network) for _ in rates]
    parameters, buffers = stack_module_state(networks)
    skeleton = copy.deepcopy(network).to("meta")

    def outputs(parameters, buffers, x):
        return functional_call(skeleton, (parameters, buffers), (x,))

    all_outputs = vmap(outputs, in_dims=(0, 0, None))

    def train():
        for x, y in zip(inputs, targets, strict=True):
            logits = all_outputs(parameters, buffers, x)
            loss = nn.functional.cross_entropy(
                logits.flatten(0, 1), y.repeat(len(rates)), reduction="sum"
            )
            gradients = torch.autograd.grad(loss / len(y), list(parameters.values()))
            with torch.no_grad():
                for value, gradient in zip(parameters.values(), gradients, strict=True):
                    shape = (-1, *[1] * (value.dim() - 1))
                    value -= torch.tensor(rates).view(shape) * gradient
        return parameters

    return train


def largest_difference(alone, together):
    """Return how far the parameters are apart after the same steps."""
    return max(
        float(
            (dict(one.named_parameters())[name].detach() - value[i].detach())
            .abs()
            .max()
        )
        for i, one in enumerate(alone)
        for name, value in together.items()
    )


def main():
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--candidates", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    print_machine()
    rates = [10 ** (-4 + i / 4) for i in range(arguments.candidates)]
    cases = {
        "head of 512 features, 128 hidden": (head(512, 128), (512,)),
        "head of 1,280 features, 512 hidden": (head(1280, 512), (1280,)),
        "resnet18, layer4": last_stage("resnet18", "layer4"),
        "mobilenet_v3_small, last_conv": last_stage("mobilenet_v3_small", "last_conv"),
        "tiny, layer4": last_stage("tiny", "layer4"),
    }
    for name, (network, shape) in cases.items():
        torch.manual_seed(0)
        inputs = [torch.rand(BATCH, *shape) for _ in range(STEPS)]
        targets = [torch.randint(CLASSES, (BATCH,)) for _ in range(STEPS)]
        variants = {
            "alone": one_by_one(network, rates, inputs, targets),
            "stacked": stacked(network, rates, inputs, targets),
        }
        apart = largest_difference(*(make() for make in variants.values()))
        seconds = measure(variants, arguments.rounds)
        faster = ratio(seconds["alone"], seconds["stacked"])
        head_row = [f"{arguments.candidates} candidates", "stacked is faster by"]
        print_table(
            [*head_row, "parameters apart by"], [[name, faster, f"{apart:.0e}"]]
        )


if __name__ == "__main__":
    main()

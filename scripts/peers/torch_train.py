#!/usr/bin/env python3
"""Training steps in PyTorch, measured as `gauntlet bench train` measures its own, with the same JSON.

    python -m venv venv && venv/bin/pip install torch
    venv/bin/python scripts/peers/torch_train.py --threads 2 --json torch.json
    gauntlet bench train --threads 2 --json ours.json --compare torch.json

Each variant is one way a careful user would run it: `eager`, `channels-last`, `compile` (torch.compile, channels-last), `bf16`
(autocast, channels-last; another arithmetic than f32, and named by it so that no comparison takes it for the same),
`compile-bf16` (both). The attack
differentiates by the input only: parameters do not require gradients in it, and BatchNorm is in eval mode. Times are medians
of whole steps: batch, attack, update by SGD with momentum and weight decay, loss read back.

A machine's speed drifts. To compare fairly run both programs in turns, a model at a time, with as many threads each:

    for round in 1 2 3; do
        gauntlet bench train --threads 2 --model mnist-cnn --json ours-$round.json
        python scripts/peers/torch_train.py --threads 2 --model mnist-cnn --json torch-$round.json
        gauntlet bench compare ours-$round.json torch-$round.json
    done
"""

import argparse
import contextlib
import json
import platform
import resource
import statistics
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

CLASSES = 10


class Block(nn.Module):
    """x + conv(relu(bn(conv(relu(bn(x)))))), a 1x1 convolution of the active input where the shape changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        changes = stride != 1 or inputs != outputs
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if changes else None

    def forward(self, x):
        active = F.relu(self.norm1(x), inplace=True) if self.shortcut is not None else F.relu(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return self.conv2(F.relu(self.norm2(self.conv1(active)), inplace=True)) + shortcut


class ResNet(nn.Module):
    def __init__(self, stem, stages):
        super().__init__()
        self.stem = nn.Conv2d(3, stem, 3, 1, 1, bias=False)
        blocks, channels = [], stem
        for outputs, count, stride in stages:
            for position in range(count):
                blocks.append(Block(channels, outputs, stride if position == 0 else 1))
                channels = outputs
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, CLASSES)

    def forward(self, x):
        x = F.relu(self.norm(self.blocks(self.stem(x))), inplace=True)
        return self.fc(x.mean((2, 3)))


def lenet():
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, 1, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 5, 1, 2), nn.ReLU(inplace=True), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 49, 1024), nn.ReLU(inplace=True), nn.Linear(1024, CLASSES),
    )


def mnist_cnn():
    return nn.Sequential(
        nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(inplace=True), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(inplace=True),
        nn.Flatten(), nn.Linear(32 * 49, 100), nn.ReLU(inplace=True), nn.Linear(100, CLASSES),
    )


# Network, shape of its images, images at a time, multiplications of a forward pass of one image.
MODELS = {
    "lenet-madry": (lenet, (1, 28, 28), 128, 13_883_904),
    "mnist-cnn": (mnist_cnn, (1, 28, 28), 128, 609_384),
    "preact-resnet18": (
        lambda: ResNet(64, [(64, 2, 1), (128, 2, 2), (256, 2, 2), (512, 2, 2)]), (3, 32, 32), 32, 555_422_720,
    ),
    "wide-resnet-28-10": (
        lambda: ResNet(16, [(160, 4, 1), (320, 4, 2), (640, 4, 2)]), (3, 32, 32), 8, 5_243_000_000,
    ),
}
EPS = 8 / 255
VARIANTS = ["eager", "channels-last", "compile", "bf16", "compile-bf16"]


def passes(objective):
    """Forward passes that a step costs."""
    kind, _, steps = objective.partition("-")
    fixed = {"standard": 3, "fgsm-rs": 5}
    return fixed.get(objective) or 2 * int(steps) + {"pgd": 3, "trades": 7}[kind]


class Trainer:
    def __init__(self, model, shape, objective, variant, device):
        torch.manual_seed(0)
        self.device, self.shape, self.objective = device, shape, objective
        self.layout = torch.contiguous_format if variant == "eager" else torch.channels_last
        self.model = model().to(device, memory_format=self.layout)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, foreach=True
        )
        self.net = torch.compile(self.model) if variant.startswith("compile") else self.model
        self.cast = (
            (lambda: torch.autocast(device.type, torch.bfloat16)) if variant.endswith("bf16") else contextlib.nullcontext
        )

    def batch(self, size):
        x = torch.rand(size, *self.shape, device=self.device).contiguous(memory_format=self.layout)
        return x, torch.randint(0, CLASSES, (size,), device=self.device)

    def ascend(self, x0, x, loss, steps, size):
        """Projected gradient ascent in L-infinity."""
        for _ in range(steps):
            x.requires_grad_()
            with self.cast():
                value = loss(self.net(x))
            (gradient,) = torch.autograd.grad(value, x)
            with torch.no_grad():
                x = x.detach().add_(gradient.sign_(), alpha=size)
                torch.maximum(torch.minimum(x, x0 + EPS, out=x), x0 - EPS, out=x).clamp_(0, 1)
        return x

    def step(self, x, y):
        kind, _, steps = self.objective.partition("-")
        adversarial = x
        if kind != "standard":
            # As the attack sees the network: constants, in eval mode.
            self.model.eval().requires_grad_(False)
            if self.objective == "fgsm-rs":
                steps, size = 1, 1.25 * EPS
            else:
                steps, size = int(steps), 2.5 * EPS / int(steps)
            if kind == "trades":
                with torch.no_grad(), self.cast():
                    clean = F.log_softmax(self.net(x).float(), 1)
                loss = lambda logits: F.kl_div(
                    F.log_softmax(logits.float(), 1), clean, reduction="sum", log_target=True
                )
                start = x + 0.001 * torch.randn_like(x)
            else:
                loss = lambda logits: F.cross_entropy(logits.float(), y, reduction="sum")
                start = (x + torch.empty_like(x).uniform_(-EPS, EPS)).clamp_(0, 1)
            adversarial = self.ascend(x, start, loss, steps, size)
            self.model.requires_grad_(True)
        self.model.train()
        self.optimizer.zero_grad(set_to_none=True)
        with self.cast():
            if kind == "trades":
                both = self.net(torch.cat([x, adversarial])).float()
                clean, attacked = F.log_softmax(both, 1).chunk(2)
                loss = F.nll_loss(clean, y) + 6 * F.kl_div(attacked, clean, reduction="batchmean", log_target=True)
            else:
                loss = F.cross_entropy(self.net(adversarial).float(), y)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def sync(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def best(device, work, repeats):
    times = []
    for _ in range(repeats + 2):
        began = time.perf_counter()
        work()
        sync(device)
        times.append(time.perf_counter() - began)
    return min(times[2:])


def ceilings(device, quick):
    values, repeats = (1 << 18, 3) if quick else (1 << 25 if device.type == "cpu" else 1 << 28, 15)
    source, target = torch.ones(values, device=device), torch.zeros(values, device=device)
    copy = 8 * values / best(device, lambda: target.copy_(source), repeats) / 1e9

    def product(dtype):
        rates = []
        for n in [128] if quick else ([1024, 1536] if device.type == "cpu" else [4096, 8192]):
            a, b = (torch.rand(n, n, device=device).sub_(0.5).to(dtype) for _ in range(2))
            rates.append(2 * n**3 / best(device, lambda: a @ b, repeats) / 1e9)
        return max(rates)

    rates = {"copy_gb_s": copy, "matmul_gflop_s": product(torch.float32)}
    if device.type == "cuda":
        rates["matmul_bf16_gflop_s"] = product(torch.bfloat16)
    return rates


def peak(device):
    if device.type == "cuda":
        # What its allocator holds, as Gauntlet counts its own.
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def cpu_name():
    try:
        lines = open("/proc/cpuinfo").read().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--model", action="append", choices=MODELS)
    parser.add_argument("--objective", action="append", help="standard, fgsm-rs, pgd-STEPS, trades-STEPS")
    parser.add_argument("--variant", action="append", choices=VARIANTS)
    parser.add_argument("--batch", type=int)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--quick", action="store_true", help="measure the ceilings in a moment")
    parser.add_argument("--json", default="-")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    report = {
        "schema": 1,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({cpu_name()})",
        "version": f"torch {torch.__version__}",
        "threads": torch.get_num_threads(),
        "ceilings": ceilings(device, args.quick),
        "entries": [],
    }
    for name in args.model or ["lenet-madry", "mnist-cnn", "preact-resnet18"]:
        model, shape, batch, macs = MODELS[name]
        size = args.batch or (batch if device.type == "cpu" else 128)
        for objective in args.objective or ["standard", "fgsm-rs", "pgd-10", "trades-10"]:
            variants = args.variant or VARIANTS
            if device.type == "cuda":
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            # In turns, so that a machine that grows slower does so for all of them.
            trainers, times = {}, {variant: [] for variant in variants}
            for variant in variants:
                trainers[variant] = Trainer(model, shape, objective, variant, device)
            for step in range(args.warmup + args.steps):
                for variant in list(trainers):
                    began = time.perf_counter()
                    try:
                        trainers[variant].step(*trainers[variant].batch(size))
                    except Exception as error:  # a compiler that is not there, a type that is not known
                        print(f"{variant} is left out: {str(error).splitlines()[0]}", file=sys.stderr)
                        del trainers[variant], times[variant]
                        continue
                    sync(device)
                    if step >= args.warmup:
                        times[variant].append(time.perf_counter() - began)
            for variant, seconds in times.items():
                median = statistics.median(seconds)
                low, _, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else [median] * 3
                rate = 2 * macs * passes(objective) * size / median / 1e9
                limits = report["ceilings"]
                ceiling = limits["matmul_gflop_s"]
                suffix = ""
                if variant.endswith("bf16"):
                    suffix = "-bf16"
                    ceiling = limits.get("matmul_bf16_gflop_s", ceiling)
                report["entries"].append({
                    "name": f"train/{objective}/{name}{suffix}",
                    "variant": variant,
                    "batch": size,
                    "median_s": median,
                    "spread_s": high - low,
                    "images_per_s": size / median,
                    "gflop_s": rate,
                    "bound_share": rate / ceiling,
                    "peak_bytes": peak(device),
                })
                print(f"{objective} {name} {variant}: {1e3 * median:.1f} ms, {size / median:.1f} images/s", file=sys.stderr)
    text = json.dumps(report, indent=2)
    if args.json == "-":
        print(text)
    else:
        open(args.json, "w").write(text + "\n")


if __name__ == "__main__":
    main()

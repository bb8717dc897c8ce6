#!/usr/bin/env python3
"""Runs the public AutoAttack (package `torchattacks`) on a network, for comparison with `gauntlet audit`.

    python -m venv venv && venv/bin/pip install torch torchattacks numpy
    venv/bin/python scripts/peers/autoattack.py WEIGHTS DATA --norm Linf --eps 0.3 --samples 1000

WEIGHTS is the `model.safetensors` of `gauntlet model export` (any architecture; its normalisation is in it), a checkpoint folder of Gauntlet
(`mnist-cnn` of Wong & Kolter 2018), or a PyTorch state dict of the same layers in an `nn.Sequential`. DATA is
a folder with the IDX test files of MNIST (plain or .gz), or with the binary test file of CIFAR-10 (plain or .xz). Each attack is
run alone on the samples that are classified correctly, and then all as the ensemble. Prints JSON: shares left standing, seconds,
CPU seconds. With --keep FILE, which sample withstood what is saved as .npz.
"""

import argparse
import gzip
import json
import lzma
import os
import pathlib
import time

import numpy as np
import torch
import torchattacks

import networks

ATTACKS = ["apgd-ce", "apgd-t", "fab-t", "square"]


def safetensors(path):
    """Arrays of a safetensors file of f32 tensors, by name."""
    raw = pathlib.Path(path).read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    header.pop("__metadata__", None)
    found = {}
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        found[name] = np.frombuffer(data[begin:end], dtype="<f4").reshape(entry["shape"]).copy()
    return found


def layers(path):
    """Weight and bias of the four layers, linear weights as PyTorch has them. Gauntlet stores those as [in, out]."""
    if path.is_dir():
        named = safetensors(path / "model.safetensors")
        order = [f"body.{layer}" for layer in ("conv1", "conv2", "fc1", "fc2")]
        turn = lambda weight: weight.T if weight.ndim == 2 else weight
    else:
        named = torch.load(path, map_location="cpu", weights_only=True)
        while not all(hasattr(value, "shape") for value in getattr(named, "values", lambda: [0])()):
            named = named["state_dict"] if isinstance(named, dict) else named[0]
        named = {name: value.float().numpy() for name, value in named.items()}
        order = sorted({name.rsplit(".", 1)[0] for name in named}, key=lambda name: int(name.split(".")[-1]))
        turn = lambda weight: weight
    pairs = [(turn(named[f"{layer}.weight"]), named[f"{layer}.bias"]) for layer in order]
    return [tuple(torch.from_numpy(np.ascontiguousarray(array)) for array in pair) for pair in pairs]


class Normalise(torch.nn.Module):
    def __init__(self, mean, std):
        super().__init__()
        self.mean, self.std = (torch.tensor(values).view(1, -1, 1, 1) for values in (mean, std))

    def forward(self, x):
        return (x - self.mean) / self.std


def network(path, mean, std):
    if path.suffix == ".safetensors":
        return networks.load(path)
    given = layers(path)
    channels, inputs = given[0][0].shape[1], given[2][0].shape[1]
    modules = [
        torch.nn.Conv2d(channels, 16, 4, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 4, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(inputs, 100),
        torch.nn.ReLU(),
        torch.nn.Linear(100, 10),
    ]
    with torch.no_grad():
        for module, (weight, bias) in zip([modules[i] for i in (0, 2, 5, 7)], given, strict=True):
            module.weight.copy_(weight)
            module.bias.copy_(bias)
    if mean:
        modules.insert(0, Normalise(mean, std))
    return torch.nn.Sequential(*modules).eval()


def read(folder, name):
    for suffix, opened in (("", open), (".gz", gzip.open), (".xz", lzma.open)):
        path = folder / f"{name}{suffix}"
        if path.exists():
            with opened(path, "rb") as file:
                return np.frombuffer(file.read(), dtype=np.uint8)
    return None


def test_images(folder, samples):
    cifar = read(folder, "test_batch.bin")
    if cifar is not None:
        rows = cifar.reshape(-1, 3073)[:samples]
        images, labels = rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0]
    else:
        images, labels = read(folder, "t10k-images-idx3-ubyte"), read(folder, "t10k-labels-idx1-ubyte")
        if images is None or labels is None:
            raise SystemExit(f"no test images in {folder}")
        images, labels = images[16:].reshape(-1, 1, 28, 28)[:samples], labels[8:][:samples]
    return torch.from_numpy(images.astype(np.float32) / 255), torch.from_numpy(labels.astype(np.int64))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--norm", choices=["Linf", "L2"], default="Linf")
    parser.add_argument("--eps", type=lambda text: eval(text, {}), required=True, help="0.3 or 2/255")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--mean", type=float, nargs="*", default=[])
    parser.add_argument("--std", type=float, nargs="*", default=[])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--attacks", nargs="*", default=[*ATTACKS, "ensemble"])
    parser.add_argument("--keep", type=pathlib.Path)
    args = parser.parse_args()

    torch.set_num_threads(args.threads)
    model = network(args.weights, args.mean, args.std)
    x, y = test_images(args.data, args.samples)
    with torch.no_grad():
        right = model(x).argmax(1) == y

    common = {"norm": args.norm, "eps": args.eps, "seed": args.seed}
    members = {
        "apgd-ce": lambda: torchattacks.APGD(model, **common, steps=100, loss="ce"),
        "apgd-t": lambda: torchattacks.APGDT(model, **common, steps=100, n_classes=10),
        "fab-t": lambda: torchattacks.FAB(model, **common, steps=100, n_restarts=1, multi_targeted=True, n_classes=10),
        "square": lambda: torchattacks.Square(model, **common, n_queries=5000),
    }

    def stands(names):
        """Which samples withstand the named attacks in turn, and the time that each takes."""
        torch.manual_seed(args.seed)
        left, times = right.clone(), []
        for name in names:
            attack, where = members[name](), left.nonzero().flatten()
            began, cpu = time.time(), time.process_time()
            for part in where.split(args.batch):
                found = attack(x[part], y[part])
                delta = (found - x[part]).flatten(1)
                size = delta.abs().amax(1) if args.norm == "Linf" else delta.norm(dim=1)
                assert size.max() <= args.eps * 1.0001 + 1e-6 and found.min() >= 0 and found.max() <= 1
                with torch.no_grad():
                    left[part] &= model(found).argmax(1) == y[part]
            times.append((time.time() - began, time.process_time() - cpu))
        return left, times

    result = {
        "clean": round(right.float().mean().item(), 4),
        "samples": len(y),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "torchattacks": torchattacks.__version__,
    }
    kept = {"right": right.numpy()}
    for name in args.attacks:
        names = ATTACKS if name == "ensemble" else [name]
        left, times = stands(names)
        wall, cpu = (sum(column) for column in zip(*times, strict=True))
        result[name] = {"standing": round(left.float().mean().item(), 4), "seconds": round(wall, 1), "cpu": round(cpu, 1)}
        if len(names) > 1:
            result[name]["by_attack"] = dict(zip(names, [round(wall, 1) for wall, _ in times], strict=True))
        kept[name] = left.numpy()
        print(json.dumps(result), flush=True)
    if args.keep:
        np.savez_compressed(args.keep, **kept)


if __name__ == "__main__":
    main()

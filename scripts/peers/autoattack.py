#!/usr/bin/env python3
"""Runs the public AutoAttack (package `torchattacks`) on a checkpoint of Gauntlet, for comparison with `gauntlet audit`.

    python -m venv venv && venv/bin/pip install torch torchattacks numpy
    venv/bin/python scripts/peers/autoattack.py runs/mnist-pgd/checkpoints/step-00006440 DATA --eps 0.3 --samples 1000

The checkpoint is of `mnist-cnn`; DATA is the folder with the IDX test files of its data set (plain or .gz). Each attack is run
alone on the samples that are classified correctly, and then all as the ensemble. Prints JSON: shares left standing, seconds.
"""

import argparse
import gzip
import json
import pathlib
import time

import numpy as np
import torch
import torchattacks


def tensors(path):
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


def mnist_cnn(checkpoint):
    """The network of Wong & Kolter (2018) with the weights of a checkpoint. Gauntlet stores linear weights as [in, out]."""
    named = tensors(checkpoint / "model.safetensors")
    layers = {name.rsplit(".", 1)[0] for name in named}
    convolutions = sorted(layer for layer in layers if "conv" in layer)
    linears = sorted(layer for layer in layers if "fc" in layer)
    model = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 4, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Conv2d(16, 32, 4, stride=2, padding=1),
        torch.nn.ReLU(),
        torch.nn.Flatten(),
        torch.nn.Linear(1568, 100),
        torch.nn.ReLU(),
        torch.nn.Linear(100, 10),
    )
    with torch.no_grad():
        for layer, name in zip([model[0], model[2]], convolutions, strict=True):
            layer.weight.copy_(torch.from_numpy(named[f"{name}.weight"]))
            layer.bias.copy_(torch.from_numpy(named[f"{name}.bias"]))
        for layer, name in zip([model[5], model[7]], linears, strict=True):
            layer.weight.copy_(torch.from_numpy(named[f"{name}.weight"].T))
            layer.bias.copy_(torch.from_numpy(named[f"{name}.bias"]))
    return model.eval()


def idx(folder, name, offset):
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            raw = path.read_bytes()
            return np.frombuffer(gzip.decompress(raw) if path.suffix == ".gz" else raw, dtype=np.uint8)[offset:]
    raise SystemExit(f"no {name} in {folder}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("data", type=pathlib.Path)
    parser.add_argument("--norm", choices=["Linf", "L2"], default="Linf")
    parser.add_argument("--eps", type=float, required=True)
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--attacks", nargs="*", default=["apgd-ce", "apgd-t", "fab-t", "square", "ensemble"])
    args = parser.parse_args()

    model = mnist_cnn(args.checkpoint)
    images = idx(args.data, "t10k-images-idx3-ubyte", 16).reshape(-1, 1, 28, 28)[: args.samples]
    x = torch.from_numpy(images.astype(np.float32) / 255)
    y = torch.from_numpy(idx(args.data, "t10k-labels-idx1-ubyte", 8)[: args.samples].astype(np.int64))
    with torch.no_grad():
        right = model(x).argmax(1) == y

    common = {"norm": args.norm, "eps": args.eps, "seed": args.seed}
    members = {
        "apgd-ce": lambda: torchattacks.APGD(model, **common, steps=100, loss="ce"),
        "apgd-t": lambda: torchattacks.APGDT(model, **common, steps=100, n_classes=10),
        "fab-t": lambda: torchattacks.FAB(
            model, **common, steps=100, n_restarts=1, multi_targeted=True, n_classes=10
        ),
        "square": lambda: torchattacks.Square(model, **common, n_queries=5000),
    }

    def stands(names):
        """Which samples withstand the named attacks in turn, and how long that takes."""
        torch.manual_seed(args.seed)
        left, began = right.clone(), time.time()
        for name in names:
            attack, where = members[name](), left.nonzero().flatten()
            for part in where.split(args.batch):
                found = attack(x[part], y[part])
                delta = (found - x[part]).flatten(1)
                size = delta.abs().amax(1) if args.norm == "Linf" else delta.norm(dim=1)
                assert size.max() <= args.eps * 1.0001 and found.min() >= 0 and found.max() <= 1
                with torch.no_grad():
                    left[part] &= model(found).argmax(1) == y[part]
        return left.float().mean().item(), time.time() - began

    result = {"clean": right.float().mean().item(), "threads": torch.get_num_threads(), "torch": torch.__version__}
    for name in args.attacks:
        share, seconds = stands(list(members) if name == "ensemble" else [name])
        result[name] = {"standing": round(share, 4), "seconds": round(seconds, 1)}
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()

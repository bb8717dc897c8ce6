"""Writes the small files that the tests of `gauntlet-formats` and `gauntlet-data` read: a checkpoint as `torch.save` wrote it since
PyTorch 1.6, the same as it wrote it before (with keys that are addresses: other bytes each time), and NumPy arrays; prints the
values that the checkpoint holds.

    pip install torch==2.13.0 numpy==2.4.6
    python scripts/golden/formats.py
"""

from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch

CRATES = Path(__file__).parents[2] / "crates"


def checkpoint():
    whole = torch.arange(24, dtype=torch.float32).reshape(4, 6) / 8
    weights = OrderedDict(
        [
            ("single", whole),
            ("turned", whole.t()),
            ("part", whole[1:3, 2:5]),
            ("repeated", whole[:1, :1].expand(2, 3)),
            ("double", torch.tensor([1 / 3, -1e300], dtype=torch.float64)),
            ("half", torch.tensor([1 / 3, 65504.0, 6e-8], dtype=torch.float16)),
            ("brain", torch.tensor([1 / 3, -3e38], dtype=torch.bfloat16)),
            ("scalar", torch.tensor(2.5)),
            ("none", torch.zeros(0, 3)),
            ("parameter", torch.nn.Parameter(torch.tensor([1.5, -2.5]))),
            ("count", torch.tensor(7)),
        ]
    )
    layer = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1, momentum=0.9)
    layer(torch.ones(1, 1)).sum().backward()
    optimizer.step()
    return {
        "epoch": 3,
        "args": Namespace(lr=0.1, name="x"),
        "best": np.float64(0.5),
        "device": torch.device("cpu"),
        "state_dict": weights,
        "optimizer": optimizer.state_dict(),
        "history": [torch.tensor([0.25]), {"loss": 1.0}],
    }


def main():
    torch.manual_seed(0)
    folder = CRATES / "gauntlet-formats/tests/golden"
    saved = checkpoint()
    torch.save(saved, folder / "checkpoint.pth")
    torch.save(saved, folder / "legacy.pth", _use_new_zipfile_serialization=False)
    for name, tensor in saved["state_dict"].items():
        print(name, list(tensor.shape), tensor.detach().float().flatten().tolist())

    folder = CRATES / "gauntlet-data/tests/golden"
    images = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    labels = np.array([2, 0])
    np.save(folder / "nhwc-u1.npy", images)
    np.save(folder / "labels.npy", labels)
    nchw = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    np.savez_compressed(folder / "nchw-f4.npz", x=nchw.astype(np.float32) / 255, y=labels.astype(np.int32)[:, None])
    np.savez(folder / "fortran-f8.npz", pictures=np.asfortranarray(images / 255), classes=labels.astype(np.uint8))


if __name__ == "__main__":
    main()

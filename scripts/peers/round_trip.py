#!/usr/bin/env python3
"""Takes every architecture from PyTorch into Gauntlet and out again, and compares what it computes on real images at each stop.

    python -m venv venv && venv/bin/pip install torch safetensors onnx onnxruntime pillow
    cargo build --release --manifest-path scripts/peers/tract/Cargo.toml
    venv/bin/python scripts/peers/round_trip.py --images FOLDER --out OUT [--trained] --tract scripts/peers/tract/target/release/run-in-tract

For each architecture: a PyTorch network with random weights (BatchNorm with random statistics) is saved, `gauntlet model import`ed, asked by
`gauntlet predict`, `gauntlet model export`ed, loaded back by `networks.py` with strict=True, and run in ONNX Runtime, and with --tract in tract, with batches of 1, 7 and 128.
The ONNX checker has to pass, and `gauntlet predict model.onnx` has to say the same. Prints a table in Markdown of the largest differences, relative to
the largest logit; exits with 1 if one is above 1e-4.

--trained trains each network for a few steps on the images first. `gauntlet` must be on the path. Input gradients are compared by the tests of
`gauntlet-models`, with values that `scripts/golden/networks.py` writes.
"""

import argparse
import gzip
import json
import pathlib
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import torch
from PIL import Image
from torch.nn import functional as F

import networks

CASES = [
    ({"arch": "mlp", "width": 96}, [1, 28, 28]),
    ({"arch": "mnist-cnn"}, [1, 28, 28]),
    ({"arch": "small-cnn"}, [1, 28, 28]),
    ({"arch": "lenet-madry"}, [1, 28, 28]),
    ({"arch": "preact-resnet18"}, [3, 32, 32]),
    ({"arch": "preact-resnet18-plain"}, [3, 32, 32]),
    ({"arch": "wide-resnet", "depth": 16, "width": 2}, [3, 32, 32]),
    ({"arch": "wide-resnet-same", "depth": 16, "width": 2, "activation": "silu"}, [3, 32, 32]),
    ({"arch": "resnet18"}, [3, 64, 64]),
    ({"arch": "resnet34"}, [3, 64, 64]),
    ({"arch": "resnet50"}, [3, 64, 64]),
    ({"arch": "resnet18-cifar"}, [3, 32, 32]),
    ({"arch": "vgg16-bn"}, [3, 32, 32]),
    ({"arch": "vit", "depth": 4, "width": 128}, [3, 32, 32]),
]
CLASSES = 10
TOLERANCE = 1e-4


def pictures(folder, count):
    """Bytes of test images `[n, 28, 28]`, and labels."""

    def read(name):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.exists():
                raw = path.read_bytes()
                return np.frombuffer(gzip.decompress(raw) if path.suffix == ".gz" else raw, np.uint8)
        raise SystemExit(f"{folder} has no {name}")

    images, labels = read("t10k-images-idx3-ubyte")[16:], read("t10k-labels-idx1-ubyte")[8:]
    return images.reshape(-1, 28, 28)[:count], labels[:count].astype(np.int64)


def shaped(images, shape):
    """In the size and with the channels that a network takes; still bytes."""
    channels, height, width = shape
    sized = [np.array(Image.fromarray(image).resize((width, height), Image.BILINEAR)) for image in images]
    return np.repeat(np.stack(sized)[:, None], channels, 1)


def call(*arguments):
    done = subprocess.run(["gauntlet", *map(str, arguments)], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"gauntlet {' '.join(map(str, arguments))}\n{done.stderr}")
    return done.stdout


def asked(model, folder):
    """Logits by `gauntlet predict`, in the order of the files."""
    lines = call("predict", model, folder, "--logits", "--resize", "refuse", "--device", "cpu").splitlines()
    return np.array([json.loads(line)["logits"] for line in lines])


def away(found, expected):
    return float(np.abs(found - expected).max() / max(1e-9, np.abs(expected).max()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=pathlib.Path, required=True, help="folder with the IDX test files of MNIST")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--trained", action="store_true")
    parser.add_argument("--tract", type=pathlib.Path, help="the program in scripts/peers/tract, built")
    args = parser.parse_args()
    images, labels = pictures(args.images, 128)
    torch.manual_seed(0)
    worst = 0.0
    print("| architecture | parameters | import | export: PyTorch | export: ONNX Runtime | export: tract | ONNX back in |\n|---|---:|---:|---:|---:|---:|---:|")
    for config, shape in CASES:
        name = config["arch"]
        if args.only and name not in args.only:
            continue
        folder = args.out / name
        (folder / "pictures").mkdir(parents=True, exist_ok=True)
        mean, std = [0.3] * shape[0], [0.4] * shape[0]
        x = shaped(images, shape)
        for i, image in enumerate(x):
            pixels = image[0] if shape[0] == 1 else image.transpose(1, 2, 0)
            Image.fromarray(pixels).save(folder / "pictures" / f"{i:04}.png")
        x = torch.from_numpy(x.astype(np.float32) / 255)
        bare = networks.build({"config": config, "shape": shape, "classes": list(range(CLASSES))})
        whole = torch.nn.Sequential(networks.Normalise(mean, std), bare)
        if args.trained:
            optimizer = torch.optim.SGD(bare.parameters(), 0.01, momentum=0.9)
            for step in range(8):
                part = slice(16 * step, 16 * step + 16)
                optimizer.zero_grad()
                F.cross_entropy(whole(x[part]), torch.from_numpy(labels[part])).backward()
                optimizer.step()
        else:
            for module in bare.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    torch.nn.init.normal_(module.running_mean, 0, 0.1)
                    torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
                    torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        with torch.no_grad():
            expected = torch.cat([whole.eval()(part) for part in x.split(32)])
        expected = expected.numpy()

        torch.save({"epoch": 3, "state_dict": torch.nn.DataParallel(bare).state_dict()}, folder / "net.pth")
        sizes = [f"--{key}={config[key]}" for key in ("depth", "width", "activation") if key in config]
        about = ["--shape", "x".join(map(str, shape)), "--classes", CLASSES, "--mean", *mean, "--std", *std]
        subprocess.run(["rm", "-rf", str(folder / "imported")], check=True)
        call("model", "import", folder / "net.pth", "--arch", name, *sizes, *about, "--out", folder / "imported")
        imported = away(asked(folder / "imported", folder / "pictures"), expected)

        call("model", "export", folder / "imported", "--out", folder / "exported")
        back = networks.load(folder / "exported" / "model.safetensors")
        with torch.no_grad():
            again = torch.cat([back(part) for part in x.split(32)]).numpy()
        pytorch = away(again, expected)

        onnx.checker.check_model(str(folder / "exported" / "model.onnx"), full_check=True)
        session = onnxruntime.InferenceSession(folder / "exported" / "model.onnx", providers=["CPUExecutionProvider"])
        runtime = tract = 0.0
        for count in (1, 7, 128):
            part = x[:count].numpy()
            (logits,) = session.run(None, {"input": part})
            runtime = max(runtime, away(logits, expected[:count]))
            if args.tract:
                command = [args.tract, folder / "exported" / "model.onnx", "x".join(map(str, part.shape))]
                done = subprocess.run(command, input=part.tobytes(), capture_output=True, check=False)
                if done.returncode:
                    raise SystemExit(f"{name} in tract: {done.stderr.decode()}")
                logits = np.frombuffer(done.stdout, "<f4").reshape(count, CLASSES)
                tract = max(tract, away(logits, expected[:count]))
        inside = away(asked(folder / "exported" / "model.onnx", folder / "pictures"), expected)
        numbers = [imported, pytorch, runtime, tract if args.tract else None, inside]
        worst = max([worst, *(number for number in numbers if number is not None)])
        count = sum(parameter.numel() for parameter in bare.parameters())
        print(f"| {name} | {count:,} | " + " | ".join("-" if number is None else f"{number:.1e}" for number in numbers) + " |", flush=True)
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()

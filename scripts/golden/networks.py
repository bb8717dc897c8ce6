"""Writes the logits that the tests of `gauntlet-models` hold on to: networks as their repositories name their layers, with weights
that are sines, in PyTorch on the CPU. Where a file is small the weights are in it; else the names and shapes are, and the test makes
the same sines.

    pip install torch && python scripts/golden/networks.py
"""

import json
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1] / "peers"))
import networks as peers

GOLDEN = Path(__file__).parents[2] / "crates/gauntlet-models/tests/golden"


def sines(name, shape, ordinal):
    """The same formula is in `import/tests.rs`."""
    wave = np.sin(1.7 * np.arange(np.prod(shape, dtype=int)) + 0.9 * ordinal)
    if name.endswith("running_var"):
        values = 1 + 0.5 * wave
    elif name.endswith("running_mean") or name.endswith("bias"):
        values = 0.1 * wave
    elif len(shape) == 1:
        values = 1 + 0.2 * wave
    else:
        values = 1.7 / np.sqrt(np.prod(shape[1:])) * wave
    return torch.tensor(values.astype(np.float32).reshape(shape))


def images(shape):
    count = 2 * int(np.prod(shape))
    return torch.tensor((0.5 + 0.5 * np.sin(0.37 * np.arange(count) + 0.2)).astype(np.float32).reshape(2, *shape))


class PreActBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x):
        active = F.relu(self.bn1(x))
        skip = self.shortcut(active) if hasattr(self, "shortcut") else x
        return self.conv2(F.relu(self.bn2(self.conv1(active)))) + skip


class PreActResNet18(nn.Module):
    """As in robust_overfitting."""

    def __init__(self, channels, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 64, 3, 1, 1, bias=False)
        inputs = 64
        for stage, (outputs, stride) in enumerate([(64, 1), (128, 2), (256, 2), (512, 2)], 1):
            blocks = PreActBlock(inputs, outputs, stride), PreActBlock(outputs, outputs, 1)
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inputs = outputs
        self.bn = nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, classes)

    def forward(self, x):
        x = self.conv1(x)
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4):
            x = stage(x)
        return self.linear(F.relu(self.bn(x)).mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x):
        active = F.relu(self.bn1(x))
        skip = x if self.convShortcut is None else self.convShortcut(active)
        return skip + self.conv2(F.relu(self.bn2(self.conv1(active))))


class Stage(nn.Module):
    def __init__(self, count, inputs, outputs, stride):
        super().__init__()
        blocks = [WideBlock(inputs if i == 0 else outputs, outputs, stride if i == 0 else 1) for i in range(count)]
        self.layer = nn.Sequential(*blocks)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    """As in TRADES, with the stage `sub_block1` that it has and does not use."""

    def __init__(self, channels, classes, depth, width):
        super().__init__()
        count = (depth - 4) // 6
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1 = Stage(count, 16, 16 * width, 1)
        self.sub_block1 = Stage(count, 16, 16 * width, 1)
        self.block2 = Stage(count, 16 * width, 32 * width, 2)
        self.block3 = Stage(count, 32 * width, 64 * width, 2)
        self.bn1 = nn.BatchNorm2d(64 * width)
        self.fc = nn.Linear(64 * width, classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(F.relu(self.bn1(x)).mean((2, 3)))


class SmallCnn(nn.Module):
    """As in TRADES."""

    def __init__(self, channels, features, classes):
        super().__init__()
        conv = lambda i, o: nn.Conv2d(i, o, 3)
        self.feature_extractor = nn.Sequential(
            OrderedDict(
                [
                    ("conv1", conv(channels, 32)),
                    ("relu1", nn.ReLU()),
                    ("conv2", conv(32, 32)),
                    ("relu2", nn.ReLU()),
                    ("maxpool1", nn.MaxPool2d(2, 2)),
                    ("conv3", conv(32, 64)),
                    ("relu3", nn.ReLU()),
                    ("conv4", conv(64, 64)),
                    ("relu4", nn.ReLU()),
                    ("maxpool2", nn.MaxPool2d(2, 2)),
                ]
            )
        )
        self.classifier = nn.Sequential(
            OrderedDict(
                [
                    ("fc1", nn.Linear(features, 200)),
                    ("relu1", nn.ReLU()),
                    ("drop", nn.Dropout(0.5)),
                    ("fc2", nn.Linear(200, 200)),
                    ("relu2", nn.ReLU()),
                    ("fc3", nn.Linear(200, classes)),
                ]
            )
        )

    def forward(self, x):
        return self.classifier(self.feature_extractor(x).flatten(1))


class LenetMadry(nn.Module):
    def __init__(self, features, classes):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.fc1 = nn.Linear(features, 1024)
        self.fc2 = nn.Linear(1024, classes)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        return self.fc2(F.relu(self.fc1(x.flatten(1))))


def mnist_cnn(channels, features, classes):
    return nn.Sequential(
        nn.Conv2d(channels, 16, 4, 2, 1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 4, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(features, 100),
        nn.ReLU(),
        nn.Linear(100, classes),
    )


def perceptron(inputs, width, classes):
    layers = nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes)
    return nn.Sequential(nn.Flatten(), *layers)


class Normalised(nn.Module):
    def __init__(self, mean, std, net):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1))
        self.net = net

    def forward(self, x):
        return self.net((x - self.mean) / self.std)


def fill(net):
    state = net.state_dict()
    named = [(name, list(tensor.shape)) for name, tensor in state.items() if not name.endswith("num_batches_tracked")]
    for ordinal, (name, shape) in enumerate(named):
        state[name].copy_(sines(name, shape, ordinal))
    net.eval()
    return named


def logits(net, shape):
    with torch.no_grad():
        return [[round(float(v), 6) for v in row] for row in net(images(shape))]


def gradient(net, shape):
    """Of the sum of all logits times 1, 2, ... by class: every 37th of its values, and their norm."""
    x = images(shape).requires_grad_()
    logits = net(x)
    (logits * torch.arange(1, logits.shape[1] + 1)).sum().backward()
    return {"norm": float(x.grad.norm()), "values": [float(v) for v in x.grad.flatten()[::37]]}


def described(config, shape, classes):
    return peers.build({"config": config, "shape": shape, "classes": list(range(classes))})


def main():
    torch.set_num_threads(1)
    networks = {}
    for file, config, shape, classes, net in [
        ("preact-resnet18", {"arch": "preact-resnet18"}, [3, 8, 8], 5, PreActResNet18(3, 5)),
        ("wide-resnet", {"arch": "wide-resnet", "depth": 16, "width": 2}, [3, 8, 12], 4, WideResNet(3, 4, 16, 2)),
        ("small-cnn", {"arch": "small-cnn"}, [1, 16, 20], 3, SmallCnn(1, 64 * 1 * 2, 3)),
        ("lenet-madry", {"arch": "lenet-madry"}, [1, 8, 12], 3, LenetMadry(64 * 2 * 3, 3)),
        ("mnist-cnn", {"arch": "mnist-cnn"}, [3, 8, 12], 3, mnist_cnn(3, 32 * 2 * 3, 3)),
        *[
            (config["arch"], config, shape, classes, described(config, shape, classes))
            for config, shape, classes in [
                ({"arch": "preact-resnet18-plain"}, [3, 8, 8], 5),
                ({"arch": "wide-resnet-same", "activation": "silu", "depth": 16, "width": 2}, [3, 8, 12], 4),
                ({"arch": "resnet18"}, [3, 32, 40], 3),
                ({"arch": "resnet50"}, [3, 40, 32], 4),
                ({"arch": "resnet18-cifar"}, [1, 12, 8], 3),
                ({"arch": "vgg16-bn"}, [3, 32, 32], 3),
                ({"arch": "vit", "depth": 2, "width": 128}, [1, 8, 12], 3),
            ]
        ],
    ]:
        tensors = fill(net)
        networks[file] = {
            "model": config,
            "shape": shape,
            "classes": classes,
            "tensors": tensors,
            "logits": logits(net, shape),
            "gradient": gradient(net, shape),
        }
    text = json.dumps(networks, separators=(",", ":")).replace('],["', '],\n["').replace('},"', '},\n"')
    (GOLDEN / "networks.json").write_text(text + "\n")

    # Files of PyTorch's own, with weights: a normalised perceptron of square layers, whole and in halves.
    net = nn.DataParallel(Normalised([0.4, 0.5, 0.6], [0.2, 0.25, 0.3], perceptron(12, 8, 4)))
    fill(net.module.net)
    state = net.state_dict()
    optimizer = torch.optim.Adam(net.parameters())
    net.module(images([3, 2, 2])).sum().backward()
    optimizer.step()
    fill(net.module.net)
    torch.save({"epoch": 7, "state_dict": state, "optimizer": optimizer.state_dict()}, GOLDEN / "perceptron.pth")
    torch.save(net.module.net.state_dict(), GOLDEN / "perceptron-legacy.pth", _use_new_zipfile_serialization=False)
    half = {name: tensor.half() for name, tensor in net.module.net.state_dict().items()}
    torch.save({"net": half}, GOLDEN / "perceptron-half.pth")
    expected = {
        "normalised": logits(net.module, [3, 2, 2]),
        "plain": logits(net.module.net, [3, 2, 2]),
    }
    net.module.net.load_state_dict(half)
    expected["half"] = logits(net.module.net, [3, 2, 2])
    (GOLDEN / "perceptron.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()

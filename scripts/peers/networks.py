"""The networks of Gauntlet as PyTorch modules: what `model.safetensors` of `gauntlet model export` loads into, strictly.

    from networks import load
    network = load("model.safetensors")     # takes images in [0, 1]; normalises them itself; in eval mode

`load` needs `torch` and `safetensors`. Names of layers are those of the repositories that the networks are known from; `build` makes a network
without weights.
"""

import json
import struct

import torch
from torch import nn
from torch.nn import functional as F


class Mlp(nn.Module):
    def __init__(self, shape, classes, act, width=128):
        super().__init__()
        self.act, inputs = act, shape[0] * shape[1] * shape[2]
        self.fc1, self.fc2, self.fc3 = nn.Linear(inputs, width), nn.Linear(width, width), nn.Linear(width, classes)

    def forward(self, x):
        return self.fc3(self.act(self.fc2(self.act(self.fc1(x.flatten(1))))))


class MnistCnn(nn.Module):
    """Wong & Kolter 2018; as `nn.Sequential` its layers are 0, 2, 5, 7."""

    def __init__(self, shape, classes, act):
        super().__init__()
        self.act, inputs = act, 32 * (shape[1] // 2 // 2) * (shape[2] // 2 // 2)
        self.conv1, self.conv2 = nn.Conv2d(shape[0], 16, 4, 2, 1), nn.Conv2d(16, 32, 4, 2, 1)
        self.fc1, self.fc2 = nn.Linear(inputs, 100), nn.Linear(100, classes)

    def forward(self, x):
        x = self.act(self.conv2(self.act(self.conv1(x))))
        return self.fc2(self.act(self.fc1(x.flatten(1))))


class SmallCnn(nn.Module):
    """TRADES, models/small_cnn.py."""

    def __init__(self, shape, classes, act):
        super().__init__()
        self.act, inputs = act, 64 * (((shape[1] - 4) // 2 - 4) // 2) * (((shape[2] - 4) // 2 - 4) // 2)
        sizes = [(shape[0], 32), (32, 32), (32, 64), (64, 64)]
        self.feature_extractor = nn.ModuleDict({f"conv{i}": nn.Conv2d(*pair, 3) for i, pair in enumerate(sizes, 1)})
        sizes = [(inputs, 200), (200, 200), (200, classes)]
        self.classifier = nn.ModuleDict({f"fc{i}": nn.Linear(*pair) for i, pair in enumerate(sizes, 1)})

    def forward(self, x):
        for i, conv in enumerate(self.feature_extractor.values(), 1):
            x = self.act(conv(x))
            x = F.max_pool2d(x, 2) if i % 2 == 0 else x
        fc1, fc2, fc3 = self.classifier.values()
        return fc3(self.act(fc2(F.dropout(self.act(fc1(x.flatten(1))), 0.5, self.training))))


class LenetMadry(nn.Module):
    def __init__(self, shape, classes, act):
        super().__init__()
        self.act = act
        self.conv1, self.conv2 = nn.Conv2d(shape[0], 32, 5, padding=2), nn.Conv2d(32, 64, 5, padding=2)
        self.fc1, self.fc2 = nn.Linear(64 * (shape[1] // 4) * (shape[2] // 4), 1024), nn.Linear(1024, classes)

    def forward(self, x):
        x = F.max_pool2d(self.act(self.conv1(x)), 2)
        x = F.max_pool2d(self.act(self.conv2(x)), 2)
        return self.fc2(self.act(self.fc1(x.flatten(1))))


class PreActBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, act, raw):
        super().__init__()
        self.act, self.raw = act, raw
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x):
        active = self.act(self.bn1(x))
        skip = self.shortcut(x if self.raw else active) if hasattr(self, "shortcut") else x
        return self.conv2(self.act(self.bn2(self.conv1(active)))) + skip


class PreActResNet18(nn.Module):
    """robust_overfitting, preactresnet.py; `plain` is RobustBench's PreActResNet18()."""

    def __init__(self, shape, classes, act, plain=False):
        super().__init__()
        self.act, inputs = act, 64
        self.conv1 = nn.Conv2d(shape[0], 64, 3, 1, 1, bias=False)
        for stage, (outputs, stride) in enumerate([(64, 1), (128, 2), (256, 2), (512, 2)], 1):
            blocks = PreActBlock(inputs, outputs, stride, act, plain), PreActBlock(outputs, outputs, 1, act, plain)
            setattr(self, f"layer{stage}", nn.Sequential(*blocks))
            inputs = outputs
        self.bn = None if plain else nn.BatchNorm2d(512)
        self.linear = nn.Linear(512, classes)

    def forward(self, x):
        x = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(x)))))
        x = x if self.bn is None else self.act(self.bn(x))
        return self.linear(x.mean((2, 3)))


class WideBlock(nn.Module):
    def __init__(self, inputs, outputs, stride, act):
        super().__init__()
        self.act = act
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride != 1 or inputs != outputs else None

    def forward(self, x):
        active = self.act(self.bn1(x))
        skip = x if self.convShortcut is None else self.convShortcut(active)
        return self.conv2(self.act(self.bn2(self.conv1(active)))) + skip


class SameBlock(nn.Module):
    """Strided convolutions are padded below and to the right only."""

    def __init__(self, inputs, outputs, stride, act):
        super().__init__()
        self.act, self.pads = act, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1)
        self.batchnorm_0, self.conv_0 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.batchnorm_1, self.conv_1 = nn.BatchNorm2d(outputs), nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride != 1 or inputs != outputs else None

    def forward(self, x):
        active = self.act(self.batchnorm_0(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        return self.conv_1(self.act(self.batchnorm_1(self.conv_0(F.pad(active, self.pads))))) + skip


class Stage(nn.Module):
    def __init__(self, name, block, count, inputs, outputs, stride, act):
        super().__init__()
        blocks = [block(outputs if i else inputs, outputs, 1 if i else stride, act) for i in range(count)]
        setattr(self, name, nn.Sequential(*blocks))

    def forward(self, x):
        (blocks,) = self.children()
        return blocks(x)


class WideResNet(nn.Module):
    """TRADES and RobustBench, wideresnet.py."""

    def __init__(self, shape, classes, act, depth=28, width=10):
        super().__init__()
        self.act, count, sizes = act, (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        self.conv1 = nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False)
        for i in (1, 2, 3):
            setattr(self, f"block{i}", Stage("layer", WideBlock, count, sizes[i - 1], sizes[i], 1 if i == 1 else 2, act))
        self.bn1, self.fc = nn.BatchNorm2d(sizes[3]), nn.Linear(sizes[3], classes)

    def forward(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return self.fc(self.act(self.bn1(x)).mean((2, 3)))


class WideResNetSame(nn.Module):
    """Gowal et al. 2020, adversarial_robustness/pytorch/model_zoo.py; dm_wide_resnet.py in RobustBench."""

    def __init__(self, shape, classes, act, depth=28, width=10):
        super().__init__()
        self.act, count, sizes = act, (depth - 4) // 6, [16, 16 * width, 32 * width, 64 * width]
        self.init_conv = nn.Conv2d(shape[0], 16, 3, 1, 1, bias=False)
        stages = [Stage("block", SameBlock, count, sizes[i], sizes[i + 1], 2 if i else 1, act) for i in range(3)]
        self.layer = nn.Sequential(*stages)
        self.batchnorm, self.logits = nn.BatchNorm2d(sizes[3]), nn.Linear(sizes[3], classes)

    def forward(self, x):
        return self.logits(self.act(self.batchnorm(self.layer(self.init_conv(x)))).mean((2, 3)))


class ResidualBlock(nn.Module):
    def __init__(self, inputs, width, stride, act, bottleneck, shortcut):
        super().__init__()
        self.act, outputs = act, 4 * width if bottleneck else width
        conv = lambda i, o, k, s: nn.Conv2d(i, o, k, s, k // 2, bias=False)
        self.conv1 = conv(inputs, width, 1, 1) if bottleneck else conv(inputs, width, 3, stride)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2, self.bn2 = conv(width, width, 3, stride if bottleneck else 1), nn.BatchNorm2d(width)
        if bottleneck:
            self.conv3, self.bn3 = conv(width, outputs, 1, 1), nn.BatchNorm2d(outputs)
        self.skip = shortcut
        if stride != 1 or inputs != outputs:
            setattr(self, shortcut, nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs)))

    def forward(self, x):
        y = self.bn2(self.conv2(self.act(self.bn1(self.conv1(x)))))
        if hasattr(self, "conv3"):
            y = self.bn3(self.conv3(self.act(y)))
        return self.act(y + (getattr(self, self.skip)(x) if hasattr(self, self.skip) else x))


class ResNet(nn.Module):
    """torchvision's; `small` is that of pytorch-cifar and RobustBench, resnet.py."""

    def __init__(self, shape, classes, act, blocks=(2, 2, 2, 2), bottleneck=False, small=False):
        super().__init__()
        self.act, self.small, inputs = act, small, 64
        self.conv1 = nn.Conv2d(shape[0], 64, 3, 1, 1, bias=False) if small else nn.Conv2d(shape[0], 64, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        for stage, count in enumerate(blocks):
            made = []
            for i in range(count):
                stride = 2 if i == 0 and stage > 0 else 1
                made.append(ResidualBlock(inputs, 64 << stage, stride, act, bottleneck, "shortcut" if small else "downsample"))
                inputs = (256 if bottleneck else 64) << stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*made))
        self.head = "linear" if small else "fc"
        setattr(self, self.head, nn.Linear(inputs, classes))

    def forward(self, x):
        x = self.act(self.bn1(self.conv1(x)))
        x = x if self.small else F.max_pool2d(x, 3, 2, 1)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return getattr(self, self.head)(x.mean((2, 3)))


class Vgg16Bn(nn.Module):
    """The convolutions of torchvision's vgg16_bn; a global average and one linear layer follow."""

    def __init__(self, shape, classes, act):
        super().__init__()
        layers, inputs = [], shape[0]
        for outputs, count in [(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]:
            for _ in range(count):
                layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), Function(act)]
                inputs = outputs
            layers.append(nn.MaxPool2d(2))
        self.features, self.classifier = nn.Sequential(*layers), nn.Linear(512, classes)

    def forward(self, x):
        return self.classifier(self.features(x).mean((2, 3)))


class Function(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Attention(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x):
        batch, tokens, width = x.shape
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, width // 64, 64).permute(2, 0, 3, 1, 4)
        mixed = (q @ k.transpose(2, 3) / 8).softmax(3) @ v
        return self.proj(mixed.transpose(1, 2).reshape(batch, tokens, width))


class VitBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1, self.attn, self.norm2 = nn.LayerNorm(width, 1e-6), Attention(width), nn.LayerNorm(width, 1e-6)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))


class Vit(nn.Module):
    """Named as in timm: patches of 4 x 4 on images of up to 64 x 64, of 16 x 16 on larger ones; heads of 64 channels."""

    def __init__(self, shape, classes, act, depth=6, width=192):
        super().__init__()
        patch = 16 if max(shape[1:]) > 64 else 4
        tokens = (shape[1] // patch) * (shape[2] // patch) + 1
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, tokens, width))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(shape[0], width, patch, patch)})
        self.blocks = nn.Sequential(*[VitBlock(width) for _ in range(depth)])
        self.norm, self.head = nn.LayerNorm(width, 1e-6), nn.Linear(width, classes)

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])


class Normalise(nn.Module):
    """(x - mean) / std of each channel; no entries in the state dict."""

    def __init__(self, mean, std):
        super().__init__()
        for name, values in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def forward(self, x):
        return (x - self.mean) / self.std


ARCHITECTURES = {
    "mlp": Mlp,
    "mnist-cnn": MnistCnn,
    "small-cnn": SmallCnn,
    "lenet-madry": LenetMadry,
    "preact-resnet18": PreActResNet18,
    "preact-resnet18-plain": lambda *args: PreActResNet18(*args, plain=True),
    "wide-resnet": WideResNet,
    "wide-resnet-same": WideResNetSame,
    "resnet18": ResNet,
    "resnet34": lambda *args: ResNet(*args, blocks=(3, 4, 6, 3)),
    "resnet50": lambda *args: ResNet(*args, blocks=(3, 4, 6, 3), bottleneck=True),
    "resnet18-cifar": lambda *args: ResNet(*args, small=True),
    "vgg16-bn": Vgg16Bn,
    "vit": Vit,
}


def build(model):
    """The network of a description as in `model.json`, without normalisation."""
    config = model["config"]
    sizes = {key: config[key] for key in ("depth", "width") if config.get(key)}
    act = F.silu if config.get("activation") == "silu" else F.relu
    return ARCHITECTURES[config["arch"]](model["shape"], len(model["classes"]), act, **sizes)


def load(path):
    """The network of an exported file, with its weights, normalisation in front, in eval mode."""
    from safetensors.torch import load_file

    with open(path, "rb") as file:
        header = json.loads(file.read(struct.unpack("<Q", file.read(8))[0]))
    model = json.loads(header["__metadata__"]["gauntlet"])["model"]
    network = build(model)
    network.load_state_dict(load_file(path), strict=True)
    config, channels = model["config"], model["shape"][0]
    if config.get("mean") or config.get("std"):
        mean, std = config.get("mean") or [0.0] * channels, config.get("std") or [1.0] * channels
        network = nn.Sequential(Normalise(mean, std), network)
    return network.eval()

"""Prints the numbers that the tests of the training losses hold on to: value and gradients of each, computed by PyTorch in f64.

    pip install torch==2.13.0 numpy && python scripts/golden/methods.py

The formulas are written as the papers' own code has them (KLDivLoss, NLLLoss), not as Gauntlet has them.
"""

import torch
import torch.nn.functional as F

CLEAN = [[2.0, -1.0, 0.5], [0.3, 0.2, -0.4], [-1.5, 0.0, 1.0], [0.1, 3.0, 0.2]]
ADVERSARIAL = [[0.5, 0.4, 0.2], [-0.6, 0.9, 0.1], [-1.0, 0.8, 0.6], [1.2, 0.7, -0.3]]
CLASSES = [0, 1, 2, 1]


def trades(clean, adversarial, y):
    return F.kl_div(F.log_softmax(adversarial, 1), F.softmax(clean, 1), reduction="sum") / len(y)


def boosted(clean, adversarial, y):
    p = F.softmax(adversarial, 1)
    first = torch.argsort(p, 1)[:, -1]
    second = torch.argsort(p, 1)[:, -2]
    other = torch.where(first == y, second, first)
    return F.cross_entropy(adversarial, y) + F.nll_loss(torch.log(1.0001 - p + 1e-12), other)


def weighted(clean, adversarial, y):
    p, q = F.softmax(clean, 1), F.softmax(adversarial, 1)
    each = F.kl_div(torch.log(q + 1e-12), p, reduction="none").sum(1)
    sure = p.gather(1, y.unsqueeze(1)).squeeze(1)
    return (each * (1.0000001 - sure)).mean()


def pairing(clean, adversarial, y):
    return F.mse_loss(clean, adversarial)


def consistency(clean, adversarial, y):
    p, q = F.softmax(clean / 0.5, 1), F.softmax(adversarial / 0.5, 1)
    middle = torch.clamp((p + q) / 2, 1e-7, 1).log()
    return 0.5 * (F.kl_div(middle, p, reduction="batchmean") + F.kl_div(middle, q, reduction="batchmean"))


def distillation(clean, adversarial, y):
    """The first argument is the teacher, the second the student."""
    soft = F.kl_div(F.log_softmax(adversarial / 2, 1), F.softmax(clean / 2, 1), reduction="batchmean")
    return soft * 4


def smoothed(clean, adversarial, y):
    return F.cross_entropy(adversarial, y, label_smoothing=0.1)


def main():
    y = torch.tensor(CLASSES)
    for loss in (trades, boosted, weighted, pairing, consistency, distillation, smoothed):
        clean = torch.tensor(CLEAN, dtype=torch.float64, requires_grad=True)
        adversarial = torch.tensor(ADVERSARIAL, dtype=torch.float64, requires_grad=True)
        value = loss(clean, adversarial, y)
        gradients = torch.autograd.grad(value, (clean, adversarial), allow_unused=True)
        told = [[0.0] * 12 if g is None else [round(float(v), 7) for v in g.flatten()] for g in gradients]
        print(loss.__name__, round(value.item(), 7), *told, sep="\n    ")


if __name__ == "__main__":
    main()

"""Prints the numbers that the tests of the optimizers and of the one-cycle schedule hold on to, computed by PyTorch.

    pip install torch==2.13.0 numpy && python scripts/golden/optimizers.py
"""

import torch

STEPS = 4


def descend(make):
    """Minimises sum(w^3)/3 + b * sum(w) from a fixed start; returns the weights after each step."""
    w = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64, requires_grad=True)
    bias = torch.tensor([0.25], dtype=torch.float64, requires_grad=True)
    optimizer = make([w, bias])
    for _ in range(STEPS):
        optimizer.zero_grad()
        (w.pow(3).sum() / 3 + bias.sum() * w.sum()).backward()
        optimizer.step()
    return [round(float(v), 9) for v in [*w.detach(), *bias.detach()]]


def main():
    print("sgd", descend(lambda p: torch.optim.SGD(p, lr=0.1)))
    print("momentum", descend(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01)))
    print("nesterov", descend(lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01, nesterov=True)))
    print("adam", descend(lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01)))
    print("adamw", descend(lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01)))
    for total, share in [(10, 0.3), (40, 0.25)]:
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimizer, max_lr=0.1, total_steps=total, pct_start=share, cycle_momentum=False
        )
        rates = []
        for _ in range(total):
            rates.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            if len(rates) < total:
                schedule.step()
        print(f"one-cycle {total} {share}", [round(rate, 10) for rate in rates])


if __name__ == "__main__":
    main()

"""Prints the distances that the test of FAB holds on to: algorithm 1 of Croce & Hein 2020 without its final search, in
float64, one sample at a time, with the projections found by sorting, on a ReLU network whose weights are sines.

    pip install numpy && python scripts/golden/fab.py
"""

import numpy as np

INPUTS, HIDDEN, CLASSES, SAMPLES = 12, 16, 5, 10
STEPS = 100
ALPHA_MAX, ETA, BETA = 0.1, 1.05, 0.9

W1 = 0.8 * np.sin(1.7 * np.arange(HIDDEN * INPUTS) + 0.3).reshape(HIDDEN, INPUTS)
B1 = 0.4 * np.cos(2.3 * np.arange(HIDDEN)) - 0.5 * W1.sum(1) + 0.2
W2 = np.sin(2.9 * np.arange(CLASSES * HIDDEN) + 1.1).reshape(CLASSES, HIDDEN)
B2 = 0.1 * np.cos(1.3 * np.arange(CLASSES))
X = 0.5 + 0.5 * np.sin(3.1 * np.arange(SAMPLES * INPUTS) + 0.7).reshape(SAMPLES, INPUTS)


def logits(x):
    return W2 @ np.maximum(W1 @ x + B1, 0) + B2


def gradients(x):
    return W2 @ ((W1 @ x + B1 > 0)[:, None] * W1)


def length(move, norm):
    return np.linalg.norm(move, {"linf": np.inf, "l2": 2, "l1": 1}[norm])


def project(x, normal, gap, norm):
    """Shortest move to `gap + normal @ move = 0` in the box; values stop at their faces in the order of their stops, in L1 they
    go to their faces in the order of `|normal|`."""
    if gap < 0:
        normal, gap = -normal, -gap
    room = np.where(normal > 0, x, 1 - x)
    if norm == "l1":
        length = np.zeros_like(x)
        for i in np.argsort(-abs(normal)):
            if normal[i] != 0:
                length[i] = min(room[i], gap / abs(normal[i]))
                gap -= abs(normal[i]) * length[i]
        return -np.sign(normal) * length
    speed = np.ones_like(x) if norm == "linf" else np.abs(normal)
    if (np.abs(normal) * room).sum() <= gap:
        return -np.sign(normal) * room
    stops = room / speed
    rate, time = (np.abs(normal) * speed).sum(), 0.0
    for i in np.argsort(stops):
        if rate * (stops[i] - time) >= gap:
            break
        gap -= rate * (stops[i] - time)
        rate -= abs(normal[i]) * speed[i]
        time = stops[i]
    return -np.sign(normal) * np.minimum((time + gap / rate) * speed, room)


def nearest_class(z, g, y, norm):
    def distance(k):
        return abs(z[k] - z[y]) / np.linalg.norm(g[k] - g[y], {"linf": 1, "l2": 2, "l1": np.inf}[norm])

    return min((k for k in range(CLASSES) if k != y), key=distance)


def run(x0, y, target, norm):
    """Best adversarial example against one target (None: the nearest class), or None."""
    x, best = x0, None
    for _ in range(STEPS):
        z, g = logits(x), gradients(x)
        k = nearest_class(z, g, y, norm) if target is None else target
        gap, normal = z[k] - z[y], g[k] - g[y]
        own = project(x, normal, gap, norm)
        clean = project(x0, normal, gap + normal @ (x0 - x), norm)
        a, b = max(length(own, norm), 1e-8), max(length(clean, norm), 1e-8)
        alpha = min(a / (a + b), ALPHA_MAX)
        x = np.clip((1 - alpha) * (x + ETA * own) + alpha * (x0 + ETA * clean), 0, 1)
        if logits(x).argmax() != y:
            if best is None or length(x - x0, norm) < length(best - x0, norm):
                best = x
            x = x0 + BETA * (x - x0)
    return best


def main():
    for norm in ["linf", "l2", "l1"]:
        for targeted in [True, False]:
            found = []
            for x0 in X:
                y = logits(x0).argmax()
                targets = np.argsort(-logits(x0))[1:] if targeted else [None]
                examples = [run(x0, y, target, norm) for target in targets]
                found.append(min(length(e - x0, norm) for e in examples if e is not None))
            print(norm, "targeted" if targeted else "untargeted", [round(float(d), 6) for d in found])


if __name__ == "__main__":
    main()

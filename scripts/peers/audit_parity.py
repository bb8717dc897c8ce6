#!/usr/bin/env python3
"""Puts `gauntlet audit` beside the public AutoAttack on the same weights and images: each attack alone, then the ensemble.

    venv/bin/python scripts/peers/audit_parity.py WEIGHTS DATA --data mnist --threat linf:0.3 --samples 1000 --out OUT

WEIGHTS, DATA and the environment are those of `autoattack.py` beside this script; `gauntlet` must be on the path and know the
data set (`gauntlet data fetch`). Both sides run one after the other, with the same number of threads. Writes OUT/peer.npz,
OUT/ATTACK/ (audits) and prints a table in Markdown: shares left standing, samples on which the two disagree, seconds.

With --only ours or --only peer one side is run, and the other's results are taken from OUT.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys

import numpy as np

PLANS = {
    "apgd-ce": {"kind": "apgd"},
    "apgd-t": {"kind": "apgd", "loss": "targeted-dlr"},
    "fab-t": {"kind": "fab"},
    "square": {"kind": "square"},
}


def plan(name, threat):
    """A TOML plan of one attack."""
    keys = "\n".join(f'{key} = "{value}"' for key, value in PLANS[name].items())
    return f'name = "{name} alone"\n\n[[threat]]\nwithin = "{threat}"\n\n[[threat.attack]]\n{keys}\n'


def outcomes(path):
    """Tensors of a safetensors file, by name."""
    types = {"F32": "<f4", "I64": "<i8"}
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    header.pop("__metadata__", None)
    return {
        name: np.frombuffer(data[slice(*entry["data_offsets"])], dtype=types[entry["dtype"]])
        for name, entry in header.items()
    }


def ours(args, name):
    folder = args.out / name
    folder.mkdir(parents=True, exist_ok=True)
    command = ["gauntlet", "audit", args.weights, "--data", args.data, "--samples", args.samples, "--out", folder]
    command += ["--device", "cpu", "--jobs", args.threads, "--no-diagnosis", "--quiet", "--json", "-"]
    if args.arch:
        command += ["--arch", args.arch]
    for key in ("mean", "std"):
        if getattr(args, key):
            command += [f"--{key}", *getattr(args, key)]
    if name == "ensemble":
        command += ["--threat", args.threat]
    else:
        path = folder / "plan.toml"
        path.write_text(plan(name, args.threat))
        command += ["--plan", path]
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
    audit = json.loads((folder / "audit.json").read_text())
    found = outcomes(folder / "outcomes.safetensors")
    (fell,) = [values for key, values in found.items() if key.endswith("/fell_to")]
    attacks = audit["threats"][0]["attacks"]
    return (found["clean"] == found["label"]) & (fell < 0), [attack["seconds"] for attack in attacks]


def peer(args):
    if args.only != "ours":
        norm, eps = args.threat.split(":")
        script = pathlib.Path(__file__).with_name("autoattack.py")
        command = [sys.executable, script, args.weights, args.folder, "--norm", norm.capitalize(), "--eps", eps]
        command += ["--samples", args.samples, "--threads", args.threads, "--keep", args.out / "peer.npz"]
        for key in ("mean", "std"):
            if getattr(args, key):
                command += [f"--{key}", *getattr(args, key)]
        told = subprocess.run([str(part) for part in command], check=True, stdout=subprocess.PIPE, text=True).stdout
        (args.out / "peer.json").write_text(told.strip().splitlines()[-1] + "\n")
    return json.loads((args.out / "peer.json").read_text()), np.load(args.out / "peer.npz")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=pathlib.Path)
    parser.add_argument("folder", type=pathlib.Path, metavar="DATA")
    parser.add_argument("--data", required=True, help="what Gauntlet calls the data set")
    parser.add_argument("--threat", required=True, help="linf:0.3, l2:0.5")
    parser.add_argument("--arch", help="what Gauntlet calls the architecture, where it cannot tell from the weights")
    parser.add_argument("--samples", type=int, default=1000)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--mean", nargs="*", default=[])
    parser.add_argument("--std", nargs="*", default=[])
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--only", choices=["ours", "peer"])
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    result, kept = peer(args)
    if args.only == "peer":
        return
    print(f"| attack | gauntlet | AutoAttack | only they break | only we break | seconds: gauntlet | AutoAttack | ratio |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|")
    for name in [*PLANS, "ensemble"]:
        stands, seconds = ours(args, name)
        theirs = kept[name]
        mine, others, other = sum(seconds), result[name]["seconds"], result[name]["standing"]
        print(
            f"| {name} | {100 * stands.mean():.1f} % | {100 * other:.1f} % | {(stands & ~theirs).sum()} "
            f"| {(theirs & ~stands).sum()} | {mine:.0f} | {others:.0f} | {mine / others:.2f} |",
            flush=True,
        )
    print(f"\nclean {100 * result['clean']:.1f} %, torch {result['torch']}, torchattacks {result['torchattacks']}, {args.threads} threads")


if __name__ == "__main__":
    main()

"""A comparison of benchmarks/compare.py in a temporary directory, with scripts that train nothing."""
import csv
import json
import os
import re
import sys

from processes import ROOT

sys.path.insert(0, os.path.join(ROOT, "benchmarks"))

# Takes the figures of a run from figures.json beside it: {"METHOD RATE SEED": [validation, test], or an error's line}.
FAKE = """
import json, os, signal, sys, time
here = os.path.dirname(os.path.abspath(__file__))
argv = sys.argv[1:]
def option(name):
    return argv[argv.index("--" + name) + 1] if "--" + name in argv else "-"
with open(os.path.join(here, "calls"), "a") as file:
    file.write(" ".join([os.path.basename(sys.argv[0])] + argv) + "\\n")
if option("mode") == "eval":
    print("[Epoch 0] Recall@1: [70.0000] test\\n[Epoch 0] Recall@1: [60.0000] val\\n[Epoch 0] MAP@R: [40.0000] test")
    sys.exit()
directory = option("save_dir")
def write(name, text):
    with open(os.path.join(directory, name), "w") as file:
        file.write(text)
def stop(*_):
    write("checkpoint.pth", "state")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
with open(os.path.join(here, "figures.json")) as file:
    figures = json.load(file)
name = "teacher" if option("mode") == "train" else " ".join([argv[argv.index("--method_ratio") + 1], option("lr"),
                                                             option("seed")])
found = figures.get(name, figures.get(name.split(" ")[0]))
if found == "wait":
    write("waiting", "")
    time.sleep(100)
if found == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
if isinstance(found, str):
    print("Some line\\n" + found)
    sys.exit(1)
val, test = found
lines = [{"epoch": 0, "recall": {"val": {"1": 0.1}, "test": {"1": 0.05}}, "map@r": {"val": 0.1, "test": 0.02}},
         {"epoch": 1, "loss": 1.5},
         {"epoch": 2, "recall": {"val": {"1": val}, "test": {"1": test}}, "map@r": {"val": 0.1, "test": test / 2}},
         {"epoch": 3, "recall": {"val": {"1": val / 2}, "test": {"1": 0.9}}, "map@r": {"val": 0.1, "test": 0.8}}]
write("log.jsonl", "".join(json.dumps(line) + "\\n" for line in lines))
write("speed.jsonl", '{"epoch": 1, "seconds": 2.5}\\n{"epoch": 2, "seconds": 1.5}\\n')
for weights in ("checkpoint.pth", "last.pth", "best.pth"):
    write(weights, "0" * 2000000)
write("result.txt", "done\\n")
"""
COMPARISON = """
[compare]
sizes = 16
rates = 1e-3 1e-4 1e-2  # in any order
seeds = 0 1 2

[data]
dataset = synthetic
val_classes = 10

[training]
epochs = 3

[student]
base = tiny
zero_init_residual =

[teacher]
base = tiny
embedding_size = 512
"""
METHODS = "[methods]\none = --method_ratio one\ntwo = --method_ratio two\n"
AS_IT_COMES = COMPARISON.replace("[teacher]", "[teacher as it comes]").replace("= 512", "= 0\npretrained = weights.pth")


class Place:
    """A comparison in a temporary directory."""

    def __init__(self, folder):
        self.folder, self.out = folder, folder / "out"
        for script in ("run.py", "run_distill.py"):
            (folder / script).write_text(FAKE)
        (folder / "methods.ini").write_text(METHODS)
        self.describe(COMPARISON)

    def describe(self, text):
        (self.folder / "trial.ini").write_text(text)

    def figures(self, **figures):
        figures.setdefault("teacher", [0.9, 0.8])
        (self.folder / "figures.json").write_text(json.dumps({key.replace("__", " "): value for key, value in
                                                              figures.items()}))

    def argv(self, *more):
        return [str(self.folder / "trial.ini"), "--save_dir", str(self.out), "--methods",
                str(self.folder / "methods.ini")] + list(more)

    def calls(self):
        """Return what was started since the last time, as (method, rate, seed) or "teacher"."""
        path = self.folder / "calls"
        lines = path.read_text().splitlines() if path.exists() else []
        path.write_text("")
        return [(re.search("--method_ratio (\\w+)", line).group(1), float(re.search("--lr (\\S+)", line).group(1)),
                 int(re.search("--seed (\\d+)", line).group(1))) if "--method_ratio" in line else "teacher"
                for line in lines]

    def rows(self):
        """Return {method: {column: text}} of table.csv."""
        with open(str(self.out / "table.csv"), newline="") as file:
            return {row["method"]: row for row in csv.DictReader(file)}

    def run_directory(self, method, rate, seed):
        return self.out / "d16" / method / "lr{:g}".format(rate) / "seed{}".format(seed)

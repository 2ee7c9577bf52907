"""What the benchmarks share: each way of doing a job runs in a process of its own, in turn, and is timed inside it."""
import argparse
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time

import torch

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)


def installed(package):
    return importlib.util.find_spec(package) is not None


def parser(description, repeats=3):
    result = argparse.ArgumentParser(description=description)
    result.add_argument("--repeats", type=int, default=repeats, help="rounds; in each, every way runs once")
    result.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    result.add_argument("--threads", type=int, default=0, help="CPU threads of torch; 0 leaves them")
    result.add_argument("--only", nargs=2, metavar=("CASE", "WAY"), help=argparse.SUPPRESS)
    return result


def _peak_bytes():
    """The most memory that this process has had at once."""
    import resource
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _memory_now():
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return _peak_bytes()


def _synchronise(device):
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def _run_one(job, device):
    """Time a job in this process; print its figures as one line of JSON."""
    count, work, prepare, warm_up = job["count"], job["work"], job.get("prepare"), job.get("warm_up", True)
    state = prepare() if prepare else ()
    before = _memory_now()
    if warm_up:
        work(*state)
    _synchronise(device)
    seconds = []
    while not seconds or (sum(seconds) < 1 and len(seconds) < 20):
        started = time.perf_counter()
        work(*state)
        _synchronise(device)
        seconds.append(time.perf_counter() - started)
    memory = torch.cuda.max_memory_allocated() if device.startswith("cuda") else _peak_bytes() - before
    print(json.dumps({"seconds": statistics.median(seconds), "count": count, "bytes": max(0, memory)}))


def main(args, cases, unit):
    """Run every way of every case in turn and print the table.

    Args:
        cases: {case: {way: job}}; the first way is the one that the others are compared to. A job is a dict: ``work``,
            called with what ``prepare()`` returns; ``count`` of ``unit`` in one call; ``warm_up`` False for long ones.
        unit: None for a table in seconds, else what is counted a second.
    """
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.only:
        return _run_one(cases[args.only[0]][args.only[1]], args.device)
    command = [sys.executable] + sys.argv
    results = {}
    for _ in range(args.repeats):
        for case, ways in cases.items():
            for way in ways:
                output = subprocess.run(command + ["--only", case, way], stdout=subprocess.PIPE, check=True).stdout
                results.setdefault((case, way), []).append(json.loads(output.decode().splitlines()[-1]))
    device = torch.cuda.get_device_name() if args.device.startswith("cuda") else "{} CPU threads, {}".format(
        torch.get_num_threads(), platform.machine())
    print("{}, {}, Python {}, torch {}; `python3 {}`; median of {} interleaved rounds\n".format(
        datetime.date.today(), device, platform.python_version(), torch.__version__,
        " ".join([os.path.relpath(sys.argv[0], ROOT)] + sys.argv[1:]), args.repeats))
    print("| what | how | {} | times as fast | peak memory |".format(unit + "/s" if unit else "time"))
    print("|---|---|---|---|---|")
    for case, ways in cases.items():
        first = next(iter(ways))
        for way in ways:
            rounds = results[case, way]
            speeds = [figures["count"] / figures["seconds"] for figures in rounds]
            ratios = [speed * base["seconds"] / base["count"] for speed, base in zip(speeds, results[case, first])]
            figure = "{:.1f}".format(statistics.median(speeds)) if unit else _time(1 / statistics.median(speeds))
            print("| {} | {} | {} | {:.2f} | {:.0f} MB |".format(
                case, way, figure, statistics.median(ratios), max(figures["bytes"] for figures in rounds) / 1e6),
                flush=True)


def _time(seconds):
    return "{:.2f} s".format(seconds) if seconds >= 1 else "{:.2f} ms".format(1000 * seconds)

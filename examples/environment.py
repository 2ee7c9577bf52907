"""Find or make a Python that has what this project needs, and print its path.

    python=$(python3 examples/environment.py [more-requirements.txt ...])

A Python whose torch already satisfies requirements.txt (a vendor's build, an active environment) is used: as it is,
or with the little that it lacks put into .venv on top of it. Otherwise .venv gets everything. This script itself needs
the standard library alone.
"""
import os
import platform
import re
import shutil
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
OLDEST_PYTHON = (3, 8)
# The first torch that was built against NumPy 2; an older one can't exchange arrays with it.
FIRST_TORCH_FOR_NUMPY_2 = (2, 3)

# Run by the interpreter that is asked about: prints "name version" of each package that imports.
PROBE = """
import importlib, sys
sys.path.insert(0, sys.argv[1])
for package in sys.argv[2:]:
    try:
        if package == "torchvision":
            from model.compat import import_torchvision
            module = import_torchvision()
        else:
            module = importlib.import_module({"pillow": "PIL", "pytest-xdist": "xdist"}.get(package, package))
        print(package, module.__version__)
    except Exception:  # whatever keeps it from being imported, it is not usable: it stays unlisted and is installed
        pass
"""


def say(message):
    print(message, file=sys.stderr, flush=True)


def numbers(version):
    """Return the leading numbers of a version: "2.13.0+cpu" -> (2, 13, 0)."""
    return tuple(int(part) for part in re.match(r"[0-9.]*", version).group().split(".") if part)


def read_requirements(paths):
    """Return {package: oldest version} of files whose lines are ``package>=version``."""
    wanted = {}
    for path in paths:
        with open(path, encoding="utf-8") as file:
            for line in file:
                line = line.split("#")[0].strip()
                if line:
                    package, oldest = line.split(">=")
                    wanted[package] = numbers(oldest)
    return wanted


def installed(python, packages):
    """Return {package: version} of those that the interpreter can import."""
    try:
        answer = subprocess.run([python, "-c", PROBE, ROOT] + list(packages), stdout=subprocess.PIPE,
                                stderr=subprocess.DEVNULL, universal_newlines=True)
    except OSError:
        return {}
    return dict(line.split(" ", 1) for line in answer.stdout.splitlines() if " " in line)


def missing(found, wanted):
    return [package for package, oldest in wanted.items() if package not in found or numbers(found[package]) < oldest]


def run(command, failure):
    """Run a command with its output on stderr; end with one line if it fails."""
    if subprocess.run(command, stdout=sys.stderr).returncode:
        say("error: {}".format(failure))
        sys.exit(1)


def put_on_top_of(base, venv_python):
    """Let .venv see the packages of the interpreter ``base`` (which may itself live in an environment)."""
    code = "import os, torch; print(os.path.dirname(os.path.dirname(os.path.abspath(torch.__file__))))"
    packages = subprocess.check_output([base, "-c", code], universal_newlines=True).strip()
    code = "import sysconfig; print(sysconfig.get_paths()['purelib'])"
    own = subprocess.check_output([venv_python, "-c", code], universal_newlines=True).strip()
    with open(os.path.join(own, "active_python.pth"), "w") as file:
        file.write(packages + "\n")


def cpu_build(python):
    """Return ["torch==VERSION+cpu"] where there is no accelerator and pip's sources offer such a build, else [].

    The common build carries gigabytes of CUDA libraries, which a machine without a card has no use for.
    """
    has_card = shutil.which("nvidia-smi") or os.path.exists("/dev/nvidia0") or os.path.exists("/dev/nvidiactl")
    if has_card or platform.system() != "Linux":
        return []
    answer = subprocess.run([python, "-m", "pip", "index", "versions", "torch"], stdout=subprocess.PIPE,
                            stderr=subprocess.DEVNULL, universal_newlines=True)
    builds = re.findall(r"[0-9.]+\+cpu", answer.stdout)
    return ["torch==" + max(builds, key=numbers)] if builds else []


def main(more):
    base = sys.executable
    if sys.version_info < OLDEST_PYTHON:
        say("error: Python {} is too old; 3.8 or newer is needed (set PYTHON)".format(platform.python_version()))
        return 2
    files = [os.path.join(ROOT, "requirements.txt")] + more
    wanted = read_requirements(files)
    venv_python = os.path.join(VENV, "Scripts" if os.name == "nt" else "bin", "python")
    active = installed(base, wanted)
    for python, found in ((base, active), (venv_python, installed(venv_python, wanted))):
        if not missing(found, wanted):
            print(python)
            return 0

    run([base, "-m", "venv"] + ([] if installed(venv_python, ["pip"]) else ["--clear"]) + [VENV],
        "no virtual environment could be made in {}; on Debian and Ubuntu: apt install python3-venv".format(VENV))
    choice = []
    if not missing(active, {"torch": wanted["torch"]}):
        say("Using the installed torch {}; putting what it lacks into .venv".format(active["torch"]))
        put_on_top_of(base, venv_python)
        if numbers(active["torch"])[:2] < FIRST_TORCH_FOR_NUMPY_2 and "numpy" not in active:
            choice = ["numpy<2"]
    else:
        choice = cpu_build(venv_python)
        say("Installing {} into .venv (once; some minutes)".format(" ".join(choice) or "torch"))
    listed = [word for path in files for word in ("-r", path)]
    run([venv_python, "-m", "pip", "install", "--disable-pip-version-check", "-q"] + choice + listed,
        "pip could not install the requirements; its message stands above")
    lacking = missing(installed(venv_python, wanted), wanted)
    if lacking:
        say("error: after the installation these can't be imported: {}".format(", ".join(lacking)))
        return 1
    print(venv_python)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

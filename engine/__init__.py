"""What both scripts share about running: options, device, the epoch loop, evaluation, files."""
import importlib.util
import sys

_PACKAGES = {"torch": "torch", "torchvision": "torchvision", "numpy": "numpy", "tqdm": "tqdm", "PIL": "pillow"}
_MISSING = [package for module, package in _PACKAGES.items() if importlib.util.find_spec(module) is None]
if _MISSING:  # one of the imports to come would fail with a traceback
    sys.stderr.write("error: {} has no {}: pip install -r requirements.txt, or, if examples/quickstart.sh made it, "
                     "source .venv/bin/activate\n".format(sys.executable, ", ".join(_MISSING)))
    sys.exit(2)

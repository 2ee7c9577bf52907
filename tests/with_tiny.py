"""Run a script of the repository's root that knows the backbone "tiny": python3 tests/with_tiny.py run.py OPTIONS"""
import os
import runpy
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

import tiny  # noqa: E402

if __name__ == "__main__":
    tiny.register()
    del sys.argv[0]
    runpy.run_path(os.path.join(ROOT, sys.argv[0]), run_name="__main__")

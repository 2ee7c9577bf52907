#!/usr/bin/env bash
# Run all tests; makes the environment first if there is none. Arguments go to pytest:  bash tests/run.sh -k recall
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$("${PYTHON:-python3}" examples/environment.py tests/requirements.txt)
exec "$python" -m pytest -q -ra "$@"

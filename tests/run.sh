#!/usr/bin/env bash
# Run all tests, 4 at a time; makes the environment first if there is none. Arguments go to pytest:
#   bash tests/run.sh -k recall        bash tests/run.sh -n 0 -x        RKD_KILLS=300 bash tests/run.sh -k kills
# RKD_KILLS and RKD_COMMAND_LINES make the tests that kill runs and that draw command lines longer.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=$("${PYTHON:-python3}" examples/environment.py tests/requirements.txt)
exec "$python" -m pytest -q -ra -n 4 --dist worksteal "$@"

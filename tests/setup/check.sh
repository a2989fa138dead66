#!/bin/bash
# check.sh: what sets the project up keeps its promises: the scheduler of `make test`, and the check of licences and origins.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/checking.sh"

check "setup: the scheduler of make test" python3 "$here/schedule_check.py"
check "setup: what deny.toml forbids is found" python3 "$here/deny_check.py"
checked

# Sourced by the check scripts: `check NAME COMMAND...` prints "ok NAME" or "FAILED NAME" with the command's output;
# `checked` prints the count and ends the script, failing when a check failed.

passed=0 failed=0
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

check() {
  local name=$1 begin=$SECONDS
  shift
  if "$@" >"$scratch/output" 2>&1; then
    passed=$((passed + 1))
    echo "ok $name ($((SECONDS - begin)) s)"
  else
    failed=$((failed + 1))
    echo "FAILED $name"
    sed 's/^/    /' "$scratch/output"
  fi
}

checked() {
  echo "${0##*/}: $passed passed, $failed failed"
  [ "$failed" = 0 ]
  exit
}

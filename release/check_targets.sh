#!/usr/bin/env bash
# Runs targets of the Makefile as on a new machine: each in a clean clone of what is committed, without an environment, and
# with quick arguments. Usage: release/check_targets.sh [--list | TARGET...], all of them where none is named.
# PYTHON names another Python; CHECK_FULL=1 runs the targets as a user would, without quick arguments.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
read -ra all < <(sed -n 's/^\.PHONY: //p' "$root/Makefile")
if [[ ${1-} == --list ]]; then
  printf '%s\n' "${all[@]}"
  exit
fi
python=$("${PYTHON:-python3}" -c 'import sys; print(sys.executable)')
PIP_CACHE_DIR=$("$python" -m pip cache dir)
export PIP_CACHE_DIR
unset PYTHONPATH VIRTUAL_ENV KERAS_BACKEND XLA_FLAGS JAX_PLATFORMS

# Long targets without arguments: each of their commands is done within a minute, or still at work.
start() {
  make PYTHON="$python" ".venv/$2"
  make -n "$1" | grep -- ' -m experiments' | while read -r command; do
    echo "$command"
    timeout 60 bash -c "$command" </dev/null >/dev/null || [[ $? == 124 ]]
  done
}

quick() {
  local collect='PYTEST=.venv/bin/python -m pytest --collect-only -q' digits='--rounds=20 --seed=0 --algorithms no_prune rigl'
  local study='--seeds 1 --steps 20 --evaluations 2 --changes 2'
  case $1 in
    test | doctests | coverage) make PYTHON="$python" "$1" "$collect" | tail -3 ;;
    demo) make PYTHON="$python" demo ARGS="$digits" | tail -3 ;;
    demo-flower) make PYTHON="$python" demo-flower ARGS='--rounds=1 --nodes=2' | tail -8 ;;
    demo-rl) make PYTHON="$python" demo-rl ARGS='--seed=0 --pong-steps=100' | tail -3 ;;
    check-dist) make PYTHON="$python" check-dist EXTRAS=core ;;
    check-newest) make PYTHON="$python" check-newest EXTRAS=gymnax ;;
    bench) start bench .demo ;;
    bench-rl) start bench-rl .demo-rl ;;
    fuzz) make PYTHON="$python" fuzz ARGS='--seconds=5' 2>&1 | tail -3 ;;
    study) make PYTHON="$python" study ARGS="--dataset=digits $digits" | tail -3 ;;
    study-rl) make PYTHON="$python" study-rl ARGS='--sparsities 0.9 --algorithms no_prune rigl --seeds 1 --steps 12000' | tail -3 ;;
    study-vision) make PYTHON="$python" study-vision ARGS="resnet --data digits --model resnet8 --only dense rigl $study" | tail -3 ;;
    study-t5) make PYTHON="$python" study-t5 ARGS="algorithms --only dense rigl $study" | tail -3 ;;
    tables) make PYTHON="$python" tables ARGS='experiments/results/fed_strokes' | tail -3 ;;
    kills) make PYTHON="$python" kills ARGS='--kills=1' | tail -3 ;;
    *) make PYTHON="$python" "$1" | tail -20 ;;
  esac
}

# In a subshell, which takes its folder away with it.
check() (
  set -e
  folder=$(mktemp -d)
  trap 'rm -rf "$folder"' EXIT
  git clone --quiet "$root" "$folder/clone"
  cd "$folder/clone"
  git checkout --quiet --detach "$(git -C "$root" rev-parse HEAD)"
  export HOME=$folder/home
  mkdir "$HOME"
  if [[ ${CHECK_FULL-} ]]; then make PYTHON="$python" "$1"; else quick "$1"; fi
  left=$(git status --porcelain)
  if [[ $left && $1 != lock ]]; then
    echo "make $1 left this behind: $left"
    exit 1
  fi
)

[[ $# -gt 0 ]] || set -- "${all[@]}"
failed=()
for target; do
  SECONDS=0
  set +e # a call in a condition would switch it off inside as well
  check "$target"
  status=$?
  set -e
  if [[ $status == 0 ]]; then
    echo "make $target works from a clean clone: $SECONDS s"
  else
    echo "make $target FAILED in a clean clone: exit status $status" >&2
    failed+=("$target")
  fi
done
[[ ${#failed[@]} == 0 ]]

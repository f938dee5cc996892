#!/usr/bin/env bash
# Installs the wheel of dist/ with one extra into an empty environment, and uses what that extra is for.
# Usage: release/check_extra.sh PYTHON EXTRA [newest], with `core` for none; `newest` takes the newest releases that
# pyproject.toml allows in place of those of the lock.
set -euo pipefail
python=$1 extra=$2 releases=${3-locked}
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT
unset PYTHONPATH

extras=$extra
case $extra in
  core) extras='' ;;
  fed) extras=fed,experiments ;;
  gymnax) extras=gymnax,haiku ;;
  zstd) extras=fed,zstd ;;
esac
case $releases in
  locked) constraint=(--constraint "$root/requirements.lock") ;;
  newest) constraint=(--upgrade-strategy eager) ;;
  *) echo "$releases is neither 'newest' nor left out" >&2; exit 2 ;;
esac

"$python" -m venv "$empty/env"
"$empty/env/bin/python" -m pip install -qq --disable-pip-version-check "${constraint[@]}" \
  "$(ls "$root"/dist/*.whl)${extras:+[$extras]}"
cd "$empty"
"$empty/env/bin/python" "$root/release/use_extra.py" "$extra"
if [[ $extra == fed && $releases == locked ]]; then
  cp -r "$root/experiments" .
  "$empty/env/bin/python" -m experiments.fed_emnist --dataset=digits --algorithms no_prune magnitude rigl --seed=0 --output=runs | tail -8
fi

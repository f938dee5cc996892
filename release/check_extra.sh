#!/usr/bin/env bash
# Installs the wheel of dist/ with one extra into an empty environment, and uses what that extra is for.
# Usage: release/check_extra.sh PYTHON EXTRA, with `core` for none.
set -euo pipefail
python=$1 extra=$2
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
empty=$(mktemp -d)
trap 'rm -rf "$empty"' EXIT

extras=$extra
case $extra in
  core) use='import sparse_plugins' extras='' ;;
  fed) use='from sparse_plugins import fed; fed.import_fedjax()' extras=fed,experiments ;;
  dopamine) use='import sparse_plugins.rl.dopamine' ;;
  haiku) use='import sparse_plugins.rl.haiku' ;;
  atari) use='from sparse_plugins.rl import atari' ;;
  gymnax) use='from sparse_plugins import rl; rl.FusedTrainer' extras=gymnax,haiku ;;
  vision) use='from sparse_plugins import vision; vision.TrainState, vision.Optimizer' ;;
  t5) use='from sparse_plugins import t5; t5.SparseOptimizer' ;;
  zstd) use='import zstandard' ;;
  all) use='from sparse_plugins import fed, rl, vision, t5; import sparse_plugins.rl.dopamine, sparse_plugins.rl.haiku' ;;
  *) echo "there is no extra $extra" >&2; exit 2 ;;
esac

"$python" -m venv "$empty/env"
"$empty/env/bin/python" -m pip install -qq --disable-pip-version-check --constraint "$root/requirements.lock" \
  "$(ls "$root"/dist/*.whl)${extras:+[$extras]}"
cd "$empty"
"$empty/env/bin/python" -c "
$use
import sparse_plugins
assert sparse_plugins.__file__.startswith('$empty'), sparse_plugins.__file__
print('$extra:', sparse_plugins.__version__, 'imports from the wheel')"
if [[ $extra == fed ]]; then
  cp -r "$root/experiments" .
  "$empty/env/bin/python" -m experiments.fed_emnist --dataset=digits --algorithms no_prune magnitude rigl --seeds=0 --output=runs | tail -8
fi

# Every target works from a clean clone; the first call of demo or test makes the environment.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

PYTHON ?= python3
VENV := .venv
IN_VENV := $(VENV)/bin/python
# Other versions than the lock's: a file of constraints, or nothing for the newest that pyproject.toml allows.
LOCK ?= requirements.lock
INSTALL = $(IN_VENV) -m pip install -qq --disable-pip-version-check $(LOCK:%=--constraint %) --editable
CHECKED := sparse_plugins experiments tests docs examples release
EXTRAS := core fed flower dopamine haiku atari gymnax vision keras t5 zstd all
# gymnax 1.0.1 runs with the JAX that Python 3.13 gets here, and asks for an older one: there it comes in by itself.
GYMNAX_APART = $(shell $(firstword $(wildcard $(IN_VENV)) $(PYTHON)) -c 'import sys; print("yes" * (sys.version_info >= (3, 13)))')
ALL = $(if $(GYMNAX_APART),$(filter-out core gymnax all,$(EXTRAS)),all)
comma := ,
as_list = $(subst $() ,$(comma),$(strip $(1)))
# Groups stay in one process: the tests of Dopamine share its compiled steps.
# Keras's example is run by tests/integration/test_keras.py: in these processes Dopamine has brought Keras on TensorFlow.
PYTEST = $(IN_VENV) -m pytest --numprocesses=logical --maxprocesses=4 --dist=loadgroup --ignore=sparse_plugins/keras

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(IN_VENV):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python " + sys.version.split()[0] + \
	  " is too old: sparse-plugins needs 3.11 or later. Name another one: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)

# A stamp says that its packages are installed as the two files it depends on ask.
$(VENV)/.demo: pyproject.toml requirements.lock | $(IN_VENV)
	$(INSTALL) '.[fed,experiments]'
	@touch $@

$(VENV)/.dev-core: pyproject.toml requirements.lock | $(IN_VENV)
	$(INSTALL) '.[dev-core]'
	@touch $@

$(VENV)/.demo-rl: pyproject.toml requirements.lock | $(IN_VENV)
	$(INSTALL) '.[$(call as_list,dopamine haiku $(if $(GYMNAX_APART),,gymnax) experiments)]'
	$(if $(GYMNAX_APART),$(filter-out --editable,$(INSTALL)) seaborn six)
	$(if $(GYMNAX_APART),$(filter-out --editable,$(INSTALL)) --no-deps gymnax)
	@touch $@

$(VENV)/.demo-flower: pyproject.toml requirements.lock | $(IN_VENV)
	$(INSTALL) '.[flower,experiments,zstd]'
	@touch $@

$(VENV)/.dev: $(VENV)/.demo $(VENV)/.demo-flower $(VENV)/.demo-rl
	$(INSTALL) '.[$(call as_list,$(ALL) experiments dev)]'
	@touch $@

$(VENV)/.docs: pyproject.toml requirements.lock | $(IN_VENV)
	$(INSTALL) '.[$(call as_list,$(ALL) experiments docs)]'
	@touch $@

demo: $(VENV)/.demo ## Federated training on real handwriting, dense and sparse; add flags as ARGS="--rounds=..."
	$(IN_VENV) -m experiments.fed_emnist --dataset=digits --jobs=2 $(ARGS)

demo-flower: $(VENV)/.demo-flower ## Digits on a SuperLink and three SuperNodes of Flower, dense and sparse: accuracy and bytes on the wire
	$(IN_VENV) -m experiments.demos.flower $(ARGS)

demo-rl: $(VENV)/.demo-rl ## DQN on CartPole, dense and sparse, then Pong from its ROM: table, plot and GIF
	$(IN_VENV) -m experiments.demos.rl_demo $(ARGS)

test: lint types ## Lint, types, doctests, README code and the suite
	$(PYTEST) --doctest-modules sparse_plugins experiments tests

test-core: $(VENV)/.dev-core ## The core and the wire, without TensorFlow, FedJAX and what takes long: about 3 minutes
	$(PYTEST) -m 'not thorough' --doctest-modules sparse_plugins/core sparse_plugins/wire tests/core tests/contract tests/wire

lint: $(VENV)/.dev ## Style and layering rules
	$(IN_VENV) -m ruff check $(CHECKED)
	$(IN_VENV) -m ruff format --check $(CHECKED)

types: $(VENV)/.dev ## Static types of the package and the experiments
	$(IN_VENV) -m mypy

doctests: $(VENV)/.dev ## Only the examples in docstrings
	$(PYTEST) --doctest-modules sparse_plugins experiments

format: $(VENV)/.dev ## Rewrite the code in the house style
	$(IN_VENV) -m ruff check --fix $(CHECKED)
	$(IN_VENV) -m ruff format $(CHECKED)

coverage: $(VENV)/.dev ## The suite again, with the share of branches that it takes in each file: an hour
	$(PYTEST) --doctest-modules --cov=sparse_plugins --cov-branch --cov-report=term:skip-covered sparse_plugins tests

dist: $(VENV)/.dev ## Wheel and source archive in dist/, checked
	$(INSTALL) '.[release]'
	rm -rf build dist
	$(IN_VENV) -m build --no-isolation
	$(IN_VENV) -m twine check --strict dist/*

check-dist: dist ## Install the wheel with each extra in an empty environment, then the demonstration from it: 8 minutes
	for extra in $(EXTRAS); do ./release/check_extra.sh $(PYTHON) $$extra; done

check-newest: dist ## The same without the lock, from the newest releases that pyproject.toml allows: EXTRAS="gymnax"
	for extra in $(EXTRAS); do ./release/check_extra.sh $(PYTHON) $$extra newest; done

docs: $(VENV)/.docs ## The documentation in docs/_build/html, its notebooks run: 5 minutes
	$(IN_VENV) -m sphinx --fail-on-warning --keep-going --show-traceback --jobs=2 -b html docs docs/_build/html

bench: $(VENV)/.demo-rl ## Figures and the bounds they must reach, half an hour: ARGS="--quick --jaxpruner PATH" for eight minutes
	$(IN_VENV) -m experiments.benchmarks.goals $(ARGS)

bench-all: $(VENV)/.demo ## Steps, mask changes, sparse products, codec, federated rounds: all tables, 30 minutes
	$(IN_VENV) -m experiments.benchmarks.step
	$(IN_VENV) -m experiments.benchmarks.masks
	$(IN_VENV) -m experiments.benchmarks.large
	$(IN_VENV) -m experiments.benchmarks.export
	$(IN_VENV) -m experiments.benchmarks.codec
	$(IN_VENV) -m experiments.benchmarks.weight_sync
	$(IN_VENV) -m experiments.benchmarks.fed_round
	$(IN_VENV) -m experiments.benchmarks.client_step
	$(IN_VENV) -m experiments.benchmarks.fed_memory

bench-rl: $(VENV)/.demo-rl ## Steps of sparse against dense Dopamine agents, eight seeds against eight processes: 8 minutes
	$(IN_VENV) -m experiments.benchmarks.rl_step
	$(IN_VENV) -m experiments.benchmarks.rl_seeds
	$(IN_VENV) -m experiments.benchmarks.rl_iteration

fuzz-updaters: $(VENV)/.dev ## 2,000 random runs of all algorithms with odd numbers: 15 minutes; ARGS="--only=7" runs one again
	$(IN_VENV) -m tests.core.fuzz_updaters $(ARGS)

fuzz: $(VENV)/.dev ## Coverage-guided fuzzing of what reads bytes, a minute each (Linux): ARGS="--seconds=600"
	$(INSTALL) '.[fuzz]'
	for target in codec deltas archives studies configs; do $(IN_VENV) -m tests.fuzz $$target $(ARGS); done

study: $(VENV)/.demo ## Nine algorithms at 80, 90 and 95 % on strokes, three seeds: 40 minutes; ARGS="--resume=..." goes on
	$(IN_VENV) -m experiments.fed_emnist $(or $(ARGS),--dataset=strokes --sparsities 0.8 0.9 0.95 --jobs=2)

study-rl: $(VENV)/.demo-rl ## DQN on MinAtar's Breakout, dense and sparse, ten seeds: 40 minutes; ARGS="--resume=..." goes on
	$(IN_VENV) -m experiments.minatar $(or $(ARGS),--sparsities 0.9 0.98 --steps 120000)

study-vision: $(VENV)/.demo ## ResNets on handwriting, dense and seven algorithms at 80 %, three seeds: 25 minutes
	$(IN_VENV) -m experiments.vision $(or $(ARGS),resnet)

study-t5: $(VENV)/.demo ## T5 1.1 on Python's manual, dense and five algorithms at 80 %, three seeds: 10 minutes
	$(IN_VENV) -m experiments.t5 $(or $(ARGS),algorithms)

tables: $(VENV)/.demo ## Tables of stored studies beside the papers' numbers: ARGS="experiments/results/fed_strokes"
	$(IN_VENV) -m experiments.tables $(ARGS)

kills: $(VENV)/.demo ## Kill a study 50 times and compare every file with those of one that ran through: ARGS="--kills=5"
	$(IN_VENV) -m experiments.fed_emnist.kills $(or $(ARGS),--kills=50)

# pip list, unlike pip freeze, never writes where a file came from.
lock: ## Renew requirements.lock, but for its lines of one Python: the newest releases that go with those
	@env=$$(mktemp -d); trap 'rm -rf "$$env"' EXIT; \
	$(PYTHON) -m venv "$$env"; \
	grep -E '^#|; python_version' requirements.lock > "$$env/kept"; \
	"$$env/bin/python" -m pip install -qq --disable-pip-version-check --upgrade --constraint "$$env/kept" \
	  --editable '.[all,experiments,dev,docs,release]'; \
	{ cat "$$env/kept"; \
	  "$$env/bin/python" -m pip list --disable-pip-version-check --format=freeze \
	    --exclude pip --exclude sparse-plugins $$(sed -nE 's/^([^=#]+)==.*; python_version.*/--exclude \1/p' "$$env/kept" | sort -u); } > "$$env/lock"; \
	cp "$$env/lock" requirements.lock

clean: ## Remove the environment, build output and caches; runs/ is kept
	rm -rf $(VENV) build dist docs/_build *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: help demo demo-flower demo-rl test test-core lint types doctests format coverage dist check-dist check-newest docs bench bench-all bench-rl fuzz fuzz-updaters study study-rl study-vision study-t5 tables kills lock clean

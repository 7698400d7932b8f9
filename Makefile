# Everything runs in .venv, which `make` builds once from pyproject.toml (ranges) and constraints.txt (the tested set).

PYTHON ?= python3
BIN := .venv/bin
RUNS := .venv/.runs
READY := .venv/.ready
VIEWER := mechrefusal/report/viewer

# Every process imports two thousand files. Without bytecode on disk each compiles them anew, which takes it seven seconds.
export PYTHONDONTWRITEBYTECODE :=

.PHONY: demo test check lint bench gpu-check calibrate docs notebooks clean

demo: $(RUNS)  ## install, get the default model, train both arms, measure every checkpoint, write the report
	$(BIN)/mechrefusal run --recipe demo --out checkpoints/demo

# The linters go beside the tests: they are one process at a time, and would leave a core idle.
test: $(READY) browser  ## everything, with the installation: 14 minutes on two cores with AVX-512, half an hour on two slow ones
	@$(MAKE) --no-print-directory lint > .venv/.lint.log 2>&1 & lint=$$!; \
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder; tests=$$?; \
	wait $$lint; linted=$$?; cat .venv/.lint.log; exit $$((tests | linted))

check: $(READY) lint  ## fast: style, types, import contract, unit tests
	$(BIN)/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder -m "not slow" -q

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	@test ! -d $(VIEWER)/node_modules || npm --prefix $(VIEWER) run --silent check  # there after `npm ci` in that folder

bench: $(READY)  ## every benchmark, quickly
	$(BIN)/python -m pip install --quiet --no-deps nanogcg==0.3.0  # a peer, which asks for an older transformers than it needs
	@for file in benchmarks/*.py; do echo "== $$file"; $(BIN)/python $$file --quick || exit 1; done

# On a machine with a GPU and no network: WHEELS is a folder with the wheels of all that the package needs; without it, what
# $(PYTHON) has installed is used.
gpu-check:  ## parity, attacks, training and speeds on a GPU, bfloat16 beside float32: one table, at most five minutes
ifdef WHEELS
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --no-index --find-links "$(WHEELS)" --editable .
	$(BIN)/python scripts/gpu_check.py
else
	$(PYTHON) scripts/gpu_check.py
endif

calibrate: $(READY)  ## how right the intervals, verdicts and marks are, by simulation: docs/calibration.md
	$(BIN)/python -m calibration --out docs/calibration.md
	$(BIN)/python -m calibration.held_out
	$(BIN)/python -m calibration.ground_truth

docs: $(RUNS)  ## the documentation as a site that loads nothing from a network: python -m http.server -d site
	$(INSTALL) '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

notebooks: $(READY) browser  ## run the notebooks on the demo's checkpoints, and keep what they show
	$(INSTALL) '.[pictures]'
	$(BIN)/python scripts/clean_notebooks.py --execute

# What runs; with what tests, which is installed in one go where nothing is yet. The demo does not wait for the latter.
INSTALL := $(BIN)/python -m pip install --quiet --no-compile --constraint constraints.txt --editable

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit("mechrefusal needs Python 3.11 or newer: make PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv

$(RUNS): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) .
	touch $@

$(READY): pyproject.toml constraints.txt | $(BIN)/python
	$(INSTALL) '.[dev]'
	touch $(RUNS) $@

# The report is tested in a real browser where there is one; as root on Debian it is installed.
.PHONY: browser
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null \
		&& apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; } \
		|| echo "no chromium: the report's browser tests will be skipped"

clean:
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

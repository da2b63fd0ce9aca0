# `make demo` and `make test` work on a fresh machine with Python 3.11 or newer.
# pip's own settings (PIP_INDEX_URL, pip.conf, …) hold here as anywhere.

PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: install demo test test-thorough test-all test-narrow test-lowest test-slow lint lock audit bench docs docs-serve clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("rlhfkit needs Python 3.11 or newer, and $(PYTHON) is " + sys.version.split()[0] + "; try: make PYTHON=python3.12 $(MAKECMDGOALS)")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: install
	$(BIN)/rlhfkit run demo

# Containers often switch this on. Then each worker rewrites all tests anew, and each process that a test starts compiles
# the package again.
export PYTHONDONTWRITEBYTECODE :=

# The quick suite. Each process has one thread: tiny models gain nothing from a second, and the processes share the cores.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal

# What the quick suite leaves out: browsers, databases, kills, load, the gallery of sick runs, every family of models.
test-thorough: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --maxprocesses 8 --dist worksteal -m 'thorough and not slow and not gpu'

test-all: test test-thorough

test-slow: install
	$(BIN)/python -m pytest -m 'slow and not gpu'

# A short pass as on a poor machine: a CPU with AVX2 alone and no bfloat16, one thread, no compiler that works, a home
# that cannot be written, a terminal that knows ASCII alone.
NARROW := RLHFKIT_NO_BFLOAT16=1 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 OMP_NUM_THREADS=1 CXX=/bin/false \
	HOME=/nonexistent LC_ALL=C PYTHONIOENCODING=ascii:strict

test-narrow: install
	$(NARROW) $(BIN)/python -m pytest --numprocesses auto --maxprocesses 2 tests/machine tests/models/test_plain_paths.py \
		tests/models/fast/test_weight_layout.py
	scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && \
	$(NARROW) $(BIN)/rlhfkit run demo --run-dir "$$scratch/demo" ppo.iterations=2 pretrain.epochs=1 \
		data.texts.num_rows=400 preferences.num_pairs=60 preferences.num_test_pairs=20 reward_model.epochs=1 \
		reward_model.normalization_responses=64 evaluation.num_prompts=32 ppo.min_eos_rate=0 && \
	$(NARROW) $(BIN)/rlhfkit generate "$$scratch/demo" --prompt "Review of the Blue Door, a pizza place:" && \
	$(NARROW) $(BIN)/rlhfkit bench generate --size 1m --rows 8 --repeats 1 --no-compile --json

# The oldest versions that pyproject.toml promises, in an environment of their own; torch's is several gigabytes.
LOWEST_TESTS := tests/config tests/models/test_attention.py tests/models/test_lora.py tests/rollout/test_one_iteration.py \
	tests/pipeline/test_run.py tests/cli/test_app.py

test-lowest:
	$(PYTHON) -m venv .venv-lowest
	.venv-lowest/bin/python -m pip install --constraint constraints-lowest.txt --editable '.[dev]'
	OMP_NUM_THREADS=1 .venv-lowest/bin/python -m pytest $(LOWEST_TESTS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The exact versions of all packages: uv.lock, and constraints.txt from it for pip. `make lock LOCK=--upgrade` takes newer
# ones. Asks PyPI. constraints.txt keeps its comment.
LOCK ?=

lock:
	scratch=$$(mktemp -d) && trap 'rm -rf "$$scratch"' EXIT && $(PYTHON) -m venv "$$scratch" && \
	"$$scratch/bin/python" -m pip install --quiet uv && "$$scratch/bin/uv" lock $(LOCK) && \
	"$$scratch/bin/uv" export --quiet --frozen --all-extras --no-hashes --no-header --no-annotate --no-emit-project \
		--output-file "$$scratch/versions" && \
	{ grep '^#' constraints.txt; sed 's/ ;.*//' "$$scratch/versions" | sort -f; } > "$$scratch/constraints.txt" && \
	cp "$$scratch/constraints.txt" constraints.txt

# Known vulnerabilities of the exact versions in constraints.txt; asks PyPI, so it needs the net.
audit:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet pip-audit
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

bench: install
	$(BIN)/python benchmarks/cartpole.py

# The documentation site in build/site, in an environment of its own. Building it asks nothing of the net.
DOCS := .venv-docs

$(DOCS)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(DOCS)
	$(DOCS)/bin/python -m pip install --constraint constraints.txt "$$(sed -n 's/^docs = \["\(.*\)"\]/\1/p' pyproject.toml)"
	@touch $@

docs: $(DOCS)/.installed
	$(DOCS)/bin/python docs/make_site.py

docs-serve: docs
	$(DOCS)/bin/python -m http.server 8000 --bind 127.0.0.1 --directory build/site

clean:
	rm -rf .venv .venv-lowest .venv-docs build dist .pytest_cache .mypy_cache .ruff_cache
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# Two commands for a fresh machine: `make demo` and `make test`. Both need python3 alone.
# Any Python from 3.10 on: `make test PYTHON=python3.12`. Another torch: `make demo TORCH=torch==2.9.1`.

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
WORKERS ?= 2
PYTEST_ARGS ?=

BIN = $(VENV)/bin
CONSTRAINTS = tests/constraints.txt
# Copied at installation, also at an editable one: a change there needs a new one.
STARTUP_FILES = $(wildcard agent/*.py agent/*.pth agent/*.start agent/sitecustomize/*.py)

# uv takes seconds where pip takes minutes, and does not read pip's settings; without uv, pip does it.
define install
	PIP_SETTINGS="$${PIP_FIND_LINKS:+UV_FIND_LINKS=$$PIP_FIND_LINKS} $${PIP_INDEX_URL:+UV_INDEX_URL=$$PIP_INDEX_URL} $${PIP_CERT:+SSL_CERT_FILE=$$PIP_CERT}"; \
	{ { [ -x $(BIN)/uv ] || $(BIN)/python -m pip install -q uv; } && \
	  env $$PIP_SETTINGS $(BIN)/uv pip install -q -p $(BIN)/python $(1); } || \
	$(BIN)/python -m pip install -q $(1)
endef

.PHONY: demo test lint bench bench-fold healthy truth engines-older fuzz gpu docs clean

demo: $(VENV)/.demo
	TRACEML_ENABLE=1 $(BIN)/python examples/slow_input.py

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) $(PYTEST_ARGS)

lint: $(VENV)/.test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/.test
	$(BIN)/python tests/overhead/bench.py
	$(BIN)/python tests/overhead/peers.py --markdown build/overhead.md
	for model in 0 1 2; do \
	  TRACEML_ENABLE=1 TRACEML_SUMMARY=0 $(BIN)/python tests/overhead/paired.py --model $$model || exit 1; done
	TRACEML_ENABLE=1 TRACEML_SUMMARY=0 $(BIN)/python tests/overhead/collectives.py

# A quarter of an hour: simulated jobs of up to 8,192 ranks.
bench-fold: $(VENV)/.test
	$(BIN)/python tests/scale/bench_fold.py

# Five minutes: 20 jobs of two ranks in which nothing is wrong.
healthy: $(VENV)/.test
	HEALTHY_RUNS=20 $(BIN)/python -m pytest -n 0 tests/ranks/test_healthy.py

# An hour on a quiet machine: known faults between their clean twins, and healthy runs.
truth: $(VENV)/.test
	$(BIN)/python tests/truth/peers.py --write docs/accuracy.md
	$(BIN)/python tests/truth/bench.py --write docs/accuracy.md

# Ten minutes: the tests of the frameworks with older versions of them.
engines-older: $(VENV)/.test
	TEST_ENGINES=engines-older $(BIN)/python -m pytest -n $(WORKERS) tests/engines \
	  --ignore tests/engines/test_trackers.py --ignore tests/engines/test_mpirun.py

# Longer than the budget of `make test`: FUZZ_SECONDS for each coverage-guided harness.
FUZZ_EXAMPLES ?= 5000
FUZZ_SECONDS ?= 300
fuzz: $(VENV)/.test
	@{ $(call install,--only-binary=:all: atheris); } || \
	  echo "no atheris for this Python: hypothesis alone"
	FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -n $(WORKERS) --timeout=7200 tests/fuzz
	@$(BIN)/python -c 'import atheris' 2>/dev/null || exit 0; \
	for harness in spool steps; do mkdir -p build/fuzz/$$harness; \
	  $(BIN)/python tests/fuzz/fuzz_$$harness.py -max_total_time=$(FUZZ_SECONDS) \
	    -print_final_stats=1 -artifact_prefix=build/fuzz/$$harness- build/fuzz/$$harness || exit 1; \
	done

# An image's own Python: `pip install -e . pytest`, then `make gpu GPU_PYTHON=python3`.
GPU_PYTHON ?= $(BIN)/python
gpu: $(if $(filter $(BIN)/%,$(GPU_PYTHON)),$(VENV)/.test)
	$(GPU_PYTHON) -m pytest -m gpu -rs tests/gpu

docs: $(VENV)/.test
	$(BIN)/traceml-agent config --markdown > docs/configuration.md.new
	mv docs/configuration.md.new docs/configuration.md
	$(BIN)/python docs/make_api.py > docs/api.md.new
	mv docs/api.md.new docs/api.md

clean:
	rm -rf $(VENV) .venv-agents dist build .pytest_cache .mypy_cache .ruff_cache

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: $(BIN)/python pyproject.toml $(STARTUP_FILES)
	@echo "installing into $(VENV) ($(TORCH))"
	@[ -e $(VENV)/.test ] || { $(call install,"$(TORCH)" "scikit-learn>=1.4" -e .); }
	@touch $@

$(VENV)/.test: $(BIN)/python pyproject.toml $(CONSTRAINTS) $(STARTUP_FILES)
	@echo "installing into $(VENV) ($(TORCH), tools of tests/constraints.txt)"
	@$(call install,"$(TORCH)" -e ".[dev]" -c $(CONSTRAINTS))
	@touch $@

# Needs python >= 3.11, its pip and make; git may be absent.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13 python3.14 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v $$p && break; done)
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.lowcomm-installed
TORCH := torch==2.13.0
# Extra pip flags for torch alone, for instance the index of the CPU-only wheels (2 GB less to fetch).
TORCH_FLAGS ?=
BENCH ?= tuning tuning_delay "quality --preset nano" "quality --preset tiny" codecs fewer_bytes schedules sync_cost core islands \
	streams segments simulation_cost batched sweep fedlora zeroth_order fed_peft membership fed_overhead "kernels cpu" "kernels aot" fuzz_codecs readme
PYTEST_FLAGS ?=
WORKERS ?= 3
KERNELS := $(VENV)/.kernels-compiled

.DEFAULT_GOAL := help
.PHONY: help venv train test test-long style lint docs bench gpu clean

help:
	@echo "make train   install, then pretrain a small model on four islands of this machine (minutes)"
	@echo "make test    install, lint, then run the whole test suite"
	@echo "make test-long  the same with whole matrices and ten times the examples of each property (hours)"
	@echo "make lint    ruff and basedpyright"
	@echo "make docs    build the documentation into build/docs; a warning is an error"
	@echo "make bench   run the benchmarks (hours); one of them: make bench BENCH=sync_cost"
	@echo "make gpu     check and time all that a GPU can tell (under 8 minutes); torch and triton are enough"
	@echo "make clean   remove $(VENV), caches and build output; runs/ stays"

venv: $(STAMP)

# torch comes first and alone: the others then accept the build that is there (CPU or CUDA).
# A system without the venv module's own pip lends the pip it has.
$(STAMP): pyproject.toml setup.py constraints.txt
	@test -n "$(PYTHON)" || { echo "make: no python >= 3.11 found: install python3.11 or set PYTHON=" >&2; exit 2; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV) 2>/dev/null || \
		{ $(PYTHON) -m venv --clear --without-pip $(VENV) && $(PYTHON) -m pip --python $(BIN)/python install pip; } || \
		{ echo "make: cannot create $(VENV): install python3-venv or pip" >&2; exit 2; }
	$(BIN)/python -m pip install --disable-pip-version-check $(TORCH_FLAGS) $(TORCH)
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]' -c constraints.txt
	@touch $@

train: $(STAMP)
	$(BIN)/lowcomm train recipes/diloco.py:pretrain_cpu --islands 4 --run-dir runs/diloco-$$(date +%Y%m%d-%H%M%S)

# The type check takes one core for most of a minute, so it runs beside the tests, which wait for each other now and then.
test: style
	@$(BIN)/basedpyright --pythonpath $(BIN)/python >$(VENV)/types.log 2>&1 & types=$$!; \
	trap 'kill $$types 2>/dev/null' EXIT INT TERM; \
	$(MAKE) --no-print-directory $(KERNELS) && \
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS); tests=$$?; \
	wait $$types || { cat $(VENV)/types.log; exit 1; }; \
	exit $$tests

$(KERNELS): $(STAMP) $(wildcard kernels/lowcomm_kernels/*/*.py)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.support.compile_kernels
	@touch $@

test-long:
	@$(MAKE) test PYTEST_FLAGS="--long --timeout 3000 $(PYTEST_FLAGS)"

style: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

lint: style
	$(BIN)/basedpyright --pythonpath $(BIN)/python

docs: $(STAMP)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file docs/mkdocs.yml

bench: $(STAMP)
	@for name in $(BENCH); do echo "== $$name"; $(BIN)/python -m benchmarks.$$name || exit 1; done

# No venv: the python that has torch for the card, which may reach no network.
gpu:
	@PYTHONPATH=.:kernels $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON)) -m benchmarks.gpu

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

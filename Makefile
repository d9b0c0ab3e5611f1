# make demo: set up, train both stages on the embedded images, write a sample sheet.  make test: set up, every check.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
RUNS := runs/demo

.PHONY: demo test test-fast lint setup clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable ".[dev]"
	touch $@

demo: setup
	$(BIN)/python train_stage1.py run.root=$(RUNS) run.name=demo
	$(BIN)/python train_stage2.py run.root=$(RUNS) run.name=demo
	$(BIN)/python sample.py root=$(RUNS) out=$(RUNS)/samples.png
	@echo "Look at $(RUNS)/samples.png"

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# one process per core, each with one thread: most tests are too small to use more
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses logical --maxprocesses 8 --dist worksteal

test: lint
	$(PYTEST)

test-fast: setup
	$(PYTEST) -m "not slow"

clean:
	rm -rf $(VENV) build *.egg-info

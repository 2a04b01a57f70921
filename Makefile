PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/installed
TASKS := $(VENV)/installed-tasks

.PHONY: app install lint test format clean

app: install  ## start the studio: a worker, the app, the browser
	$(BIN)/ders app

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	# the demo's first look is taken once: loops are compiled that a first visitor would wait for
	place=$$(mktemp -d) && $(BIN)/ders demo $$place/demo >/dev/null && \
		$(BIN)/ders analyze $$place/demo/moe -o $$place/a.json >/dev/null && rm -rf $$place
	touch $(STAMP)

$(TASKS): $(STAMP)
	# tests ask tasks of lm-eval, which people who use the studio need not install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,tasks]"
	touch $(TASKS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

test: export PYTHONDONTWRITEBYTECODE =  # what was compiled once serves every process
test: $(TASKS)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis

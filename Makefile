# make demo: install, then train, evaluate and export DANN on data that ships inside the dependencies.
# make test: install, then lint and test.   make install: only make .venv.
# make test-oldest: the contract test on the oldest MindSpore that is supported, in an environment of its own.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := outputs/demo
# Test processes at once, each on its share of the cores; 0: one.
WORKERS ?= 2

OLDEST := 2.7.0
OLDEST_VENV := .venv-$(OLDEST)

.PHONY: install demo test test-oldest lint clean

install: $(VENV)/.installed

$(VENV)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt
	touch $@

demo: install
	rm -rf $(DEMO)
	$(BIN)/python train.py --config configs/demo.yaml --output_dir $(DEMO)
	$(BIN)/python eval.py --ckpt_path $(DEMO)
	$(BIN)/python export.py --ckpt_file $(DEMO) --file_format MINDIR --file_name $(DEMO)/demo
	$(BIN)/python export.py --ckpt_file $(DEMO) --file_format ONNX --file_name $(DEMO)/demo

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

test: lint
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

$(OLDEST_VENV)/.installed: requirements.txt requirements-dev.txt
	$(PYTHON) -m venv $(OLDEST_VENV)
	$(OLDEST_VENV)/bin/python -m pip install --quiet -r requirements.txt -r requirements-dev.txt mindspore==$(OLDEST)
	touch $@

test-oldest: $(OLDEST_VENV)/.installed
	$(OLDEST_VENV)/bin/python -m pytest tests/test_contract.py

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis rank_0 kernel_meta

# make demo: install, then train, evaluate and export DANN on data that ships inside the dependencies.
# make test: install, then lint and test.   make install: only make .venv.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO := outputs/demo

.PHONY: install demo test lint benchmark clean

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
	$(BIN)/python -m pytest

clean:
	rm -rf .pytest_cache .ruff_cache .hypothesis rank_0 kernel_meta

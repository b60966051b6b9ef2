PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint bench clean

$(STAMP): setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	touch $@

demo: $(STAMP)
	$(BIN)/python -m streamfeat.synthetic demo/videos
	$(BIN)/streamfeat extract --model vit_tiny --weights random demo/videos demo/out.h5
	$(BIN)/streamfeat info demo/out.h5
	@echo
	@echo "Look at it:   $(BIN)/streamfeat info demo/out.h5"
	@echo "Read it:      $(BIN)/python -c 'import streamfeat; print(streamfeat.open(\"demo/out.h5\"))'"
	@echo "Your videos:  $(BIN)/streamfeat extract VIDEOS/ out.h5"

test: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/python -m pytest

bench: $(STAMP)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[bench]'
	$(BIN)/python -m bench.encode --quick
	$(BIN)/python -m bench.decode --quick
	$(BIN)/python -m bench.extract --quick
	$(BIN)/python -m bench.scale --quick

clean:
	rm -rf $(VENV) demo build dist *.egg-info

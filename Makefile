PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PEERS := matplotlib opencv-python-headless transformers decord torchcodec

.PHONY: demo test bench bench-full peers clean

$(STAMP): setup.cfg setup.py pyproject.toml constraints.txt $(wildcard streamfeat/model/kernels/*.[ch])
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

bench: $(STAMP) peers
	$(BIN)/python -m bench.all --quick

# VIDEOS="a.mp4 b.mp4" measures the decoders on these real ones too
bench-full: $(STAMP) peers
	$(BIN)/python -m bench.all $(VIDEOS)

# one by one, as a peer that has no wheel for this machine must not keep the others away
peers: $(STAMP)
	@for peer in $(PEERS); do \
		$(BIN)/python -m pip install --quiet --constraint constraints.txt $$peer \
		|| echo "skipped: $$peer does not install here"; \
	done

clean:
	rm -rf $(VENV) demo build dist *.egg-info

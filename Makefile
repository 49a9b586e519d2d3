# Everything from a bare clone: Python 3.11 or newer, make and a package registry are all that is needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Not quiet: pip names each download with its size, and shows how far it is.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt
# Where to take PyTorch from; empty is pip's own index, whose build for Linux brings CUDA.
CPU_TORCH := https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=

.PHONY: demo test test-all check bench bench-server faults clean chromium

demo: $(VENV)/installed ## a photograph becomes a video, on the embedded model
	@mkdir -p out
	@$(BIN)/kinema generate examples/rocket.jpg --model pocket --seed 42 -o out/rocket.mp4 --contact-sheet out/rocket.png --force

test: check chromium ## every check and every test but the slow ones
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile -m "not slow"

test-all: check chromium ## the slow ones too: the pocket's parity, notebooks in a browser, signals, random kills
	$(BIN)/python -m pytest

check: $(VENV)/installed-dev ## style, types, layers and names, without running anything
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python checks/structure.py

bench: $(VENV)/installed ## the pocket model's speed here, beside diffusers
	$(BIN)/kinema bench examples/rocket.jpg --model pocket --against diffusers --seed 42 \
		--out bench/results/pocket-here.json --force

bench-server: $(VENV)/installed-dev ## the server's speed here, with work that sleeps
	$(BIN)/python bench/server.py --out bench/results/server-here.json

faults: $(VENV)/installed-dev ## the long runs: 30 kills, 50 cancels, 1,000 examples of the API's document
	$(BIN)/python -m pytest tests/faults tests/serving -m slow

clean: ## everything that was made here, but not what was generated in out/
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Kinema needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Installing into $(VENV): a few minutes the first time"
ifeq ($(TORCH_INDEX),)
	@[ "$$(uname -s)" != Linux ] || { \
		echo "PyTorch for Linux comes with CUDA, several gigabytes that only an NVIDIA GPU uses. Without one, stop (Ctrl-C)"; \
		echo "and take the CPU build, about 200 MB: make $(or $(MAKECMDGOALS),demo) TORCH_INDEX=$(CPU_TORCH)"; }
endif
	@$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH_INDEX),)
	@echo "PyTorch from $(TORCH_INDEX)"
	@$(PIP) torch --index-url $(TORCH_INDEX)
endif
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	@$(PIP) --editable ".[dev,server]"
	@touch $@

# The browser tests want Debian's chromium; where it can't be brought they skip, and say so.
chromium:
	@command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && [ -f /etc/debian_version ] && \
		echo "Installing chromium for the browser tests" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends chromium > /dev/null; } || \
		echo "There is no chromium here, and it can't be installed: the browser tests will skip"

# Requires Python 3.11 or newer, make and a package registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Without --quiet, so that pip shows the progress of its large downloads. Python compiles a module when it is imported
# first; to compile all of them at once would take a minute more.
PIP := $(BIN)/python -m pip install --disable-pip-version-check --no-compile --constraint constraints.txt
# Package index of PyTorch. Empty: PyPI, whose build for Linux includes CUDA.
CPU_TORCH := https://download.pytorch.org/whl/cpu
TORCH_INDEX ?=
# Store compiled modules, even where the environment forbids it: without them, each of the many processes that the tests
# start compiles PyTorch anew, which takes three times as long as to import it.
export PYTHONDONTWRITEBYTECODE :=

# The photographs that training/pocket/collect.py wrote.
PHOTOS ?= training/data/photos.tar
# How much a video moves depends on its noise, so each photograph has another seed.
SEEDS := --seeds 42 43 44 45 46 47

# The environment whose packages `make sbom` lists, and the file whose versions `make audit` looks up.
ENVIRONMENT ?= $(VENV)
PINNED ?= constraints.txt

.PHONY: demo quick test fast-tests test-all check docs sbom audit bench bench-server faults faults-cluster gallery pocket-records notebooks screenshots clean chromium

demo: $(VENV)/installed ## create a video from an image with the embedded model
	@mkdir -p out
	@$(BIN)/kinema generate examples/rocket.jpg --model pocket --seed 42 -o out/rocket.mp4 --contact-sheet out/rocket.png --force
	@echo "To use the kinema command: source $(BIN)/activate"

# Tests that load no model and start no server.
QUICK := tests/test_messages.py tests/test_settings.py tests/test_values.py tests/test_words.py tests/engine/test_sampling.py \
	tests/engine/test_threaded_generator.py tests/jobs/test_eta.py tests/jobs/test_job_files.py tests/media \
	tests/models/test_catalog.py tests/models/test_memory_plan.py tests/serving/page tests/serving/test_rate_limits.py \
	tests/serving/test_request_parsing.py tests/serving/test_submission.py

quick: check ## check style and types, and run the unit tests that need no model: under a minute
	$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --quiet $(QUICK)

test: check fast-tests ## run all checks and all tests except slow ones: about 10 minutes on two cores, with installing

# Import what most processes of the tests import. Else three of them would begin with compiling the same modules.
$(VENV)/compiled: $(VENV)/installed-dev
	@$(BIN)/python -c "import diffusers, gradio, transformers, kinema.serving.service; \
		diffusers.UNetSpatioTemporalConditionModel, diffusers.AutoencoderKLTemporalDecoder, transformers.CLIPTextModel"
	@touch $@

fast-tests: $(VENV)/compiled chromium
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder -m "not slow"

test-all: check docs chromium ## run all checks, build the site, and run all tests
	$(BIN)/python -m pytest

check: $(VENV)/installed-dev ## check style, types, layers, names and licences
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python checks/structure.py
	$(BIN)/python checks/licences.py

docs: $(VENV)/installed-docs ## build the documentation site in out/site, and check its links
	$(BIN)/python -m docs.website out/site

sbom: $(VENV)/installed-dev $(VENV)/installed-audit ## list the packages of ENVIRONMENT, as a CycloneDX file in out/; check their licences
	@mkdir -p out
	$(BIN)/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible --output-file out/kinema.cdx.json $(ENVIRONMENT)
	$(BIN)/python checks/licences.py --environment $(ENVIRONMENT)

audit: $(VENV)/installed-audit ## look for known vulnerabilities of the pinned versions; needs pypi.org
	@$(BIN)/pip-audit --strict --requirement $(PINNED) --no-deps --disable-pip || { \
		echo "If no vulnerability is listed above, nothing was checked: the advisories of pypi.org could not be read."; \
		echo "See docs/releasing.md"; exit 1; }

bench: $(VENV)/installed ## compare the speed of the pocket model on this machine with diffusers
	$(BIN)/kinema bench examples/rocket.jpg --model pocket --against diffusers --seed 42 \
		--output bench/results/pocket-here.json --force

bench-server: $(VENV)/installed-dev ## measure the server's speed on this machine, with stub work
	$(BIN)/python bench/server.py --out bench/results/server-here.json

faults: $(VENV)/installed-dev ## run the slow fault tests: 30 kills, 50 cancels, 1,000 requests from the OpenAPI document
	$(BIN)/python -m pytest tests/faults tests/serving -m slow

faults-cluster: $(VENV)/installed-dev ## kill, freeze or cut off parts of a Ray cluster, front ends and PostgreSQL at 40 random moments: 30 minutes
	$(BIN)/python tests/scale/cluster_faults.py --out bench/results/cluster-faults.json

gallery: $(VENV)/installed ## run the commands of docs/gallery.md and of how-tos, which write their pictures: 4 minutes on two cores
	$(BIN)/python docs/gallery.py
	$(BIN)/python docs/how_to_pictures.py

pocket-records: $(VENV)/installed-training ## measure again all that depends on the weights of the pocket model; needs quiet cores
	$(BIN)/python -m training.pocket.evaluate --photos $(PHOTOS) --json bench/results/pocket-evaluation.json
	OMP_NUM_THREADS=1 $(BIN)/python bench/block_rate.py --out bench/results/pocket-block-rate.json
	$(BIN)/python bench/chunks.py --out bench/results/pocket-chunks.json
	OMP_NUM_THREADS=1 $(BIN)/python bench/cold_start.py --out bench/results/pocket-cold-start-cpu.json
	$(BIN)/python bench/squares.py --out bench/results/pocket-squares.json
	$(BIN)/python bench/two_ends.py --photos $(PHOTOS) --out bench/results/pocket-two-ends.json
	$(BIN)/python bench/long_videos.py --photos $(PHOTOS) $(SEEDS) --out bench/results/pocket-long-videos.json
	$(BIN)/python bench/long_videos.py --photos $(PHOTOS) $(SEEDS) --ways extended --out bench/results/pocket-extend.json
	$(BIN)/python bench/long_videos.py --photos $(PHOTOS) $(SEEDS) --ways short --out bench/results/pocket-short-videos.json
	$(BIN)/python bench/upscaling.py --photos $(PHOTOS) --out bench/results/pocket-upscaling.json
	$(BIN)/python bench/watermark.py --photos $(PHOTOS) --sections survival,time --out bench/results/watermark.json

notebooks: $(VENV)/installed-dev ## run the notebooks and store their outputs in them
	$(BIN)/python notebooks/execute.py notebooks/*.ipynb

screenshots: $(VENV)/installed-dev chromium ## take the screenshots of the page again, at two widths
	$(BIN)/python docs/screenshot.py

clean: ## delete installed and built files, but keep generated videos in out/
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/created: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "Kinema needs Python 3.11 or newer, and $(PYTHON) is older: make PYTHON=/path/to/python3.12"; exit 1; }
	@echo "Installing into $(VENV); this takes a few minutes the first time"
ifeq ($(TORCH_INDEX),)
	@[ "$$(uname -s)" != Linux ] || { \
		echo "PyTorch for Linux includes CUDA (several gigabytes), which only NVIDIA GPUs use. Without one, stop (Ctrl-C)"; \
		echo "and install the CPU build (about 200 MB): make $(or $(MAKECMDGOALS),demo) TORCH_INDEX=$(CPU_TORCH)"; }
endif
	@$(PYTHON) -m venv $(VENV)
ifneq ($(TORCH_INDEX),)
	@echo "Installing PyTorch from $(TORCH_INDEX)"
	@$(PIP) torch --index-url $(TORCH_INDEX)
endif
	@touch $@

$(VENV)/installed: $(VENV)/created pyproject.toml
	@$(PIP) --editable .
	@touch $@

$(VENV)/installed-dev: $(VENV)/created pyproject.toml
	@$(PIP) --editable ".[dev,server]"
	@touch $@ $(VENV)/installed

$(VENV)/installed-docs: $(VENV)/created pyproject.toml
	@$(PIP) --editable ".[docs,server]"
	@touch $@

$(VENV)/installed-audit: $(VENV)/created pyproject.toml
	@$(PIP) --editable ".[audit]"
	@touch $@

$(VENV)/installed-training: $(VENV)/created pyproject.toml
	@$(PIP) --editable ".[training,upscale]"
	@touch $@

# The browser tests need Debian's chromium. If it can't be installed, they are skipped.
chromium:
	@command -v chromium > /dev/null || { [ "$$(id -u)" = 0 ] && [ -f /etc/debian_version ] && \
		echo "Installing chromium for the browser tests" && apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends chromium > /dev/null; } || \
		echo "Chromium is not installed and can't be installed here; the browser tests will be skipped"

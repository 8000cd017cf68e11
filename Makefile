# Two commands: `make demo` makes a clip and its notebook under runs/, `make test` runs the tests.
# Both install into .venv first, from PyPI and the pins of constraints.txt.

PYTHON ?= python3
VENV   ?= .venv
OUT    ?= runs/demo
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
TORCH  := $(shell grep '^torch==' constraints.txt)

export HF_HUB_DISABLE_TELEMETRY := 1
export JUPYTER_PREFER_ENV_PATH  := 1
export PYTHONUTF8               := 1

.PHONY: help install demo test kills browser lab clean
help:
	@echo "make demo   generate from wan_tiny through notebooks/quickstart.ipynb; results in $(OUT)"
	@echo "make test   run the tests (ARGS='-k spec' chooses)"
	@echo "make kills  kill sweeps, their workers and kernels at random moments (minutes)"
	@echo "make browser  drive JupyterLab in Chromium (needs the system's chromium)"
	@echo "make lab    open JupyterLab on copies of the notebooks, in runs/lab"
	@echo "make clean  remove $(VENV)"

install: $(VENV)/.installed

# torch comes first and alone: it is the largest part, and its pin decides which build the rest is resolved against.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "wanlab needs Python 3.11 or newer; choose one: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(PIP) install --quiet '$(TORCH)' --constraint constraints.txt
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

demo: install
	@mkdir -p $(OUT)
	HF_HUB_OFFLINE=1 $(BIN)/python -m papermill --no-progress-bar notebooks/quickstart.ipynb $(OUT)/quickstart.ipynb -p out $(OUT)
	@echo && echo "Executed notebook, clips and their records:"
	@ls -1 $(OUT)/quickstart.ipynb $(OUT)/*/video.mp4 $(OUT)/*/run.json
	@echo "Open the lab with: make lab"

test: install
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist loadfile $(ARGS)

kills: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m kills -n 2 --dist load $(ARGS)

# The browser is the system's Chromium (Debian: apt-get install chromium). WANLAB_SCREENSHOTS=docs renews the README's pictures.
browser: $(VENV)/.browser
	$(BIN)/python -m pytest -m browser tests/browser $(ARGS)

$(VENV)/.browser: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable '.[test,browser]'
	@touch $@

# On copies of the notebooks: running them in place would write their outputs into files that git follows.
lab: install
	@mkdir -p runs/lab
	$(BIN)/wanlab lab runs/lab $(ARGS)

clean:
	rm -rf $(VENV)

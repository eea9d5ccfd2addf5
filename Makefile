# Needs python3 (3.11 or 3.12, with venv) and make; everything else goes into .venv.
PYTHON ?= python3
PIP = .venv/bin/python -m pip install --quiet --constraint constraints.txt
# Two cores are what the demo and the tests are planned for; torch takes all it sees otherwise.
WORKERS ?= 2

.PHONY: demo test test-slow chaos fuzz soak check format docs clean

demo: .venv/installed
	.venv/bin/triptych compare digits --budget 30s

test: .venv/installed-dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-slow: .venv/installed-dev
	OMP_NUM_THREADS=1 .venv/bin/python -m pytest -m slow -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(ARGS)

# Trainings killed at random moments, and at every write, must end as if nobody had.
chaos: .venv/installed-dev
	OMP_NUM_THREADS=1 .venv/bin/python tests/chaos.py --kills 50 --every-write vae $(ARGS)

# Trains, kills, resumes, draws and evaluates for half an hour; memory and open files must not grow.
soak: .venv/installed-dev
	OMP_NUM_THREADS=1 .venv/bin/python tests/soak.py --minutes 30 $(ARGS)

# Some five minutes: readers on mutated files, and then guided by coverage where atheris is installed.
fuzz: .venv/installed-dev
	OMP_NUM_THREADS=1 TRIPTYCH_FUZZ=1500 .venv/bin/python -m pytest -n $(WORKERS) tests/test_fuzz.py $(ARGS)
	OMP_NUM_THREADS=1 .venv/bin/python tests/fuzz_readers.py --seconds 120

check: .venv/installed-dev
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: .venv/installed-dev
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

docs: .venv/installed-dev
	.venv/bin/python -m sphinx -W -q -b html docs docs/_build

clean:
	rm -rf .venv docs/_build

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Triptych needs Python 3.11 or newer: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv .venv
	$(PIP) --editable .
	touch $@

.venv/installed-dev: .venv/installed
	$(PIP) --editable '.[dev]'
	touch $@

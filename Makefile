# Two stages, two commands: `make tokenizer`, then `make prior`; then `python sample.py`. `make demo` runs all three.
# CONFIG=file.yaml picks another configuration; ARGS="key=value ..." changes keys of it.
PYTHON ?= python3
BIN := .venv/bin
.NOTPARALLEL:
.PHONY: help install develop demo mine tokenizer prior sample bundled compare web test check docs wheel bench torture

help:
	@echo "make demo        train a small tokenizer and prior on real drawings, and draw from them (8 minutes on 2 CPU cores with bfloat16)"
	@echo "make mine        train both stages on your pictures, chosen to fit   IMAGES=~/pictures HOURS=2   [ARGS=\"--name ...\"]"
	@echo "make tokenizer   train stage one and cache its token grids   [CONFIG=... ARGS=\"key=value ...\"]"
	@echo "make prior       train stage two on the cached grids         [CONFIG=... ARGS=\"key=value ...\"]"
	@echo "make sample      draw images                                 [ARGS=\"--num 16 --seed 0 ...\"]"
	@echo "make web         a page to draw, reconstruct, complete, repaint, browse codes and watch plans on   [ARGS=\"--port 7860 ...\"]"
	@echo "make compare     train several tokenizers on the same images and report   [CONFIG=... ARGS=\"key=value ...\"]"
	@echo "make bundled     train the model that comes with Tessera anew (hours)"
	@echo "make test        run the tests (make check: linter and types; make bench: benchmarks   [BENCH=... ARGS=...])"
	@echo "make docs        build the documentation into site/"
	@echo "make wheel       build a wheel, install it into an empty environment and use it there (minutes; the package index)"
	@echo "make torture     60 kills of training and caching, 10,000 broken images: see that nothing is lost   [ARGS=\"--kills 500\"]"

PIP_INSTALL = $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

install: .venv/installed
develop: .venv/installed-dev

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Tessera needs Python 3.11 or newer; say which with: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(PIP_INSTALL) '.[demo,lpips,quantisers]'
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP_INSTALL) '.[dev]'
	@touch $@

demo: install
	$(MAKE) --no-print-directory tokenizer prior CONFIG= ARGS=
	$(MAKE) --no-print-directory sample ARGS="--class-label all --num 8"

mine:
	@test -n "$(IMAGES)" || { echo "say which pictures: make mine IMAGES=~/pictures HOURS=2" >&2; exit 1; }
	@$(MAKE) --no-print-directory install
	$(BIN)/python plan.py "$(IMAGES)" --hours $(or $(HOURS),2) $(ARGS)

tokenizer: install
	$(BIN)/python -m stage1_tokenizer.train $(CONFIG) $(ARGS)
	$(BIN)/python -m stage1_tokenizer.cache

prior: install
	$(BIN)/python -m stage2_prior.train $(CONFIG) $(ARGS)
	$(BIN)/python judge.py

sample: install
	$(BIN)/python sample.py $(ARGS)

web: install
	$(PIP_INSTALL) '.[web]'
	$(BIN)/python web.py $(ARGS)

bundled: install
	$(BIN)/python -m stage1_tokenizer.train configs/bundled/tokenizer.yaml
	$(BIN)/python -m stage1_tokenizer.cache --tokenizer runs/tokenizer/avatars
	$(BIN)/python -m stage2_prior.train configs/bundled/prior.yaml
	cp shipped/avatars/drawing.json runs/prior/avatars/  # chosen by eye: docs/bundled-model.md
	$(BIN)/python judge.py --prior runs/prior/avatars
	$(BIN)/python share.py runs/prior/avatars --half --out shipped/avatars

compare: install
	$(BIN)/python -m stage1_tokenizer.compare $(CONFIG) $(ARGS)

test: develop
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses=2  # one thread each: two threads on a shared core wait

check: develop
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: install
	$(PIP_INSTALL) '.[docs]'
	PYTHONPATH=. $(BIN)/python docs/options.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

wheel: develop
	$(BIN)/python -m pytest tests/project/wheel.py

bench: develop
	$(BIN)/python -m tests.benchmarks.$(or $(BENCH),mamba2) $(ARGS)

torture: develop
	$(BIN)/python -W ignore -m tests.torture.kills $(ARGS)
	$(BIN)/python -W ignore -m tests.torture.dirty_input
	$(BIN)/python -m pytest tests/shared/runs/test_mutations.py --hypothesis-profile=torture --hypothesis-show-statistics --timeout=3600

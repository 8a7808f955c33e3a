# demo · test · docs · clean: each sets up what it needs, once.
PYTHON  ?= python3
VENV    ?= .venv
RUN     ?= _runs/demo
export PYTHON
export PATH := $(abspath $(VENV))/bin:$(PATH)

.PHONY: help setup demo test sync docs readme outputs clean

help:
	@echo 'make demo     the whole path, from rendered videos to a robot that acts, into $(RUN); goes on where it stopped'
	@echo 'make test     library and notebooks agree, every notebook runs, pytest'
	@echo 'make docs     the site, into _docs'
	@echo 'make clean    removes the site, test runs and caches; your runs (_runs) and $(VENV) stay'
	@echo 'for developers: make setup · sync · readme · outputs (see CONTRIBUTING.md)'

setup: $(VENV)/.installed $(VENV)/.gl

$(VENV)/.installed: constraints.txt settings.ini setup.py pyproject.toml
	@scripts/setup-python $(VENV)
	@touch $@

$(VENV)/.gl: $(VENV)/.installed
	@scripts/setup-gl
	@touch $@

demo: setup
	@motionvla run --profile demo --run-dir $(RUN)

test: export OMP_NUM_THREADS = 1
test: setup
	@rm -rf _runs/tiny
	@python tests/sync.py
	nbdev_test --n_workers 2 --timing
	pytest tests -q -n 2 --dist loadfile --no-loadscope-reorder

sync: setup
	@python tests/sync.py

docs: setup
	@python -c 'from motionvla.pages import main; main("site")'

readme: setup
	@python -c 'from motionvla.pages import main; main("readme")'

outputs: setup
	@python -c 'from motionvla.pages import main; main("outputs", "$(RUN)")'

clean:
	@rm -rf _docs _proc _runs/tiny build nbs/nbdev.yml .pytest_cache
	@find motionvla nbs tests -name __pycache__ -o -name .ipynb_checkpoints | xargs rm -rf
	@echo 'removed: _docs _proc _runs/tiny build caches (kept: other runs in _runs, $(VENV))'

# Everything runs in .venv, which needs nothing but Python 3.11 or later with pip.
#
#   make demo     encode a photograph, decode it to the bit, write its previews
#   make test     every check: lint, types, tests
#   make bench    the benchmarks that need no data but the repository's, and a page of their results;
#                 with BENCH='--kodak DIR --cifar FILE' also those, without --quick in full
#   make fuzz     property tests with many examples, then two hours of fuzzing (FUZZ_SECONDS=7200)
#   make site     the documentation as a site, build/site/index.html
#   make lint     ruff and mypy
#   make format   let ruff rewrite the code
#   make clean    remove caches and build products; runs/, results/ and .venv stay

PYTHON ?= python3
PHOTO ?= examples/kodim23.png
BENCH ?= --quick
FUZZ_SECONDS ?= 7200
PY := .venv/bin/python
INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test bench fuzz site lint format clean

demo: .venv/demo.stamp
	$(PY) -m bench demo $(PHOTO)

test: lint
	$(PY) -m pytest --numprocesses logical --maxprocesses 4 --dist worksteal

bench: .venv/demo.stamp
	$(PY) -m bench all $(BENCH)

fuzz: .venv/fuzz.stamp
	$(PY) -m pytest tests/test_fuzz.py --hypothesis-profile=fuzz
	$(PY) tests/fuzz.py --seconds $(FUZZ_SECONDS)

site: .venv/docs.stamp
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

lint: .venv/test.stamp
	$(PY) -m ruff check
	$(PY) -m ruff format --check
	$(PY) -m mypy

format: .venv/test.stamp
	$(PY) -m ruff check --fix
	$(PY) -m ruff format

clean:
	rm -rf build dist *.egg-info .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find bench diffcodec tests -name __pycache__ -prune -exec rm -rf {} +

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/test.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e '.[test,train,tensorboard,bench,remote,zarr,dask,parquet,datasets,docs]'
	touch $@

.venv/fuzz.stamp: .venv/test.stamp
	$(INSTALL) -e '.[fuzz]'
	touch $@

.venv/docs.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e '.[docs]'
	touch $@

.venv/demo.stamp: pyproject.toml constraints.txt | .venv/bin/python
	$(INSTALL) -e '.[bench]'
	touch $@

.PHONY: all lint types test bench docs
all: lint types test

lint:
	ruff check .
	ruff format --check .

types:
	mypy

test:
	python -m pytest -q

bench:
	python -m benchmarks

# build/site/index.html opens from the folder, with its search.
docs:
	zensical build --clean --strict

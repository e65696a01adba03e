.PHONY: all lint types test bench
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

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

# In an environment with `pip install --group docs`; build/site/index.html opens from the folder.
docs:
	mkdocs build --strict --site-dir build/site

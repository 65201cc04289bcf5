# Every target works alone on a fresh clone, with nothing but python3 (3.11 or newer, with venv) and make.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet install
ARGS ?=

.PHONY: help serve test simulate mutants lint format bench bench-quick cluster lock reference client clean

help:  ## Show this list
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 13

serve: .venv/serve  ## Serve http://localhost:3000 from ./chatstate.db (ARGS="--port 3001" for more)
	@exec $(BIN)/chatstate serve $(ARGS)

test: .venv/dev  ## Run all tests, on SQLite and on real PostgreSQL servers that come with the test tools
	$(BIN)/pytest $(or $(ARGS),--numprocesses 3 --dist loadfile --no-loadscope-reorder)

simulate: .venv/dev  ## Random requests against a model of the rules (SEED=7 replays, STORE=sqlite, EXAMPLES=100000)
	CHATSTATE_TEST_SEED=$(SEED) CHATSTATE_TEST_EXAMPLES=$(EXAMPLES) $(BIN)/pytest tests/simulate \
		-k "test_the_servers and $(or $(STORE),test)" $(ARGS)

mutants: .venv/dev  ## Change who is let in, a little at a time, and list what no test notices (ARGS="keys.py" for one file)
	$(BIN)/python -m tools.mutants $(ARGS)

lint: .venv/dev  ## Check style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy

format: .venv/dev  ## Mend the style
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

bench: .venv/dev  ## Measure chatstate beside its peers and limits, in about 55 minutes (ARGS="--only peers" for less)
	@exec $(BIN)/python -m bench $(ARGS)

bench-quick: .venv/dev  ## The same against the replaced service and pgbench only, in about 2 minutes
	@exec $(BIN)/python -m bench --quick $(ARGS)

cluster: .venv/dev  ## Try it on many machines, on this one: a Valkey Cluster of six nodes, and two servers behind a proxy
	@exec $(BIN)/python -m tools.cluster $(ARGS)

lock: .venv/dev  ## Pin the newest versions that pyproject.toml allows, with hashes
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --python-version 3.11 \
		pyproject.toml --group build --output-file requirements.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --python-version 3.11 \
		pyproject.toml --group build --group dev --constraint requirements.txt --output-file requirements-dev.txt
	$(BIN)/uv pip compile --quiet --upgrade --universal --generate-hashes --no-header --python-version 3.11 \
		bench/peers/requirements.in --output-file bench/peers/requirements.txt

reference: .venv/dev  ## Make /openapi.json and /docs anew after a change of the routes
	$(BIN)/python -m tools.reference

client: clients/typescript/node_modules/.package-lock.json  ## Make the TypeScript client anew, and /client.js of it (needs Node.js 20 or newer, with npm)
	cd clients/typescript && npm run build && npm run size

clients/typescript/node_modules/.package-lock.json: clients/typescript/package-lock.json
	cd clients/typescript && npm ci --include=dev
	@touch $@

clean:  ## Remove what was installed
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis
	rm -rf $(addprefix clients/typescript/,node_modules dist build)
	rm -rf bench/peers/.venv $(addprefix bench/peers/nestjs_prisma/,node_modules dist src/generated)

.venv/pyvenv.cfg:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "chatstate needs Python 3.11 or newer; name one with: make PYTHON=python3.12" >&2; exit 1; }
	@echo "Installing into .venv (once; it takes less than a minute)"
	@$(PYTHON) -m venv .venv || { rm -rf .venv; echo "Python's venv is missing. On Debian: apt-get install python3-venv" >&2; exit 1; }

.venv/serve: requirements.txt pyproject.toml | .venv/pyvenv.cfg
	@$(PIP) --require-hashes -r requirements.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

.venv/dev: requirements-dev.txt pyproject.toml | .venv/pyvenv.cfg
	@$(PIP) --require-hashes -r requirements-dev.txt
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

# Needs make and a Python >= 3.11; everything else is installed into environments here.
#
#   make demo     train under attack, about two minutes (environment: .venv)
#   make test     lint, types and the tests on the built wheel, seven to twelve minutes
#                 (environment: .venv-test)
#   make test-all the same with the slow tests, half an hour; CI runs it
#   make test-flower  the tests of byzjax.integrations.flower (environment: .venv-flower)
#   make docs     the site, into build/docs (environment: .venv-docs)
#   make lint     ruff and pyright only
#   make format   ruff's formatting and its safe fixes
#   make clean    remove environments, builds and caches
#
# PYTHON=python3.12 chooses the interpreter, PIP_FLAGS=--verbose shows pip at work,
# PYTEST_FLAGS="-k krum" goes to pytest.

PYTHON =
PIP_FLAGS = --quiet
PYTEST_FLAGS =
SPHINX_FLAGS =

# Environments go by the interpreter asked for, so that another one makes a new one.
DEMO_STAMP = .venv/.installed-$(subst /,-,$(PYTHON))
TEST_STAMP = .venv-test/.installed-$(subst /,-,$(PYTHON))
TEST_BIN = .venv-test/bin
FLOWER_STAMP = .venv-flower/.installed-$(subst /,-,$(PYTHON))
FLOWER_BIN = .venv-flower/bin
DOCS_STAMP = .venv-docs/.installed-$(subst /,-,$(PYTHON))
DOCS_BIN = .venv-docs/bin
CODE = byzjax experiments examples benchmarks tests
# What the tests read, beside the installed package. Missing ones are left out.
TESTED_FILES = tests experiments examples benchmarks docs *.md CITATION.cff \
  pyproject.toml Makefile constraints*.txt

# Prints the first Python that runs (a shim may exist and fail), is new enough and can
# make environments.
define FIND_PYTHON
for candidate in $(if $(PYTHON),"$(PYTHON)",python3 python3.13 python3.12 python3.11 python); do \
  if "$$candidate" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
    >/dev/null 2>&1; then echo "$$candidate"; break; fi; \
done
endef

# $(1): environment, $(2): what to install, before the package itself is built.
define MAKE_ENVIRONMENT
@python=$$($(FIND_PYTHON)); \
if [ -z "$$python" ]; then \
  echo "No Python >= 3.11 with venv found$(if $(PYTHON), at $(PYTHON))." >&2; \
  echo "Install one (on Debian and Ubuntu: apt install python3-venv), or name one:" >&2; \
  echo "  make $(MAKECMDGOALS) PYTHON=/path/to/python3" >&2; exit 1; \
fi; \
echo "Installing into $(1) with $$("$$python" --version); once, about a minute ..."; \
"$$python" -m venv --clear $(1) || { \
  echo "Could not make the environment $(1): see above. Is the disk full, or is" >&2; \
  echo "python3-venv missing? Another Python: make $(MAKECMDGOALS) PYTHON=..." >&2; exit 1; }
endef

define PIP_FAILED
{ echo "pip failed: see above. It needs a package index (the network, or a mirror in" >&2; \
  echo "pip's own configuration) and 2 GB of disk. Then run make again; for all of" >&2; \
  echo "pip's output, with PIP_FLAGS=--verbose." >&2; exit 1; }
endef

.PHONY: help demo test test-all test-flower docs lint format clean

help:
	@sed -n 's/^#   //p' Makefile

demo: $(DEMO_STAMP)
	@.venv/bin/python -m experiments.demo

$(DEMO_STAMP): pyproject.toml constraints.txt
	$(call MAKE_ENVIRONMENT,.venv)
	@.venv/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt hatchling editables \
	  && .venv/bin/python -m pip install $(PIP_FLAGS) -c constraints.txt \
	    --no-build-isolation --editable '.[demo]' \
	  || $(PIP_FAILED)
	@touch $@

# The wheel as users get it, so that a file left out of it is noticed.
define BUILD_WHEEL
rm -rf build/wheel && $(TEST_BIN)/python -m pip wheel $(PIP_FLAGS) --no-deps \
  --no-build-isolation --wheel-dir build/wheel .
endef

$(TEST_STAMP): pyproject.toml constraints.txt
	$(call MAKE_ENVIRONMENT,.venv-test)
	@{ $(TEST_BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt hatchling \
	  && $(BUILD_WHEEL) \
	  && for wheel in build/wheel/*.whl; do \
	    $(TEST_BIN)/python -m pip install $(PIP_FLAGS) -c constraints.txt \
	      "$$wheel[dev]"; done; } \
	  || $(PIP_FAILED)
	@touch $@

lint: $(TEST_STAMP)
	@$(TEST_BIN)/ruff check .
	@$(TEST_BIN)/ruff format --check .
	@$(TEST_BIN)/pyright --pythonpath $(TEST_BIN)/python

format: $(TEST_STAMP)
	@$(TEST_BIN)/ruff check --fix .
	@$(TEST_BIN)/ruff format .

# Flower's pins contradict those of constraints.txt: it has an environment of its own.
$(FLOWER_STAMP): pyproject.toml constraints-flower.txt
	$(call MAKE_ENVIRONMENT,.venv-flower)
	@{ $(FLOWER_BIN)/python -m pip install $(PIP_FLAGS) -c constraints-flower.txt \
	    hatchling editables \
	  && $(FLOWER_BIN)/python -m pip install $(PIP_FLAGS) -c constraints-flower.txt \
	    --no-build-isolation --editable '.[flower-test]'; } \
	  || $(PIP_FAILED)
	@touch $@

test-flower: $(FLOWER_STAMP)
	@$(FLOWER_BIN)/pyright --pythonpath $(FLOWER_BIN)/python \
	  --project tests/integrations/pyright.json
	@env -u PYTHONPATH FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 \
	  $(FLOWER_BIN)/python -m pytest -n logical --maxprocesses 4 --dist loadgroup \
	  $(PYTEST_FLAGS) byzjax/integrations/flower tests/integrations

$(DOCS_STAMP): pyproject.toml constraints-docs.txt
	$(call MAKE_ENVIRONMENT,.venv-docs)
	@{ $(DOCS_BIN)/python -m pip install $(PIP_FLAGS) -c constraints-docs.txt \
	    hatchling editables \
	  && $(DOCS_BIN)/python -m pip install $(PIP_FLAGS) -c constraints-docs.txt \
	    --no-build-isolation --editable '.[docs]'; } \
	  || $(PIP_FAILED)
	@touch $@

# A warning is an error, and so is a link inside of the site that leads nowhere. The
# notebooks are run, those that changed. `make docs SPHINX_FLAGS=-E` starts anew.
docs: $(DOCS_STAMP)
	@env -u PYTHONPATH JAX_PLATFORMS=cpu $(DOCS_BIN)/python -m sphinx -b html \
	  --fail-on-warning --keep-going --nitpicky --quiet $(SPHINX_FLAGS) \
	  -d build/doctrees -c docs . build/docs
	@echo "The site is in build/docs: open build/docs/index.html."

# Slow ones are left out by one, and not by the other. In a folder of its own, where only
# the installed package can be imported. pytest comes last, in one run, so that its
# closing line is the last one.
test: CHOSEN = -m 'not slow'
test test-all: $(TEST_STAMP) lint
	@$(BUILD_WHEEL) && $(TEST_BIN)/python -m pip install $(PIP_FLAGS) --no-deps \
	  --force-reinstall build/wheel/*.whl
	@set -e; python="$(CURDIR)/$(TEST_BIN)/python"; \
	folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; trap 'exit 130' INT TERM; \
	cp -R $(wildcard $(TESTED_FILES)) "$$folder"; cd "$$folder"; \
	env -u PYTHONPATH BYZJAX_TEST_INSTALLED=1 "$$python" -m pytest \
	  -n logical --maxprocesses 4 --dist loadgroup --durations 10 \
	  $(CHOSEN) $(PYTEST_FLAGS) --pyargs byzjax ./tests

clean:
	rm -rf .venv .venv-test .venv-flower .venv-docs build dist .pytest_cache .ruff_cache .hypothesis
	find $(wildcard $(CODE)) -name __pycache__ -type d -prune -exec rm -rf {} +

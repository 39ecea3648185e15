#!/usr/bin/env bash
# Trains and evaluates several methods over seeds and values of beta, then writes one report.
#   benchmarks/compare_methods.sh OUT [JOBS]
# METHODS, SEEDS, BETAS and OPTIONS (more `gcpo-bench train` arguments) may be set in the environment. What is done
# already is not done again, so an interrupted comparison goes on where it stopped.
set -euo pipefail
out=${1:?usage: benchmarks/compare_methods.sh OUT [JOBS]}
jobs=${2:-2}
export OUT=$out OMP_NUM_THREADS=1 OPTIONS=${OPTIONS:-}

one() {
  local method=$1 beta=$2 seed=$3
  local name="$method-beta$beta-seed$seed" resume=
  mkdir -p "$OUT/logs"
  [ -d "$OUT/runs/$name" ] && resume=--resume
  # shellcheck disable=SC2086
  {
    if [ -n "$resume" ]; then gcpo-bench train --name "$name" --runs-dir "$OUT/runs" --resume
    else gcpo-bench train --method "$method" --seed "$seed" -o "loss.beta=$beta" --name "$name" --runs-dir "$OUT/runs" $OPTIONS
    fi && gcpo-bench evaluate "$name" --runs-dir "$OUT/runs" --no-start
  } >"$OUT/logs/$name.log" 2>&1 && echo "done $name" || echo "failed $name: see $OUT/logs/$name.log"
}
export -f one

for seed in ${SEEDS:-0 1 2 3 4}; do
  for beta in ${BETAS:-0.01 0.1}; do
    for method in ${METHODS:-grpo gcpo random remaining gcpo-no-daw}; do
      echo "$method $beta $seed"
    done
  done
done | xargs -P "$jobs" -L 1 bash -c 'one "$@"' one

first=$(find "$out/runs" -mindepth 1 -maxdepth 1 -type d ! -name 'start-*' | sort | head -n 1)
gcpo-bench evaluate "$(basename "$first")" --runs-dir "$out/runs"  # with the start, which all of them share
gcpo-bench report --runs-dir "$out/runs" --out "$out/report"

#!/usr/bin/env bash
# Measures the rows of docs/src/benchmarks-cuda.md on the card at hand, one JSON file a row, so that anybody can repeat them.
#
#   docs/benchmarks/measure.sh TRAINER OUT            every row (about six minutes on an H100)
#   docs/benchmarks/measure.sh TRAINER OUT 8b decode  the rows whose names begin so
#
# OUT/environment.json names program, card and date. The exit code is that of the first row that failed; the others still run.
set -uo pipefail
[ $# -ge 2 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
trainer=$1 out=$2
shift 2
wanted=("$@")
mkdir -p "$out"
failed=0

# Whether a row was asked for.
asked() {
    [ ${#wanted[@]} -eq 0 ] && return 0
    for prefix in "${wanted[@]}"; do [[ $1 == "$prefix"* ]] && return 0; done
    return 1
}

# row NAME ARGUMENTS...: one measurement, OUT/NAME.json
row() {
    local name=$1 began=$SECONDS rc=0
    shift
    asked "$name" || return 0
    "$trainer" "$@" --device cuda --json "$out/$name.json" >"$out/$name.log" 2>&1 || rc=$?
    printf '%-16s rc=%d %4d s  %s\n' "$name" "$rc" $((SECONDS - began)) "$(figures "$out/$name.json")"
    if [ "$rc" -ne 0 ]; then
        tail -n 5 "$out/$name.log"
        [ "$failed" -ne 0 ] || failed=$rc
    fi
}

# The figures of a row that the tables show.
figures() {
    [ -s "$1" ] || return 0
    grep -oE '"(tokens_per_second|decode_tokens_per_second|peak_bytes_arena|predicted_peak_bytes|predicted_tokens_per_second|compared|failed)": ?[0-9.]+' "$1" |
        tr -d ' "' | tr '\n' ' '
}

"$trainer" doctor --json "$out/environment.json" >/dev/null 2>&1
date -u +'%Y-%m-%dT%H:%M:%SZ' >"$out/date.txt"

train() {
    local name=$1 shape=$2 batch=$3 seq=$4 steps=$5
    shift 5
    row "$name" bench train --shape "$shape" --batch "$batch" --accum 4 --seq "$seq" --steps "$steps" "$@"
}

row selftest selftest --reference tests/reference
train 8b-fastest 8b 2 2048 6 --plan fastest
train 8b-22 8b 2 2048 6 --plan fastest --memory-limit 22.5
train 8b-smallest 8b 2 2048 6 --plan smallest
train 8b-fp8 8b 2 2048 6 --plan fastest --precision fp8
train 8b-8192-fastest 8b 1 8192 4 --plan fastest
train 8b-8192-22 8b 1 8192 4 --plan fastest --memory-limit 22.5
train 8b-8192-smallest 8b 1 8192 4 --plan smallest
train 8b-8192-fp8 8b 1 8192 4 --plan fastest --precision fp8
train 06b-fastest 0.6b 2 2048 6 --plan fastest
train 06b-4 0.6b 2 2048 6 --plan fastest --memory-limit 4
row 14b bench train --shape 14b --batch 1 --accum 1 --seq 512 --steps 6 --plan fastest
row 32b bench train --shape 32b --batch 1 --accum 1 --seq 512 --steps 6 --plan fastest
row decode1 bench decode --shape 8b --batch 1 --prompt 128 --new 256
row decode32 bench decode --shape 8b --batch 32 --prompt 128 --new 256
row sample1 bench decode --shape 8b --batch 1 --prompt 128 --new 256 --sample
row sample32 bench decode --shape 8b --batch 32 --prompt 128 --new 256 --sample

# Our own products, where cublasLt is missing: right first, then how fast.
export TRAINER_CUDA_PRODUCTS=own
row own-selftest selftest --reference tests/reference --quick
row own-8b bench train --shape 8b --batch 1 --accum 1 --seq 2048 --steps 4 --plan fastest
unset TRAINER_CUDA_PRODUCTS
exit "$failed"

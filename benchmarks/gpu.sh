#!/usr/bin/env bash
# All tests for a GPU and every benchmark that runs on one, with few rounds: minutes, no network.
#
#     benchmarks/gpu.sh                              # on the GPU
#     benchmarks/gpu.sh --device cpu                 # tries the script: the tests are skipped
#     benchmarks/gpu.sh --json results.json          # default: gpu.json
#
# PYTHON chooses the interpreter. It needs torch (2.11 or later), pytest, pytest-xdist,
# pytest-randomly, hypothesis, mpmath, rich and torchjd, but not the package, which is then that of
# the tree. WORKERS is the number of test processes, by default one for each core.
set -uo pipefail

device=cuda json=gpu.json
while (($#)); do
    case $1 in
    --device | --json)
        (($# > 1)) || { echo "gpu.sh: $1 needs a value" >&2; exit 2; }
        declare "${1#--}=$2"
        shift 2
        ;;
    -h | --help)
        sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
        exit
        ;;
    *)
        echo "gpu.sh: unknown argument $1; see --help" >&2
        exit 2
        ;;
    esac
done
[[ $device == cpu || $device == cuda ]] || { echo "gpu.sh: --device is cpu or cuda" >&2; exit 2; }
[[ $json == /* ]] || json=$PWD/$json

cd "$(dirname "$0")/.."
python=${PYTHON:-python}
# Last, so that a wheel on PYTHONPATH comes first.
export PYTHONPATH="${PYTHONPATH:+$PYTHONPATH:}$PWD" OMP_NUM_THREADS=1
"$python" -c "
import sys, torch
if sys.argv[1] == 'cuda' and not torch.cuda.is_available():
    sys.exit('gpu.sh: torch finds no GPU; --device cpu tries the script without one')
" "$device" || exit 2

results=() failed=0
timed() { # NAME COMMAND...: runs it, and keeps how long it took and whether it passed
    local name=$1 start=$SECONDS outcome=passed
    shift
    echo "== $name"
    "$@" || { outcome=failed failed=1; }
    results+=("$(printf '%-16s %4d s  %s' "$name" $((SECONDS - start)) "$outcome")")
}

rm -f "$json"
report=$(mktemp)
trap 'rm -f "$report"' EXIT
timed tests "$python" -m pytest -m cuda -n "${WORKERS:-auto}" -q -p no:cacheprovider \
    --junitxml "$report" tests
for name in overhead launches compiled_step second_forward population many_tasks; do
    timed "$name" "$python" "benchmarks/$name.py" --quick --device "$device" --json "$json"
done

counts=$("$python" - "$json" "$report" "$SECONDS" <<'END'
import json, sys
from pathlib import Path
from xml.etree import ElementTree

path, report, seconds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
suite = ElementTree.parse(report).getroot().find("testsuite")
counts = {key: int(suite.get(key)) for key in ("tests", "failures", "errors", "skipped")}
counts["passed"] = counts.pop("tests") - sum(counts.values())
found = json.loads(path.read_text()) if path.exists() else {}
path.write_text(json.dumps({"tests": counts, "seconds": seconds, **found}, indent=2) + "\n")
print(", ".join(f"{number:,} {key}" for key, number in counts.items()))
END
)

echo
printf '%s\n' "${results[@]}"
echo "tests: $counts"
echo "$SECONDS s, results in $json"
exit "$failed"

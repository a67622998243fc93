#!/usr/bin/env bash
# Creates the virtual environment and installs Fedward for development. Called by make, once.
set -euo pipefail
if [ -z "${PYTHON:-}" ]; then
  echo "setup: expected Python 3.11 or newer on PATH, found none. Install it, or call make with PYTHON=/path/to/python3." >&2
  exit 2
fi
if ! "$PYTHON" -c 'import venv, ensurepip' 2>/dev/null; then
  echo "setup: expected the venv module of $PYTHON, found none. On Debian: apt-get install python3-venv." >&2
  exit 2
fi
free_kib=$(df -Pk . | awk 'NR==2 {print $4}')
if [ "$free_kib" -lt $((4 * 1024 * 1024)) ]; then
  echo "setup: expected 4 GiB of free disk here, found $((free_kib / 1024 / 1024)) GiB. Free some space and call make again." >&2
  exit 2
fi
[ -x "$VENV/bin/python" ] || "$PYTHON" -m venv "$VENV"
pip=("$VENV/bin/python" -m pip --quiet --disable-pip-version-check)
constrained=(--constraint constraints.txt)
log=$(mktemp)
trap 'rm -f "$log"' EXIT
run() { "$@" 2>"$log" || { cat "$log" >&2; exit 1; }; }

# Wheels are fetched once and kept: what is installed here is what an offline bundle is built from.
wheelhouse="$VENV/wheelhouse"
mkdir -p "$wheelhouse"
cached=(--find-links "$wheelhouse")

# torch first: a plain install would take the CUDA build (rules 26).
if ! "$VENV/bin/python" -c 'import torch' 2>/dev/null || ! compgen -G "$wheelhouse/torch-*.whl" > /dev/null; then
  echo "setup: fetching torch"
  if [ "${TORCH:-cpu}" = "cuda" ]; then
    run "${pip[@]}" wheel "${constrained[@]}" --wheel-dir "$wheelhouse" torch==2.13.0
  elif "${pip[@]}" install --dry-run --ignore-installed --no-deps --report - torch==2.13.0 2>/dev/null | grep -q '2\.13\.0+cpu'; then
    run "${pip[@]}" wheel "${constrained[@]}" --wheel-dir "$wheelhouse" torch==2.13.0
  else
    run "${pip[@]}" wheel "${constrained[@]}" --wheel-dir "$wheelhouse" torch==2.13.0 --index-url https://download.pytorch.org/whl/cpu --extra-index-url https://pypi.org/simple
  fi
  run "${pip[@]}" install "${constrained[@]}" --no-index "${cached[@]}" torch==2.13.0
fi
echo "setup: fetching what Fedward needs"
run "${pip[@]}" wheel "${constrained[@]}" "${cached[@]}" --wheel-dir "$wheelhouse" ./common "./server[sandbox,postgresql]" "./client[imaging,genomics,omics]" pip
rm -f "$wheelhouse"/fedward_*.whl # ours are built from the sources, each time
echo "setup: installing Fedward and its tools"
run "${pip[@]}" install "${constrained[@]}" "${cached[@]}" -e ./common -e "./server[sandbox,postgresql]" -e "./client[imaging,genomics,omics]" -e .
# Fedward's own sources too: a process that may not write here would compile them at each start.
"$VENV/bin/python" -m compileall -q common server client
echo "setup: done"

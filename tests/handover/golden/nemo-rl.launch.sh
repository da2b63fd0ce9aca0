#!/usr/bin/env bash
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
: "${NEMO_RL:?set NEMO_RL to a checkout of https://github.com/NVIDIA-NeMo/RL}"
export HANDOVER="$here"
sed "s|@NEMO_RL@|$NEMO_RL|" "$here/ppo.yaml" > "$here/ppo.here.yaml"
cd "$NEMO_RL"
exec uv run examples/run_ppo.py --config "$here/ppo.here.yaml" "$@"

#!/usr/bin/env bash
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
export HANDOVER="$here"
exec python3 -m verl.trainer.main_ppo --config-path "$here" --config-name ppo "$@"

#!/usr/bin/env bash
# A fleet of real processes on this machine: one SuperLink, and one SuperNode for each site folder. Loopback only, no TLS.
#
#     dlfd-fleet data deal && deploy/local-fleet.sh dlfd-fleet-state
#
# Then, in another shell, what the last lines say. Ctrl-C stops everything that was started here.
set -euo pipefail
state=$(realpath "${1:?name the state folder that holds sites/, such as dlfd-fleet-state}")
port=${2:-9300}
[ -d "$state/sites" ] || { echo "There is no $state/sites; make it with: dlfd-fleet data deal" >&2; exit 2; }
export FLWR_HOME="$state/flwr" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export DLFD_FLEET_STATE_FOLDER="$state"
mkdir -p "$FLWR_HOME"
printf '[superlink]\ndefault = "local-fleet"\n\n[superlink.local-fleet]\naddress = "127.0.0.1:%s"\ninsecure = true\n' \
    "$port" > "$FLWR_HOME/config.toml"

started=()
stop() { kill "${started[@]}" 2>/dev/null || true; wait; }
trap stop EXIT
flower-superlink --insecure --port "$port" --disable-runtime-dependency-installation > "$FLWR_HOME/superlink.log" 2>&1 &
started+=($!)
number=0
for site in "$state"/sites/*/; do
    number=$((number + 1))
    flower-supernode --insecure --superlink "127.0.0.1:$port" --port $((port + number)) \
        --node-config "site-folder=\"${site%/}\"" > "$FLWR_HOME/supernode-$number.log" 2>&1 &
    started+=($!)
done
echo "One SuperLink and $number SuperNodes are starting; their logs are in $FLWR_HOME."
echo "  export FLWR_HOME=$FLWR_HOME"
echo "  flwr run . --stream --run-config 'job=\"train\"'"
echo "  dlfd-fleet forget request PERSON --site $state/sites/site-1"
echo "  flwr run . --stream"
wait

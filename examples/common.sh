# What the examples share; each run.sh reads it first. Nothing here is about zeugma itself: a
# temporary folder, ports, processes that end with the script, waiting, and claims.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[1]}")" && pwd)
zeugma=$(type -P "${ZEUGMA:-zeugma}") || {
  echo "no ${ZEUGMA:-zeugma} on the PATH; build it with \`cargo build --release\` and set ZEUGMA=target/release/zeugma" >&2
  exit 1
}
zeugma=$(realpath "$zeugma")
work=$(mktemp -d -t zeugma-example-XXXXXX)
cd "$work"
exec 3>&1 # for what is shown even where a command's own output is kept
pids=()
gateways=()
deadline=40 # seconds; far above what anything here takes

finish() {
  local status=$? pid
  trap - EXIT INT TERM
  # An orderly end would drain for `drain.delay` first.
  for pid in "${gateways[@]}"; do kill -9 "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  if [ -n "${KEEP:-}" ]; then echo "kept: $work"; else rm -rf "$work"; fi
  exit "$status"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# say TEXT: what happens next, and why.
say() { printf '\n# %s\n' "$*"; }

# zeugma ARGS: shows the command as you would type it, and runs it.
zeugma() {
  printf '$ zeugma %s\n' "$*" >&3
  "$zeugma" "$@"
}

# start NAME COMMAND...: runs it in the background, its output in NAME.log; ended with the script.
start() {
  local name=$1
  shift
  "$@" >>"$name.log" 2>&1 &
  pids+=($!)
  declare -g "pid_$name=$!"
}

# stop NAME: kills it, as a crash would.
stop() {
  local pid=pid_$1
  kill -9 "${!pid}"
  wait "${!pid}" 2>/dev/null || true
}

# gateway NAME CONFIG PROBES-PORT: starts one and waits until it is ready.
gateway() {
  printf '$ zeugma gateway --config %s &\n' "$2"
  start "$1" "$zeugma" gateway --config "$2"
  gateways+=("$!")
  eventually "$1 is ready" curl -fsS -o /dev/null "http://127.0.0.1:$3/ready"
}

# certify CLUSTER...: one CA; for each cluster a trust domain, its gateway's certificate, its bundle.
certify() {
  local cluster
  zeugma ca init
  for cluster in "$@"; do
    zeugma ca trust-domain add "$cluster.example"
    mkdir -p "$cluster" bundles
    zeugma ca issue "spiffe://$cluster.example/zeugma/gateway" --out "$cluster/gw"
    zeugma ca bundle "$cluster.example" --out "bundles/$cluster.example.json"
  done
}

# service NAME PORT: starts one that answers with its name, where a `_` becomes a `-`.
service() {
  start "$1" python3 "$here/../service.py" "${1//_/-}" "$(port "$2")"
  eventually "${1//_/-} is up" curl -fsS -o /dev/null "http://127.0.0.1:$(port "$2")/"
}

# ask ROUTE [CURL-ARGUMENTS]: a request of a workload in east, to its own gateway.
ask() {
  local route=$1
  shift
  curl -sS --max-time 20 -H "Host: $route.shop.svc.clusterset.local" "$@" "http://127.0.0.1:$(port 15001)/"
}

# ask_code ROUTE [CURL-ARGUMENTS]: the status of the answer, which is left in answer.txt.
ask_code() { ask "$@" -o answer.txt -w '%{http_code}'; }

# answers ROUTE PATTERN: an answer in which PATTERN is found.
answers() { ask "$1" | grep -E "$2"; }

# code_is CODE ROUTE [CURL-ARGUMENTS]: an answer of that status.
code_is() {
  local code
  code=$(ask_code "${@:2}") || true
  echo "status $code"
  [ "$code" = "$1" ]
}

# eventually WHAT COMMAND...: until it succeeds; the end of the logs if it does not in time.
eventually() {
  local what=$1 until=$((SECONDS + deadline))
  shift
  until "$@" >last.out 2>&1; do
    if ((SECONDS >= until)); then
      echo "FAILED  $what: not within $deadline s; last: $(<last.out)" >&2
      tail -n 5 ./*.log >&2 || true
      exit 1
    fi
    sleep 0.1
  done
  printf 'ok  %s\n' "$what"
}

# claim WHAT COMMAND...: what must be so at once.
claim() {
  local what=$1
  shift
  if ! "$@" >last.out 2>&1; then
    echo "FAILED  $what: $(<last.out)" >&2
    tail -n 5 ./*.log >&2 || true
    exit 1
  fi
  printf 'ok  %s\n' "$what"
}

# ports PORT...: finds one number to move them all by, 0 if they are free.
ports() {
  offset=$(python3 - "${PORT_OFFSET:-}" "$@" <<'PYTHON'
import random, socket, sys

def free(port):
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError):
            return False
    return True

wanted = [int(port) for port in sys.argv[2:]]
offsets = [int(sys.argv[1])] if sys.argv[1] else [0, *random.sample(range(2000, 14000), 100)]
for offset in offsets:
    if all(free(port + offset) for port in wanted):
        print(offset)
        break
else:
    sys.exit(f"no free ports: tried {wanted} moved by {offsets[0]} and others")
PYTHON
  ) || exit 1
  [ "$offset" = 0 ] || echo "(ports are taken: all are moved by $offset)"
}

# port PORT: where it is.
port() { echo $(($1 + offset)); }

# moved FILE: what it holds, its addresses on this machine with their ports moved.
address='(127\.0\.0\.1|0\.0\.0\.0)(:|, port_value: )'
moved() {
  python3 -c '
import re, sys
offset = int(sys.argv[1])
move = lambda found: found[1] + found[2] + str(int(found[3]) + offset)
print(re.sub(sys.argv[2] + r"(\d+)", move, sys.stdin.read()), end="")
' "$offset" "$address" <"$1"
}

# place FILE...: copies the example's files here, their ports moved.
place() {
  local files=("${@/#/$here/}") file
  mapfile -t numbers < <(grep -ohE "$address[0-9]+" "${files[@]}" | grep -oE '[0-9]+$' | sort -u)
  ports "${numbers[@]}" "${extra_ports[@]}"
  for file in "$@"; do
    mkdir -p "$(dirname "$file")"
    moved "$here/$file" >"$file"
  done
}
extra_ports=()

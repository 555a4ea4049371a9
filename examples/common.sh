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
deadline=40 # seconds; far above what anything here takes

finish() {
  local status=$? pid
  trap - EXIT INT TERM
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
  eventually "$1 is ready" curl -fsS -o /dev/null "http://127.0.0.1:$3/ready"
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

# place FILE...: copies the example's YAML here, its ports moved.
place() {
  local files=("${@/#/$here/}") file number
  mapfile -t numbers < <(grep -oh '127\.0\.0\.1:[0-9]*' "${files[@]}" | cut -d: -f2 | sort -u)
  ports "${numbers[@]}" "${extra_ports[@]}"
  for file in "$@"; do
    mkdir -p "$(dirname "$file")"
    python3 -c '
import re, sys
offset = int(sys.argv[1])
move = lambda found: found[1] + str(int(found[2]) + offset)
print(re.sub(r"(127\.0\.0\.1:)(\d+)", move, sys.stdin.read()), end="")
' "$offset" <"$here/$file" >"$file"
  done
}
extra_ports=()

#!/usr/bin/env bash
# A gateway in the surroundings that deploy/kubernetes gives it: a root that is read-only, a user that
# is nobody, volumes as kubelet lays them out, and the overlay's own configuration at its own ports.
#
#   unshare --net --mount --pid --fork --kill-child --mount-proc bash pod.sh ROOT ZEUGMA CONFIG WORK
#
# ROOT has /usr/bin/zeugma and what it needs; ZEUGMA is a command of this machine, for certificates.
set -euo pipefail
root=$1 zeugma=$2 config=$3 work=$4
user=65532 pod=10.20.0.1 workload=10.20.0.2 service=10.20.0.3
hello=hello.demo.svc.clusterset.local

eventually() { # WHAT COMMAND...
  local what=$1 until=$((SECONDS + 60))
  shift
  until "$@" >"$work/last.txt" 2>&1; do
    if ((SECONDS >= until)); then
      echo "FAILED: $what" >&2
      tail -n 20 "$work"/*.txt "$work"/*.log >&2
      exit 1
    fi
    sleep 0.1
  done
  echo "ok: $what"
}

volume() { # NAME FILE...: as kubelet does, files are links by way of ..data, which is swapped at once
  local folder=$work/$1 moment
  shift
  moment=..$(date +%s%N)
  mkdir -p "$folder/$moment"
  cp -L "$@" "$folder/$moment"
  ln -s "$moment" "$folder/..next"
  mv -T "$folder/..next" "$folder/..data"
  for file in "$folder/$moment"/*; do ln -sf "..data/${file##*/}" "$folder/"; done
}

ip link set lo up
for address in $pod $workload $service; do ip address add $address/32 dev lo; done
mkdir -p "$work"/{www,etc/zeugma}
echo "hello from a pod" >"$work/www/index.html"
python3 -m http.server 80 --bind $service --directory "$work/www" >"$work/service.log" 2>&1 &
python3 "${BASH_SOURCE[0]%/*}/dns.py" $service hello.demo.svc.cluster.local=$service mesh.west.example=192.0.2.1 \
  >"$work/dns.log" 2>&1 &

"$zeugma" init "$work/made" --trust-domain east.example --cluster east >"$work/init.txt"
volume etc/zeugma/config "$config"/*
volume etc/zeugma/bundles "$work"/made/bundles/*
volume etc/zeugma/svid "$work"/made/gw.pem "$work"/made/gw.key
# `defaultMode: 0400` and `fsGroup`: root's, and the group may read.
chown -R 0:$user "$work/etc/zeugma/svid"
chmod 0440 "$work"/etc/zeugma/svid/..data/*
echo "127.0.0.1 localhost" >"$work/etc/hosts"
echo "nameserver $service" >"$work/etc/resolv.conf"

mount --make-rprivate /
mount --bind "$root" "$root"
# What every container runtime makes: mount points, /proc, and the devices of its specification
# (OCI runtime-spec, config-linux.md "Default Devices"). A static binary reads /dev/urandom.
mkdir -p "$root"/{proc,dev,etc,run/zeugma,var/lib/zeugma}
mount -t proc proc "$root/proc"
mount -t tmpfs -o nosuid,mode=755 tmpfs "$root/dev"
for device in null zero full random urandom tty; do
  touch "$root/dev/$device"
  mount --bind "/dev/$device" "$root/dev/$device"
done
mount --bind "$work/etc" "$root/etc"
mount -o remount,bind,ro "$root/etc"
for empty in run/zeugma var/lib/zeugma; do
  mount -t tmpfs -o nosuid,nodev,mode=2777,gid=$user tmpfs "$root/$empty"
done
mount -o remount,bind,ro "$root"

confined=(setpriv --no-new-privs --bounding-set=-all,+sys_chroot,+setuid,+setgid
  chroot --userspec=$user:$user --groups=$user "$root")
"${confined[@]}" /usr/bin/zeugma gateway --config /etc/zeugma/config >"$work/access.log" 2>"$work/gateway.log" &
gateway=$!

eventually "/ready says 200" curl -fsS "http://$pod:15021/ready"
eventually "/livez says 200" curl -fsS "http://$pod:15021/livez"
ask() { curl -fsS --max-time 10 --interface "$1" -H "Host: $hello" "http://$pod:15001/"; }
answered() { ask $workload | grep -Fx "hello from a pod"; }
eventually "a workload's request is answered" answered
if ask 127.0.0.1 2>/dev/null; then
  echo "FAILED: a source outside the listener's networks is answered" >&2
  exit 1
fi

status=/proc/$gateway/status
grep -qP "^Uid:\t$user\t$user\t$user\t$user$" "$status"
grep -qP '^Cap(Inh|Prm|Eff|Amb):\t0+$' "$status"
[ "$(grep -cP '^Cap(Inh|Prm|Eff|Amb):\t0+$' "$status")" = 4 ]
grep -qP '^NoNewPrivs:\t1$' "$status"
grep -qP '^\S+ / \S+ ro,' "/proc/$gateway/mounts"
[ "$(stat -c '%U %a' "$root/run/zeugma/admin.sock")" = "UNKNOWN 600" ]
[ -d "$root/var/lib/zeugma/east-gw" ]
echo "ok: it is user $user without capabilities, its root is read-only, its state is kept"

# As `kubectl exec` runs it.
"${confined[@]}" /usr/bin/zeugma status >"$work/status.txt"
grep -F "demo/hello" "$work/status.txt" >/dev/null
echo "ok: its own command asks it over the admin socket"

# A change of the ConfigMap that needs no restart.
sed '/export:/d' "$config/routes.yaml" >"$work/routes.yaml"
cp "$config"/{gateway,peers}.yaml "$work/"
volume etc/zeugma/config "$work"/{gateway,peers,routes}.yaml
has() { curl -fsS "http://$pod:15020/metrics" | grep -Fx "$1"; }
eventually "a swapped ConfigMap is taken over" has "zeugma_config_generation 2"
answered >/dev/null

kill -TERM $gateway
eventually "it says that it is not ready" grep -F "draining: not ready, still accepting" "$work/gateway.log"
answered >/dev/null
kill -TERM $gateway # the second shortens the delay
wait $gateway
grep -F "drained" "$work/gateway.log" >/dev/null
echo "ok: it accepts while it is not ready, and ends by itself"

#!/usr/bin/env bash
# Counts what the program does under load, for `build.sh` to build the release image's by: which branches
# are taken, what is called and how often (profile-guided optimisation).
#
#   deploy/image/profile.sh
#
# It builds the program with counters, runs it as those rows of `benches/gateway` do that are not about
# waiting or memory, and makes zeugma.profdata in this folder. Functions that never ran are left out, and
# built as without counts. Run it before a release, once its version is written, if `build.sh` says that the
# counts are of another program or what a request runs through has changed, and commit what it made. An hour
# on 2 cores: it builds two programs. Needs what `build.sh` needs, and llvm-profdata of the LLVM that rustc has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# What a request or connection does; and a start, for how a configuration is read.
readonly rows='http*,mesh-http2,rate-http1,handshake-same,handshake-distinct,originate-same,tls-*,passthrough-connections,passthrough-down-16,passthrough-up-16,ping-*,routes-1000'

host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
profdata=
for tool in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" \
  "$(command -v "llvm-profdata-$llvm" || true)"; do
  [ -x "$tool" ] && profdata=$tool && break
done
if [ -z "$profdata" ]; then
  echo "$0: no llvm-profdata of LLVM $llvm, which this rustc has; run \`rustup component add llvm-tools\`" \
    "or install the package llvm-$llvm" >&2
  exit 1
fi

target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
work=$target/profile
rm -rf "$work/counts" "$work/rows.json"
mkdir -p "$work/counts"
# In a shell of its own: the bench and the program beside it are built without counters, and with other
# features, for a bench may use what tests need.
(
  . deploy/image/flags.sh
  export RUSTFLAGS="$RUSTFLAGS -Cprofile-generate"
  CARGO_TARGET_DIR=$work cargo build --locked --release --bin zeugma
  cp "$work/$CARGO_BUILD_TARGET/release/zeugma" "$work/zeugma"
)
LLVM_PROFILE_FILE=$work/counts/%4m.profraw CARGO_TARGET_DIR=$target \
  cargo bench --locked -p zeugma --bench gateway -- --program "$work/zeugma" --peers zeugma \
  --repetitions 1 --only "$rows" --out "$work/rows.json"

"$profdata" merge --sparse --output "$work/zeugma.profdata" "$work"/counts/*.profraw
mv "$work/zeugma.profdata" deploy/image/zeugma.profdata
ls -l deploy/image/zeugma.profdata

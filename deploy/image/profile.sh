#!/usr/bin/env bash
# Counts what the program does under load, for `build.sh` to build the release image's by: which branches
# are taken, what is called and how often (profile-guided optimisation).
#
#   deploy/image/profile.sh
#
# It builds the program with counters and runs it as every row of `benches/gateway` does that is not about
# waiting or memory, and in `zeugma demo`. It makes, in this folder:
#   zeugma.profdata   the counts; functions that never ran are left out, and built as without
#   zeugma.profile    what they are of: the compiler and the hash of Cargo.lock
# The counts know a function by a name that another compiler or another version of what it depends on
# changes: run this again after such a change, before a release. Half an hour on 2 cores. Needs what
# `build.sh` needs, and llvm-profdata of the LLVM that rustc has.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

# What a request or connection does; and a start, for how a configuration is read.
readonly rows='http*,mesh-http2,rate-http1,handshake-same,handshake-distinct,originate-same,tls-*,passthrough-connections,passthrough-down-16,passthrough-up-16,ping-*,routes-1000'

. deploy/image/flags.sh

host=$(rustc -vV | sed -n 's/^host: //p')
llvm=$(rustc -vV | sed -n 's/^LLVM version: \([0-9]*\).*/\1/p')
profdata=
for tool in "$(rustc --print sysroot)/lib/rustlib/$host/bin/llvm-profdata" \
  "$(command -v "llvm-profdata-$llvm" || true)"; do
  [ -x "$tool" ] && profdata=$tool && break
done
if [ -z "$profdata" ]; then
  echo "$0: no llvm-profdata of LLVM $llvm, which this rustc has; run \`rustup component add llvm-tools\`" \
    "or \`apt-get install llvm-$llvm\`" >&2
  exit 1
fi

work=${CARGO_TARGET_DIR:-$PWD/target}/profile
export CARGO_TARGET_DIR=$work
export RUSTFLAGS="$RUSTFLAGS -Cprofile-generate"
# The bench has counters too, as it is built by the same flags; nobody wants them.
export LLVM_PROFILE_FILE=$work/other/%m.profraw
cargo build --locked --release --bin zeugma

rm -rf "$work/counts" "$work/other"
counting=$work/zeugma
cat >"$counting" <<SCRIPT
#!/bin/sh
LLVM_PROFILE_FILE='$work/counts/%4m.profraw' exec '$work/$CARGO_BUILD_TARGET/release/zeugma' "\$@"
SCRIPT
chmod +x "$counting"
# One that was killed has not written what it counted.
"$counting" demo
cargo bench --locked -p zeugma --bench gateway -- --program "$counting" --peers zeugma \
  --repetitions 1 --only "$rows" --out "$work/rows.json"

"$profdata" merge --sparse --output "$work/zeugma.profdata" "$work"/counts/*.profraw
mv "$work/zeugma.profdata" deploy/image/zeugma.profdata
profile_of >deploy/image/zeugma.profile
ls -l deploy/image/zeugma.profdata

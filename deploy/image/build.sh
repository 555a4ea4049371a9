#!/usr/bin/env bash
# The container image, without a container engine: a static binary, nothing else, as an OCI layout.
#
#   deploy/image/build.sh [--profile release|dev] [--output DIR]
#
# It makes in DIR (target/image/<profile>):
#   root/           what is in the image; Containerfile beside this script makes the same of it
#   oci/            the OCI image layout
#   zeugma.tar      the same as one file: `podman load`, `skopeo copy oci-archive:zeugma.tar ...`
#   zeugma.debug    the symbols, for the debugger of who has a core dump
# Two runs on the same commit and toolchain give the same digest. A release is built by what `profile.sh`
# counted. Needs cargo, a C compiler with binutils, and python3.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

profile=release
output=
while [ $# -gt 0 ]; do
  case $1 in
  --profile) profile=${2:?} ;;
  --output) output=${2:?} ;;
  *)
    echo "usage: $0 [--profile release|dev] [--output DIR]" >&2
    exit 64
    ;;
  esac
  shift 2
done
output=${output:-${CARGO_TARGET_DIR:-target}/image/$profile}

. deploy/image/flags.sh
# An image of the development profile is for the tests: nobody looks into it with a debugger.
[ "$profile" = release ] || export CARGO_PROFILE_DEV_DEBUG=false
counts=$PWD/deploy/image/zeugma.profdata
[ "$profile" != release ] || RUSTFLAGS+=" -Cprofile-use=$counts"
cargo build --locked --profile "$profile" --bin zeugma
binary=${CARGO_TARGET_DIR:-target}/$CARGO_BUILD_TARGET/$([ "$profile" = dev ] && echo debug || echo "$profile")/zeugma

# The C library's own resolver loads shared files of exactly its version, which the image has not.
if nm "$binary" | grep -w getaddrinfo >&2; then
  echo "$binary asks the C library for names; use zeugma_proxy::addresses_of" >&2
  exit 1
fi
if readelf --program-headers "$binary" | grep -q INTERP; then
  echo "$binary is not static" >&2
  exit 1
fi

rm -rf "$output"
mkdir -p "$output"/root/{etc/zeugma,run/zeugma,usr/bin,usr/share/doc/zeugma,var/lib/zeugma}
objcopy --only-keep-debug "$binary" "$output/zeugma.debug"
strip --strip-all -o "$output/root/usr/bin/zeugma" "$binary"
cp LICENSE "$output/root/usr/share/doc/zeugma/"

SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
revision=$(git rev-parse HEAD 2>/dev/null || echo unknown)
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
export SOURCE_DATE_EPOCH
python3 deploy/image/layout.py "$output" --version "$version" --revision "$revision"

# The counts know a function by its symbol. Of those in the program, most were counted, or none: what is
# in a symbol beside its name is another with another compiler, version, feature, dependency or cargo profile.
if [ "$profile" = release ]; then
  work=$(mktemp -d)
  trap 'rm -rf "$work"' EXIT
  export LC_ALL=C
  # None, of a compiler that names them otherwise, is no match either.
  { grep -aoE '_ZN[0-9A-Za-z_.$]*zeugma_proxy[0-9A-Za-z_.$]*17h[0-9a-f]{16}E' "$counts" || true; } |
    sort -u >"$work/counted"
  nm "$binary" | awk '{ print $NF }' | sort -u >"$work/built"
  counted=$(wc -l <"$work/counted")
  known=$(comm -12 "$work/counted" "$work/built" | wc -l)
  echo "of $counted functions of the proxy that were counted, $known are in the program by the same symbol"
  if [ $((known * 2)) -le "$counted" ]; then
    echo "$counts is of another compiler, version, feature, dependency or cargo profile: the program serves" \
      "as well, but a request costs more; deploy/image/profile.sh counts anew, in an hour" >&2
  fi
fi

# How the image's program is built, to be sourced in the repository's folder: static, and with nothing of
# the folders of this machine, so that two of them make the same bytes. `.ci/run` builds everything so, and
# most of it once.

# Always named: only then do build scripts and procedural macros, which run here, stay dynamic.
export CARGO_BUILD_TARGET=x86_64-unknown-linux-gnu
export RUSTFLAGS="-C target-feature=+crt-static --remap-path-prefix=$PWD=/zeugma --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
export CFLAGS_x86_64_unknown_linux_gnu="-ffile-prefix-map=$PWD=/zeugma -ffile-prefix-map=${CARGO_HOME:-$HOME/.cargo}=/cargo"

# Shared by the scripts here; sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
target_dir=${CARGO_TARGET_DIR:-$root/target}
static_triple=x86_64-unknown-linux-gnu

say() { printf '%s\n' "$*" >&2; }

die() {
  say "${0##*/}: $*"
  exit 1
}

as_root() {
  if [ "$(id -u)" = 0 ]; then
    "$@"
  else
    command -v sudo >/dev/null || die "'$*' needs root, and there is no sudo"
    sudo "$@"
  fi
}

apt() { as_root env DEBIAN_FRONTEND=noninteractive apt-get -qq "$@"; }

# need COMMAND:PACKAGE ...: installs the packages whose command is missing.
need() {
  local item missing=()
  for item in "$@"; do
    command -v "${item%%:*}" >/dev/null || missing+=("${item#*:}")
  done
  [ ${#missing[@]} -eq 0 ] && return
  command -v apt-get >/dev/null || die "please install: ${missing[*]} (no apt-get here to do it)"
  say "installing: ${missing[*]}"
  # A fresh image has no package lists, an old one has stale ones: refresh only when the first attempt fails.
  apt install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 \
    || { apt update && apt install -y --no-install-recommends "${missing[@]}" >/dev/null; } \
    || die "could not install: ${missing[*]}"
}

# Whether this user can open /dev/kvm for what a VMM does.
kvm_usable() { { : <>/dev/kvm; } 2>/dev/null; }

# static_cargo COMMAND ARGS...: cargo for binaries that run anywhere, in the target directory's folder of the triple.
# Naming the target keeps the flags away from build scripts and procedural macros.
static_cargo() {
  local command=$1
  shift
  CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS="-C target-feature=+crt-static" \
    cargo "$command" --manifest-path "$root/Cargo.toml" --target "$static_triple" "$@"
}

# The target that the guest kernel is compiled for.
kernel_triple() {
  if [ -d "$(rustc --print sysroot)/lib/rustlib/x86_64-unknown-none" ]; then
    echo x86_64-unknown-none
  else
    echo "$static_triple"
  fi
}

# kernel_cargo COMMAND ARGS...: cargo for the guest kernel, with the flags of guest/kernel/rustflags and a target
# directory of its own.
kernel_cargo() {
  local command=$1 flags
  shift
  flags=$(sed -e '/^#/d' -e '/^$/d' -e "s|@KERNEL_LD@|$root/guest/kernel/kernel.ld|" "$root/guest/kernel/rustflags" \
    | tr '\n' '\037')
  CARGO_ENCODED_RUSTFLAGS=${flags%$'\037'} cargo "$command" --manifest-path "$root/Cargo.toml" -p pagevisor-kernel \
    --profile kernel --target "$(kernel_triple)" --target-dir "$target_dir/kernel" "$@"
}

# Sourced by the scripts here, after tests/setup/lib.sh: the compiler that they share. It is Debian's rustc-web, of the workspace's
# rust-version or newer, with its sources, unpacked in the build cache, not installed: any Debian machine and any user will do,
# without rustup targets. `$sysroot/rustc` and `$sysroot/clippy-driver` are what to run.
[ "$(uname -m)" = x86_64 ] || fail "written for x86_64 machines: there rustc-web compiles for foreign targets"

sysroot=$cache/cross/sysroot
least=$(rust_version)
packages=(rustc-web 'libstd-rust-web-[0-9.]+' libstd-rust-web-dev rust-web-src rust-web-clippy)
# library_package SONAME: which package (a pattern) brings a library that LLVM needs and a slim machine may lack
library_package() {
  local version=${1##*.so.}
  case $1 in
    libedit.so.*) echo libedit2 ;;
    libbsd.so.*) echo libbsd0 ;;
    libmd.so.*) echo libmd0 ;;
    libffi.so.*) echo "libffi$version" ;;
    libicu*.so.*) echo "libicu$version" ;;
    liblzma.so.*) echo liblzma5 ;;
    libxml2.so.*) echo libxml2 ;;
    libz3.so.*) echo libz3-4 ;;
    libzstd.so.*) echo libzstd1 ;;
    *) fail "the compiler needs $1, and which package brings it is not known here" ;;
  esac
}

add() { # NAME INTO [LEAST]: the package below INTO
  local deb
  deb=$(fetch_package "$1" '' "${3:-}")
  say "unpacking ${deb##*/}"
  dpkg-deb -x "$deb" "$2"
}

# All of one revision, or none: a cached half of an older one is fetched again.
fetch_all() {
  local name again versions
  for again in no yes; do
    versions=$(for name in "${packages[@]}"; do dpkg-deb -f "$(fetch_package "$name" '' "$least")" Version; done | sort -u)
    [ "$(wc -l <<<"$versions")" != 1 ] || return 0
    [ $again = yes ] || for name in "${packages[@]}"; do
      rm -f "$(cached "$name")"
    done
  done
  fail "Debian's rustc-web packages have different versions:" $versions
}

unpack() {
  local part libraries sources llvm missing tool
  mkdir -p "$cache/cross"
  part=$(mktemp -d "$cache/cross/.XXXXXX")
  trap 'rm -rf "$part"' EXIT
  fetch_all
  for name in "${packages[@]}"; do add "$name" "$part" "$least"; done
  # the LLVM that this compiler is linked with, not the newest one
  llvm=$(dpkg-deb -f "$(cached "${packages[1]}")" Depends | { grep -oE 'libllvm[0-9]+' || true; } | head -n 1)
  [ -z "$llvm" ] || add "$llvm" "$part"
  libraries=usr/lib/x86_64-linux-gnu
  for _ in 1 2 3 4; do # a library that is added may need further ones
    missing=$(LD_LIBRARY_PATH=$part/$libraries ldd "$part/usr/bin/rustc" | awk '/=> not found/ {print $1}' | sort -u)
    [ -n "$missing" ] || break
    for name in $missing; do add "$(library_package "$name")" "$part"; done
    if [ -d "$part/lib/x86_64-linux-gnu" ]; then cp -an "$part/lib/x86_64-linux-gnu/." "$part/$libraries/"; fi
  done
  sources=$(find "$part/usr/src" -maxdepth 1 -name 'rustc-*' -type d | head -n 1)
  rm -rf "${sources:?}"/{compiler,src,debian} "$part/usr/share"
  mkdir -p "$part/usr/lib/rustlib/src"
  ln -sfn "../../../src/${sources##*/}" "$part/usr/lib/rustlib/src/rust"
  for tool in rustc clippy-driver; do
    printf '#!/bin/sh\nLD_LIBRARY_PATH="%s" exec "%s" "$@"\n' "$sysroot/$libraries" "$sysroot/usr/bin/$tool" >"$part/$tool"
    chmod +x "$part/$tool"
  done
  chmod 755 "$part"
  rm -rf "$sysroot"
  mv "$part" "$sysroot"
  trap - EXIT
  "$sysroot/rustc" --version >/dev/null || fail "$sysroot/rustc does not run"
}

usable() { # what was unpacked runs, and is not older than what the workspace needs
  local version
  [ -x "$sysroot/clippy-driver" ] && version=$("$sysroot/rustc" --version 2>/dev/null) && dpkg --compare-versions "$(cut -d' ' -f2 <<<"$version")" ge "$least"
}
# In a shell of its own, for the lock ends with it: what follows takes it, too.
usable || (
  locked cross
  usable || unpack
)

# compiler_version: that of the Debian package
compiler_version() { dpkg-deb -f "$(cached rustc-web '' "$least")" Version; }

# standard_library ARCHITECTURE TRIPLE: puts the library of another architecture (Debian's name), of the compiler's own revision,
# beside the compiler's
standard_library() {
  local deb again part status place=$sysroot/usr/lib/rustlib/$2
  [ ! -e "$place/whole" ] || return 0
  (
    locked cross
    [ ! -e "$place/whole" ] || exit 0
    for again in no yes; do
      status=0
      deb=$(version=$(compiler_version) && for_architecture "$1" && fetch_package libstd-rust-web-dev "$version") || status=$?
      [ $status = "$GONE" ] && [ $again = no ] || break
      say "the archive no longer has the library of this compiler: taking the compiler anew"
      for name in "${packages[@]}"; do rm -f "$(cached "$name")"; done
      unpack
    done
    [ $status = 0 ] || exit $status
    say "unpacking ${deb##*/}"
    part=$(mktemp -d "$cache/cross/.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    dpkg-deb -x "$deb" "$part"
    rm -rf "$place"
    mv "$part/usr/lib/rustlib/$2" "$place"
    touch "$place/whole"
  )
}

# begin_with NAME TARGET: a new target directory begins with what is kept under this name. cargo itself sees what of it is stale, by
# the compiler, the versions and the flags of each crate.
begin_with() {
  local kept=$cache/cross/$1
  [ -d "$2/debug" ] || [ ! -d "$kept" ] || (locked "$1" && mkdir -p "$2" && cp -a "$kept/." "$2/")
  mkdir -p "$2"
}

# keep NAME TARGET SCRIPT: keeps what came of dependencies, without the workspace's own crates, when the compiler, a dependency or
# the script is another: whole or not at all, and one checkout at a time.
keep() {
  local of kept=$cache/cross/$1
  of=$({ "$sysroot/rustc" --version; cat "$top/Cargo.lock" "$3"; } | sha256sum | cut -d' ' -f1)
  [ "$(cat "$kept/of" 2>/dev/null)" != "$of" ] || return 0
  (
    locked "$1"
    part=$(mktemp -d "$cache/cross/.XXXXXX")
    trap 'rm -rf "$part"' EXIT
    (cd "$2" && find . \( -name incremental -o -path ./bin -o -path ./boot -o -path ./nelly -o -name nelly -o -name 'nelly[-_]*' -o -name 'libnelly*' \
      -o -name 'e2e-*' -o -name 'conformance-*' \) -prune -o -type f ! -name '*.log' ! -name built.json -print0) |
      tar -C "$2" --null -T - -cf - | tar -C "$part" -xf -
    echo "$of" >"$part/of"
    chmod 755 "$part"
    rm -rf "$kept"
    mv "$part" "$kept"
    trap - EXIT
  )
}

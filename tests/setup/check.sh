#!/bin/bash
# check.sh: what sets the project up keeps its promises: packages from an archive that moves on
# while lists and cache grow old, the scheduler of `make test`, the check of licences and origins.
# The archive is one of a few small packages, made here; no network.
set -uo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
top=$(cd "$here/../.." && pwd)
. "$here/checking.sh"

# deb NAME VERSION [DIR]: a package with the files of DIR, in the archive
deb() {
  local tree=$scratch/tree
  rm -rf "$tree"
  mkdir -p "$tree/DEBIAN" "$scratch/archive"
  [ -z "${3:-}" ] || cp -r "$3/." "$tree/"
  printf '%s\n' "Package: $1" "Version: $2" 'Architecture: all' 'Maintainer: nobody <nobody@example.invalid>' 'Description: a test' >"$tree/DEBIAN/control"
  dpkg-deb -Znone --root-owner-group --build "$tree" "$scratch/archive/$1_$2_all.deb" >/dev/null
}
# published: the archive's index follows what lies in it
published() {
  local file
  for file in "$scratch"/archive/*.deb; do
    dpkg-deb -f "$file" && printf '%s\n' "Filename: ./${file##*/}" "Size: $(stat -c %s "$file")" "SHA256: $(sha256sum <"$file" | head -c 64)" ''
  done >"$scratch/archive/Packages"
  rm -f "$NELLY_BUILD_CACHE/apt/fetched" # its lists are no longer of the last ten minutes
}
# A machine whose lists are what the archive had when `machine` was called, and an empty build
# cache.
machine() {
  export NELLY_BUILD_CACHE=$scratch/cache APT_CONFIG=$scratch/apt.conf
  rm -rf "$scratch/cache" "$scratch/machine"
  mkdir -p "$scratch/machine/lists/partial" "$scratch/cache"
  echo "deb [trusted=yes] copy:$scratch/archive ./" >"$scratch/machine/sources.list"
  : >"$scratch/machine/status"
  cat >"$APT_CONFIG" <<EOF
Dir::Etc::SourceList "$scratch/machine/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "$scratch/machine/lists";
Dir::State::Status "$scratch/machine/status";
Dir::Cache "$scratch/machine";
Acquire::Languages "none";
EOF
  published
  apt-get -o APT::Sandbox::User="$(id -un)" -o Debug::NoLocking=1 -qq update
}
# fetched WORDS...: what a function of lib.sh prints, the last part of the path
setup=$here
fetched() { bash -c '. "$0/lib.sh"; path=$("$@") || exit; echo "${path##*/}"' "$setup" "$@"; }
# refused CODE WORDS...: such a function fails with that exit code; what it says is in $scratch/said
refused() {
  local code=$1
  shift
  fetched "$@" >"$scratch/said" 2>&1
  [ $? = "$code" ] || { echo "another exit code than $code:"; cat "$scratch/said"; return 1; }
}
told() { grep -qF -- "$1" "$scratch/said" || { echo "not said: $1"; cat "$scratch/said"; return 1; }; }

lists_too_old() {
  rm -rf "$scratch/archive"
  deb tool 1.85-1 && machine || return 1
  [ "$(fetched fetch_package tool)" = tool_1.85-1_all.deb ] || return 1
  # the archive moves on: neither the lists nor what is cached will do, and what the lists name is
  # gone
  rm -rf "$scratch/archive" && deb tool 1.96-1 && published || return 1
  [ "$(fetched fetch_package tool '' 1.95)" = tool_1.96-1_all.deb ] || return 1
  # what is in the cache now serves without an archive
  rm -rf "$scratch/archive" && [ "$(fetched fetch_package tool '' 1.95)" = tool_1.96-1_all.deb ] && [ "$(fetched fetch_package tool 1.85-1)" = tool_1.85-1_all.deb ]
}
lists_of_many() {
  local turn all=()
  for turn in 1 2 3 4 5; do # what they would disturb is small
    rm -rf "$scratch/archive"
    deb one 1-1 && deb two 1-1 && machine && deb three 1-1 && deb four 1-1 && published || return 1
    all=()
    for tool in one two three four; do
      fetched fetch_package "$tool" & all+=($!)
    done
    for tool in "${all[@]}"; do wait "$tool" || return 1; done
  done
}
archive_too_old() {
  rm -rf "$scratch/archive"
  deb tool 1.85-1 && machine && refused 4 fetch_package tool '' 1.95 && told "the archive has no tool, 1.95 or newer; its newest is tool 1.85-1" &&
    refused 4 fetch_package tool 1.96-1 && told "the archive has no tool 1.96-1; its newest is tool 1.85-1" &&
    refused 4 fetch_package no-such-tool && told "the archive has no no-such-tool; is this Debian"
}
no_archive() {
  rm -rf "$scratch/archive"
  deb tool 1.85-1 && machine && rm -rf "$scratch/archive" && refused 1 fetch_package tool && told "cannot refresh the package lists" &&
    refused 1 fetch_package tool '' 1.95 && told "tool, 1.95 or newer is not to be had"
}
file_is_gone() {
  rm -rf "$scratch/archive"
  deb tool 1-1 && machine && rm -rf "$scratch/archive" && deb tool 2-1 && published &&
    [ "$(fetched fetch_package tool)" = tool_2-1_all.deb ] && refused 4 fetch_package tool 1-1 && told "its newest is tool 2-1"
}
cross_takes_the_workspaces_version() {
  local least
  least=$(bash -c '. "$0/lib.sh"; rust_version' "$here")
  grep -qx "rust-version = \"$least\"" "$top/Cargo.toml" && [[ $least =~ ^1\.[0-9]+$ ]]
}

# A copy of what fetches pinned packages, with a pin of the test's archive.
pinned() { # PIN-LINE
  rm -rf "$scratch/copy" && mkdir -p "$scratch/copy" && cp "$here/lib.sh" "$scratch/copy/" && echo "$1" >"$scratch/copy/pins"
}
pins_hold() {
  local good setup=$scratch/copy
  rm -rf "$scratch/archive"
  deb tool-1 1-1 && machine || return 1
  good=$(sha256sum <"$scratch/archive/tool-1_1-1_all.deb" | head -c 64)
  pinned "thing tool-1 1-1 $good" && [ "$(fetched fetch_pinned thing 'tool-[0-9]+')" = tool-1_1-1_all.deb ] || return 1
  # another hash for the same version: cached or fetched
  pinned "thing tool-1 1-1 ${good//[0-9]/0}" && refused 1 fetch_pinned thing tool-[0-9]+ && told "is not what was pinned" && told "$good" || return 1
  rm -rf "$scratch/cache/debs" && refused 1 fetch_pinned thing tool-[0-9]+ && told "is not what was pinned" && told "$good" || return 1
  # the version is gone: the newest of the series, and the line to write
  rm -rf "$scratch/cache" "$scratch/archive" && deb tool-2 2-1 && deb other 3 && mkdir "$scratch/cache" && published || return 1
  pinned "thing tool-1 1-1 $good" && [ "$(fetched fetch_pinned thing 'tool-[0-9]+' 2>"$scratch/said")" = tool-2_2-1_all.deb ] || return 1
  told "thing tool-2 2-1 $(sha256sum <"$scratch/archive/tool-2_2-1_all.deb" | head -c 64)"
}

# kernel_package VERSION LINE: a kernel source of a Makefile, whose configuration is the fragments
# as they are, which makes little kernels, and a file to patch
kernel_package() {
  local source=$scratch/linux-source
  rm -rf "$source" "$scratch/package" && mkdir -p "$source/mm" "$scratch/package/usr/src"
  cat >"$source/Makefile" <<END
allnoconfig:
	cp \$(KCONFIG_ALLCONFIG) \$(O)/.config
prepare lib/cmdline.o:
vmlinux:
	$here/little-kernel \$(O)/vmlinux
	nm \$(O)/vmlinux >\$(O)/System.map
	mkdir -p \$(O)/include/config
	echo $1 >\$(O)/include/config/kernel.release
END
  echo 'config LAZY_STRUCT_PAGE_INIT' >"$source/mm/Kconfig"
  printf '%s\n' first "$2" third >"$source/mm/file.c"
  tar -C "$scratch" -cJf "$scratch/package/usr/src/linux-source-6.12.tar.xz" linux-source && deb linux-source-6.12 "$1" "$scratch/package"
}
# kernel WORDS...: the build script of a copy of kernel/ with one patch
kernel() { "$scratch/copy/kernel/build" "$@"; }
kernel_copy() { # SHA256
  local place=$scratch/copy
  rm -rf "$place" && mkdir -p "$place/kernel/patches" "$place/tests" && cp -r "$here" "$place/tests/setup" &&
    cp "$top/kernel/"{build,cc,check,common-headers.h,split,*.config} "$place/kernel/" && printf '%s\n' 'CONFIG_A=y' | tee "$place/kernel/common.config" >"$place/kernel/patched.config" &&
    echo '# CONFIG_B is not set' >"$place/kernel/x86_64.config" && printf '%s\n' package=linux-source-6.12 version=6.12.1-1 "sha256=$1" >"$place/kernel/VERSION" &&
    printf '%s\n' '--- a/mm/file.c' '+++ b/mm/file.c' '@@ -1,3 +1,3 @@' ' first' '-second' '+patched' ' third' >"$place/kernel/patches/one.patch"
}
# configured: exit code of a configuration run; what it says is in $scratch/said
configured() { kernel --arch x86_64 --config-only >"$scratch/said" 2>&1; }
kernel_of_its_pin() {
  rm -rf "$scratch/archive"
  kernel_package 6.12.1-1 second && machine || return 1
  kernel_copy "$(sha256sum <"$scratch/archive/linux-source-6.12_6.12.1-1_all.deb" | head -c 64)" && configured || { cat "$scratch/said"; return 1; }
  grep -qx patched "$scratch/cache/kernel/source-linux-source-6.12-6.12.1-1/mm/file.c" && ! grep -q 'no longer has' "$scratch/said" || return 1
  kernel_copy "$(printf '%064d' 0)" && ! configured && told "is not what was pinned"
}
kernel_after_its_pin() {
  local good
  rm -rf "$scratch/archive"
  kernel_package 6.12.1-1 second && good=$(sha256sum <"$scratch/archive/linux-source-6.12_6.12.1-1_all.deb" | head -c 64) && machine || return 1
  rm -rf "$scratch/archive" && kernel_package 6.12.3-1 second && deb linux-source-6.13 6.13.9-1 && published && kernel_copy "$good" || return 1
  configured || { cat "$scratch/said"; return 1; }
  told "no longer has the pin 6.12.1-1 of kernel/VERSION, so this kernel is made of 6.12.3-1: write there version=6.12.3-1 and sha256=$(
    sha256sum <"$scratch/archive/linux-source-6.12_6.12.3-1_all.deb" | head -c 64)" || return 1
  # the same without an archive; what is written there is what is taken then
  rm -rf "$scratch/archive" && configured && told "made of 6.12.3-1" || return 1
  # a kernel that a patch does not fit is none
  rm -rf "$scratch/archive" "$scratch/cache" && kernel_package 6.12.4-1 another && machine && kernel_copy "$good" && ! configured &&
    told "one.patch does not fit linux-source-6.12-6.12.4-1" && told "no longer has the pin 6.12.1-1" &&
    ! configured && told "one.patch does not fit"
}

# checks SAYS: what the check of the copy's kernel says of its pin
checks() {
  "$scratch/copy/kernel/check" >"$scratch/said"
  told "$1 kernel: it is of the version that is pinned"
}
moved_pin_is_recorded() {
  local good new vmlinux assets=$scratch/copy/tests/setup/assets
  rm -rf "$scratch/archive"
  kernel_package 6.12.1-1 second && good=$(sha256sum <"$scratch/archive/linux-source-6.12_6.12.1-1_all.deb" | head -c 64) && machine || return 1
  rm -rf "$scratch/archive" && kernel_package 6.12.3-1 second && published && kernel_copy "$good" || return 1
  new=$(sha256sum <"$scratch/archive/linux-source-6.12_6.12.3-1_all.deb" | head -c 64)
  vmlinux=$(kernel --arch x86_64) && "$assets" 0123 "${vmlinux%/*}/manifest" >"$scratch/assets.json" && checks FAILED || return 1
  python3 - "$scratch/assets.json" "$new" <<'END' || return 1
import json, sys
assets = json.load(open(sys.argv[1]))
assert (assets["schema"], assets["build_id"], assets["kernel_source"]) == (1, "0123", "linux-source-6.12-6.12.3-1"), assets
assert "the pin 6.12.1-1" in assets["kernel_note"] and f"version=6.12.3-1 and sha256={sys.argv[2]}" in assets["kernel_note"], assets
END
  "$assets" --note "$scratch/assets.json" >"$scratch/said" && told "write there version=6.12.3-1" || return 1
  # what is written there is the pin from then on
  kernel_copy "$new" && sed -i 's/^version=.*/version=6.12.3-1/' "$scratch/copy/kernel/VERSION" && vmlinux=$(kernel --arch x86_64) &&
    "$assets" 0123 "${vmlinux%/*}/manifest" >"$scratch/assets.json" && checks ok && [ -z "$("$assets" --note "$scratch/assets.json")" ]
}

# The arm64 host's unit tests: a filter that finds no test is a failure, and options are none.
filters_that_find_nothing() {
  local program=$scratch/harness
  printf '%s\n' '#!/bin/sh' '[ "$1" = --list ] || { echo "ran $*"; exit; }' 'case $4 in a::*) echo "a::b: test" ;; esac' >"$program"
  chmod +x "$program"
  unit() { sh "$top/tests/arm64/unit" "$program" "$@" >"$scratch/said" 2>&1; }
  unit a::b a:: --test-threads 1 && told "ran a::b a:: --test-threads 1" || return 1
  ! unit a:: b:: --test-threads 1 && told "has a name with b::" && ! grep -q ran "$scratch/said" && unit a:: --exact c::d
}

check "setup: lists and cache that are too old are refreshed" lists_too_old
check "setup: lists are fetched once for scripts that run side by side" lists_of_many
check "setup: an archive that is too old is named" archive_too_old
check "setup: no archive" no_archive
check "setup: a file that left the archive" file_is_gone
check "setup: the compiler's least version is the workspace's" cross_takes_the_workspaces_version
check "setup: a pin, another hash for it, a pin that left the archive" pins_hold
check "setup: the kernel's pin, another hash for it" kernel_of_its_pin
check "setup: the kernel's pin left the archive; a patch that does not fit the next version" kernel_after_its_pin
check "setup: a moved pin of the kernel is recorded, and fails its check" moved_pin_is_recorded
check "setup: a filter that finds no unit test for arm64" filters_that_find_nothing
check "setup: the scheduler of make test" python3 "$here/schedule_check.py"
check "setup: what deny.toml forbids is found" python3 "$here/deny_check.py"
checked

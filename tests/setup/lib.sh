# Sourced by the scripts that fetch or build what the project boots: where the cache is, how a Debian package comes into it.

# The build cache: kernels, packages, saved states. Nothing in it is precious; nothing of it is in the checkout.
cache=${NELLY_BUILD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nelly-build}
mkdir -p "$cache/debs"
cache=$(cd "$cache" && pwd)

say() { echo "${0##*/}: $*" >&2; }
fail() {
  say "$*"
  exit 1
}

# apt with the machine's own lists, or, where there are none, with lists in the cache (an ordinary user can fetch those).
apt_options=(-o APT::Sandbox::User="$(id -un)" -o Acquire::Retries=3)
private_lists() {
  mkdir -p "$cache/apt/lists/partial" "$cache/apt/archives/partial"
  echo '#clear APT::Update::Post-Invoke;' >"$cache/apt/conf" # a container's clean-up, which only root may do
  apt_options+=(-c "$cache/apt/conf" -o Dir::State::Lists="$cache/apt/lists" -o Dir::Cache="$cache/apt"
    -o Dir::Cache::archives="$cache/apt/archives" -o Debug::NoLocking=1)
  say "fetching package lists"
  apt-get "${apt_options[@]}" -qq update >&2
}

# newest_package PATTERN: the newest package whose whole name matches (grep -E)
newest_package() {
  apt-cache "${apt_options[@]}" pkgnames 2>/dev/null | { grep -xE "$1" || true; } | sort -V | tail -n 1
}

# fetch_package NAME [VERSION]: prints the path of the .deb in the cache, downloading it when absent; NAME may be a pattern
fetch_package() {
  local name found have version=${2:-}
  # what is cached already is good enough: no network, no apt
  if [ -n "$version" ]; then
    have=$(find "$cache/debs" -maxdepth 1 -name "$1_${version//:/%3a}_*.deb" | head -n 1)
  else
    have=$(find "$cache/debs" -maxdepth 1 -name '*.deb' -printf '%f\n' | { grep -E "^($1)_" || true; } | sort -V | tail -n 1)
    have=${have:+$cache/debs/$have}
  fi
  if [ -n "$have" ]; then
    echo "$have"
    return
  fi
  command -v apt-get >/dev/null || fail "needs apt-get to fetch $1"
  name=$(newest_package "$1")
  if [ -z "$name" ]; then
    private_lists || fail "cannot fetch the package lists"
    name=$(newest_package "$1")
  fi
  [ -n "$name" ] || fail "no package named $1 in the archive: is this Debian with its security archive?"
  if [ -n "$version" ] && ! grep -qF " $version " <<<"$(apt-cache "${apt_options[@]}" madison "$name")"; then
    say "$name $version is no longer in the archive: taking its newest version"
    version=
  fi
  local scratch
  scratch=$(mktemp -d "$cache/debs/.XXXXXX")
  download() { (cd "$scratch" && apt-get "${apt_options[@]}" -qq download "$name${version:+=$version}" >&2); }
  say "downloading $name${version:+ $version}"
  if ! download; then # the machine's lists may be older than the archive
    private_lists && name=$(newest_package "$1") && version='' && download
  fi || {
    rm -rf "$scratch"
    fail "cannot download $1"
  }
  found=$(basename "$scratch"/*.deb)
  mv -f "$scratch/$found" "$cache/debs/$found"
  rmdir "$scratch"
  echo "$cache/debs/$found"
}

# locked NAME: this shell holds the cache's lock of that name until it ends
locked() {
  mkdir -p "$cache/locks"
  exec {lock_fd}>"$cache/locks/$1"
  flock -n "$lock_fd" || {
    say "waiting for another run that prepares $1"
    flock "$lock_fd"
  }
}

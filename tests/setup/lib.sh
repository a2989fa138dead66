# Sourced by the scripts that fetch or build what the project boots: where the cache is, how a
# Debian package comes into it.

setup=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# The build cache: kernels, packages, saved states. Nothing in it is precious; nothing of it is in
# the checkout.
cache=${NELLY_BUILD_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/nelly-build}
mkdir -p "$cache/debs"
cache=$(cd "$cache" && pwd)
# Where packages are kept, and the lists that are ours; those of another architecture have their own
# (see for_architecture).
debs=$cache/debs lists=$cache/apt

say() { echo "${0##*/}: $*" >&2; }
fail() {
  say "$*"
  exit 1
}

# rust_version: the oldest compiler that the workspace is built with
rust_version() { sed -n 's/^rust-version = "\([0-9.]*\)"$/\1/p' "$setup/../../Cargo.toml"; }

# apt with the machine's own lists; with lists in the cache, which an ordinary user can fetch, where
# those do not have what is wanted.
apt_options=(-o APT::Sandbox::User="$(id -un)" -o Acquire::Retries=3)
private_lists() {
  private_lists=(-c "$lists/conf" -o Dir::State::Lists="$lists/lists" -o Dir::Cache="$lists"
    -o Dir::Cache::archives="$lists/archives" -o Debug::NoLocking=1)
}
private_lists

# for_architecture ARCHITECTURE: from here on packages are those of another architecture (Debian's name), which this
# machine need not have switched on. They are unpacked, never installed.
for_architecture() {
  debs=$cache/debs-$1 lists=$cache/apt-$1
  mkdir -p "$debs"
  private_lists
  # the machine's own lists have nothing of it
  apt_options=(-o APT::Sandbox::User="$(id -un)" -o Acquire::Retries=3 -o APT::Architecture="$1" -o "APT::Architectures::=$1" "${private_lists[@]}")
  mkdir -p "$lists/lists/partial" "$lists/archives/partial"
  echo '#clear APT::Update::Post-Invoke;' >"$lists/conf"
}

# fresh_lists: takes the lists in the cache, fetched anew; those of the last ten minutes are new.
# Scripts that run side by side share them: apt's own lock ends with an error where this one waits.
fresh_lists() {
  apt_options+=("${private_lists[@]}")
  mkdir -p "$cache/locks" "$lists/lists/partial" "$lists/archives/partial"
  (
    flock "$lists_fd"
    [ -z "$(find "$lists/fetched" -mmin -10 2>/dev/null)" ] || exit 0
    echo '#clear APT::Update::Post-Invoke;' >"$lists/conf" # a container's clean-up, which only root may do
    say "fetching package lists"
    apt-get "${apt_options[@]}" -qq update >&2 || exit 1
    touch "$lists/fetched"
  ) {lists_fd}>"$cache/locks/package-lists-${lists##*/}"
}

# offered PATTERN [VERSION [LEAST]]: "NAME VERSION" of the newest package whose whole name matches
# (grep -E), of this version, or of one that is not older than LEAST; nothing when the lists have
# none
offered() {
  local name found
  for name in $(apt-cache "${apt_options[@]}" pkgnames 2>/dev/null | { grep -xE "$1" || true; } | sort -Vr); do
    for found in $(apt-cache "${apt_options[@]}" madison "$name" 2>/dev/null | awk -F '|' '{ gsub(/ /, "", $2); print $2 }'); do
      if [ -n "${2:-}" ]; then
        [ "$found" = "$2" ] || continue
      elif [ -n "${3:-}" ]; then
        dpkg --compare-versions "$found" ge "$3" || continue
      fi
      echo "$name $found"
      return
    done
  done
}

# cached PATTERN [VERSION [LEAST]]: the path of such a package in the cache, the newest; nothing
# when there is none
cached() {
  local file version
  for file in $(find "$debs" -maxdepth 1 -name '*.deb' -printf '%f\n' | { grep -E "^($1)_" || true; } | sort -Vr); do
    version=$(cut -d_ -f2 <<<"${file//%3a/:}")
    if [ -n "${2:-}" ]; then
      [ "$version" = "$2" ] || continue
    elif [ -n "${3:-}" ]; then
      dpkg --compare-versions "$version" ge "$3" || continue
    fi
    echo "$debs/$file"
    return
  done
}

GONE=4

# fetch_package PATTERN [VERSION [LEAST]]: prints the path of the .deb in the cache, fetching it
# when absent: of this version, or the newest that is not older than LEAST. Lists that do not offer
# it are refreshed. The exit code is GONE when the archive, asked just now, has none.
fetch_package() {
  local pattern=$1 version=${2:-} least=${3:-} have found='' scratch try
  local wanted="$1${2:+ $2}${3:+, $3 or newer}"
  # what is cached already is good enough: no network, no apt
  have=$(cached "$pattern" "$version" "$least")
  if [ -n "$have" ]; then
    echo "$have"
    return
  fi
  command -v apt-get >/dev/null || fail "needs apt-get to fetch $wanted"
  scratch=$(mktemp -d "$debs/.XXXXXX")
  for try in "this machine's" fresh; do
    if [ "$try" = fresh ]; then
      fresh_lists || { rmdir "$scratch"; fail "cannot refresh the package lists, and with those that are here $wanted is not to be had"; }
    fi
    found=$(offered "$pattern" "$version" "$least")
    [ -n "$found" ] || continue
    say "downloading $found"
    # lists may be older than the archive: what they name is no longer there
    (cd "$scratch" && apt-get "${apt_options[@]}" -qq download "${found/ /=}" >&2) && break
    found=failed
  done
  if [ -z "$found" ] || [ "$found" = failed ]; then
    rm -rf "$scratch"
    [ -z "$found" ] || fail "cannot download $wanted"
    found=$(offered "$pattern")
    say "the archive has no $wanted; ${found:+its newest is }${found:-is this Debian with its security archive?}"
    exit $GONE
  fi
  have=$(basename "$scratch"/*.deb)
  mv -f "$scratch/$have" "$debs/$have"
  rmdir "$scratch"
  echo "$debs/$have"
}

# fetch_newest PATTERN: prints the path of the newest package that the archive has, whatever is in
# the cache
fetch_newest() {
  local found
  fresh_lists || fail "cannot refresh the package lists"
  found=$(offered "$1")
  [ -n "$found" ] || fail "the archive has no $1: is this Debian with its security archive?"
  fetch_package "$(sed 's/[+.]/\\&/g' <<<"${found% *}")" "${found#* }"
}

# verified FILE SHA256: fails unless the file is the one that was pinned
verified() {
  local hash
  hash=$(sha256sum <"$1" | head -c 64)
  [ "$hash" = "$2" ] || fail "$1 is not what was pinned: its SHA-256 is $hash, the pin says $2. If the file was damaged, remove it and try again; \
if the archive gives out another file under the same version, find out why before you trust it"
}

# fetch_pinned FOR PATTERN: prints the path of the package that tests/setup/pins names for
# something; when the archive no longer has it, of the newest that matches, and says what to write
fetch_pinned() {
  local name version hash deb status=0
  read -r name version hash < <(awk -v what="$1" '$1 == what { print $2, $3, $4 }' "$setup/pins")
  [ -n "$hash" ] || fail "tests/setup/pins has no line for $1"
  deb=$(fetch_package "${name//+/\\+}" "$version") || status=$?
  if [ $status = 0 ]; then
    verified "$deb" "$hash"
  elif [ $status = $GONE ]; then
    # the package of another version has another name
    deb=$(fetch_newest "$2") || exit
    say "the archive no longer has $name $version, the pin of $1: using ${deb##*/}. The line for tests/setup/pins:" \
      "$1 $(dpkg-deb -f "$deb" Package) $(dpkg-deb -f "$deb" Version) $(sha256sum <"$deb" | head -c 64)"
  else
    exit $status
  fi
  echo "$deb"
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

# `make` lists the targets. Everything that is built lies below target/; what is fetched or slow to
# build (kernels, the emulated host) is cached in $NELLY_BUILD_CACHE, by default ~/.cache/nelly-build.
.DEFAULT_GOAL := help
.PHONY: help run shell test soak gauge faults build kernel macos install dist deb packages fmt lint cross fuzz clean

help: ## this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | while IFS="$$(printf '\t')" read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

packages: ## install the Debian packages that are missing (as root), or print the one command that does
	@tests/setup/packages

build: ## build nelly, its monitor, agent, kernel and initramfs into target/nelly
	@tests/setup/build

kernel: ## build the guest kernel alone and print its path; FULL=1: with drivers that no boot needs, HARDENED=1: hardened
	@kernel/build $(if $(filter 1,$(FULL)),--full) $(if $(filter 1,$(HARDENED)),--hardened)

install: build ## install nelly into PREFIX (/usr/local), below DESTDIR if that is set
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' packaging/install

dist: build ## pack a tarball that runs wherever it is unpacked, and print its path
	@packaging/tarball

deb: build ## pack a Debian package, and print its path
	@packaging/deb

run: build ## set everything up and run the main job: a container in a microVM
	@echo '$$ nelly run --rm -- sh -c '"'"'echo "hello from Linux $$(uname -r), pid $$$$"'"'" >&2
	@tests/setup/nelly-shell nelly run --rm -- sh -c 'echo "hello from Linux $$(uname -r), pid $$$$"'

shell: build ## a shell with nelly on PATH, in the emulated host where this machine's KVM cannot run guests
	@tests/setup/nelly-shell

test: build ## set everything up and run every test
	@tests/setup/test

soak: build ## what is too large for `make test`: tests at full size, engines in machines, the goals of the figures
	@tests/setup/soak

gauge: build ## hold counted boots against tests/gauge/baseline.json
	@tests/gauge/run

faults: build ## make each system call of monitor, client and image store fail, and write docs/faults.md
	@tests/faults/run --table docs/faults.md

lint: ## formatting, clippy, licences
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked --features nelly-vmm/figures -- -D warnings
	tests/setup/deny

cross: ## type-check for macOS and aarch64 Linux what is not built for it here
	@tests/cross/check

macos: ## link nelly for macOS on this Linux machine, signed ad hoc, into target/macos, and check the files
	@packaging/macos/build

fuzz: ## fuzz every trust boundary, FUZZ_SECONDS (60) a target
	@fuzz/run

fmt: ## format the code
	cargo fmt --all

clean: ## remove what was built (not the cache)
	rm -rf target

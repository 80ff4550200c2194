# What a person types. `make compare` and `make test` need nothing typed before them.

PROFILE  := release
TRIPLE   := x86_64-unknown-linux-gnu
OUT      := target/duplex
DUPLEX   := $(OUT)/duplex
STATIC   := target/static/$(TRIPLE)/$(PROFILE)
# Static programs: the monitor (jailed with an empty root), the agent (alone in the guest) and the embedded image.
STATIC_FLAGS := --$(PROFILE) --target $(TRIPLE) --target-dir target/static
LAB_RUN  := target.$(TRIPLE).runner=["$(CURDIR)/$(DUPLEX)","lab","run","--","env","DUPLEX_TEST_HOST=1","DUPLEX_TEST_STRICT=$(DUPLEX_TEST_STRICT)"]

DRILL := target/drill/$(TRIPLE)/$(PROFILE)/duplex-vmm

# A bare-metal program: nobody else's stack lies below its own, and its code stays where it is linked.
HOSTILE := target/hostile/$(TRIPLE)/release/duplex-hostile
HOSTILE_FLAGS := -p duplex-hostile --features program --bin duplex-hostile --release --target $(TRIPLE) --target-dir target/hostile

.PHONY: build drill hostile compare images test test-offline test-host test-lab test-kills fuzz bench bench-classic verdicts kernel deps deps-test fmt lint doc clean

build: deps
	cargo build --$(PROFILE) --bin duplex
	RUSTFLAGS="-C target-feature=+crt-static" cargo build $(STATIC_FLAGS) --no-default-features --bin duplex-vmm
	RUSTFLAGS="-C target-feature=+crt-static" cargo build $(STATIC_FLAGS) -p duplex-workloads -p duplex-pack
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --profile agent --target $(TRIPLE) --target-dir target/static -p duplex-agent
	mkdir -p $(OUT)/guest
	install -m 755 target/$(PROFILE)/duplex $(STATIC)/duplex-vmm $(OUT)/
	$(STATIC)/duplex-pack initramfs target/static/$(TRIPLE)/agent/duplex-agent $(OUT)/guest/initramfs.cpio
	$(STATIC)/duplex-pack workloads $(STATIC)/duplex-workloads $(OUT)/guest/workloads.tar
	test $(OUT)/guest/vmlinux -nt kernels/vmlinux-x86_64.xz || \
		{ xz -dc kernels/vmlinux-x86_64.xz > $(OUT)/guest/vmlinux.part && mv $(OUT)/guest/vmlinux.part $(OUT)/guest/vmlinux; }

# A monitor that attacks its own jail, for the test of it.
drill: deps
	RUSTFLAGS="-C target-feature=+crt-static" cargo build --$(PROFILE) --target $(TRIPLE) --target-dir target/drill --no-default-features --features drill --bin duplex-vmm
	install -m 755 $(DRILL) target/drill/duplex-vmm

# A guest that drives every device of the machine against the specification, for the test of the monitor.
hostile: deps
	RUSTFLAGS="-C target-feature=+crt-static -C relocation-model=static -C no-redzone=yes" cargo build $(HOSTILE_FLAGS)
	install -m 755 $(HOSTILE) target/hostile/duplex-hostile

# The embedded image in both isolations, side by side: first its start, then its programs that measure. Tables here, pages with plots in target/.
compare: build
	$(DUPLEX) compare --probes --reach --json target/compare.json --report target/compare.html
	$(DUPLEX) compare --workload suite --memory-runs 0 --json target/workloads.json --report target/workloads.html

# The images of the applications that `compare --workload` measures, in the store.
APPLICATIONS := pgbench django-api redis python-start compile
images: build
	.ci/deps images
	tests/images/build $(APPLICATIONS)
	for name in $(APPLICATIONS); do $(DUPLEX) load -q -i target/images/app-$$name || exit 1; done

# All tests: those that need nothing, those that need this machine's tools, and those that need KVM or containers (in the lab if this host cannot).
test: deps-test build drill hostile
	cargo test --workspace --lib --bins --test tests
	cargo test --test host
	tests/labs

# So many kills at random moments of all verbs; `make test` does a dozen.
KILLS ?= 1000
test-kills: deps-test build
	DUPLEX_TEST_KILLS=$(KILLS) DUPLEX_TEST_LIMIT=86400 cargo --config '$(LAB_RUN)' test --test host -- kills::
	$(DUPLEX) lab stop

# Hostile input by libFuzzer: one target of fuzz/fuzz_targets or all of them, each for so long. `make test` runs their corpora.
TARGET  ?= all
SECONDS ?= 60
fuzz:
	.ci/deps fuzz
	fuzz/run $(TARGET) $(SECONDS)

# Against crun, runc and QEMU in one run.
bench: deps-test build
	cargo --config '$(LAB_RUN)' bench --bench peers

# Beside a classic virtual machine: Debian 12 with systemd on a disk of its own, in QEMU.
bench-classic: deps-test build
	tests/images/classic
	cargo --config '$(LAB_RUN)' bench --bench classic

# Whether the verdicts of `compare` are true on real runs: containers beside themselves, and beside ones held up by a tenth of their time.
verdicts: deps-test build
	cargo --config '$(LAB_RUN)' bench --bench verdicts

# Rebuilds the guest kernel from Debian's source package.
kernel:
	kernels/build.sh

deps:
	.ci/deps

deps-test:
	.ci/deps test

fmt:
	cargo fmt --all

lint:
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	cargo clippy --no-default-features --bin duplex-vmm -- -D warnings
	cargo clippy --no-default-features --features drill --bin duplex-vmm -- -D warnings
	cargo clippy $(HOSTILE_FLAGS) -- -D warnings

doc:
	RUSTDOCFLAGS="-D warnings -A rustdoc::private-intra-doc-links" cargo doc --workspace --no-deps --document-private-items

clean:
	cargo clean

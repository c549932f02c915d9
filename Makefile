# Everything that one types, each target complete in itself on a fresh Debian 12.
# The build itself is Meson's; see meson.build.

BUILD := build
BUILDTYPE := debugoptimized

.PHONY: build all deps test quickstart install deb soak bench coverage fuzz sanitize lint clean help

build: $(BUILD)/build.ninja
	ninja -C $(BUILD) programs

all: $(BUILD)/build.ninja
	ninja -C $(BUILD)

$(BUILD)/build.ninja:
	tools/install-deps build
	meson setup $(BUILD) --buildtype=$(BUILDTYPE)

deps:
	tools/install-deps build run guest test

test:
	tools/install-deps build run guest test deb
	$(MAKE) all
	SENDENSE_TEST_FULL=$(FULL) tools/run-tests

quickstart:
	tools/install-deps build run guest
	$(MAKE) build
	tools/quickstart

soak:
	tools/install-deps build run guest test
	$(MAKE) all
	tests/soak/run

fuzz:
	tools/install-deps build fuzz
	[ -e build-fuzz/build.ninja ] || CC=clang meson setup build-fuzz --buildtype=debugoptimized
	ninja -C build-fuzz fuzz
	tests/fuzz/run

sanitize:
	tools/install-deps build run guest test
	tools/sanitize

coverage:
	tools/install-deps build run guest test cover
	tools/coverage

bench:
	tools/install-deps build run guest bench
	$(MAKE) build
	ninja -C $(BUILD) bench/one-at-a-time tests/vsphere/vsphere-simulator tests/vsphere/lib64/libvixDiskLib.so.8
	bench/bench

lint:
	tools/install-deps build run guest test dev
	tools/lint

deb:
	tools/install-deps build deb
	tools/build-deb --check

install: build
	meson install -C $(BUILD) --no-rebuild

clean:
	rm -rf $(BUILD) build-fuzz build-asan build-tsan build-cov build-deb

help:
	@echo 'make build        programs into $(BUILD)/bin/'
	@echo 'make all          these, and all that tests need'
	@echo 'make test         every test and check; of the longest a share, all of them with FULL=1'
	@echo 'make quickstart   a first backup and restore, shown step by step'
	@echo 'make install      into the prefix given to meson setup; DESTDIR is obeyed'
	@echo 'make deb          Debian packages of hub, client and CLI into build-deb/'
	@echo 'make deps         Debian packages for all of the above; needs root'
	@echo 'make lint         checks, API lint, shellcheck, layout'
	@echo 'make soak         random histories for hours'
	@echo 'make coverage     which lines the tests run, by folder; each that none runs, with the reason'
	@echo 'make fuzz         fuzzes every decoder, for MINUTES (10) in all; needs clang'
	@echo 'make sanitize     the tests with address, undefined behaviour and thread sanitizers'
	@echo 'make clean        removes $(BUILD)/ and the build folders of packages, fuzz, sanitize and coverage'
	@echo 'make bench        speed beside stock tools; BENCH_GIB=1 for a quick look'

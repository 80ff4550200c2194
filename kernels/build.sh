#!/bin/bash
# Builds the guest kernel: kernels/vmlinux-x86_64.xz and kernels/MANIFEST.json, from the pinned source, the config
# fragments and the patches beside this file. The same inputs and compiler give the same bytes, wherever the tree lies.
#
#   kernels/build.sh            (or: make kernel)
#
# KERNEL_BUILD_DIR  where the source is unpacked and compiled (default target/kernel; about 2 GB)
# JOBS              parallel compilers (default: all processors)
set -euo pipefail
shopt -s nullglob # no patches: no patterns either
export LC_ALL=C TZ=UTC
export KBUILD_BUILD_TIMESTAMP='Thu Jan  1 00:00:00 UTC 2026' KBUILD_BUILD_USER=duplex KBUILD_BUILD_HOST=duplex KBUILD_BUILD_VERSION=1
export SOURCE_DATE_EPOCH=1767225600
# Nothing of the caller's make or compiler settings reaches the kernel's build.
unset MAKEFLAGS MFLAGS MAKELEVEL CFLAGS CPPFLAGS LDFLAGS KCFLAGS KCPPFLAGS KAFLAGS ARCH CROSS_COMPILE LOCALVERSION

readonly LIMIT=$((4 * 1024 * 1024)) # bytes of the compressed kernel in the repository
cd "$(dirname "$0")"
here=$PWD
work=${KERNEL_BUILD_DIR:-$here/../target/kernel}
jobs=${JOBS:-$(nproc)}

say() { printf 'kernel: %s\n' "$*" >&2; }
die() { printf 'kernel: error: %s\n' "$*" >&2; exit 1; }
hash_of() { sha256sum -- "$1" | cut -d' ' -f1; }

# pin KEY: one value of source.pin.
pin() {
    local value
    value=$(sed -n "s/^$1=//p" source.pin)
    [ -n "$value" ] || die "source.pin has no $1"
    printf '%s\n' "$value"
}

need_tools() {
    local tool missing=()
    for tool in gcc ld make bc bison flex xz objcopy sha256sum tar; do
        command -v "$tool" >/dev/null || missing+=("$tool")
    done
    printf '#include <gelf.h>\n' | gcc -E - >/dev/null 2>&1 || missing+=("gelf.h")
    [ ${#missing[@]} -eq 0 ] || die "missing: ${missing[*]}; apt-get install build-essential bc bison flex libelf-dev xz-utils"
}

# fetch_source: prints the path of a tarball that has the pinned hash.
fetch_source() {
    local deb=$work/deb found
    if [ -f "/$tarball" ] && [ "$(hash_of "/$tarball")" = "$tarball_sha256" ]; then
        printf '%s\n' "/$tarball"
        return
    fi
    if [ ! -f "$deb/$tarball" ]; then
        mkdir -p "$deb"
        found=("$deb/$package"_*.deb)
        if [ ${#found[@]} -eq 0 ]; then
            say "downloading $package $version"
            (cd "$deb" && apt-get -q download "$package=$version" >&2) ||
                die "apt-get cannot download $package=$version: run apt-get update; if the mirror has a newer version only, put the package of this version (snapshot.debian.org keeps all) into $deb"
            found=("$deb/$package"_*.deb)
        fi
        dpkg-deb -x "${found[0]}" "$deb"
    fi
    [ "$(hash_of "$deb/$tarball")" = "$tarball_sha256" ] || die "$deb/$tarball does not have the sha256 of source.pin ($tarball_sha256); remove $deb and try again"
    printf '%s\n' "$deb/$tarball"
}

# unpack: a tree of exactly the pinned source and the patches; an old one of the same inputs is used again.
unpack() {
    local stamp patch source
    stamp=$(sha256sum source.pin patches/*.patch | sha256sum | cut -d' ' -f1)
    [ "$(cat "$work/stamp" 2>/dev/null || true)" = "$stamp" ] && return
    source=$(fetch_source)
    say "unpacking $source"
    rm -rf "${work:?}/tree" "$work/stamp"
    mkdir -p "$work/tree"
    tar -C "$work/tree" --strip-components=1 -xf "$source"
    for patch in patches/*.patch; do
        say "applying $patch"
        patch -d "$work/tree" -p1 --batch --quiet <"$patch" || die "$patch does not apply"
    done
    printf '%s\n' "$stamp" >"$work/stamp"
}

# configure: all fragments over "no" for the rest; every line of them must have taken.
configure() {
    local line key twice bad=0
    cat config/*.config | sed -e 's/[[:space:]]*#.*//' -e '/^$/d' >"$work/wanted"
    twice=$(cut -d= -f1 "$work/wanted" | sort | uniq -d)
    [ -z "$twice" ] || die "set twice in kernels/config: $twice"
    make -s -C "$work/tree" ARCH=x86_64 KCONFIG_ALLCONFIG="$work/wanted" allnoconfig >/dev/null
    while read -r line; do
        key=${line%%=*}
        if [ "${line#*=}" = n ]; then
            ! grep -q "^$key=" "$work/tree/.config" && continue
        else
            grep -qxF -- "$line" "$work/tree/.config" && continue
        fi
        say "option did not take: $line ($(grep -rn "^$key=" config | cut -d: -f1,2)); the kernel has: $(grep -E "^(# )?$key[= ]" "$work/tree/.config" || echo 'no such option, or one it depends on is off')"
        bad=1
    done <"$work/wanted"
    [ $bad -eq 0 ] || die "the configuration is not the one asked for"
}

compile() {
    say "compiling with $jobs jobs; messages in $work/make.log"
    make -C "$work/tree" ARCH=x86_64 -j"$jobs" vmlinux >"$work/make.log" 2>&1 || {
        tail -n 30 "$work/make.log" >&2
        die "the kernel did not compile (all messages: $work/make.log)"
    }
    objcopy --strip-all --remove-section=.comment "$work/tree/vmlinux" "$work/vmlinux"
}

compress() {
    xz --format=xz --check=sha256 --threads=1 --stdout --x86 --lzma2=preset=9e,dict=16MiB,lc=3,lp=0,pb=0 "$work/vmlinux" >"$work/vmlinux.xz"
    local size
    size=$(stat -c %s "$work/vmlinux.xz")
    [ "$size" -le $LIMIT ] || die "the compressed kernel has $size bytes, more than $LIMIT: take something out of kernels/config"
}

# manifest: the inputs and the outputs of this build, for the test that compares them (tests/offline/kernel_manifest.rs).
manifest() {
    local file comma=
    printf '{\n  "source": { "package": "%s", "version": "%s", "tarball_sha256": "%s" },\n' "$package" "$version" "$tarball_sha256"
    printf '  "compiler": "%s",\n  "linker": "%s",\n' "$(gcc --version | head -n1)" "$(ld --version | head -n1)"
    printf '  "inputs": {'
    for file in build.sh source.pin config/*.config patches/*.patch; do
        printf '%s\n    "%s": "%s"' "$comma" "$file" "$(hash_of "$file")"
        comma=,
    done
    printf '\n  },\n  "release": "%s",\n' "$(cat "$work/tree/include/config/kernel.release")"
    printf '  "vmlinux": { "size": %s, "sha256": "%s" },\n' "$(stat -c %s "$work/vmlinux")" "$(hash_of "$work/vmlinux")"
    printf '  "vmlinux-x86_64.xz": { "size": %s, "sha256": "%s" }\n}\n' "$(stat -c %s "$work/vmlinux.xz")" "$(hash_of "$work/vmlinux.xz")"
}

need_tools
package=$(pin package)
version=$(pin version)
tarball=$(pin tarball)
tarball_sha256=$(pin tarball_sha256)
mkdir -p "$work"
work=$(cd "$work" && pwd)
unpack
configure
compile
compress
manifest >"$work/MANIFEST.json"
mv -f "$work/MANIFEST.json" MANIFEST.json
cp -f "$work/vmlinux.xz" vmlinux-x86_64.xz.new && mv -f vmlinux-x86_64.xz.new vmlinux-x86_64.xz
say "$(stat -c %s vmlinux-x86_64.xz) bytes compressed, $(stat -c %s "$work/vmlinux") uncompressed; kernels/MANIFEST.json written"

#!/bin/sh
# Installs what a build needs in addition to the Rust toolchain: a C linker, pkg-config and OpenSSL's headers.
# With the argument "test" also the programs that tests use: mosquitto's clients, faketime, iproute2, HAProxy, logrotate,
# Redis, Prometheus, for promtool, and Valgrind, which counts instructions.
# Installs nothing if everything is there. Needs root or sudo.
set -eu

missing() {
    if ! command -v cc >/dev/null; then return 0; fi
    # Only Linux and the BSDs use OpenSSL; macOS and Windows have their own TLS library.
    if [ "$(uname -s)" != Darwin ] && [ -z "${OPENSSL_DIR:-}" ]; then
        if ! command -v pkg-config >/dev/null || ! pkg-config --exists openssl; then return 0; fi
    fi
    if [ "${1:-}" = test ]; then
        if ! command -v mosquitto_pub >/dev/null; then return 0; fi
        # For faults that can only be injected on Linux.
        if [ "$(uname -s)" = Linux ]; then
            if ! command -v faketime >/dev/null || ! command -v ip >/dev/null; then return 0; fi
            if ! command -v haproxy >/dev/null && [ ! -x /usr/sbin/haproxy ]; then return 0; fi
            if ! command -v logrotate >/dev/null && [ ! -x /usr/sbin/logrotate ]; then return 0; fi
            for tool in promtool redis-server valgrind; do
                if ! command -v "$tool" >/dev/null; then return 0; fi
            done
        fi
    fi
    return 1
}

missing "${1:-}" || exit 0
if ! command -v apt-get >/dev/null; then
    cat >&2 <<'HINT'
setup.sh installs on Debian and Ubuntu only. On other systems, install these and continue with the next command:
  Fedora:  sudo dnf install gcc pkgconf-pkg-config openssl-devel mosquitto
  Arch:    sudo pacman -S --needed gcc pkgconf openssl mosquitto
  Alpine:  sudo apk add build-base pkgconf openssl-dev mosquitto-clients
  macOS:   xcode-select --install; brew install mosquitto
HINT
    exit 1
fi
packages="gcc libc6-dev pkg-config libssl-dev"
if [ "${1:-}" = test ]; then packages="$packages mosquitto-clients faketime iproute2 haproxy logrotate prometheus redis-server valgrind"; fi
as_root=
if [ "$(id -u)" -ne 0 ]; then as_root=sudo; fi
$as_root apt-get update -qq
# shellcheck disable=SC2086 # a list of words
$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages

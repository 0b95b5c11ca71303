# shellcheck shell=bash
# containerd's CRI plugin with ferry's own shim as the handler.

# shellcheck disable=SC1091
. "$HERE/cri.sh"

# shellcheck disable=SC2034 # for `up`
INSTALLED=(--native)

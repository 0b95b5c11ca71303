# shellcheck shell=bash
# podman as an ordinary user, with the user's own systemd for its cgroups.
# The steps are podman's own but for those that need root's rights, and a few more.
. "$HERE/podman.sh"

PODS=/run/user/1001/suite-podman

up() {
    # Answers once the user's systemd is up.
    systemctl start user@1001.service
    install -d -o u -g u $PODS
    as bash -c ". $SUITE/podman.sh; PODS=$PODS; podman_settings; podman load -q -i $IMAGE"
}
down() { as bash -c ". $SUITE/podman.sh; PODS=$PODS; down"; }

# In a scope of the user's own systemd: from there the user may move processes about in the delegated tree.
as() {
    runuser -u u -- env -i PATH="$PATH" HOME=/home/u USER=u LANG=C SUITE="$SUITE" IMAGE="$IMAGE" LONG="$LONG" PATIENCE="$PATIENCE" \
        XDG_RUNTIME_DIR=/run/user/1001 DBUS_SESSION_BUS_ADDRESS=unix:path=/run/user/1001/bus TMPDIR=/run/user/1001 \
        systemd-run --user --scope --quiet -p Delegate=yes "$@"
}

# A container that is privileged for its user has all capabilities there are in the user's namespace: as many as root's has.

step_a_volume_with_mapped_ids() { skip "the kernel maps the ids of root's mounts only"; }
step_a_user_namespace_of_its_own() {
    run -d --userns auto:size=1000 -- sleep 300
    is 1000 "$(podman exec "$C" awk '{ n += $3 } END { print n }' /proc/self/uid_map)"
    remove
}
step_readiness_by_notify() {
    systemd-run --user --quiet --wait --collect -p Type=notify -p NotifyAccess=all -p TimeoutStartSec=60 \
        "--setenv=CONTAINERS_CONF=$PODS/containers.conf" \
        podman --runtime "$RUNTIME" run --rm --network none --sdnotify=conmon --name "$C" $BOX true
}
step_a_whole_systemd_inside() { skip "an overlay over the host's root is root's to make; podman has the step as root"; }
step_a_bridge_between_containers() { skip "needs slirp4netns or pasta with a way out, which this host has not"; }
step_a_checkpoint_is_restored() { skip "podman saves containers of root's alone"; }
step_a_checkpoint_goes_by_an_archive() { skip "podman saves containers of root's alone"; }
step_devices_limits_and_kernel_parameters() {
    is "character 1000 1000 1" "$(run --rm --device /dev/fuse --ulimit nofile=1000:1000 --sysctl net.ipv4.ip_forward=1 -- \
        sh -c 'echo $(test -c /dev/fuse && echo character) $(ulimit -Sn) $(ulimit -Hn) $(cat /proc/sys/net/ipv4/ip_forward)')"
}

step_the_users_own_id_is_kept() {
    is "1001 1001" "$(run --rm --userns keep-id -- sh -c 'echo $(id -u) $(id -g)')"
    is "1000 1000" "$(run --rm --userns keep-id:uid=1000,gid=1000 -- sh -c 'echo $(id -u) $(id -g)')"
    touch "$D/mine"
    is "1001" "$(run --rm --userns keep-id -v "$D:/data" -- stat -c %u /data/mine)"
}

step_the_cgroup_is_a_scope_of_the_users_systemd() {
    run -d --memory 64m -- sleep 300
    has "$(group)" "/user.slice/user-1001.slice/user@1001.service/user.slice/libpod-"
    is 67108864 "$(systemctl --user show -P MemoryMax "$(basename "$(dirname "$(group)/x")")")"
    remove
}

step_a_network_by_pasta() {
    is 2 "$(podman run --rm --name "$C" --network pasta $BOX ip -o link | wc -l)"
}

# shellcheck shell=bash
# docker with ferry as its default runtime, with the ids of its containers mapped and with cgroups made by hand.
DAEMON=/run/suite-remapped
BOX=localhost/box:latest

up() {
    # shellcheck disable=SC1091
    . "$HERE/docker.sh"
    DAEMON=/run/suite-remapped
    daemon --default-runtime ferry --userns-remap u --exec-opt native.cgroupdriver=cgroupfs \
        --bridge none --iptables=false --ip6tables=false
}
down() { kill "$(cat $DAEMON/pid)"; }

docker() { command docker --host unix://$DAEMON/sock "$@"; }
clean() { docker rm -f -v "$C"; }
runtime() { if [ "$RUNTIME" = runc ]; then echo --runtime=runc; fi; }

step_root_inside_is_nobody_outside() {
    # shellcheck disable=SC2046
    is "0 0 300000" "$(docker run --rm --name "$C" $(runtime) --network none $BOX sh -c 'echo $(id -u) $(head -n 1 /proc/self/uid_map)' | cut -d' ' -f1-3)"
}

step_limits_and_exec_by_the_default_runtime() {
    # shellcheck disable=SC2046
    docker run -d --name "$C" $(runtime) --network none --memory 64m $BOX sleep 300
    is 300000 "$(stat -c %u "/proc/$(docker inspect --format '{{.State.Pid}}' "$C")")"
    is 67108864 "$(cat "/sys/fs/cgroup/docker/$(docker inspect --format '{{.Id}}' "$C")/memory.max")"
    is "0" "$(docker exec "$C" id -u)"
    docker rm -f "$C"
}

step_the_hosts_namespaces_unmapped() {
    # shellcheck disable=SC2046
    is "0 0 4294967295" "$(docker run --rm --name "$C" $(runtime) --network none --userns host $BOX sh -c 'echo $(cat /proc/self/uid_map)')"
}

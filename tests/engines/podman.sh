# shellcheck shell=bash
# podman as root, with systemd for its cgroups: what its users do and what it asks of a runtime for that.

BOX=localhost/box:latest
PODS=/run/suite-podman

up() {
    mkdir -p $PODS
    podman_settings
    podman load -q -i "$IMAGE"
}
podman_settings() {
    cat >$PODS/containers.conf <<TOML
[engine]
cgroup_manager = "systemd"
events_logger = "file"
init_path = "/usr/bin/tini-static"
infra_image = "$BOX"
infra_command = "/bin/pause"
TOML
    "$SUITE/ferry" install --engine podman --config $PODS/ferry.conf --write
    cat $PODS/ferry.conf >>$PODS/containers.conf
    export CONTAINERS_CONF=$PODS/containers.conf
}

down() { podman system reset -f; }

clean() {
    podman rm -f -t 0 -i -v "$C"
    umount "$D/tree" "$D/layer"
}

podman() { CONTAINERS_CONF=$PODS/containers.conf command podman --runtime "${RUNTIME:-ferry}" "$@"; }
# run FLAG… -- COMMAND…: a container of the step's name, which has no network but loopback.
run() {
    local flags=()
    while [ "$1" != -- ]; do flags+=("$1"); shift; done
    shift
    podman run --network none --name "$C" "${flags[@]}" $BOX "$@"
}
remove() { podman rm -f -t 0 "$C" >/dev/null; }
inspect() { podman inspect --format "$1" "$C"; }
running() { [ "$(inspect '{{.State.Status}}')" = "$1" ]; }
# The container's cgroup, on the host.
group() { echo "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$(inspect '{{.State.Pid}}')/cgroup")"; }

step_run_gives_output_and_exit_status() {
    fails 3 run --rm -- sh -c 'echo to stdout; echo to stderr >&2; exit 3' >"$D/out" 2>"$D/err"
    is "to stdout" "$(cat "$D/out")"
    is "to stderr" "$(cat "$D/err")"
    fails 1 podman container exists "$C"
}

step_a_missing_program_is_127_and_one_without_permission_126() {
    fails 127 run --rm -- /no/such/program 2>"$D/err"
    fails 126 run --rm -- /etc/passwd 2>>"$D/err"
}

step_images_go_to_ferry_and_back() {
    podman save -q -o "$D/box.tar" $BOX
    changed_by_ferry "$D/box.tar" "$D/changed.tar"
    podman load -q -i "$D/changed.tar"
    is "$SEES" "$(podman run --rm --network none --name "$C" localhost/changed:1 sh -c "$CHANGED")"
    podman rmi -f localhost/changed:1
}

step_layered_images_go_to_ferry_and_back() { layered_images_there_and_back; }
step_a_hundred_layers_go_to_ferry_and_back() { a_hundred_layers_there_and_back; }
loads() { podman load -q -i "$1"; }
saves() { podman save -q -o "$1" "$2"; }
sees() { podman run --rm --network none --name "$C" "$1" sh -c "$2"; }
makes() {
    podman run --network none --name "$C" "$1" sh -c "$3"
    podman commit -q "$C" "$2"
    remove
}

step_exec_gives_output_and_exit_status() {
    run -d -- sleep 300
    fails 4 podman exec "$C" sh -c 'echo inside; exit 4' >"$D/out"
    is inside "$(cat "$D/out")"
    is through "$(echo through | podman exec -i "$C" cat)"
    is "1000 /tmp given" "$(podman exec --user user --workdir /tmp --env WORD=given "$C" sh -c 'echo $(id -u) $(pwd) $WORD')"
    fails 127 podman exec "$C" /no/such/program 2>"$D/err"
    is "000001ffffffffff" "$(podman exec --privileged "$C" awk '/^CapBnd/ { print $2 }' /proc/self/status | all_capabilities)"
    remove
}
# A rootless podman's privileged container has what its user has; in its user namespace that is all there is.
all_capabilities() { cat; }

step_a_terminal() {
    has "$(on_terminal "CONTAINERS_CONF=$PODS/containers.conf podman --runtime $RUNTIME run --rm -it --network none $BOX \
        sh -c '$SIZED; echo \$(tty) \$(stty size)'")" "/dev/pts/0 24 80"
    run -d -- sleep 300
    has "$(on_terminal "CONTAINERS_CONF=$PODS/containers.conf podman --runtime $RUNTIME exec -it $C \
        sh -c '$SIZED; echo \$(stty size)'")" "24 80"
    remove
}

step_attach_and_logs() {
    run -d -i -- sh -c 'echo first; read word; echo "got $word"' >/dev/null
    eventually logged first
    has "$(echo sent | podman attach "$C")" "got sent"
    is "first got sent" "$(podman logs "$C" | xargs)"
    remove
}
logged() { podman logs "$C" | grep -q "$1"; }

step_pause_and_unpause() {
    run -d -- sleep 300
    podman pause "$C"
    running paused
    grep -q 'frozen 1' "$(group)/cgroup.events"
    podman unpause "$C"
    running running
    grep -q 'frozen 0' "$(group)/cgroup.events"
    remove
}

step_stop_kill_and_restart() {
    run -d -- sh -c 'trap "exit 9" TERM; echo up; while :; do sleep 0.05; done' >/dev/null
    eventually logged up
    podman stop -t 20 "$C"
    is 9 "$(inspect '{{.State.ExitCode}}')"
    podman restart "$C"
    running running
    podman kill -s KILL "$C"
    is 137 "$(podman wait "$C")"
    remove
}

step_limits_stats_and_update() {
    run -d --memory 64m --cpus 0.5 --pids-limit 50 -- sleep 300
    is "67108864 50000 100000 50" "$(cat "$(group)"/{memory.max,cpu.max,pids.max} | xargs)"
    podman stats --no-stream --format json "$C" | jq -e '.[0].mem_usage | endswith("67.11MB")'
    podman update --memory 96m --cpus 0.75 --pids-limit 70 "$C"
    is "100663296 75000 100000 70" "$(cat "$(group)"/{memory.max,cpu.max,pids.max} | xargs)"
    remove
}

step_out_of_memory_is_seen() {
    run --memory 16m --memory-swap 16m -- dd if=/dev/zero of=/dev/null bs=64M count=1 || true
    is "true 137" "$(inspect '{{.State.OOMKilled}} {{.State.ExitCode}}')"
    remove
}

step_a_health_check() {
    run -d --health-cmd 'test -e /tmp/well' --health-interval disable --health-retries 1 -- sleep 300
    fails 1 podman healthcheck run "$C"
    podman exec "$C" touch /tmp/well
    podman healthcheck run "$C"
    is healthy "$(inspect '{{.State.Health.Status}}')"
    remove
}

step_an_init_reaps_and_passes_on() {
    run -d --init -- sleep 300
    has "$(podman exec "$C" cat /proc/1/cmdline | tr '\0' ' ')" "sleep 300"
    has "$(podman exec "$C" cat /proc/1/comm)" "init"
    remove
}

step_capabilities_and_privileged() {
    is "00000000800405fb" "$(run --rm -- awk '/^CapEff/ { print $2 }' /proc/self/status)"
    is "00000000802405fb" "$(run --rm --cap-add sys_admin -- awk '/^CapEff/ { print $2 }' /proc/self/status)"
    is "0000000000000000" "$(run --rm --cap-drop all -- awk '/^CapEff/ { print $2 }' /proc/self/status)"
    is "000001ffffffffff 0" "$(run --rm --privileged -- awk '/^CapEff/ { c = $2 } /^Seccomp:/ { print c, $2 }' /proc/self/status)"
}

step_a_read_only_root() {
    is "read-only writable" "$(run --rm --read-only -- sh -c 'touch /x 2>/dev/null || echo read-only; touch /tmp/x && echo writable' | xargs)"
}

step_security_options() {
    is "1 2" "$(run --rm --security-opt no-new-privileges -- awk '/^NoNewPrivs/ { n = $2 } /^Seccomp:/ { print n, $2 }' /proc/self/status)"
    is "0" "$(run --rm --security-opt seccomp=unconfined -- awk '/^Seccomp:/ { print $2 }' /proc/self/status)"
    is "masked open" "$(echo $(run --rm --security-opt mask=/proc/cpuinfo -- sh -c 'test -s /proc/cpuinfo || cat /proc/cpuinfo | grep -q . || echo masked') \
        $(run --rm --security-opt unmask=ALL -- sh -c 'test -d /proc/acpi && test -e /proc/timer_list && echo open'))"
}

step_devices_limits_and_kernel_parameters() {
    is "character 2048 4096 1" "$(run --rm --device /dev/fuse --ulimit nofile=2048:4096 --sysctl net.ipv4.ip_forward=1 -- \
        sh -c 'echo $(test -c /dev/fuse && echo character) $(ulimit -Sn) $(ulimit -Hn) $(cat /proc/sys/net/ipv4/ip_forward)')"
}

step_volumes() {
    mkdir "$D/own" "$D/over"
    echo lower >"$D/over/file"
    is "1000" "$(run --rm --user 1000 -v "$D/own:/data:U" -- sh -c 'stat -c %u /data; touch /data/mine')"
    is "upper" "$(run --rm -v "$D/over:/data:O" -- sh -c 'echo upper >/data/file; cat /data/file')"
    is "lower" "$(cat "$D/over/file")"
    is "kept" "$(run --rm -v suite-kept:/data -- sh -c 'echo kept >/data/f'; run --rm -v suite-kept:/data:ro -- cat /data/f)"
    is "refused" "$(run --rm -v suite-kept:/data:ro -- sh -c 'touch /data/g 2>/dev/null || echo refused')"
    podman volume rm suite-kept
    is "tmpfs" "$(run --rm --tmpfs /scratch:size=1m -- sh -c 'stat -f -c %T /scratch')"
}

step_a_volume_with_mapped_ids() {
    mkdir "$D/idmap"
    chown 0:0 "$D/idmap"
    is "0" "$(run --rm --uidmap 0:200000:1000 --gidmap 0:200000:1000 -v "$D/idmap:/data:idmap" -- sh -c 'touch /data/f; stat -c %u /data/f')"
    is "0" "$(stat -c %u "$D/idmap/f")"
}

step_a_user_namespace_of_its_own() {
    # containers is the name podman looks up its ranges by.
    grep -q containers: /etc/subuid || echo containers:1000000:1000000 | tee -a /etc/subuid >>/etc/subgid
    [ "$(run --rm --userns auto -- awk '{ print $2 }' /proc/self/uid_map | head -n 1)" -ge 1000000 ]
}

step_secrets() {
    echo -n hidden >"$D/secret"
    podman secret create suite-secret "$D/secret"
    is "hidden 400" "$(run --rm --secret suite-secret,mode=0400 -- sh -c 'echo $(cat /run/secrets/suite-secret) $(stat -c %a /run/secrets/suite-secret)')"
    is "hidden" "$(run --rm --secret suite-secret,type=env,target=WORD -- sh -c 'echo $WORD')"
    podman secret rm suite-secret
}

step_readiness_by_notify() {
    # The container's own word, for which a program of the host's tree sends it.
    tree
    podman run -d --name "$C" --network none --sdnotify=container --rootfs "$D/tree" \
        sh -c 'systemd-notify --ready; sleep 300' >/dev/null &
    wait $!
    remove
    # And podman's, to whoever started it.
    systemd-run --quiet --wait --collect -p Type=notify -p NotifyAccess=all -p TimeoutStartSec=60 -p RemainAfterExit=no \
        "--setenv=CONTAINERS_CONF=$PODS/containers.conf" \
        podman --runtime "$RUNTIME" run --rm --network none --sdnotify=conmon --name "$C" $BOX true
}
# A root filesystem from the guest's own, with its systemd, under a layer that is thrown away.
tree() {
    mkdir "$D/tree" "$D/layer"
    mount -t tmpfs tmpfs "$D/layer"
    mkdir "$D/layer/"{upper,work}
    mount -t overlay -o "lowerdir=/,upperdir=$D/layer/upper,workdir=$D/layer/work" overlay "$D/tree"
}

step_a_whole_systemd_inside() {
    tree
    rm -f "$D"/tree/etc/systemd/system/job.*
    podman run -d --name "$C" --network none --systemd=always --rootfs "$D/tree" /sbin/init systemd.unit=multi-user.target
    eventually podman exec "$C" sh -c 'case $(systemctl is-system-running) in running | degraded) ;; *) false ;; esac'
    is "1 active" "$(podman exec "$C" sh -c 'echo $(pgrep -o -x systemd) $(systemctl is-active dbus.socket)')"
    podman exec "$C" systemd-run --quiet --wait -p MemoryMax=64M true
    podman stop -t 60 "$C"
    is 130 "$(inspect '{{.State.ExitCode}}')" || is 0 "$(inspect '{{.State.ExitCode}}')"
    remove
}

step_a_pod_shares_namespaces() {
    local pod=$C-pod
    podman pod create --name "$pod" --network none --share net,ipc,uts --hostname podded
    podman run -d --pod "$pod" --name "$C" $BOX sleep 300
    podman run -d --pod "$pod" --name "$C-2" $BOX sleep 300
    is "$(podman exec "$C" readlink /proc/self/ns/net)" "$(podman exec "$C-2" readlink /proc/self/ns/net)"
    is podded "$(podman exec "$C-2" hostname)"
    podman pod pause "$pod"
    podman pod unpause "$pod"
    podman pod rm -f -t 0 "$pod"
}

step_play_kube() {
    cat >"$D/pod.yaml" <<YAML
apiVersion: v1
kind: Pod
metadata: { name: $C }
spec:
  containers:
  - name: first
    image: $BOX
    imagePullPolicy: Never
    command: [sh, -c, "echo played; sleep 300"]
    resources: { limits: { memory: 64Mi } }
    securityContext: { readOnlyRootFilesystem: true, runAsUser: 1000 }
  initContainers:
  - { name: before, image: $BOX, imagePullPolicy: Never, command: ["true"] }
YAML
    podman kube play --network none "$D/pod.yaml"
    is "1000" "$(podman exec "$C-first" id -u)"
    is "played" "$(podman logs "$C-first")"
    podman kube down --force "$D/pod.yaml"
}

step_a_bridge_between_containers() {
    podman network create --disable-dns "$C" >/dev/null
    podman run -d --name "$C" --network "$C" $BOX sh -c 'echo served >/tmp/index.html; exec httpd -f -p 8080 -h /tmp' >/dev/null
    local address
    address=$(inspect "{{(index .NetworkSettings.Networks \"$C\").IPAddress}}")
    is served "$(podman run --rm --network "$C" $BOX wget -q -O - "http://$address:8080/")"
    remove
    podman network rm -f "$C"
}

# A program that counts, to its standard output.
COUNT='n=0; while :; do n=$((n + 1)); echo $n; sleep 0.05; done'
# in_a_row CONTAINER COUNT: its lines are the numbers in their order, over all its lives, and more than so many.
in_a_row() { podman logs "$1" | awk '$1 != NR { exit 1 } END { exit NR <= '"$2"' }'; }

step_a_checkpoint_is_restored() {
    command -v criu || skip "no criu"
    run -d -- sh -c "$COUNT"
    eventually in_a_row "$C" 5
    podman container checkpoint "$C"
    is "exited true" "$(inspect '{{.State.Status}} {{.State.Checkpointed}}')"
    ! ls -d /run/{ferry,runc}/"$(inspect '{{.Id}}')"
    podman container restore "$C"
    running running
    local lines
    lines=$(podman logs "$C" | wc -l)
    eventually in_a_row "$C" $((lines + 5))
    is inside "$(podman exec "$C" echo inside)"
    podman container checkpoint --leave-running --keep "$C"
    running running
    lines=$(podman logs "$C" | wc -l)
    eventually in_a_row "$C" $((lines + 5))
    remove
}

step_a_checkpoint_goes_by_an_archive() {
    command -v criu || skip "no criu"
    run -d --memory 64m -- sh -c "echo kept >/data/f; $COUNT"
    eventually in_a_row "$C" 5
    podman container checkpoint --export "$D/checkpoint.tar.zst" "$C"
    remove
    podman container restore --import "$D/checkpoint.tar.zst"
    running running
    is "kept" "$(podman exec "$C" cat /data/f)"
    is 67108864 "$(cat "$(group)/memory.max")"
    podman container restore --import "$D/checkpoint.tar.zst" --name "$C-2"
    is "kept" "$(podman exec "$C-2" cat /data/f)"
    podman rm -f -t 0 "$C-2"
    remove
}

step_cgroups_by_hand() {
    podman --cgroup-manager cgroupfs run -d --name "$C" --network none --memory 64m $BOX sleep 300
    is 67108864 "$(cat "$(group)/memory.max")"
    is inside "$(podman --cgroup-manager cgroupfs exec "$C" echo inside)"
    podman --cgroup-manager cgroupfs rm -f -t 0 "$C"
}

step_a_storm_of_execs() {
    run -d -- sleep 300
    seq $((LONG ? 200 : 16)) | CONTAINERS_CONF=$PODS/containers.conf xargs -P 8 -I @ sh -c \
        "test \$(podman exec $C echo @) = @ || { echo exec @ failed; exit 255; }"
    eventually alone
    remove
}

alone() { [ "$(wc -l <"$(group)/cgroup.procs")" = 1 ]; }

step_many_at_once_leave_nothing() {
    local before
    before=$(census)
    seq $((LONG ? 500 : 16)) | CONTAINERS_CONF=$PODS/containers.conf xargs -P 8 -I @ sh -c \
        "podman --runtime $RUNTIME run --rm --network none --name $C-@ $BOX true || exit 255"
    eventually same "$before"
    is "$before" "$(census)"
}
# conmons, containers, mounts, cgroups and records, in numbers.
census() {
    local records=${XDG_RUNTIME_DIR:-/run}
    echo "conmons $(pgrep -c -x conmon || true) containers $(podman ps -aq | wc -l)" \
        "mounts $(grep -c /overlay-containers/ /proc/self/mountinfo || true)" \
        "cgroups $(find /sys/fs/cgroup -type d -name 'libpod-*' | wc -l)" \
        "records $(find "$records/ferry" "$records/runc" -mindepth 1 -maxdepth 1 2>/dev/null | wc -l)"
}
same() { [ "$(census)" = "$1" ]; }

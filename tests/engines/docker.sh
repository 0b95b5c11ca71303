# shellcheck shell=bash
# docker, with ferry as a runtime beside its own and systemd for its cgroups.

BOX=localhost/box:latest
DAEMON=/run/suite-docker

up() { daemon; }
# A daemon with its own folders and the image, to which ferry is made known.
daemon() {
    mkdir -p $DAEMON/bin
    # What a vendor of graphics cards installs: docker has it run for every container that is to have one.
    cat >$DAEMON/bin/nvidia-container-runtime-hook <<'SH'
#!/bin/sh
[ "$1" = prestart ] && jq -er '"\(.status) \(.pid)"' >"$(dirname "$0")/seen"
SH
    chmod +x $DAEMON/bin/nvidia-container-runtime-hook
    "$SUITE/ferry" install --engine docker --config $DAEMON/daemon.json --write
    PATH=$DAEMON/bin:$PATH dockerd --config-file $DAEMON/daemon.json --data-root /var/lib/suite-docker --exec-root $DAEMON/exec --pidfile $DAEMON/pid --host unix://$DAEMON/sock \
        --experimental --log-level warn "$@" >$DAEMON/log 2>&1 </dev/null &
    local pid=$!
    until docker version >/dev/null 2>&1; do kill -0 $pid; sleep 0.2; done
    docker load -q -i "$IMAGE"
}
down() {
    local pid
    pid=$(cat $DAEMON/pid)
    kill "$pid"
    while kill -0 "$pid" 2>/dev/null; do sleep 0.1; done
}

clean() { docker rm -f -v "$C"; }

docker() { command docker --host unix://$DAEMON/sock "$@"; }
# run FLAG… -- COMMAND…: a container of the step's name, which has no network but loopback.
run() {
    local flags=()
    while [ "$1" != -- ]; do flags+=("$1"); shift; done
    shift
    docker run --runtime "$RUNTIME" --network none --name "$C" "${flags[@]}" $BOX "$@"
}
remove() { docker rm -f "$C" >/dev/null; }
inspect() { docker inspect --format "$1" "$C"; }
group() { echo "/sys/fs/cgroup$(sed -n 's/^0:://p' "/proc/$(inspect '{{.State.Pid}}')/cgroup")"; }
logged() { docker logs "$C" | grep -q "$1"; }

step_run_gives_output_and_exit_status() {
    fails 3 run --rm -- sh -c 'echo to stdout; echo to stderr >&2; exit 3' >"$D/out" 2>"$D/err"
    is "to stdout" "$(cat "$D/out")"
    is "to stderr" "$(cat "$D/err")"
}

step_a_missing_program_is_127_and_one_without_permission_126() {
    fails 127 run --rm -- /no/such/program 2>"$D/err"
    remove || true
    fails 126 run --rm -- /etc/passwd 2>>"$D/err"
}

step_images_go_to_ferry_and_back() {
    docker save -o "$D/box.tar" $BOX
    changed_by_ferry "$D/box.tar" "$D/changed.tar"
    docker load -q -i "$D/changed.tar"
    is "$SEES" "$(docker run --rm --runtime "$RUNTIME" --network none --name "$C" localhost/changed:1 sh -c "$CHANGED")"
    docker rmi -f localhost/changed:1
}

step_layered_images_go_to_ferry_and_back() { layered_images_there_and_back; }
step_a_hundred_layers_go_to_ferry_and_back() { a_hundred_layers_there_and_back; }
loads() { docker load -q -i "$1"; }
saves() { docker save -o "$1" "$2"; }
sees() { docker run --rm --runtime "$RUNTIME" --network none --name "$C" "$1" sh -c "$2"; }
makes() {
    docker run --runtime "$RUNTIME" --network none --name "$C" "$1" sh -c "$3"
    docker commit "$C" "$2"
    remove
}

step_exec_gives_output_and_exit_status() {
    run -d -- sleep 300
    fails 4 docker exec "$C" sh -c 'echo inside; exit 4' >"$D/out"
    is inside "$(cat "$D/out")"
    is through "$(echo through | docker exec -i "$C" cat)"
    is "1000 /tmp given" "$(docker exec --user user --workdir /tmp --env WORD=given "$C" sh -c 'echo $(id -u) $(pwd) $WORD')"
    fails 126 docker exec "$C" /no/such/program 2>"$D/err"
    is "000001ffffffffff" "$(docker exec --privileged "$C" awk '/^CapEff/ { print $2 }' /proc/self/status)"
    remove
}

step_a_terminal() {
    has "$(on_terminal "docker --host unix://$DAEMON/sock run --runtime $RUNTIME --rm -it --network none $BOX \
        sh -c '$SIZED; echo \$(tty) \$(stty size)'")" "/dev/pts/0 24 80"
    run -d -- sleep 300
    has "$(on_terminal "docker --host unix://$DAEMON/sock exec -it $C sh -c '$SIZED; echo \$(tty) \$(stty size)'")" "24 80"
    remove
}

step_attach_and_logs() {
    run -d -i -- sh -c 'echo first; read word; echo "got $word"' >/dev/null
    eventually logged first
    echoed sent docker attach "$C"
    eventually logged "got sent"
    remove
}

step_pause_stop_and_restart() {
    run -d -- sh -c 'trap "exit 9" TERM; echo up; while :; do sleep 0.05; done' >/dev/null
    eventually logged up
    docker pause "$C"
    grep -q 'frozen 1' "$(group)/cgroup.events"
    docker unpause "$C"
    docker stop -t 20 "$C"
    is 9 "$(inspect '{{.State.ExitCode}}')"
    docker restart "$C"
    docker kill "$C"
    is 137 "$(docker wait "$C")"
    remove
}

step_limits_stats_top_and_update() {
    run -d --memory 64m --cpus 0.5 --pids-limit 50 --cpuset-cpus 0 -- sleep 300
    is "67108864 50000 100000 50 0" "$(cat "$(group)"/{memory.max,cpu.max,pids.max,cpuset.cpus} | xargs)"
    has "$(docker stats --no-stream --format '{{.MemUsage}}' "$C")" "64MiB"
    has "$(docker top "$C")" "sleep 300"
    docker update --memory 96m --memory-swap 96m --cpus 0.75 --pids-limit 70 "$C"
    is "100663296 75000 100000 70" "$(cat "$(group)"/{memory.max,cpu.max,pids.max} | xargs)"
    remove
}

step_out_of_memory_is_seen() {
    run --memory 16m --memory-swap 16m -- dd if=/dev/zero of=/dev/null bs=64M count=1 || true
    is "true 137" "$(inspect '{{.State.OOMKilled}} {{.State.ExitCode}}')"
    remove
}

step_a_health_check() {
    run -d --health-cmd 'test -e /tmp/well' --health-interval 1s --health-retries 1 -- sleep 300
    eventually health unhealthy
    docker exec "$C" touch /tmp/well
    eventually health healthy
    remove
}
health() { [ "$(inspect '{{.State.Health.Status}}')" = "$1" ]; }

step_capabilities_and_privileged() {
    is "00000000a80425fb" "$(run --rm -- awk '/^CapEff/ { print $2 }' /proc/self/status)"
    is "0000000000200001" "$(run --rm --cap-drop ALL --cap-add SYS_ADMIN --cap-add CHOWN -- awk '/^CapEff/ { print $2 }' /proc/self/status)"
    is "000001ffffffffff 0 block" "$(run --rm --privileged -- sh -c \
        'echo $(awk "/^CapEff/ { c = \$2 } /^Seccomp:/ { print c, \$2 }" /proc/self/status) $(test -b /dev/vda && echo block)')"
}

step_security_options() {
    is "1 2" "$(run --rm --security-opt no-new-privileges -- awk '/^NoNewPrivs/ { n = $2 } /^Seccomp:/ { print n, $2 }' /proc/self/status)"
    is "0" "$(run --rm --security-opt seccomp=unconfined -- awk '/^Seccomp:/ { print $2 }' /proc/self/status)"
    echo '{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":95}]}' >"$D/seccomp.json"
    has "$(run --rm --security-opt "seccomp=$D/seccomp.json" -- mkdir /tmp/x 2>&1)" "not supported"
}

step_devices_limits_and_kernel_parameters() {
    is "512 2048 4096 1" "$(run --rm --device /dev/vda:/dev/disk:r --ulimit nofile=2048:4096 --sysctl net.ipv4.ip_forward=1 -- \
        sh -c 'echo $(head -c 512 /dev/disk | wc -c) $(ulimit -Sn) $(ulimit -Hn) $(cat /proc/sys/net/ipv4/ip_forward)')"
    has "$(run --rm --device /dev/vda:/dev/disk:r -- sh -c 'true >/dev/disk' 2>&1)" "not permitted"
}

step_volumes_and_a_read_only_root() {
    echo content >"$D/file"
    is "content read-only" "$(run --rm --read-only -v "$D:/data:ro" -- sh -c \
        'cat /data/file; touch /data/x || touch /x || echo read-only' 2>/dev/null | xargs)"
    is "kept" "$(run --rm -v "$C:/data" -- sh -c 'echo kept >/data/f'; run --rm -v "$C:/data" -- cat /data/f)"
    docker volume rm "$C"
    is "tmpfs 65536k" "$(run --rm --tmpfs /scratch -- awk '$2 == "/dev/shm" { split($4, o, "size="); print $3, o[2] }' /proc/mounts | cut -d, -f1)"
    mkdir "$D/shared"
    run --rm --privileged --mount "type=bind,src=$D,dst=/data,bind-propagation=rslave" -- true
}

step_namespaces_of_the_host_and_of_others() {
    is "$(readlink /proc/self/ns/pid) $(readlink /proc/self/ns/ipc) $(readlink /proc/self/ns/uts)" \
        "$(run --rm --pid host --ipc host --uts host -- sh -c 'for n in pid ipc uts; do readlink /proc/self/ns/$n; done' | xargs)"
    run -d -- sleep 300
    is "sleep 300" "$(docker run --rm --runtime "$RUNTIME" --pid "container:$C" --network "container:$C" $BOX cat /proc/1/cmdline | tr '\0' ' ' | xargs)"
    remove
}

step_an_init_and_a_host_name() {
    is "docker-init named" "$(run --rm --init --hostname named -- sh -c 'echo $(cat /proc/1/comm) $(hostname)')"
}

step_a_network_by_name() {
    docker network create "$C" >/dev/null
    docker run -d --runtime "$RUNTIME" --name "$C" --network "$C" $BOX sh -c 'echo served >/tmp/index.html; exec httpd -f -p 8080 -h /tmp'
    is served "$(docker run --rm --runtime "$RUNTIME" --network "$C" $BOX wget -q -O - "http://$C:8080/")"
    remove
    docker network rm "$C"
}

step_a_published_port() {
    docker run -d --runtime "$RUNTIME" --name "$C" -p 127.0.0.1:8081:8080 $BOX sh -c 'echo served >/tmp/index.html; exec httpd -f -p 8080 -h /tmp'
    eventually sh -c 'busybox wget -q -O - http://127.0.0.1:8081/ | grep -q served'
    remove
}

step_a_graphics_card_by_its_hook() {
    rm -f $DAEMON/bin/seen
    is "all" "$(run --rm --gpus all -- sh -c 'echo $NVIDIA_VISIBLE_DEVICES')"
    [[ $(cat $DAEMON/bin/seen) =~ ^creat(ing|ed)\ [1-9] ]]
    # A container that its hook refuses is none.
    mv $DAEMON/bin/nvidia-container-runtime-hook $DAEMON/bin/kept
    printf '#!/bin/sh\necho no card >&2; exit 3\n' >$DAEMON/bin/nvidia-container-runtime-hook
    chmod +x $DAEMON/bin/nvidia-container-runtime-hook
    local status=0
    run --gpus all -- true 2>"$D/err" || status=$?
    mv $DAEMON/bin/kept $DAEMON/bin/nvidia-container-runtime-hook
    [ $status -gt 124 ]
    grep "no card" "$D/err"
    remove
}

step_services_that_find_one_another_by_name() {
    local service
    docker network create --internal "$C" >/dev/null
    docker volume create "$C" >/dev/null
    for service in store front; do
        docker run -d --runtime "$RUNTIME" --name "$C-$service" --network "$C" --network-alias $service --label "project=$C" -v "$C:/data" \
            $BOX sh -c "echo $service >/tmp/index.html; echo $service >>/data/log; exec httpd -f -p 8080 -h /tmp" >/dev/null
    done
    eventually docker exec "$C-front" wget -q -O /tmp/got http://store:8080/
    is store "$(docker exec "$C-front" cat /tmp/got)"
    eventually docker exec "$C-store" wget -q -O /tmp/got "http://$C-front:8080/"
    is "front store" "$(docker exec "$C-store" sort /data/log | xargs)"
    # Off the network and on it again, while it runs.
    docker network disconnect "$C" "$C-store"
    fails 1 docker exec "$C-front" wget -q -T 2 -O /tmp/got http://store:8080/
    docker network connect --alias store "$C" "$C-store"
    eventually docker exec "$C-front" wget -q -T 5 -O /tmp/got http://store:8080/
    docker ps -q --filter "label=project=$C" | xargs docker --host unix://$DAEMON/sock rm -f -v
    docker network rm "$C"
    docker volume rm "$C"
}

step_a_checkpoint_is_made() {
    command -v criu || skip "no criu"
    run -d -- sh -c 'n=0; while :; do n=$((n + 1)); echo $n; sleep 0.05; done'
    eventually logged 5
    docker checkpoint create --leave-running "$C" first
    is true "$(inspect '{{.State.Running}}')"
    is "first" "$(docker checkpoint ls "$C" | awk 'NR == 2 { print $1 }')"
    docker checkpoint rm "$C" first
    docker checkpoint create "$C" second
    eventually ended
    docker rm -f "$C"
}
ended() { [ "$(inspect '{{.State.Running}}')" = false ]; }

step_a_checkpoint_is_restored() {
    command -v criu || skip "no criu"
    run -d -- sh -c 'n=0; while :; do n=$((n + 1)); echo $n; sleep 0.05; done'
    eventually logged 5
    docker checkpoint create "$C" saved
    eventually ended
    local lines
    lines=$(docker logs "$C" | wc -l)
    docker start --checkpoint saved "$C"
    eventually logged "^$((lines + 5))$"
    is inside "$(docker exec "$C" echo inside)"
    remove
}

step_copying_and_committing() {
    run -d -- sleep 300
    echo copied >"$D/in"
    docker cp "$D/in" "$C:/tmp/in"
    is copied "$(docker exec "$C" cat /tmp/in)"
    docker commit "$C" "suite-$RUNTIME" >/dev/null
    remove
    is copied "$(docker run --rm --runtime "$RUNTIME" --network none "suite-$RUNTIME" cat /tmp/in)"
    docker rmi "suite-$RUNTIME"
}

step_a_storm_of_execs() {
    run -d -- sleep 300
    seq $((LONG ? 200 : 16)) | xargs -P 8 -I @ sh -c \
        "test \$(docker --host unix://$DAEMON/sock exec $C echo @) = @ || { echo exec @ failed; exit 255; }"
    eventually alone
    remove
}

alone() { [ "$(wc -l <"$(group)/cgroup.procs")" = 1 ]; }

step_many_at_once_leave_nothing() {
    local before
    before=$(census)
    seq $((LONG ? 100 : 8)) | xargs -P 4 -I @ sh -c \
        "docker --host unix://$DAEMON/sock run --runtime $RUNTIME --rm --network none --name $C-@ $BOX true || exit 255"
    eventually same "$before"
    is "$before" "$(census)"
}
census() {
    echo "shims $(pgrep -c -f 'containerd-shim.*suite-docker' || true) containers $(docker ps -aq | wc -l)" \
        "mounts $(grep -c suite-docker /proc/self/mountinfo || true)" \
        "cgroups $(find /sys/fs/cgroup -type d -name 'docker-*' | wc -l)" \
        "records $(find /run/docker/runtime-* $DAEMON/exec/runtime-* -mindepth 2 -maxdepth 2 2>/dev/null | wc -l)"
}
same() { [ "$(census)" = "$1" ]; }

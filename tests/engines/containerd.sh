# shellcheck shell=bash
# containerd, by its own client: every verb that its shim asks of a runtime.

RUN=/run/suite-$ENGINE
BOX=localhost/box:latest
ctr() { command ctr --address $RUN/sock "$@"; }
# How a container's runtime is chosen, and the name that containerd then has for it.
runtime() { echo "--runc-binary $RT"; }
runtime_name() { echo io.containerd.runc.v2; }
by_systemd() { echo --runc-systemd-cgroup; }

up() {
    mkdir -p $RUN
    cat >$RUN/config.toml <<TOML
version = 2
root = "/var/lib/suite-$ENGINE"
state = "$RUN/state"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "$RUN/sock"
[ttrpc]
  address = "$RUN/sock.ttrpc"
TOML
    containerd --config $RUN/config.toml --log-level warn >$RUN/log 2>&1 </dev/null &
    echo $! >$RUN/pid
    until ctr version >/dev/null 2>&1; do kill -0 "$(cat $RUN/pid)"; sleep 0.2; done
    ctr images import "$IMAGE"
}

down() {
    kill "$(cat $RUN/pid)"
    while kill -0 "$(cat $RUN/pid)" 2>/dev/null; do sleep 0.1; done
}

clean() {
    local name
    for name in $(ctr containers ls -q | grep -- "^$C"); do
        ctr task kill -s KILL -a "$name"
        ctr task rm -f "$name"
        ctr containers rm "$name"
    done
}

# run FLAG… -- COMMAND…: a container of the step's name.
run() {
    local flags=()
    while [ "$1" != -- ]; do flags+=("$1"); shift; done
    shift
    # shellcheck disable=SC2046
    ctr run $(runtime) "${flags[@]}" $BOX "$C" "$@"
}
remove() { ctr task kill -s KILL "$C"; eventually gone "$C"; ctr containers rm "$C"; }
gone() { ctr task rm "$1" >/dev/null 2>&1 || ! ctr task ls -q | grep -qx "$1"; }
status() { ctr task ls | awk -v name="$C" '$1 == name { print $3 }'; }

step_run_gives_output_and_exit_status() {
    local out status=0
    out=$(run --rm -- sh -c 'echo to stdout; echo to stderr >&2; exit 3' 2>"$D/err") || status=$?
    is 3 $status
    is "to stdout" "$out"
    is "to stderr" "$(cat "$D/err")"
    is "" "$(ctr containers ls -q | grep -x "$C")"
}

step_a_missing_program_is_an_error_and_leaves_nothing() {
    fails 1 run --rm -- /no/such/program 2>"$D/err"
    grep -i 'no such file\|not found' "$D/err"
    is "" "$(ctr task ls -q | grep -x "$C")"
    ! ls -d /sys/fs/cgroup/default/"$C" "$RUN"/state/io.containerd.runtime.v2.task/default/"$C"
}

step_standard_input_reaches_the_program() {
    echoed through run --rm -- cat
}

step_identity_and_environment() {
    is "1000 1000 /home/user given" "$(run --rm --user 1000:1000 --cwd /home/user --env WORD=given -- \
        sh -c 'echo $(id -u) $(id -g) $(pwd) $WORD')"
}

step_mounts_and_a_read_only_root() {
    echo content >"$D/file"
    is "content read-only" "$(run --rm --read-only --mount "type=bind,src=$D,dst=/data,options=rbind:ro" -- \
        sh -c 'cat /data/file; touch /x || touch /data/x || echo read-only' 2>/dev/null | xargs)"
}

step_capabilities_and_no_new_privileges() {
    is "00000000a80425fb 1" "$(run --rm -- awk '/^CapEff/ { c = $2 } /^NoNewPrivs/ { print c, $2 }' /proc/self/status)"
    is "00000000a82425fb" "$(run --rm --cap-add CAP_SYS_ADMIN -- awk '/^CapEff/ { print $2 }' /proc/self/status)"
    is "00000000a80425da" "$(run --rm --cap-drop CAP_CHOWN --cap-drop CAP_KILL -- \
        awk '/^CapEff/ { print $2 }' /proc/self/status)"
}

step_privileged_has_all_devices_and_capabilities() {
    is "000001ffffffffff block" "$(run --rm --privileged --privileged-without-host-devices=false -- \
        sh -c 'echo $(awk "/^CapEff/ { print \$2 }" /proc/self/status) $(test -b /dev/vda && echo block)')"
}

step_the_default_seccomp_profile() {
    is "2 refused" "$(run --rm --seccomp -- \
        sh -c 'echo $(awk "/^Seccomp:/ { print \$2 }" /proc/self/status) $(unshare -U true 2>/dev/null || echo refused)')"
}

step_a_device() {
    fails 1 run --rm -- head -c 1 /dev/vda 2>/dev/null
    is 512 "$(run --rm --device /dev/vda -- sh -c 'head -c 512 /dev/vda | wc -c')"
}

step_joins_a_namespace_by_path() {
    unshare --uts --fork sh -c 'hostname joined; echo $$ >'"$D/pid"'; exec sleep 60' &
    eventually test -s "$D/pid"
    is joined "$(run --rm --with-ns "uts:/proc/$(cat "$D/pid")/ns/uts" -- hostname)"
    kill "$(cat "$D/pid")"
}

step_the_host_network() {
    is "$(cat /sys/class/net/lo/ifindex) $(readlink /proc/self/ns/net)" \
        "$(run --rm --net-host -- sh -c 'echo $(cat /sys/class/net/lo/ifindex) $(readlink /proc/self/ns/net)')"
}

step_a_task_in_the_background() {
    run -d -- sleep 300
    is RUNNING "$(status)"
    ctr task ps "$C" | grep -q "^$(ctr task ls | awk -v name="$C" '$1 == name { print $2 }')"
    is "$(runtime_name)" "$(ctr containers info "$C" | jq -r .Runtime.Name)"
    remove
    ! ls -d /sys/fs/cgroup/default/"$C"
}

step_images_go_to_ferry_and_back() {
    ctr images export "$D/box.tar" $BOX
    changed_by_ferry "$D/box.tar" "$D/changed.tar"
    ctr images import "$D/changed.tar"
    is "$SEES" "$(ctr run --rm --runc-binary "$RT" localhost/changed:1 "$C" sh -c "$CHANGED")"
    ctr images rm localhost/changed:1
}

step_a_hundred_layers_go_to_ferry_and_back() { a_hundred_layers_there_and_back; }
loads() { ctr images import "$1"; }
saves() { ctr images export "$1" "$2"; }
sees() { ctr run --rm --runc-binary "$RT" "$1" "$C" sh -c "$2"; }
# Its own client makes no images: of ferry's it takes layers as it takes those of others.
step_layered_images_go_to_ferry_and_back() { layered_images_there_and_back; }
makes() {
    "$SUITE/ferry" --root "$D/state" --store "$D/making" image import "$SUITE/debian.tar"
    "$SUITE/ferry" --root "$D/state" --store "$D/making" run -d --image "$1" "$C" -- sleep 1000
    "$SUITE/ferry" --root "$D/state" --store "$D/making" exec "$C" sh -c "$3"
    "$SUITE/ferry" --root "$D/state" --store "$D/making" image commit "$C" "$2"
    "$SUITE/ferry" --root "$D/state" --store "$D/making" image export -o "$D/making.tar" "$2"
    "$SUITE/ferry" --root "$D/state" --store "$D/making" delete --force "$C"
    loads "$D/making.tar"
}

step_exec_gives_output_and_exit_status() {
    run -d -- sleep 300
    fails 4 ctr task exec --exec-id a "$C" sh -c 'echo inside; exit 4' >"$D/out"
    is inside "$(cat "$D/out")"
    echoed through ctr task exec --exec-id b "$C" cat
    is "1000 /tmp" "$(ctr task exec --exec-id c --user 1000 --cwd /tmp "$C" sh -c 'echo $(id -u) $(pwd)')"
    fails 1 ctr task exec --exec-id d "$C" /no/such/program 2>"$D/err"
    grep -i 'no such file\|not found' "$D/err"
    remove
}

step_a_terminal() {
    has "$(on_terminal "ctr --address $RUN/sock run --rm -t $(runtime) $BOX $C sh -c '$SIZED; echo \$(tty) \$(stty size)'")" \
        "/dev/pts/0 24 80"
    run -d -- sleep 300
    has "$(on_terminal "ctr --address $RUN/sock task exec -t --exec-id t $C sh -c '$SIZED; echo \$(tty) \$(stty size)'")" \
        "24 80"
    remove
}

step_pause_and_resume() {
    run -d -- sh -c 'while :; do echo x >>/tmp/ticks; sleep 0.05; done'
    ctr task pause "$C"
    is PAUSED "$(status)"
    is 1 "$(grep -c 'frozen 1' /sys/fs/cgroup/default/"$C"/cgroup.events)"
    ctr task resume "$C"
    is RUNNING "$(status)"
    is 1 "$(grep -c 'frozen 0' /sys/fs/cgroup/default/"$C"/cgroup.events)"
    remove
}

step_kill_delivers_the_signal() {
    run -d --mount "type=bind,src=$D,dst=/data,options=rbind" -- \
        sh -c 'trap "exit 9" TERM; echo up >/data/up; while :; do sleep 0.05; done'
    eventually test -e "$D/up"
    ctr task kill -s TERM "$C"
    eventually stopped
    has "$(ctr task rm "$C" 2>&1)" "exit code 9"
    ctr containers rm "$C"
}
stopped() { [ "$(status)" = STOPPED ]; }

step_kill_all_reaches_every_process() {
    # Without a pid namespace, whose end would be theirs.
    run -d --with-ns pid:/proc/1/ns/pid -- sh -c 'sleep 3611 & sleep 3611 & wait'
    eventually three
    ctr task kill -s KILL -a "$C"
    eventually stopped
    has "$(ctr task rm "$C" 2>&1)" "exit code 137"
    ctr containers rm "$C"
    is "" "$(pgrep -f 'sleep 3611' || true)"
}

three() { [ "$(wc -l </sys/fs/cgroup/default/"$C"/cgroup.procs)" = 3 ]; }

step_metrics() {
    run -d -- sleep 300
    ctr task metrics "$C" | awk '$1 == "memory.usage" { m = $2 } $1 == "pids.current" { p = $2 } END { exit !(m > 0 && p == 1) }'
    remove
}

step_limits_are_in_the_cgroup() {
    local group=/sys/fs/cgroup/default/$C
    run -d --memory-limit 33554432 --cpus 0.5 --cpu-shares 512 -- sleep 300
    is "33554432 50000 100000" "$(cat "$group/memory.max" "$group/cpu.max" | xargs)"
    # 512 shares are the weight 20 by the older conversion, and 59 by that of runc 1.3, which ferry has.
    [[ $(cat "$group/cpu.weight") = @(20|59) ]]
    remove
}

step_out_of_memory_is_an_event() {
    ctr events >"$D/events" 2>/dev/null &
    local events=$!
    run -d --memory-limit 16777216 -- sh -c 'sleep 0.5; dd if=/dev/zero of=/dev/null bs=64M count=1; true; sleep 300'
    eventually grep -q "/tasks/oom.*$C" "$D/events"
    kill $events
    grep -q 'oom_kill [1-9]' /sys/fs/cgroup/default/"$C"/memory.events
    remove
}

step_a_cgroup_by_way_of_systemd() {
    # shellcheck disable=SC2046
    run -d $(by_systemd) --cgroup "system.slice:suite:$C" --memory-limit 33554432 -- sleep 300
    # One by one: several are printed in an order of systemd's own.
    is active "$(systemctl show -P ActiveState "suite-$C.scope")"
    is 33554432 "$(systemctl show -P MemoryMax "suite-$C.scope")"
    is 33554432 "$(cat "/sys/fs/cgroup/system.slice/suite-$C.scope/memory.max")"
    is inside "$(ctr task exec --exec-id a "$C" echo inside)"
    ctr task kill -s KILL "$C"
    eventually gone "$C"
    ctr containers rm "$C"
    eventually test ! -e "/sys/fs/cgroup/system.slice/suite-$C.scope"
}

step_a_checkpoint_is_restored() {
    command -v criu || skip "no criu"
    run -d -- sh -c 'n=0; while :; do n=$((n + 1)); echo $n; echo $n >/count; sleep 0.05; done'
    eventually ctr task exec --exec-id a "$C" test -s /count
    ctr containers checkpoint --rw --task --image "$C" "localhost/$C:1"
    # It goes on meanwhile, and what it was is saved.
    is RUNNING "$(status)"
    remove
    ctr containers restore --rw --live "$C" "localhost/$C:1" >"$D/out"
    is RUNNING "$(status)"
    [ "$(ctr task exec --exec-id b "$C" cat /count)" -gt 0 ]
    remove
    ctr images rm "localhost/$C:1"
}

step_a_checkpoint_that_ends_its_task() {
    command -v criu || skip "no criu"
    run -d -- sh -c 'n=0; while :; do n=$((n + 1)); echo $n >/count; sleep 0.05; done'
    eventually ctr task exec --exec-id a "$C" test -s /count
    ctr task checkpoint --exit --image-path "$D/images" "$C"
    test -s "$D/images/inventory.img"
    eventually stopped
    eventually gone "$C"
    ctr containers rm "$C"
    ! ls -d /sys/fs/cgroup/default/"$C"
}

step_the_configuration_that_install_makes_is_understood() {
    printf 'version = 2\n[plugins."io.containerd.grpc.v1.cri"]\n  sandbox_image = "%s"\n' $BOX >"$D/config.toml"
    "$SUITE/ferry" install --engine containerd --binary "$RT" --config "$D/config.toml" --write
    containerd --config "$D/config.toml" config dump >"$D/dump"
    grep -A 20 'runtimes.ferry.options\]' "$D/dump" | grep "BinaryName = \"$RT\""
    grep "sandbox_image = \"$BOX\"" "$D/dump"
}

step_a_storm_of_execs() {
    run -d -- sleep 300
    seq $((LONG ? 2000 : 50)) | xargs -P 8 -I @ sh -c \
        "test \$(ctr --address $RUN/sock task exec --exec-id e@ $C echo @) = @ || { echo exec @ failed; exit 255; }"
    # What an exec left behind would still be a process here, or a descriptor of the shim's.
    eventually alone
    remove
}

alone() { [ "$(wc -l </sys/fs/cgroup/default/"$C"/cgroup.procs)" = 1 ]; }

step_many_at_once_leave_nothing() {
    local before after
    before=$(census)
    seq $((LONG ? 500 : 24)) | xargs -P 8 -I @ sh -c \
        "ctr --address $RUN/sock run --rm $(runtime) $BOX $C-@ true || exit 255"
    eventually same "$before"
    after=$(census)
    is "$before" "$after"
}
# Shims, containers, mounts, cgroups, records and the daemon's descriptors, in numbers.
census() {
    echo "shims $(pgrep -c -f "containerd-shim.*suite-$ENGINE" || true)" \
        "containers $(ctr containers ls -q | wc -l) tasks $(ctr task ls -q | wc -l)" \
        "mounts $(grep -c "suite-$ENGINE" /proc/self/mountinfo || true)" \
        "cgroups $(find /sys/fs/cgroup/default -mindepth 1 -type d 2>/dev/null | wc -l)" \
        "records $(find /run/containerd/{runc,ferry,s} -mindepth 2 2>/dev/null | wc -l)"
}
same() { [ "$(census)" = "$1" ]; }

# shellcheck shell=bash
# containerd with ferry's own shim, in place of its own shim for runc: what is asked of one is asked of the other.
# without: images_go_to_ferry_and_back a_hundred_layers_go_to_ferry_and_back layered_images_go_to_ferry_and_back

# shellcheck disable=SC1091
. "$HERE/containerd.sh"

up_containerd=$(declare -f up)
eval "containerd_${up_containerd}"
# containerd finds shims by their names, in its PATH.
up() { PATH=$SUITE:$PATH containerd_up; }

runtime() { if [ "$RUNTIME" = ferry ]; then echo "--runtime io.containerd.ferry.v2"; fi; }
runtime_name() { if [ "$RUNTIME" = ferry ]; then echo io.containerd.ferry.v2; else echo io.containerd.runc.v2; fi; }
by_systemd() {
    if [ "$RUNTIME" != ferry ]; then echo --runc-systemd-cgroup; return; fi
    echo "SystemdCgroup = true" >"$D/options.toml"
    echo "--runtime-config-path $D/options.toml"
}

step_a_container_outlives_its_daemon() {
    run -d -- sleep 300
    down
    (PATH=$SUITE:$PATH; containerd --config $RUN/config.toml --log-level warn >>$RUN/log 2>&1 </dev/null & echo $! >$RUN/pid)
    eventually ctr version
    is RUNNING "$(status)"
    is inside "$(ctr task exec --exec-id a "$C" echo inside)"
    # Its end is told to the daemon that is there now.
    ctr events >"$D/events" 2>/dev/null &
    local events=$!
    ctr task kill -s KILL "$C"
    eventually grep -q "/tasks/exit.*$C" "$D/events"
    kill $events
    eventually gone "$C"
    ctr containers rm "$C"
}

step_a_shim_that_is_killed_takes_its_container_along() {
    local pid
    run -d -- sleep 300
    pid=$(ctr task ls | awk -v name="$C" '$1 == name { print $2 }')
    pkill -KILL -f "containerd-shim.*-id $C "
    eventually test ! -e "/proc/$pid"
    eventually gone "$C"
    ctr containers rm "$C"
    eventually test ! -e "/sys/fs/cgroup/default/$C"
}

step_output_waits_for_nobody() {
    # A client that goes away in the middle of it.
    run -d --mount "type=bind,src=$D,dst=/data,options=rbind" -- sh -c 'for n in 1 2 3 4 5; do echo $n; sleep 0.1; done; echo done >/data/done'
    eventually test -e "$D/done"
    eventually stopped
    has "$(ctr task rm "$C" 2>&1; echo $?)" 0
    ctr containers rm "$C"
}

step_a_checkpoint_that_ends_its_task() { skip "its client passes the wish to end to shims of runc's name alone"; }

step_the_configuration_that_install_makes_is_understood() {
    "$SUITE/ferry" install --engine containerd --native --config "$D/config.toml" --write
    containerd --config "$D/config.toml" config dump >"$D/dump"
    grep -A 20 'runtimes.ferry\]' "$D/dump" | grep "runtime_path = \"$SUITE/containerd-shim-ferry-v2\""
    grep -A 20 'runtimes.ferry\]' "$D/dump" | grep 'runtime_type = "io.containerd.ferry.v2"'
}

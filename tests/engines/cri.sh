# shellcheck shell=bash
# containerd's CRI plugin, called as the kubelet of a Kubernetes node calls it (`kubelet`), with a handler for a RuntimeClass that
# `ferry install` has added. Pods are on the host's network: for another a node has plugins, which make it without the runtime.

RUN=/run/suite-$ENGINE
BOX=localhost/box:latest
PAUSE=localhost/pause:latest
# What the handler for ferry is.
INSTALLED=(--binary "$SUITE/ferry")

kubelet() { "$SUITE/kubelet" "$@"; }
# call METHOD GET FIELD…
call() { kubelet $RUN/sock "$@"; }
ctr() { command ctr --address $RUN/sock --namespace k8s.io "$@"; }

up() {
    mkdir -p $RUN
    cat >$RUN/config.toml <<TOML
version = 2
root = "/var/lib/suite-$ENGINE"
state = "$RUN/state"
[grpc]
  address = "$RUN/sock"
[ttrpc]
  address = "$RUN/sock.ttrpc"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$PAUSE"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    conf_dir = "$RUN/none"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
TOML
    "$SUITE/ferry" install --engine containerd "${INSTALLED[@]}" --config $RUN/config.toml --write
    PATH=$SUITE:$PATH containerd --config $RUN/config.toml --log-level warn >$RUN/log 2>&1 </dev/null &
    echo $! >$RUN/pid
    until ctr version >/dev/null 2>&1; do kill -0 "$(cat $RUN/pid)"; sleep 0.2; done
    ctr images import "$IMAGE"
    "$SUITE/image" $RUN/pause.tar $PAUSE /bin/pause
    ctr images import $RUN/pause.tar
    # The plugin hears of images by events.
    until call Version 2 | grep containerd; do sleep 0.2; done
}

down() {
    kill "$(cat $RUN/pid)"
    while kill -0 "$(cat $RUN/pid)" 2>/dev/null; do sleep 0.1; done
}

clean() {
    local pod
    for pod in $(cat "$D"/pods); do
        call StopPodSandbox - "1=$pod"
        call RemovePodSandbox - "1=$pod"
    done
}

# Set POD_CONFIG to the fields of a pod's configuration: metadata, the directory of logs, and of linux the security context's
# namespaces: the host's network (2), and what else is given.
pod_config() { POD_CONFIG=('1{' "1=$C" "2=$C-uid" '3=default' '}' "3=$D/logs" '8{' '1=/suite' '2{' '1{' '1:2' "$@" '}' '}' '}'); }
# pod FIELD…: runs one; POD is its id.
pod() {
    mkdir -p "$D/logs"
    pod_config "$@"
    POD=$(call RunPodSandbox 1 '1{' "${POD_CONFIG[@]}" '}' "2=$RUNTIME")
    echo "$POD" >>"$D/pods"
}
# container NAME COMMAND… -- FIELD…: creates and starts one; ID is its id. Fields are more of its configuration.
container() {
    local name=$1 words=()
    shift
    while [ $# != 0 ] && [ "$1" != -- ]; do words+=("3=$1"); shift; done
    [ $# = 0 ] || shift
    ID=$(call CreateContainer 1 "1=$POD" '2{' '1{' "1=$name" '}' '2{' "1=$BOX" '}' "${words[@]}" "11=$name.log" "$@" '}' '3{' "${POD_CONFIG[@]}" '}')
    call StartContainer - "1=$ID"
}
# Of the container ID: 1 is running, 2 has ended.
state() { call ContainerStatus 1.3 "1=$ID"; }
in_state() { [ "$(state)" = "$1" ]; }
# inside GET COMMAND…: executes it; GET is 1 for its output, 2 for its errors, 3 for its status, which is absent when it is 0.
inside() {
    local get=$1 words=()
    shift
    for word; do words+=("2=$word"); done
    call ExecSync "$get" "1=$ID" "${words[@]}"
}
logged() { grep -q " stdout F $2\$" "$D/logs/$1.log"; }
remove() {
    call StopPodSandbox - "1=$POD"
    call RemovePodSandbox - "1=$POD"
}

step_a_pod_and_its_container() {
    local before
    before=$(census)
    pod
    is "" "$(call PodSandboxStatus 1.3 "1=$POD")"
    container first sh -c 'echo told; trap "exit 9" TERM; while :; do sleep 0.05; done'
    is 1 "$(state)"
    eventually logged first told
    is "$RUNTIME" "$(call PodSandboxStatus 1.9 "1=$POD")"
    call StopContainer - "1=$ID" 2:20
    eventually in_state 2
    is 9 "$(call ContainerStatus 1.7 "1=$ID")"
    call RemoveContainer - "1=$ID"
    remove
    eventually same "$before"
    is "$before" "$(census)"
}

step_a_missing_program_is_an_error() {
    pod
    fails 255 container first /no/such/program
    is 2 "$(state)"
    grep -i 'no such file\|not found' <(call ContainerStatus 1.11 "1=$ID")
    remove
}

step_exec_sync() {
    pod
    container first sleep 300
    is inside "$(inside 1 echo inside)"
    is oops "$(inside 2 sh -c 'echo oops >&2')"
    is 4 "$(inside 3 sh -c 'exit 4')"
    is "" "$(inside 3 true)"
    # In time, or not at all.
    fails 255 call ExecSync - "1=$ID" 2=sleep 2=300 3:1
    remove
}

step_exec_by_a_stream() {
    pod
    container first sleep 300
    local url
    # Standard output and error; then with input, and with a terminal.
    url=$(call Exec 1 "1=$ID" 2=sh 2=-c '2=echo out; echo err >&2; exit 5' 5:1 6:1)
    fails 5 kubelet stream "$url" >"$D/out" 2>"$D/err" </dev/null
    is "out err" "$(cat "$D/out" "$D/err" | xargs)"
    url=$(call Exec 1 "1=$ID" 2=sh 2=-c '2=read word; echo "got $word"' 4:1 5:1 6:1)
    is "got sent" "$(echo sent | kubelet stream "$url")"
    url=$(call Exec 1 "1=$ID" 2=tty 3:1 4:1 5:1)
    has "$(kubelet stream "$url" </dev/null)" /dev/pts/
    remove
}

step_limits_stats_and_update() {
    pod
    # linux, its resources: period, quota, shares, memory.
    container first sleep 300 -- '15{' '1{' 1:100000 2:50000 3:512 4:67108864 '}' '}'
    is "67108864 50000 100000" "$(inside 1 cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max | xargs)"
    [ "$(call ContainerStats 1.3.2.1 "1=$ID")" -gt 0 ]
    call UpdateContainerResources - "1=$ID" '2{' 1:100000 2:75000 4:100663296 '}'
    is "100663296 75000 100000" "$(inside 1 cat /sys/fs/cgroup/memory.max /sys/fs/cgroup/cpu.max | xargs)"
    remove
}

step_out_of_memory_is_seen() {
    pod
    container first dd if=/dev/zero of=/dev/null bs=64M count=1 -- '15{' '1{' 4:16777216 '}' '}'
    eventually in_state 2
    is "137 OOMKilled" "$(call ContainerStatus 1.7 "1=$ID") $(call ContainerStatus 1.10 "1=$ID")"
    remove
}

step_a_pod_shares_namespaces() {
    # Its processes see one another (pid: 0).
    pod 2:0
    container first sleep 301
    local first=$ID
    container second sleep 302
    is "$(call ExecSync 1 "1=$first" 2=readlink 2=/proc/self/ns/ipc)" "$(inside 1 readlink /proc/self/ns/ipc)"
    has "$(inside 1 ps)" "sleep 301"
    has "$(inside 1 ps)" "pause"
    is 1 "$(pgrep -c -f "containerd-shim.* -id $POD ")"
    is 0 "$(pgrep -c -f "containerd-shim.* -id $ID " || true)"
    remove
}

step_a_security_context() {
    pod
    # Of linux the security context: capabilities dropped and added, user, group, a root that is read only, no new privileges, and
    # the default seccomp profile.
    container first sleep 300 -- '15{' '2{' '1{' 1=CHOWN 2=ALL '}' '5{' 1:1000 '}' '12{' 1:1000 '}' 7:1 11:1 '15{' 1:0 '}' '}' '}'
    is "1000 1000" "$(inside 1 sh -c 'echo $(id -u) $(id -g)')"
    is "0000000000000001 1 2" "$(inside 1 awk '/^CapBnd|^NoNewPrivs|^Seccomp:/ { print $2 }' /proc/self/status | xargs)"
    has "$(inside 2 touch /x)" "Read-only"
    remove
}

step_volumes_and_environment() {
    echo content >"$D/file"
    pod
    container first sh -c 'echo "$(cat /data/file) $WORD $(pwd)"; sleep 300' -- 5=/tmp '6{' 1=WORD 2=given '}' '7{' 1=/data "2=$D" 3:1 '}'
    eventually logged first "content given /tmp"
    has "$(inside 2 touch /data/x)" "Read-only"
    remove
}

step_a_storm_of_execs() {
    pod
    container first sleep 300
    seq $((LONG ? 200 : 16)) | xargs -P 8 -I @ sh -c \
        "test \$('$SUITE/kubelet' $RUN/sock ExecSync 1 1=$ID 2=echo 2=@) = @ || { echo exec @ failed; exit 255; }"
    eventually alone
    remove
}
alone() { [ "$(inside 1 sh -c 'wc -l </sys/fs/cgroup/cgroup.procs')" -le 3 ]; }

# Shims, containers, mounts, cgroups and records, in numbers.
census() {
    echo "shims $(pgrep -c -f "containerd-shim.*suite-$ENGINE" || true) containers $(ctr containers ls -q | wc -l)" \
        "mounts $(grep -c "suite-$ENGINE" /proc/self/mountinfo || true)" \
        "cgroups $(find /sys/fs/cgroup/suite -mindepth 1 -type d 2>/dev/null | wc -l)" \
        "records $(find /run/containerd/{runc,ferry}/k8s.io -mindepth 1 -maxdepth 1 2>/dev/null | wc -l)"
}
same() { [ "$(census)" = "$1" ]; }

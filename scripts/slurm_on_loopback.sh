#!/bin/sh
# SLURM with one node on this machine's loopback, two jobs at a time: enough to try `--executor slurm` without a cluster.
#
#   apt-get install munge slurmctld slurmd slurm-client                      # Debian; as root, and so is this
#   eval "$(scripts/slurm_on_loopback.sh start /tmp/slurm)"                  # its commands find it by SLURM_CONF
#   mechrefusal measure checkpoints/demo --executor slurm --workers 2
#   scripts/slurm_on_loopback.sh stop /tmp/slurm
#
# Keys, states and logs are in that folder, and nothing else of the system is touched. Jobs are not accounted (no sacct).
set -eu

usage() { sed -n '2,9p' "$0" >&2; exit 2; }

[ $# -eq 2 ] || usage
folder=$2
node=$(uname -n)

begin() {
    [ "$(id -u)" = 0 ] || { echo "SLURM's daemons start jobs as their users: be root" >&2; exit 1; }
    for needed in munged slurmctld slurmd sbatch; do
        command -v "$needed" > /dev/null || { echo "no $needed: apt-get install munge slurmctld slurmd slurm-client" >&2; exit 1; }
    done
    mkdir -p "$folder/state" "$folder/spool"
    chmod 755 "$folder"
    dd if=/dev/urandom of="$folder/munge.key" bs=128 count=1 2> /dev/null
    chmod 400 "$folder/munge.key"
    port=$((20000 + $$ % 20000))
    cat > "$folder/slurm.conf" << CONF
ClusterName=loopback
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=5
InactiveLimit=0
NodeName=$node NodeAddr=127.0.0.1 CPUs=2 RealMemory=1000 State=UNKNOWN
PartitionName=loopback Nodes=$node Default=YES MaxTime=INFINITE State=UP
CONF
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/munged.log" --seed-file="$folder/munge.seed"
    export SLURM_CONF="$folder/slurm.conf"
    slurmctld -c >&2
    slurmd >&2
    tries=0
    until sinfo --noheader --format=%T 2> /dev/null | grep -q idle; do
        tries=$((tries + 1))
        [ $tries -lt 60 ] || { echo "the node did not come up in a minute: see $folder/*.log" >&2; exit 1; }
        sleep 1
    done
    echo "export SLURM_CONF='$folder/slurm.conf'"
}

end() {
    [ ! -f "$folder/slurm.conf" ] || SLURM_CONF="$folder/slurm.conf" scancel --user="$(id -u)" 2> /dev/null || true
    for daemon in slurmd slurmctld munged; do
        [ ! -f "$folder/$daemon.pid" ] || kill "$(cat "$folder/$daemon.pid")" 2> /dev/null || true
    done
}

case $1 in
    start) begin ;;
    stop) end ;;
    *) usage ;;
esac

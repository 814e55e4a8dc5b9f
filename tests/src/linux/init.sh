#!/bin/busybox sh
# The Linux guest's whole user space. Two processes beside the shell's children: one rewrites a tree of files
# in a tmpfs and verifies each file before it does so; one prints a heartbeat about every 20 ms, in the words
# of the bare-metal test guest:
#   hb=N t=MS writes=FILES sweeps=ROUNDS bad=FILES
# Kernel command line (the kernel hands unknown words to init as its environment):
#   corrupt=N   damage a file after its N-th write: `bad` must then grow
bb=/bin/busybox
$bb mkdir -p /work /proc
$bb mount -t proc none /proc
$bb mount -t tmpfs -o size=64m none /work
$bb mknod /dev/null c 1 3
cd /work || exit 1
# A pipe nobody writes to: reading it with a time-out sleeps without starting a process.
$bb mkfifo tick
exec 3<>tick
echo 0 0 0 >counters

DIRECTORIES='0 1 2 3'
FILES='0 1 2 3'
FILE_BYTES=524288

churn() {
    writes=0 sweeps=0 bad=0
    for d in $DIRECTORIES; do $bb mkdir d$d; done
    while :; do
        for d in $DIRECTORIES; do
            for f in $FILES; do
                path=d$d/f$f
                if [ $sweeps -gt 0 ]; then
                    $bb md5sum -c -s $path.sum || bad=$((bad + 1))
                fi
                $bb yes "sweep $sweeps of $path" | $bb head -c $FILE_BYTES >$path
                $bb md5sum $path >$path.sum
                writes=$((writes + 1))
                [ "$writes" = "$corrupt" ] && echo damaged >>$path
                echo $writes $sweeps $bad >counters
            done
        done
        sweeps=$((sweeps + 1))
    done
}

churn &
hb=0 writes=0 sweeps=0 bad=0
while :; do
    hb=$((hb + 1))
    # An empty file is being written: keep what was read before.
    read w s b <counters && writes=$w sweeps=$s bad=$b
    read up rest </proc/uptime
    echo "hb=$hb t=${up%.*}${up#*.}0 writes=$writes sweeps=$sweeps bad=$bad"
    read -t 0.02 nothing <&3
done

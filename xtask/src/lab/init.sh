#!/bin/busybox sh
# The lab's first process: loads modules, mounts the host's root folder and runs one job there.
# busybox is static; its programs are links in /bin.
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
read -r line < /proc/cmdline
for word in $line; do
  case $word in lab.job=*) job=${word#lab.job=} ;; esac
done

cd "/lib/modules/$(uname -r)" || poweroff -f
while read -r module; do
  insmod "$module" || echo "lab: the module $module was not loaded"
done < load
cd /

# Three ports to the host: the job's stdout, its stderr, and what becomes of it.
port() {
  for try in 1 2 3 4 5 6 7 8 9 10; do
    for entry in /sys/class/virtio-ports/*; do
      read -r name < "$entry/name"
      [ "$name" = "$1" ] && [ -c "/dev/${entry##*/}" ] && echo "/dev/${entry##*/}" && return
    done
    sleep 0.1
  done
  echo "lab: the port $1 is missing" > /dev/console
  poweroff -f
}
control=$(port lab.control)
stdout=$(port lab.stdout)
stderr=$(port lab.stderr)
exec 9<> "$control"
give_up() { echo "error $*" >&9; poweroff -f; sleep 60; }

mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=512000 hostroot /host ||
  give_up "the host's root folder could not be mounted over 9p"
mount -t tracefs t /sys/kernel/tracing
mount -t debugfs d /sys/kernel/debug
mount -t cgroup2 c /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm /dev/net /dev/mapper
ln -s /proc/self/fd /dev/fd
ln -s /proc/self/fd/0 /dev/stdin
ln -s /proc/self/fd/1 /dev/stdout
ln -s /proc/self/fd/2 /dev/stderr
# Opening one of these makes the kernel load the module behind it.
mknod /dev/net/tun c 10 200
mknod /dev/fuse c 10 229
mknod /dev/mapper/control c 10 236
mknod /dev/loop-control c 10 237
mknod /dev/vhost-net c 10 238
mknod /dev/vhost-vsock c 10 241
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
for folder in proc sys dev; do mount --rbind /$folder /host/$folder; done
mount -t tmpfs -o size=80%,mode=755 run /host/run
mkdir -p /host/run/lock /host/lib/modules
mount --bind /lib/modules /host/lib/modules
ip link set lo up
hostname lab
[ -f "/host$job/run" ] || give_up "the job $job/run is not on the host's root folder"

# Pipes in between, so that the job may open /dev/stdout anew.
mkfifo /stdout /stderr
cat /stdout > "$stdout" & first=$!
cat /stderr > "$stderr" & second=$!
echo booted >&9
# So that the host can tell a machine that stands still from a job that takes its time.
while sleep 5; do echo pulse; done >&9 &
# What the host asks for when a job takes too long: who waits for what, on the console.
while read -r word; do
  [ "$word" = tell ] || continue
  {
    echo "lab: what runs:"
    busybox ps -o pid,ppid,stat,time,args
    for task in /proc/[0-9]*/task/*; do
      read -r name < "$task/comm" && read -r where < "$task/wchan" && [ "$where" != 0 ] &&
        echo "lab: ${task#/proc/} $name waits in $where"
    done
  } > /dev/console 2> /dev/null
  echo told >&9
done <&9 &
chroot /host /bin/bash "$job/run" < /dev/null > /stdout 2> /stderr 9>&-
status=$?
# What the job left running may hold the pipes open: it has two seconds.
(sleep 2; kill $first $second) 2> /dev/null 9>&- &
wait $first $second
sync
echo "exit $status" >&9
poweroff -f

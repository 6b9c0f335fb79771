#!/bin/busybox sh
# The first program of a guest: mounts the host's files below an overlay in memory and goes on there. What fails ends it, and with it
# the guest; the console has its words.
set -e
/bin/busybox --install -s /bin
export PATH=/bin
. /settings     # RELEASE, MODULES, CONFIG, SCRATCH, WORKSPACE

mkdir -p /dev /proc /host /ram
mount -t devtmpfs dev /dev
mount -t proc proc /proc
while read -r module; do
    insmod "/modules/$module"
done </modules/order

mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=512000,cache=loose host /host
mount -t tmpfs -o size=75% ram /ram
mkdir /ram/upper /ram/work /ram/root
root=/ram/root
mount -t overlay -o lowerdir=/host,upperdir=/ram/upper,workdir=/ram/work overlay $root

# What is mounted below is of the guest, and where a test unmounts it there is nothing: not the same of the host.
for folder in proc sys dev run tmp; do
    mount -t tmpfs none $root/$folder
done
mount -t proc proc $root/proc
mount -t sysfs sys $root/sys
mount -t devtmpfs dev $root/dev
mkdir -p $root/dev/pts $root/dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts $root/dev/pts
mount -t tmpfs -o mode=1777 shm $root/dev/shm
ln -sf /proc/self/fd $root/dev/fd
for name in 0:stdin 1:stdout 2:stderr; do
    ln -sf "fd/${name%:*}" "$root/dev/${name#*:}"
done
mount -t tracefs tracefs $root/sys/kernel/tracing
mount -t debugfs debugfs $root/sys/kernel/debug
mount -t securityfs security $root/sys/kernel/security
mount -t bpf bpf $root/sys/fs/bpf
mount -t cgroup2 cgroup2 $root/sys/fs/cgroup
echo +memory >$root/sys/fs/cgroup/cgroup.subtree_control
mount -t tmpfs -o mode=755 run $root/run
mount -t tmpfs -o mode=1777 tmp $root/tmp
# A checkout in a folder that is the guest's own shows through it.
case $WORKSPACE in /tmp/* | /run/* | /dev/shm/*)
    mkdir -p "$root$WORKSPACE" /ram/upper-workspace /ram/work-workspace
    layers="lowerdir=/host$WORKSPACE,upperdir=/ram/upper-workspace,workdir=/ram/work-workspace"
    mount -t overlay -o "$layers" overlay "$root$WORKSPACE"
    ;;
esac

# The kernel's own modules and options, where programs look for them.
mkdir -p "$root/lib/modules/$RELEASE" $root/boot
mount --bind "$root$MODULES" "$root/lib/modules/$RELEASE"
cp "$root$CONFIG" "$root/boot/config-$RELEASE"

# An empty disk, for tests of what disks do.
mke2fs /dev/vda >/dev/null
mkdir -p "$root$SCRATCH"
mount -t ext4 /dev/vda "$root$SCRATCH"

mkdir $root/run/guest
cp /bin/busybox /script $root/run/guest/
ip link set lo up
hostname guest
cat >$root/run/guest/main <<'END'
# The port of the host's that is no console. Written through pipes: a program may not expect such a device as its output.
exec </dev/null >/dev/vport0p1 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
setsid /bin/sh /run/guest/script 2>&1 | /run/guest/busybox cat
echo "guest: finished"
/run/guest/busybox reboot -f
END
exec switch_root $root /run/guest/busybox sh /run/guest/main

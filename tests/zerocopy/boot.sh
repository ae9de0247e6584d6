# The host's file system, read-only, under a layer in memory; the NICs, by their MAC addresses, as
# zc0, zc1 ...; then session.sh, with that file system as root.
share=trans=virtio,version=9p2000.L,msize=512000
. /job/settings # drivers, nics

mount -t 9p -o $share,ro,cache=loose root /lower
mount -t tmpfs tmpfs /upper
mkdir /upper/changed /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/changed,workdir=/upper/work overlay /new
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /dev/shm
ln -s /proc/self/fd /dev/fd
ln -s fd/0 /dev/stdin
ln -s fd/1 /dev/stdout
ln -s fd/2 /dev/stderr
mount -t bpf bpf /sys/fs/bpf
mount -t debugfs debugfs /sys/kernel/debug
mount -t tracefs tracefs /sys/kernel/tracing
mount -t tmpfs tmpfs /new/run
mkdir -p /new/run/job /new/lib/modules
cp -r /lib/modules/* /new/lib/modules/
rm -f /new/sbin/modprobe
cp /bin/busybox /new/sbin/modprobe # the host may have none

hostname l2fwd-vm
ip link set lo up
for driver in $drivers; do
	modprobe $driver
done
tries=0
while [ $tries -lt 100 ] && [ "$(cat /sys/class/net/*/address | grep -c ^02:5a:43)" -lt $nics ]; do
	usleep 50000
	tries=$((tries + 1))
done
for folder in /sys/class/net/*; do
	address=$(cat $folder/address)
	case $address in
	02:5a:43:*)
		name=zc$((0x${address##*:}))
		ip link set ${folder##*/} name $name
		echo 1 >/proc/sys/net/ipv6/conf/$name/disable_ipv6
		ip link set $name up
		;;
	esac
done
for place in proc sys dev; do
	mount --move /$place /new/$place
done
mount --move /job /new/run/job
exec switch_root /new /bin/sh /run/job/session

#!/bin/busybox sh
# First process of the VM, from its initramfs: goes on with boot.sh, which each run brings along.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
for module in 9pnet_virtio 9p overlay; do
	modprobe $module
done
mount -t 9p -o trans=virtio,version=9p2000.L job /job
. /job/boot

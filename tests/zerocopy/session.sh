# In the VM, with the host's file system as root: runs the command, its output to the host as it
# comes, leaves its exit code, and ends the VM.
for name in /sys/class/virtio-ports/*/name; do
	port=${name%/name}
done
(
	. /run/job/command </dev/null
	echo $? >/run/status
) >"/dev/${port##*/}" 2>&1
cp /run/status /run/job/status
sync
echo b >/proc/sysrq-trigger # with -no-reboot the end of QEMU; a shutdown would take seconds
sleep 60

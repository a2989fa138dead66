/*
 * What most of the kernel's files include, and what most of its network code does: kernel/cc has the
 * compiler read it once. The first three are those that kbuild gives to every file.
 */
#include <linux/compiler-version.h>
#include <linux/kconfig.h>
#include <linux/compiler_types.h>
#include <linux/module.h>
#include <linux/slab.h>
#include <linux/fs.h>
#include <linux/mm.h>
#include <linux/device.h>
#include <linux/interrupt.h>
#include <linux/seq_file.h>
#include <linux/highmem.h>
#include <linux/bio.h>
#include <linux/blkdev.h>
#include <linux/cgroup.h>
#include <linux/memcontrol.h>
#include <linux/pagemap.h>
#include <linux/syscalls.h>
#include <linux/poll.h>
#include <linux/netdevice.h>
#include <net/sock.h>
#include <net/net_namespace.h>

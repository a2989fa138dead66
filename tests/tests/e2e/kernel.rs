//! What container engines ask of a kernel, read from the one that runs.

use std::collections::BTreeSet;

use super::Home;

/// What moby's `check-config.sh` calls generally necessary.
const MOBY: &str = "\
    NAMESPACES NET_NS PID_NS IPC_NS UTS_NS CGROUPS CGROUP_CPUACCT CGROUP_DEVICE CGROUP_FREEZER \
    CGROUP_SCHED CGROUP_BPF CPUSETS MEMCG KEYS POSIX_MQUEUE VETH BRIDGE BRIDGE_NETFILTER \
    IP_NF_FILTER IP_NF_MANGLE IP_NF_RAW IP_NF_NAT IP_NF_TARGET_MASQUERADE \
    IP6_NF_FILTER IP6_NF_MANGLE IP6_NF_RAW IP6_NF_NAT IP6_NF_TARGET_MASQUERADE NF_NAT \
    NETFILTER_XT_MATCH_ADDRTYPE NETFILTER_XT_MATCH_CONNTRACK NETFILTER_XT_MATCH_IPVS NETFILTER_XT_MARK";

/// What `k3s check-config` calls generally necessary beyond that.
const K3S: &str = "\
    CGROUP_PIDS SECCOMP IP_NF_TARGET_REJECT NETFILTER_XT_MATCH_COMMENT \
    NETFILTER_XT_MATCH_MULTIPORT NETFILTER_XT_MATCH_STATISTIC";

/// What either calls optional, for overlays, bridges, address translation, and limits of memory,
/// processors and processes.
const OPTIONAL: &str = "\
    OVERLAY_FS EXT4_FS EXT4_FS_POSIX_ACL EXT4_FS_SECURITY USER_NS SECCOMP_FILTER \
    BLK_CGROUP BLK_DEV_THROTTLING CGROUP_PERF CGROUP_HUGETLB CFS_BANDWIDTH FAIR_GROUP_SCHED \
    IP_NF_TARGET_REDIRECT NF_TABLES NFT_CT NFT_FIB NFT_FIB_IPV4 NFT_FIB_IPV6 NFT_MASQ NFT_NAT";

#[test]
fn what_container_engines_call_necessary_is_there() {
    let done = Home::new().sh("zcat /proc/config.gz; cat /sys/fs/cgroup/cgroup.controllers");
    let out = done.expect(0).out();
    let on: BTreeSet<_> =
        out.lines().filter_map(|line| line.strip_prefix("CONFIG_")?.strip_suffix("=y")).collect();
    let missing: Vec<_> = [MOBY, K3S, OPTIONAL]
        .iter()
        .flat_map(|list| list.split(' '))
        .filter(|name| !on.contains(name))
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    let controllers: BTreeSet<_> = out.lines().last().unwrap().split(' ').collect();
    for controller in ["cpu", "memory", "pids"] {
        assert!(controllers.contains(controller), "{controllers:?}");
    }
}

//! The ways out of containers that others' runtimes had.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use nelly_protocol::messages as m;
use serde_json::json;

use crate::bench::{World, context, reading, spec};

crate::scenarios!(
    an_exec_leads_nowhere_while_it_is_made,
    a_working_directory_by_a_descriptor_stays_inside,
    nothing_is_mounted_and_no_helper_of_the_kernel_named,
    an_image_whose_proc_is_a_link_is_masked_all_the_same,
    nothing_beside_the_container_is_seen_or_signalled,
);

/// A file of the host, as this test's processes reach it, by its path without the first slash.
fn of_the_host(world: &World) -> &str {
    world.image.trim_start_matches('/')
}

/// A process that is made in a running container is of the agent until it becomes the program:
/// whatever it still has open would be a way out for who follows its links (CVE-2019-5736,
/// CVE-2024-21626).
async fn an_exec_leads_nowhere_while_it_is_made(world: Arc<World>) {
    let host = of_the_host(&world);
    // By builtins alone, so that it is quick; a process that ends in the middle of a look is none.
    // What is followed for a process of the container's own is told too, or the look would prove
    // nothing.
    let look = format!(
        "up=../../../../../../../../../..; cd /; n=0; \
         while ! [ -e /stop ]; do for p in /proc/[0-9]*; do \
           case $p in /proc/1|/proc/$$) continue;; esac; n=$((n+1)); \
           for l in $p/cwd $p/root $p/fd/*; do \
             if [ -e $l/$up/{host} ] || [ -e $l/{host} ]; then echo \"out by $l\"; fi; \
             if [ $l = $p/cwd ] && [ -e $l/plain ]; then inside=1; fi; \
           done; \
           if [ -e $p/exe ] && ! [ $p/exe -ef /bin/busybox ] && [ -e $p/exe ]; then echo \"program by $p\"; fi; \
         [ -e /made ] && [ -z \"$before\" ] && before=$n; \
         done; done; echo \"looked $inside\"; [ $before -gt 0 ] && echo some"
    );
    let streams = world.streams();
    let watching = world.create_request("c", &spec(&["sh", "-c", &look]), &streams.stdio);
    world.create(&watching).await.unwrap();
    let said = reading(streams.stdout());
    drop((streams.stdin(), streams.stderr()));
    assert!(world.start("c").await.failure.is_none());
    for number in 0..20 {
        let exec = format!("e{number}");
        let request = world.exec_request("c", &exec, &["true"], &m::Stdio::new());
        assert!(world.exec(&request).await.unwrap().failure.is_none());
        world.wait("c", &exec).await;
    }
    // What was seen until now was seen of these.
    world.exec_sh("c", "made", "touch /made").await;
    let outcome = world.exec_sh("c", "last", "cd /data; sleep 0.5; touch /stop").await;
    assert_eq!(outcome.stderr, "");
    assert_eq!(said.await, "looked 1\nsome\n");
    world.wait("c", "").await;
}

/// A directory that the agent has open is no working directory for a program (CVE-2024-21626).
async fn a_working_directory_by_a_descriptor_stays_inside(world: Arc<World>) {
    let host = of_the_host(&world);
    world.idle("c").await;
    let look = format!("[ -e ../../../../../../../../../../{host} ] && echo out; [ -e {host} ] && echo out");
    let mut refused = 0;
    for number in 0..24 {
        for base in ["/proc/self/fd", "/proc/1/fd", "/dev/fd"] {
            let (exec, cwd) = (format!("e{number}{}", base.len()), format!("{base}/{number}"));
            let streams = world.streams();
            let mut request = world.exec_request("c", &exec, &["sh", "-c", &look], &streams.stdio);
            request.process =
                serde_json::to_vec(&json!({"args": ["sh", "-c", look], "cwd": cwd, "env": ["PATH=/bin"]}))
                    .unwrap();
            let failed = match world.exec(&request).await {
                Ok(started) => started.failure.is_some(),
                Err(_) => true,
            };
            if failed {
                refused += 1;
                continue;
            }
            let (stdout, _) = (reading(streams.stdout()), (streams.stdin(), streams.stderr()));
            world.wait("c", &exec).await;
            assert_eq!(stdout.await, "", "{cwd}");
        }
    }
    assert!(refused > 60, "only {refused} of 72 were refused");
}

/// `release_agent` (CVE-2022-0492), `core_pattern` and the like are run by the kernel outside of
/// all containers.
async fn nothing_is_mounted_and_no_helper_of_the_kernel_named(world: Arc<World>) {
    let script = "for kind in cgroup cgroup2 proc sysfs tmpfs overlay debugfs securityfs; do \
           mount -t $kind x /mnt 2> /dev/null && echo mounted $kind; done; \
         mount -o remount,rw /proc/sys 2> /dev/null && echo remounted; \
         mount -o remount,rw /sys 2> /dev/null && echo remounted; \
         mount --bind / /mnt 2> /dev/null && echo bound; \
         for file in kernel/core_pattern kernel/modprobe kernel/hotplug kernel/usermodehelper/bset \
             fs/binfmt_misc/register vm/drop_caches; do \
           (echo '|/bin/sh' > /proc/sys/$file) 2> /dev/null && echo wrote $file; done; \
         for file in /proc/sysrq-trigger /sys/kernel/uevent_helper /sys/fs/cgroup/cgroup.procs \
             /sys/fs/cgroup/release_agent /sys/power/state; do \
           (echo 0 > $file) 2> /dev/null && echo wrote $file; done; echo done";
    let mut spec = spec(&["sh", "-c", script]);
    // As the sandbox has it.
    spec["linux"]["readonlyPaths"] =
        json!(["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"]);
    let outcome = world.run_spec("c", &spec).await;
    assert_eq!(outcome.stdout, "done\n", "{outcome:?}");
}

/// What is hidden is hidden where the image has put `/proc` (CVE-2019-19921).
async fn an_image_whose_proc_is_a_link_is_masked_all_the_same(world: Arc<World>) {
    let place = tempfile::tempdir().unwrap();
    let (root, image) = (place.path().join("root"), place.path().join("image"));
    for directory in ["bin", "dev", "sys", "elsewhere"] {
        fs::create_dir_all(root.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "wc", "ls"] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    symlink("elsewhere", root.join("proc")).unwrap();
    make(&root, &image);
    let script = "(echo 1 > /proc/sys/vm/drop_caches) 2> /dev/null && echo wrote; \
         (echo 1 > /elsewhere/sys/vm/drop_caches) 2> /dev/null && echo wrote; \
         wc -c < /elsewhere/cpuinfo; [ -e /elsewhere/self ] || echo empty; echo done";
    let mut spec = spec(&["sh", "-c", script]);
    spec["linux"]["maskedPaths"] = json!(["/proc/cpuinfo"]);
    let streams = world.streams();
    let mut request = world.create_request("c", &spec, &streams.stdio);
    request.rootfs.mut_or_insert_default().device = image.to_str().unwrap().to_owned();
    world.create(&request).await.unwrap();
    let stdout = reading(streams.stdout());
    drop((streams.stdin(), streams.stderr()));
    let started = world.start("c").await;
    assert!(started.failure.is_none(), "{started:?}");
    world.wait("c", "").await;
    assert_eq!(stdout.await, "0\ndone\n");
}

fn make(root: &Path, image: &Path) {
    let made = Command::new("mkfs.erofs").arg("--quiet").arg(image).arg(root).output().unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

async fn nothing_beside_the_container_is_seen_or_signalled(world: Arc<World>) {
    world.idle("other").await;
    world.idle("c").await;
    let own = std::process::id();
    let script = format!(
        "cd /proc; for p in [0-9]*; do n=$((n+1)); done; [ $n -lt 6 ] || echo many; \
         kill -0 {own} 2> /dev/null && echo signalled; kill -9 -1; echo alone"
    );
    // It ends itself with all others, but for the container's first process.
    let outcome = world.exec_sh("c", "e", &script).await;
    assert_eq!(outcome.stdout, "alone\n", "{outcome:?}");
    let state = world.client.state(context(), &m::StateRequest::new()).await.unwrap();
    assert_eq!(state.containers.len(), 2);
    let outcome = world.exec_sh("other", "e", "echo here").await;
    assert_eq!(outcome.stdout, "here\n");
}

//! More processes in a running container.

use std::fs;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nelly_protocol::messages::{self as m, start_failure::Kind};
use nelly_protocol::service::AgentClient;
use ttrpc::Code;

use crate::bench::{Aborting, World, connect, context, dial, reading, refusal, writing};

crate::scenarios!(
    an_exec_is_in_the_container,
    execs_that_do_not_start,
    the_record_outlives_its_waits,
    a_wait_whose_connection_breaks_costs_nobody_the_exit_code,
    two_clients_at_once,
    a_background_process_does_not_hold_wait,
    a_thousand_leave_nothing,
    an_exec_ends_with_its_container,
    users_of_execs,
);

async fn an_exec_is_in_the_container(world: Arc<World>) {
    world.idle("a").await;
    let outcome = world
        .exec_sh("a", "e1", "echo $$ > /data/pid; ps -o pid,args; hostname; cat /proc/self/cgroup; exit 9")
        .await;
    assert_eq!(outcome.exit.exit_code, 9);
    assert!(outcome.stdout.contains("1 sleep 1000") && outcome.stdout.contains("box"), "{outcome:?}");
    assert!(outcome.stdout.lines().any(|line| line.ends_with(":/") || line.ends_with("::/")), "{outcome:?}");
    assert!(!outcome.stdout.contains("nelly-agent"), "{outcome:?}");
    let second = world.exec_sh("a", "e2", "cat /data/pid").await;
    assert_ne!(second.stdout.trim(), "1");
    assert!(second.stdout.trim().parse::<u32>().unwrap() < 100, "the pid is not the container's: {second:?}");
}

async fn execs_that_do_not_start(world: Arc<World>) {
    world.idle("a").await;
    for (program, kind) in
        [("nope", Kind::NOT_FOUND), ("/data/plain", Kind::NOT_EXECUTABLE), ("/data", Kind::NOT_EXECUTABLE)]
    {
        let streams = world.streams();
        let started = world.exec(&world.exec_request("a", "e", &[program], &streams.stdio)).await.unwrap();
        let failure = started.failure.as_ref().expect(program);
        assert_eq!((started.pid, failure.kind.unwrap()), (0, kind), "{failure:?}");
        assert!(started.streams.is_none(), "{started:?}");
        // The id is free again.
    }
    let mut request = world.exec_request("a", "e", &["true"], &m::Stdio::new());
    request.process = br#"{"args":["true"],"cwd":"/data/plain"}"#.to_vec();
    let failure = world.exec(&request).await.unwrap().failure.unwrap();
    assert!(failure.kind.unwrap() == Kind::OTHER && failure.message.contains("/data/plain"), "{failure:?}");
    request.process = b"{".to_vec();
    assert_eq!(refusal(world.exec(&request).await).0, Code::INVALID_ARGUMENT);
    request.container_id = "none".into();
    assert_eq!(refusal(world.exec(&request).await).0, Code::NOT_FOUND);
}

fn which(exec: &str) -> m::WaitRequest {
    m::WaitRequest { container_id: "a".into(), exec_id: exec.into(), ..Default::default() }
}

async fn the_record_outlives_its_waits(world: Arc<World>) {
    world.idle("a").await;
    let request = world.exec_request("a", "e", &["sh", "-c", "sleep 0.2; exit 3"], &m::Stdio::new());
    world.exec(&request).await.unwrap();
    assert_eq!(refusal(world.exec(&request).await).0, Code::ALREADY_EXISTS);
    let delete = m::DeleteExecRequest { container_id: "a".into(), exec_id: "e".into(), ..Default::default() };
    assert_eq!(refusal(world.client.delete_exec(context(), &delete).await).0, Code::FAILED_PRECONDITION);
    let (other, _serving) = client(&world).await;
    // Waits at once and later ones, of one client and another: all get the same.
    let asked = which("e");
    let (one, two) = tokio::join!(world.wait("a", "e"), other.wait(context(), &asked));
    assert_eq!((one.exit_code, &two.unwrap()), (3, &one));
    assert_eq!(other.wait(context(), &which("e")).await.unwrap(), one);
    assert_eq!(world.wait("a", "e").await, one);
    let (code, words) = refusal(world.signal("a", "e", libc::SIGTERM, false).await);
    assert!(code == Code::FAILED_PRECONDITION && words.contains("has ended"), "{words}");
    // Its id may be given again, and the new one is not the old one.
    let request = world.exec_request("a", "e", &["sh", "-c", "exit 4"], &m::Stdio::new());
    assert!(world.exec(&request).await.unwrap().failure.is_none());
    assert_eq!(world.wait("a", "e").await.exit_code, 4);
    world.client.delete_exec(context(), &delete).await.unwrap();
    assert_eq!(refusal(world.client.wait(context(), &which("e")).await).0, Code::NOT_FOUND);
    assert_eq!(refusal(world.client.delete_exec(context(), &delete).await).0, Code::NOT_FOUND);
}

async fn a_wait_whose_connection_breaks_costs_nobody_the_exit_code(world: Arc<World>) {
    world.idle("a").await;
    let streams = world.streams();
    let request = world.exec_request("a", "e", &["sh", "-c", "read word; exit 7"], &streams.stdio);
    world.exec(&request).await.unwrap();
    let (other, serving) = client(&world).await;
    let asked = which("e");
    let mut wait = Box::pin(other.wait(context(), &asked));
    // What is asked after it is answered, so it was heard.
    let later = m::StateRequest::new();
    tokio::select! {
        biased;
        answer = &mut wait => panic!("{answer:?}"),
        answer = other.state(context(), &later) => drop(answer.unwrap()),
    }
    drop(wait);
    drop((other, serving));
    drop(streams.stdin());
    assert_eq!(world.wait("a", "e").await.exit_code, 7);
    assert_eq!(world.wait("a", "e").await.exit_code, 7);
}

/// A connection that has said Hello.
async fn client(world: &World) -> (AgentClient, Aborting) {
    let (client, serving) = connect(&world.guest).await;
    let hello = m::HelloRequest { protocol: 1, ..Default::default() };
    client.hello(context(), &hello).await.unwrap();
    (client, serving)
}

/// A thousand execs, one after the other, each of which says on each stream what no other says, and
/// ends with a code of its own.
async fn a_thousand_of(world: Arc<World>, number: u32) {
    let (client, _serving) = client(&world).await;
    let stdio = m::Stdio { stdin: true, stdout: true, stderr: true, ..Default::default() };
    for n in 0..1000 {
        let (exec, code) = (format!("{number}-{n}"), number * 100 + n % 100);
        let script = format!("read word; echo out $word; echo err {exec} >&2; exit {code}");
        let request = world.exec_request("a", &exec, &["sh", "-c", &script], &stdio);
        let tokens = client.exec(context(), &request).await.unwrap().streams.unwrap();
        let stdout = reading(dial(&world.promises, &tokens.stdout));
        let stderr = reading(dial(&world.promises, &tokens.stderr));
        drop(writing(dial(&world.promises, &tokens.stdin), format!("{exec}\n").into(), true).await);
        let exit = client.wait(context(), &which(&exec)).await.unwrap();
        assert_eq!((exit.exit_code, stdout.await), (code, format!("out {exec}\n")));
        assert_eq!(stderr.await, format!("err {exec}\n"));
    }
}

async fn two_clients_at_once(world: Arc<World>) {
    world.idle("a").await;
    tokio::join!(a_thousand_of(world.clone(), 0), a_thousand_of(world.clone(), 1));
    // Records of both are there still, and no more than are kept.
    assert_eq!(world.wait("a", "0-999").await.exit_code, 99);
    assert_eq!(world.wait("a", "1-999").await.exit_code, 199);
    assert_eq!(refusal(world.client.wait(context(), &which("0-0")).await).0, Code::NOT_FOUND);
}

async fn a_background_process_does_not_hold_wait(world: Arc<World>) {
    world.idle("a").await;
    let begun = Instant::now();
    let outcome = world.exec_sh("a", "e", "(while :; do sleep 0.3; echo more; done) & echo first").await;
    assert_eq!((outcome.stdout.as_str(), outcome.exit.exit_code), ("first\n", 0));
    assert!(begun.elapsed() < Duration::from_secs(60));
    // It neither blocks nor dies of the stream that nobody reads any more.
    tokio::time::sleep(Duration::from_millis(800)).await;
    let outcome = world.exec_sh("a", "f", "ps -o args | grep -c '[w]hile'").await;
    let running: u32 = outcome.stdout.trim().parse().unwrap();
    assert!(running > 0, "it is gone");
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn resident_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

async fn a_thousand_leave_nothing(world: Arc<World>) {
    world.idle("a").await;
    let some = |count: usize| {
        let world = world.clone();
        async move {
            for n in 0..count {
                let exec = format!("e{n}");
                let request = world.exec_request("a", &exec, &["true"], &m::Stdio::new());
                assert!(world.exec(&request).await.unwrap().failure.is_none());
                assert_eq!(world.wait("a", &exec).await.exit_code, 0);
            }
        }
    };
    some(100).await;
    let streams = world.exec_sh("a", "with-streams", "echo x").await;
    assert_eq!(streams.stdout, "x\n");
    tokio::time::sleep(Duration::from_millis(50)).await;
    let before = (open_descriptors(), resident_kib());
    some(900).await;
    let outcome = world.exec_sh("a", "last", "ls -d /proc/[0-9]* | wc -l").await;
    // The first process, the shell, ls and wc.
    assert!(outcome.stdout.trim().parse::<u32>().unwrap() <= 4, "{outcome:?}");
    for _ in 0..200 {
        if open_descriptors() == before.0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(open_descriptors(), before.0, "descriptors are left");
    assert!(resident_kib() < before.1 + 512, "{} KiB became {}", before.1, resident_kib());
    let state = world.client.state(context(), &m::StateRequest::new()).await.unwrap();
    assert!(state.containers[0].exec_ids.is_empty());
    let inside = fs::read_to_string(world.cgroup.join("a/container/root/cgroup.procs")).unwrap();
    assert_eq!(inside.lines().count(), 1);
    // The container's, the one in that, and no exec's.
    let counts = fs::read_to_string(world.cgroup.join("a/cgroup.stat")).unwrap();
    assert!(counts.contains("nr_descendants 2\n"), "{counts}");
}

async fn an_exec_ends_with_its_container(world: Arc<World>) {
    world.idle("a").await;
    world.exec(&world.exec_request("a", "e", &["sleep", "1000"], &m::Stdio::new())).await.unwrap();
    world.signal("a", "", libc::SIGKILL, false).await.unwrap();
    assert_eq!(world.wait("a", "").await.exit_code, 137);
    assert_eq!(world.wait("a", "e").await.exit_code, 137);
    let exec = world.exec_request("a", "f", &["true"], &m::Stdio::new());
    assert_eq!(refusal(world.exec(&exec).await).0, Code::FAILED_PRECONDITION);
}

async fn users_of_execs(world: Arc<World>) {
    world.idle("a").await;
    let streams = world.streams();
    let mut request = world.exec_request("a", "e", &["sh", "-c", "id -u; id -g; echo $HOME"], &streams.stdio);
    request.user = "app".into();
    world.exec(&request).await.unwrap();
    let stdout = crate::bench::reading(streams.stdout());
    world.wait("a", "e").await;
    assert_eq!(stdout.await, "1000\n1001\n/home/app\n");
    let mut request = world.exec_request("a", "f", &["true"], &m::Stdio::new());
    request.user = "stranger".into();
    let failure = world.exec(&request).await.unwrap().failure.unwrap();
    assert!(failure.message.contains("stranger"), "{failure:?}");
}

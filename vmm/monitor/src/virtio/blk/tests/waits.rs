//! Requests that wait for the host, served side by side by a crew of threads.

use super::*;

/// A disk whose reads and flushes wait until some are there at once.
struct Together {
    inner: RawDisk,
    there: Arc<Barrier>,
}

impl ReadAt for Together {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        self.there.wait();
        self.inner.read_at(into, offset)
    }
}

impl Disk for Together {
    fn read_only(&self) -> bool {
        false
    }
    fn block_size(&self) -> u32 {
        512
    }
    fn write_at(&self, from: &dyn WriteBuffer, offset: u64) -> io::Result<usize> {
        self.inner.write_at(from, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.there.wait();
        Ok(())
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.inner.write_zeroes(offset, len, unmap)
    }
}

/// Threads of a crew, which end with it.
struct Threads(Crew, Vec<std::thread::JoinHandle<()>>);

impl Threads {
    fn new(count: usize) -> Self {
        let crew = Crew::default();
        let handles = (0..count).map(|_| {
            let crew = crew.clone();
            std::thread::spawn(move || crew.serve())
        });
        let handles: Vec<_> = handles.collect();
        while crew.size() < count {
            std::thread::yield_now();
        }
        Self(crew, handles)
    }

    fn end(self) {
        self.0.end();
        self.1.into_iter().for_each(|handle| handle.join().unwrap());
    }
}

fn together(there: &Arc<Barrier>, threads: &Threads) -> (Block, File) {
    let mut file = tempfile::tempfile().unwrap();
    (0..64).for_each(|sector| file.write_all(&[sector; 512]).unwrap());
    let other = file.try_clone().unwrap();
    let disk = Together { inner: RawDisk::new(file, false).unwrap(), there: Arc::clone(there) };
    (Block::new(Box::new(disk), "wide").with_crew(threads.0.clone()), other)
}

#[test]
fn reads_and_flushes_wait_for_the_host_side_by_side() {
    let threads = Threads::new(3);
    let (mut device, mut file) = together(&Arc::new(Barrier::new(3)), &threads);
    let mut bench = Bench::new(&mut device, 64, None);
    // Six that come in threes, and a write that passes them.
    for sector in 0..5 {
        bench.queues[0].add(&[Part::Read(header(spec::T_IN, sector)), Part::Write(512), Part::Write(1)]);
    }
    bench.queues[0].add(&[Part::Read(header(spec::T_FLUSH, 0)), Part::Write(1)]);
    bench.queues[0].add(&[Part::Read(header(spec::T_OUT, 63)), Part::Read(vec![9; 512]), Part::Write(1)]);
    bench.kick(0);
    let mut found = Vec::new();
    while found.len() < 7 {
        while let Some(used) = bench.queues[0].used() {
            assert_eq!(used.data.last(), Some(&spec::S_OK));
            found.push(if used.data.len() == 513 { used.data[0] } else { 99 });
        }
        if found.len() < 7 {
            bench.wait(Duration::from_secs(60));
        }
    }
    found.sort_unstable();
    assert_eq!(found, [0, 1, 2, 3, 4, 99, 99]);
    assert_eq!(contents(&mut file)[63 * 512..], [9; 512]);
    assert_eq!(bench.interrupt.faults(), 0);
    drop(bench.stop());
    drop(bench);
    threads.end();
}

#[test]
fn a_pause_waits_for_what_is_out_and_leaves_nothing_in_flight() {
    let threads = Threads::new(2);
    let barrier = Arc::new(Barrier::new(3));
    let (mut device, _) = together(&barrier, &threads);
    let mut bench = Bench::new(&mut device, 64, None);
    for sector in 0..2 {
        bench.queues[0].add(&[Part::Read(header(spec::T_IN, sector)), Part::Write(512), Part::Write(1)]);
    }
    bench.kick(0);
    // Neither can end before this thread is there, too.
    assert_eq!(bench.queues[0].used(), None);
    let third = std::thread::spawn(move || barrier.wait());
    let Returned { state, queues } = bench.stop();
    third.join().unwrap();
    assert!(queues[0].as_ref().unwrap().position().is_quiet());
    device.reclaim(state);
    for _ in 0..2 {
        assert_eq!(bench.queues[0].used().unwrap().data.last(), Some(&spec::S_OK));
    }
    let features = device.features() | feature::EVENT_IDX | feature::VERSION_1;
    bench.resume(&mut device, features, queues);
    assert_eq!(
        status(&mut bench, vec![Part::Read(header(spec::T_OUT, 0)), Part::Read(vec![0; 512])]),
        spec::S_OK
    );
    // What is broken is a fault of the device, though another thread found it.
    bench.queues[0].add(&[Part::Read(header(spec::T_IN, 0))]);
    bench.kick(0);
    while !bench.interrupt.needs_reset() {
        bench.wait(Duration::from_secs(60));
    }
    drop(bench.stop());
    drop(bench);
    threads.end();
}

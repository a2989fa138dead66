//! Disks of a host that is slow, fails, or is full.

use super::*;

/// A disk that moves a few bytes at a time, counts flushes, and fails on demand.
struct Reluctant {
    inner: RawDisk,
    flushes: Arc<AtomicUsize>,
    fails: bool,
}

impl Reluctant {
    fn fail(&self) -> io::Result<()> {
        if self.fails { Err(io::Error::other("a scratch")) } else { Ok(()) }
    }
}

impl ReadAt for Reluctant {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    /// At most 100 bytes: what a file may do to us.
    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        self.fail()?;
        let some = into.size().min(100);
        self.inner.read_at(&mut Within::new(into, 0..some), offset)
    }
}

impl Disk for Reluctant {
    fn read_only(&self) -> bool {
        false
    }
    fn block_size(&self) -> u32 {
        4096
    }
    fn write_at(&self, from: &dyn WriteBuffer, offset: u64) -> io::Result<usize> {
        self.fail()?;
        let mut some = vec![0; from.size().min(100)];
        from.copy_out(0, &mut some);
        self.inner.write_at(&some, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        self.fail()
    }
    fn discard(&self, offset: u64, len: u64) -> io::Result<()> {
        self.inner.discard(offset, len)
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.inner.write_zeroes(offset, len, unmap)
    }
}

fn reluctant(fails: bool) -> (Block, Arc<AtomicUsize>) {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[9; 4096]).unwrap();
    let flushes = Arc::new(AtomicUsize::new(0));
    let disk = Reluctant { inner: RawDisk::new(file, false).unwrap(), flushes: flushes.clone(), fails };
    (Block::new(Box::new(disk), "slow"), flushes)
}

#[test]
fn short_reads_and_writes_are_continued() {
    let (mut device, _) = reluctant(false);
    let mut bench = Bench::new(&mut device, 64, None);
    let data: Vec<u8> = (0..1024u32).map(|i| u8::try_from(i % 249).unwrap()).collect();
    let write = vec![
        Part::Read(header(spec::T_OUT, 1)),
        Part::Read(data[..300].to_vec()),
        Part::Read(data[300..].to_vec()),
    ];
    assert_eq!(status(&mut bench, write), spec::S_OK);
    let used = request(&mut bench, &[Part::Read(header(spec::T_IN, 1)), Part::Write(1024), Part::Write(1)]);
    assert_eq!(used.data[..1024], data);
}

#[test]
fn host_errors_are_the_requests_own() {
    let (mut device, _) = reluctant(true);
    let mut bench = Bench::new(&mut device, 64, None);
    assert_eq!(status(&mut bench, vec![Part::Read(header(spec::T_IN, 0)), Part::Write(512)]), spec::S_IOERR);
    assert_eq!(
        status(&mut bench, vec![Part::Read(header(spec::T_OUT, 0)), Part::Read(vec![0; 512])]),
        spec::S_IOERR
    );
    assert_eq!(status(&mut bench, vec![Part::Read(header(spec::T_FLUSH, 0))]), spec::S_IOERR);
    assert_eq!(bench.interrupt.faults(), 0);
}

#[test]
fn writes_through_for_a_driver_that_will_not_flush() {
    for (features, flushes) in [(spec::F_FLUSH, 0), (0, 1)] {
        let (mut device, counter) = reluctant(false);
        let mut bench = Bench::new(&mut device, 64, Some(feature::VERSION_1 | features));
        assert_eq!(
            status(&mut bench, vec![Part::Read(header(spec::T_OUT, 0)), Part::Read(vec![0; 512])]),
            spec::S_OK
        );
        assert_eq!(counter.load(Ordering::SeqCst), flushes);
    }
}

/// A disk on a host whose file system is full while `full` says so: of a request it writes no more
/// than its first 512 bytes.
struct Full {
    inner: RawDisk,
    full: Arc<AtomicBool>,
}

impl Full {
    fn room(&self) -> io::Result<()> {
        if self.full.load(Ordering::SeqCst) { Err(io::ErrorKind::StorageFull.into()) } else { Ok(()) }
    }
}

impl ReadAt for Full {
    fn len(&self) -> u64 {
        self.inner.len()
    }
    fn read_at(&self, into: &mut dyn ReadBuffer, offset: u64) -> io::Result<usize> {
        self.inner.read_at(into, offset)
    }
}

impl Disk for Full {
    fn read_only(&self) -> bool {
        false
    }
    fn block_size(&self) -> u32 {
        512
    }
    fn write_at(&self, from: &dyn WriteBuffer, offset: u64) -> io::Result<usize> {
        if offset.is_multiple_of(1024) {
            let mut some = vec![0; from.size().min(512)];
            from.copy_out(0, &mut some);
            return self.inner.write_at(&some, offset);
        }
        self.room()?;
        self.inner.write_at(from, offset)
    }
    fn flush(&self) -> io::Result<()> {
        self.room()
    }
    fn discard(&self, _: u64, _: u64) -> io::Result<()> {
        self.room()
    }
    fn write_zeroes(&self, offset: u64, len: u64, unmap: bool) -> io::Result<()> {
        self.room()?;
        self.inner.write_zeroes(offset, len, unmap)
    }
}

#[test]
fn what_the_host_has_no_room_for_waits_and_nothing_fails() {
    let full = Arc::new(AtomicBool::new(true));
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&[9; 8192]).unwrap();
    let mut other = file.try_clone().unwrap();
    let disk = Full { inner: RawDisk::new(file, false).unwrap(), full: Arc::clone(&full) };
    let mut device = Block::new(Box::new(disk), "storage");
    let mut bench = Bench::new(&mut device, 64, None);
    let write = [Part::Read(header(spec::T_OUT, 2)), Part::Read(vec![7; 1024]), Part::Write(1)];
    let zero = [Part::Read(header(spec::T_WRITE_ZEROES, 0)), Part::Read(range(0, 1, 0)), Part::Write(1)];
    let discard = [Part::Read(header(spec::T_DISCARD, 0)), Part::Read(range(9, 1, 0)), Part::Write(1)];
    let read = [Part::Read(header(spec::T_IN, 2)), Part::Write(1024), Part::Write(1)];
    let expect_waiting = |bench: &mut Bench| {
        for _ in 0..3 {
            bench.kick(0);
            assert_eq!(bench.queues[0].used(), None);
        }
        let tally = bench.interrupt.tally();
        assert!(tally.waits_for_room() && !bench.interrupt.needs_reset());
        assert_eq!(tally.faults().last().map(|fault| fault.kind), Some("no_room"));
    };
    for parts in [&write[..], &zero, &discard, &read] {
        bench.queues[0].add(parts);
    }
    expect_waiting(&mut bench);
    assert_eq!(bench.interrupt.tally().faults()[0].count, 1, "counted once, however often it is tried");
    // A driver that comes back after a pause or a reset finds nothing in flight.
    let Returned { state, queues } = bench.stop();
    assert!(queues[0].as_ref().unwrap().position().is_quiet());
    assert!(!bench.interrupt.tally().waits_for_room());
    device.reclaim(state);
    let features = device.features() | feature::EVENT_IDX | feature::VERSION_1;
    bench.resume(&mut device, features, queues);
    expect_waiting(&mut bench);
    full.store(false, Ordering::SeqCst);
    // Nobody rings: the timer brings it.
    bench.wait(Duration::from_secs(60));
    for expected in [1, 1, 1, 1025] {
        let used = bench.queues[0].used().expect("done by now");
        assert_eq!((used.len, used.data.last()), (expected, Some(&spec::S_OK)));
    }
    assert!(!bench.interrupt.tally().waits_for_room());
    assert_eq!(contents(&mut other)[..2560], [&[0; 512][..], &[9; 512], &[7; 1024], &[9; 512]].concat());
    // A flush that fails is told, as it cannot be made up for.
    full.store(true, Ordering::SeqCst);
    assert_eq!(status(&mut bench, vec![Part::Read(header(spec::T_FLUSH, 0))]), spec::S_IOERR);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Any request, sound or not, leaves the device answering; data reads back as a model of the
    /// disk has it.
    #[test]
    fn the_disk_is_a_disk(steps in prop::collection::vec((0..6u32, 0..300u64, 0..9u32, any::<u8>(), 1..700u32), 1..30)) {
        let (mut device, mut file) = disk(false);
        let mut model = contents(&mut file);
        let mut bench = Bench::new(&mut device, 64, None);
        for (kind, sector, count, fill, cut) in steps {
            let (at, len) = (usize::try_from(sector).unwrap() * 512, usize::try_from(count).unwrap() * 512);
            let fits = at + len <= model.len();
            let span = at..at + len;
            match kind {
                0 => {
                    let data = vec![fill; len];
                    let split = usize::try_from(cut).unwrap().min(len);
                    let parts = vec![Part::Read(header(spec::T_OUT, sector)), Part::Read(data[..split].to_vec()), Part::Read(data[split..].to_vec())];
                    let done = status(&mut bench, parts);
                    prop_assert_eq!(done, if fits { spec::S_OK } else { spec::S_IOERR });
                    if fits { model[span].fill(fill) }
                }
                1 | 2 => {
                    let bytes = u32::try_from(len).unwrap();
                    let split = cut.min(bytes);
                    let used = request(&mut bench, &[Part::Read(header(spec::T_IN, sector)), Part::Write(split), Part::Write(bytes - split), Part::Write(1)]);
                    if fits {
                        prop_assert_eq!(&used.data[..len], &model[span]);
                    }
                    prop_assert_eq!(used.data[len], if fits { spec::S_OK } else { spec::S_IOERR });
                }
                3 => {
                    let parts = vec![Part::Read(header(spec::T_WRITE_ZEROES, 0)), Part::Read(range(sector, count, u32::from(fill & 1)))];
                    prop_assert_eq!(status(&mut bench, parts), if fits { spec::S_OK } else { spec::S_IOERR });
                    if fits { model[span].fill(0) }
                }
                4 => {
                    let parts = vec![Part::Read(header(u32::from(fill), sector)), Part::Read(vec![fill; usize::try_from(cut).unwrap()])];
                    if fill > 1 && fill != 11 && fill != 13 { status(&mut bench, parts); }
                }
                _ => {
                    let returned = bench.stop();
                    device.reclaim(returned.state);
                    let features = device.features() | feature::INDIRECT_DESC | feature::EVENT_IDX | feature::VERSION_1;
                    bench.resume(&mut device, features, returned.queues);
                }
            }
        }
        prop_assert_eq!(bench.interrupt.faults(), 0);
        prop_assert_eq!(contents(&mut file), model);
    }
}

use std::fs;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::state::Timestamp;

const NOW: Timestamp = Timestamp::from_unix_ns(1_800_000_000_000_000_000);
const MIB: usize = 1 << 20;

fn log(path: &Path) -> TrustedDir {
    TrustedDir::make(path).unwrap()
}

/// What a reader gives, per stream.
fn contents(mut reader: LogReader) -> ([Vec<u8>; 2], ReadReport) {
    let mut found = [Vec::new(), Vec::new()];
    reader
        .read::<StateError>(|record| {
            let stream = &mut found[record.stream.index()];
            stream.extend_from_slice(record.content);
            stream.extend(record.ends_line.then_some(b'\n'));
            Ok(())
        })
        .unwrap();
    (found, reader.report())
}

fn whole(path: &Path) -> [Vec<u8>; 2] {
    let (found, report) = contents(LogReader::new(log(path)));
    assert_eq!(report, ReadReport::default());
    found
}

fn bytes_on_disk(path: &Path) -> u64 {
    fs::read_dir(path).unwrap().map(|entry| entry.unwrap().metadata().unwrap().len()).sum()
}

/// The only file of a short log.
fn only(path: &Path) -> std::path::PathBuf {
    path.join(segment_name(1))
}

#[test]
fn records_are_in_the_form_of_the_cri_and_the_last_line_is_ended() {
    let top = tempfile::tempdir().unwrap();
    let mut writer = LogWriter::open(log(top.path()), DEFAULT_CAP_BYTES, NOW).unwrap();
    writer.write(Stream::Stdout, b"one\n\ntw", NOW);
    writer.write(Stream::Stderr, b"oops\n", NOW);
    writer.write(Stream::Stdout, b"o", NOW);
    for stream in Stream::ALL {
        writer.finish(stream, NOW);
        writer.finish(stream, NOW);
    }
    let text = fs::read_to_string(only(top.path())).unwrap();
    let expected = ["stdout F one", "stdout F ", "stdout P tw", "stderr F oops", "stdout P o", "stdout F "];
    let expected: String = expected.map(|rest| format!("{NOW} {rest}\n")).concat();
    assert_eq!(text, expected);
    assert_eq!(whole(top.path()), [b"one\n\ntwo\n".to_vec(), b"oops\n".to_vec()]);
}

#[test]
fn further_tags_are_passed_over_and_damaged_lines_are_counted() {
    let top = tempfile::tempdir().unwrap();
    let long = "x".repeat(100_000);
    let lines = [
        format!("{NOW} stdout F:more:tags kept\n"),
        "no record\n".into(),
        format!("{NOW} stdin F x\n"),
        format!("{NOW} stdout Q x\n"),
        format!("{NOW} stdout F {long}\n"),
        "\0".repeat(5000) + "\n",
        format!("{NOW} stderr P also kept"),
        "\n".into(),
    ];
    log(top.path());
    fs::write(only(top.path()), lines.concat()).unwrap();
    let (found, report) = contents(LogReader::new(log(top.path())));
    assert_eq!(found, [b"kept\n".to_vec(), b"also kept".to_vec()]);
    assert_eq!(report, ReadReport { damaged_lines: 5, missed_segments: 0 });
}

/// One action of a holder.
#[derive(Clone, Debug)]
enum Act {
    Write(Stream, Vec<u8>),
    Finish(Stream),
    /// It is killed, and another one goes on.
    Reopen,
}

fn stream() -> impl Strategy<Value = Stream> {
    prop_oneof![Just(Stream::Stdout), Just(Stream::Stderr)]
}

fn output() -> impl Strategy<Value = Vec<u8>> {
    let letter = prop_oneof![4 => any::<u8>(), 1 => Just(b'\n'), 1 => Just(b' ')];
    prop_oneof![
        8 => proptest::collection::vec(letter, 0..80),
        // Longer than a record.
        1 => (MAX_CONTENT - 2..3 * MAX_CONTENT, any::<u8>()).prop_map(|(length, byte)| vec![byte; length]),
    ]
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        8 => (stream(), output()).prop_map(|(stream, bytes)| Act::Write(stream, bytes)),
        1 => stream().prop_map(Act::Finish),
        1 => Just(Act::Reopen),
    ];
    proptest::collection::vec(act, 0..60)
}

/// Does what holders do, and says what should be found.
fn perform(path: &Path, acts: &[Act]) -> [Vec<u8>; 2] {
    let open = || LogWriter::open(log(path), MIN_CAP_BYTES, NOW).unwrap();
    let (mut writer, mut expected) = (open(), [Vec::new(), Vec::new()]);
    let end = |written: &mut Vec<u8>| {
        if written.last().is_some_and(|last| *last != b'\n') {
            written.push(b'\n');
        }
    };
    for act in acts {
        match act {
            Act::Write(stream, bytes) => {
                writer.write(*stream, bytes, NOW);
                expected[stream.index()].extend_from_slice(bytes);
            }
            Act::Finish(stream) => {
                writer.finish(*stream, NOW);
                end(&mut expected[stream.index()]);
            }
            Act::Reopen => {
                drop(writer);
                writer = open();
                expected.iter_mut().for_each(end);
            }
        }
        assert!(bytes_on_disk(path) <= MIN_CAP_BYTES);
    }
    assert_eq!(writer.lost_bytes(), 0);
    expected
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn what_is_read_is_what_was_written_but_for_what_gave_way(acts in acts()) {
        let top = tempfile::tempdir().unwrap();
        let expected = perform(top.path(), &acts);
        let found = whole(top.path());
        for (found, expected) in found.iter().zip(&expected) {
            prop_assert!(expected.ends_with(found));
        }
        if segments(&log(top.path())).unwrap().first() == Some(&1) {
            prop_assert!(found == expected);
        }
    }

    #[test]
    fn a_tail_is_the_last_lines_of_both_streams(acts in acts(), lines in 0_u64..40) {
        let top = tempfile::tempdir().unwrap();
        perform(top.path(), &acts);
        // Line by line, in the order in which they end.
        let (mut ended, mut open) = (Vec::new(), [None::<Vec<u8>>, None]);
        LogReader::new(log(top.path())).read::<StateError>(|record| {
            open[record.stream.index()].get_or_insert_default().extend_from_slice(record.content);
            if record.ends_line {
                ended.push((record.stream, open[record.stream.index()].take().unwrap(), true));
            }
            Ok(())
        }).unwrap();
        for stream in Stream::ALL {
            ended.extend(open[stream.index()].take().map(|line| (stream, line, false)));
        }
        let passed = ended.len().saturating_sub(usize::try_from(lines).unwrap());
        let mut expected = [Vec::new(), Vec::new()];
        for (stream, line, is_ended) in &ended[passed..] {
            expected[stream.index()].extend_from_slice(line);
            expected[stream.index()].extend(is_ended.then_some(b'\n'));
        }
        let (found, _) = contents(LogReader::tail(log(top.path()), lines).unwrap());
        // A line that is longer than a segment may begin in its middle.
        let short = segments(&log(top.path())).unwrap().len() <= 2;
        for (found, expected) in found.iter().zip(&expected) {
            prop_assert!(found == expected || !short && expected.ends_with(found));
        }
    }
}

#[test]
fn a_torn_record_is_tolerated_wherever_it_is_torn() {
    let top = tempfile::tempdir().unwrap();
    let mut writer = LogWriter::open(log(top.path()), DEFAULT_CAP_BYTES, NOW).unwrap();
    writer.write(Stream::Stdout, b"first\nsecond\n", NOW);
    let text = fs::read(only(top.path())).unwrap();
    let second = text.iter().position(|byte| *byte == b'\n').unwrap() + 1;
    for torn in second..text.len() {
        fs::write(only(top.path()), &text[..torn]).unwrap();
        let (found, _) = contents(LogReader::new(log(top.path())));
        assert_eq!(found[0], b"first\n");
        let mut writer = LogWriter::open(log(top.path()), DEFAULT_CAP_BYTES, NOW).unwrap();
        writer.write(Stream::Stdout, b"third\n", NOW);
        assert_eq!(whole(top.path())[0], b"first\nthird\n");
    }
}

#[test]
fn a_flood_stays_below_the_cap_and_its_end_is_kept() {
    let top = tempfile::tempdir().unwrap();
    let mut writer = LogWriter::open(log(top.path()), MIN_CAP_BYTES, NOW).unwrap();
    let line = |number: usize| format!("line {number} {}\n", "x".repeat(300));
    let mut written = 0;
    let mut number = 0;
    // The ring goes round thirty times.
    while written < 30 * MIB {
        let chunk: String = (number..number + 200).map(line).collect();
        writer.write(Stream::Stdout, chunk.as_bytes(), NOW);
        (written, number) = (written + chunk.len(), number + 200);
        assert!(bytes_on_disk(top.path()) <= MIN_CAP_BYTES);
    }
    let found = String::from_utf8(whole(top.path())[0].clone()).unwrap();
    assert!(found.len() > MIB * 3 / 4, "{}", found.len());
    let kept = found.lines().count();
    let expected: String = (number - kept..number).map(line).collect();
    assert!(found == expected);
    // With a smaller or a larger cap it goes on.
    drop(writer);
    let mut writer = LogWriter::open(log(top.path()), 4 * MIN_CAP_BYTES, NOW).unwrap();
    writer.write(Stream::Stdout, "y\n".repeat(MIB).as_bytes(), NOW);
    assert!(bytes_on_disk(top.path()) <= 4 * MIN_CAP_BYTES && bytes_on_disk(top.path()) > 3 * MIN_CAP_BYTES);
    drop(writer);
    let mut writer = LogWriter::open(log(top.path()), 0, NOW).unwrap();
    writer.write(Stream::Stdout, "z\n".repeat(MIB / 8).as_bytes(), NOW);
    assert!(bytes_on_disk(top.path()) <= MIN_CAP_BYTES);
}

#[test]
fn a_reader_that_is_overtaken_says_so() {
    let top = tempfile::tempdir().unwrap();
    let mut writer = LogWriter::open(log(top.path()), MIN_CAP_BYTES, NOW).unwrap();
    writer.write(Stream::Stdout, b"first\n", NOW);
    let mut reader = LogReader::new(log(top.path()));
    let mut last = Vec::new();
    let mut read = |reader: &mut LogReader| {
        reader
            .read::<StateError>(|record| {
                last = record.content.to_vec();
                Ok(())
            })
            .unwrap();
        last.clone()
    };
    assert_eq!(read(&mut reader), b"first");
    for number in 0..5000 {
        writer.write(Stream::Stdout, format!("{number} {}\n", "x".repeat(500)).as_bytes(), NOW);
        // Through every rotation, if it comes in time.
        if number < 1000 {
            assert!(read(&mut reader).starts_with(format!("{number} ").as_bytes()));
        }
    }
    assert_eq!(reader.report().missed_segments, 0);
    assert!(read(&mut reader).starts_with(b"4999 "));
    assert!(reader.report().missed_segments > 0);
}

/// A small file system, for root.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(bytes: usize) -> Option<Self> {
        let place = tempfile::tempdir().unwrap();
        let size = format!("size={bytes},mode=700");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &size, "none"]).arg(place.path()).status();
        mounted.is_ok_and(|status| status.success()).then_some(Self(place))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_loses_output_and_says_how_much_when_it_has_room_again() {
    let Some(disk) = SmallDisk::new(MIB / 2) else {
        eprintln!("no file system can be mounted here: skipped");
        return;
    };
    let path = disk.0.path().join("logs");
    let ballast = disk.0.path().join("ballast");
    let mut writer = LogWriter::open(log(&path), 4 * MIN_CAP_BYTES, NOW).unwrap();
    writer.write(Stream::Stdout, b"before\n", NOW);
    let mut expected = b"before\n".to_vec();
    // Twice: what is told is told once.
    for round in 0..2 {
        let lost_before = writer.lost_bytes();
        let _ = fs::write(&ballast, vec![0; MIB]);
        let mut all = 0;
        while writer.lost_bytes() == lost_before || all < 40 {
            let line = format!("{round} {}\n", "x".repeat(997));
            let lost = writer.lost_bytes();
            writer.write(Stream::Stdout, line.as_bytes(), NOW);
            if writer.lost_bytes() == lost {
                expected.extend_from_slice(line.as_bytes());
            }
            all += 1;
        }
        let lost = writer.lost_bytes() - lost_before;
        assert!(lost > 0 && lost.is_multiple_of(1000), "{lost}");
        fs::remove_file(&ballast).unwrap();
        writer.write(Stream::Stdout, b"after\n", NOW);
        expected.extend_from_slice(b"after\n");
        let found = whole(&path);
        assert_eq!(String::from_utf8_lossy(&found[0]), String::from_utf8_lossy(&expected));
        let said = String::from_utf8(found[1].clone()).unwrap();
        assert_eq!(said.lines().count(), round + 1, "{said}");
        assert!(
            said.lines().last().unwrap().starts_with(&format!("nelly: {lost} bytes of output were lost")),
            "{said}"
        );
        assert!(said.contains("No space left"), "{said}");
    }
}

//! The form of the file, and of a section's fields.

use proptest::prelude::*;

use super::fields::stateful_fields;
use super::*;

fn sample() -> Sections {
    let mut sections = Sections::new();
    sections.put("vcpu.registers", 1, vec![1, 2, 3]);
    sections.put("clock", 7, Vec::new());
    sections
}

#[test]
fn what_was_written_is_taken_back_once_and_wholly() {
    let mut sections = Sections::decode(&sample().encode()).unwrap();
    assert_eq!(sections, sample());
    assert!(sections.take("clock", 7).unwrap().is_empty());
    assert_eq!(sections.take("clock", 7), Err(StateError::Missing("clock".into())));
    assert_eq!(sections.take_if_there("clock", 7), Ok(None));
    assert_eq!(sections.take("vcpu.registers", 1).unwrap(), [1, 2, 3]);
    assert_eq!(sections.finish(), Ok(()));
}

#[test]
fn what_is_unknown_is_refused_with_a_sentence() {
    let mut sections = sample();
    let error = sections.take("clock", 6).unwrap_err().to_string();
    assert_eq!(error, "the section clock of the state has version 7, and 6 is known here");
    sections.take("clock", 7).unwrap();
    let error = sections.finish().unwrap_err().to_string();
    assert!(error.starts_with("the state has a section vcpu.registers that is unknown here"), "{error}");
}

#[test]
fn what_is_no_state_is_told_apart_from_what_is_damaged() {
    let whole = sample().encode();
    assert_eq!(Sections::decode(b"something"), Err(StateError::Foreign));
    for len in MAGIC.len()..whole.len() {
        assert_eq!(Sections::decode(&whole[..len]), Err(CUT_OFF), "{len}");
    }
    let more = [whole.as_slice(), &[0]].concat();
    assert!(matches!(Sections::decode(&more), Err(StateError::Damaged(_))));
    let mut twice = sample();
    twice.0.push(twice.0[0].clone());
    assert_eq!(Sections::decode(&twice.encode()), Err(StateError::Damaged("two sections have one name")));
    let mut nameless = sample();
    nameless.0[0].name.clear();
    assert_eq!(Sections::decode(&nameless.encode()), Err(StateError::Damaged("a section has no name")));
    let mut many = MAGIC.to_vec();
    many.extend([0xff; 4]);
    assert!(matches!(Sections::decode(&many), Err(StateError::Damaged(_))));
}

proptest! {
    /// Whatever a file says, reading it ends, and what is read is what would be written.
    #[test]
    fn bytes_changed_at_random(
        at in 8usize..60,
        value in any::<u8>(),
        cut in prop_oneof![3 => Just(60usize), 1 => 0usize..60],
    ) {
        let mut bytes = sample().encode();
        prop_assert_eq!(bytes.len(), 60);
        if let Some(byte) = bytes.get_mut(at) {
            *byte = value;
        }
        bytes.truncate(cut);
        if let Ok(sections) = Sections::decode(&bytes) {
            prop_assert_eq!(sections.encode(), bytes);
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Everything {
    byte: u8,
    half: u16,
    word: u32,
    long: u64,
    truth: bool,
    perhaps: Option<u16>,
    array: [u8; 3],
}
stateful_fields!(Everything { byte, half, word, long, truth, perhaps, array });

#[test]
fn fields_are_little_endian_and_have_no_gaps() {
    let value = Everything {
        byte: 1,
        half: 0x0302,
        word: 0x0706_0504,
        long: 0x0f0e_0d0c_0b0a_0908,
        truth: true,
        perhaps: Some(0x1110),
        array: [18, 19, 20],
    };
    let mut state = Sections::new();
    state.put_fields("all", 3, |fields| fields.put(&value));
    let bytes = state.clone().take("all", 3).unwrap();
    assert_eq!(bytes, (1..=15).chain([1, 1]).chain(16..=20).collect::<Vec<u8>>());
    assert_eq!(state.take_fields("all", 3, |fields| fields.get()), Ok(value));
}

#[test]
fn fields_that_are_wrong_are_refused_with_a_sentence() {
    let why = |bytes: &[u8], read: fn(&mut FieldReader<'_>) -> Result<(), StateError>| {
        let mut state = Sections::new();
        state.put("clock", 1, bytes.to_vec());
        let error = state.take_fields("clock", 1, read).unwrap_err().to_string();
        error.strip_prefix("the section clock of the state does not fit: ").unwrap().to_owned()
    };
    assert_eq!(why(&[1, 2, 3], |fields| fields.get::<u32>().map(drop)), "it ends within a field");
    assert_eq!(why(&[2], |fields| fields.get::<bool>().map(drop)), "2 is neither yes nor no");
    assert_eq!(why(&[1], |fields| fields.get::<Option<u8>>().map(drop)), "it ends within a field");
    assert_eq!(why(&[7, 0], |fields| fields.get::<u8>().map(drop)), "it is 1 bytes too long");
    assert_eq!(
        why(&[3, 0, 0, 0, 1, 2, 3], |fields| fields.get_list::<u8>(2).map(drop)),
        "it has a list of 3, and 2 is the most"
    );
    assert_eq!(
        why(&[9], |fields| fields.expect("number of lines", &4u8)),
        "its number of lines is 9, and here it is 4"
    );
}

#[test]
fn lists_are_bounded() {
    let mut state = Sections::new();
    state.put_fields("list", 1, |fields| fields.put_list([5u16, 6].iter()));
    assert_eq!(state.clone().take_fields("list", 1, |fields| fields.get_list(2)), Ok(vec![5u16, 6]));
    // A list that says it is huge is refused before anything is reserved for it.
    let mut state = Sections::new();
    state.put("list", 1, vec![0xff; 4]);
    assert!(state.take_fields("list", 1, |fields| fields.get_list::<u64>(usize::MAX)).is_err());
}

proptest! {
    #[test]
    fn bytes_that_are_read_are_those_that_would_be_written(bytes in prop::collection::vec(0u8..3, 0..30)) {
        let mut state = Sections::new();
        state.put("all", 1, bytes.clone());
        if let Ok(value) = state.take_fields("all", 1, |fields| fields.get::<Everything>()) {
            let mut fields = FieldWriter::default();
            fields.put(&value);
            prop_assert_eq!(fields.into_bytes(), bytes);
        }
    }
}

//! Many bytes: 32 MiB through a container and back, with a reader that is slower than the
//! container.

use std::io::{Read, Write};
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use nelly_tests::{code, nelly, wait};

use super::{Home, LIMIT};

const BYTES: usize = 32 << 20;

/// Bytes that no pattern repeats: xorshift64*.
fn noise() -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut bytes = Vec::with_capacity(BYTES);
    while bytes.len() < BYTES {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes
}

#[test]
fn thirty_two_mebibytes_come_back_through_a_slow_reader() {
    let home = Home::new();
    let bytes = noise();
    let mut command = nelly(home.path(), &["run", "--rm", "-i", "--", "cat"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let sent = bytes.clone();
    let writer = thread::spawn(move || stdin.write_all(&sent));
    let mut stdout = child.stdout.take().unwrap();
    let mut back = Vec::with_capacity(BYTES);
    let mut chunk = vec![0; 256 << 10];
    loop {
        let count = stdout.read(&mut chunk).unwrap();
        if count == 0 {
            break;
        }
        back.extend_from_slice(&chunk[..count]);
        // Slower at first than any guest: everything between fills up and has to wait.
        if back.len() < 4 << 20 {
            thread::sleep(Duration::from_millis(20));
        }
    }
    writer.join().unwrap().unwrap();
    assert_eq!(code(wait(&mut child, LIMIT)), 0);
    assert_eq!(back.len(), bytes.len());
    assert!(back == bytes, "bytes changed on the way");
}

//! Headers of tar archives for the targets that read them.

/// Bytes of a header, and what everything is a multiple of.
const BLOCK: usize = 512;

/// One entry of a ustar archive.
pub(crate) fn entry(path: &str, kind: u8, link: &str, contents: &[u8]) -> Vec<u8> {
    let mut header = vec![0; BLOCK];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, b"0000755\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", contents.len()).as_bytes());
    put(136, b"00000000000\0");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    put(329, b"0000001\0");
    put(337, b"0000003\0");
    seal(&mut header);
    header.extend_from_slice(contents);
    header.resize(header.len().next_multiple_of(BLOCK), 0);
    header
}

/// Puts the sum of a header right.
pub(crate) fn seal(header: &mut [u8]) {
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

/// The same archive with the sums of all headers right: of every block that has the mark of one.
pub(crate) fn sealed(archive: &[u8]) -> Vec<u8> {
    let mut archive = archive.to_vec();
    for block in archive.chunks_exact_mut(BLOCK).filter(|block| block[257..262] == *b"ustar") {
        seal(block);
    }
    archive
}

/// A record of an extended header: its length counts itself.
pub(crate) fn record(records: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let len = (rest..).find(|len| *len == rest + len.to_string().len()).expect("some length is right");
    records.extend([len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat());
}

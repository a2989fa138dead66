//! Layers of an image: tar streams that somebody else wrote.

/// Merges the input, cut in two, as two layers.
pub fn run(data: &[u8]) {
    let _ = nelly_image::fuzz::layers(data);
}

/// A layer with a directory, a file, a hard link and symbolic links, and one that takes some of it
/// away, twice.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    let lower = [
        entry("etc/", b'5', "", b""),
        entry("etc/motd", b'0', "", b"hello\n"),
        entry("etc/issue", b'1', "etc/motd", b""),
        entry("bin/sh", b'2', "busybox", b""),
        entry("conf", b'2', "bin/../etc", b""),
        entry("link", b'2', "/conf", b""),
        entry("link/hosts", b'0', "", b"::1\n"),
        entry("dev/null", b'3', "", b""),
    ]
    .concat();
    let extended = b"30 path=a/rather/long/path/x.\n26 SCHILY.xattr.user.a=bc\n";
    let upper = [
        entry("etc/.wh.motd", b'0', "", b""),
        entry("etc/.wh..wh..opq", b'0', "", b""),
        entry("link/added", b'0', "", b"x"),
        entry("link/.wh..wh..opq", b'0', "", b""),
        entry("conf", b'5', "", b""),
        entry("link/again", b'0', "", b"x"),
        entry(".wh.etc", b'0', "", b""),
        entry("PaxHeaders/x", b'x', "", extended),
        entry("short", b'0', "", b"contents"),
    ]
    .concat();
    // The target cuts its input in the middle: two streams of one length, each with the zeros that
    // end it.
    let half = lower.len().max(upper.len()) + 1024;
    [(&lower, &upper), (&upper, &lower), (&lower, &lower)]
        .map(|(first, second)| {
            let mut both = first.clone();
            both.resize(half, 0);
            both.extend_from_slice(second);
            both.resize(2 * half, 0);
            both
        })
        .to_vec()
}

/// One entry of a ustar archive.
fn entry(path: &str, kind: u8, link: &str, contents: &[u8]) -> Vec<u8> {
    let mut header = vec![0; 512];
    let mut put = |at: usize, bytes: &[u8]| header[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, path.as_bytes());
    put(100, b"0000755\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    put(124, format!("{:011o}\0", contents.len()).as_bytes());
    put(136, b"00000000000\0");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    put(329, b"0000001\0");
    put(337, b"0000003\0");
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header.extend_from_slice(contents);
    header.resize(header.len().next_multiple_of(512), 0);
    header
}

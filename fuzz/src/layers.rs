//! Layers of an image: tar streams that somebody else wrote.

use super::tarball::{entry, sealed};

/// Merges the input, cut in two, as two layers. Of one with a single byte too many the sums of
/// headers are put right before, so that changes reach what lies behind them.
pub fn run(data: &[u8]) {
    if data.len() % 512 == 1 {
        let _ = nelly_image::fuzz::layers(&sealed(data));
    } else {
        let _ = nelly_image::fuzz::layers(data);
    }
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

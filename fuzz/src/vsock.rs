//! Packets of a guest to the socket device, over real queues, with host sockets that talk back.

/// Sends what the input describes, twelve bytes a packet.
///
/// # Panics
/// When the device breaks, never comes to rest, or asks for a reset.
pub fn run(data: &[u8]) {
    nelly_vmm::virtio::vsock::fuzz_packets(&data[..data.len().min(12 * 200)]);
}

/// Connections opened both ways, used, half closed, closed and reset.
#[must_use]
pub fn seeds() -> Vec<Vec<u8>> {
    // op, ports, flags, len, shape, alloc, forwarded, kind, cid, extra, room, talk
    let dial = [1, 1, 0, 0, 0x80, 255, 0, 1, 3, 0, 200, 1];
    let answer = [2, 0x80 | 2, 0, 0, 0x80, 255, 0, 1, 3, 0, 200, 2];
    let data = [5, 1, 0, 64, 0x80, 255, 0, 1, 3, 7, 200, 4];
    let credit = [6, 1, 0, 0, 0x80, 255, 200, 1, 3, 0, 200, 1];
    let ask = [7, 1, 0, 0, 0x80, 255, 0, 1, 3, 0, 200, 1];
    let half = [4, 1, 2, 0, 0x80, 255, 0, 1, 3, 0, 200, 5];
    let full = [4, 1, 3, 0, 0x80, 255, 0, 1, 3, 0, 200, 0];
    let reset = [3, 1, 0, 0, 0x80, 255, 0, 1, 3, 0, 200, 0];
    vec![
        [dial, data, credit, ask, data, half, full].concat(),
        [answer, data, data, data, reset, dial, full].concat(),
        [dial, reset, dial, data, full, reset].concat(),
    ]
}

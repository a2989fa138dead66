//! Packets put together from their fragments, in bounded memory and for a bounded time.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use super::table::Time;
use crate::wire::ip::Packet;

/// Packets at once.
const PACKETS: usize = 32;
/// Bytes of all of them.
const BYTES: usize = 1 << 20;
/// Fragments of one.
const PARTS: usize = 128;
/// The largest payload of a packet, in bytes.
const MOST: usize = 65_535;
/// How long the rest of a packet is waited for.
const PATIENCE: Time = Time::from_secs(15);

type Key = (IpAddr, IpAddr, u8, u32);

#[derive(Debug)]
struct Partial {
    since: Time,
    parts: BTreeMap<usize, Vec<u8>>,
    bytes: usize,
    /// Where the last fragment ends.
    end: Option<usize>,
}

/// Packets of which a part is there.
#[derive(Debug, Default)]
pub(super) struct Reassembly {
    packets: HashMap<Key, Partial>,
    bytes: usize,
}

impl Reassembly {
    /// Adds a fragment. Gives the payload of the packet when it is whole; `None` when the fragment
    /// contradicts others or itself, upon which the packet is forgotten.
    #[allow(clippy::option_option, reason = "a lie, nothing yet, or a packet")]
    pub(super) fn add(&mut self, now: Time, packet: &Packet<'_>) -> Option<Option<Vec<u8>>> {
        let fragment = packet.fragment?;
        let (len, end) = (packet.payload.len(), fragment.offset + packet.payload.len());
        if len == 0 || end > MOST || fragment.more && len % 8 != 0 {
            return None;
        }
        let key = (packet.src, packet.dst, packet.protocol, fragment.id);
        while !self.packets.contains_key(&key) && self.packets.len() >= PACKETS || self.bytes + len > BYTES {
            let oldest = *self.packets.iter().min_by_key(|(_, partial)| partial.since)?.0;
            self.forget(&oldest);
        }
        let partial = self.packets.entry(key).or_insert_with(|| Partial {
            since: now,
            parts: BTreeMap::new(),
            bytes: 0,
            end: None,
        });
        let known_end = partial.end.or((!fragment.more).then_some(end));
        let before = partial.parts.range(..end).next_back();
        let overlaps = before.is_some_and(|(at, part)| at + part.len() > fragment.offset);
        let last = partial.parts.last_key_value().map_or(0, |(at, part)| at + part.len()).max(end);
        let beyond = known_end.is_some_and(|known| last > known || !fragment.more && known != end);
        // The same fragment twice is a repetition, everything else a lie.
        if overlaps && partial.parts.get(&fragment.offset).is_some_and(|part| part == packet.payload) {
            return Some(None);
        }
        if overlaps || beyond || partial.parts.len() >= PARTS {
            self.forget(&key);
            return None;
        }
        partial.end = known_end;
        partial.parts.insert(fragment.offset, packet.payload.to_vec());
        partial.bytes += len;
        self.bytes += len;
        if partial.end != Some(partial.bytes) {
            return Some(None);
        }
        let whole = self.forget(&key)?;
        Some(Some(whole.parts.into_values().flatten().collect()))
    }

    fn forget(&mut self, key: &Key) -> Option<Partial> {
        let partial = self.packets.remove(key)?;
        self.bytes -= partial.bytes;
        Some(partial)
    }

    /// When the next packet is given up.
    pub(super) fn deadline(&self) -> Option<Time> {
        self.packets.values().map(|partial| partial.since + PATIENCE).min()
    }

    /// Gives up packets whose time is over.
    pub(super) fn expire(&mut self, now: Time) {
        while let Some((&key, _)) = self.packets.iter().find(|(_, partial)| partial.since + PATIENCE <= now) {
            self.forget(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::Fragment;

    fn part<'a>(id: u32, offset: usize, payload: &'a [u8], more: bool) -> Packet<'a> {
        Packet {
            src: "10.0.2.15".parse().unwrap(),
            dst: "192.0.2.1".parse().unwrap(),
            protocol: 17,
            hops: 64,
            fragment: Some(Fragment { id, offset, more }),
            whole: payload,
            payload,
        }
    }

    #[test]
    fn the_order_does_not_matter_and_repetitions_are_no_lie() {
        let bytes: Vec<u8> = (0..40).collect();
        let cuts = [(0, 16, true), (16, 24, true), (24, 40, false)];
        for order in [[0, 1, 2], [0, 2, 1], [1, 0, 2], [1, 2, 0], [2, 0, 1], [2, 1, 0]] {
            let mut all = Reassembly::default();
            for (step, at) in order.into_iter().enumerate() {
                let (from, to, more) = cuts[at];
                let whole = all.add(Time::ZERO, &part(1, from, &bytes[from..to], more)).unwrap();
                assert_eq!(whole, (step == 2).then(|| bytes.clone()));
                if step < 2 {
                    assert_eq!(all.add(Time::ZERO, &part(1, from, &bytes[from..to], more)), Some(None));
                }
            }
            assert_eq!((all.packets.len(), all.bytes), (0, 0));
        }
    }

    #[test]
    fn lies_are_forgotten_and_storms_are_bounded() {
        let zeros = [0; 1480];
        let mut all = Reassembly::default();
        assert_eq!(all.add(Time::ZERO, &part(1, 0, &zeros[..16], true)), Some(None));
        assert_eq!(all.add(Time::ZERO, &part(1, 8, &zeros[..16], true)), None);
        assert_eq!(all.add(Time::ZERO, &part(2, 0, &zeros[..15], true)), None);
        assert_eq!(all.add(Time::ZERO, &part(2, 65_528, &zeros[..16], false)), None);
        assert_eq!(all.add(Time::ZERO, &part(3, 16, &zeros[..8], false)), Some(None));
        assert_eq!(all.add(Time::ZERO, &part(3, 32, &zeros[..8], false)), None);
        assert!(all.packets.is_empty());
        for id in 0..100_000 {
            let offset = usize::try_from(id % 40).unwrap() * 1480;
            let _ = all.add(Time::from_millis(id.into()), &part(id / 3, offset, &zeros, true));
            assert!(all.packets.len() <= PACKETS && all.bytes <= BYTES);
        }
        all.expire(all.deadline().unwrap());
        assert!(all.packets.len() < PACKETS);
        all.expire(Time::from_secs(1000));
        assert_eq!((all.packets.len(), all.bytes), (0, 0));
    }
}

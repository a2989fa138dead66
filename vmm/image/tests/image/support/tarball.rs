//! A maker of tars, of good and of bad ones.

#[derive(Clone, Debug)]
pub struct Head {
    pub path: Vec<u8>,
    pub kind: u8,
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
    pub size: u64,
    pub mtime: u64,
    pub link: Vec<u8>,
    pub major: u32,
    pub minor: u32,
    pub pax: Vec<(Vec<u8>, Vec<u8>)>,
}

pub fn file(path: &str) -> Head {
    Head {
        path: path.into(),
        kind: b'0',
        mode: 0o644,
        uid: 0,
        gid: 0,
        size: 0,
        mtime: 1_700_000_000,
        link: Vec::new(),
        major: 0,
        minor: 0,
        pax: Vec::new(),
    }
}

pub fn dir(path: &str) -> Head {
    Head { kind: b'5', mode: 0o755, ..file(path) }
}

pub fn symlink(path: &str, target: &str) -> Head {
    Head { kind: b'2', mode: 0o777, link: target.into(), ..file(path) }
}

pub fn hard_link(path: &str, target: &str) -> Head {
    Head { kind: b'1', link: target.into(), ..file(path) }
}

#[derive(Default)]
pub struct Tar {
    pub bytes: Vec<u8>,
}

fn octal(block: &mut [u8], at: usize, len: usize, value: u64) {
    let text = format!("{value:0width$o}", width = len - 1);
    if text.len() < len {
        block[at..at + text.len()].copy_from_slice(text.as_bytes());
    } else {
        let start = at + len - 8;
        block[start..start + 8].copy_from_slice(&value.to_be_bytes());
        block[at] = 0x80;
    }
}

pub fn block(head: &Head) -> [u8; 512] {
    let mut block = [0; 512];
    let name = head.path.len().min(100);
    block[..name].copy_from_slice(&head.path[..name]);
    octal(&mut block, 100, 8, u64::from(head.mode));
    octal(&mut block, 108, 8, head.uid.min(0o7_777_777));
    octal(&mut block, 116, 8, head.gid.min(0o7_777_777));
    octal(&mut block, 124, 12, head.size);
    octal(&mut block, 136, 12, head.mtime);
    block[156] = head.kind;
    let link = head.link.len().min(100);
    block[157..157 + link].copy_from_slice(&head.link[..link]);
    block[257..265].copy_from_slice(b"ustar\x0000");
    octal(&mut block, 329, 8, u64::from(head.major));
    octal(&mut block, 337, 8, u64::from(head.minor));
    seal(&mut block);
    block
}

/// Writes the checksum.
pub fn seal(block: &mut [u8; 512]) {
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|&b| u32::from(b)).sum();
    block[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
}

pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while len != rest + len.to_string().len() {
        len = rest + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

impl Tar {
    pub fn add(&mut self, head: Head, data: &[u8]) -> &mut Self {
        let mut head = head;
        head.size = data.len() as u64;
        let mut pax = head.pax.clone();
        if head.path.len() > 100 {
            pax.push((b"path".to_vec(), head.path.clone()));
        }
        if head.link.len() > 100 {
            pax.push((b"linkpath".to_vec(), head.link.clone()));
        }
        for (key, id) in [("uid", head.uid), ("gid", head.gid)] {
            if id > 0o7_777_777 {
                pax.push((key.into(), id.to_string().into_bytes()));
            }
        }
        if !pax.is_empty() {
            let records: Vec<u8> = pax.iter().flat_map(|(key, value)| record(key, value)).collect();
            let header = Head { kind: b'x', size: records.len() as u64, ..file("PaxHeaders/x") };
            self.raw(&block(&header));
            self.data(&records);
        }
        self.raw(&block(&head));
        self.data(data);
        self
    }

    pub fn empty(&mut self, head: Head) -> &mut Self {
        self.add(head, b"")
    }

    pub fn raw(&mut self, bytes: &[u8]) -> &mut Self {
        self.bytes.extend(bytes);
        self
    }

    pub fn data(&mut self, data: &[u8]) -> &mut Self {
        self.bytes.extend(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub fn end(&mut self) -> Vec<u8> {
        self.bytes.extend([0; 1024]);
        std::mem::take(&mut self.bytes)
    }
}

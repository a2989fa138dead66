//! A writer of flattened device trees (Devicetree Specification 0.4, chapter 5, version 17).

use std::collections::BTreeMap;

use crate::sys::fits;

const MAGIC: u32 = 0xd00d_feed;
const VERSION: u32 = 17;
/// The oldest version whose readers understand this one.
const LAST_COMPATIBLE: u32 = 16;
const HEADER_LEN: usize = 40;
/// The list of reserved memory: its end alone. What the tree itself takes a kernel reserves by
/// itself.
const RESERVED_LEN: usize = 16;

const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const END: u32 = 9;

/// The tree as `fill` describes it, whole.
pub(super) fn tree(fill: impl FnOnce(&mut FdtNode<'_>)) -> Vec<u8> {
    let mut blocks = Blocks::default();
    blocks.node("", fill);
    blocks.word(END);
    blocks.finish()
}

/// The two blocks that grow with the tree.
#[derive(Default)]
struct Blocks {
    structure: Vec<u8>,
    strings: Vec<u8>,
    /// Where a property's name lies among the strings.
    names: BTreeMap<String, u32>,
}

impl Blocks {
    fn word(&mut self, word: u32) {
        self.structure.extend_from_slice(&word.to_be_bytes());
    }

    fn padded(&mut self, bytes: &[u8]) {
        self.structure.extend_from_slice(bytes);
        self.structure.resize(self.structure.len().next_multiple_of(4), 0);
    }

    fn node(&mut self, name: &str, fill: impl FnOnce(&mut FdtNode<'_>)) {
        self.word(BEGIN_NODE);
        self.padded(&text(name));
        fill(&mut FdtNode(self));
        self.word(END_NODE);
    }

    /// The offset of a name among the strings, each of which is there once.
    fn name(&mut self, name: &str) -> u32 {
        if let Some(offset) = self.names.get(name) {
            return *offset;
        }
        let offset = len(&self.strings);
        self.strings.extend(text(name));
        self.names.insert(name.to_owned(), offset);
        offset
    }

    fn finish(self) -> Vec<u8> {
        let structure = HEADER_LEN + RESERVED_LEN;
        let strings = structure + self.structure.len();
        let words = [
            MAGIC,
            offset(strings + self.strings.len()),
            offset(structure),
            offset(strings),
            offset(HEADER_LEN),
            VERSION,
            LAST_COMPATIBLE,
            // The boot processor's number, by its `reg`.
            0,
            len(&self.strings),
            len(&self.structure),
        ];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_be_bytes()).collect();
        bytes.resize(structure, 0);
        bytes.extend(self.structure);
        bytes.extend(self.strings);
        bytes
    }
}

/// A node that is being described: first its properties, then the nodes in it.
pub(super) struct FdtNode<'a>(&'a mut Blocks);

impl FdtNode<'_> {
    /// A node in this one.
    pub(super) fn node(&mut self, name: &str, fill: impl FnOnce(&mut FdtNode<'_>)) {
        self.0.node(name, fill);
    }

    /// A property of these bytes.
    pub(super) fn bytes(&mut self, name: &str, value: &[u8]) {
        let name = self.0.name(name);
        for word in [PROPERTY, len(value), name] {
            self.0.word(word);
        }
        self.0.padded(value);
    }

    /// A property that is there or not.
    pub(super) fn flag(&mut self, name: &str) {
        self.bytes(name, &[]);
    }

    /// A list of cells of 32 bits.
    pub(super) fn cells(&mut self, name: &str, cells: &[u32]) {
        let bytes: Vec<u8> = cells.iter().flat_map(|cell| cell.to_be_bytes()).collect();
        self.bytes(name, &bytes);
    }

    /// A list of numbers of two cells each.
    pub(super) fn wide(&mut self, name: &str, numbers: &[u64]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_be_bytes()).collect();
        self.bytes(name, &bytes);
    }

    /// A list of texts, none of which holds a NUL.
    pub(super) fn texts(&mut self, name: &str, texts: &[&str]) {
        let bytes: Vec<u8> = texts.iter().flat_map(|value| text(value)).collect();
        self.bytes(name, &bytes);
    }
}

fn text(text: &str) -> Vec<u8> {
    [text.as_bytes(), &[0]].concat()
}

fn len(bytes: &[u8]) -> u32 {
    offset(bytes.len())
}

fn offset(offset: usize) -> u32 {
    fits(offset, "a device tree has some KiB")
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A node as a reader finds it.
    #[derive(Debug, Default, PartialEq, Eq)]
    pub(in crate::boot::arm64) struct Read {
        pub(in crate::boot::arm64) properties: BTreeMap<String, Vec<u8>>,
        pub(in crate::boot::arm64) nodes: BTreeMap<String, Read>,
    }

    impl Read {
        /// The node at a path from here.
        pub(in crate::boot::arm64) fn at(&self, path: &str) -> &Self {
            path.split('/').filter(|part| !part.is_empty()).fold(self, |node, part| &node.nodes[part])
        }

        pub(in crate::boot::arm64) fn cells(&self, name: &str) -> Vec<u32> {
            self.properties[name].chunks(4).map(|cell| u32::from_be_bytes(cell.try_into().unwrap())).collect()
        }

        pub(in crate::boot::arm64) fn wide(&self, name: &str) -> Vec<u64> {
            self.properties[name].chunks(8).map(|cell| u64::from_be_bytes(cell.try_into().unwrap())).collect()
        }

        pub(in crate::boot::arm64) fn texts(&self, name: &str) -> Vec<String> {
            let bytes = self.properties[name].strip_suffix(&[0]).unwrap();
            bytes.split(|byte| *byte == 0).map(|text| String::from_utf8(text.to_vec()).unwrap()).collect()
        }
    }

    /// Reads a tree by the specification, and nothing beyond it.
    pub(in crate::boot::arm64) fn read(blob: &[u8]) -> Read {
        let word = |at: usize| u32::from_be_bytes(blob[at..at + 4].try_into().unwrap());
        let at = |index: usize| usize::try_from(word(index * 4)).unwrap();
        assert_eq!(word(0), 0xd00d_feed);
        assert_eq!((at(1), word(20), word(24)), (blob.len(), 17, 16));
        assert_eq!(at(4) % 8, 0, "the reserved memory is aligned to 8 bytes");
        assert_eq!(blob[at(4)..at(4) + 16], [0; 16]);
        assert_eq!(at(2) % 4, 0);
        let (structure, strings) = (&blob[at(2)..at(2) + at(9)], &blob[at(3)..at(3) + at(8)]);
        let mut reader = Reader { structure, strings, at: 0 };
        assert_eq!(reader.word(), 1);
        assert_eq!(reader.name(), "");
        let root = reader.node();
        assert_eq!((reader.word(), reader.at), (9, structure.len()));
        root
    }

    struct Reader<'a> {
        structure: &'a [u8],
        strings: &'a [u8],
        at: usize,
    }

    impl<'a> Reader<'a> {
        fn word(&mut self) -> u32 {
            let word = self.structure[self.at..self.at + 4].try_into().unwrap();
            self.at += 4;
            u32::from_be_bytes(word)
        }

        fn take(&mut self, len: usize) -> &'a [u8] {
            let bytes = &self.structure[self.at..self.at + len];
            self.at = (self.at + len).next_multiple_of(4);
            bytes
        }

        fn name(&mut self) -> String {
            let name = until_nul(&self.structure[self.at..]);
            self.take(name.len() + 1);
            name
        }

        fn node(&mut self) -> Read {
            let mut node = Read::default();
            loop {
                match self.word() {
                    1 => {
                        let name = self.name();
                        let inner = self.node();
                        assert!(node.nodes.insert(name, inner).is_none(), "two nodes of one name");
                    }
                    2 => return node,
                    3 => {
                        assert!(node.nodes.is_empty(), "properties come before nodes");
                        let (len, name) = (self.word(), self.word());
                        let name = until_nul(&self.strings[usize::try_from(name).unwrap()..]);
                        let value = self.take(usize::try_from(len).unwrap()).to_vec();
                        assert!(node.properties.insert(name, value).is_none(), "two properties of one name");
                    }
                    4 => {}
                    other => panic!("token {other}"),
                }
            }
        }
    }

    fn until_nul(bytes: &[u8]) -> String {
        let end = bytes.iter().position(|byte| *byte == 0).unwrap();
        String::from_utf8(bytes[..end].to_vec()).unwrap()
    }

    #[test]
    fn what_is_written_is_read_back() {
        let blob = tree(|root| {
            root.cells("#address-cells", &[2]);
            root.texts("compatible", &["a,b", "c"]);
            root.node("one@10", |node| {
                node.wide("reg", &[0x10, 0x1_0000_0000]);
                node.flag("dma-coherent");
                node.bytes("three", &[1, 2, 3]);
                node.node("inner", |inner| inner.cells("#address-cells", &[1]));
            });
            root.node("two", |_| {});
        });
        let root = read(&blob);
        assert_eq!(
            (root.cells("#address-cells"), root.texts("compatible")),
            (vec![2], vec!["a,b".into(), "c".into()])
        );
        let one = root.at("/one@10");
        assert_eq!(one.wide("reg"), [0x10, 0x1_0000_0000]);
        assert_eq!((one.properties["dma-coherent"].len(), &one.properties["three"][..]), (0, &[1, 2, 3][..]));
        assert_eq!(one.at("inner").cells("#address-cells"), [1]);
        assert_eq!(*root.at("two"), Read::default());
        // Each name of a property is there once.
        let names = blob.windows(15).filter(|window| window == b"#address-cells\0").count();
        assert_eq!(names, 1);
    }
}

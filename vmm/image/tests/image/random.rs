//! Random layers against a model of what they mean, and damaged ones against the parser.
#![allow(clippy::cast_possible_truncation, reason = "tests")]

use std::collections::{BTreeMap, BTreeSet, HashMap};

use crate::support::image::{Layout, Pack, TestDir, Whole};
use crate::support::tarball::{self, Head, Tar};
use proptest::prelude::*;

/// What an entry of a layer does. Paths have one to four names.
#[derive(Clone, Debug)]
enum Step {
    File { path: String, size: usize, xattrs: Vec<(u8, u8)> },
    Dir { path: String },
    Symlink { path: String, len: usize },
    Fifo { path: String },
    Link { path: String, target: String },
    Whiteout { path: String },
    Opaque { path: String },
}

#[derive(Clone, Copy, Debug)]
struct Attr {
    mode: u32,
    uid: u64,
    gid: u64,
    mtime: u64,
}

/// An inode of the model.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Inode {
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: i64,
    data: Vec<u8>,
    xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The model: every path by itself, with the layer that made it, and the inode it leads to.
#[derive(Default)]
struct Model {
    names: BTreeMap<String, (u32, usize)>,
    inodes: Vec<Inode>,
    layer: u32,
}

const DIR: u32 = 0o040_000;

impl Model {
    fn is_dir(&self, path: &str) -> bool {
        self.names.get(path).is_some_and(|&(_, inode)| self.inodes[inode].mode & 0o170_000 == DIR)
    }

    fn put(&mut self, path: &str, inode: usize) {
        self.names.insert(path.to_owned(), (self.layer, inode));
    }

    fn below<'a>(&'a self, path: &str) -> impl Iterator<Item = &'a String> + use<'a> {
        let prefix = format!("{path}/");
        self.names.keys().filter(move |name| name.starts_with(&prefix))
    }

    /// Makes the directories above `path`; `false` if one of them is something else.
    fn parents(&mut self, path: &str) -> bool {
        let ends: Vec<usize> = path.match_indices('/').map(|(at, _)| at).collect();
        if ends.iter().any(|&end| self.names.contains_key(&path[..end]) && !self.is_dir(&path[..end])) {
            return false;
        }
        for end in ends {
            if !self.names.contains_key(&path[..end]) {
                let inode = Inode {
                    mode: DIR | 0o755,
                    uid: 0,
                    gid: 0,
                    mtime: 0,
                    data: vec![],
                    xattrs: BTreeMap::new(),
                };
                self.inodes.push(inode);
                self.put(&path[..end], self.inodes.len() - 1);
            }
        }
        true
    }

    fn clear(&mut self, path: &str) {
        let gone: Vec<String> = self.below(path).cloned().collect();
        self.names.retain(|name, _| !gone.contains(name));
        self.names.remove(path);
    }

    fn hide(&mut self, path: &str, itself: bool) {
        let all: Vec<String> = self.below(path).cloned().chain(itself.then(|| path.to_owned())).collect();
        // The deepest first: a directory stays if something in it does.
        let mut all: Vec<String> = all.into_iter().filter(|name| self.names.contains_key(name)).collect();
        all.sort_by_key(|name| std::cmp::Reverse(name.len()));
        for name in all {
            if self.names[&name].0 < self.layer && self.below(&name).next().is_none() {
                self.names.remove(&name);
            }
        }
    }

    fn inode(&mut self, path: &str, inode: Inode) -> bool {
        if !self.parents(path) {
            return false;
        }
        if inode.mode & 0o170_000 == DIR && self.is_dir(path) {
            let (_, old) = self.names[path];
            self.inodes[old] = inode;
            self.put(path, old);
            return true;
        }
        self.clear(path);
        self.inodes.push(inode);
        self.put(path, self.inodes.len() - 1);
        true
    }

    /// Does the step and writes it to the tar; what a layer may not do is left out.
    fn step(&mut self, step: &Step, attr: Attr, tar: &mut Tar) {
        let (uid, gid, mtime) = (attr.uid as u32, attr.gid as u32, attr.mtime.cast_signed());
        let mut inode = Inode { mode: 0, uid, gid, mtime, data: vec![], xattrs: BTreeMap::new() };
        let head = |path: &str, kind| Head {
            kind,
            mode: attr.mode,
            uid: attr.uid,
            gid: attr.gid,
            mtime: attr.mtime,
            ..tarball::file(path)
        };
        match step {
            Step::File { path, size, xattrs } => {
                let seed = self.inodes.len();
                inode.mode = 0o100_000 | attr.mode;
                inode.data = (0..*size).map(|i| (i / 3 + seed) as u8).collect();
                let name = |n: u8| format!("user.name{n}").into_bytes();
                inode.xattrs = xattrs.iter().map(|&(n, v)| (name(n), vec![v; usize::from(v) * 20])).collect();
                let pax = inode.xattrs.iter();
                let pax = pax.map(|(n, v)| ([b"SCHILY.xattr.", &n[..]].concat(), v.clone())).collect();
                // One without a value is none.
                inode.xattrs.retain(|_, value| !value.is_empty());
                let data = inode.data.clone();
                if self.inode(path, inode) {
                    tar.add(Head { pax, ..head(path, b'0') }, &data);
                }
            }
            Step::Dir { path } => {
                inode.mode = DIR | attr.mode;
                if self.inode(path, inode) {
                    tar.empty(head(path, b'5'));
                }
            }
            Step::Symlink { path, len } => {
                inode.mode = 0o120_777;
                inode.data = vec![b't'; *len];
                let link = inode.data.clone();
                if self.inode(path, inode) {
                    tar.empty(Head { link, ..head(path, b'2') });
                }
            }
            Step::Fifo { path } => {
                inode.mode = 0o010_000 | attr.mode;
                if self.inode(path, inode) {
                    tar.empty(head(path, b'6'));
                }
            }
            Step::Link { path, target } => {
                let known = self.names.get(target).copied();
                let Some((_, inode)) = known.filter(|_| !self.is_dir(target)) else { return };
                if !self.parents(path) {
                    return;
                }
                self.clear(path);
                self.put(path, inode);
                tar.empty(tarball::hard_link(path, target));
            }
            Step::Whiteout { path } => {
                self.hide(path, true);
                let (parent, name) =
                    path.rsplit_once('/').map_or(("", &path[..]), |(parent, name)| (parent, name));
                tar.empty(tarball::file(&format!("{parent}/.wh.{name}")));
            }
            Step::Opaque { path } => {
                self.hide(path, false);
                tar.empty(tarball::file(&format!("{path}/.wh..wh..opq")));
            }
        }
    }
}

fn path() -> impl Strategy<Value = String> {
    let name = prop_oneof![
        6 => prop_oneof!["a", "b", "c"],
        1 => Just("\u{fc}mlaut".to_owned()),
        1 => (1..=255_usize).prop_map(|len| "n".repeat(len)),
        1 => Just("!".to_owned()),
    ];
    prop::collection::vec(name, 1..=4).prop_map(|names| names.join("/"))
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![0..200_usize, 3900..4200_usize, 8000..8300_usize, 0..60_000_usize];
    let xattrs = prop::collection::vec((0..4_u8, 0..6_u8), 0..3);
    prop_oneof![
        5 => (path(), size, xattrs).prop_map(|(path, size, xattrs)| Step::File { path, size, xattrs }),
        3 => path().prop_map(|path| Step::Dir { path }),
        1 => (path(), prop_oneof![1..80_usize, 3900..4096_usize]).prop_map(|(path, len)| Step::Symlink { path, len }),
        1 => path().prop_map(|path| Step::Fifo { path }),
        2 => (path(), path()).prop_map(|(path, target)| Step::Link { path, target }),
        2 => path().prop_map(|path| Step::Whiteout { path }),
        1 => path().prop_map(|path| Step::Opaque { path }),
    ]
}

fn attr() -> impl Strategy<Value = Attr> {
    let id = || prop_oneof![Just(0), 0..70_000_u64, Just(u64::from(u32::MAX) - 1)];
    let mtime = prop_oneof![Just(0), 0..4_000_000_000_u64];
    (0..0o10_000_u32, id(), id(), mtime).prop_map(|(mode, uid, gid, mtime)| Attr { mode, uid, gid, mtime })
}

fn check(layers: &[Vec<(Step, Attr)>]) {
    let mut model = Model::default();
    let mut tars = Vec::new();
    for (layer, pack) in layers.iter().zip([Pack::Plain, Pack::Gzip, Pack::Zstd].into_iter().cycle()) {
        model.layer += 1;
        let mut tar = Tar::default();
        layer.iter().for_each(|(step, attr)| model.step(step, *attr, &mut tar));
        tars.push((tar.end(), pack));
    }
    let place = TestDir::default();
    let layout = Layout::with(&place.path("layout"), &tars, "{}");
    let image = place.resolve(&layout.reference()).unwrap();
    let whole = Whole::of(&image);
    crate::support::fsck(whole.path());
    let tree = whole.reader().tree();

    let ours: BTreeSet<&[u8]> = model.names.keys().map(String::as_bytes).collect();
    let theirs: BTreeSet<&[u8]> = tree.keys().map(Vec::as_slice).filter(|path| !path.is_empty()).collect();
    assert_eq!(ours, theirs);
    let mut links: HashMap<usize, u32> = HashMap::new();
    model.names.values().for_each(|&(_, inode)| *links.entry(inode).or_default() += 1);
    let mut nids: HashMap<usize, u64> = HashMap::new();
    for (name, &(_, number)) in &model.names {
        let item = &tree[name.as_bytes()];
        let want = &model.inodes[number];
        let is_dir = want.mode & 0o170_000 == DIR;
        let found = Inode {
            mode: item.mode,
            uid: item.uid,
            gid: item.gid,
            mtime: item.mtime,
            data: if is_dir { vec![] } else { item.data.clone() },
            xattrs: item.xattrs.clone(),
        };
        assert!(found == *want, "{name}: {:o} {} {}", found.mode, found.data.len(), found.mtime);
        if !is_dir {
            assert_eq!(item.nlink, links[&number], "{name}");
            assert_eq!(*nids.entry(number).or_insert(item.nid), item.nid, "{name}");
        }
    }
    let inodes: BTreeSet<u64> = tree.values().map(|item| item.nid).collect();
    assert_eq!(inodes.len(), links.len() + 1);

    // The same input makes the same bytes.
    let other = TestDir::default();
    let again = other.resolve(&layout.reference()).unwrap();
    assert!(Whole::of(&again).bytes() == whole.bytes());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn layers_mean_what_the_model_says(
        layers in prop::collection::vec(prop::collection::vec((step(), attr()), 0..40), 1..5),
    ) {
        check(&layers);
    }
}

/// A tar with something of everything, to be damaged.
fn seed() -> Vec<u8> {
    let sparse = |key: &str, value: &str| (key.as_bytes().to_vec(), value.as_bytes().to_vec());
    let mut old_sparse = tarball::block(&Head { kind: b'S', size: 512, ..tarball::file("old-sparse") });
    old_sparse[386..409].copy_from_slice(b"00000001000\x0000000001000");
    old_sparse[483..494].copy_from_slice(b"00000010000");
    tarball::seal(&mut old_sparse);
    let mut map = b"1\n1024\n512\n".to_vec();
    map.resize(1024, 0);
    let long = ["l".repeat(200), "m".repeat(100)].join("/");
    let mut tar = Tar::default();
    tar.empty(tarball::dir("a"))
        .add(tarball::file("a/f"), &[1; 5000])
        .add(Head { pax: vec![sparse("SCHILY.xattr.user.x", "value")], ..tarball::file("x") }, b"x")
        .empty(tarball::hard_link("h", "a/f"))
        .empty(tarball::symlink("s", "a"))
        .add(Head { kind: b'L', ..tarball::file("././@LongLink") }, long.as_bytes())
        .add(tarball::file("short"), b"long name")
        .raw(&old_sparse)
        .data(&[2; 512])
        .add(
            Head {
                pax: vec![
                    sparse("GNU.sparse.major", "1"),
                    sparse("GNU.sparse.minor", "0"),
                    sparse("GNU.sparse.name", "new-sparse"),
                    sparse("GNU.sparse.realsize", "9000"),
                ],
                ..tarball::file("p")
            },
            &map,
        )
        .add(
            Head {
                pax: vec![sparse("GNU.sparse.map", "0,3,100,2"), sparse("GNU.sparse.size", "200")],
                ..tarball::file("sparse-0.1")
            },
            b"12345",
        )
        .empty(tarball::file("a/.wh.f"))
        .empty(tarball::file("a/.wh..wh..opq"))
        .empty(Head { kind: b'3', major: 1, minor: 3, ..tarball::file("null") })
        .empty(tarball::file("s/through"));
    tar.end()
}

#[test]
fn the_seed_is_sound() {
    let tree = crate::support::image::tree_of(&[seed()]);
    assert_eq!(tree[&b"old-sparse"[..]].size, 4096);
    assert_eq!(tree[&b"old-sparse"[..]].data[512..1024], [2; 512]);
    assert_eq!(tree[&b"new-sparse"[..]].size, 9000);
    assert_eq!(tree[&b"sparse-0.1"[..]].data[100..102], *b"45");
    assert_eq!(tree[["l".repeat(200), "m".repeat(100)].join("/").as_bytes()].data, b"long name");
    assert_eq!(tree[&b"a/through"[..]].size, 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any damage ends in an error or in an image, never in a panic or an endless loop. Half of the
    /// time checksums are mended, so that the damage gets behind them.
    #[test]
    fn damage_is_survived(
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), 1..20_usize), 1..12),
        cut in any::<prop::sample::Index>(),
        mend in any::<bool>(),
        whole in any::<bool>(),
    ) {
        let mut data = seed();
        for (at, value, len) in changes {
            let at = at.index(data.len());
            let end = data.len().min(at + len);
            data[at..end].fill(value);
        }
        if mend {
            for block in data.chunks_exact_mut(512) {
                if &block[257..262] == b"ustar" {
                    tarball::seal(block.try_into().unwrap());
                }
            }
        }
        if !whole {
            data.truncate(cut.index(data.len()));
        }
        nelly_image::fuzz::layers(&data);
    }

    #[test]
    fn noise_is_survived(data in prop::collection::vec(any::<u8>(), 0..5000)) {
        nelly_image::fuzz::layers(&data);
    }
}
